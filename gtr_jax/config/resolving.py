"""What a call uses of what was parsed: all of it as one text, and nothing left over."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin.config import ConfigurableReference

from gtr_jax.config.checking import check_together, problems_of_values
from gtr_jax.config.internals import GIN, Key, is_required
from gtr_jax.config.messages import near
from gtr_jax.config.parsing import configs_dir, problems_of_parsing, set_defaults
from gtr_jax.config.places import written
from gtr_jax.errors import InputError

_KEPT = ("MODEL_DIR",)  # Macros that the resolved text has too: who repeats a run gives another one.


def load(entry: Callable, gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = (),
         defaults: Mapping[str, Any] | None = None, first: str = "") -> str:
  """`parse`, `set_defaults` and `resolved`: what is wrong with any of it is said at once.

  Args:
    entry: as for `resolved`.
    gin_files: as for `parse`.
    bindings: likewise.
    search_paths: likewise.
    defaults: as for `set_defaults`.
    first: as for `parse`.

  Raises:
    InputError: as these.
  """
  problems = problems_of_parsing(gin_files, bindings, search_paths, first)
  set_defaults(defaults or {})
  try:
    text = resolved(entry, after=problems)
  except NotConfiguredError as e:
    raise InputError("; ".join(problems) or str(e)) from e
  return text


class NotConfiguredError(InputError):
  """There is nothing to resolve."""


def resolved(entry: Callable, after: Sequence[str] = ()) -> str:
  """What calling `entry` uses: its bindings and those of all it refers to, sorted, macros but MODEL_DIR substituted.

  The text is a gin file that configures the same call.

  Args:
    entry: what gin files configure.
    after: what parsing has found wrong. What may only come of that is not said again.

  Raises:
    InputError: of all at once: a binding is still gin.REQUIRED, a binding that the user wrote is used by
      nothing, values are not what the annotations of what they are bound to say, or do not fit together.
  """
  configurable = GIN.find(entry)
  if not configurable or not any(selector == configurable.selector for _, selector in GIN.values):
    raise NotConfiguredError("the gin files configure no run: add one, such as --gin_file=runs/train.gin")
  used, macros = _reachable(entry)
  problems = [*after, *([] if after else _missing(used, macros)), *_unused(used, macros, bool(after)),
              *problems_of_values(used, macros)]
  if problems:
    raise InputError("; ".join(problems))
  check_together(entry, macros)
  imports, lines = set(), set()
  kept = {f"{name} = {_text(value, macros)}" for name, value in macros.items() if name in _KEPT}
  for (key, arg), value in used.items():
    lines.add(f"{key.scope + '/' if key.scope else ''}{key.selector}.{arg} = {_text(value, macros)}")
    selectors = [key.selector, *(selector for _, selector in _follow(value, (), {}))]
    imports |= {f"import {selector.rpartition('.')[0]}" for selector in selectors}
  return "\n".join(["from __gin__ import dynamic_registration", *sorted(imports), "", *sorted(kept), *sorted(lines),
                    ""])


def _missing(used: Mapping[tuple[Key, str], Any], macros: Mapping[str, Any]) -> list[str]:
  hints = {"MODEL": "add a model, such as --gin_file=models/t5_small.gin, before the run",
           "T5_CHECKPOINT": "give --gin.T5_CHECKPOINT=\"'path'\", the T5 model to start from",
           "INITIAL_CHECKPOINT_PATH": "give --gin.INITIAL_CHECKPOINT_PATH=\"'path'\", the model to start from"}
  made_known = {name for key, args in GIN.values.items() if key[1] == "gin.macro" for name in [key[0]]}
  out = []
  for name in sorted({value for key, value in _required(used, macros)}):
    unknown = name in macros and name not in made_known and "." not in name
    advice = hints.get(name) or f"give --gin.{name}=VALUE or bind it in a gin file"
    out.append(f"{name} is not set: {advice}" + near(name, made_known) * unknown)
  return out


def _unused(used: Mapping[tuple[Key, str], Any], macros: Mapping[str, Any], only_near: bool) -> list[str]:
  """Bindings in files and flags that nothing uses; `only_near`: those whose name is near to one that is used."""
  out = {}
  for key, args in GIN.values.items():
    for arg in args:
      if (Key(*key), arg) in used or key[0] in macros and key[1] == "gin.macro":
        continue
      source = written(Key(*key), arg)[1]
      if source.startswith((str(configs_dir()), "gin:")):  # Nobody has written these down here.
        continue
      name = key[0] if key[1] == "gin.macro" else ".".join(filter(None, [*key, arg]))
      advice = near(name, macros) if key[1] == "gin.macro" else ""
      if advice or not only_near:
        out[source, name] = f"{source}: nothing in this run uses {name}{advice or '; remove it or correct its name'}"
  return list(out.values())


def _reachable(entry: Callable) -> tuple[dict[tuple[Key, str], Any], dict[str, Any]]:
  """Every (binding, value) and every macro that a call of `entry` can reach through references."""
  config = GIN.values
  used: dict[tuple[Key, str], Any] = {}
  macros: dict[str, Any] = {}
  todo: list[tuple[tuple[str, ...], str]] = [((), GIN.find(entry).selector)]
  seen = set()
  while todo:
    scopes, selector = todo.pop()
    if (scopes, selector) in seen:
      continue
    seen.add((scopes, selector))
    values = {}  # Gin applies the bindings of no scope first, then of each longer prefix of the scopes.
    for depth in range(len(scopes) + 1):
      scope = "/".join(scopes[:depth])
      for arg, value in config.get((scope, selector), {}).items():
        values[arg] = ((Key(scope, selector), arg), value)
        used[Key(scope, selector), arg] = value
    for _, value in values.values():
      todo.extend(_follow(value, scopes, macros))
  return used, macros


def _follow(value: Any, scopes: tuple[str, ...], macros: dict[str, Any],
            inside: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
  for ref in GIN.flattened(value):
    if not isinstance(ref, ConfigurableReference):
      continue
    selector = ref.configurable.selector
    if selector == "gin.macro":
      name = "/".join(ref.scopes)
      if name in inside:
        raise InputError(f"{written(Key(name, selector), 'value')[1]}: {name} is made of itself; give it a value")
      bound_value = GIN.values.get((name, "gin.macro"), {}).get("value", gin.REQUIRED)
      macros[name] = bound_value
      yield from _follow(bound_value, scopes, macros, (*inside, name))
    elif selector != "gin.constant":
      yield (*scopes, *ref.scopes), selector


def _required(used, macros):
  for (key, arg), value in used.items():
    if is_required(value):
      yield key, f"{key.selector}.{arg}"
  for name, value in macros.items():
    if is_required(value):
      yield name, name


def _text(value: Any, macros: Mapping[str, Any]) -> str:
  """A value as it would stand in a gin file, macros replaced by what they stand for."""
  if isinstance(value, ConfigurableReference):
    if value.configurable.selector == "gin.macro":
      name = "/".join(value.scopes)
      return f"%{name}" if name in _KEPT else _text(macros[name], macros)
    return "@" + "/".join([*value.scopes, value.configurable.selector]) + ("()" if value.evaluate else "")
  if isinstance(value, dict):
    return "{" + ", ".join(f"{_text(k, macros)}: {_text(v, macros)}" for k, v in value.items()) + "}"
  if isinstance(value, tuple):
    return "(" + "".join(f"{_text(v, macros)}, " for v in value).rstrip() + ")"
  if isinstance(value, list):
    return "[" + ", ".join(_text(v, macros) for v in value) + "]"
  return repr(value)
