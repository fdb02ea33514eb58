"""An embedding store: a corpus and its embeddings in a folder.

    manifest.json           what the embeddings are of; written first
    ids.txt                 an id a line, in descending order (as strings)
    documents.jsonl         {"title", "text"} a line, in the same order
    offsets.npy             int64 [documents + 1], where each line of documents.jsonl begins
    checksums.npy           uint32 [documents], of these lines (CRC-32)
    scales.npy              float32 [D], of int8 (quantization.py); written before the first embedding
    rotation.npy            float32 [D + 1, D], of bits: the rotation, and the threshold of each (rotation.py); likewise
    embeddings-00000.npy    float32 [CHUNK_ROWS, D], or int8, or uint8 [CHUNK_ROWS, D / 8]; and so on, in the same order
    norms-00000.npy         float32 [CHUNK_ROWS], their lengths, or those that they had before they were normalised
    checksums-00000.npy     uint32 [2], of these two; also of the scales or the rotation, read before the embeddings
    COMPLETE                written last: CRC-32 of manifest.json, ids.txt, offsets.npy, checksums.npy, scales.npy and
                            rotation.npy

Rows descend by id because a search gives ties to the lower row, and trec_eval to the higher id. Each file appears under
its name only when whole.
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.inference.load import Model
from gtr_jax.io import jsonl
from gtr_jax.io.atomic import write_parts
from gtr_jax.io.bars import Bar
from gtr_jax.io.line_table import LineTable
from gtr_jax.io.paths import location
from gtr_jax.parallel import processes
from gtr_jax.retrieval.quantization import SAMPLE_ROWS, Quantizer, fit
from gtr_jax.retrieval.store_files import (
  CHECKSUMS,
  COMPLETE,
  DOCUMENTS,
  EMBEDDINGS,
  FITTED,
  FORMAT,
  IDS,
  MANIFEST,
  NORMS,
  OF_BOTH,
  OFFSETS,
  check_form,
  check_sum,
  checksum_of,
  damaged,
  npy,
  read_array,
  read_ids,
  read_manifest,
  read_quantizer,
  read_sums,
)

CHUNK_ROWS = 8192
_OPEN_CHUNKS = 4  # What a process has mapped counts as its memory, so not all of them.
_HASHED_ROWS = 8192  # Documents whose lines have a hash of their own, of which the hash of all is made.


class Store:
  """A complete store, for reading; embeddings stay on disk (memory-mapped) until they are used, and are then held to
  their checksums.

  Attributes:
    path: the folder.
    ids: document ids by row.
    shape: (documents, D).
    settings: what the embeddings were made with: "weights_hash", "max_length", "prompt", and "dtype", of activations,
      which stores of earlier versions do not say; of vectors that were given, only "vectors_hash".
    quantizer: how the embeddings are kept.
    documents_hash: hexadecimal sha256 of the documents.
  """

  def __init__(self, path: epath.PathLike):
    self.path = location(path)
    if not (self.path / MANIFEST).exists():
      raise InputError(f"{self.path}: not an embedding store (it has no {MANIFEST}); make one with gtr-jax encode")
    manifest = read_manifest(self.path)
    if not (self.path / COMPLETE).exists():
      raise InputError(f"{self.path}: not complete; run the same command again, and it goes on where it stopped")
    sums = read_sums(self.path)
    check_sum(self.path / MANIFEST, (self.path / MANIFEST).read_bytes(), sums, "remove the folder, and encode again")
    self.settings, self.documents_hash = manifest["settings"], manifest["documents_hash"]
    self.shape = (manifest["documents"], manifest["dim"])
    self._chunk_rows = manifest["chunk_rows"]
    self.quantizer = read_quantizer(self.path, manifest.get("precision", "float32"), self.shape[1], sums)
    self.ids = read_ids(self.path / IDS, self.shape[0], sums)
    offsets = read_array(self.path / OFFSETS, (self.shape[0] + 1,), np.int64, sums)
    if not (self.path / DOCUMENTS).exists():
      raise damaged(self.path / DOCUMENTS, "missing")
    self._documents = LineTable(self.path / DOCUMENTS, offsets)
    self._checksums = read_array(self.path / CHECKSUMS, self.shape[:1], np.uint32, sums)
    self._chunk = functools.lru_cache(2 * _OPEN_CHUNKS)(self._checked_chunk)
    self._seen: set[tuple[str, int]] = set()  # Chunks whose checksums have been looked at.
    for number in range(-(-self.shape[0] // self._chunk_rows)):
      for name in (EMBEDDINGS, NORMS):
        check_form(self.path / name.format(number), self._shape_of(name, number), self._dtype_of(name))

  def _shape_of(self, name: str, number: int) -> tuple[int, ...]:
    rows = min(self._chunk_rows, self.shape[0] - number * self._chunk_rows)
    return (rows, self.quantizer.width) if name == EMBEDDINGS else (rows,)

  def _dtype_of(self, name: str) -> np.dtype:
    return self.quantizer.dtype if name == EMBEDDINGS else np.dtype(np.float32)

  def _checked_chunk(self, name: str, number: int) -> np.ndarray:
    chunk = read_array(self.path / name.format(number), self._shape_of(name, number), self._dtype_of(name))
    if (name, number) not in self._seen:
      checksums = read_array(self.path / OF_BOTH.format(number), (2,), np.uint32)
      checksum = checksum_of(self.quantizer, chunk) if name == EMBEDDINGS else zlib.crc32(chunk.data)
      if checksum != checksums[(EMBEDDINGS, NORMS).index(name)]:
        raise damaged(self.path / name.format(number), "its checksum is another")
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
    """Embeddings float32 `[rows, D]` of consecutive rows, of int8 and bits what these stand for."""
    return self.quantizer.decode(self.codes(rows))

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Embeddings float32 `[rows, D]`, as those of `[]`, of any rows; each chunk is opened once."""
    taken, chunks = np.empty((len(rows), self.shape[1]), np.float32), rows // self._chunk_rows
    for number in np.unique(chunks).tolist():
      here = chunks == number
      taken[here] = self.quantizer.decode(self._chunk(EMBEDDINGS, number)[rows[here] - number * self._chunk_rows])
    return taken

  def codes(self, rows: slice) -> np.ndarray:
    """What is kept of consecutive rows, `[rows, ...]`."""
    return self._rows(EMBEDDINGS, rows)

  def norms(self, rows: slice) -> np.ndarray:
    """The lengths float32 `[rows]` of these embeddings, where they are normalised those that they had before."""
    return self._rows(NORMS, rows)

  def document(self, row: int) -> tuple[str, str, str]:
    """(id, title, text) of a row."""
    try:
      line = self._documents[row]
    except ValueError as e:
      raise damaged(self.path / DOCUMENTS, str(e)) from e
    if zlib.crc32(line) != self._checksums[row]:
      raise damaged(self.path / DOCUMENTS, f"line {row + 1}: its checksum is another")
    fields = jsonl.parse(line)
    return self.ids[row], fields["title"], fields["text"]

  def check_model(self, model: Model) -> None:
    """Raises InputError unless the embeddings are the model's, computed as it computes."""
    weights_hash, dtype = model.weights_hash, model.encoder.config.dtype
    if "weights_hash" not in self.settings:
      raise InputError(f"{self.path}: holds vectors that were given to gtr-jax encode --vectors, not a model's; search "
                       "it with vectors of queries (gtr-jax search --vectors)")
    if (there := self.settings.get("dtype", dtype)) != dtype:
      raise InputError(f"{self.path}: holds embeddings that were computed in {there}, and queries would be in {dtype}; "
                       f"load the model with that dtype (--dtype {there}), or encode the corpus again into another "
                       "folder")
    if weights_hash != self.settings["weights_hash"]:
      raise InputError(f"{self.path}: holds the embeddings of another model (weights "
                       f"{self.settings['weights_hash'][:12]}, not {weights_hash[:12]}); encode the corpus with this "
                       "model into another folder")


