"""The beginning of a file, and whether it is the file at all: a download or a copy may have left something else."""

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
