"""Which format a model on disk is in, and reading it."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from gtr_jax.checkpoints.checkpointer import param_reader
from gtr_jax.errors import InputError, first_line
from gtr_jax.formats import diagnose, sentence_transformers, t5x
from gtr_jax.formats.locate import full_name, is_hub_name, locate
from gtr_jax.formats.merged import merged_arrays
from gtr_jax.formats.model_dir import find_model_dir, open_run
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.formats.tokenization import Tokenization, complete, tokenizer_of
from gtr_jax.io.paths import reached
from gtr_jax.models.parameters import abstract_parameters
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.text.tokenizer import Tokenizer

_HUB_FILES = ["*.json", "*.safetensors", "spiece.model", "sentencepiece.bpe.model", "README.md"]
_SECONDS = 10.0  # until the hub has to have answered


def open_foreign(path: epath.PathLike) -> ModelOnDisk:
  """A model in a format that is not gtr_jax's own; its arrays are not read yet.

  Args:
    path: a sentence-transformers folder, a T5 folder of transformers, a T5X checkpoint, the folder of one of these in
      the cache of the Hugging Face hub, or the name of a model on the hub ("sentence-transformers/gtr-t5-base").

  Raises:
    InputError: there is no such model, or it is damaged or not one that gtr_jax computes.
  """
  folder = locate(path)
  with reached(path):
    return _open(path, folder)


def open_unmerged(path: epath.PathLike, tokenization: Tokenization | None = None) -> tuple[ModelOnDisk, Tokenizer]:
  """As `open_model`, with kernels and factors of LoRA as they were trained."""
  model_dir = find_model_dir(path)
  if model_dir is None:
    source = complete(open_foreign(path), tokenization)
    return source, tokenizer_of(source)
  source, step = open_run(locate(path), model_dir, tokenization)
  abstract = abstract_parameters(source.encoder, make_mesh())
  reader = functools.cache(lambda: param_reader(step, abstract))
  arrays = {name: Array(leaf.shape, np.dtype(leaf.dtype), lambda name=name: np.asarray(reader()(name)))
            for name, leaf in traverse_util.flatten_dict(abstract, sep="/").items()}
  return dataclasses.replace(source, arrays=arrays), tokenizer_of(source)


def open_model(path: epath.PathLike, tokenization: Tokenization | None = None) -> tuple[ModelOnDisk, Tokenizer]:
  """A model in any form, with all that it says and `tokenization` adds, and its vocabulary; no array is read yet, and
  of one that was trained with LoRA the arrays are merged. Arguments, errors: as `inference.load.load_model`.
  """
  source, tokenizer = open_unmerged(path, tokenization)
  return dataclasses.replace(source, encoder=source.encoder.merged,
                             arrays=merged_arrays(source.arrays, source.encoder.lora)), tokenizer


def _open(path: epath.PathLike, folder: epath.Path) -> ModelOnDisk:
  if not folder.exists() and is_hub_name(path):
    folder = _of_hub(os.fspath(path))
  if not folder.exists():
    name = full_name(path)
    meant = f"; did you mean {name}, on the Hugging Face hub? Or" if name else ";"
    raise InputError(f"{path}: no such model{meant} give a training run's MODEL_DIR, a sentence-transformers or T5 "
                     "folder, a T5X checkpoint, or the name of a model on the Hugging Face hub (owner/name)")
  if sentence_transformers.is_folder(folder):
    return sentence_transformers.read(folder)
  step = t5x.find(folder)
  if step is None:
    raise diagnose.not_a_model(folder)
  return t5x.read(step)


def _of_hub(name: str) -> epath.Path:
  """The folder of a model by its name on the hub, downloaded, or in the hub's cache."""
  above = name.partition("/")[0]
  no_name = f" ({above} is one here, so this is not taken for a name on the Hugging Face hub); correct the path"
  try:
    import huggingface_hub
  except ImportError as e:
    install = "; to take it for a model on the Hugging Face hub: pip install huggingface_hub"
    raise InputError(f"{name}: no such folder{no_name if os.path.isdir(above) else install}") from e
  if os.path.isdir(above):  # The path of a folder, as it seems, unless the cache knows the name.
    if (folder := _in_cache(huggingface_hub, name)) is not None:
      return folder
    raise InputError(f"{name}: no such folder{no_name}")
  try:
    # One request that is not tried again, as most others are: a wrong path is to be told at once.
    files = [of.rfilename for of in huggingface_hub.HfApi().model_info(name, timeout=_SECONDS).siblings or ()]
    torch_only = not any(file.endswith(".safetensors") and "/" not in file for file in files)
    return epath.Path(huggingface_hub.snapshot_download(
        name, allow_patterns=[*_HUB_FILES, *["*.bin", "*.bin.index.json"] * torch_only]))
  except Exception as e:  # Whatever goes wrong between here and the hub.
    if (folder := _in_cache(huggingface_hub, name)) is not None:
      return folder
    reason = "it has none of this name, or a private one" if type(e).__name__ == "RepositoryNotFoundError" else (
        "HF_HUB_OFFLINE is set" if type(e).__name__ == "OfflineModeIsEnabled" else first_line(e))
    raise InputError(f"{name}: no such folder here, and it cannot be had from the Hugging Face hub ({reason}); correct "
                     "the path, or check the name and the network, or copy the model here and give its folder") from e


def _in_cache(huggingface_hub: Any, name: str) -> epath.Path | None:
  """The snapshot of a model in the hub's cache, if there is one."""
  try:
    return epath.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
  except Exception:  # In as many types as the hub has reasons.
    return None
