"""What gin-config keeps to itself: what it has parsed, and how it tells references, macros and constants apart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gin
from gin.config import ConfigurableReference


class Internals(NamedTuple):
  """Live objects of gin.

  Attributes:
    values: (scope, selector) -> argument -> value; a macro has the selector "gin.macro" and the argument "value".
    folders: where gin looks for files.
    readers: how it opens them: (what opens a file, what tells whether there is one).
    registry: selector -> what gin knows of that function or class.
    constants: name -> value.
    find: function or class -> what gin knows of it, or None where no file has imported it.
    flattened: all values within lists, tuples and dictionaries.
  """

  values: dict[tuple[str, str], dict[str, Any]]
  folders: list[str]
  readers: list[tuple[Callable, Callable]]
  registry: Any
  constants: Any
  find: Callable[[Callable], Any]
  flattened: Callable[[Any], Any]


def internals() -> Internals:
  """The only place that uses private names of gin-config, which is why setup.cfg holds it to 0.5."""
  of = gin.config
  return Internals(of._CONFIG, of._LOCATION_PREFIXES, of._FILE_READERS, of._REGISTRY, of._CONSTANTS,
                   of._inverse_lookup, of._iterate_flattened_values)


GIN = internals()


class Key(NamedTuple):
  """Whose argument a binding sets."""

  scope: str
  selector: str


def target(selector: str) -> Callable:
  """The function or class itself, without what gin makes of it."""
  return GIN.registry[selector].wrapped


def is_macro(value: Any) -> bool:
  return isinstance(value, ConfigurableReference) and value.configurable.selector == "gin.macro"


def is_required(value):
  """Whether it is the constant, as `%gin.REQUIRED` in a file or as what stands for a macro that nothing binds."""
  return value is gin.REQUIRED or isinstance(value, ConfigurableReference) and (
      value.configurable.selector == "gin.constant" and value.scopes == ["gin.REQUIRED"])
