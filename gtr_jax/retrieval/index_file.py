"""An approximate index beside the embeddings of a store, of the store's own vectors: NAME.index in its folder, as FAISS
and USearch write it, with the store's rows for numbers, and NAME.json, which says what it is.

    format, name    the latter one of `approximate.ENGINES`
    of              which vectors it is of: what the store's manifest says of them
    settings        it was made with
    version         of the library that made it
    sha256          of NAME.index, which is read by nothing before it is known to be this one
    recall          what it finds of what an exact search does, as of `index_search.measure`

NAME.json appears first, and a NAME.index that it does not describe is an error, so that an interruption in between
leaves nothing that is taken for an index.
"""

import hashlib
import importlib
import os
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io import bars
from gtr_jax.io.atomic import check_writable, replacing, write_json
from gtr_jax.io.bars import Bar
from gtr_jax.io.contents import content_hash
from gtr_jax.io.json_file import read_json
from gtr_jax.io.paths import is_remote
from gtr_jax.retrieval.approximate import ENGINES, Engine, engine
from gtr_jax.retrieval.store import Store, spread_rows

_FORMAT = 1
_BLOCK_ROWS = 1024  # Added at once: seconds of a graph, so that the bar moves.


class Record(TypedDict):
  """NAME.json."""

  format: int
  name: str
  of: dict[str, Any]
  settings: dict[str, int]
  version: str
  sha256: str
  recall: NotRequired[dict[str, Any]]


def build_index(store: Store, name: str, given: Mapping[str, int], progress: bool = True) -> Record:
  """Makes an index of a store's vectors, in the place of one that is there.

  What is read of the store is a block of rows, and of "faiss-ivf-pq" once a sample; the index itself is in memory.

  Args:
    store: of float32 vectors, or of int8, of which the index takes what they stand for.
    name: one of `ENGINES`.
    given: settings that are not to be the default.
    progress: show a progress bar on stderr.

  Raises:
    InputError: there is no such library, or it cannot make one of such a store, or what lies there is no index.
  """
  _check(store)
  if store.quantizer.precision == "binary":
    raise InputError(f"{store.path}: holds binary vectors, of which an index would be many times as large; make it of "
                     "a store of float32 or int8")
  kind, (count, dim) = engine(name), store.shape
  settings = kind.settings(count, dim, given)
  path = store.path / f"{name}.index"
  if path.exists() or _json(store, name).exists():
    _read_record(store, name)  # Else it is not ours.
  check_writable(store.path)

  def sample(number: int) -> np.ndarray:
    rows = spread_rows(count, number)
    if progress:
      bars.note(f"{name}: learns from {len(rows):,} vectors")
    return store.take(rows)

  made = kind.make(dim, settings, sample)
  with Bar(count, f"indexing ({name})", " vectors", shown=progress) as bar:
    for start in range(0, count, _BLOCK_ROWS):
      vectors = np.ascontiguousarray(store[start:start + _BLOCK_ROWS])
      made.add(vectors)
      bar.update(len(vectors))
  with replacing(path) as file:
    try:
      made.save(os.fspath(file.name))
    except RuntimeError as e:  # Of a full disk, in their words.
      raise InputError(f"{path}: cannot be written ({first_line(e)})") from e
    with open(file.name, "rb") as written:
      sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    record = Record(format=_FORMAT, name=name, of=_of(store), settings=settings, sha256=sha256,
                    version=f"{kind.package} {importlib.import_module(kind.package).__version__}")
    write_json(_json(store, name), record)
  return record


def read_index(store: Store, name: str | None = None) -> tuple[Record, Engine]:
  """The index of a store; without a name, the only one that it has.

  Raises:
    InputError: it has none, or several; or the index is of other vectors, or damaged, or its library is not installed.
  """
  _check(store)
  name = name or _only(store)
  path, again = store.path / f"{name}.index", f"make it again: {_command(store, name)}"
  if not _json(store, name).exists() and not path.exists():
    raise InputError(f"{path}: not there; make it: {_command(store, name)}")
  record = _read_record(store, name)
  if (of := _of(store)) != record["of"]:
    differ = next(what for what in ("documents_hash", *of) if of[what] != record["of"].get(what))
    what = {"documents": "documents", "documents_hash": "documents"}.get(differ, "vectors")
    raise InputError(f"{path}: an index of other {what} than the store's; {again}")
  if not path.exists():
    raise InputError(f"{path}: missing; {again}")
  kind = engine(name)
  if content_hash(path) != record["sha256"]:
    raise InputError(f"{path}: damaged, or not the index that {name}.json describes; {again}")
  try:
    return record, kind.read(os.fspath(path))
  except RuntimeError as e:
    raise InputError(f"{path}: written by {record['version']}, and what is installed does not read it "
                     f"({first_line(e)}); {again}") from e


def write_recall(store: Store, record: Record, recall: dict[str, Any]) -> None:
  """Adds what was measured of an index to its json."""
  write_json(_json(store, record["name"]), {**record, "recall": recall})


def _check(store: Store) -> None:
  if jax.process_count() > 1:
    raise InputError("an index is made and searched in one process; start one, without the flags of several")
  if is_remote(store.path):
    raise InputError(f"{store.path}: is in a bucket, and an index is a file of this machine; copy the store here")
  if not store.shape[0]:
    raise InputError(f"{store.path}: holds no vectors; there is nothing to find")


def _of(store: Store) -> dict[str, Any]:
  """What an index is of; two that agree in this are of the same vectors."""
  return {"documents": store.shape[0], "dim": store.shape[1], "precision": store.quantizer.precision,
          "documents_hash": store.documents_hash, "settings": store.settings}


def _json(store: Store, name: str) -> epath.Path:
  return store.path / f"{name}.json"


def _command(store: Store, name: str) -> str:
  library, _, kind = name.partition("-")
  return f"gtr-jax index {store.path} --to {library}{f' --kind {kind}' if kind != 'hnsw' else ''}"


def _only(store: Store) -> str:
  there = [name for name in ENGINES if _json(store, name).exists()]
  if not there:
    raise InputError(f"{store.path}: has no index; make one: {_command(store, 'faiss-hnsw')}")
  if len(there) > 1:
    raise InputError(f"{store.path}: has several indices; say which: --index {there[0]}, or {' or '.join(there[1:])}")
  return there[0]


def _read_record(store: Store, name: str) -> Record:
  path, advice = _json(store, name), f"remove it and {name}.index, and make the index again: {_command(store, name)}"
  if not path.exists():
    raise InputError(f"{store.path / name}.index: without {name}.json, which says what it is; remove it, and make the "
                     f"index again: {_command(store, name)}")
  record = read_json(path, Record, advice)
  if record["format"] != _FORMAT or record["name"] != name:
    raise InputError(f"{path}: of format {record['format']}, {record['name']}, and not of format {_FORMAT}, {name}; "
                     f"{advice}")
  return record
