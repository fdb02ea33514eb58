"""T5 vocabularies as SentencePiece models and as tokenizer.json of Hugging Face's fast tokenizers: each from the other.

Since version 5, transformers saves tokenizer.json alone.
"""

import base64
import itertools
import re
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from gtr_jax.errors import InputError

_SPACE = "\u2581"  # SentencePiece's sign for a space
_SENTINEL = "<extra_id_"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_USED_BY = {"WordPiece": "BERT's kind of", "BPE": "GPT's kind of", "WordLevel": "whole words as"}
_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece


def sentinels(count: int) -> list[str]:
  """T5's sentinels in the order of their ids: they count backwards, so that <extra_id_0> is the last."""
  return [f"{_SENTINEL}{i}>" for i in reversed(range(count))]


def special_tokens(vocabulary: bytes) -> dict[str, str]:
  """"pad_token", "eos_token" and "unk_token" of a SentencePiece model."""
  model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary)
  ids = {"pad_token": model.trainer_spec.pad_id, "eos_token": model.trainer_spec.eos_id,
         "unk_token": model.trainer_spec.unk_id}
  return {name: model.pieces[max(i, 0)].piece for name, i in ids.items()}


def check_exportable(vocabulary: bytes, place: Any) -> None:
  """Raises InputError where a SentencePiece model reads texts in another way than `to_tokenizer_json` can say."""
  model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  kind = trainer.ModelType.Name(trainer.model_type)
  reasons = [f"model_type {kind.lower()}"] * (kind != "UNIGRAM")
  for spec, options in ((trainer, {"treat_whitespace_as_suffix": False, "split_by_whitespace": True}),
                        (normalizer, {"add_dummy_prefix": True, "remove_extra_whitespaces": True,
                                      "escape_whitespaces": True})):
    reasons += [f"{name} {str(not usual).lower()}" for name, usual in options.items() if getattr(spec, name) != usual]
  types = {piece.type for piece in model.pieces}
  reasons += [f"{name.lower()} pieces" for name in ("USER_DEFINED", "UNUSED") if getattr(_PIECE, name) in types]
  if reasons:
    raise InputError(f"{place}: was trained with {', '.join(reasons)}, unlike T5's vocabularies, and tokenizer.json "
                     "would read texts in another way; keep this model in another form, such as --to stablehlo")


def check_same(vocabulary: bytes, fields: Any, place: Any, fast: Any) -> None:
  """Raises InputError where a SentencePiece model and a tokenizer.json have other pieces, scores or order.

  Args:
    vocabulary: the SentencePiece model.
    fields: the contents of tokenizer.json.
    place: of the SentencePiece model, for the message.
    fast: of tokenizer.json.
  """
  pieces = [(piece.piece, piece.score, piece.type == _PIECE.NORMAL)
            for piece in sentencepiece_model_pb2.ModelProto.FromString(vocabulary).pieces
            if not piece.piece.startswith(_SENTINEL)]
  try:
    _check_unigram(fields["model"], fast, f"{place} is beside it: remove the one that is not the model's")
    theirs = [(piece, float(np.float32(score))) for piece, score in fields["model"]["vocab"]
              if not piece.startswith(_SENTINEL)]
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise InputError(f"{fast}: not T5's tokenizer ({type(e).__name__}: {e}), and {place} is beside it; remove the one "
                     "that is not the model's") from e
  for i, (ours, its) in enumerate(itertools.zip_longest(pieces, theirs)):
    # Pad, EOS and unknown are never chosen by their scores.
    if ours is None or its is None or ours[0] != its[0] or ours[2] and ours[1] != its[1]:
      said = ["nothing" if piece is None else f"{piece[0]!r} ({piece[1]:.6g})" for piece in (ours, its)]
      raise InputError(f"{place} and {fast}: do not agree: piece {i} is {said[0]} and {said[1]}; copy both of one "
                       "model, or remove the one that is not the model's")


