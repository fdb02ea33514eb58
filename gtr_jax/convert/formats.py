"""Which format a model on disk is in, and reading it."""

import os

from etils import epath

from gtr_jax.convert import kinds, sentence_transformers, t5x
from gtr_jax.convert.locate import is_hub_name, locate
from gtr_jax.convert.source import Source
from gtr_jax.errors import InputError
from gtr_jax.io.paths import reached

_HUB_FILES = ["*.json", "*.safetensors", "spiece.model", "sentencepiece.bpe.model", "README.md"]


def open_model(path: epath.PathLike) -> Source:
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


def _open(path: epath.PathLike, folder: epath.Path) -> Source:
  if not folder.exists() and is_hub_name(path):
    folder = _download(os.fspath(path))
  if not folder.exists():
    raise InputError(f"{path}: no such model; give a training run's MODEL_DIR, a sentence-transformers or T5 folder, a "
                     "T5X checkpoint, or the name of a model on the Hugging Face hub (owner/name)")
  if sentence_transformers.is_folder(folder):
    return sentence_transformers.read(folder)
  step = t5x.find(folder)
  if step is None:
    raise kinds.not_a_model(folder)
  return t5x.read(step)


def _download(name: str) -> epath.Path:
  try:
    import huggingface_hub
  except ImportError as e:
    raise InputError(f"{name}: no such folder; to take it for a model on the Hugging Face hub: pip install "
                     "huggingface_hub") from e
  try:
    files = huggingface_hub.list_repo_files(name)
    torch_only = not any(file.endswith(".safetensors") and "/" not in file for file in files)
    return epath.Path(huggingface_hub.snapshot_download(
        name, allow_patterns=[*_HUB_FILES, *["*.bin", "*.bin.index.json"] * torch_only]))
  except Exception as e:  # Whatever goes wrong between here and the hub.
    try:
      return epath.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # It is not in the cache either.
      pass
    raise InputError(f"{name}: no such folder here, and it cannot be had from the Hugging Face hub "
                     f"({(str(e).strip() or type(e).__name__).splitlines()[0]:.200}); check the name and the network, "
                     "or copy the model here and give its folder") from e
