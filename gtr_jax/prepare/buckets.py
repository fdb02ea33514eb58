"""A shuffle on disk: records are dealt to buckets by a hash, and a bucket's records are read back in order of the hash.

A file holds what one task has dealt, to all buckets: some 64 MB are gathered in memory, then written as one chunk for
each bucket and an index of them, as often as needed. So there are as many files as tasks, not tasks times buckets.
Where nobody knows yet how many buckets there will be, records are dealt to `MOST`, and a bucket is a run of these.
"""

import contextlib
import hashlib
import itertools
import marshal
import os
import struct
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import zstandard

from gtr_jax.io.atomic import replacing
from gtr_jax.io.lines import progress

MOST = 4096  # Buckets; any power of two below is a number of runs of them.
_MEMORY = 64 << 20  # Of a writer, before it writes.
_MOST_AT_ONCE = 96 << 20  # Of a bucket that is read; a larger one is read in several passes.
_OVERHEAD = 150  # Bytes in memory beside a record's own.
_ENTRY = struct.Struct("<QQQ")  # Where a bucket's chunk begins, how long it is, how much memory it takes.


def hash_of(key: str) -> bytes:
  """16 bytes, evenly distributed."""
  return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()


def bucket_of(digest: bytes, buckets: int) -> int:
  """Buckets are in the order of their digests."""
  return int.from_bytes(digest[:8]) * buckets >> 64


class Writer:
  """Deals records to the buckets of a new file, which is there when the block of `with` ends without an error."""

  def __init__(self, path: str, buckets: int):
    self._path, self._buckets = path, buckets
    self._held: dict[int, list[tuple]] = {}
    self._sizes: dict[int, int] = {}
    self._size = 0
    self._file: IO[bytes] | None = None
    self._indices: list[int] = []
    self._opened = contextlib.ExitStack()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error: Any) -> None:
    if error[0] is None:
      self.close()
    else:
      self._opened.__exit__(*error)  # Removes what has been written.

  def add(self, digest: bytes, *record: str | bytes) -> None:
    """`digest` decides the bucket, and the place in it."""
    bucket = bucket_of(digest, self._buckets)
    size = _OVERHEAD + sum(map(len, record))
    self._held.setdefault(bucket, []).append((digest, *record))
    self._sizes[bucket] = self._sizes.get(bucket, 0) + size
    self._size += size
    if self._size > _MEMORY:
      self._write()

  def _write(self):
    if self._file is None:
      self._file = self._opened.enter_context(replacing(self._path))
    file, compressor, index = self._file, zstandard.ZstdCompressor(level=1), bytearray(_ENTRY.size * self._buckets)
    for bucket in sorted(self._held):  # One after the other, so that a run of them is one stretch of the file.
      start, chunk = file.tell(), compressor.compress(marshal.dumps(self._held.pop(bucket)))
      file.write(chunk)
      _ENTRY.pack_into(index, _ENTRY.size * bucket, start, len(chunk), self._sizes[bucket])
    self._indices.append(file.tell())
    file.write(index)
    self._sizes, self._size = {}, 0

  def close(self) -> None:
    """Writes what is left; there is no file where there was nothing at all."""
    with self._opened:
      if self._held:
        self._write()
      if self._file is not None:
        self._file.write(struct.pack(f"<{len(self._indices) + 2}Q", *self._indices, len(self._indices), self._buckets))


class _Chunk(NamedTuple):
  """Some records of one of the buckets that a file was dealt to."""

  path: str
  start: int
  length: int
  size: int  # In memory.
  bucket: int
  of: int


def read(paths: Iterable[str], bucket: int, buckets: int) -> Iterator[list[tuple]]:
  """The records of one bucket of `buckets`, in order of their digests.

  `paths` need not all exist; their numbers of buckets are multiples of `buckets`. Records of one digest come in the
  order of the paths. Yields lists that are to be taken one after the other, each of bounded memory.
  """
  chunks = [chunk for path in paths if os.path.exists(path) for chunk in _chunks(path, bucket, buckets)]
  passes = sum(chunk.size for chunk in chunks) // _MOST_AT_ONCE + 1
  for part in range(passes):
    records: list[tuple] = []
    for path, ours in itertools.groupby(chunks, key=lambda chunk: chunk.path):
      with open(path, "rb") as file:
        for chunk in ours:
          # The chunk's places in the bucket, in units of which `passes` have `chunk.of` each.
          first, behind = ((chunk.bucket + i) * buckets * passes - bucket * passes * chunk.of for i in (0, 1))
          if first >= (part + 1) * chunk.of or behind <= part * chunk.of:
            continue
          file.seek(chunk.start)
          found = marshal.loads(zstandard.ZstdDecompressor().decompress(file.read(chunk.length)))
          if part == first // chunk.of:
            progress.on_bytes(chunk.length)
          whole = part * chunk.of <= first and behind <= (part + 1) * chunk.of
          records += found if whole else [r for r in found if _place(r[0], buckets) * passes >> 64 == part]
    records.sort(key=lambda r: r[0])
    yield records


def _chunks(path: str, bucket: int, buckets: int) -> Iterator[_Chunk]:
  with open(path, "rb") as file:
    file.seek(-16, os.SEEK_END)
    count, dealt_to = struct.unpack("<2Q", file.read(16))
    run = range(bucket * dealt_to // buckets, (bucket + 1) * dealt_to // buckets)
    file.seek(-8 * (count + 2), os.SEEK_END)
    for index in struct.unpack(f"<{count}Q", file.read(8 * count)):
      file.seek(index + _ENTRY.size * run.start)
      for number, (start, length, size) in zip(run, _ENTRY.iter_unpack(file.read(_ENTRY.size * len(run))), strict=True):
        if length:
          yield _Chunk(path, start, length, size, number, dealt_to)


def beside(ours: Iterable[list[tuple]], others: Iterable[list[tuple]]) -> Iterator[tuple[list[tuple], list[tuple]]]:
  """Of two `read`s of one bucket: each list of ours, and the others whose digests are of records in it."""
  stream = itertools.chain.from_iterable(others)
  waiting = next(stream, None)
  for records in ours:
    found = []
    while records and waiting and waiting[0] <= records[-1][0]:
      found.append(waiting)
      waiting = next(stream, None)
    yield records, found


def _place(digest: bytes, buckets: int) -> int:
  """Where in its bucket a digest lies, in units of 2**-64."""
  return int.from_bytes(digest[:8]) * buckets & 2**64 - 1
