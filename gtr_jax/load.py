"""A model from disk, ready to encode: parameters on the mesh, vocabulary, lengths and prompts.

Read from the MODEL_DIR of a training run: model.json, the vocabulary beside it, and a checkpoint. Neither gin nor the
training data are needed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gtr_jax import checkpoint, distributed
from gtr_jax.errors import InputError
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.partitioning import make_mesh, state_shardings
from gtr_jax.text.tokenizer import Tokenizer

MODEL_JSON = "model.json"
VOCABULARY_FILE = "spiece.model"
_SIDES = ("query", "document")
_TRAINING_ONLY = ("dropout_rate",)  # fields of the T5 configuration


@dataclasses.dataclass(frozen=True)
class Model:
  """A dual encoder with its parameters.

  Attributes:
    encoder: the computation.
    params: float32, unboxed, sharded over `mesh`.
    tokenizer: of its vocabulary.
    lengths: most tokens of a "query" and of a "document".
    prompts: text put before every "query" and every "document".
    mesh: where the parameters lie.
    weights_hash: hexadecimal sha256 of all that decides an embedding: parameters, configuration, vocabulary, lengths
      and prompts.
    path: where it was read from.
  """

  encoder: DualEncoder
  params: Any
  tokenizer: Tokenizer
  lengths: Mapping[str, int]
  prompts: Mapping[str, str]
  mesh: Mesh
  weights_hash: str
  path: str


def load_model(path: epath.PathLike, mesh: Mesh | None = None) -> Model:
  """Loads a MODEL_DIR (its best checkpoint, else its last), or one step: MODEL_DIR/checkpoints/STEP.

  Args:
    path: the folder.
    mesh: where the parameters go; default: data parallel over all devices.

  Raises:
    InputError: it is no such folder, something in it is missing or damaged, or the vocabulary is not the model's.
  """
  path = epath.Path(path)
  model_dir = _model_dir(path)
  place = model_dir / MODEL_JSON
  encoder, vocabulary, lengths, prompts = _read_model_json(place)
  tokenizer = Tokenizer(model_dir / vocabulary["file"], extra_ids=vocabulary["extra_ids"])
  if tokenizer.sha256 != vocabulary["sha256"]:
    raise InputError(f"{tokenizer.path}: not the vocabulary that {place} names (sha256 {tokenizer.sha256[:12]} instead "
                     f"of {vocabulary['sha256'][:12]}); put the vocabulary of the training run back")
  tokenizer.check_fits(encoder.config.vocab_size)
  mesh = make_mesh() if mesh is None else mesh
  boxed = jax.eval_shape(encoder.init, jax.random.key(0))
  abstract = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                          nn.meta.unbox(boxed), state_shardings(mesh, boxed))
  step = distributed.from_first(lambda: os.fspath(checkpoint.find_checkpoint(path)))
  params = checkpoint.restore_params(step, abstract)
  return Model(encoder, params, tokenizer, lengths, prompts, mesh,
               weights_hash(encoder, params, tokenizer, lengths, prompts), str(path))


def check_model(path: epath.PathLike) -> None:
  """Raises InputError unless there is a model's description and a whole checkpoint, without loading the parameters."""
  _read_model_json(_model_dir(epath.Path(path)) / MODEL_JSON)
  checkpoint.find_checkpoint(path)


