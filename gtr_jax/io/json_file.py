"""JSON files that gtr_jax has written: read whole, and held to their shape."""

from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.jsonl import parse
from gtr_jax.io.paths import check_regular, location
from gtr_jax.values.check import shortened, wrong


def read_json(path: epath.PathLike, shape: Any, advice: str) -> Any:
  """The value of a file.

  Args:
    path: of the file.
    shape: what its value is: `dict`, a TypedDict, or any other annotation.
    advice: ends the message where it is something else: what to do about it.

  Raises:
    InputError: it is no JSON, or of another shape.
    FileNotFoundError: it is not there.
  """
  path = location(path)
  check_regular(path)
  try:
    value = parse(path.read_bytes())
  except ValueError as e:
    raise InputError(f"{path}: damaged, {e}; {advice}") from e
  return check_json(path, value, shape, advice)


def check_json(path: epath.PathLike, value: Any, shape: Any, advice: str) -> Any:
  """Returns the value that was read from a file. Raises InputError, as `read_json`, where it is of another shape."""
  for found in wrong(value, shape):
    at = found.place or "what it holds"
    raise InputError(f"{path}: damaged, {at} is {shortened(found.value)}, and should be {found.expected}; {advice}")
  return value
