"""Folders of sentence-transformers, and bare T5 folders of transformers, as models to encode with.

`modules.json` says what the folder computes, and is obeyed: T5, pooling, dense layer, normalisation. Whatever it asks
for beyond what `DualEncoder` computes is an error.
"""

import math
from typing import Any

from etils import epath

from gtr_jax.convert import huggingface
from gtr_jax.convert.huggingface import read_json
from gtr_jax.convert.names import projection_name
from gtr_jax.convert.source import Source
from gtr_jax.convert.vocabulary import from_tokenizer_json
from gtr_jax.errors import InputError
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config

VOCABULARY_FILE = "spiece.model"
DEFAULT_LENGTH = 512  # of models that name none: T5 was pretrained on 512 tokens
_POOLINGS = {"mean": "mean", "cls": "first"}
# Before version 5.4 of sentence-transformers, pooling was written as one flag for each way.
_POOLING_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
                  "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
                  "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken"}
_T5_TOKENS = ("<pad>", "</s>", "<unk>")


def is_folder(path: epath.Path) -> bool:
  """Whether it is a folder that `read` is for."""
  return (path / "modules.json").exists() or (path / "config.json").exists()


def read(folder: epath.Path) -> Source:
  """A sentence-transformers folder, or a bare T5 (mean pooling, no projection, normalised).

  Raises:
    InputError: something is missing or damaged, or asks for what gtr_jax does not compute.
  """
  if not (folder / "modules.json").exists():
    return _read_transformer(folder, folder, {})
  modules = _modules(folder)
  kinds = [kind for kind, _ in modules]
  place = folder / "modules.json"
  if kinds not in (["Transformer", "Pooling", *middle, *last] for middle in ([], ["Dense"])
                   for last in ([], ["Normalize"])):
    raise InputError(f"{place}: is a chain of {', '.join(kinds)}; gtr_jax computes Transformer, Pooling, then Dense "
                     "and Normalize or not")
  paths = dict(modules)
  transformer = paths["Transformer"]
  config = huggingface.read_config(transformer / "config.json")
  projection_dim, arrays = None, {}
  if "Dense" in paths:
    projection_dim, arrays = _read_dense(paths["Dense"], config)
  settings = folder / "config_sentence_transformers.json"
  if "Normalize" not in paths and read_json(settings, {}).get("similarity_fn_name") == "cosine":
    raise InputError(f"{settings}: similarity_fn_name is 'cosine' of vectors that are not normalised, and gtr_jax "
                     "ranks by dot product; add a Normalize module to modules.json, or set 'dot' if that is meant")
  return _read_transformer(folder, transformer, arrays, config, projection_dim=projection_dim,
                           pooling=_read_pooling(paths["Pooling"], config), normalize="Normalize" in paths)


def _modules(folder: epath.Path) -> list[tuple[str, epath.Path]]:
  """(class, folder) of each step."""
  place = folder / "modules.json"
  try:
    return [(module["type"].rpartition(".")[2], folder / module["path"]) for module in read_json(place, kind=list)]
  except (TypeError, KeyError, AttributeError) as e:
    raise InputError(f"{place}: not a list of modules with `type` and `path`; copy it again") from e


def _read_pooling(folder: epath.Path, config: T5Config) -> str:
  place = folder / "config.json"
  fields = read_json(place)
  mode = fields.get("pooling_mode") or [mode for flag, mode in _POOLING_FLAGS.items() if fields.get(flag)] or "mean"
  if isinstance(mode, list) and len(mode) == 1:
    (mode,) = mode
  if not isinstance(mode, str) or mode not in _POOLINGS:
    raise InputError(f"{place}: pools by {mode}; gtr_jax pools by {' or '.join(_POOLINGS)}")
  if not fields.get("include_prompt", True):
    raise InputError(f"{place}: include_prompt is false; gtr_jax pools over the prompt too")
  width = fields.get("embedding_dimension", fields.get("word_embedding_dimension", config.emb_dim))
  if width != config.emb_dim:
    raise InputError(f"{place}: pools vectors of {width}, and the encoder's are {config.emb_dim} wide; copy the whole "
                     "model again")
  return _POOLINGS[mode]


