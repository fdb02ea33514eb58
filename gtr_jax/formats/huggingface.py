"""T5 encoders in Hugging Face's format: config.json, weights in safetensors or torch files, one or several, names and
kinds told apart, decoder dropped. Read without torch, but for `pytorch_model.bin`.
"""

import math
import pickle
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.formats import diagnose, safetensors
from gtr_jax.formats.foreign_json import check_below, read_fields
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.formats.names import Name, encoder_names
from gtr_jax.io.contents import first_bytes
from gtr_jax.models.t5 import NORM_EPSILON, T5Config

_EMBEDDING = "shared.weight"
_COPY_OF_EMBEDDING = "encoder.embed_tokens.weight"
# Where it may lie alone: what saves each tensor once keeps one of the names of a tensor that several parts share.
_OF_DECODER, _OF_OUTPUT = "decoder.embed_tokens.weight", "lm_head.weight"
_WRAPPERS = {"base_model.": "peft", "module.": "DataParallel", "_orig_mod.": "torch.compile",
             "0.": "sentence-transformers", "_fsdp_wrapped_module.": "FSDP"}  # prefix -> what puts it there
_ZIP = b"PK"  # how a zip archive begins
_DROPPED = ("decoder.", "lm_head.")
_MOST_LAYERS = 1000
# feed_forward_proj -> the activations, and what dense_act_fn and is_gated_act must be where they are there
_ACTIVATIONS = {"relu": (("relu",), "relu", False), "gated-gelu": (("gelu", "linear"), "gelu_new", True)}
_SIZES = {"vocab_size": "vocab_size", "emb_dim": "d_model", "num_heads": "num_heads", "head_dim": "d_kv",
          "mlp_dim": "d_ff", "num_layers": "num_layers"}


def read_config(place: epath.Path) -> T5Config:
  """config.json -> the encoder's configuration, with dropout off.

  Raises:
    InputError: not a T5, or a kind of T5 that the encoder does not compute.
  """
  fields = read_fields(place)
  kind = fields.get("model_type", str, None)
  if kind is None:
    above = place.parent.parent
    raise InputError(f"{place}: is of one module of a model; give the model's folder, {above}"
                     if (above / "modules.json").is_file() else
                     f"{place}: has no model_type, by which transformers says what a model is; gtr_jax reads 't5' and "
                     "'mt5': give the folder that save_pretrained wrote")
  if kind not in ("t5", "mt5"):
    raise InputError(f"{place}: model_type is {kind!r}; gtr_jax reads 't5' and 'mt5'{diagnose.architecture(kind)}: "
                     "take a T5, such as sentence-transformers/gtr-t5-base")
  if (tokenizer := fields.contents.get("tokenizer_class")) == "ByT5Tokenizer":
    raise InputError(f"{place}: tokenizer_class is {tokenizer!r}, so it is a ByT5, which reads bytes; gtr_jax reads "
                     "the pieces of a SentencePiece model: take a T5 or an mT5")
  activation = fields.get("feed_forward_proj", str, "relu" if kind == "t5" else "gated-gelu")
  activations, *expected = _ACTIVATIONS.get(activation, (None, None, None))
  within, gated = fields.get("dense_act_fn", str, None), fields.get("is_gated_act", bool, None)
  if activations is None or within not in (None, expected[0]) or gated not in (None, expected[1]):
    raise InputError(f"{place}: feed_forward_proj is {activation!r}, dense_act_fn {within!r} and is_gated_act {gated}; "
                     "gtr_jax computes 'relu' with 'relu', not gated (T5 1.0), and 'gated-gelu' with 'gelu_new', gated "
                     "(T5 1.1, mT5): copy the model's own config.json again")
  if fields.get("is_decoder", bool, False):
    raise InputError(f"{place}: is_decoder is true, so a token sees those before it only; gtr_jax computes encoders: "
                     "take an encoder, or set false if that is meant")
  if (quantised := fields.contents.get("quantization_config")) is not None:
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    raise InputError(f"{place}: has a quantization_config{f' ({method})' if isinstance(method, str) else ''}; gtr_jax "
                     "reads weights of floating point: take the model that is not quantised")
  for name in ("quantize_config.json", "quant_config.json"):
    if (place.parent / name).exists():
      raise InputError(f"{place.parent / name}: is of a quantised model (GPTQ, AWQ); gtr_jax reads weights of floating "
                       "point: take the model that is not quantised")
  epsilon = fields.get("layer_norm_epsilon", float, NORM_EPSILON)
  if not math.isclose(epsilon, NORM_EPSILON, rel_tol=1e-3):
    raise InputError(f"{place}: layer_norm_epsilon is {epsilon}; gtr_jax computes {NORM_EPSILON}")
  sizes = {ours: fields.get(theirs, int, least=1) for ours, theirs in _SIZES.items()}
  sizes |= {"relpos_buckets": fields.get("relative_attention_num_buckets", int, 32),
            "relpos_max_distance": fields.get("relative_attention_max_distance", int, 128)}
  if sizes["num_layers"] > _MOST_LAYERS:
    raise InputError(f"{place}: num_layers is {sizes['num_layers']:.3g}; gtr_jax reads models of at most "
                     f"{_MOST_LAYERS:,} layers: correct it")
  try:
    return T5Config(**sizes, mlp_activations=activations)
  except InputError as e:
    raise InputError(f"{place}: {e}") from e


