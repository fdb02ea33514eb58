"""The parser of the command line, and types of its flags: numbers in their ranges, and paths."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

from gtr_jax.errors import InputError
from gtr_jax.io import paths as places
from gtr_jax.values.check import wrong
from gtr_jax.values.ranges import MOST, Length, NonNegative, Positive, Range, Seed, Share

_FLAG = re.compile(r"--?[A-Za-z]([^ =]*|[^ =]*=.*)", re.DOTALL)  # What has a space before any = is a value.


class Parser(argparse.ArgumentParser):
  """Says in one line what is wrong with the flags, as the commands do of all else; of unknown ones, what is near.

  Attributes:
    others: what a command takes beside its flags and can name where a flag is unknown: "--gin.BATCH_SIZE".
    elsewhere: what flags of other programs are here: "lr" -> "--learning_rate".
  """

  others: Callable[[], Iterable[str]] | None = None
  elsewhere: Mapping[str, str] = MappingProxyType({})

  def error(self, message: str) -> NoReturn:
    if found := re.fullmatch(r"(?:argument )?(.*): invalid choice: (.*) \(choose from (.*)\)", message):
      name, value, choices = found[1], found[2].strip("'"), re.findall(r"[\w.-]+", found[3])
      message = f"{name}: there is no {value!r:.80}{_near(value, choices)} (there are {', '.join(choices)})"
    self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")

  def parse_known_args(self, args=None, namespace=None):
    """As argparse, but what is unknown is an error here, where it is known what there is instead."""
    args = sys.argv[1:] if args is None else list(args)
    for text in args:
      if text == "--" or self._subparsers and not text.startswith("-"):
        break  # What follows is no flag, or a subcommand's.
      if _FLAG.fullmatch(text) and text.partition("=")[0] not in self._option_string_actions:
        self._unknown(text)
    found, rest = super().parse_known_args(args, namespace)
    if rest:
      self._unknown(rest[0])
    return found, rest

  def _unknown(self, text: str) -> NoReturn:
    name = text.partition("=")[0]
    known = [name for name in self._option_string_actions if name.startswith("--")]
    known += self.others() if self.others else ()
    if self._subparsers:
      near = f"; flags follow the {self._subparsers._group_actions[0].metavar}, which says which there are with --help"
    else:
      same = self.elsewhere.get(_bare(name)) if text.startswith("-") else None
      near = f"; did you mean {same}?" if same else _near(name, known)
    what = "flag" if text.startswith("-") else "argument"
    self.exit(2, f"{self.format_usage()}{self.prog}: there is no {what} {name:.80}{near}\n")


def _near(text: str, known: Iterable[str]) -> str:
  """Asks for the one of them that is nearest, if one is; case, dashes and what stands before a name do not count."""
  names = list(known)
  if exact := [name for name in names if name.rpartition(".")[2].lstrip("-") == text.lstrip("-")]:
    return f"; did you mean {exact[0]}?"
  bare = {_bare(name): name for name in reversed(names)}
  near = difflib.get_close_matches(_bare(text), bare, 1)
  return f"; did you mean {bare[near[0]]}?" if near else ""


def _bare(name):
  return name.rpartition(".")[2].lstrip("-").replace("-", "_").casefold()


def of(hint: Any) -> Callable[[str], Any]:
  """The type of a flag whose value is a number as this annotation says: `of(Annotated[int, Range(1, 10)])`."""

  def number(text: str) -> Any:
    value = _read(text)
    for found in wrong(value, hint):
      raise argparse.ArgumentTypeError(f"{text!r:.80}: give {found.expected}")
    return value

  return number


def _read(text: str) -> Any:
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:  # Also of more digits than Python reads.
      continue
  return text


def gin_binding(text: str) -> str:
  """NAME=VALUE."""
  if "=" not in text:
    raise argparse.ArgumentTypeError(f"{text!r:.80} binds nothing: give --gin.{text or 'NAME'}=VALUE, with a =")
  return text


positive = of(Positive)
non_negative = of(NonNegative)
whole = of(Annotated[int, Range(-MOST, MOST)])
length = of(Length)
seed = of(Seed)
number = of(float)
above_0 = of(Annotated[float, Range(above=0)])
share = of(Share)
share_below_1 = of(Annotated[float, Range(0, below=1)])


def path(text: str) -> str:
  """A path, with `~` at its beginning as in a shell; otherwise as it was typed: `./name` is no name on a hub."""
  try:
    return places.expanded(text)
  except InputError as e:
    raise argparse.ArgumentTypeError(str(e)) from e


def paths(text: str) -> str:
  """Paths with commas between them; there may be none."""
  return ",".join(path(one) for one in text.split(",") if one)


def named_path(text: str) -> tuple[str, str]:
  """(name, path) of PATH, which has no name, or of NAME=PATH; there may be more = in either."""
  places = [i for i, character in enumerate(text) if character == "="]
  if not places or text.startswith("~") or os.path.exists(text):
    return "", path(text)
  at = next((i for i in places if text[i + 1:] and os.path.exists(os.path.expanduser(text[i + 1:]))), places[0])
  return text[:at], path(text[at + 1:])