def spread_rows(count: int, most: int) -> np.ndarray:
  """At most so many of `count` rows, spread evenly over all, int64, ascending."""
  return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


class StoreWriter:
  """Writes a store, or goes on with one that was not finished. All processes take part; each chunk is written by one.

  Args:
    path: the folder; made if it is not there.
    documents: the corpus in any order.
    dim: size of an embedding.
    settings: all that the embeddings depend on besides the documents, JSON.
    precision: how they are kept, as of `Quantizer`.

  Raises:
    InputError: the folder holds something else, or embeddings of other documents or settings.

  Attributes:
    documents: in the order of the rows.
    order: int64, which of the documents that were given each row is.
    not_fitted: whether `fit` has to be called before the first chunk is written.
  """

  def __init__(self, path: epath.PathLike, documents: Documents, dim: int, settings: Mapping[str, Any],
               precision: str = "float32"):
    self.path = location(path)
    self.order = order = np.asarray(sorted(range(len(documents.ids)), key=documents.ids.__getitem__, reverse=True),
                                    np.int64)
    self.documents = documents.reordered(order)
    ids = "".join(f"{doc_id}\n" for doc_id in self.documents.ids).encode()
    processes.check_same({"the hash of the documents' ids": hashlib.sha256(ids).hexdigest(), **settings,
                          "precision": precision, "dimensions": dim})
    ends, self._checksums, hashes = self._measured()
    self._manifest: dict[str, Any] = {"format": FORMAT, "documents": len(order), "dim": dim, "chunk_rows": CHUNK_ROWS,
                      "documents_hash": hashlib.sha256(ids + hashes).hexdigest(), "settings": dict(settings),
                      **({} if precision == "float32" else {"precision": precision})}
    small = {IDS: ids, OFFSETS: npy(ends), CHECKSUMS: npy(self._checksums)}
    self._manifest["chunk_rows"] = processes.from_first(self._check_folder)
    if processes.is_first():
      self.path.mkdir(parents=True, exist_ok=True)
      manifest = (json.dumps(self._manifest, indent=2) + "\n").encode()
      write_parts(self.path / MANIFEST, [manifest])
      if not all((self.path / name).exists() for name in (DOCUMENTS, *small)):
        write_parts(self.path / DOCUMENTS, self._lines(range(len(order))))
        for name in (OFFSETS, CHECKSUMS, IDS):
          write_parts(self.path / name, [small[name]])
      # Of what there ought to be, whatever the files that were there already hold.
      self._sums = {name: zlib.crc32(data) for name, data in {MANIFEST: manifest, **small}.items()}
    processes.check_shared(self.path)
    self._precision, self._dim = precision, dim
    self.not_fitted = precision in FITTED and not processes.from_first(self._is_fitted)
    self._quantizer = Quantizer(precision, dim) if self.not_fitted else read_quantizer(self.path, precision, dim)

  def _is_fitted(self) -> bool:
    """Whether scales or a rotation are there. Raises InputError where chunks are, and nobody can tell by which."""
    path = self.path / FITTED[self._precision]
    if not path.exists() and any(self.path.glob("embeddings-*.npy")):
      raise InputError(f"{path}: missing, and the embeddings here mean nothing without it (an earlier version has "
                       "written binary ones without); remove the folder, and encode again")
    return path.exists()

  def sample_rows(self) -> np.ndarray:
    """The rows whose embeddings `fit` takes, int64, ascending."""
    return spread_rows(len(self.order), SAMPLE_ROWS[self._precision])

  def fit(self, sample: np.ndarray) -> None:
    """Fixes the scales of int8 or the rotation of bits, by the embeddings `[rows, D]` of `sample_rows`.

    All processes call it, and the first one fits: what it has written decides, whoever goes on.
    """

    def write():
      if (fitted := fit(self._precision, sample).fitted) is not None:
        write_parts(self.path / FITTED[self._precision], [npy(fitted)])

    processes.from_first(write)
    self._quantizer, self.not_fitted = read_quantizer(self.path, self._precision, self._dim), False

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
    if not self.path.is_dir() or not any((self.path / name).exists() for name in (MANIFEST, IDS, OFFSETS)):
      raise InputError(f"{self.path}: exists and is not an embedding store; choose another folder")
    if not (self.path / MANIFEST).exists():
      raise InputError(f"{self.path}: an embedding store without its {MANIFEST}, so nobody can tell whose it is; "
                       "remove the folder, and encode again")
    there = read_manifest(self.path)
    of = {"dtype": "embeddings that were computed in another dtype", "weights_hash": "another model's embeddings",
          "max_length": "embeddings of another maximum length", "prompt": "embeddings with another prompt",
          "vectors_hash": "other vectors"}
    for name, value in self._manifest["settings"].items():
      if there["settings"].get(name, value if name == "dtype" else None) != value:
        raise InputError(f"{self.path}: holds {of.get(name, name)} ({there['settings'].get(name)!r:.20}, not "
                         f"{value!r:.20}); choose another folder, or remove this one")
    for name, what in {"precision": "{} vectors", "dim": "vectors of {} numbers"}.items():
      kept, wanted = (manifest.get(name, "float32") for manifest in (there, self._manifest))
      if kept != wanted:
        raise InputError(f"{self.path}: holds {what.format(kept)}, not {wanted}; choose another folder, or remove this "
                         "one")
    if there["documents_hash"] != self._manifest["documents_hash"]:
      raise InputError(f"{self.path}: holds the embeddings of other documents; choose another folder, or remove this "
                       "one")
    return there["chunk_rows"]

  def missing_chunks(self) -> list[range]:
    """The rows of each chunk that is not there yet; the same in all processes."""
    rows, total = self._manifest["chunk_rows"], self._manifest["documents"]

    def look():
      return [i for i in range(-(-total // rows))
              if not all((self.path / name.format(i)).exists() for name in (EMBEDDINGS, NORMS, OF_BOTH))]

    return [range(i * rows, min((i + 1) * rows, total)) for i in processes.from_first(look)]

  def write_chunk(self, rows: range, embeddings: np.ndarray, norms: np.ndarray) -> None:
    """Writes one of the missing chunks: embeddings `[rows, D]` and the lengths `[rows]` that they have or had.

    Called by one process, whichever has made it.
    """
    chunk = rows.start // self._manifest["chunk_rows"]
    arrays = [np.ascontiguousarray(array) for array in (self._quantizer.encode(embeddings),
                                                        np.asarray(norms, np.float32))]
    checksums = np.array([checksum_of(self._quantizer, arrays[0]), zlib.crc32(arrays[1].data)], np.uint32)
    for name, array in zip((EMBEDDINGS, NORMS, OF_BOTH), (*arrays, checksums), strict=True):
      write_parts(self.path / name.format(chunk), [npy(array)])

  def write_all(self, made: Callable[[slice], tuple[np.ndarray, np.ndarray]], progress: bool) -> Store:
    """Writes all chunks that are missing, and finishes; for vectors that are there already, and need no devices.

    Args:
      made: what `write_chunk` takes, of consecutive rows.
      progress: show a progress bar on stderr.
    """
    chunks = self.missing_chunks()
    with Bar(len(self.order), "storing vectors", " vectors", shown=progress and processes.is_first()) as bar:
      bar.skip(len(self.order) - sum(map(len, chunks)))
      for number, chunk in enumerate(chunks):
        if number % jax.process_count() == jax.process_index():
          self.write_chunk(chunk, *made(slice(chunk.start, chunk.stop)))
        bar.update(len(chunk))
    return self.finish()

  def finish(self) -> Store:
    """Marks the store complete, when all processes have written their chunks, and opens it."""
    processes.wait_for_all()
    complete = self.path / COMPLETE
    if processes.is_first():
      fitted = self._quantizer.fitted
      of_fitted = {} if fitted is None else {FITTED[self._precision]: zlib.crc32(npy(fitted))}
      sums = (json.dumps({**self._sums, **of_fitted}) + "\n").encode()
      if not (complete.exists() and complete.read_bytes() == sums):
        write_parts(complete, [sums])
    processes.wait_for_all()
    return Store(self.path)
