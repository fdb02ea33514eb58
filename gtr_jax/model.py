"""A model from disk, ready to encode: parameters on the mesh, vocabulary, lengths and prompts.

Read from the MODEL_DIR of a training run (model.json, the vocabulary beside it, and a checkpoint; neither gin nor the
training data are needed), from a sentence-transformers folder, or from a T5X checkpoint.
"""

import dataclasses
import functools
import hashlib
import json
import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gtr_jax import checkpoint, distributed
from gtr_jax.convert.formats import open_model
from gtr_jax.convert.json_file import Fields, read_fields
from gtr_jax.convert.kinds import other_vocabulary
from gtr_jax.convert.locate import locate
from gtr_jax.convert.source import Array, Source
from gtr_jax.errors import InputError
from gtr_jax.io.atomic import write_bytes, write_json
from gtr_jax.io.paths import location, reached
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.partitioning import make_mesh, state_shardings
from gtr_jax.text.tokenizer import MOST_TOKENS, Tokenizer

MODEL_JSON = "model.json"
VOCABULARY_FILE = "spiece.model"
_LENGTHS = {"query": "query_length", "document": "document_length"}  # of each side, its argument
_TRAINING_ONLY = ("dropout_rate",)  # fields of the T5 configuration


@dataclasses.dataclass(frozen=True)
class Model:
  """A dual encoder with its parameters.

  Attributes:
    encoder: the computation.
    params: unboxed, sharded over `mesh`; float32, or bfloat16 where the weights on disk are.
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


@dataclasses.dataclass(frozen=True)
class Missing:
  """What a checkpoint of another program may not say, for `load_model`; what is None is the model's own.

  Attributes:
    vocabulary: the SentencePiece model.
    extra_ids: sentinels after its pieces (T5: 100).
    query_length: most tokens of a query.
    document_length: most tokens of a document.
    only_unsaid: a model keeps what it says itself; otherwise what is given here comes first, and a training run, which
      says all of it, is refused.

  Raises:
    InputError: one of them is of another kind, too small or too large.
  """

  vocabulary: epath.PathLike | None = None
  extra_ids: int | None = None
  query_length: int | None = None
  document_length: int | None = None
  only_unsaid: bool = False

  def __post_init__(self):
    for name, least in (("extra_ids", 0), ("query_length", 1), ("document_length", 1)):
      if (value := getattr(self, name)) is not None:
        object.__setattr__(self, name, whole_number(name, value, least))
    if not isinstance(self.vocabulary, str | os.PathLike | None):
      raise InputError(f"vocabulary is {self.vocabulary!r}: give the path of a SentencePiece model, or leave it out")

  def given(self) -> list[str]:
    """The names of what is given."""
    return [name for name in ("vocabulary", "extra_ids", *_LENGTHS.values()) if getattr(self, name) is not None]


def whole_number(name: str, value: Any, least: int = 1) -> int:
  """`value`, perhaps of numpy; raises InputError unless it is a whole number between `least` and a million."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= MOST_TOKENS:
    raise InputError(f"{name} is {value!r}: give a whole number of at least {least} and at most {MOST_TOKENS:,}, or "
                     "leave it out")
  return int(value)


def for_several(missing: Missing, paths: Iterable[epath.PathLike]) -> Missing:
  """`missing` for several models: each takes of it only what it does not say itself.

  Raises:
    InputError: one of them cannot be read, or all of them say something that is given.
  """
  unsaid = set()
  for path in paths if missing.given() else ():
    if _find_model_dir(path) is None:
      source = open_model(path)
      unsaid |= {name for side, name in _LENGTHS.items() if side not in source.lengths}
      unsaid |= {"vocabulary", "extra_ids"} if source.vocabulary is None else set()
  for name in missing.given():
    if name not in unsaid:
      raise InputError(f"--{name}: no model here lacks it, each says its own; leave it out, or give the model that is "
                       "to have another one alone")
  return dataclasses.replace(missing, only_unsaid=True)