def to_tokenizer_json(vocabulary: bytes, extra_ids: int) -> dict[str, Any]:
  """The contents of tokenizer.json for a SentencePiece model (unigram) with sentinels after its pieces."""
  model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary)
  special = special_tokens(vocabulary)
  pieces = [[piece.piece, piece.score] for piece in model.pieces]
  pieces += [[sentinel, 0.0] for sentinel in sentinels(extra_ids)]
  ids = {piece: i for i, (piece, _) in enumerate(pieces)}
  added = sorted((ids[token], token) for token in (*special.values(), *sentinels(extra_ids)))
  charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
  words = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
  eos = special["eos_token"]
  first, closing = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}
  return {
      "version": "1.0", "truncation": None, "padding": None,
      "added_tokens": [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                        "normalized": False, "special": True} for i, token in added],
      "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
      "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, words]},
      "post_processor": {
          "type": "TemplateProcessing", "single": [first, closing],
          "pair": [first, closing, {"Sequence": {"id": "B", "type_id": 0}}, closing],
          "special_tokens": {eos: {"id": eos, "ids": [ids[eos]], "tokens": [eos]}}},
      "decoder": words,
      "model": {"type": "Unigram", "unk_id": model.trainer_spec.unk_id, "vocab": pieces,
                "byte_fallback": model.trainer_spec.byte_fallback}}


def from_tokenizer_json(fields: Any, place: Any) -> bytes:
  """The SentencePiece model of a T5's tokenizer.json; the sentinels are left out, as they come after the pieces.

  Args:
    fields: the contents.
    place: of the file, for the message.

  Raises:
    InputError: it is not T5's kind of tokenizer.
  """
  model = sentencepiece_model_pb2.ModelProto()
  try:
    _check_unigram(fields["model"], place, "give its SentencePiece model as vocabulary, if it has one")
    pieces, unk_id = fields["model"]["vocab"], fields["model"]["unk_id"]
    normalizer = _of_spaces_apart(fields["normalizer"] or {"type": "null"})
    by_bytes = bool(fields["model"].get("byte_fallback"))
    if normalizer["type"] != "Precompiled":
      raise InputError(f"{place}: a tokenizer with normalizer {normalizer['type']}; gtr_jax reads T5's, "
                       "Precompiled; give its SentencePiece model as vocabulary")
    charsmap = base64.b64decode(normalizer["precompiled_charsmap"] or "")
    if not charsmap:
      raise InputError(f"{place}: its normalizer has no precompiled_charsmap, by which T5's vocabularies normalise "
                       "characters; give its SentencePiece model as vocabulary")
    special = {token["content"]: token["id"] for token in fields["added_tokens"]}
    pad_id, eos_id = special["<pad>"], special["</s>"]
    for i, (piece, score) in enumerate(pieces):
      if not piece.startswith(_SENTINEL):
        model.pieces.add(piece=piece, score=score, type=_PIECE.UNKNOWN if i == unk_id else
                         _PIECE.CONTROL if i in (pad_id, eos_id) else
                         _PIECE.BYTE if by_bytes and _BYTE.fullmatch(piece) else _PIECE.NORMAL)
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
    raise InputError(f"{place}: not T5's tokenizer ({type(e).__name__}: {e}); give its SentencePiece model "
                     "as vocabulary") from e
  model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
  model.trainer_spec.vocab_size, model.trainer_spec.byte_fallback = len(model.pieces), by_bytes
  model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id = pad_id, eos_id, unk_id
  model.trainer_spec.bos_id = -1
  model.normalizer_spec.name = "nmt_nfkc"
  model.normalizer_spec.precompiled_charsmap = charsmap
  return model.SerializeToString()


def _check_unigram(model: Any, place: Any, advice: str) -> None:
  """Raises InputError where the `model` of a tokenizer.json is none of pieces with scores."""
  if isinstance(model, dict) and (kind := model.get("type", "Unigram")) != "Unigram":
    raise InputError(f"{place}: a {kind!s:.40} tokenizer with {_USED_BY.get(str(kind), 'other')} pieces; gtr_jax reads "
                     f"T5's, Unigram of SentencePiece; {advice}")


def _of_spaces_apart(normalizer: Any) -> Any:
  """The normalizer without what transformers adds for spaces, which SentencePiece itself removes."""
  if normalizer["type"] != "Sequence":
    return normalizer
  first, *others = normalizer["normalizers"]
  of_spaces = ({"type": "Strip"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}})
  known = all(any(other.items() >= of.items() for of in of_spaces) for other in others)
  return first if known else normalizer
