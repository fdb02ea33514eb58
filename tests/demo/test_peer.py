"""`gtr-jax demo --peer` without sentence-transformers: what it needs, reads and says. Training is in tests/peers."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gtr_jax.cli.main import main
from gtr_jax.demo import peer, run
from gtr_jax.errors import InputError

ALL = {"sentence-transformers": "6.2.0", "torch": "2.13.0", "transformers": "5.23.0", "datasets": "5.2.0",
       "accelerate": "1.15.0"}


def installed(monkeypatch, **changed):
  versions = {**ALL, **{name.replace("_", "-"): version for name, version in changed.items()}}
  monkeypatch.setattr(peer, "_version", versions.get)


@pytest.mark.parametrize("changed, message", [
    ({"datasets": None}, "datasets is not installed: pip install 'sentence-transformers"),
    ({"datasets": None, "accelerate": None}, "datasets, accelerate are not installed: pip install"),
    ({"sentence_transformers": "5.4.1"}, "6.2 or newer, and 5.4.1 is installed: pip install 'sentence-transformers"),
])
def test_what_is_missing_is_said_in_one_line_before_anything_runs(monkeypatch, tmp_path, capsys, changed, message):
  installed(monkeypatch, **changed)
  assert main(["demo", "--peer", "--output", str(tmp_path / "demo")]) == 2
  said = capsys.readouterr()
  assert message in said.err and said.err.count("\n") == 1 and not said.out
  assert not (tmp_path / "demo").exists()


def test_it_compares_on_the_cpu(monkeypatch):
  installed(monkeypatch)
  peer.check()
  installed(monkeypatch, sentence_transformers="10.0")
  peer.check()
  monkeypatch.setattr(peer.jax, "default_backend", lambda: "gpu")
  with pytest.raises(InputError, match="jax computes on gpu: set JAX_PLATFORMS=cpu"):
    peer.check()


class Commands:
  """Stands for the command line: keeps what it is told, and leaves what the demo itself reads."""

  def __init__(self, folder):
    self.folder, self.lines = folder, []

  def __call__(self, words):
    self.lines.append(words)
    if words[0] == "prepare":
      for name in ("numpy_jax_tensorflow", "small"):
        (self.folder / "data/pydoc/collections" / name).mkdir(parents=True)
    if words[0] == "evaluate":
      systems = {name: {"results": {"small": {"nDCG@10": 0.2}}} for name in (
          "untrained", "GTR-PT", "GTR-FT", "GTR", "BM25")}
      (self.folder / "results").mkdir(exist_ok=True)
      (self.folder / "results/results.json").write_text(json.dumps({"systems": systems}))
    return 0

  def training(self, model_dir):
    return next(words for words in self.lines if any(word.endswith(f"/{model_dir}'") and "MODEL_DIR" in word
                                                     for word in words))


@pytest.mark.parametrize("beside_peer", [False, True])
def test_only_with_peer_the_demo_keeps_more_and_compares(monkeypatch, tmp_path, capsys, beside_peer):
  installed(monkeypatch)
  compared = []
  monkeypatch.setattr(peer, "compare", lambda folder, command, collections: compared.append(
      (folder, [path.name for path in collections])) or "THE TABLE\n")
  commands = Commands(tmp_path)
  run.run(str(tmp_path), commands, beside_peer)
  assert compared == [(tmp_path, ["numpy_jax_tensorflow", "small"])] * beside_peer
  assert ("THE TABLE" in capsys.readouterr().out) is beside_peer
  for name in ("gtr_pt", "gtr", "gtr_ft", "untrained"):
    assert (set(peer.FLAGS) <= set(commands.training(name))) is (beside_peer and name in ("gtr_pt", "gtr"))


def test_the_normal_demo_imports_nothing_of_it():
  code = ("import sys, gtr_jax.cli.main, gtr_jax.cli.demo, gtr_jax.demo.run\n"
          "assert not {'gtr_jax.demo.peer', 'gtr_jax.demo.peer_training', 'torch', 'datasets'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", code], check=True)
  for path in Path(run.__file__).parent.glob("*.py"):
    roots = {name.partition(".")[0] for node in ast.walk(ast.parse(path.read_text())) for name in (
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else
        [node.module] if isinstance(node, ast.ImportFrom) else [])}
    theirs = roots & {"torch", "sentence_transformers", "transformers", "datasets"}
    assert bool(theirs) is (path.name == "peer_training.py"), path


def test_an_earlier_comparison_moves_aside_too(tmp_path):
  run._begin(tmp_path)
  (tmp_path / "peer").mkdir()
  run._begin(tmp_path)
  assert not (tmp_path / "peer").exists() and (tmp_path / "earlier-1/peer").is_dir()


def jsonl(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def test_pairs_as_columns(tmp_path):
  pairs = [{"query_id": "1", "query": "a", "positive": "b"}, {"query": "c", "positive": "d"}]
  assert peer.columns_of(jsonl(tmp_path / "pairs.jsonl", pairs)) == {"anchor": ["a", "c"], "positive": ["b", "d"]}
  pairs[0]["negatives"], pairs[1]["negatives"] = ["x", "y"], []  # One that nothing was mined for.
  assert peer.columns_of(jsonl(tmp_path / "mined.jsonl", pairs)) == {"anchor": ["a"], "positive": ["b"],
                                                                     "negative": ["x"]}


def test_the_table_has_both_after_the_same_seconds():
  points = [peer.Point(system, stage, "", seconds, pairs) for system, pairs in (
      (peer.OURS, 12800), (peer.THEIRS, 6400)) for stage, seconds in (("pretraining", 10.0), ("fine-tuning", 8.0))]
  quality = {"gtr_jax, pretraining": 0.2, "gtr_jax, fine-tuning": 0.25,
             "sentence-transformers, pretraining": 0.15, "sentence-transformers, fine-tuning": 0.3}
  text = peer.in_words(points, quality)
  rows = [line.split() for line in text.splitlines()]
  assert rows[2] == ["pretraining", "10.0", "12,800", "1,280", "0.2000", "6,400", "640", "0.1500"]
  assert rows[3] == ["fine-tuning", "8.0", "12,800", "1,600", "0.2500", "6,400", "800", "0.3000"]
  assert text.endswith("At the end gtr_jax has 0.250, sentence-transformers 0.300.\n")
  assert len({len(line) for line in text.splitlines()[1:4]}) == 1
