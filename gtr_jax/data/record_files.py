"""TFRecord files as one list of records, any of which can be read: an index says where they are.

The index is made when files are first read, by going through them once, and kept in the data root's cache. It also has
a hash of what is in them, so that a run can tell data that changed from data that moved.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, bars, data_root
from gtr_jax.prepare.records import record_at

_FORMAT = 1
_GRAIN = 16  # Records between two offsets of an index.
_MOST_BLOCKS = 1 << 16
_READ_BYTES = 8 << 20
_FRAME = 16  # Bytes around a record: its length, and two checksums.


class _Index(NamedTuple):
  counts: np.ndarray  # int64 [files], of records
  offsets: np.ndarray  # uint64: for each file in turn, where every 16th record begins, and where the last one ends
  content: np.ndarray  # uint8 [32], a hash of all bytes


class RecordFiles:
  """The records of some files, in blocks: neighbours, at most 65,536 blocks and some.

  Args:
    files: TFRecord, not compressed.
    hint: what to do where one is damaged.

  Attributes:
    files: as given.
    block_sizes: int64 `[blocks]`, how many records each has.
    content: hash of all that is in them, hex; it does not depend on where they lie.
    num_bytes: of all of them.

  Raises:
    InputError: a file is no TFRecord file, or cut off.
  """

  def __init__(self, files: Sequence[str], hint: str):
    self.files, self._hint = list(files), hint
    index = _index_of(self.files, hint)
    self.content = index.content.tobytes().hex()
    grains = -(-index.counts // _GRAIN)  # of each file
    of_block = max(1, int(index.counts.sum()) // (_GRAIN * _MOST_BLOCKS))  # grains
    blocks = -(-grains // of_block)
    self._file = np.repeat(np.arange(len(files)), blocks)
    number = np.arange(len(self._file)) - np.repeat(np.cumsum(blocks) - blocks, blocks)  # of a block in its file
    self._first = number * of_block * _GRAIN  # its first record there
    self._grain = np.repeat(np.cumsum(grains + 1) - grains - 1, blocks) + number * of_block
    self._offsets = index.offsets
    self.block_sizes = np.minimum(of_block * _GRAIN, index.counts[self._file] - self._first)
    self.num_bytes = int(index.offsets[np.cumsum(grains + 1) - 1].sum())

  def __len__(self) -> int:
    return int(self.block_sizes.sum())

  def read(self, block: int, first: int, last: int) -> list[bytes]:
    """Records `first` to `last` (exclusive) of a block. Raises InputError where they are damaged, or no more there."""
    skipped, grain = first % _GRAIN, int(self._grain[block])
    start, stop = (int(self._offsets[grain + n]) for n in (first // _GRAIN, -(-last // _GRAIN)))
    path = self.files[self._file[block]]
    with epath.Path(path).open("rb") as file:
      file.seek(start)
      data = file.read(stop - start)
    found, at = [], 0
    try:
      for _ in range(skipped + last - first):
        record, at = record_at(data, at)
        found.append(record)
    except ValueError as e:
      _, numbers = self.place(block, first - skipped, last)
      raise InputError(f"{path}: record {numbers[len(found)]} is damaged or cut off; {self._hint}") from e
    return found[skipped:]

  def place(self, block: int, first: int, last: int) -> tuple[str, np.ndarray]:
    """The name of the file that these records are in, and their numbers there, from 1."""
    start = int(self._first[block]) + 1
    return os.path.basename(self.files[self._file[block]]), np.arange(start + first, start + last)


def _index_of(files, hint):
  """The index, from the cache if it is there."""
  paths = [epath.Path(file) for file in files]
  digest = hashlib.sha256(b"%d" % _FORMAT)
  for path in paths:
    stat = path.stat()
    digest.update(f"{path} {stat.length} {stat.mtime!r}\n".encode())
  place = data_root.data_dir() / "cache" / "indices" / f"{digest.hexdigest()[:32]}.npz"
  if place.exists():
    try:
      with place.open("rb") as file, np.load(file) as there:
        return _Index(*(there[name] for name in _Index._fields))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
      pass  # Damaged: it is made again.
  with (bars.Bar(sum(path.stat().length for path in paths), "indexing records", "B", leave=False, delay=1) as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool):
    scanned = list(pool.map(lambda path: _scan(path, bar, hint), paths))
  index = _Index(np.array([count for count, _, _ in scanned], np.int64),
                 np.concatenate([offsets for _, offsets, _ in scanned]),
                 np.frombuffer(hashlib.sha256(b"".join(content for *_, content in scanned)).digest(), np.uint8))
  with contextlib.suppress(OSError), atomic.replacing(place) as file:  # On a mount for reading it is made each time.
    np.savez(file, **index._asdict())
  return index


def _scan(path, bar, hint):
  """How many records a file has, where every 16th begins and the last one ends, and a hash of its bytes."""
  content, offsets, count, at = hashlib.sha256(), [], 0, 0
  data, end = b"", 0  # What was read and is not passed yet, and where it ends in the file.
  with path.open("rb") as file:
    while more := file.read(_READ_BYTES):
      content.update(more)
      data, end = data + more, end + len(more)
      start = end - len(data)
      while at + 8 <= end:
        if count % _GRAIN == 0:
          offsets.append(at)
        at += int.from_bytes(data[at - start:at - start + 8], "little") + _FRAME
        count += 1
      data = data[at - start:]
      bar.update(len(more))
  if at != end:
    raise InputError(f"{path}: cut off, or no TFRecord file; {hint}")
  return count, np.array([*offsets, at], np.uint64), content.digest()
