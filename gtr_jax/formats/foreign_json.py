"""JSON files that other programs wrote: every field is looked at before it is used."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import diagnose
from gtr_jax.io.contents import check_contents
from gtr_jax.io.jsonl import kind_of, parse
from gtr_jax.io.paths import check_regular

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list",
          dict: "an object"}
FOLLOW_LINKS = "copy with links followed (cp -rL), or copy what they lead to as well"
_REQUIRED = object()


@dataclass(frozen=True)
class Fields:
  """The object in a JSON file.

  Attributes:
    place: of the file.
    contents: name -> value, of whatever kind.
    within: what of the file it is, as "lengths."; nothing for the whole of it.
  """

  place: epath.Path
  contents: Mapping[str, Any]
  within: str = ""

  def get(self, name: str, kind: type, default: Any = _REQUIRED, least: int | None = None,
          advice: str | None = None) -> Any:
    """The field `name`.

    Args:
      name: of the field.
      kind: int (512.0 too), float (whole numbers too), str, bool, list or dict.
      default: where there is no such field; where it is None, null is good too.
      least: the least that a number may be.
      advice: what to do where it is of another kind.

    Raises:
      InputError: the field is of another kind, no number (NaN), a text that is not valid Unicode, or not there without
        a default.
    """
    value = self.contents.get(name, default)
    if value is _REQUIRED:
      raise InputError(f"{self.place}: has no {self.within}{name}; copy the model's own {self.place.name} again")
    if value is None and default is None:
      return None
    if kind is int and type(value) is float and value.is_integer():  # To JSON they are the same.
      value = int(value)
    if not _is_a(value, kind) or least is not None and value < least:
      raise InputError(f"{self.place}: {self.within}{name} is {_shown(value)}; it must be {_WORDS[kind]}"
                       f"{'' if least is None else f' of at least {least}'}: " +
                       (advice or f"copy the model's own {self.place.name} again, or correct it"))
    return value

  def inner(self, name: str) -> "Fields":
    """The object in the field `name`."""
    return Fields(self.place, self.get(name, dict), f"{self.within}{name}.")

  def file(self, name: str) -> str:
    """The field `name`, a path below the file's folder."""
    path = self.get(name, str)
    check_below(path, f"{self.place}: {self.within}{name}")
    return path


def check_below(path: str, what: str) -> None:
  """Raises InputError, beginning with `what`, where a path that a file names leads out of its folder or is none."""
  if not is_text(path) or path.startswith("/") or "\0" in path or ".." in path.split("/"):
    raise InputError(f"{what} is {json.dumps(path):.80}; it must be the path of something in the same folder: put it "
                     "there, and name it so")


def is_text(value: Any) -> bool:
  """Whether it is a text of valid Unicode: JSON can write half of a surrogate pair."""
  try:
    return isinstance(value, str) and value.encode() is not None
  except UnicodeEncodeError:
    return False


def _is_a(value, kind):
  if kind is str:
    return is_text(value)
  if kind is float and type(value) in (int, float):
    try:
      return math.isfinite(value)
    except OverflowError:  # a whole number above the largest float
      return False
  return type(value) is kind


def _shown(value):
  try:
    return f"{json.dumps(value):.80}"
  except RecursionError:
    return "a value of many parts within each other"


def read_fields(place: epath.Path, optional: bool = False) -> Fields:
  """The object in a JSON file; an empty one where the file is not there and `optional`."""
  there = place.exists() or os.path.islink(place)
  return Fields(place, read_json(place) if there or not optional else {})


def read_json(place: epath.Path, kind: type = dict, missing: str = "copy the whole model") -> Any:
  """The contents of a JSON file, which must be of this kind; `missing` is what to do where it is not there."""
  check_regular(place)
  try:
    data = place.read_bytes()
  except FileNotFoundError as e:
    if os.path.islink(place):
      raise InputError(f"{place}: a link to nothing; {FOLLOW_LINKS}") from e
    raise InputError(f"{place}: no such file; {missing}") from e
  except OSError as e:
    raise InputError(f"{place}: cannot be read ({e.strerror}); put the file itself there, with the right to read it"
                     ) from e
  check_contents(place, data)
  try:
    contents = parse(data)
  except ValueError as e:
    if what := diagnose.not_text(data[:diagnose.BYTES], os.fspath(place)):
      raise InputError(f"{place}: is no JSON, but {what}") from e
    raise InputError(f"{place}: cannot be read ({e}); copy it again, or correct it") from e
  if not isinstance(contents, kind):
    raise InputError(f"{place}: holds {kind_of(contents)}, not {_WORDS[kind]}; copy it again")
  return contents