def load_model(path: epath.PathLike, mesh: Mesh | None = None, missing: Missing | None = None) -> Model:
  """Loads a model to encode with.

  Args:
    path: a training run's MODEL_DIR (its best checkpoint, else its last) or one step of it, MODEL_DIR/checkpoints/STEP;
      a sentence-transformers folder, or a T5 folder of transformers; a T5X checkpoint; or the name of a model on the
      Hugging Face hub.
    mesh: where the parameters go; default: data parallel over all devices.
    missing: what the model does not say itself.

  Raises:
    InputError: it is no such model, something in it is missing or damaged, or the vocabulary is not the model's.
  """
  model_dir = _find_model_dir(path)
  mesh = make_mesh() if mesh is None else mesh
  with reached(path):
    if model_dir is None:
      source = _complete(open_model(path), missing or Missing())
      params = _place_arrays(source, mesh)
    else:
      source, step = _open_run(locate(path), model_dir, missing)
      params = checkpoint.restore_params(step, _abstract_params(source.encoder, mesh))
  tokenizer = _tokenizer(source)
  return Model(source.encoder, params, tokenizer, source.lengths, source.prompts, mesh,
               weights_hash(source.encoder, params, tokenizer, source.lengths, source.prompts), os.fspath(path))


def open_source(path: epath.PathLike, missing: Missing | None = None) -> tuple[Source, Tokenizer]:
  """A model with all that it says and `missing` adds, and its vocabulary; no array is read yet. Arguments, errors: as
  `load_model`.
  """
  model_dir = _find_model_dir(path)
  if model_dir is None:
    source = _complete(open_model(path), missing or Missing())
    return source, _tokenizer(source)
  source, step = _open_run(locate(path), model_dir, missing)
  params = functools.cache(lambda: traverse_util.flatten_dict(
      checkpoint.restore_params(step, _abstract_params(source.encoder, make_mesh())), sep="/"))
  shapes = traverse_util.flatten_dict(_abstract_params(source.encoder, make_mesh()), sep="/")
  arrays = {name: Array(leaf.shape, np.dtype(leaf.dtype), lambda name=name: np.asarray(params()[name]))
            for name, leaf in shapes.items()}
  return dataclasses.replace(source, arrays=arrays), _tokenizer(source)


def _open_run(path: epath.Path, model_dir: epath.Path, missing: Missing | None) -> tuple[Source, str]:
  """A training run, without its arrays, and the folder of the checkpoint that has them."""
  _refuse_missing(path, missing)
  encoder, vocabulary, lengths, prompts = _read_model_json(model_dir / MODEL_JSON)
  source = Source(path, encoder, {}, model_dir / vocabulary["file"], vocabulary["extra_ids"], lengths, prompts)
  sha256 = _tokenizer(source).sha256
  if sha256 != vocabulary["sha256"]:
    raise InputError(f"{source.vocabulary}: not the vocabulary that {model_dir / MODEL_JSON} names (sha256 "
                     f"{sha256[:12]} instead of {vocabulary['sha256'][:12]}); put the training run's vocabulary back")
  return source, distributed.from_first(lambda: os.fspath(checkpoint.find_checkpoint(path)))


def _refuse_missing(path: epath.PathLike, missing: Missing | None) -> None:
  if missing is not None and missing.given() and not missing.only_unsaid:
    raise InputError(f"{path}: a training run says its vocabulary and lengths itself; leave "
                     f"{', '.join(missing.given())} out")


def _abstract_params(encoder: DualEncoder, mesh: Mesh) -> Any:
  boxed = jax.eval_shape(encoder.init, jax.random.key(0))
  return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                      nn.meta.unbox(boxed), state_shardings(mesh, boxed))


def _tokenizer(source: Source) -> Tokenizer:
  make = source.vocabulary_model
  tokenizer = Tokenizer(source.vocabulary, source.extra_ids, None if make is None else make())
  tokenizer.check_fits(source.encoder.config.vocab_size)
  return tokenizer


