"""The documentation strings of Python packages, read by parsing their files; nothing is imported or run."""

import ast
import importlib.metadata
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Folders that hold no documentation of the package's own: tests, copies of other packages, lists of re-exported names.
_SKIPPED_FOLDERS = {
    "tests", "test", "testing", "testdata", "test_data", "_api", "_tf_keras", "_vendor", "vendored", "third_party",
    "site-packages", "__pycache__", "idlelib", "lib2to3", "turtledemo", "ensurepip", "examples", "fake_examples",
}
_MAX_FILE_BYTES = 4 << 20
_MIN_SUMMARY_WORDS, _MAX_SUMMARY_WORDS = 3, 40
_MAX_CHARACTERS = 2000

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Documentation(NamedTuple):
  """One documented module, class, function or method, cleaned; every text is one line.

  Attributes:
    name: qualified name, `numpy.linalg.norm`.
    summary: the first sentence.
    rest: all that follows it; empty if nothing does.
  """

  name: str
  summary: str
  rest: str


def package_folder(distribution: str, module: str) -> Path:
  """Where an installed distribution has its top-level package `module`; nothing is imported."""
  return Path(str(importlib.metadata.distribution(distribution).locate_file(module)))


def standard_library_folder() -> Path:
  """The folder of Python's own modules."""
  return Path(sysconfig.get_paths()["stdlib"])


def python_files(folder: Path) -> Iterator[Path]:
  """The files of a package that may document it, sorted."""
  for place, folders, files in os.walk(folder):
    folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
    for file in sorted(files):
      if file.endswith(".py") and not file.endswith("_test.py") and not file.startswith("test_"):
        yield Path(place, file)


def read_file(path: Path, module: str) -> Iterator[Documentation]:
  """What one file documents, in the order of its text; nothing where it is not valid Python."""
  source = path.read_bytes()
  if len(source) > _MAX_FILE_BYTES or b'"""' not in source and b"'''" not in source:
    return
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      tree = ast.parse(source)
  except (SyntaxError, ValueError):
    return
  for name, text in _documented(tree, module):
    summary, rest = split(clean(text))
    if _MIN_SUMMARY_WORDS <= len(summary.split()) <= _MAX_SUMMARY_WORDS and not summary.startswith("TODO"):
      yield Documentation(name, summary, rest)


def _documented(node: _Documented, name: str) -> Iterator[tuple[str, str]]:
  """(qualified name, documentation string) of a module, class or function and of what it contains."""
  doc = ast.get_docstring(node)
  if doc:
    yield name, doc
  for child in node.body:
    if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      # An overload or property setter repeats what it overloads; what is inside a function is nobody's interface.
      if isinstance(node, ast.Module | ast.ClassDef):
        yield from _documented(child, f"{name}.{child.name}")
    elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
      yield from _added(child.value, name)


def _added(call: ast.Call, module: str) -> Iterator[tuple[str, str]]:
  """Documentation that is attached to compiled code: `add_newdoc("numpy.linalg", "norm", "…")`."""
  if getattr(call.func, "id", getattr(call.func, "attr", "")) != "add_newdoc":
    return
  values = [a.value for a in ast.walk(call) if isinstance(a, ast.Constant) and isinstance(a.value, str)]
  if len(values) > 1:
    top = module.partition(".")[0]
    names = [v for v in values[:-1] if v.replace(".", "").isidentifier()]
    place = [] if names and names[0].partition(".")[0] == top else [module.rpartition(".")[0]]
    yield ".".join([*place, *names]), values[-1]


_DIRECTIVE_LINE = re.compile(
    r"^\s*\.\. (?:versionadded|versionchanged|deprecated|currentmodule|module|moduleauthor|sectionauthor|plot|index|"
    r"autosummary|autofunction|autoclass|testsetup|testcleanup|include|image|figure|_)[^\n]*$", re.MULTILINE)
_OPTION_LINE = re.compile(r"^\s*:(?:toctree|nosignatures|include-source|alt|width|height|scale|members)[^\n]*$",
                          re.MULTILINE)
_RULE = re.compile(r"^\s*[-=~^*#+_`\"]{3,}[ \-=~^*#+]*$\n?", re.MULTILINE)
_PROMPT = re.compile(r"^(\s*)(?:>>> ?|\.\.\. ?|In \[\d+\]: )", re.MULTILINE)
_FENCE = re.compile(r"^\s*(?:```|~~~)\w*\s*$", re.MULTILINE)
_DIRECTIVE = re.compile(r"\.\. ([a-zA-Z-]+)::")
_ROLE = re.compile(r":(?:[a-zA-Z]+:)?[a-zA-Z-]+:`([^`]*)`")
_NAMED_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_MARKDOWN_LINK = re.compile(r"\[([^\]\n]+)\]\(\s*(?:https?:|\.|/|#)[^)\s]*\s*\)")
_URL = re.compile(r"<?https?://\S+>?")
_FOOTNOTE = re.compile(r"\s?\[\w+\]_")
_INTERPOLATED = re.compile(r"%\(\w+\)s")
_ABBREVIATED = re.compile(r"(?<!\w)~(?=\.?[A-Za-z])")
_SIGNATURE = re.compile(r"^[\w.]+\([^\n]*\)\s*(?:->[^\n]*)?$")


def clean(text: str) -> str:
  """A documentation string as plain text: paragraphs separated by empty lines, without markup.

  What doctests run and print stays, their prompts go; so do heading rules, directives, roles, links' addresses.
  """
  paragraphs = text.split("\n\n")
  if _SIGNATURE.match(paragraphs[0].strip()):  # Compiled functions begin with their signature.
    text = "\n\n".join(paragraphs[1:])
  text = _ROLE.sub(lambda m: m.group(1).lstrip("~!").split(" <")[0], text)
  text = _NAMED_LINK.sub(r"\1", text)
  text = _MARKDOWN_LINK.sub(r"\1", text)
  for pattern in (_DIRECTIVE_LINE, _OPTION_LINE, _RULE, _FENCE, _URL, _FOOTNOTE, _INTERPOLATED):
    text = pattern.sub("", text)
  text = _PROMPT.sub(r"\1", text)
  text = _DIRECTIVE.sub(r"\1:", text)
  text = text.replace("`", "").replace("**", "").replace("::\n", ":\n")
  text = _ABBREVIATED.sub("", text).replace(" ()", "").replace(" []", "")
  return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip())


_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!\bcf)[.!?](?=\s+[A-Z(])")


def split(text: str) -> tuple[str, str]:
  """Cleaned text -> (first sentence, the rest in one line, cut at a word)."""
  first, _, rest = text.partition("\n\n")
  end = _SENTENCE_END.search(first)
  if end:
    rest = f"{first[end.end():].strip()} {rest}"
    first = first[:end.end()]
  rest = " ".join(rest.split())
  if len(rest) > _MAX_CHARACTERS:
    rest = rest[:_MAX_CHARACTERS].rpartition(" ")[0]
  return first.strip(), rest


_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z]|\d[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+")
_SAYS_NOTHING = {"src", "python", "init"}


def name_in_words(name: str) -> str:
  """`keras.src.layers.MaxPooling2D.get_config` -> "keras layers max pooling 2d get config"; no word twice."""
  words = [w.lower() for w in _BETWEEN_WORDS.split(name) if w]
  return " ".join(w for w in dict.fromkeys(words) if w not in _SAYS_NOTHING)