def config_fields(config: T5Config, dtype: str) -> dict[str, Any]:
  """The contents of config.json for an encoder: the inverse of `read_config`.

  Args:
    config: of the encoder.
    dtype: "float32" or "bfloat16", of the weights.
  """
  gated = len(config.mlp_activations) > 1
  return {"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": False, "use_cache": False,
          "vocab_size": config.vocab_size, "d_model": config.emb_dim, "num_heads": config.num_heads,
          "d_kv": config.head_dim, "d_ff": config.mlp_dim, "num_layers": config.num_layers,
          "feed_forward_proj": "gated-gelu" if gated else "relu", "dense_act_fn": "gelu_new" if gated else "relu",
          "is_gated_act": gated, "relative_attention_num_buckets": config.relpos_buckets,
          "relative_attention_max_distance": config.relpos_max_distance, "layer_norm_epsilon": NORM_EPSILON,
          "initializer_factor": 1.0, "dropout_rate": 0.1, "pad_token_id": 0, "eos_token_id": 1,
          "decoder_start_token_id": 0, "torch_dtype": dtype}


def read_encoder(folder: epath.Path, config: T5Config) -> dict[str, Array]:
  """The encoder's arrays by native name.

  Raises:
    InputError: an array is missing, not known or of another shape; or the weights are those of another kind of T5.
      Of the arrays, when they are read: one holds what is no number, or the encoder has an embedding of its own.
  """
  everything = read_weights(folder)
  found = {name: place for name, place in everything.items() if not name.startswith(_DROPPED)}
  if _COPY_OF_EMBEDDING in found:
    path, copy = found.pop(_COPY_OF_EMBEDDING)
    found[_EMBEDDING] = (path, _the_same(found[_EMBEDDING][1], copy, path) if _EMBEDDING in found else copy)
  if _EMBEDDING not in found and (other := _embedding_elsewhere(everything, folder / "config.json")) is not None:
    found[_EMBEDDING] = everything[other]
  for kind, layer in (("T5 1.0", "wi"), ("T5 1.1", "wi_0")):
    name = f"encoder.block.0.layer.1.DenseReluDense.{layer}.weight"
    if name in found and (layer == "wi") != (len(config.mlp_activations) == 1):
      raise InputError(f"{found[name][0]}: has {name}, so the weights are of {kind}, and {folder / 'config.json'} says "
                       "feed_forward_proj "
                       f"{'relu' if layer == 'wi_0' else 'gated-gelu'!r}; take weights and config of one model")
  return take(found, encoder_names(config), folder / "config.json")


def _embedding_elsewhere(found, place):
  """The name under which the shared embedding lies in the decoder's part alone, if it does.

  Encoder and decoder of every T5 read by the same one; the output layer has it where config.json ties them.
  """
  if _OF_DECODER in found:
    return _OF_DECODER
  if _OF_OUTPUT not in found or not any(name.startswith("encoder.") for name in found):
    return None
  fields = read_fields(place)
  if fields.get("tie_word_embeddings", bool, fields.get("model_type", str) == "t5"):
    return _OF_OUTPUT
  raise InputError(f"{found[_OF_OUTPUT][0]}: has no {_EMBEDDING} (the embedding), and {_OF_OUTPUT} is not it, as "
                   f"{place} says tie_word_embeddings false; save the whole model (save_pretrained)")


def _the_same(embedding: Array, copy: Array, path: epath.Path) -> Array:
  """The embedding; reading it raises InputError where the copy, by which the encoder reads, is another."""
  def read():
    value = embedding.read()
    if copy.shape != embedding.shape or not np.array_equal(value, copy.read()):
      raise InputError(f"{path}: {_COPY_OF_EMBEDDING} is not {_EMBEDDING}, of which it is a copy in every T5; copy the "
                       "model again, or leave out the one that is not meant")
    return value
  return Array(embedding.shape, embedding.dtype, read)


def take(found: Mapping[str, tuple[epath.Path, Array]], names: list[Name], reason: epath.Path) -> dict[str, Array]:
  """Of arrays by their Hugging Face name, each with its file, those that are wanted, by native name.

  Args:
    found: all there are.
    names: all that there must be.
    reason: the file that says so.

  Raises:
    InputError: one is missing, not known or of another shape.
  """
  files = sorted({str(path) for path, _ in found.values()})
  where = files[0] if len(files) == 1 else f"{epath.Path(files[0]).parent}" if files else str(reason.parent)
  arrays = {}
  for name in names:
    if name.huggingface not in found:
      _check_no_prefix(found, names)
      raise InputError(f"{where}: has no {name.huggingface}, which {reason} asks for; copy the whole model again")
    path, array = found[name.huggingface]
    wanted = name.shape[::-1] if name.transposed else name.shape
    if 0 in array.shape:
      raise InputError(f"{path}: {name.huggingface} is {list(array.shape)}, without numbers, as DeepSpeed writes where "
                       "the parts lie elsewhere (ZeRO-3); put them together with zero_to_fp32.py")
    if array.shape != wanted:
      raise InputError(f"{path}: {name.huggingface} is {list(array.shape)}, and {reason} says {list(wanted)}; take "
                       "weights and config of one model")
    array = array.finite(f"{path}: {name.huggingface}")
    arrays[name.native] = array.transposed() if name.transposed else array
  unknown = sorted(found.keys() - {name.huggingface for name in names})
  if unknown:
    raise InputError(f"{found[unknown[0]][0]}: {unknown[0]} belongs to no part of a T5 encoder as {reason} describes it"
                     f"{f' ({len(unknown)} such arrays)' if len(unknown) > 1 else ''}; take weights and config of one "
                     "model")
  return arrays


