"""Experiments are gin files: reading them, refusing what nothing uses, and printing what a run resolved to.

Library code knows nothing of gin: files begin with `from __gin__ import dynamic_registration` and name our functions
and classes by their module. This is the only module that imports gin.
"""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
from gin import config_parser

from gtr_jax.errors import InputError
from gtr_jax.values.check import Reference, hints, wrong

_GIN_ERRORS = (OSError, ValueError, SyntaxError, NameError, AttributeError, ImportError, RecursionError)


def configs_dir() -> Path:
  """The folder that holds models/, runs/ and meshes/: `gtr_jax/gin` once installed, `gin` in a checkout."""
  package = Path(__file__).parent.parent
  return package / "gin" if (package / "gin").is_dir() else package.parent / "gin"


def parse(gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()) -> None:
  """Reads gin files, then single bindings ("NAME=VALUE"); later ones win. Replaces what was read before.

  A relative file name is looked for in the current folder, in `search_paths`, and among the configurations that come
  with gtr_jax (`runs/pretrain.gin`); an include, in the latter two and then beside the file that has it.

  Raises:
    InputError: for a file that is not there, a syntax error, an unknown name or parameter.
  """
  gin.clear_config()
  _sources.clear()
  _imports.clear()
  # Gin would look in the current folder first, and trips over a folder there that has an include's name.
  folders = [str(Path(os.path.expanduser(p)).resolve()) for p in search_paths]
  gin.config._LOCATION_PREFIXES[:] = [*folders, str(configs_dir())]
  for name in gin_files:
    path = _find(os.path.expanduser(name), ["", *gin.config._LOCATION_PREFIXES])
    if (own := str(Path(path).parent)) not in gin.config._LOCATION_PREFIXES:
      gin.config._LOCATION_PREFIXES.append(own)
    try:
      gin.parse_config_file(path)
      _record_sources(path)
    except _GIN_ERRORS as e:
      place = f"{path}: " * isinstance(e, UnicodeDecodeError | RecursionError)
      raise InputError(place + _one_line(e)) from e
  # A binding may name whatever the files have imported, as if it stood at the end of the last one.
  imports = "from __gin__ import dynamic_registration\n" + "\n".join(_imports)
  for binding in bindings:
    try:
      gin.parse_config(f"{imports}\n{binding}\n")
    except _GIN_ERRORS as e:
      message = re.sub(r" (In bindings string line|\(line) .*", "", _one_line(e))
      hint = "; a string needs quotes of its own, as in --gin.NAME=\"'text'\"" if "parse" in message else ""
      raise InputError(f"--gin.{binding:.200}: {message}{hint}") from e
    _record(binding.split("=")[0].strip(), f"--gin.{binding}")


def set_defaults(macros: Mapping[str, Any]) -> None:
  """Binds macros that no file and no flag has bound, or that one has bound to gin.REQUIRED."""
  for name, value in macros.items():
    there = gin.config._CONFIG.get((name, "gin.macro"))
    if there is None or _is_required(there.get("value")):
      gin.bind_parameter(f"{name}/gin.macro.value", value)
      _record(name, str(configs_dir()))


def bindings(configurable: Callable) -> dict[str, Any]:
  """What the parsed configuration binds of this function's or class's parameters, references evaluated."""
  found = gin.config._inverse_lookup(configurable)  # None where no file has imported it.
  return gin.get_bindings(found.selector) if found else {}


def bound(entry: Callable) -> Callable:
  """`entry` with the parsed configuration as its defaults."""
  return gin.get_configurable(entry)


class _Key(NamedTuple):
  scope: str
  selector: str


