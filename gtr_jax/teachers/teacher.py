"""What a teacher is: functions of texts, and a description that tells it from another teacher.

A teacher of one's own needs no more than a function:

>>> def encode(texts): ...                                            # float32 [texts, D]
>>> teach("reddit", "reddit_taught", teacher=Teacher(Described("mine", "version 3"), encode, encode))
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from gtr_jax.errors import InputError


class Encode(Protocol):
  """Vectors of texts."""

  def __call__(self, texts: Sequence[str], /) -> np.ndarray:
    """float32 `[texts, D]`."""


class Score(Protocol):
  """How well passages answer queries."""

  def __call__(self, pairs: Sequence[tuple[str, str]], /) -> np.ndarray:
    """float32 `[pairs]`, of (query, passage)."""


@dataclasses.dataclass(frozen=True)
class Described:
  """What the manifest says of a teacher.

  Attributes:
    name: as a user gives it; it decides nothing.
    content: a hash, or whatever else changes when the teacher's answers do.
    settings: of what it does with a text, such as its prompts; they decide its answers too.
  """

  name: str
  content: str
  settings: Mapping[str, str | int | None] = dataclasses.field(default_factory=dict)

  def decides(self) -> list[object]:
    """All by which its answers differ from another's."""
    return [self.content, dict(self.settings)]


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Gives vectors. Where both functions are the same one, a text that is a query and a passage is encoded once."""

  described: Described
  encode_query: Encode
  encode_passage: Encode

  def dimensions(self) -> int:
    """Numbers in a vector, asked of the teacher itself. Raises InputError where it does not give vectors."""
    both = [self.encode_query] + [self.encode_passage] * (self.encode_passage is not self.encode_query)
    widths = {checked(encode(["text"]), (1, None), self.described.name).shape[1] for encode in both}
    if len(widths) != 1:
      raise InputError(f"teacher {self.described.name}: its vectors of queries and passages have {sorted(widths)} "
                       "numbers; take one that gives both the same")
    return widths.pop()


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Gives scores."""

  described: Described
  score: Score


def checked(answers: object, shape: tuple[int | None, ...], name: str) -> np.ndarray:
  """What a teacher has given, as float32 of a shape, None being any number. Raises InputError where it is something
  else, or not finite."""
  found = np.asarray(answers, np.float32)
  if found.ndim != len(shape) or any(
      want not in (None, have) for want, have in zip(shape, found.shape, strict=True)):
    needed = ", ".join("dimensions" if number is None else str(number) for number in shape)
    raise InputError(f"teacher {name}: gave {list(found.shape)} numbers; [{needed}] is needed")
  if not np.isfinite(found).all():
    raise InputError(f"teacher {name}: what it gave is not finite; its weights are damaged, or it overflows")
  return found
