"""A shuffle on disk: records are dealt to buckets by a hash, and a bucket's records are read back in order of the hash.

A file holds what one task has dealt, to all buckets: some 64 MB are gathered in memory, then written as one chunk for
each bucket and an index of them, as often as needed. So there are as many files as tasks, not tasks times buckets.
"""

import contextlib
import hashlib
import marshal
import os
import struct
from collections.abc import Iterator, Sequence
from typing import IO, Any

import zstandard

from gtr_jax.io.atomic import replacing
from gtr_jax.io.lines import progress

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
    self._sizes, self._size = [0] * buckets, 0
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
    self._sizes[bucket] += size
    self._size += size
    if self._size > _MEMORY:
      self._write()

  def _write(self):
    if self._file is None:
      self._file = self._opened.enter_context(replacing(self._path))
    file, compressor, index = self._file, zstandard.ZstdCompressor(level=1), []
    for bucket in range(self._buckets):
      start = file.tell()
      if bucket in self._held:
        file.write(compressor.compress(marshal.dumps(self._held.pop(bucket))))
      index.append(_ENTRY.pack(start, file.tell() - start, self._sizes[bucket]))
    self._indices.append(file.tell())
    file.write(b"".join(index))
    self._sizes, self._size = [0] * self._buckets, 0

  def close(self) -> None:
    """Writes what is left; there is no file where there was nothing at all."""
    with self._opened:
      if self._held:
        self._write()
      if self._file is not None:
        self._file.write(struct.pack(f"<{len(self._indices) + 1}Q", *self._indices, len(self._indices)))


def read(paths: Sequence[str], bucket: int, buckets: int) -> Iterator[list[tuple]]:
  """The records of one bucket of `buckets`, in order of their digests.

  `paths` need not all exist; records of one digest come in their order. Yields lists that are to be taken one after the
  other, each of bounded memory.
  """
  chunks = []
  for path in filter(os.path.exists, paths):
    with open(path, "rb") as file:
      file.seek(-8, os.SEEK_END)
      count, = struct.unpack("<Q", file.read(8))
      file.seek(-8 * (count + 1), os.SEEK_END)
      for index in struct.unpack(f"<{count}Q", file.read(8 * count)):
        file.seek(index + _ENTRY.size * bucket)
        start, length, size = _ENTRY.unpack(file.read(_ENTRY.size))
        if length:
          chunks.append((path, start, length, size))
  passes = sum(size for *_, size in chunks) // _MOST_AT_ONCE + 1
  for part in range(passes):
    records: list[tuple] = []
    for path, start, length, _ in chunks:
      with open(path, "rb") as file:
        file.seek(start)
        chunk = marshal.loads(zstandard.ZstdDecompressor().decompress(file.read(length)))
      progress.on_bytes(length if part == 0 else 0)
      records += [r for r in chunk if _place(r[0], buckets) * passes >> 64 == part] if passes > 1 else chunk
    records.sort(key=lambda r: r[0])
    yield records


def _place(digest: bytes, buckets: int) -> int:
  """Where in its bucket a digest lies, in units of 2**-64."""
  return int.from_bytes(digest[:8]) * buckets & 2**64 - 1
