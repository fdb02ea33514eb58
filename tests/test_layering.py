"""Who may import whom, and what stays out of a quick start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The packages of gtr_jax from the ground up, and the packages of others that each imports. A package imports itself and
# what stands above its own line, `errors` and the version; nothing of its own line or below.
LAYERS = (
    {"values": ""},
    {"io": "etils pyarrow tqdm zstandard", "config": "gin"},
    {"parallel": "etils flax jax numpy"},
    {"models": "flax jax"},
    {"losses": "jax numpy"},
    {"collections": "etils numpy pyarrow", "text": "etils numpy py3langid sentencepiece",
     "checkpoints": "etils jax orbax"},
    {"prepare": "apache_beam etils google_crc32c ir_datasets numpy py7zr zstandard"},
    {"data": "etils google numpy sentencepiece seqio tensorflow tensorflow_datasets",
     "formats": "etils flax huggingface_hub jax ml_dtypes numpy sentencepiece tensorflow tensorstore torch"},
    {"training": "clu etils flax jax numpy optax wandb", "inference": "etils flax jax ml_dtypes numpy"},
    {"retrieval": "Stemmer bm25s etils faiss jax numpy usearch", "dry_run": "jax numpy",
     "integrations": "clu flax jax mteb numpy seqio t5x tensorflow"},
    {"mining": "etils numpy sentence_transformers zstandard", "evaluation": "etils ir_measures jax matplotlib numpy",
     "serving": "fastapi jax numpy opentelemetry orjson prometheus_client pydantic starlette uvicorn"},
    {"sweep": "etils", "demo": "datasets etils jax sentence_transformers torch transformers",
     "from_pairs": "etils jax numpy", "survey": "etils matplotlib numpy",
     "teachers": "etils flax huggingface_hub jax numpy optax sentence_transformers"},
    {"cli": ""},
)


def files():
  return sorted((ROOT / "gtr_jax").rglob("*.py"))


def module_of(path):
  return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in files()}


def imports(path):
  """Whole names of the modules that a file imports, at its top or inside a function."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      inside = {f"{node.module}.{alias.name}" for alias in node.names}
      yield from inside & MODULES or {node.module}


def package_of(module):
  """Of ours: "io" of gtr_jax.io.lines, "" of what stands at the root."""
  parts = module.split(".")
  return parts[1] if len(parts) > 2 or (ROOT / "gtr_jax" / parts[-1]).is_dir() and len(parts) == 2 else ""


def test_the_root_has_three_modules():
  assert {path.name for path in (ROOT / "gtr_jax").glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
  assert {path.name for path in (ROOT / "gtr_jax").iterdir() if path.is_dir()} - {"__pycache__"} == {
      package for layer in LAYERS for package in layer}


@pytest.mark.parametrize("package", [package for layer in LAYERS for package in layer])
def test_imports_only_what_stands_above(package):
  line = next(i for i, layer in enumerate(LAYERS) if package in layer)
  ours = {package, *(above for layer in LAYERS[:line] for above in layer)}
  for path in sorted((ROOT / "gtr_jax" / package).rglob("*.py")):
    for name in imports(path):
      first = name.partition(".")[0]
      if first == "gtr_jax":
        assert package_of(name) in ours or name in ("gtr_jax", "gtr_jax.errors"), f"{module_of(path)} imports {name}"
      else:
        assert first in LAYERS[line][package].split() or first in sys.stdlib_module_names, (
            f"{module_of(path)} imports {name}")


def test_no_circle():
  """Also none that is hidden in functions."""
  graph = {module_of(path): {name for name in imports(path) if name in MODULES} for path in files()}
  graph["gtr_jax"] = set()  # What it shows is imported when it is asked for.
  done = set()

  def visit(module, inside):
    assert module not in inside, " -> ".join([*inside[inside.index(module):], module])
    if module not in done:
      for imported in sorted(graph[module]):
        visit(imported, [*inside, module])
      done.add(module)

  for module in sorted(graph):
    visit(module, [])


@pytest.mark.parametrize("package, only_in", [
    ("gin", {"config"}), ("orbax", {"checkpoints"}), ("clu", {"training", "integrations"}),
    ("tensorflow", {"data", "integrations", "formats"}), ("apache_beam", {"prepare"}),
    ("seqio", {"data", "integrations"}), ("torch", {"formats", "demo"}), ("transformers", {"demo"}),
    ("t5x", {"integrations"}), ("wandb", {"training"}), ("sentence_transformers", {"mining", "teachers", "demo"}),
    ("datasets", {"demo"}), ("faiss", {"retrieval"}), ("usearch", {"retrieval"}),
])
def test_one_place_imports_it(package, only_in):
  for path in files():
    place = path.relative_to(ROOT / "gtr_jax").parts[0]
    if place not in only_in:
      assert package not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("code", [
    "import gtr_jax",
    "from gtr_jax.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "import gtr_jax.retrieval.search, gtr_jax.inference.load, gtr_jax.evaluation.evaluate, gtr_jax.training.loop",
])
def test_starts_without_tensorflow(code):
  check = code + ("\nimport sys; loaded = {'tensorflow', 'seqio', 'clu.metric_writers'} & set(sys.modules)"
                  "\nassert not loaded, loaded")
  subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, cwd=ROOT)


