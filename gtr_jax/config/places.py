"""Where each binding was written: file and line, or the flag.

This is what gtr_jax adds to gin's own global state, and like that it is of what was parsed last.
"""

from collections.abc import Sequence
from pathlib import Path

from gin import config_parser

from gtr_jax.config.internals import GIN, Key
from gtr_jax.errors import InputError

_sources: dict[str, str] = {}  # "scope/selector.arg" as written -> "file:line" or the flag
imports: dict[str, None] = {}  # the files' import statements, in order


def forget() -> None:
  """Before something else is parsed."""
  _sources.clear()
  imports.clear()


class _IgnoreReferences(config_parser.ParserDelegate):
  def configurable_reference(self, scoped_name, evaluate):
    return None

  def macro(self, name):
    return None


def record_file(path: str, text: str) -> None:
  """Notes where a file of this text, and those that it includes, bind what."""
  for statement in config_parser.ConfigParser(text, _IgnoreReferences()):
    if isinstance(statement, config_parser.IncludeStatement):
      included = find_file(statement.filename, GIN.folders)
      record_file(included, Path(included).read_text(encoding="utf-8"))
    elif isinstance(statement, config_parser.ImportStatement) and not statement.module.startswith("__gin__"):
      imports[statement.format()] = None
    elif isinstance(statement, config_parser.BindingStatement):
      name = "/".join(filter(None, [statement.scope, statement.selector]))
      name += f".{statement.arg_name}" if statement.arg_name else ""
      record(name, f"{path}:{statement.location.line_num}")


def record(name: str, source: str) -> None:
  """The last one is the one that holds."""
  _sources.pop(name, None)
  _sources[name] = source


def written(key: Key, arg: str) -> tuple[str, str]:
  """A binding as it was written last, and where: "file:line" or the flag."""
  if key.selector == "gin.macro":
    return key.scope, _sources.get(key.scope, "gin")
  full = f"{key.selector}.{arg}"
  for name, source in reversed(_sources.items()):
    scope, _, selector = name.rpartition("/")
    if scope == key.scope and (full == selector or full.endswith("." + selector)):
      return name, source
  return full, "gin"


def find_file(name: str, folders: Sequence[str]) -> str:
  """The file of this name in the first folder that has one. Raises InputError."""
  for folder in folders:
    path = Path(folder, name)
    if path.is_file():
      return str(path.resolve())
  places = ", ".join(str(Path(f).resolve()) for f in folders)
  raise InputError(f"{name}: no such gin file in {places}; `gtr-jax train --list` names those that come with gtr_jax")