def _complete(source: Source, missing: Missing) -> Source:
  """A model in another program's format, with what it does not say."""
  given = {name: getattr(missing, name) for name in missing.given()}
  if missing.only_unsaid:
    said = {"vocabulary", "extra_ids"} if source.vocabulary is not None else set()
    said |= {name for side, name in _LENGTHS.items() if side in source.lengths}
    given = {name: value for name, value in given.items() if name not in said}
  if "vocabulary" in given:
    source = dataclasses.replace(source, vocabulary=location(given["vocabulary"]), vocabulary_model=None)
  if source.vocabulary is None:
    raise InputError(f"{source.path}: comes without a vocabulary{other_vocabulary(source.path)}; give the "
                     "SentencePiece model (spiece.model) that it was trained with: --vocabulary, in Python vocabulary=")
  lengths = {side: given.get(name, source.lengths.get(side)) for side, name in _LENGTHS.items()}
  for side, length in lengths.items():
    if length is None:
      raise InputError(f"{source.path}: does not say how long a {side} may be; give a number of tokens (GTR: 64 for "
                       f"queries, 512 for documents): --{_LENGTHS[side]}, in Python {_LENGTHS[side]}=")
  return dataclasses.replace(source, extra_ids=given.get("extra_ids", source.extra_ids), lengths=lengths)


def with_initial_params(params: Any, shardings: Any, path: epath.PathLike, tokenizer: Tokenizer) -> dict[str, Any]:
  """Parameters to start training from: those of another model, and of `params` what that one has not.

  Args:
    params: of the new run, float32; both of two towers start from a model of one.
    shardings: likewise.
    path: as for `load_model`; a bare T5 has no projection, and a model of another program no learned temperature.
    tokenizer: of the new run.

  Raises:
    InputError: there is no such model, or it is damaged, of other sizes or of another vocabulary.
  """
  abstract = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params,
                          shardings)
  if _find_model_dir(path) is not None:
    return {**params, **checkpoint.restore_params(locate(path), abstract)}
  source = open_model(path)
  if source.vocabulary is not None and (theirs := _tokenizer(source)).pieces() != tokenizer.pieces():
    raise InputError(f"{theirs.path}: the vocabulary of INITIAL_CHECKPOINT_PATH, and not {tokenizer.path}, which this "
                     "run reads with; set VOCABULARY to it (and EXTRA_IDS)")
  found = traverse_util.flatten_dict(dict(params), sep="/")
  of_tower = {name: name.removeprefix("query/").removeprefix("passage/") for name in found}
  for name, leaf in traverse_util.flatten_dict(dict(abstract), sep="/").items():
    array = source.arrays.get(of_tower[name])
    drawn = ["logit_scale"] + ["projection_layer/kernel"] * (source.encoder.projection_dim is None)
    if array is None and of_tower[name] in drawn:
      continue
    if array is None or array.shape != leaf.shape:
      there = "not there" if array is None else f"{list(array.shape)} there"
      raise InputError(f"{source.path}: {of_tower[name]} is {list(leaf.shape)} in this run's model and {there}; set "
                       f"MODEL to its sizes: {source.encoder.config}")
    found[name] = _placed(array.read().astype(leaf.dtype, copy=False), leaf.sharding)
  if unused := source.arrays.keys() - of_tower.values():
    raise InputError(f"{source.path}: has {sorted(unused)[0]}, and this run's model has not; set MODEL to its sizes: "
                     f"{source.encoder}")
  return traverse_util.unflatten_dict(found, sep="/")


def _place_arrays(source: Source, mesh: Mesh) -> dict[str, Any]:
  """The parameters of a model in another program's format, on the mesh: read and placed one by one."""

  def placed(name, leaf):
    value = source.arrays[name].read()
    # bfloat16 takes half the memory and computes the same; float16 overflows in a T5.
    return _placed(value if value.dtype == ml_dtypes.bfloat16 else value.astype(np.float32, copy=False), leaf.sharding)

  leaves = traverse_util.flatten_dict(_abstract_params(source.encoder, mesh), sep="/")
  return traverse_util.unflatten_dict({name: placed(name, leaf) for name, leaf in leaves.items()}, sep="/")