def write_model_json(model_dir: epath.PathLike, encoder: DualEncoder, tokenizer: Tokenizer, *, query_length: int,
                     document_length: int, query_prompt: str = "", document_prompt: str = "") -> None:
  """Writes what `load_model` needs beside the checkpoints: a copy of the vocabulary, then model.json.

  Args:
    model_dir: made if it is not there.
    encoder: of the run.
    tokenizer: of the run.
    query_length: most tokens of a query.
    document_length: most tokens of a document.
    query_prompt: text to put before every query.
    document_prompt: text to put before every document.

  Raises:
    InputError: the folder already holds another model; nothing is changed.
  """
  model_dir = epath.Path(model_dir)
  place = model_dir / MODEL_JSON
  if place.exists():
    there, vocabulary, _, _ = _read_model_json(place)
    numerics = ("dtype",)  # A run may go on in another precision.
    if (_fields(there, but=numerics) != _fields(encoder, but=numerics) or vocabulary["sha256"] != tokenizer.sha256 or
        vocabulary["extra_ids"] != tokenizer.extra_ids):
      raise InputError(f"{model_dir}: already holds another model or vocabulary; choose another MODEL_DIR, or remove "
                       "this one")
  elif model_dir.exists() and (not model_dir.is_dir() or any(model_dir.iterdir())):
    raise InputError(f"{model_dir}: exists and is no training run's folder; choose another MODEL_DIR")
  model_dir.mkdir(parents=True, exist_ok=True)
  if not (model_dir / VOCABULARY_FILE).exists() or tokenizer.path != model_dir / VOCABULARY_FILE:
    _write(model_dir / VOCABULARY_FILE, tokenizer.path.read_bytes())
  fields = {"model": encoder.to_json(),
            "vocabulary": {"file": VOCABULARY_FILE, "sha256": tokenizer.sha256, "extra_ids": tokenizer.extra_ids},
            "lengths": {"query": query_length, "document": document_length},
            "prompts": {"query": query_prompt, "document": document_prompt}}
  _write(place, (json.dumps(fields, indent=2) + "\n").encode())


def weights_hash(encoder: DualEncoder, params: Any, tokenizer: Tokenizer, lengths: Mapping[str, int],
                 prompts: Mapping[str, str]) -> str:
  """Hexadecimal sha256 of all that decides an embedding. The same on every mesh; all processes must call it."""
  digest = hashlib.sha256()
  digest.update(json.dumps([_fields(encoder), tokenizer.sha256, tokenizer.extra_ids, dict(lengths),
                            dict(prompts)], sort_keys=True).encode())
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  for name, leaf in sorted(leaves.items()):
    value = np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if jax.process_count() > 1 else leaf)
    digest.update(f"{name} {value.dtype} {value.shape}".encode())
    digest.update(np.ascontiguousarray(value))
  return digest.hexdigest()


def _fields(encoder: DualEncoder, but: tuple[str, ...] = ()) -> dict[str, Any]:
  """The configuration without what only training sees, and without `but`."""
  fields = encoder.to_json()
  return {**fields, "config": {k: v for k, v in fields["config"].items() if k not in (*_TRAINING_ONLY, *but)}}


def _model_dir(path: epath.Path) -> epath.Path:
  """The folder with model.json."""
  for folder in (path, path.parent, path.parent.parent):
    if (folder / MODEL_JSON).exists() and (folder == path or path.name == "checkpoints" or
                                           path.parent.name == "checkpoints"):
      return folder
  if not path.exists():
    raise InputError(f"{path}: no such model; give a training run's MODEL_DIR, or MODEL_DIR/checkpoints/STEP")
  kind = ""
  if (path / "modules.json").exists():
    kind = " but a sentence-transformers folder, which this version cannot read"
  elif (path / "checkpoint").exists():
    kind = " but a T5X checkpoint, which this version cannot read"
  raise InputError(f"{path}: not a training run's MODEL_DIR (it has no {MODEL_JSON}){kind}; give MODEL_DIR or "
                   "MODEL_DIR/checkpoints/STEP")


def _read_model_json(place: epath.Path) -> tuple[DualEncoder, dict[str, Any], dict[str, int], dict[str, str]]:
  """(encoder, vocabulary, lengths, prompts)."""
  try:
    fields = json.loads(place.read_text())
    vocabulary, lengths, prompts = fields["vocabulary"], fields["lengths"], fields["prompts"]
    vocabulary = {"file": str(vocabulary["file"]), "sha256": str(vocabulary["sha256"]),
                  "extra_ids": int(vocabulary["extra_ids"])}
    lengths = {side: int(lengths[side]) for side in _SIDES}
    prompts = {side: str(prompts[side]) for side in _SIDES}
    encoder = DualEncoder.from_json(fields["model"])
  except InputError as e:
    raise InputError(f"{place}: {e}") from e
  except (ValueError, KeyError, TypeError) as e:
    raise InputError(f"{place}: damaged ({type(e).__name__}: {e}); it comes with every training run, get it from "
                     "there") from e
  return encoder, vocabulary, lengths, prompts


def _write(path: epath.Path, data: bytes) -> None:
  temporary = path.parent / f".{path.name}.tmp"
  temporary.write_bytes(data)
  temporary.replace(path)