def _check_no_prefix(found, names):
  """Raises InputError where arrays have their names with something before it, as parts of a larger torch module do, or
  without what T5 has before its encoder's.
  """
  for key, (path, _) in sorted(found.items()):
    if ".lora_" in key or ".base_layer." in key:
      raise InputError(f"{path}: has an adapter (LoRA) beside the weights: {key}; merge it with peft: "
                       "merge_and_unload(), save_pretrained, and give that")
    if key.startswith("block.0."):
      raise InputError(f"{path}: has the stack of the encoder alone: {key}, where encoder.{key} was expected; save the "
                       "T5 itself (T5EncoderModel.save_pretrained), or put encoder. before the names")
  wanted = {f".{name.huggingface}": name.huggingface for name in names}
  for key, (path, _) in sorted(found.items()):
    plain = next((plain for end, plain in wanted.items() if key.endswith(end)), None)
    if plain is not None:
      prefix = key.removesuffix(plain)
      wrapper = next((f" ({by} puts it there)" for mark, by in _WRAPPERS.items() if prefix.startswith(mark)), "")
      raise InputError(f"{path}: names of arrays are prefixed: {key}, where {plain} was expected; save the T5 itself "
                       f"(save_pretrained), or take {prefix!r} away from the names{wrapper}")


def read_weights(folder: epath.Path) -> dict[str, tuple[epath.Path, Array]]:
  """Every array in a folder's weight files, by its name there, with the file; safetensors before torch's."""
  for name, read in (("model.safetensors", safetensors.read), ("pytorch_model.bin", _read_torch)):
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
      return {key: (folder / name, array) for key, array in read(folder / name).items()}
    if index.exists():
      return _read_shards(index, read)
  raise diagnose.no_weights(folder)


def _read_shards(index, read):
  """The arrays that an index names, each from the file that it names."""
  places = read_fields(index).get("weight_map", dict)
  if not places or not all(isinstance(file, str) for file in places.values()):
    raise InputError(f"{index}: weight_map must name the file of each array; copy it again")
  found: dict[str, tuple[epath.Path, Array]] = {}
  for file in sorted(set(places.values())):
    check_below(file, f"{index}: a file of weight_map")
    path = index.parent / file
    if not path.is_file():
      raise InputError(f"{path}: no such file, and {index} names it; copy all of the model's files")
    found |= {key: (path, array) for key, array in read(path).items()}
  for key, file in places.items():
    if key not in found:
      raise InputError(f"{index.parent / file}: has no {key}, and {index} says that it has; copy both again")
  return found


def _read_torch(path):
  """The arrays of a file that torch wrote."""
  beginning = first_bytes(path)
  if not beginning.startswith(_ZIP):
    diagnose.check_magic(path, beginning)
  if beginning[8:9] == b"{":
    raise InputError(f"{path}: a safetensors file; name it model.safetensors")
  try:
    import torch
  except ImportError as e:
    raise InputError(f"{path}: only torch can read it: pip install torch; or take a model that has "
                     "model.safetensors") from e
  try:
    # Of the format before torch 1.6, which is no zip archive, nothing can be left on disk.
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=beginning.startswith(_ZIP))
  except Exception as e:  # What torch raises for what is damaged is of every kind.
    holds_objects = isinstance(e, pickle.UnpicklingError)
    reason = "it holds other Python objects, or is damaged" if holds_objects else first_line(e)
    raise InputError(f"{path}: torch cannot read it as a file of tensors ({reason}); copy it again, or save the "
                     "model's state_dict()") from e
  dtypes = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16,
            torch.bfloat16: ml_dtypes.bfloat16}

  def array(tensor):
    def read():
      whole = tensor.detach().contiguous()
      return whole.view(torch.int16).numpy().view(dtype) if tensor.dtype == torch.bfloat16 else whole.numpy()

    dtype = np.dtype(dtypes[tensor.dtype])
    return Array(tuple(tensor.shape), dtype, read)

  if not isinstance(tensors, dict):
    raise InputError(f"{path}: holds a {type(tensors).__name__}, not tensors by name; save the model's state_dict()")
  for name, tensor in tensors.items():
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.dtype not in dtypes:
      kind = f"of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
      raise InputError(f"{path}: {name} is {kind}, not a tensor of floating point; save the model's state_dict() alone")
  return {name: array(tensor) for name, tensor in tensors.items()}
