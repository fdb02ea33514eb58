"""The parser of the command line, and types of its flags: numbers in their ranges, and paths."""

import argparse
import os
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from gtr_jax.errors import InputError
from gtr_jax.io import paths as places
from gtr_jax.values.check import wrong
from gtr_jax.values.ranges import MOST, Length, NonNegative, Positive, Range, Seed, Share


class Parser(argparse.ArgumentParser):
  """Says in one line what is wrong with the flags, as the commands do of all else."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


def of(hint: Any) -> Callable[[str], Any]:
  """The type of a flag whose value is a number as this annotation says: `of(Annotated[int, Range(1, 10)])`."""

  def number(text: str) -> Any:
    value = _read(text)
    for found in wrong(value, hint):
      raise argparse.ArgumentTypeError(f"{text!r:.80}: give {found.expected}")
    return value

  return number


def _read(text: str) -> Any:
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:  # Also of more digits than Python reads.
      continue
  return text


positive = of(Positive)
non_negative = of(NonNegative)
whole = of(Annotated[int, Range(-MOST, MOST)])
length = of(Length)
seed = of(Seed)
number = of(float)
above_0 = of(Annotated[float, Range(above=0)])
share = of(Share)
share_below_1 = of(Annotated[float, Range(0, below=1)])


def path(text: str) -> str:
  """A path, with `~` at its beginning as in a shell; otherwise as it was typed: `./name` is no name on a hub."""
  try:
    return places.expanded(text)
  except InputError as e:
    raise argparse.ArgumentTypeError(str(e)) from e


def paths(text: str) -> str:
  """Paths with commas between them; there may be none."""
  return ",".join(path(one) for one in text.split(",") if one)


def named_path(text: str) -> tuple[str, str]:
  """(name, path) of PATH, which has no name, or of NAME=PATH; there may be more = in either."""
  places = [i for i, character in enumerate(text) if character == "="]
  if not places or text.startswith("~") or os.path.exists(text):
    return "", path(text)
  at = next((i for i in places if text[i + 1:] and os.path.exists(os.path.expanduser(text[i + 1:]))), places[0])
  return text[:at], path(text[at + 1:])