def _placed(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  return jax.make_array_from_callback(value.shape, sharding, lambda index: np.ascontiguousarray(value[index]))


def check_model(path: epath.PathLike, missing: Missing | None = None) -> None:
  """Raises InputError unless there is a model's description and a whole checkpoint, without loading the parameters."""
  model_dir = _find_model_dir(path)
  if model_dir is None:
    _tokenizer(_complete(open_model(path), missing or Missing()))
    return
  _refuse_missing(path, missing)
  _read_model_json(model_dir / MODEL_JSON)
  checkpoint.find_checkpoint(locate(path))


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
  model_dir = location(model_dir)
  place = model_dir / MODEL_JSON
  if place.exists():
    there, vocabulary, _, _ = _read_model_json(place)
    numerics = ("dtype",)  # A run may go on in another precision.
    if (_fields(there, but=numerics) != _fields(encoder, but=numerics) or vocabulary["sha256"] != tokenizer.sha256 or
        vocabulary["extra_ids"] != tokenizer.extra_ids):
      raise InputError(f"{model_dir}: already holds another model or vocabulary; choose another MODEL_DIR, or remove "
                       "this one")
  elif model_dir.exists() and not (model_dir.is_dir() and
                                   all(_was_begun(path, tokenizer) for path in model_dir.iterdir())):
    raise InputError(f"{model_dir}: exists and is no training run's folder; choose another MODEL_DIR")
  if not (model_dir / VOCABULARY_FILE).exists() or tokenizer.path != model_dir / VOCABULARY_FILE:
    write_bytes(model_dir / VOCABULARY_FILE, tokenizer.model)
  fields = {"model": encoder.to_json(),
            "vocabulary": {"file": VOCABULARY_FILE, "sha256": tokenizer.sha256, "extra_ids": tokenizer.extra_ids},
            "lengths": {"query": query_length, "document": document_length},
            "prompts": {"query": query_prompt, "document": document_prompt}}
  write_json(place, fields, indent=2)


def _was_begun(path: epath.Path, tokenizer: Tokenizer) -> bool:
  """Whether a start that was cut off, by a full disk for instance, has left this in a new MODEL_DIR."""
  if path.name == VOCABULARY_FILE:
    return path.is_file() and path.read_bytes() == tokenizer.model
  return path.name.endswith(".tmp") and path.name.startswith((f".{VOCABULARY_FILE}.", f".{MODEL_JSON}."))


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


def _find_model_dir(path: epath.PathLike) -> epath.Path | None:
  """The folder with model.json, or None if the path is of no training run."""
  path = locate(path)
  with reached(path):
    for folder in (path, path.parent, path.parent.parent):
      if (folder / MODEL_JSON).exists() and (folder == path or path.name == "checkpoints" or
                                             path.parent.name == "checkpoints"):
        return folder
  return None


def _read_model_json(place: epath.Path) -> tuple[DualEncoder, dict[str, Any], dict[str, int], dict[str, str]]:
  """(encoder, vocabulary, lengths, prompts)."""
  fields = read_fields(place)
  if not fields.contents.keys() >= {"model", "vocabulary", "lengths", "prompts"}:
    raise InputError(f"{place}: is of no training run of gtr_jax, or damaged (it lacks model, vocabulary, lengths or "
                     "prompts); take the run's own, or give the folder of another model without it")
  vocabulary, lengths, prompts = (fields.inner(name) for name in ("vocabulary", "lengths", "prompts"))
  vocabulary = {"file": vocabulary.file("file"), "sha256": vocabulary.get("sha256", str),
                "extra_ids": vocabulary.get("extra_ids", int, least=0)}
  lengths = {side: lengths.get(side, int, least=1) for side in _LENGTHS}
  prompts = {side: prompts.get(side, str) for side in _LENGTHS}
  _check_sizes(fields.inner("model"))
  try:
    encoder = DualEncoder.from_json(fields.get("model", dict))
  except InputError as e:
    raise InputError(f"{place}: {e}") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise InputError(f"{place}: damaged ({type(e).__name__}: {e}); it comes with every training run, get it from "
                     "there") from e
  return encoder, vocabulary, lengths, prompts


def _check_sizes(model: Fields) -> None:
  """Raises InputError where sizes in model.json are no sizes; what is missing or unknown is `from_json`'s to say."""
  config = Fields(model.place, model.get("config", dict, {}), "model.config.")
  for field in dataclasses.fields(T5Config):
    if field.type in (int, "int") and field.name in config.contents:
      config.get(field.name, int, least=1)
  model.get("projection_dim", int, None, least=1)
  for name in ("normalize", "shared"):
    model.get(name, bool, True)
