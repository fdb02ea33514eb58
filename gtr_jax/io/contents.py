"""What lies where a file should: its first bytes tell what a download or a copy has left instead of it."""

import re

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.paths import check_regular

_BYTES = 512  # enough to tell
_POINTERS = {b"version https://git-lfs": "a git-lfs pointer, not the file: run git lfs pull where it was cloned, or "
                                         "download the file itself",
             b"version https://hawser": "a git-lfs pointer, not the file: run git lfs pull where it was cloned",
             b"# xet version": "a pointer of git-xet, not the file: download the file itself",
             b"/annex/objects/": "a git-annex pointer, not the file: run git annex get where it was cloned"}
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml|<error>)", re.IGNORECASE)


def first_bytes(path: epath.Path, count: int = _BYTES) -> bytes:
  """What a file begins with; raises InputError for a named pipe or a device."""
  check_regular(path)
  with path.open("rb") as file:
    return file.read(count)


def stand_in(beginning: bytes) -> str | None:
  """What a file with these first bytes is, and what to do, where it only stands in for another; else None."""
  for mark, text in _POINTERS.items():
    if beginning.startswith(mark):
      return text
  if _PAGE.match(beginning.removeprefix(b"\xef\xbb\xbf")):
    return ("a page of the web (HTML or XML), not the file: download the file itself, on the Hugging Face hub from "
            "/resolve/ instead of /blob/")
  return None


def check_contents(path: epath.Path, beginning: bytes | None = None) -> None:
  """Raises InputError where a file is empty or only stands in for another.

  Args:
    path: of the file, which is there.
    beginning: its first bytes, if they are known.
  """
  beginning = first_bytes(path) if beginning is None else beginning[:_BYTES]
  if not beginning:
    raise InputError(f"{path}: is empty; copy it again")
  if (text := stand_in(beginning)) is not None:
    raise InputError(f"{path}: {text}")