def resolved(entry: Callable) -> str:
  """What calling `entry` uses: its bindings and those of all it refers to, sorted, with the macros substituted.

  The text is a gin file that configures the same call.

  Raises:
    InputError: if a binding is still gin.REQUIRED, a binding outside gtr_jax's own files is used by nothing, or values
      are not what the annotations of what they are bound to say, or do not fit together.
  """
  configurable = gin.config._inverse_lookup(entry)
  if not configurable or not any(selector == configurable.selector for _, selector in gin.config._CONFIG):
    raise InputError("the gin files configure no run: add one, such as --gin_file=runs/train.gin")
  used, macros = _reachable(entry)
  missing = sorted({value for key, value in _required(used, macros)})
  if missing:
    hints = {"MODEL": "add a model, such as --gin_file=models/t5_small.gin, before the run",
             "T5_CHECKPOINT": "give --gin.T5_CHECKPOINT=\"'path'\", the T5 model to start from",
             "INITIAL_CHECKPOINT_PATH": "give --gin.INITIAL_CHECKPOINT_PATH=\"'path'\", the model to start from"}
    raise InputError("; ".join(f"{m} is not set: {hints.get(m, f'give --gin.{m}=VALUE or bind it in a gin file')}"
                               for m in missing))
  own = str(configs_dir())
  for key, args in gin.config._CONFIG.items():
    for arg in args:
      if (_Key(*key), arg) in used or key[0] in macros and key[1] == "gin.macro":
        continue
      source = _written(_Key(*key), arg)[1]
      if not source.startswith(own):
        name = key[0] if key[1] == "gin.macro" else ".".join(filter(None, [*key, arg]))
        raise InputError(f"{source}: nothing in this run uses {name}; remove it or correct its name")
  _check_values(entry, used, macros)
  imports, lines = set(), set()
  for (key, arg), value in used.items():
    lines.add(f"{key.scope + '/' if key.scope else ''}{key.selector}.{arg} = {_text(value, macros)}")
    selectors = [key.selector, *(selector for _, selector in _follow(value, (), {}))]
    imports |= {f"import {selector.rpartition('.')[0]}" for selector in selectors}
  return "\n".join(["from __gin__ import dynamic_registration", *sorted(imports), "", *sorted(lines), ""])


def _reachable(entry: Callable) -> tuple[dict[tuple[_Key, str], Any], dict[str, Any]]:
  """Every (binding, value) and every macro that a call of `entry` can reach through references."""
  config = gin.config._CONFIG
  used, macros, seen = {}, {}, set()
  todo = [((), gin.config._inverse_lookup(entry).selector)]
  while todo:
    scopes, selector = todo.pop()
    if (scopes, selector) in seen:
      continue
    seen.add((scopes, selector))
    values = {}  # Gin applies the bindings of no scope first, then of each longer prefix of the scopes.
    for depth in range(len(scopes) + 1):
      scope = "/".join(scopes[:depth])
      for arg, value in config.get((scope, selector), {}).items():
        values[arg] = ((_Key(scope, selector), arg), value)
        used[_Key(scope, selector), arg] = value
    for _, value in values.values():
      todo.extend(_follow(value, scopes, macros))
  return used, macros


def _follow(value, scopes, macros, inside=()) -> Iterator[tuple[tuple[str, ...], str]]:
  for ref in gin.config._iterate_flattened_values(value):
    if not isinstance(ref, gin.config.ConfigurableReference):
      continue
    selector = ref.configurable.selector
    if selector == "gin.macro":
      name = "/".join(ref.scopes)
      if name in inside:
        raise InputError(f"{_written(_Key(name, selector), 'value')[1]}: {name} is made of itself; give it a value")
      bound_value = gin.config._CONFIG.get((name, "gin.macro"), {}).get("value", gin.REQUIRED)
      macros[name] = bound_value
      yield from _follow(bound_value, scopes, macros, (*inside, name))
    elif selector != "gin.constant":
      yield (*scopes, *ref.scopes), selector


def _required(used, macros):
  for (key, arg), value in used.items():
    if _is_required(value):
      yield key, f"{key.selector}.{arg}"
  for name, value in macros.items():
    if _is_required(value):
      yield name, name


