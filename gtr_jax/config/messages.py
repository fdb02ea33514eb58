"""What gin says of a wrong statement, in words of ours: without objects of Python, with what to write instead."""

import difflib
import inspect
import re
import sys
import tokenize
from collections.abc import Iterable

from gtr_jax.config import places
from gtr_jax.config.internals import GIN, target

ERRORS = (OSError, ValueError, SyntaxError, NameError, AttributeError, ImportError, RecursionError, TypeError,
          tokenize.TokenError)
"""What gin, Python's tokenizer and imports raise for a wrong file or binding."""

_IN_OTHER_LETTERS = {"true": "True", "yes": "True", "on": "True", "false": "False", "no": "False", "off": "False",
                     "none": "None", "null": "None"}
_PLACE = re.compile(r'\n\s*In (?:file "(.*)",|bindings string) line (\d+)')


def near(name: str, known: Iterable[str]) -> str:
  """Asks for the nearest of the known names, if one is near: "; did you mean BATCH_SIZE?"."""
  found = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(name.upper(), known, 1)
  return f"; did you mean {found[0]}?" if found else ""


def place_of(error: Exception) -> tuple[str | None, int | None]:
  """(file, line) where gin found it."""
  if isinstance(error, SyntaxError):
    return error.filename, error.lineno
  if isinstance(error, tokenize.TokenError):
    return None, error.args[1][0]
  places_in = _PLACE.findall(str(error))
  return (places_in[0][0] or None, int(places_in[0][1])) if places_in else (None, None)


def in_words(error: Exception, statement: str, flag: str = "") -> str:
  """What is wrong, in one line.

  Args:
    error: one of `ERRORS`.
    statement: the line, or the binding, that it is about.
    flag: "--gin." where it is a binding of the command line.
  """
  if isinstance(error, UnicodeDecodeError):
    return f"not UTF-8 ({error.reason}); write it as UTF-8"
  if isinstance(error, RecursionError | MemoryError):
    return "nested too deeply; correct it"
  name, equals, value = (part.strip() for part in statement.partition("="))
  text = _PLACE.split(str(error.args[0] if error.args and not _augmented(error) else error))[0]
  if isinstance(error, tokenize.TokenError) or _unclosed(value):
    return "a quote or bracket is not closed; close it"
  if isinstance(error, SyntaxError):
    return _of_syntax(text, name, equals, value, flag)
  text = re.sub(r"\s*\n\s*", " ", inspect.cleandoc(text)).strip()
  if found := re.search(r"'([\w.]+)' doesn't have a parameter named '(\w+)'", text):
    return f"{found[1].rpartition('.')[2]} has no parameter {found[2]!r}{near(found[2], _parameters(found[1]))}"
  if found := re.search(r"'(\w+)' was not provided by an import statement", text):
    modules = [statement.rstrip().rpartition(" ")[2].rpartition(".")[2] for statement in places.imports]
    return f"no import statement of the gin files provides {found[1]!r}{near(found[1], modules)}"
  if found := re.search(r"<module '([\w.]+)'.*> has no attribute (\w+)", text):
    return f"{found[1]} has no {found[2]!r}{near(found[2], _names_of(found[1]))}"
  if "values to unpack" in text:
    return f"{name} is a function or class; name what to bind of it: {flag}{name}.PARAMETER=VALUE"
  if found := re.search(r"Unable to open file: (.*)\. Searched", text):
    return f"{found[1]}: no such gin file; `gtr-jax train --list` names those that come with gtr_jax"
  return text if len(text) < 400 else f"{text[:200]} … {text[-190:]}"


def _of_syntax(text, name, equals, value, flag):
  if not equals and re.match(r"(from|import)\s", name) and "," in name:
    return "an import statement of gin's names one module; write a line for each"
  if not equals:
    found = re.search(r"token '(.*)'", text)
    return _no_value(found[1], f"'{found[1]}'") if found else f"{name!r:.80} binds nothing; write {flag}NAME=VALUE"
  if not re.fullmatch(r"%?[\w./]+", name):
    return f"{name!r:.80} is no name that could be bound; correct it"
  if not value or value.startswith("="):
    return f"{name} is given no value; write {flag}{name}=VALUE"
  if "Exceeds the limit" in text:
    return f"{name} is a number of too many digits; correct it"
  if re.search("[“”„‘’«»]", value):
    return f"{value:.80} has typographic quotes; write straight ones"
  found = re.search(r"token '(.*)'", text)
  whole = re.fullmatch(r"[^\s'\"\[\]{}(),%@#]+", value)
  if whole and not re.fullmatch(r"[-+\d._eE*/x]+", value):  # One word: a text, as it seems, also runs/a-b.
    quoted = f"{flag}{name}=\"'{value}'\"" if flag else f"{name} = '{value}'"
    return _no_value(value, quoted)
  if found and re.fullmatch(r"[^\W\d]\w*", found[1]):
    function = f", or, of a function, @{dotted[0]}" if (dotted := re.search(rf"{found[1]}\.\w+", value)) else ""
    return _no_value(found[1], f"'{found[1]}'") + function
  if "newline" in text:
    return f"{value:.80} is more than one value: gin computes nothing, and a string needs quotes of its own"
  return f"{value:.80} is no value that Python has; correct it"


def _no_value(text, quoted):
  if text.lower() in ("nan", "inf", "infinity"):
    return f"{text} is no value: give a finite number"
  if better := _IN_OTHER_LETTERS.get(text.lower()):
    return f"{text} is no value: write {better}"
  return f"{text:.80} is no value: a string needs quotes of its own, as in {quoted:.200}"


def _unclosed(value):
  """Whether a value opens a string and does not close it: Python's tokenizer may give its parts."""
  return len(re.sub(r"\\.", "", value)) > 0 and any(
      value.startswith(quote) and value.count(quote) == 1 for quote in "'\"")


def _augmented(error):
  """Whether gin has put the place behind the message, which then is in `str` alone."""
  return bool(_PLACE.search(str(error)))


def _names_of(module):
  return [name for name in dir(sys.modules.get(module)) if not name.startswith("_")]


def _parameters(selector):
  try:
    return list(inspect.signature(target(GIN.registry.matching_selectors(selector)[0])).parameters)
  except (IndexError, TypeError, ValueError):
    return []