def _read_dense(folder: epath.Path, config: T5Config) -> tuple[int, dict[str, Any]]:
  """Width of the embeddings, and the projection by native name."""
  place = folder / "config.json"
  fields = read_json(place)
  for name, wanted in (("bias", False), ("use_residual", False), ("module_input_name", "sentence_embedding"),
                       ("module_output_name", "sentence_embedding")):
    value = fields.get(name, True if name == "bias" else wanted)
    if value != wanted and value is not None:
      raise InputError(f"{place}: {name} is {value!r}; gtr_jax computes a dense layer with {wanted!r} only")
  activation = str(fields.get("activation_function", "torch.nn.modules.activation.Tanh"))
  if activation.rpartition(".")[2] != "Identity":
    raise InputError(f"{place}: activation_function is {activation}; gtr_jax computes Identity only")
  out = fields.get("out_features")
  if fields.get("in_features") != config.emb_dim or not isinstance(out, int):
    raise InputError(f"{place}: goes from {fields.get('in_features')} to {out}, and the encoder is {config.emb_dim} "
                     "wide; copy the whole model again")
  name = projection_name(DualEncoder(config, projection_dim=out))
  return out, huggingface.take(huggingface.read_weights(folder), [name], place)


def _read_transformer(folder, transformer, projection, config=None, **fields) -> Source:
  """The T5 in `transformer`, and what else the model in `folder` says."""
  config = config or huggingface.read_config(transformer / "config.json")
  fields = {"projection_dim": None, **fields}
  file, model = _vocabulary(transformer)
  tokenizer = read_json(transformer / "tokenizer_config.json", {})
  strange = sorted({token["content"] for token in tokenizer.get("added_tokens_decoder", {}).values()
                    if token["content"] not in _T5_TOKENS and not token["content"].startswith("<extra_id_")})
  if strange:
    raise InputError(f"{transformer / 'tokenizer_config.json'}: adds the token {strange[0]!r} to T5's; gtr_jax reads "
                     "the pieces of the SentencePiece model only")
  return Source(folder, DualEncoder(config, **fields),
                {**huggingface.read_encoder(transformer, config), **projection},
                file, _extra_ids(transformer, tokenizer), _lengths(transformer, tokenizer), _prompts(folder), model)


def _vocabulary(transformer: epath.Path) -> tuple[epath.Path | None, bytes | None]:
  """The file that has the vocabulary, and the SentencePiece model where the file is another form of it."""
  if (transformer / VOCABULARY_FILE).exists():
    return transformer / VOCABULARY_FILE, None
  file = transformer / "tokenizer.json"
  return (file, from_tokenizer_json(read_json(file), file)) if file.exists() else (None, None)


def _extra_ids(transformer: epath.Path, tokenizer: dict[str, Any]) -> int:
  """Sentinels after the pieces. transformers leaves out what it takes for granted: 100 in a T5, none in an mT5."""
  granted = 0 if read_json(transformer / "config.json").get("model_type") == "mt5" else 100
  return int(tokenizer.get("extra_ids", granted))


def _lengths(transformer: epath.Path, tokenizer: dict[str, Any]) -> dict[str, int]:
  place = transformer / "sentence_bert_config.json"
  fields = read_json(place, {})
  if fields.get("do_lower_case"):
    raise InputError(f"{place}: do_lower_case is true; gtr_jax reads texts as they are")
  length = fields.get("max_seq_length") or tokenizer.get("model_max_length") or DEFAULT_LENGTH
  length = int(length) if length < 100_000 else DEFAULT_LENGTH  # transformers writes 10^30 for "none"
  sides = {side: fields.get(f"{side}_length") or length for side in ("query", "document")}
  if any(not isinstance(value, int) or value < 1 for value in sides.values()) or not math.isfinite(length):
    raise InputError(f"{place}: max_seq_length is {length!r}; give a number of tokens")
  return sides


def _prompts(folder: epath.Path) -> dict[str, str]:
  """What `encode_query` and `encode_document` of sentence-transformers put before a text."""
  place = folder / "config_sentence_transformers.json"
  fields = read_json(place, {})
  if fields.get("similarity_fn_name") not in (None, "cosine", "dot"):
    raise InputError(f"{place}: similarity_fn_name is {fields['similarity_fn_name']!r}; gtr_jax ranks by dot product")
  prompts = fields.get("prompts") or {}
  default = fields.get("default_prompt_name")
  if default and default not in prompts:
    raise InputError(f"{place}: default_prompt_name is {default!r}, and prompts has {', '.join(prompts) or 'none'}")
  found = {}
  for side, keys in (("query", ("query",)), ("document", ("document", "passage", "corpus"))):
    named = [prompts[key] for key in keys if prompts.get(key) is not None]
    found[side] = named[0] if named else prompts[default] if default else ""
  return found