def _is_required(value):
  """Whether it is the constant, as `%gin.REQUIRED` in a file or as what stands for a macro that nothing binds."""
  return value is gin.REQUIRED or isinstance(value, gin.config.ConfigurableReference) and (
      value.configurable.selector == "gin.constant" and value.scopes == ["gin.REQUIRED"])


def _check_values(entry: Callable, used: Mapping[tuple[_Key, str], Any], macros: Mapping[str, Any]) -> None:
  """Raises InputError, of all values at once, where one is not of the type or in the range of what it is bound to."""
  own = str(configs_dir())
  problems: dict[tuple[str, str], str] = {}
  for (key, arg), value in used.items():
    hint = hints(_target(key.selector)).get(arg, Any)
    while _is_macro(value):  # Named is what holds the value itself.
      key, arg, value = _Key("/".join(value.scopes), "gin.macro"), "value", macros["/".join(value.scopes)]
    name, source = _written(key, arg)
    for found in wrong(_plain(value, macros), hint):
      where = "" if source.startswith(("--gin.", own, "gin")) else f"{source}: "
      problems.setdefault((name, found.place), where + found.sentence(name))
  if problems:
    raise InputError("; ".join(problems.values()))
  _make((), gin.config._inverse_lookup(entry).selector, macros)


def _make(scopes: tuple[str, ...], selector: str, macros: Mapping[str, Any], called: bool = True) -> Any:
  """Calls dataclasses with what is bound to them, and the `check_given` of others, for what they refuse."""
  target = _target(selector)
  given: dict[str, Any] = {}
  for depth in range(len(scopes) + 1):
    given |= gin.config._CONFIG.get(("/".join(scopes[:depth]), selector), {})

  def made(value):
    if isinstance(value, gin.config.ConfigurableReference) and not _is_macro(value) and not _is_required(value):
      return _make((*scopes, *value.scopes), value.configurable.selector, macros, value.evaluate)
    return _plain(value, macros, made)

  given = {arg: made(value) for arg, value in given.items()}
  if called and (missing := _required_of(target) - given.keys()):
    names = [f"{'.'.join(selector.split('.')[-2:])}.{name}" for name in sorted(missing)]
    raise InputError("; ".join(f"{name} is not set: give --gin.{name}=VALUE or bind it in a gin file"
                               for name in names))
  if hasattr(target, "check_given"):
    target.check_given(**given)
  if called and _is_plain_dataclass(target) and not any(map(_has_reference, given.values())):
    return target(**given)
  return Reference("@" + ".".join(selector.split(".")[-2:]) + "()" * called, target, called)


