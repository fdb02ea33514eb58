"""Folders of sentence-transformers, and bare T5 folders of transformers, as models to encode with.

`modules.json` says what the folder computes, and is obeyed: T5, pooling, dense layer, normalisation. Whatever it asks
for beyond what `DualEncoder` computes is an error.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats import huggingface
from gtr_jax.formats.diagnose import check_no_adapter
from gtr_jax.formats.foreign_json import Fields, is_text, read_fields, read_json
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.formats.names import projection_name
from gtr_jax.formats.vocabulary import check_same, from_tokenizer_json
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.tokenizer import MOST_TOKENS, Tokenizer

VOCABULARY_FILE = "spiece.model"
_SETTINGS = "config_sentence_transformers.json"
_PACKAGE = "sentence_transformers."
_POOLINGS = {"mean": "mean", "cls": "first"}
# Before version 5.4 of sentence-transformers, pooling was written as one flag for each way.
_FLAG = "pooling_mode_"
_OF_FLAGS = {f"{_FLAG}mean_tokens": "mean", f"{_FLAG}cls_token": "cls"}
_T5_TOKENS = re.compile(r"<pad>|</s>|<unk>|<extra_id_[0-9]+>")
# transformers 5 writes the last where it knows tokenizer.json alone.
_T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast", "TokenizersBackend")


def is_folder(path: epath.Path) -> bool:
  """Whether it is a folder that `read` is for."""
  return (path / "modules.json").exists() or (path / "config.json").exists()


def read(folder: epath.Path) -> ModelOnDisk:
  """A sentence-transformers folder, or a bare T5 (mean pooling, no projection, normalised).

  Raises:
    InputError: something is missing or damaged, or asks for what gtr_jax does not compute.
  """
  place, settings = folder / "modules.json", read_fields(folder / _SETTINGS, optional=True)
  if (kind := settings.get("model_type", str, "SentenceTransformer")) != "SentenceTransformer":
    raise InputError(f"{settings.place}: model_type is {kind!r}; gtr_jax computes a 'SentenceTransformer', one vector "
                     "of each text")
  if not place.exists():
    _check_no_scores(read_fields(folder / "config.json"))
    for mark in ("1_Pooling", "2_Dense", _SETTINGS):
      if (folder / mark).exists():
        raise InputError(f"{place}: no such file, and {mark} beside it is of a sentence-transformers folder; copy the "
                         f"whole model, or remove {mark} if this is a T5 alone")
    return _read_transformer(folder, folder, settings, {})
  modules = _modules(folder)
  kinds = [kind for kind, _ in modules]
  if kinds not in (["Transformer", "Pooling", *middle, *last] for middle in ([], ["Dense"])
                   for last in ([], ["Normalize"])):
    raise InputError(f"{place}: is a chain of {', '.join(kinds) or 'nothing'}; gtr_jax computes Transformer, Pooling, "
                     "then Dense and Normalize or not, all of sentence_transformers")
  paths = dict(modules)
  transformer = paths["Transformer"]
  check_no_adapter(transformer)
  config = huggingface.read_config(transformer / "config.json")
  projection_dim, arrays = _read_dense(paths["Dense"], config) if "Dense" in paths else (None, {})
  if "Normalize" not in paths and settings.get("similarity_fn_name", str, None) == "cosine":
    raise InputError(f"{settings.place}: similarity_fn_name is 'cosine' of vectors that are not normalised, and "
                     "gtr_jax ranks by dot product; add a Normalize module to modules.json, or set 'dot' if that is "
                     "meant")
  return _read_transformer(folder, transformer, settings, arrays, config, projection_dim=projection_dim,
                           pooling=_read_pooling(paths["Pooling"], config), normalize="Normalize" in paths)


def _check_no_scores(fields: Fields) -> None:
  """Raises InputError for config.json of a model that gives scores of texts, and no vectors."""
  for kind in fields.get("architectures", list, None) or []:
    if isinstance(kind, str) and kind.endswith("ForSequenceClassification"):
      raise InputError(f"{fields.place}: architectures names {kind:.60}, a CrossEncoder or classifier, which scores "
                       "texts (or pairs of them); gtr_jax computes one vector of each text: take a model that embeds, "
                       "such as sentence-transformers/gtr-t5-base")


def _modules(folder: epath.Path) -> list[tuple[str, epath.Path]]:
  """(class, folder) of each step; of a class of another package the whole name."""
  place = folder / "modules.json"
  modules = []
  for number, module in enumerate(read_json(place, kind=list)):
    if not isinstance(module, dict):
      raise InputError(f"{place}: module {number} is no object with `type` and `path`; copy it again")
    fields = Fields(place, module)
    kind, path = fields.get("type", str), fields.file("path")
    modules.append((kind.rpartition(".")[2] if kind.startswith(_PACKAGE) else kind, folder / path))
  return modules


def _read_pooling(folder: epath.Path, config: T5Config) -> str:
  fields = read_fields(folder / "config.json")
  mode = fields.contents.get("pooling_mode") or [
      _OF_FLAGS.get(flag, flag) for flag in fields.contents if flag.startswith(_FLAG) and fields.get(flag, bool)]
  if isinstance(mode, list) and len(mode) == 1:
    (mode,) = mode
  if not isinstance(mode, str) or mode not in _POOLINGS:
    said = ", ".join(map(str, mode)) if isinstance(mode, list) else mode
    raise InputError(f"{fields.place}: pools by {said or 'nothing that it names'}; gtr_jax pools by "
                     f"{' or '.join(_POOLINGS)}")
  if not fields.get("include_prompt", bool, True):
    raise InputError(f"{fields.place}: include_prompt is false; gtr_jax pools over the prompt too")
  for name in ("embedding_dimension", "word_embedding_dimension"):
    if (width := fields.get(name, int, config.emb_dim)) != config.emb_dim:
      raise InputError(f"{fields.place}: pools vectors of {width}, and the encoder's are {config.emb_dim} wide; copy "
                       "the whole model again")
  return _POOLINGS[mode]


def _read_dense(folder: epath.Path, config: T5Config) -> tuple[int, dict[str, Any]]:
  """Width of the embeddings, and the projection by native name."""
  fields = read_fields(folder / "config.json")
  for name, unsaid, wanted in (("bias", True, False), ("use_residual", False, False),
                               ("module_input_name", None, "sentence_embedding"),
                               ("module_output_name", None, "sentence_embedding")):
    value = fields.get(name, type(wanted), unsaid)
    if value not in (wanted, None):
      raise InputError(f"{fields.place}: {name} is {value!r}; gtr_jax computes a dense layer with {wanted!r} only")
  activation = fields.get("activation_function", str, "torch.nn.modules.activation.Tanh")
  if activation.rpartition(".")[2] != "Identity":
    raise InputError(f"{fields.place}: activation_function is {activation}; gtr_jax computes Identity only")
  width, out = (fields.get(f"{side}_features", int, least=1) for side in ("in", "out"))
  if width != config.emb_dim:
    raise InputError(f"{fields.place}: goes from {width} to {out}, and the encoder is {config.emb_dim} wide; copy the "
                     "whole model again")
  projection = projection_name(DualEncoder(config, projection_dim=out))
  return out, huggingface.take(huggingface.read_weights(folder), [projection], fields.place)


def _read_transformer(folder: epath.Path, transformer: epath.Path, settings: Fields, projection: Mapping[str, Array],
                      config: T5Config | None = None, **fields: Any) -> ModelOnDisk:
  """The T5 in `transformer`, and what else the model in `folder` says."""
  check_no_adapter(transformer)
  config = config or huggingface.read_config(transformer / "config.json")
  encoder = DualEncoder(config, **{"projection_dim": None, **fields})
  truncate_dim = settings.get("truncate_dim", int, None)
  if truncate_dim not in (None, encoder.dim):
    raise InputError(f"{settings.place}: truncate_dim is {truncate_dim}; gtr_jax gives whole vectors, here of "
                     f"{encoder.dim}: set it to null, and cut the vectors yourself")
  tokenizer = read_fields(transformer / "tokenizer_config.json", optional=True)
  if (kind := tokenizer.get("tokenizer_class", str, None)) not in (None, *_T5_TOKENIZERS):
    raise InputError(f"{tokenizer.place}: tokenizer_class is {kind!r}; gtr_jax reads T5's, "
                     f"{', '.join(_T5_TOKENIZERS)}: take a model that reads pieces of SentencePiece as T5 does")
  for place, token in _added_tokens(transformer, tokenizer):
    if not isinstance(token, str) or not _T5_TOKENS.fullmatch(token):
      raise InputError(f"{place}: adds the token {token!r:.80} to T5's; gtr_jax reads the pieces of the SentencePiece "
                       "model only")
  file = next((transformer / name for name in (VOCABULARY_FILE, "tokenizer.json") if (transformer / name).is_file()),
              None)
  # transformers leaves out what it takes for granted: 100 sentinels in a T5, none in an mT5.
  granted = 0 if read_fields(transformer / "config.json").get("model_type", str) == "mt5" else 100
  return ModelOnDisk(folder, encoder, {**huggingface.read_encoder(transformer, config), **projection}, file,
                tokenizer.get("extra_ids", int, granted, least=0), _lengths(transformer, tokenizer),
                _prompts(settings), None if file is None else lambda: _vocabulary(file, transformer / "tokenizer.json"))


def _vocabulary(file: epath.Path, fast: epath.Path) -> bytes:
  """The SentencePiece model. Made when it is asked for: where it cannot be, another vocabulary may be given."""
  if file == fast:
    return from_tokenizer_json(read_json(fast), fast)
  model = Tokenizer(file).model
  if fast.is_file():
    check_same(model, read_json(fast), file, fast)
  return model


def _added_tokens(transformer: epath.Path, tokenizer: Fields) -> Iterator[tuple[epath.Path, Any]]:
  """Every token that a file of the tokenizer adds to the pieces, with the file."""
  special, fast, added = (read_fields(transformer / f"{name}.json", optional=True)
                          for name in ("special_tokens_map", "tokenizer", "added_tokens"))
  for fields, tokens in (
      (tokenizer, tokenizer.get("added_tokens_decoder", dict, {}).values()),
      *((fields, fields.get("additional_special_tokens", list, None) or []) for fields in (tokenizer, special)),
      (fast, fast.get("added_tokens", list, None) or []),
      (added, added.contents)):
    for token in tokens:
      yield fields.place, token.get("content") if isinstance(token, dict) else token


def _lengths(transformer: epath.Path, tokenizer: Fields) -> dict[str, int]:
  """Those of the sides that the folder says: sentence-transformers reads the tokenizer's where it says none itself."""
  fields = read_fields(transformer / "sentence_bert_config.json", optional=True)
  if fields.get("do_lower_case", bool, False):
    raise InputError(f"{fields.place}: do_lower_case is true; gtr_jax reads texts as they are")
  for name, wanted in (("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")):
    if (value := fields.get(name, str, wanted)) != wanted:
      raise InputError(f"{fields.place}: {name} is {value!r}; gtr_jax computes {wanted!r} only")
  both = _length(fields, "max_seq_length") or _length(tokenizer, "model_max_length")
  lengths = {side: _length(fields, f"{side}_length") or both for side in ("query", "document")}
  return {side: int(length) for side, length in lengths.items() if length and length <= MOST_TOKENS}


