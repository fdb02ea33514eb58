"""Experiments are gin files: reading them, refusing what nothing uses, and printing what a run resolved to.

Library code knows nothing of gin: files begin with `from __gin__ import dynamic_registration` and name our functions
and classes by their module. This is the only module that imports gin.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
from gin import config_parser

from gtr_jax.errors import InputError

_GIN_ERRORS = (OSError, ValueError, SyntaxError, NameError, AttributeError, ImportError)


def configs_dir() -> Path:
  """The folder that holds models/, runs/ and meshes/: `gtr_jax/configs` once installed, `gin` in a checkout."""
  package = Path(__file__).parent
  return package / "configs" if (package / "configs").is_dir() else package.parent / "gin"


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
  gin.config._LOCATION_PREFIXES[:] = [*(str(Path(p).resolve()) for p in search_paths), str(configs_dir())]
  for name in gin_files:
    path = _find(name, ["", *gin.config._LOCATION_PREFIXES])
    if (own := str(Path(path).parent)) not in gin.config._LOCATION_PREFIXES:
      gin.config._LOCATION_PREFIXES.append(own)
    try:
      gin.parse_config_file(path)
      _record_sources(path)
    except _GIN_ERRORS as e:
      raise InputError(_one_line(e)) from e
  # A binding may name whatever the files have imported, as if it stood at the end of the last one.
  imports = "from __gin__ import dynamic_registration\n" + "\n".join(_imports)
  for binding in bindings:
    try:
      gin.parse_config(f"{imports}\n{binding}\n")
    except _GIN_ERRORS as e:
      message = re.sub(r" (In bindings string line|\(line) .*", "", _one_line(e))
      hint = "; a string needs quotes of its own, as in --gin.NAME=\"'text'\"" if "parse" in message else ""
      raise InputError(f"--gin.{binding}: {message}{hint}") from e
    _sources[binding.split("=")[0].strip()] = f"--gin.{binding}"


def set_defaults(macros: Mapping[str, Any]) -> None:
  """Binds macros that no file and no flag has bound, or that one has bound to gin.REQUIRED."""
  for name, value in macros.items():
    there = gin.config._CONFIG.get((name, "gin.macro"))
    if there is None or _is_required(there.get("value")):
      gin.bind_parameter(f"{name}/gin.macro.value", value)
      _sources[name] = str(configs_dir())


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
    InputError: if a binding is still gin.REQUIRED, or a binding outside gtr_jax's own files is used by nothing.
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
      source = _source(_Key(*key), arg)
      if not source.startswith(own):
        name = key[0] if key[1] == "gin.macro" else ".".join(filter(None, [*key, arg]))
        raise InputError(f"{source}: nothing in this run uses {name}; remove it or correct its name")
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


def _follow(value, scopes, macros) -> Iterator[tuple[tuple[str, ...], str]]:
  for ref in gin.config._iterate_flattened_values(value):
    if not isinstance(ref, gin.config.ConfigurableReference):
      continue
    selector = ref.configurable.selector
    if selector == "gin.macro":
      name = "/".join(ref.scopes)
      bound_value = gin.config._CONFIG.get((name, "gin.macro"), {}).get("value", gin.REQUIRED)
      macros[name] = bound_value
      yield from _follow(bound_value, scopes, macros)
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
        _sources[name] = f"{path}:{statement.location.line_num}"


def _source(key: _Key, arg: str) -> str:
  if key.selector == "gin.macro":
    return _sources.get(key.scope, "gin")
  full = f"{key.selector}.{arg}"
  for name, source in _sources.items():
    scope, _, selector = name.rpartition("/")
    if scope == key.scope and (full == selector or full.endswith("." + selector)):
      return source
  return "gin"


def _find(name: str, folders: Sequence[str]) -> str:
  for folder in folders:
    path = Path(folder, name)
    if path.is_file():
      return str(path.resolve())
  places = ", ".join(str(Path(f).resolve()) for f in folders)
  raise InputError(f"{name}: no such gin file in {places}; `gtr-jax train --list` names those that come with gtr_jax")


def _one_line(error: Exception) -> str:
  """Gin's errors span lines, and repeat the file; keep message and place."""
  text = str(error.args[0] if isinstance(error, OSError | ImportError) and error.args else error)
  return re.sub(r"\s*\n\s*", " ", inspect.cleandoc(text)).strip()
