"""Values against annotations."""

import collections.abc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import pytest

from gtr_jax.errors import InputError
from gtr_jax.values.check import Reference, check, check_arguments, check_fields, hints, wrong
from gtr_jax.values.ranges import NonNegative, Positive, Range, Says, Share


class Made(NamedTuple):
  """What a function makes."""

  x: int


def makes_made(rate: float = 0.5) -> Made:
  check_arguments(makes_made, locals())
  return Made(1)


def makes_anything(x):
  return x


@runtime_checkable
class Has(Protocol):
  def method(self) -> int: ...


class HasMethod:
  def __init__(self, size: Positive):
    self.size = size

  def method(self):
    return self.size


class Inherits(HasMethod):
  pass


class Shape(TypedDict):
  name: str
  sizes: NotRequired[list[Positive]]


@pytest.mark.parametrize("value, hint", [
    (3, int), (3, float), (2.5, float), (np.int64(3), int), (np.float32(0.5), float), (True, bool), ("x", str),
    (None, int | None), (None, None), ([1], Sequence[int]), ((1, 2), list[int]), ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]), ({"a": 1}, Mapping[str, float]), (-1, Literal[-1] | Positive), (0, NonNegative),
    (1, Share), (0.0, Share), (len, Callable), (Made(1), Made), (HasMethod(1), Has), ({"name": "a"}, Shape),
    ({"name": "a", "sizes": [1], "more": 3}, Shape), (object(), Any), ("x", os.PathLike | str),
    ("anything", "a hint that is none"), ({1, 2}, set[str]),
])
def test_right(value, hint):
  assert list(wrong(value, hint)) == []


@pytest.mark.parametrize("value, hint, message", [
    (True, int, "x is True: give a whole number"), (3.0, int, "x is 3.0: give a whole number without a point: 3"),
    (3.5, int, "x is 3.5: give a whole number"), ("3", float, "x is '3': give a number"),
    (float("nan"), float, "x is nan: give a number"), (10**400, float, "give a number"), (1, bool, "True or False"),
    (np.bool_(True), int, "give a whole number"), ("ab", Sequence[str], "x is 'ab': give a list, in []"),
    ({"a": 1}, Sequence[str], "give a list"), ([1], Mapping[str, int], "give a dictionary, in {}"),
    ([1, "b"], Sequence[int], "x[1] is 'b': give a whole number"), ((1,), tuple[int, str], "give 2 values"),
    ({"a": {"b": 0}}, Mapping[str, Mapping[str, Positive]], "x['a']['b'] is 0: give a positive whole number"),
    (None, int | str, "x is None: give a whole number, or a string"),
    ([0], int | list[Positive], "x[0] is 0: give a positive whole number"),
    (0, Literal[-1] | Positive, "x is 0: give a positive whole number"),
    ({"sizes": []}, Shape, "x['name'] is missing: give a string"),
    ({"name": "a", "sizes": [0]}, Shape, "x['sizes'][0] is 0: give a positive"), ([], Shape, "give a dictionary"),
    (1, Annotated[float, Range(0, below=1)], "give a number from 0 to below 1"),
    (0, Annotated[float, Range(above=0, most=1)], "give a number above 0 and up to 1"),
    (5, Annotated[int, Range(most=4)], "give a whole number of at most 4"),
    (3, Annotated[str, Says("one of those")], "x is 3: give one of those"), (3, Made, "that makes a Made"),
    (3, Callable, "give a reference @module.name"), ("a\nb", int, "x is 'a\\nb': give"),
    ("y" * 9999, int, "give a whole number"), ([[[[[[[[1]]]]]]]], int, "give a whole number"),
])
def test_wrong(value, hint, message):
  found = list(wrong(value, hint))
  sentence = found[0].sentence("x")
  assert message in sentence and "\n" not in sentence and len(sentence) < 300
  with pytest.raises(InputError):
    check(value, hint, "x")


@pytest.mark.parametrize("target, called, hint, message", [
    (makes_made, True, Made, None), (makes_made, False, Made, "write it with (), as @m.f()"),
    (makes_made, False, Callable[..., Made], None), (makes_made, False, Callable, None),
    (makes_made, False, collections.abc.Callable, None), (makes_made, True, Made | None, None),
    (makes_made, True, Callable[..., Made], "write it without (), as @m.f"), (makes_made, True, int, "makes a Made"),
    (makes_made, True, Any, None), (makes_anything, True, Made, None), (HasMethod, True, Has, None),
    (HasMethod, True, Made, "which makes a HasMethod"), (HasMethod, False, type, None),
    (makes_made, True, Annotated[float, Range(0)], "give a number of 0 or more"),
    (HasMethod, False, Callable[..., Made], "which is a HasMethod: give a reference @module.name to what makes a Made"),
])
def test_references(target, called, hint, message):
  found = [of.sentence("x") for of in wrong(Reference("@m.f" + "()" * called, target, called), hint)]
  assert found == [] if message is None else message in found[0]


def test_arguments_and_fields():
  @dataclass(frozen=True)
  class Config:
    size: Positive
    share: Share = 0.5

    def __post_init__(self):
      check_fields(self)

  Config(1)
  with pytest.raises(InputError, match="Config.size is 1.0: give a whole number without a point: 1"):
    Config(1.0)
  with pytest.raises(InputError, match="Config.share is 2: give a number from 0 to 1"):
    Config(1, 2)
  with pytest.raises(InputError, match="makes_made.rate is 'x': give a number"):
    makes_made("x")
  assert hints(Inherits) == {"size": Positive}
