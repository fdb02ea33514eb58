"""Who may import whom, and what stays out of a quick start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERYWHERE = {"errors", "values"}  # They import none of the others.
# Folder or file below gtr_jax/ -> the parts of gtr_jax, and the packages of others, that it may import.
ALLOWED = {
    "io": ({"errors"}, {"etils", "zstandard"}),
    "collections": ({"errors", "io"}, {"numpy", "etils", "tqdm", "pyarrow"}),
    "losses": ({"errors"}, {"jax"}),
    "models": ({"errors", "io", "partitioning", "text"}, {"jax", "flax"}),
    "partitioning.py": ({"errors"}, {"jax", "flax"}),
    "text": ({"errors", "io"}, {"numpy", "sentencepiece", "etils"}),
    "training": ({"errors", "io", "models", "losses", "partitioning", "text", "checkpoint"},
                 {"jax", "flax", "optax", "numpy", "tqdm", "etils"}),
    "retrieval": ({"errors", "io", "collections", "models", "partitioning", "text", "model", "distributed"},
                  {"jax", "numpy", "tqdm", "etils", "bm25s", "Stemmer"}),
    "evaluation": ({"errors", "io", "collections", "models", "partitioning", "text", "model", "retrieval",
                    "distributed"}, {"jax", "numpy", "tqdm", "etils", "ir_measures", "matplotlib"}),
    "data": ({"__version__", "errors", "io", "collections", "text"},
             {"numpy", "seqio", "tensorflow", "tensorflow_datasets", "sentencepiece", "tqdm", "etils", "zstandard",
              "google_crc32c", "apache_beam", "py7zr"}),
    "checkpoint.py": ({"checkpoint_steps", "errors", "io"}, {"jax", "numpy", "flax", "orbax", "etils", "absl"}),
    "checkpoint_steps.py": ({"errors", "io"}, {"orbax", "etils"}),
    "convert": ({"errors", "io", "models", "text"},
                {"jax", "flax", "numpy", "ml_dtypes", "etils", "tensorstore", "sentencepiece", "torch",
                 "huggingface_hub", "tensorflow"}),
    "conversion.py": ({"errors", "io", "convert", "model"}, {"etils"}),
    "model.py": ({"errors", "io", "models", "partitioning", "text", "checkpoint", "distributed", "convert"},
                 {"jax", "flax", "numpy", "ml_dtypes", "etils"}),
    "embedder.py": ({"errors", "io", "collections", "model", "partitioning", "retrieval"}, {"jax", "numpy"}),
    "distributed.py": ({"errors", "io", "partitioning", "process_group"}, {"jax", "etils"}),
    "process_group.py": ({"errors"}, set()),
    "mining": ({"errors", "io", "collections", "model", "partitioning", "distributed", "retrieval", "text"},
               {"numpy", "etils", "tqdm"}),
    "sweep": ({"errors", "io", "collections", "mining", "arguments", "config", "train", "data", "evaluation"},
              {"etils", "tqdm"}),
    "plan/hlo.py": (set(), {"numpy"}),
    "plan/chips.py": ({"errors", "plan"}, set()),
    "plan/dry_run.py": ({"errors", "partitioning", "plan", "text", "training"}, {"jax"}),
    "plan/command.py": ({"errors", "io", "plan", "config", "train", "data", "partitioning"}, set()),
    "config.py": ({"errors"}, {"gin"}),
    "t5x_adapter": ({"errors", "io", "models", "partitioning", "text", "training", "data"},
                    {"jax", "flax", "t5x", "seqio", "tensorflow", "clu"}),
    "errors.py": (set(), set()),
    "values.py": (set(), set()),
    "__init__.py": ({"embedder"}, set()),
}


def imports(path):
  """(whole module names) that a file imports, at its top or inside a function."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield node.module
      if node.module == "gtr_jax":
        yield from (f"gtr_jax.{alias.name}" for alias in node.names)