# Files outside io/ that write, rename or remove by themselves, and why.
BY_HAND = {
    "checkpoints/checkpointer.py": "within Orbax's own temporary folder",
    "checkpoints/steps.py": "sets steps aside",
    "collections/download.py": "downloads that go on where they were cut off",
    "formats/t5x.py": "TensorStore writes the arrays of a whole new folder",
    "prepare/beam.py": "a folder that many workers fill",
    "prepare/engine.py": "a work folder that a later run goes on in",
    "prepare/passages.py": "within a new folder of atomic",
    "prepare/work_folder.py": "gives what a later run may go on in its name",
    "demo/corpus.py": "replaces a corpus, and keeps what others have put there",
    "prepare/seven_zip.py": "a pipe",
    "demo/run.py": "its own marker",
    "parallel/processes.py": "an empty file, to see whether a folder is shared",
    "sweep/run.py": "appends to logs, and sets trainings aside",
    "training/writers.py": "appends to the metrics",
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
  others = {"parallel/process_group.py", "parallel/processes.py",  # what processes say to each other
            "parallel/rendezvous.py",  # likewise
            "evaluation/published.py",  # packaged
            "demo/run.py",  # written a moment ago
            "data/datasets.py", "prepare/decontaminate.py",  # within an archive that was read whole
            "prepare/manifests.py"}  # of values, not of a file
  found = {str(path.relative_to(ROOT / "gtr_jax")) for path in files() if path.parent.name != "io" and any(
      isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.load", "json.loads")
      for node in ast.walk(ast.parse(path.read_text())))}
  assert found <= others, found - others


# Files that fold case or Unicode beside text/same_text.py, and why: none asks whether two texts are the same.
FOLDS = {
    "prepare/sources/pair_fields.py": "names of fields, and true and false",
    "prepare/sources/field_names.py": "names of fields, and words of annotators",
    "io/tables.py": "names of files",
    "io/table_folders.py": "names of files",
    "io/jsonl.py": "names of files",
    "text/answers.py": "whether a passage holds an answer, as DPR and SQuAD decide it",
    "demo/docstrings.py": "a name in words",
    "prepare/sources/reddit_text.py": "bots by name",
    "prepare/sources/reddit.py": "names of authors and communities",
    "prepare/sources/html_text.py": "names of tags",
    "prepare/sources/natural_questions.py": "names of tags",
    "collections/qrels.py": "names of columns",
    "io/paths.py": "schemes of URLs",
    "evaluation/report.py": "names of files",
    "formats/vocabulary.py": "a message",
    "values/check.py": "a message",
    "config/messages.py": "a message",
    "io/flags.py": "names of flags",
    "serving/problems.py": "names of statuses",
    "serving/log.py": "names of levels",
    "serving/guard.py": "names of headers",
}


def test_one_definition_of_equal_texts():
  found = {str(path.relative_to(ROOT / "gtr_jax")) for path in files() for node in ast.walk(ast.parse(path.read_text()))
           if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (
               node.func.attr in ("casefold", "case_fold_utf8", "normalize_utf8")
               or node.func.attr == "lower" and not node.args and not node.keywords
               or ast.unparse(node.func) == "unicodedata.normalize")}
  assert found - {"text/same_text.py"} == FOLDS.keys()


def test_one_reader_of_lines():
  """Compressed files, corpora, queries and judgements are opened in one place."""
  readers = {"gzip.open", "gzip.GzipFile", "bz2.open", "bz2.BZ2File", "lzma.open", "lzma.LZMAFile"}
  found = {str(path.relative_to(ROOT / "gtr_jax")) for path in files() for node in ast.walk(ast.parse(path.read_text()))
           if isinstance(node, ast.Call) and ast.unparse(node.func) in readers}
  assert found == {"io/lines.py", "mining/mine.py"}, found  # The latter writes.
  names = {path.name for path in files() if "qrels" in path.name}
  assert names == {"qrels.py"}
