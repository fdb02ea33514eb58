"""T5 encoders in Hugging Face's format: config.json, weights in safetensors or torch files, one or several, names and
kinds told apart, decoder dropped. Read without torch, but for `pytorch_model.bin`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from gtr_jax.convert import safetensors
from gtr_jax.convert.names import Name, encoder_names
from gtr_jax.convert.source import Array
from gtr_jax.errors import InputError
from gtr_jax.models.t5 import NORM_EPSILON, T5Config

_EMBEDDING = "shared.weight"
_COPY_OF_EMBEDDING = "encoder.embed_tokens.weight"
_DROPPED = ("decoder.", "lm_head.")


def read_config(place: epath.Path) -> T5Config:
  """config.json -> the encoder's configuration, with dropout off.

  Raises:
    InputError: not a T5, or a kind of T5 that the encoder does not compute.
  """
  fields = read_json(place)
  kind = fields.get("model_type")
  if kind not in ("t5", "mt5"):
    own_bias = " (each layer of umT5 has its own position bias)" if kind == "umt5" else ""
    raise InputError(f"{place}: model_type is {kind!r}{own_bias}; gtr_jax reads 't5' and 'mt5'")
  activation = fields.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
  activations = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}.get(activation)
  if activations is None or fields.get("dense_act_fn", "relu" if activation == "relu" else "gelu_new") not in (
      "relu", "gelu_new"):
    raise InputError(f"{place}: feed_forward_proj is {activation!r} and dense_act_fn {fields.get('dense_act_fn')!r}; "
                     "gtr_jax computes 'relu' (T5 1.0) and 'gated-gelu' with 'gelu_new' (T5 1.1, mT5)")
  if not math.isclose(fields.get("layer_norm_epsilon", 1e-6), NORM_EPSILON, rel_tol=1e-3):
    raise InputError(f"{place}: layer_norm_epsilon is {fields['layer_norm_epsilon']}; gtr_jax computes {NORM_EPSILON}")
  try:
    return T5Config(
        vocab_size=fields["vocab_size"], emb_dim=fields["d_model"], num_heads=fields["num_heads"],
        head_dim=fields["d_kv"], mlp_dim=fields["d_ff"], num_layers=fields["num_layers"], mlp_activations=activations,
        relpos_buckets=fields.get("relative_attention_num_buckets", 32),
        relpos_max_distance=fields.get("relative_attention_max_distance", 128))
  except KeyError as e:
    raise InputError(f"{place}: has no {e.args[0]}; copy the model's own config.json again") from e


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
  """
  found = read_weights(folder)
  saved = {name: array for name, (_, array) in found.items() if not name.startswith(_DROPPED)}
  if _EMBEDDING not in saved and _COPY_OF_EMBEDDING in saved:
    saved[_EMBEDDING] = saved[_COPY_OF_EMBEDDING]
    found[_EMBEDDING] = found[_COPY_OF_EMBEDDING]
  saved.pop(_COPY_OF_EMBEDDING, None)
  for kind, layer in (("T5 1.0", "wi"), ("T5 1.1", "wi_0")):
    name = f"encoder.block.0.layer.1.DenseReluDense.{layer}.weight"
    if name in saved and (layer == "wi") != (len(config.mlp_activations) == 1):
      raise InputError(f"{found[name][0]}: has {name}, so the weights are of {kind}, and {folder / 'config.json'} says "
                       "feed_forward_proj "
                       f"{'relu' if layer == 'wi_0' else 'gated-gelu'!r}; take weights and config of one model")
  return take({name: (found[name][0], array) for name, array in saved.items()}, encoder_names(config),
              folder / "config.json")


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
      raise InputError(f"{where}: has no {name.huggingface}, which {reason} asks for; copy the whole model again")
    path, array = found[name.huggingface]
    wanted = name.shape[::-1] if name.transposed else name.shape
    if array.shape != wanted:
      raise InputError(f"{path}: {name.huggingface} is {list(array.shape)}, and {reason} says {list(wanted)}; take "
                       "weights and config of one model")
    arrays[name.native] = array.transposed() if name.transposed else array
  unknown = sorted(found.keys() - {name.huggingface for name in names})
  if unknown:
    raise InputError(f"{found[unknown[0]][0]}: {unknown[0]} belongs to no part of a T5 encoder as {reason} describes it"
                     f"{f' ({len(unknown)} such arrays)' if len(unknown) > 1 else ''}; take weights and config of one "
                     "model")
  return arrays


def read_weights(folder: epath.Path) -> dict[str, tuple[epath.Path, Array]]:
  """Every array in a folder's weight files, by its name there, with the file; safetensors before torch's."""
  for name, read in (("model.safetensors", safetensors.read), ("pytorch_model.bin", _read_torch)):
    index = folder / f"{name}.index.json"
    if (folder / name).exists():
      return {key: (folder / name, array) for key, array in read(folder / name).items()}
    if index.exists():
      return _read_shards(index, read)
  if list(folder.glob("*.h5")) or list(folder.glob("*.msgpack")):
    raise InputError(f"{folder}: holds its weights for TensorFlow or Flax only; gtr_jax reads model.safetensors and "
                     "pytorch_model.bin")
  raise InputError(f"{folder}: has neither model.safetensors nor pytorch_model.bin, one or in shards with an index; "
                   "copy the whole model")


def _read_shards(index, read):
  """The arrays that an index names, each from the file that it names."""
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise InputError(f"{index}: has no weight_map; copy it again")
  found = {}
  for file in sorted(set(places.values())):
    path = index.parent / file
    if not path.exists():
      raise InputError(f"{path}: no such file, and {index} names it; copy all of the model's files")
    found |= {key: (path, array) for key, array in read(path).items()}
  for key, file in places.items():
    if key not in found:
      raise InputError(f"{index.parent / file}: has no {key}, and {index} says that it has; copy both again")
  return found


def _read_torch(path):
  """The arrays of a file that torch wrote."""
  try:
    import torch
  except ImportError as e:
    raise InputError(f"{path}: only torch can read it: pip install torch; or take a model that has "
                     "model.safetensors") from e
  try:
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  except Exception as e:
    raise InputError(f"{path}: torch cannot read it ({str(e).splitlines()[0]:.200}); copy it again") from e

  def array(tensor):
    bfloat16 = tensor.dtype == torch.bfloat16
    dtype = np.dtype(ml_dtypes.bfloat16) if bfloat16 else tensor[:0].numpy().dtype

    def read():
      whole = tensor.contiguous()
      return whole.view(torch.int16).numpy().view(dtype) if bfloat16 else whole.numpy()

    return Array(tuple(tensor.shape), dtype, read)

  return {name: array(tensor) for name, tensor in tensors.items()}


def read_json(place: epath.Path, default: Any = None, kind: type = dict) -> Any:
  """The contents of a JSON file, of this kind; `default` where it is given and the file is not there."""
  if not place.exists() and default is not None:
    return default
  try:
    contents = json.loads(place.read_text())
  except FileNotFoundError as e:
    raise InputError(f"{place}: no such file; copy the whole model") from e
  except ValueError as e:
    raise InputError(f"{place}: is no JSON ({e}); copy it again") from e
  if not isinstance(contents, kind):
    raise InputError(f"{place}: holds a {type(contents).__name__}, not a {kind.__name__}; copy it again")
  return contents