def files():
  return sorted((ROOT / "gtr_jax").rglob("*.py"))


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_only_what_it_may(part):
  ours, theirs = ALLOWED[part]
  place = ROOT / "gtr_jax" / part
  for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
    for name in imports(path):
      first, _, rest = name.partition(".")
      if first == "gtr_jax":
        second = rest.split(".")[0]
        assert not rest or second in ours | {part} | EVERYWHERE, f"{path.relative_to(ROOT)} imports {name}"
      else:
        assert first in theirs or first in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package, only_in", [
    ("gin", {"config.py"}), ("orbax", {"checkpoint.py", "checkpoint_steps.py"}), ("clu", {"train.py", "t5x_adapter"}),
    ("tensorflow", {"data", "t5x_adapter", "convert"}), ("apache_beam", {"data"}),
    ("seqio", {"data", "t5x_adapter"}), ("torch", {"convert"}),
    ("transformers", set()), ("t5x", {"t5x_adapter"}),
])
def test_one_place_imports_it(package, only_in):
  for path in files():
    place = path.relative_to(ROOT / "gtr_jax").parts[0]
    if place not in only_in:
      assert package not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("code", [
    "import gtr_jax",
    "from gtr_jax import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass",
    "import gtr_jax.retrieval.search, gtr_jax.model, gtr_jax.evaluation.evaluate, gtr_jax.training.loop",
])
def test_starts_without_tensorflow(code):
  check = code + ("\nimport sys; loaded = {'tensorflow', 'seqio', 'clu.metric_writers'} & set(sys.modules)"
                  "\nassert not loaded, loaded")
  subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, cwd=ROOT)


# Files outside io/ that write, rename or remove by themselves, and why.
BY_HAND = {
    "checkpoint.py": "within Orbax's own temporary folder",
    "checkpoint_steps.py": "sets steps aside",
    "collections/download.py": "downloads that go on where they were cut off",
    "convert/t5x.py": "TensorStore writes the arrays of a whole new folder",
    "data/prepare/beam.py": "a folder that many workers fill",
    "data/prepare/engine.py": "a work folder that a later run goes on in",
    "data/prepare/passages.py": "within a new folder of atomic",
    "data/prepare/pydoc.py": "replaces a corpus, and keeps what others have put there",
    "data/prepare/seven_zip.py": "a pipe",
    "demo.py": "its own marker",
    "distributed.py": "an empty file, to see whether a folder is shared",
    "sweep/run.py": "appends to logs, and sets trainings aside",
    "training/metrics.py": "appends to the metrics",
}


def writes_by_hand(tree):
  """Lines that open for writing, write whole files or rename, other than by `io.atomic`."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    of = ast.unparse(node.func)
    modes = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if (name == "open" and any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax") for mode in modes)
        or isinstance(node.func, ast.Attribute) and not of.startswith("atomic.") and (
            name in ("write_text", "write_bytes", "rename") or of in ("os.replace", "shutil.move")
            or name == "replace" and len(node.args) == 1 and not node.keywords)):
      yield node.lineno


def test_one_way_of_writing():
  found = {str(path.relative_to(ROOT / "gtr_jax")): list(writes_by_hand(ast.parse(path.read_text())))
           for path in files() if path.parent.name != "io"}
  assert {name for name, lines in found.items() if lines} <= BY_HAND.keys(), found


@pytest.mark.parametrize("code, lines", [
    ("path.write_text('x')", 1), ("open(p, 'w')", 1), ("p.open('ab')", 1), ("os.replace(a, b)", 1), ("a.rename(b)", 1),
    ("new.replace(path)", 1), ("text.replace('a', 'b')", 0), ("atomic.write_text(p, 'x')", 0), ("open(p)", 0),
    ("write_text(p, 'x')", 0), ("p.open('rb')", 0), ("dataclasses.replace(a, b=c)", 0), ("state.replace(x=1)", 0)])
def test_what_writes_by_hand_is_found(code, lines):
  assert len(list(writes_by_hand(ast.parse(code)))) == lines


def test_one_reader_of_json():
  """JSON of files is read by `io.jsonl.parse`, so that all know the same of what can be wrong with it."""
  others = {"process_group.py", "distributed.py",  # what processes say to each other
            "evaluation/published.py",  # packaged
            "demo.py",  # written a moment ago
            "data/pipeline.py", "data/prepare/decontaminate.py",  # within an archive that was read whole
            "data/prepare/manifests.py"}  # of values, not of a file
  found = {str(path.relative_to(ROOT / "gtr_jax")) for path in files() if path.parent.name != "io" and any(
      isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.load", "json.loads")
      for node in ast.walk(ast.parse(path.read_text())))}
  assert found <= others, found - others


def test_one_reader_of_lines():
  """Compressed files, corpora, queries and judgements are opened in one place."""
  readers = {"gzip.open", "gzip.GzipFile", "bz2.open", "bz2.BZ2File", "lzma.open", "lzma.LZMAFile"}
  found = {str(path.relative_to(ROOT / "gtr_jax")) for path in files() for node in ast.walk(ast.parse(path.read_text()))
           if isinstance(node, ast.Call) and ast.unparse(node.func) in readers}
  assert found == {"io/lines.py", "mining/mine.py"}, found  # The latter writes.
  names = {path.name for path in files() if "qrels" in path.name}
  assert names == {"qrels.py"}
