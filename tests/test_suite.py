"""The tests are the same ones, with the same data, whenever, wherever and by whichever process they are collected."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from collected import APART, COLLECTED

HERE = Path(__file__).parent
FILES = sorted(str(path.relative_to(HERE.parent)) for path in HERE.rglob("test_*.py"))
FILES = [path for path in FILES if not path.startswith(APART)]


class Collection:
  """Of a process with other hashes, at another time, in other folders: the checkout, the current one, that of
  temporary files."""

  def __init__(self, folder, seed):
    root = folder / "elsewhere"
    folder.mkdir()
    root.symlink_to(HERE.parent)
    (folder / "tmp").mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import time\nnow = time.time\ntime.time = lambda: now() + {seed} * 100_000\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    self._process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p",
         "no:xdist", "-c", root / "pyproject.toml", "--rootdir", root, *(root / f for f in FILES)],
        env={**environment, "PYTHONPATH": f"{root}:{folder}", "PYTHONHASHSEED": str(seed),
             "TMPDIR": str(folder / "tmp")}, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

  def ids(self):
    output = self._process.communicate()[0]
    assert self._process.returncode == 0, output
    return [line for line in output.splitlines() if "::" in line]


def test_collected_alike_in_any_process(request, tmp_path):
  """xdist runs nothing where two of its workers disagree."""
  ours = request.config.stash[COLLECTED]
  collection = Collection(tmp_path / "a", 1)
  if {name.partition("::")[0] for name in ours} != set(FILES) or any(
      "::" in argument for argument in request.config.args):  # Not all of them here: a second process.
    ours = Collection(tmp_path / "b", 2).ids()
  theirs = collection.ids()
  assert len(theirs) > 1000
  assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == []


def differing(tree):
  """(line, what) of expressions that differ from run to run or from process to process."""
  settled = {part for call in ast.walk(tree) if isinstance(call, ast.Call) and any(
      keyword.arg == "mtime" for keyword in call.keywords) for part in (call.func, *call.args)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and node not in settled and ast.unparse(node) == "gzip.compress":
      yield node.lineno, "gzip.compress without mtime: its header holds the time"
    if not isinstance(node, ast.Call):
      continue
    name, arguments = ast.unparse(node.func), node.args + [keyword.value for keyword in node.keywords]
    drawn = re.fullmatch(r"(?:np\.|numpy\.)?random\.(\w+)", name)
    if drawn and (not arguments or drawn[1] not in ("Random", "default_rng", "RandomState")):
      yield node.lineno, f"{name} without a seed"
    elif name in ("hash", "id", "time.time", "time.time_ns", "os.urandom", "uuid.uuid4", "datetime.datetime.now"):
      yield node.lineno, name
    elif name == "gzip.open" and len(arguments) > 1 and ast.unparse(arguments[1])[1] != "r":
      yield node.lineno, "gzip.open to write: gzip.compress takes mtime"
    elif name.endswith(".bind") and ast.unparse(arguments[0]).endswith(", 0)"):
      yield node.lineno, "any free port, which others may take: ports.free_port"


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda path: str(path.relative_to(HERE)))
def test_data_are_the_same_in_every_run(path):
  assert list(differing(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("code", [
    "gzip.compress(b'x')", "FORMS = {'.gz': gzip.compress}", "gzip.open(path, 'wb')", "random.choice('ab')",
    "random.Random()", "np.random.default_rng()", "np.random.rand(3)", "hash('a')", "time.time_ns()",
    "s.bind(('', 0))"])
def test_what_differs_is_found(code):
  assert len(list(differing(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", [
    "gzip.compress(b'x', mtime=0)", "{'.gz': partial(gzip.compress, mtime=0)}", "gzip.open(path)", "random.Random(3)",
    "np.random.default_rng(rows + 1)", "jax.random.normal(key, (2,))", "weights_hash(a)", "s.bind(('', port))"])
def test_what_does_not_differ_is_let_be(code):
  assert list(differing(ast.parse(code))) == []
