"""An embedding store: a corpus and its embeddings in a folder.

    manifest.json           what the embeddings are of; written first
    ids.txt                 an id a line, in descending order (as strings)
    documents.jsonl         {"title", "text"} a line, in the same order
    offsets.npy             int64 [documents + 1], where each line of documents.jsonl begins
    checksums.npy           uint32 [documents], of these lines (CRC-32)
    embeddings-00000.npy    float32 [CHUNK_ROWS, D], and so on, in the same order
    norms-00000.npy         float32 [CHUNK_ROWS], their lengths, or those that they had before they were normalised
    checksums-00000.npy     uint32 [2], of these two
    COMPLETE                written last: CRC-32 of each of manifest.json, ids.txt, offsets.npy and checksums.npy

Rows descend by id because a search gives ties to the lower row, and trec_eval to the higher id. Each file appears under
its name only when whole.
"""

import functools
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError, first_line
from gtr_jax.inference.load import Model
from gtr_jax.io import jsonl
from gtr_jax.io.atomic import write_parts
from gtr_jax.io.json_file import check_json, read_json
from gtr_jax.io.line_table import LineTable
from gtr_jax.io.paths import location
from gtr_jax.parallel import processes
from gtr_jax.values.ranges import NonNegative, Positive

CHUNK_ROWS = 8192
_OPEN_CHUNKS = 4  # What a process has mapped counts as its memory, so not all of them.
_FORMAT = 4
_HASHED_ROWS = 8192  # Documents whose lines have a hash of their own, of which the hash of all is made.
_MANIFEST, _COMPLETE = "manifest.json", "COMPLETE"
_IDS, _DOCUMENTS, _OFFSETS, _CHECKSUMS = "ids.txt", "documents.jsonl", "offsets.npy", "checksums.npy"
_EMBEDDINGS, _NORMS, _OF_BOTH = "embeddings-{:05}.npy", "norms-{:05}.npy", "checksums-{:05}.npy"  # of each chunk