def _length(fields: Fields, name: str) -> float | None:
  """Tokens at most, None where it is not said: transformers writes 10^30, as a whole number or not, for no limit."""
  if fields.contents.get(name) == math.inf:
    return math.inf
  return fields.get(name, int, None, least=1, advice="correct it, or write null, which is no limit")


def _prompts(fields: Fields) -> dict[str, str]:
  """What `encode_query` and `encode_document` of sentence-transformers put before a text."""
  similarity = fields.get("similarity_fn_name", str, None)
  if similarity not in (None, "cosine", "dot"):
    raise InputError(f"{fields.place}: similarity_fn_name is {similarity!r}; gtr_jax ranks by dot product")
  prompts = fields.get("prompts", dict, None) or {}
  for name, text in prompts.items():
    if text is not None and not is_text(text):
      raise InputError(f"{fields.place}: the prompt {name!r} is {text!r:.80}; give a text")
  # It has a prompt of either name, if only an empty one; the other names and the default are for its `encode` alone.
  prompts = {"query": None, "document": None, **prompts}
  default = fields.get("default_prompt_name", str, None)
  if default is not None and default not in prompts:
    raise InputError(f"{fields.place}: default_prompt_name is {default!r}, and prompts has {', '.join(prompts)}")
  return {side: prompts[side] or "" for side in ("query", "document")}
