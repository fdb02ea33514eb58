"""A model from disk, in any of its forms, ready to encode: parameters on the mesh, vocabulary, lengths and prompts."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from gtr_jax.checkpoints.checkpointer import restore_params
from gtr_jax.checkpoints.steps import find_checkpoint
from gtr_jax.errors import InputError
from gtr_jax.formats.any_form import open_foreign
from gtr_jax.formats.locate import locate
from gtr_jax.formats.merged import merged_params
from gtr_jax.formats.model_dir import MODEL_JSON, find_model_dir, open_run, read_model_json
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.formats.tokenization import LENGTHS, Tokenization, complete, refuse_given, tokenizer_of
from gtr_jax.inference.weights_hash import weights_hash
from gtr_jax.io import bars
from gtr_jax.io.paths import reached
from gtr_jax.models.attention import kernel_refuses
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import abstract_parameters
from gtr_jax.models.t5 import ATTENTIONS, DTYPES
from gtr_jax.parallel.partitioning import make_mesh, place
from gtr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Model:
  """A dual encoder with its parameters.

  Attributes:
    encoder: the computation; the dtype of its activations is "float32" or "bfloat16", and no longer "auto"; without
      `lora`, which is merged.
    params: unboxed, sharded over `mesh`; float32, or bfloat16 where the weights on disk are.
    tokenizer: of its vocabulary.
    lengths: most tokens of a "query" and of a "document".
    prompts: text put before every "query" and every "document".
    mesh: where the parameters lie.
    weights_hash: hexadecimal sha256 of all that decides an embedding: parameters, configuration, the dtype of
      activations, vocabulary, lengths and prompts.
    path: where it was read from.
    dimensions: of `ModelOnDisk`.
  """

  encoder: DualEncoder
  params: Any
  tokenizer: Tokenizer
  lengths: Mapping[str, int]
  prompts: Mapping[str, str]
  mesh: Mesh
  weights_hash: str
  path: str
  dimensions: tuple[int, ...] = ()


def load_model(path: epath.PathLike, mesh: Mesh | None = None, tokenization: Tokenization | None = None,
               dtype: str | None = None, attention: str = "auto") -> Model:
  """Loads a model to encode with.

  Args:
    path: a training run's MODEL_DIR (its best checkpoint, else its last) or one step of it, MODEL_DIR/checkpoints/STEP;
      a sentence-transformers folder, or a T5 folder of transformers; a T5X checkpoint; or the name of a model on the
      Hugging Face hub.
    mesh: where the parameters go; default: data parallel over all devices.
    tokenization: what the model does not say itself.
    dtype: of the activations, "float32" or "bfloat16"; default: bfloat16 on TPUs and GPUs, float32 on CPUs, however it
      was trained.
    attention: "auto", "reference" or "kernel", of `T5Config.attention`, however it was trained; what the kernel makes
      of a first batch is held against the reference.

  Raises:
    InputError: it is no such model, something in it is missing or damaged, or the vocabulary is not the model's.
  """
  if dtype is not None and dtype not in DTYPES:
    raise InputError(f"dtype is {dtype!r:.40}: give one of {', '.join(DTYPES)}, or None for what suits the devices")
  if attention not in ATTENTIONS:
    raise InputError(f"attention is {attention!r:.40}: give one of {', '.join(ATTENTIONS)}")
  model_dir = find_model_dir(path)
  mesh = make_mesh() if mesh is None else mesh
  with reached(path):
    if model_dir is None:
      source = complete(open_foreign(path), tokenization)
      params = _place_arrays(source, mesh)
    else:
      source, step = open_run(locate(path), model_dir, tokenization)
      params = merged_params(restore_params(step, abstract_parameters(source.encoder, mesh)), source.encoder.lora)
  tokenizer, config = tokenizer_of(source), source.encoder.config
  dtype = dtype or config.dtype_on(mesh.devices.flat[0].platform)
  encoder = dataclasses.replace(source.encoder.merged, config=dataclasses.replace(
      config, dtype=dtype, attention=attention))
  if attention == "kernel":
    with jax.set_mesh(mesh):
      if why_not := kernel_refuses(max(source.lengths.values()), config.num_heads // mesh.shape["model"],
                                   config.head_dim):
        bars.note(f"attention is computed by the reference, not the kernel: {why_not}")
  return Model(encoder, params, tokenizer, source.lengths, source.prompts, mesh,
               weights_hash(encoder, params, tokenizer, source.lengths, source.prompts), os.fspath(path),
               source.dimensions)


def check_model(path: epath.PathLike, tokenization: Tokenization | None = None) -> None:
  """Raises InputError unless there is a model's description and a whole checkpoint, without loading the parameters."""
  model_dir = find_model_dir(path)
  if model_dir is None:
    tokenizer_of(complete(open_foreign(path), tokenization))
    return
  refuse_given(tokenization, path)
  read_model_json(model_dir / MODEL_JSON)
  find_checkpoint(locate(path))


def for_several(tokenization: Tokenization, paths: Iterable[epath.PathLike]) -> Tokenization:
  """`tokenization` for several models: each takes of it only what it does not say itself.

  Raises:
    InputError: one of them cannot be read, or all of them say something that is given.
  """
  unsaid = set()
  for path in paths if tokenization.given() else ():
    if find_model_dir(path) is None:
      source = open_foreign(path)
      unsaid |= {name for side, name in LENGTHS.items() if side not in source.lengths}
      unsaid |= {"vocabulary", "extra_ids"} if source.vocabulary is None else set()
  for name in tokenization.given():
    if name not in unsaid:
      raise InputError(f"--{name}: no model here lacks it, each says its own; leave it out, or give the model that is "
                       "to have another one alone")
  return dataclasses.replace(tokenization, only_unsaid=True)


def _place_arrays(source: ModelOnDisk, mesh: Mesh) -> dict[str, Any]:
  """The parameters of a model in another program's format, on the mesh: read and placed one by one."""

  def placed(name, leaf):
    value = source.arrays[name].read()
    # bfloat16 takes half the memory and computes the same; float16 overflows in a T5.
    return place(value if value.dtype == ml_dtypes.bfloat16 else value.astype(np.float32, copy=False), leaf.sharding)

  leaves = traverse_util.flatten_dict(abstract_parameters(source.encoder, mesh), sep="/")
  return traverse_util.unflatten_dict({name: placed(name, leaf) for name, leaf in leaves.items()}, sep="/")
