"""Whether values are what annotations say: of functions that gin configures, of dataclasses, and of JSON files.

A range belongs to the type: `temperature: Annotated[float, Range(above=0)]`. What is declared so once is checked where
a gin file binds it, and where Python calls it. `bool` is no number here, a string no sequence, no float an integer.
"""

import collections.abc
import functools
import inspect
import math
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Union

from gtr_jax.errors import InputError
from gtr_jax.values.ranges import Range, Says

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60


class _Missing:
  def __repr__(self):
    return "missing"


MISSING = _Missing()


class Reference(NamedTuple):
  """Stands for what a configuration names and Python makes later: `@adafactor()`, or without () the function itself."""

  text: str
  target: Callable
  called: bool


class Wrong(NamedTuple):
  """A value that is not what it should be: its place in the whole ("['inputs']"), itself, and what belongs there."""

  place: str
  value: Any
  expected: str

  def sentence(self, name: str) -> str:
    """"NAME['inputs'] is 0: give a whole number of 2 or more"."""
    if isinstance(self.value, Reference):
      return f"{name}{self.place} is {self.value.text}{self.expected}"
    return f"{name}{self.place} is {shortened(self.value)}: give {self.expected}"


def shortened(value: Any) -> str:
  """Its repr, on one line and not long."""
  try:
    return " ".join(_SHORT.repr(value).split())
  except (ValueError, RecursionError):  # An integer of thousands of digits.
    return f"a very long {type(value).__name__}"


def check(value: Any, hint: Any, name: str, advice: str = "") -> Any:
  """Returns the value. Raises InputError where it is not what the annotation says; `advice` ends the message."""
  for found in wrong(value, hint):
    raise InputError(found.sentence(name) + advice)
  return value


def check_fields(of: Any) -> None:
  """Of a dataclass, in its `__post_init__`. Raises InputError, which names class and field."""
  for name, hint in hints(type(of)).items():  # type: ignore[arg-type]  # To mypy no class is hashable.
    if hasattr(of, name) and typing.get_origin(hint) is not typing.ClassVar:  # Which nobody gives.
      check(getattr(of, name), hint, f"{type(of).__name__}.{name}")


def check_arguments(function: Callable, arguments: Mapping[str, Any]) -> None:
  """Of a function's own call: `check_arguments(adafactor, locals())` in its first line. Raises InputError."""
  for name, hint in hints(function).items():
    if name in arguments:
      check(arguments[name], hint, f"{function.__name__}.{name}")


@functools.cache
def hints(target: Callable) -> dict[str, Any]:
  """Parameter -> annotation of a function, or of the constructor of a class; "return" is what a function makes."""
  of = target
  if inspect.isclass(target) and inspect.isfunction(target.__init__) and not hasattr(target, "__dataclass_fields__"):
    of = target.__init__
  try:
    return dict(typing.get_type_hints(of, include_extras=True))
  except (NameError, TypeError, AttributeError):  # Of a user's own code: names that exist for type checkers only.
    return {}


def wrong(value: Any, hint: Any) -> Iterator[Wrong]:
  """All that is not as the annotation says; nothing where it says nothing that could be checked."""
  said = None
  notes: list[Range] = []
  while typing.get_origin(hint) in (Annotated, NotRequired):
    hint, *more = typing.get_args(hint)
    notes += [note for note in more if isinstance(note, Range)]
    said = next((note.text for note in more if isinstance(note, Says)), said)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if isinstance(value, Reference):
    yield from _wrong_reference(value, hint, said or _expected(hint, notes, value))
  elif origin in (Union, types.UnionType):
    yield from _wrong_union(value, args, said)
  elif not _is(value, hint) or not all(note.holds(value) for note in notes):
    yield Wrong("", value, said or _expected(hint, notes, value))
  elif typing.is_typeddict(hint):
    for name, of in typing.get_type_hints(hint, include_extras=True).items():
      if name in value:
        yield from _inside(f"[{name!r}]", value[name], of)
      elif name in hint.__required_keys__:
        yield Wrong(f"[{name!r}]", MISSING, _expected(of, (), None))
  elif isinstance(value, Mapping) and len(args) == 2:
    for key, of in value.items():
      for _ in wrong(key, args[0]):
        yield Wrong("", value, f"keys that are each {_expected(args[0], (), key)}, not {shortened(key)}")
      yield from _inside(f"[{shortened(key)}]", of, args[1])
  elif isinstance(value, list | tuple) and args and origin is not collections.abc.Callable:
    fixed = origin is tuple and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
      yield Wrong("", value, f"{len(args)} values")
      return
    for i, of in enumerate(value):
      yield from _inside(f"[{i}]", of, args[i] if fixed else args[0])


def _inside(place: str, value: Any, hint: Any) -> Iterator[Wrong]:
  for found in wrong(value, hint):
    yield found._replace(place=place + found.place)


