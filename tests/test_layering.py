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
    "sweep": ({"errors", "io", "arguments", "config", "train", "data", "evaluation"}, {"etils", "tqdm"}),
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
