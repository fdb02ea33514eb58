"""Reading gin files and bindings."""

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

from gtr_jax.config import places
from gtr_jax.config.internals import GIN, is_required
from gtr_jax.errors import InputError

_ERRORS = (OSError, ValueError, SyntaxError, NameError, AttributeError, ImportError, RecursionError)


def configs_dir() -> Path:
  """The folder that holds models/, runs/ and meshes/: `gtr_jax/gin` once installed, `gin` in a checkout."""
  package = Path(__file__).parent.parent
  return package / "gin" if (package / "gin").is_dir() else package.parent / "gin"


def parse(gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = (),
          first: str = "") -> None:
  """Reads gin files, then single bindings ("NAME=VALUE"); later ones win. Replaces what was read before.

  `first` is the text of a gin file that no one has written down, to be read before the others.

  A relative file name is looked for in the current folder, in `search_paths`, and among the configurations that come
  with gtr_jax (`runs/pretrain.gin`); an include, in the latter two and then beside the file that has it.

  Raises:
    InputError: for a file that is not there, a syntax error, an unknown name or parameter.
  """
  gin.clear_config()
  places.forget()
  # Gin would look in the current folder first, and trips over a folder there that has an include's name.
  folders = [str(Path(os.path.expanduser(p)).resolve()) for p in search_paths]
  GIN.folders[:] = [*folders, str(configs_dir())]
  if first:
    gin.parse_config(first)
    places.record_statements(first, "gin")
  for name in gin_files:
    path = places.find_file(os.path.expanduser(name), ["", *GIN.folders])
    if (own := str(Path(path).parent)) not in GIN.folders:
      GIN.folders.append(own)
    try:
      gin.parse_config_file(path)
      places.record_file(path)
    except _ERRORS as e:
      place = f"{path}: " * isinstance(e, UnicodeDecodeError | RecursionError)
      raise InputError(place + _one_line(e)) from e
  # A binding may name whatever the files have imported, as if it stood at the end of the last one.
  imports = "from __gin__ import dynamic_registration\n" + "\n".join(places.imports)
  for binding in bindings:
    try:
      gin.parse_config(f"{imports}\n{binding}\n")
    except _ERRORS as e:
      message = re.sub(r" (In bindings string line|\(line) .*", "", _one_line(e))
      hint = "; a string needs quotes of its own, as in --gin.NAME=\"'text'\"" if "parse" in message else ""
      raise InputError(f"--gin.{binding:.200}: {message}{hint}") from e
    places.record(binding.split("=")[0].strip(), f"--gin.{binding}")


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