def _wrong_union(value: Any, members: Sequence[Any], said: str | None) -> Iterator[Wrong]:
  found = [list(wrong(value, member)) for member in members]
  if not all(found):
    return
  near = [of for of, member in zip(found, members, strict=True) if _is(value, _bare(member))]
  if len(near) == 1 and not (said and any(of.place == "" for of in near[0])):  # Of the right kind, and wrong inside.
    yield from near[0]
  else:
    yield Wrong("", value, said or ", or ".join(dict.fromkeys(_expected(member, (), value) for member in members)))


def _wrong_reference(value: Reference, hint: Any, expected: str) -> Iterator[Wrong]:
  if _refers(value, hint):
    return
  if _refers(value._replace(called=not value.called), hint):
    written = value.text.removesuffix("()") if value.called else f"{value.text}()"
    yield Wrong("", value, f": write it with{'out' * value.called} (), as {written}")
  else:
    makes = _result(value.target)
    what = f", which {'makes' if value.called else 'is'} {_name(makes if value.called else value.target)}" * (
        makes is not Any)
    yield Wrong("", value, f"{what}: give {expected}")


def _refers(value: Reference, hint: Any) -> bool:
  """Whether what the reference stands for may be of this type."""
  hint = _bare(hint)
  if hint is Any:
    return True
  if typing.get_origin(hint) in (Union, types.UnionType):
    return any(_refers(value, member) for member in typing.get_args(hint))
  if value.called:
    return _fits(_result(value.target), hint)
  if typing.get_origin(hint) is collections.abc.Callable:
    args = typing.get_args(hint)
    return not args or _fits(_result(value.target), args[-1])
  return hint in (Callable, collections.abc.Callable) or hint is type and inspect.isclass(value.target)


def _result(target: Callable) -> Any:
  """What calling it makes, as far as that is said."""
  return target if inspect.isclass(target) else _bare(hints(target).get("return", Any))


def _fits(made: Any, hint: Any) -> bool:
  """Whether a value of one type may be one of the other; True where that cannot be told."""
  made, hint = _bare(made), _bare(hint)
  for of, other in ((made, hint), (hint, made)):
    if typing.get_origin(of) in (Union, types.UnionType):
      return any(_fits(member, other) for member in typing.get_args(of))
  made, hint = (typing.get_origin(of) or of for of in (made, hint))
  if made is int and hint is float:
    return True
  try:
    return Any in (made, hint) or issubclass(made, hint)
  except TypeError:
    return True


def _bare(hint: Any) -> Any:
  while typing.get_origin(hint) is Annotated:
    hint = typing.get_args(hint)[0]
  return hint


def _is(value: Any, hint: Any) -> bool:
  """Whether the value itself is of the type, whatever it holds."""
  origin = typing.get_origin(hint) or hint
  if origin is Any or not (inspect.isclass(origin) or origin in (None, Literal)):
    return True
  if origin in (None, type(None)):
    return value is None
  if origin is Literal:
    return any(value == of and type(value) is type(of) for of in typing.get_args(hint))
  if origin in (int, float):
    kind = numbers.Integral if origin is int else numbers.Real
    return not isinstance(value, bool) and isinstance(value, kind) and (origin is int or _is_finite(value))
  if origin is collections.abc.Callable:
    return callable(value)
  if typing.is_typeddict(origin):
    return isinstance(value, Mapping)
  if origin in (collections.abc.Sequence, list, tuple):  # A gin file may write either.
    return isinstance(value, list | tuple)
  try:
    return isinstance(value, origin)
  except TypeError:  # A protocol that cannot be asked.
    return True


def _is_finite(value: Any) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:
    return False


def _expected(hint: Any, notes: Sequence[Range], value: Any) -> str:
  """In words, what the type is."""
  while typing.get_origin(hint) is Annotated:
    hint, *more = typing.get_args(hint)
    for note in more:
      if isinstance(note, Says):
        return note.text
    notes = [*notes, *(note for note in more if isinstance(note, Range))]
  origin = typing.get_origin(hint) or hint
  if origin in (Union, types.UnionType):
    return ", or ".join(dict.fromkeys(_expected(member, (), value) for member in typing.get_args(hint)))
  if origin is int and isinstance(value, float) and value.is_integer() and all(note.holds(value) for note in notes):
    return f"a whole number without a point: {int(value)}"
  if origin in (int, float):
    return next((note.words(origin is int, value) for note in notes), "a whole number" if origin is int else "a number")
  if origin is Literal:
    return " or ".join(map(repr, typing.get_args(hint)))
  if origin in (collections.abc.Sequence, list, tuple):
    return "a list, in []"
  if typing.is_typeddict(origin) or inspect.isclass(origin) and issubclass(origin, Mapping):
    return "a dictionary, in {}"
  if origin is collections.abc.Callable:
    makes = _bare(typing.get_args(hint)[-1]) if typing.get_args(hint) else Any
    known = inspect.isclass(makes) and makes is not Any
    return "a reference @module.name" + (f" to what makes {_name(makes)}" if known else "")
  return {bool: "True or False", str: "a string", os.PathLike: "a string", type(None): "None", None: "None"}.get(
      origin, f"a reference @module.name() that makes {_name(origin)}")


def _name(of: Any) -> str:
  name = getattr(of, "__name__", str(of))
  return f"a{'n' * (name[:1].lower() in 'aeiou')} {name}"
