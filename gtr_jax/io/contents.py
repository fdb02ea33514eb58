"""What is in a file: a hash of it; its beginning, and whether it is the file at all: a download or a copy may have left
something else."""

import functools
import hashlib
import os

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import diagnose
from gtr_jax.io.paths import check_regular


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
  """Of a file's bytes, hex."""
  stat = path.stat()
  return _content_hash(os.fspath(path), stat.length, stat.mtime)


@functools.lru_cache(maxsize=1024)
def _content_hash(path: str, length: int, mtime: float) -> str:
  """Of a file's bytes, hex; not computed again in this process while length and time stay."""
  digest = hashlib.sha256()
  with epath.Path(path).open("rb") as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()
