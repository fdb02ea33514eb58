"""Reading gin files and bindings."""

import io
import os
import re
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

from gtr_jax.config import places
from gtr_jax.config.internals import GIN, is_required
from gtr_jax.config.messages import ERRORS, in_words, place_of
from gtr_jax.errors import InputError

_MOST_PROBLEMS = 20  # of a file


def configs_dir() -> Path:
  """The folder that holds models/, runs/ and meshes/: `gtr_jax/gin` once installed, `gin` in a checkout."""
  package = Path(__file__).parent.parent
  return package / "gin" if (package / "gin").is_dir() else package.parent / "gin"


def macro_names() -> list[str]:
  """Of the files that come with gtr_jax: BATCH_SIZE, MODEL_DIR, …"""
  folder = configs_dir()
  return sorted({name for path in folder.rglob("*.gin") if path.parent.name != "t5x"
                 for name in re.findall(r"^([A-Z][A-Z0-9_]*) *=", path.read_text(), re.MULTILINE)})


def parse(gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = (),
          first: str = "") -> None:
  """Reads gin files, then single bindings ("NAME=VALUE"); later ones win. Replaces what was read before.

  `first` is the text of a gin file that no one has written down, to be read before the others.

  A relative file name is looked for in the current folder, in `search_paths`, and among the configurations that come
  with gtr_jax (`runs/pretrain.gin`); an include, in the latter two and then beside the file that has it.

  Raises:
    InputError: for a file that is not there, and, of all at once, syntax errors and unknown names and parameters.
  """
  if problems := problems_of_parsing(gin_files, bindings, search_paths, first):
    raise InputError("; ".join(problems))


def problems_of_parsing(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str],
                        first: str) -> list[str]:
  """`parse` that goes on: what is wrong with files and bindings. Raises InputError where a file is not there."""
  gin.clear_config()
  places.forget()
  # Gin would look in the current folder first, and trips over a folder there that has an include's name.
  folders = [str(Path(os.path.expanduser(p)).resolve()) for p in search_paths]
  GIN.folders[:] = [*folders, str(configs_dir())]
  GIN.readers[:] = [(open, os.path.isfile)]  # Its other one looks into packages, and logs what is not there.
  problems: list[str] = []
  if first:
    gin.parse_config(first)
    places.record_file("gin", first)
  for name in gin_files:
    path = places.find_file(os.path.expanduser(name), ["", *GIN.folders])
    if (own := str(Path(path).parent)) not in GIN.folders:
      GIN.folders.append(own)
    of_file, rest = _problems_of_file(path)
    problems += of_file
    if rest is None:  # What it imports and binds is missing for all that follows.
      return problems
    places.record_file(path, rest)
  # A binding may name whatever the files have imported, as if it stood at the end of the last one.
  imports = "from __gin__ import dynamic_registration\n" + "\n".join(places.imports)
  for binding in bindings:
    try:
      gin.parse_config(f"{imports}\n{binding}\n")
    except ERRORS as e:
      problems.append(f"--gin.{binding:.200}: {in_words(e, binding, '--gin.')}")
    places.record(binding.split("=")[0].strip(), f"--gin.{binding}")
  return problems


class _Text(io.StringIO):
  """Of a file, whose name gin puts into its messages."""

  def __init__(self, text: str, name: str):
    super().__init__(text)
    self.name = name


def _problems_of_file(path: str) -> tuple[list[str], str | None]:
  """Lets gin read a file, again and again without the statements that it has found wrong: these, and what is left.

  None: it could not go on behind the last one.
  """
  problems: list[str] = []
  try:
    text = Path(path).read_text(encoding="utf-8")
  except ERRORS as e:
    return [f"{path}: {in_words(e, '')}"], None
  lines = text.split("\n")
  while len(problems) < _MOST_PROBLEMS:
    try:
      gin.parse_config(_Text("\n".join(lines), path))
      return problems, "\n".join(lines)
    except ERRORS as e:
      file, line = place_of(e)
      if file not in (None, path):  # In what it includes: what that declares is missing from here on.
        statement = Path(file).read_text(encoding="utf-8", errors="replace").split("\n")[line - 1] if line else ""
        return [*problems, f"{file}:{line}: {in_words(e, statement)}"], None
      if line is None or isinstance(e, tokenize.TokenError):
        line = _left_open(lines)
      if line is None or line > len(lines):
        return [*problems, f"{path}: {in_words(e, '')}"], None
      problems.append(f"{path}:{line}: {in_words(e, lines[line - 1])}")
      if not _take_out(lines, line - 1):
        break
  return problems, None


def _left_open(lines: list[str]) -> int | None:
  """Number of the line with a bracket that is never closed."""
  opened, depth = None, 0
  for number, line in enumerate(lines, 1):
    opened = number if not depth else opened
    depth += _opening(line)
  return opened if depth > 0 else None


def _take_out(lines: list[str], at: int) -> bool:
  """Empties the lines of a statement, from `at` on; False where its brackets are never closed."""
  depth = 0
  for i in range(at, len(lines)):
    depth += _opening(lines[i])
    lines[i] = ""
    if depth <= 0:
      return depth == 0
  return False


def _opening(line: str) -> int:
  """How many brackets more it opens than it closes."""
  code = line.partition("#")[0]
  return sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))


def set_defaults(macros: Mapping[str, Any]) -> None:
  """Binds macros that no file and no flag has bound, or that one has bound to gin.REQUIRED."""
  for name, value in macros.items():
    there = GIN.values.get((name, "gin.macro"))
    if there is None or is_required(there.get("value")):
      gin.bind_parameter(f"{name}/gin.macro.value", value)
      places.record(name, str(configs_dir()))


def bindings(configurable: Callable) -> dict[str, Any]:
  """What the parsed configuration binds of this function's or class's parameters, references evaluated."""
  found = GIN.find(configurable)  # None where no file has imported it.
  return gin.get_bindings(found.selector) if found else {}


def bound(entry: Callable) -> Callable:
  """`entry` with the parsed configuration as its defaults."""
  return gin.get_configurable(entry)
