"""What is in a file: a hash of it; its beginning, and whether it is the file at all: a download or a copy may have left
something else."""

import contextlib
import functools
import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple, TypedDict

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, diagnose
from gtr_jax.io.json_file import read_json
from gtr_jax.io.paths import check_regular, is_remote

_MOST_UNKEPT = 8 << 20  # Bytes: a smaller file is hashed sooner than its hash is found.
_SETTLED_NS = 2 * 10**9  # Since the last change.


def first_bytes(path: epath.Path) -> bytes:
  """What a file begins with; raises InputError for a named pipe or a device."""
  check_regular(path)
  with path.open("rb") as file:
    return file.read(diagnose.BYTES)


def check_contents(path: epath.Path, data: bytes) -> None:
  """Raises InputError where a file, of which these are the first bytes or all, is empty or only stands in for one."""
  if not data:
    raise InputError(f"{path}: is empty; copy it again")
  if text := diagnose.stand_in(data[:diagnose.BYTES]):
    raise InputError(f"{path}: {text}")


def content_hash(path: epath.Path) -> str:
  """SHA-256 of a file's bytes, hex.

  Of a larger file of this machine it is kept in `cache/hashes` of the data root, and holds while the file's path, size,
  time and inode stay.
  """
  if is_remote(path):
    stat = path.stat()
    return _of_remote(os.fspath(path), stat.length, stat.mtime)
  place = os.path.realpath(path)
  return _of_file(place, _State.of(place))


class _State(NamedTuple):
  """By which it is told whether a file has changed."""

  length: int
  mtime_ns: int
  inode: int

  @classmethod
  def of(cls, path: str) -> "_State":
    stat = os.stat(path)
    return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


class _Kept(TypedDict):
  path: str
  length: int
  mtime_ns: int
  inode: int
  sha256: str


@functools.lru_cache(maxsize=1024)
def _of_remote(path: str, length: int, mtime: float) -> str:
  return _computed(path)


@functools.lru_cache(maxsize=1024)
def _of_file(path: str, state: _State) -> str:
  if state.length < _MOST_UNKEPT:
    return _computed(path)
  known = {"path": path} | state._asdict()
  name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
  kept = Path(data_root.local_dir()) / "cache/hashes" / name
  with contextlib.suppress(OSError, InputError):  # None yet, or damaged, or of others.
    found = read_json(kept, _Kept, "")
    if {name: found[name] for name in known} == known:
      return found["sha256"]
  digest = _computed(path)
  # A change within the same tick of the clock would not be seen.
  if _State.of(path) == state and time.time_ns() - state.mtime_ns > _SETTLED_NS:
    with contextlib.suppress(OSError, InputError):  # A data root that is not ours to write to.
      atomic.write_json(kept, known | {"sha256": digest})
  return digest


def _computed(path: str) -> str:
  digest = hashlib.sha256()
  with epath.Path(path).open("rb") as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()
