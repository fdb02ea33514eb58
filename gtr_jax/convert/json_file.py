"""JSON files that other programs wrote: every field is looked at before it is used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.paths import check_regular

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list",
          dict: "an object"}
_REQUIRED = object()


@dataclass(frozen=True)
class Fields:
  """The object in a JSON file.

  Attributes:
    place: of the file.
    contents: name -> value, of whatever kind.
  """

  place: epath.Path
  contents: Mapping[str, Any]

  def get(self, name: str, kind: type, default: Any = _REQUIRED, least: int | None = None) -> Any:
    """The field `name`.

    Args:
      name: of the field.
      kind: int, float (whole numbers too), str, bool, list or dict.
      default: where there is no such field; where it is None, null is good too.
      least: the least that a number may be.

    Raises:
      InputError: the field is of another kind, or not there without a default.
    """
    value = self.contents.get(name, default)
    if value is _REQUIRED:
      raise InputError(f"{self.place}: has no {name}; copy the model's own {self.place.name} again")
    if value is None and default is None:
      return None
    if type(value) is not kind and (kind, type(value)) != (float, int) or least is not None and value < least:
      raise InputError(f"{self.place}: {name} is {json.dumps(value):.80}; it must be {_WORDS[kind]}"
                       f"{'' if least is None else f' of at least {least}'}: copy the model's own {self.place.name} "
                       "again, or correct it")
    return value


def read_fields(place: epath.Path, optional: bool = False) -> Fields:
  """The object in a JSON file; an empty one where the file is not there and `optional`."""
  return Fields(place, read_json(place) if not optional or place.exists() else {})


def read_json(place: epath.Path, kind: type = dict) -> Any:
  """The contents of a JSON file, which must be of this kind."""
  check_regular(place)
  try:
    contents = json.loads(place.read_text())
  except FileNotFoundError as e:
    raise InputError(f"{place}: no such file; copy the whole model") from e
  except OSError as e:
    raise InputError(f"{place}: cannot be read ({e.strerror}); copy it again") from e
  except (ValueError, RecursionError) as e:
    raise InputError(f"{place}: is no JSON ({e}); copy it again") from e
  if not isinstance(contents, kind):
    raise InputError(f"{place}: holds a {type(contents).__name__}, not a {kind.__name__}; copy it again")
  return contents
