"""T5X checkpoints, read and written without t5x.

Its own format (version 2 and 3) is a folder `checkpoint_<step>` with a msgpack file `checkpoint`, in which each array
is either there or a description of a zarr array beside it. Its Orbax format keeps all arrays below `state/`: in one
OCDBT database, or as one zarr array each with a msgpack file of `PLACEHOLDER://` names.

Of an encoder-decoder the encoder is taken; layers that were scanned (one array for all layers, axis 1) are taken apart.
A checkpoint carries neither vocabulary nor lengths, and does not say how embeddings are pooled: GTR's way is assumed.
"""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from gtr_jax.errors import InputError, first_line
from gtr_jax.formats.foreign_json import read_json
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.formats.names import names
from gtr_jax.io.atomic import write_bytes
from gtr_jax.io.contents import check_contents, first_bytes
from gtr_jax.losses import own_params
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config

_MSGPACK = "checkpoint"
_OF_TENSORFLOW = b"model_checkpoint_path:"  # in the file of the same name that TensorFlow writes
_PLACEHOLDER = "PLACEHOLDER://"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Leaves, or beginnings of leaves, that encoding does not need.
_OF_TRAINING = ("decoder/", *own_params.NAMES, "lm_head")
_CHUNK_BYTES = 64 * 2**20


def find(path: epath.Path) -> epath.Path | None:
  """The folder of one step in `path` (itself, or its last `checkpoint_<step>`), a bare msgpack file, or None."""
  if path.name == _MSGPACK and path.is_file():
    return path
  if not path.is_dir():
    return None
  if (path / _MSGPACK).is_file() or (path / "state").is_dir() and path.name.startswith("checkpoint_"):
    return path
  steps = [(int(found[1]), folder) for folder in path.iterdir()
           if (found := re.fullmatch(r"checkpoint_(\d+)", folder.name))]
  if steps:
    return max(steps)[1]
  return path if re.match(r"checkpoint_\d", path.name) else None  # half written


def read(path: epath.Path) -> ModelOnDisk:
  """The dual encoder, or the encoder alone, in a T5X checkpoint.

  Args:
    path: what `find` found.

  Raises:
    InputError: half written, damaged, or not an encoder that gtr_jax computes. Of an array, when it is read: damaged,
      or it holds what is no number.
  """
  arrays = {name: array for name, array in _target(path).items() if not name.startswith(_OF_TRAINING)}
  for name, array in arrays.items():
    if not (array.dtype == _BFLOAT16 or np.issubdtype(array.dtype, np.floating)):
      raise InputError(f"{path}: {name} is of {array.dtype}; weights are of floating point: take another checkpoint")
  arrays = _split_layers({name: array.finite(f"{path}: {name}") for name, array in arrays.items()}, path)
  encoder = DualEncoder(_config(arrays, path), projection_dim=_projection_dim(arrays))
  wanted = {name.native: name.shape for name in names(encoder)}
  for name, shape in wanted.items():
    if name not in arrays:
      raise InputError(f"{path}: has no {name}, which an encoder of {encoder.config.num_layers} layers needs; copy the "
                       "whole checkpoint again")
    if arrays[name].shape != shape:
      raise InputError(f"{path}: {name} is {list(arrays[name].shape)}, and its other arrays ask for {list(shape)}; it "
                       "is damaged, or of a model that gtr_jax does not compute")
  if unknown := sorted(arrays.keys() - wanted):
    raise InputError(f"{path}: {unknown[0]} belongs to no part of a T5 dual encoder; gtr_jax reads those of T5X and "
                     "T5X Retrieval")
  return ModelOnDisk(path, encoder, arrays, vocabulary=None, extra_ids=100, lengths={},
                prompts={"query": "", "document": ""})


