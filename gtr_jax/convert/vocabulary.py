"""T5 vocabularies as SentencePiece models and as tokenizer.json of Hugging Face's fast tokenizers: each from the other.

Since version 5, transformers saves tokenizer.json alone.
"""

import base64
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from gtr_jax.errors import InputError

_SPACE = "\u2581"  # SentencePiece's sign for a space
_SENTINEL = "<extra_id_"


def sentinels(count: int) -> list[str]:
  """T5's sentinels in the order of their ids: they count backwards, so that <extra_id_0> is the last."""
  return [f"{_SENTINEL}{i}>" for i in reversed(range(count))]


def special_tokens(vocabulary: bytes) -> dict[str, str]:
  """"pad_token", "eos_token" and "unk_token" of a SentencePiece model."""
  model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary)
  ids = {"pad_token": model.trainer_spec.pad_id, "eos_token": model.trainer_spec.eos_id,
         "unk_token": model.trainer_spec.unk_id}
  return {name: model.pieces[max(i, 0)].piece for name, i in ids.items()}


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
      "model": {"type": "Unigram", "unk_id": model.trainer_spec.unk_id, "vocab": pieces, "byte_fallback": False}}


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
    kind, pieces, unk_id = fields["model"]["type"], fields["model"]["vocab"], fields["model"]["unk_id"]
    normalizer = fields["normalizer"] or {"type": "Precompiled", "precompiled_charsmap": ""}
    if kind != "Unigram" or normalizer["type"] != "Precompiled" or fields["model"].get("byte_fallback"):
      raise InputError(f"{place}: a {kind} tokenizer with normalizer {normalizer['type']}; gtr_jax reads T5's: "
                       "Unigram, Precompiled, without byte fallback; give its SentencePiece model as vocabulary")
    charsmap = base64.b64decode(normalizer["precompiled_charsmap"])
    special = {token["content"]: token["id"] for token in fields["added_tokens"]}
    pad_id, eos_id = special["<pad>"], special["</s>"]
    for i, (piece, score) in enumerate(pieces):
      if not piece.startswith(_SENTINEL):
        types = sentencepiece_model_pb2.ModelProto.SentencePiece
        model.pieces.add(piece=piece, score=score, type=types.UNKNOWN if i == unk_id else
                         types.CONTROL if i in (pad_id, eos_id) else types.NORMAL)
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
    raise InputError(f"{place}: not T5's tokenizer ({type(e).__name__}: {e}); give its SentencePiece model "
                     "as vocabulary") from e
  model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
  model.trainer_spec.vocab_size = len(model.pieces)
  model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id = pad_id, eos_id, unk_id
  model.trainer_spec.bos_id = -1
  model.normalizer_spec.name = "nmt_nfkc" if charsmap else "identity"
  model.normalizer_spec.precompiled_charsmap = charsmap
  return model.SerializeToString()