def _required_of(target: Callable) -> set[str]:
  """Its parameters without a default, where Python can tell."""
  try:
    parameters = inspect.signature(target).parameters.values()
  except (TypeError, ValueError):
    return set()
  return {p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _is_plain_dataclass(target: Callable) -> bool:
  return dataclasses.is_dataclass(target) and target.__dataclass_params__.frozen


def _has_reference(value: Any) -> bool:
  return any(isinstance(of, Reference) for of in gin.config._iterate_flattened_values([value])) or isinstance(
      value, Reference)


def _target(selector: str) -> Callable:
  """The function or class itself, without what gin makes of it."""
  return gin.config._REGISTRY[selector].wrapped


def _is_macro(value: Any) -> bool:
  return isinstance(value, gin.config.ConfigurableReference) and value.configurable.selector == "gin.macro"


def _plain(value: Any, macros: Mapping[str, Any], reference: Callable | None = None) -> Any:
  """A value with macros replaced by what they stand for, and references by `Reference`s or what is made of them."""
  again = lambda of: _plain(of, macros, reference)  # noqa: E731
  if isinstance(value, gin.config.ConfigurableReference):
    if _is_macro(value):
      return again(macros["/".join(value.scopes)])
    if value.configurable.selector == "gin.constant":
      return gin.config._CONSTANTS["/".join(value.scopes)]
    if reference:
      return reference(value)
    text = "@" + "/".join([*value.scopes, ".".join(value.configurable.selector.split(".")[-2:])])
    return Reference(text + "()" * value.evaluate, _target(value.configurable.selector), value.evaluate)
  if isinstance(value, dict):
    return {again(key): again(of) for key, of in value.items()}
  return type(value)(map(again, value)) if type(value) in (list, tuple) else value


def _text(value, macros) -> str:
  """A value as it would stand in a gin file, macros replaced by what they stand for."""
  if isinstance(value, gin.config.ConfigurableReference):
    if value.configurable.selector == "gin.macro":
      return _text(macros["/".join(value.scopes)], macros)
    return "@" + "/".join([*value.scopes, value.configurable.selector]) + ("()" if value.evaluate else "")
  if isinstance(value, dict):
    return "{" + ", ".join(f"{_text(k, macros)}: {_text(v, macros)}" for k, v in value.items()) + "}"
  if isinstance(value, tuple):
    return "(" + "".join(f"{_text(v, macros)}, " for v in value).rstrip() + ")"
  if isinstance(value, list):
    return "[" + ", ".join(_text(v, macros) for v in value) + "]"
  return repr(value)


_sources: dict[str, str] = {}  # "scope/selector.arg" as written -> "file:line" or the flag
_imports: dict[str, None] = {}  # the files' import statements, in order


class _IgnoreReferences(config_parser.ParserDelegate):
  def configurable_reference(self, scoped_name, evaluate):
    return None

  def macro(self, name):
    return None


def _record_sources(path: str) -> None:
  with open(path) as f:
    for statement in config_parser.ConfigParser(f, _IgnoreReferences()):
      if isinstance(statement, config_parser.IncludeStatement):
        _record_sources(_find(statement.filename, gin.config._LOCATION_PREFIXES))
      elif isinstance(statement, config_parser.ImportStatement) and not statement.module.startswith("__gin__"):
        _imports[statement.format()] = None
      elif isinstance(statement, config_parser.BindingStatement):
        name = "/".join(filter(None, [statement.scope, statement.selector]))
        name += f".{statement.arg_name}" if statement.arg_name else ""
        _record(name, f"{path}:{statement.location.line_num}")


def _record(name: str, source: str) -> None:
  """The last one is the one that holds."""
  _sources.pop(name, None)
  _sources[name] = source


def _written(key: _Key, arg: str) -> tuple[str, str]:
  """A binding as it was written last, and where: "file:line" or the flag."""
  if key.selector == "gin.macro":
    return key.scope, _sources.get(key.scope, "gin")
  full = f"{key.selector}.{arg}"
  for name, source in reversed(_sources.items()):
    scope, _, selector = name.rpartition("/")
    if scope == key.scope and (full == selector or full.endswith("." + selector)):
      return name, source
  return full, "gin"


def _find(name: str, folders: Sequence[str]) -> str:
  for folder in folders:
    path = Path(folder, name)
    if path.is_file():
      return str(path.resolve())
  places = ", ".join(str(Path(f).resolve()) for f in folders)
  raise InputError(f"{name}: no such gin file in {places}; `gtr-jax train --list` names those that come with gtr_jax")


def _one_line(error: Exception) -> str:
  """Gin's errors span lines, and repeat the file and the address of an object; keep message and place."""
  if isinstance(error, UnicodeDecodeError):
    return f"not UTF-8 ({error.reason}); write it as UTF-8"
  if isinstance(error, RecursionError):
    return "nested too deeply; correct it"
  text = str(error.args[0] if isinstance(error, OSError | ImportError) and error.args else error)
  text = re.sub(r"\s*\n\s*", " ", inspect.cleandoc(text)).strip()
  text = re.sub(r"(malformed node or string on line \d+: <.*?>|Exceeds the limit .*?\(<unknown>, line \d+\)) ?", "",
                text)
  return text if len(text) < 400 else f"{text[:200]} … {text[-190:]}"