class Store:
  """A complete store, for reading; embeddings stay on disk (memory-mapped) until they are used, and are then held to
  their checksums.

  Attributes:
    path: the folder.
    ids: document ids by row.
    shape: (documents, D).
    settings: what the embeddings were made with: "weights_hash", "max_length", "prompt", and "dtype", of activations,
      which stores of earlier versions do not say.
    documents_hash: hexadecimal sha256 of the documents.
  """

  def __init__(self, path: epath.PathLike):
    self.path = location(path)
    if not (self.path / _MANIFEST).exists():
      raise InputError(f"{self.path}: not an embedding store (it has no {_MANIFEST}); make one with gtr-jax encode")
    manifest = _read_manifest(self.path)
    if not (self.path / _COMPLETE).exists():
      raise InputError(f"{self.path}: not complete; run the same command again, and it goes on where it stopped")
    sums = _read_sums(self.path)
    _check_sum(self.path / _MANIFEST, (self.path / _MANIFEST).read_bytes(), sums, "remove the folder, and encode again")
    self.settings, self.documents_hash = manifest["settings"], manifest["documents_hash"]
    self.shape = (manifest["documents"], manifest["dim"])
    self._chunk_rows = manifest["chunk_rows"]
    self.ids = _read_ids(self.path / _IDS, self.shape[0], sums)
    offsets = _read_array(self.path / _OFFSETS, (self.shape[0] + 1,), np.int64, sums)
    if not (self.path / _DOCUMENTS).exists():
      raise _damaged(self.path / _DOCUMENTS, "missing")
    self._documents = LineTable(self.path / _DOCUMENTS, offsets)
    self._checksums = _read_array(self.path / _CHECKSUMS, self.shape[:1], np.uint32, sums)
    self._chunk = functools.lru_cache(2 * _OPEN_CHUNKS)(self._checked_chunk)
    self._seen: set[tuple[str, int]] = set()  # Chunks whose checksums have been looked at.
    for number in range(-(-self.shape[0] // self._chunk_rows)):
      for name in (_EMBEDDINGS, _NORMS):
        _check_form(self.path / name.format(number), self._shape_of(name, number), np.float32)

  def _shape_of(self, name: str, number: int) -> tuple[int, ...]:
    rows = min(self._chunk_rows, self.shape[0] - number * self._chunk_rows)
    return (rows, self.shape[1]) if name == _EMBEDDINGS else (rows,)

  def _checked_chunk(self, name: str, number: int) -> np.ndarray:
    chunk = _read_array(self.path / name.format(number), self._shape_of(name, number), np.float32)
    if (name, number) not in self._seen:
      checksums = _read_array(self.path / _OF_BOTH.format(number), (2,), np.uint32)
      if zlib.crc32(chunk.data) != checksums[(_EMBEDDINGS, _NORMS).index(name)]:
        raise _damaged(self.path / name.format(number), "its checksum is another")
      self._seen.add((name, number))
    return chunk

  def _rows(self, name: str, rows: slice) -> np.ndarray:
    start, stop, step = rows.indices(self.shape[0])
    if step != 1:
      raise ValueError("a store is read in consecutive rows")
    size = self._chunk_rows
    parts = [self._chunk(name, chunk)[max(start - chunk * size, 0):stop - chunk * size]
             for chunk in range(start // size, -(-stop // size))]
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [self._chunk(name, 0)[:0]])

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Embeddings float32 `[rows, D]` of consecutive rows."""
    return self._rows(_EMBEDDINGS, rows)

  def norms(self, rows: slice) -> np.ndarray:
    """The lengths float32 `[rows]` of these embeddings, where they are normalised those that they had before."""
    return self._rows(_NORMS, rows)

  def document(self, row: int) -> tuple[str, str, str]:
    """(id, title, text) of a row."""
    try:
      line = self._documents[row]
    except ValueError as e:
      raise _damaged(self.path / _DOCUMENTS, str(e)) from e
    if zlib.crc32(line) != self._checksums[row]:
      raise _damaged(self.path / _DOCUMENTS, f"line {row + 1}: its checksum is another")
    fields = jsonl.parse(line)
    return self.ids[row], fields["title"], fields["text"]

  def check_model(self, model: Model) -> None:
    """Raises InputError unless the embeddings are the model's, computed as it computes."""
    weights_hash, dtype = model.weights_hash, model.encoder.config.dtype
    if (there := self.settings.get("dtype", dtype)) != dtype:
      raise InputError(f"{self.path}: holds embeddings that were computed in {there}, and queries would be in {dtype}; "
                       f"load the model with that dtype (--dtype {there}), or encode the corpus again into another "
                       "folder")
    if weights_hash != self.settings["weights_hash"]:
      raise InputError(f"{self.path}: holds the embeddings of another model (weights "
                       f"{self.settings['weights_hash'][:12]}, not {weights_hash[:12]}); encode the corpus with this "
                       "model into another folder")


class StoreWriter:
  """Writes a store, or goes on with one that was not finished. All processes take part; each chunk is written by one.

  Args:
    path: the folder; made if it is not there.
    documents: the corpus in any order.
    dim: size of an embedding.
    settings: all that the embeddings depend on besides the documents, JSON.

  Raises:
    InputError: the folder holds something else, or embeddings of other documents or settings.

  Attributes:
    documents: in the order of the rows.
  """

  def __init__(self, path: epath.PathLike, documents: Documents, dim: int, settings: Mapping[str, Any]):
    self.path = location(path)
    order = np.asarray(sorted(range(len(documents.ids)), key=documents.ids.__getitem__, reverse=True), np.int64)
    self.documents = documents.reordered(order)
    ids = "".join(f"{doc_id}\n" for doc_id in self.documents.ids).encode()
    processes.check_same({"the hash of the documents' ids": hashlib.sha256(ids).hexdigest(), **settings})
    ends, self._checksums, hashes = self._measured()
    self._manifest: dict[str, Any] = {"format": _FORMAT, "documents": len(order), "dim": dim, "chunk_rows": CHUNK_ROWS,
                      "documents_hash": hashlib.sha256(ids + hashes).hexdigest(), "settings": dict(settings)}
    small = {_IDS: ids, _OFFSETS: _npy(ends), _CHECKSUMS: _npy(self._checksums)}
    self._manifest["chunk_rows"] = processes.from_first(self._check_folder)
    if processes.is_first():
      self.path.mkdir(parents=True, exist_ok=True)
      manifest = (json.dumps(self._manifest, indent=2) + "\n").encode()
      write_parts(self.path / _MANIFEST, [manifest])
      if not all((self.path / name).exists() for name in (_DOCUMENTS, *small)):
        write_parts(self.path / _DOCUMENTS, self._lines(range(len(order))))
        for name in (_OFFSETS, _CHECKSUMS, _IDS):
          write_parts(self.path / name, [small[name]])
      # Of what there ought to be, whatever the files that were there already hold.
      self._sums = (json.dumps({name: zlib.crc32(data) for name, data in {_MANIFEST: manifest, **small}.items()})
                    + "\n").encode()
    processes.check_shared(self.path)

  def _lines(self, rows: range) -> Iterator[bytes]:
    """Lines of documents.jsonl."""
    for row in rows:
      fields = {"title": self.documents.titles[row], "text": self.documents.texts[row]}
      yield json.dumps(fields, ensure_ascii=False).encode() + b"\n"

  def _measured(self) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Where the lines of documents.jsonl begin, their checksums, and hashes of them; each process reads a part."""
    total, count = len(self.documents.ids), jax.process_count()
    hashed = -(-total // (_HASHED_ROWS * count))  # In each process.
    lines, hashes = np.zeros((hashed * _HASHED_ROWS, 2), np.uint32), np.zeros((hashed, 32), np.uint8)
    first = jax.process_index() * len(lines)
    for part, start in enumerate(range(first, min(first + len(lines), total), _HASHED_ROWS)):
      digest = hashlib.sha256()
      for row, line in enumerate(self._lines(range(start, min(start + _HASHED_ROWS, total))), start - first):
        digest.update(line)
        lines[row] = len(line), zlib.crc32(line[:-1])
      hashes[part] = np.frombuffer(digest.digest(), np.uint8)
    if count > 1:
      lines, hashes = (np.concatenate(multihost_utils.process_allgather(of_part)) for of_part in (lines, hashes))
    ends = np.concatenate([[0], np.cumsum(lines[:total, 0], dtype=np.int64)])
    return ends, lines[:total, 1].copy(), hashes[:-(-total // _HASHED_ROWS)].tobytes()

  def check_documents(self, rows: range) -> None:
    """Raises InputError where this process has read other documents than the one that made their checksums."""
    if jax.process_count() == 1:
      return
    for row, line in zip(rows, self._lines(rows), strict=True):
      if zlib.crc32(line[:-1]) != self._checksums[row]:
        raise InputError(f"document {self.documents.ids[row]!r} is another in process {jax.process_index()} than in "
                         "one of the others; give all of them the same corpus")

  def _check_folder(self) -> int:
    """The rows of a chunk: of the store that is there already, if there is one."""
    if not self.path.exists() or not any(not p.name.startswith(".") for p in self.path.iterdir()):
      return CHUNK_ROWS
    if not self.path.is_dir() or not any((self.path / name).exists() for name in (_MANIFEST, _IDS, _OFFSETS)):
      raise InputError(f"{self.path}: exists and is not an embedding store; choose another folder")
    if not (self.path / _MANIFEST).exists():
      raise InputError(f"{self.path}: an embedding store without its {_MANIFEST}, so nobody can tell whose it is; "
                       "remove the folder, and encode again")
    there = _read_manifest(self.path)
    of = {"dtype": "embeddings that were computed in another dtype", "weights_hash": "another model's embeddings",
          "max_length": "embeddings of another maximum length", "prompt": "embeddings with another prompt"}
    for name, value in self._manifest["settings"].items():
      if there["settings"].get(name, None if name in _Settings.__required_keys__ else value) != value:
        raise InputError(f"{self.path}: holds {of.get(name, name)} ({there['settings'].get(name)!r:.20}, not "
                         f"{value!r:.20}); choose another folder, or remove this one")
    if (there["documents_hash"], there["dim"]) != (self._manifest["documents_hash"], self._manifest["dim"]):
      raise InputError(f"{self.path}: holds the embeddings of other documents; choose another folder, or remove this "
                       "one")
    return there["chunk_rows"]

  def missing_chunks(self) -> list[range]:
    """The rows of each chunk that is not there yet; the same in all processes."""
    rows, total = self._manifest["chunk_rows"], self._manifest["documents"]

    def look():
      return [i for i in range(-(-total // rows))
              if not all((self.path / name.format(i)).exists() for name in (_EMBEDDINGS, _NORMS, _OF_BOTH))]

    return [range(i * rows, min((i + 1) * rows, total)) for i in processes.from_first(look)]

  def write_chunk(self, rows: range, embeddings: np.ndarray, norms: np.ndarray) -> None:
    """Writes one of the missing chunks: embeddings `[rows, D]` and the lengths `[rows]` that they have or had.

    Called by one process, whichever has made it.
    """
    chunk = rows.start // self._manifest["chunk_rows"]
    arrays = [np.ascontiguousarray(array, np.float32) for array in (embeddings, norms)]
    checksums = np.array([zlib.crc32(array.data) for array in arrays], np.uint32)
    for name, array in zip((_EMBEDDINGS, _NORMS, _OF_BOTH), (*arrays, checksums), strict=True):
      write_parts(self.path / name.format(chunk), [_npy(array)])

  def finish(self) -> Store:
    """Marks the store complete, when all processes have written their chunks, and opens it."""
    processes.wait_for_all()
    complete = self.path / _COMPLETE
    if processes.is_first() and not (complete.exists() and complete.read_bytes() == self._sums):
      write_parts(complete, [self._sums])
    processes.wait_for_all()
    return Store(self.path)


def normalized(embeddings: np.ndarray, norms: np.ndarray) -> np.ndarray:
  """Embeddings `[rows, D]` divided by their lengths `[rows]`; zero where these are below 1e-12, as in a model."""
  return embeddings / np.where(norms <= 1e-12, np.inf, norms)[:, None]


def _npy(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


class _Settings(TypedDict):
  dtype: NotRequired[str]
  weights_hash: str
  max_length: Positive
  prompt: str


class _Manifest(TypedDict):
  documents: NonNegative
  dim: Positive
  chunk_rows: Positive
  documents_hash: str
  settings: _Settings


def _read_manifest(folder: epath.Path) -> dict[str, Any]:
  path, advice = folder / _MANIFEST, "remove the folder, and run the command that made it again"
  manifest = read_json(path, dict, advice)
  if manifest.get("format") != _FORMAT:
    raise InputError(f"{path}: format {manifest.get('format')!r:.40}, this version reads {_FORMAT}; encode again")
  return check_json(path, manifest, _Manifest, advice)


def _read_sums(folder: epath.Path) -> dict[str, Any]:
  path = folder / _COMPLETE
  advice = "remove it, and run the command that made the store again: it writes it anew, and encodes nothing"
  if not path.stat().length:
    raise InputError(f"{path}: is empty, as an earlier version has left it, so nobody can tell whether the ids are as "
                     f"they were; {advice}")
  return read_json(path, dict[str, int], advice)


def _check_sum(path: epath.Path, data: bytes, sums: Mapping[str, int], advice: str = "") -> None:
  if zlib.crc32(data) != sums.get(path.name):
    raise _damaged(path, "its checksum is another", advice)


def _read_ids(path: epath.Path, count: int, sums: Mapping[str, int]) -> list[str]:
  data = path.read_bytes() if path.exists() else b""
  try:
    ids = data.decode().split("\n")[:-1]
  except UnicodeDecodeError as e:
    raise _damaged(path, f"not UTF-8, {e.reason}") from e
  if len(ids) != count:
    raise _damaged(path, f"{len(ids)} ids instead of {count}")
  _check_sum(path, data, sums)
  return ids


def _check_form(path: epath.Path, shape: tuple[int, ...], dtype: Any) -> None:
  """Raises InputError unless the file is of such an array, whose numbers are not read."""
  try:
    with path.open("rb") as file:
      if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
      there, fortran, its_dtype = np.lib.format.read_array_header_1_0(file)
      size = file.tell() + math.prod(there) * its_dtype.itemsize
    if path.stat().length < size:
      raise ValueError(f"{path.stat().length} bytes instead of {size}")
  except (OSError, ValueError, EOFError) as e:
    raise _damaged(path, first_line(e) if path.exists() else "missing") from e
  _check_array(path, there, its_dtype, not fortran, shape, dtype)


def _read_array(path: epath.Path, shape: tuple[int, ...], dtype: Any,
                sums: Mapping[str, int] | None = None) -> np.ndarray:
  """An array of the store; with `sums`, its file's checksum is looked at."""
  try:
    data = None if "://" not in str(path) else path.read_bytes()
    array = np.load(os.fspath(path), mmap_mode="r") if data is None else np.load(io.BytesIO(data))
  except (OSError, ValueError, EOFError) as e:
    raise _damaged(path, first_line(e) if path.exists() else "missing") from e
  _check_array(path, array.shape, array.dtype, array.flags.c_contiguous, shape, dtype)
  if sums is not None:
    _check_sum(path, path.read_bytes() if data is None else data, sums)
  return array


def _check_array(path, there, its_dtype, in_order, shape, dtype):
  if there != shape or its_dtype != dtype:
    raise _damaged(path, f"{its_dtype} {list(there)} instead of {np.dtype(dtype)} {list(shape)}")
  if not in_order:
    raise _damaged(path, "in another order")


def _damaged(path: epath.Path, what: str, advice: str = "") -> InputError:
  advice = advice or f"remove {path.name} and {_COMPLETE}, and run the command that made it again"
  return InputError(f"{path}: damaged or cut off ({what}); {advice}")
