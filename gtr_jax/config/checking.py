"""Whether the values that are bound are what annotations say, and fit together."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gin.config import ConfigurableReference

from gtr_jax.config.internals import GIN, Key, is_macro, is_required, target
from gtr_jax.config.parsing import configs_dir
from gtr_jax.config.places import written
from gtr_jax.errors import InputError
from gtr_jax.values.check import Reference, hints, wrong


def problems_of_values(used: Mapping[tuple[Key, str], Any], macros: Mapping[str, Any]) -> list[str]:
  """What is wrong with values that are not of the type or in the range of what they are bound to."""
  own = str(configs_dir())
  problems: dict[tuple[str, str], str] = {}
  for (key, arg), value in used.items():
    hint = hints(target(key.selector)).get(arg, Any)
    while is_macro(value):  # Named is what holds the value itself.
      key, arg, value = Key("/".join(value.scopes), "gin.macro"), "value", macros["/".join(value.scopes)]
    if is_required(value):
      continue  # It is missing.
    name, source = written(key, arg)
    for found in wrong(_plain(value, macros), hint):
      where = "" if source == "gin" or source.startswith(("--gin.", own, "gin:")) else f"{source}: "
      problems.setdefault((name, found.place), where + found.sentence(name))
  return list(problems.values())


def check_together(entry: Callable, macros: Mapping[str, Any]) -> None:
  """Raises InputError where values do not fit together, or a reference lacks one that it needs."""
  _make((), GIN.find(entry).selector, macros)


def _make(scopes: tuple[str, ...], selector: str, macros: Mapping[str, Any], called: bool = True) -> Any:
  """Calls dataclasses with what is bound to them, and the `check_given` of others, for what they refuse."""
  function = target(selector)
  given: dict[str, Any] = {}
  for depth in range(len(scopes) + 1):
    given |= GIN.values.get(("/".join(scopes[:depth]), selector), {})

  def made(value):
    if isinstance(value, ConfigurableReference) and not is_macro(value) and not is_required(value):
      return _make((*scopes, *value.scopes), value.configurable.selector, macros, value.evaluate)
    return _plain(value, macros, made)

  given = {arg: made(value) for arg, value in given.items()}
  if called and (missing := _required_of(function) - given.keys()):
    names = [f"{'.'.join(selector.split('.')[-2:])}.{name}" for name in sorted(missing)]
    raise InputError("; ".join(f"{name} is not set: give --gin.{name}=VALUE or bind it in a gin file"
                               for name in names))
  if hasattr(function, "check_given"):
    function.check_given(**given)
  if called and _is_plain_dataclass(function) and not any(map(_has_reference, given.values())):
    return function(**given)
  return Reference("@" + ".".join(selector.split(".")[-2:]) + "()" * called, function, called)


def _required_of(target: Callable) -> set[str]:
  """Its parameters without a default, where Python can tell."""
  try:
    parameters = inspect.signature(target).parameters.values()
  except (TypeError, ValueError):
    return set()
  return {p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _is_plain_dataclass(target: Callable) -> bool:
  return getattr(getattr(target, "__dataclass_params__", None), "frozen", False)


def _has_reference(value: Any) -> bool:
  return isinstance(value, Reference) or any(isinstance(of, Reference) for of in GIN.flattened([value]))


def _plain(value: Any, macros: Mapping[str, Any], reference: Callable | None = None) -> Any:
  """A value with macros replaced by what they stand for, and references by `Reference`s or what is made of them."""
  again = lambda of: _plain(of, macros, reference)  # noqa: E731
  if isinstance(value, ConfigurableReference):
    if is_macro(value):
      return again(macros["/".join(value.scopes)])
    if value.configurable.selector == "gin.constant":
      return GIN.constants["/".join(value.scopes)]
    if reference:
      return reference(value)
    text = "@" + "/".join([*value.scopes, ".".join(value.configurable.selector.split(".")[-2:])])
    return Reference(text + "()" * value.evaluate, target(value.configurable.selector), value.evaluate)
  if isinstance(value, dict):
    return {again(key): again(of) for key, of in value.items()}
  return type(value)(map(again, value)) if type(value) in (list, tuple) else value