def write(path: epath.Path, arrays: Mapping[str, Array], step: int = 0) -> None:
  """Writes `checkpoint_<step>` in T5X's own format, version 3, without optimizer state.

  Args:
    path: the folder to make.
    arrays: by native name; each is read when its turn comes.
    step: which step they are of.
  """
  target = {}
  for name, array in arrays.items():
    dotted = f"target.{name.replace('/', '.')}"
    rows = max(1, _CHUNK_BYTES * array.shape[0] // max(1, array.dtype.itemsize * int(np.prod(array.shape))))
    metadata = {"shape": list(array.shape), "chunks": [min(rows, array.shape[0]), *array.shape[1:]],
                "compressor": {"id": "gzip", "level": 1}}
    spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": metadata}
    value = array.read()
    try:
      store = tensorstore.open({**spec, "kvstore": _kvstore(path / dotted)}, create=True, delete_existing=True).result()
      store.write(value).result()
    except ValueError as e:  # tensorstore's for a full disk too
      found = re.search(r"os_error_code='(\d+)'", str(e))
      raise OSError(int(found[1]) if found else None, os.strerror(int(found[1])) if found else
                    " ".join(str(e).split())[:200], str(path)) from e
    metadata["dtype"] = store.spec().to_json()["metadata"]["dtype"]
    target[name] = {**spec, "kvstore": {"driver": "file", "path": dotted}}
  state = {"state": {"step": np.int32(step), "param_states": {}},
           "target": traverse_util.unflatten_dict(target, sep="/")}
  write_bytes(path / _MSGPACK, serialization.msgpack_serialize({"version": 3, "optimizer": state}))


def _target(path: epath.Path) -> dict[str, Array]:
  """The model's arrays by T5X name, "encoder/…", of whatever format."""
  if path.is_file():
    return _in_msgpack(path)
  for place in (path, path / "state"):
    if (place / "_METADATA").exists() or (place / "manifest.ocdbt").exists():
      return _in_orbax(place)
  for place in (path, path / "state"):
    if (place / _MSGPACK).exists():
      return _in_msgpack(place / _MSGPACK)
  lacks = ("no state/_METADATA" if (path / "state").is_dir() else
           f"neither {_MSGPACK} (a msgpack file) nor state/ (a folder of Orbax)")
  raise InputError(f"{path}: half written: has {lacks}; take another step, or copy the whole checkpoint again")


def _in_msgpack(file: epath.Path) -> dict[str, Array]:
  beginning = first_bytes(file)
  check_contents(file, beginning)
  if _OF_TENSORFLOW in beginning:
    raise InputError(f"{file.parent}: a checkpoint of TensorFlow (as of Mesh TensorFlow's T5), whose {file.name} is a "
                     "text; gtr_jax reads T5X's: take the same model from the Hugging Face hub, or T5X's checkpoint "
                     "of it")
  try:
    contents = serialization.msgpack_restore(file.read_bytes())
  except Exception as e:
    raise InputError(f"{file}: cannot be read ({type(e).__name__}: {str(e):.200}); copy it again") from e
  version = _inside(contents, file).get("version", 3)
  if version not in (2, 3):
    raise InputError(f"{file}: is of version {version!r:.20}; gtr_jax reads versions 2 and 3 of T5X's format")
  contents = _inside(contents.get("optimizer", contents), file)
  tree = _inside(contents.get("target", contents.get("params", contents)), file)
  try:  # A description of an array is a dict too.
    leaves = traverse_util.flatten_dict(tree, sep="/", is_leaf=lambda _, x: isinstance(x, dict) and "driver" in x)
  except (RecursionError, TypeError) as e:
    raise InputError(f"{file}: holds no parameters by name ({type(e).__name__}); take another step") from e
  return {name: _array(leaf, file, name) for name, leaf in leaves.items()}


def _inside(value: Any, file: epath.Path) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise InputError(f"{file}: holds {value!r:.40} where T5X writes parameters by name; take another step, or copy it "
                     "again")
  return value


def _array(leaf: Any, file: epath.Path, name: str) -> Array:
  if isinstance(leaf, np.ndarray):
    return Array(leaf.shape, leaf.dtype, lambda index=...: leaf[index])
  if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
    place = leaf.removeprefix(_PLACEHOLDER)
  elif isinstance(leaf, dict) and "driver" in leaf:
    # The description's own place is relative; where it was written to gs://, the bucket is a dummy.
    kvstore = leaf.get("kvstore")
    said = leaf.get("path") or isinstance(kvstore, dict) and kvstore.get("path")
    place = said if isinstance(said, str) else ""
    if place.rstrip("/").rpartition("/")[2] in ("", ".", "..") or "\0" in place:
      raise InputError(f"{file}: {name} does not say in which folder it lies; copy the checkpoint again")
  else:
    raise InputError(f"{file}: {name} is {type(leaf).__name__}, and no array; copy the checkpoint again")
  folder = file.parent / place.rstrip("/").rpartition("/")[2]
  return _open({"driver": "zarr", "kvstore": _kvstore(folder)}, f"{folder}", f"{file} names it")


def _in_orbax(folder: epath.Path) -> dict[str, Array]:
  metadata = folder / "_METADATA"
  if not metadata.exists():
    raise InputError(f"{metadata}: no such file; the checkpoint is half written: take another step, or copy it again")
  try:
    fields = read_json(metadata)
    keys = [tuple(str(key["key"]) for key in leaf["key_metadata"]) for leaf in fields["tree_metadata"].values()]
    keys = [key for key in keys if key[0] in ("target", "params")]
  except InputError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
    raise InputError(f"{metadata}: cannot be read ({type(e).__name__}: {e}); copy it again") from e
  ocdbt = (folder / "manifest.ocdbt").exists()
  driver = "zarr3" if fields.get("use_zarr3") else "zarr"
  arrays = {}
  for key in keys:
    dotted = ".".join(key)
    in_database = {"driver": "ocdbt", "base": _kvstore(folder), "path": f"{dotted}/"}
    spec = {"driver": driver, "kvstore": in_database if ocdbt else _kvstore(folder / dotted)}
    arrays["/".join(key[1:])] = _open(spec, f"{folder}: {dotted}", f"{metadata} names it")
  if not arrays:
    raise InputError(f"{metadata}: names no parameters (target/… or params/…); is it a T5X checkpoint?")
  return arrays


def _open(spec: dict[str, Any], place: str, reason: str) -> Array:
  try:
    store = tensorstore.open(spec, open=True, read=True).result()
    incomplete = store.storage_statistics(query_fully_stored=True).result().fully_stored is False
  except ValueError as e:
    raise InputError(f"{place}: no such array, or damaged, and {reason} ({first_line(e)}); copy the "
                     "whole checkpoint again") from e

  if incomplete:  # tensorstore would read zeros.
    raise InputError(f"{place}: a part of the array {list(store.shape)} is missing; copy the whole checkpoint again")
  # Version 2 keeps bfloat16 as uint16.
  as_integers = store.dtype.numpy_dtype == np.uint16

  def read(index=...):
    try:
      value = store[index].read().result()
    except ValueError as e:
      raise InputError(f"{place}: damaged ({first_line(e)}); copy the checkpoint again") from e
    return value.view(_BFLOAT16) if as_integers else value

  return Array(tuple(store.shape), _BFLOAT16 if as_integers else store.dtype.numpy_dtype, read)


def _kvstore(path: epath.Path) -> str | dict[str, str]:
  text = str(path)
  return f"{text}/" if "://" in text else {"driver": "file", "path": f"{path.absolute()}/"}


# `read` of an array in this file takes an index, so that of the scanned layers one can be read.
def _split_layers(arrays: dict[str, Array], path: epath.Path) -> dict[str, Array]:
  """Scanned layers, `encoder/encoder/…` with the layers along axis 1, as one array for each layer."""
  prefix = "encoder/encoder/"
  split = {name: array for name, array in arrays.items() if not name.startswith(prefix)}
  for name, array in arrays.items():
    if not name.startswith(prefix):
      continue
    rest = name.removeprefix(prefix)
    if rest == "relpos_bias/rel_embedding":  # Scanned layers have one each.
      biases = array.read()
      if (biases != biases[:, :1]).any():
        raise InputError(f"{path}: each layer has a position bias of its own (as umT5 has); gtr_jax computes T5's, "
                         "which all layers share")
      split[f"encoder/{rest}"] = Array(biases[:, 0].shape, biases.dtype, lambda biases=biases: biases[:, 0])
      continue
    for i in range(array.shape[1]):
      split[f"encoder/layers_{i}/{rest}"] = Array(
          array.shape[:1] + array.shape[2:], array.dtype, functools.partial(array.read, (slice(None), i)))
  return split


def _config(arrays: Mapping[str, Array], path: epath.Path) -> T5Config:
  """Sizes, from the shapes."""
  try:
    vocab_size, emb_dim = arrays["token_embedder/embedding"].shape
    heads, buckets = arrays["encoder/relpos_bias/rel_embedding"].shape
    joined = arrays["encoder/layers_0/attention/query/kernel"].shape[1]
    mlp_dim = arrays["encoder/layers_0/mlp/wo/kernel"].shape[0]
  except (KeyError, ValueError, IndexError) as e:
    raise InputError(f"{path}: is of no T5 encoder as T5X writes it (it lacks {e}, or has it in another shape); "
                     "gtr_jax reads T5X, flaxformer and T5X Retrieval checkpoints") from e
  layers = 1 + max(int(found[1]) for name in arrays if (found := re.match(r"encoder/layers_(\d+)/", name)))
  if layers > len(arrays):
    raise InputError(f"{path}: names a layer {layers - 1} among {len(arrays)} arrays; copy the whole checkpoint again")
  gated = "encoder/layers_0/mlp/wi_0/kernel" in arrays
  return T5Config(vocab_size=vocab_size, emb_dim=emb_dim, num_heads=heads, head_dim=joined // heads, mlp_dim=mlp_dim,
                  num_layers=layers, mlp_activations=("gelu", "linear") if gated else ("relu",), relpos_buckets=buckets)


def _projection_dim(arrays: Mapping[str, Array]) -> int | None:
  projection = arrays.get("projection_layer/kernel")
  return None if projection is None else projection.shape[-1]
