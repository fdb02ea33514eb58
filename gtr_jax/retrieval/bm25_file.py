"""A BM25 index beside the embeddings of a store: bm25.npz in its folder, built once, of the store's own documents.

It says which documents it is of (the hash that the store's manifest has), by which parameters, and by which versions of
the libraries that make words of texts. One of anything else is built again, and it is said why.
"""

import importlib.metadata
import json
import os
import sys
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from gtr_jax.collections.corpus import View, full_text
from gtr_jax.errors import InputError, first_line
from gtr_jax.io import bars, jsonl
from gtr_jax.io.atomic import replacing
from gtr_jax.io.paths import check_regular
from gtr_jax.retrieval.bm25 import K1, B, BM25Index
from gtr_jax.retrieval.store import Store

FILE = "bm25.npz"
_FORMAT = 1
_OF = "of"  # The array of the bytes of a JSON object: what the others are of.


def bm25_of(store: Store, progress: bool = True) -> BM25Index:
  """The index of a store's documents, whose positions are the store's rows; built and written where there is none.

  Called in one process.

  Args:
    store: of documents with texts.
    progress: show progress bars on stderr, and say there what is built.

  Raises:
    InputError: the store has no texts, its folder cannot be written to, or bm25.npz is damaged, or something else.
  """
  if "vectors_hash" in store.settings:
    raise InputError(f"{store.path}: holds vectors that were given to gtr-jax encode --vectors, without texts, and "
                     "BM25 needs texts; fuse with BM25 in gtr-jax evaluate (--embeddings, --bm25 and --fuse)")
  path, of = store.path / FILE, _of(store)
  if path.exists():
    there, arrays = _read(path)
    if there == of:
      return BM25Index.of_arrays(arrays, progress)
    print(f"{path}: {_difference(there, of)}; it is built again", file=sys.stderr)
  elif progress and bars.shown():
    print(f"{path}: an index of {store.shape[0]:,} documents is built", file=sys.stderr)
  index = BM25Index(View(store.shape[0], lambda row: full_text(*store.document(row)[1:])), progress=progress)
  written: dict[str, Any] = {_OF: np.frombuffer(json.dumps(of).encode(), np.uint8), **index.arrays()}
  with replacing(path) as file:
    np.savez(file, **written)
  return index


def _of(store: Store) -> dict[str, Any]:
  """What an index is of; two that agree in this are the same."""
  libraries = {name: importlib.metadata.version(name) for name in ("bm25s", "PyStemmer")}
  return {"format": _FORMAT, "documents": store.shape[0], "documents_hash": store.documents_hash, "k1": K1, "b": B,
          **libraries}


def _difference(there: dict[str, Any], of: dict[str, Any]) -> str:
  """In words."""
  name = next(name for name in ("documents_hash", *of, *there) if there.get(name) != of.get(name))
  if name in ("documents", "documents_hash"):
    return "a BM25 index of other documents than the store's"
  return f"a BM25 index of {name} {there.get(name)}, where this is {of.get(name)}"


def _read(path: epath.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """What it is of, and its arrays, whose checksums the archive holds."""
  check_regular(path)
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    there = jsonl.parse(arrays.pop(_OF).tobytes())
    if not isinstance(there, dict):
      raise ValueError("it does not say what it is of")
  except (OSError, ValueError, EOFError, LookupError, AttributeError, TypeError, NotImplementedError,
          zipfile.BadZipFile, zlib.error) as e:
    raise InputError(f"{os.fspath(path)}: damaged, or no BM25 index ({first_line(e)}); remove it, and the next search "
                     "builds it") from e
  return there, arrays
