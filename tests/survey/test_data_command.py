"""Looking at training data: what is shown is what a run would read."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_text import words, write_jsonl

from gtr_jax.cli.main import main
from gtr_jax.prepare.of_queries import MOST_POSITIVES
from gtr_jax.text.tokenizer import Tokenizer

pytest_plugins = "data_fixtures"


@pytest.fixture
def rows():
  return [{"query": f"question {i // 2}", "positive": words(5 + i % 7, i), "negatives": [words(4, 100 + i)] * (i % 3),
           "source": "x"} for i in range(40)]


@pytest.fixture
def source(request, data_dir, rows, monkeypatch):
  """A file, prepared data and a task of the same pairs."""
  monkeypatch.setenv("GTR_DATA_DIR", str(data_dir))
  path = write_jsonl(data_dir / "my.jsonl", rows)
  if request.param == "file":
    return [str(path)]
  if request.param == "prepared":
    assert main(["prepare", "pairs", str(path), "--name", "mine", "--workers", "1"]) == 0
    return ["mine"]
  (data_dir / "tasks_of_survey.py").write_text("""
from gtr_jax.data.examples import add_pair_task, jsonl
add_pair_task("surveyed", jsonl(train="my.jsonl"), query="query", passage="positive", negatives="negatives",
              vocabulary="none")
""")
  monkeypatch.syspath_prepend(str(data_dir))
  return ["surveyed", "--module", "tasks_of_survey"]


def run(capsys, *arguments):
  capsys.readouterr()
  assert main(["data", *arguments]) == 0
  return capsys.readouterr().out


@pytest.mark.parametrize("source", ["file", "prepared", "task"], indirect=True)
def test_the_same_of_each_source(source, rows, capsys):
  shown = [json.loads(line) for line in run(capsys, "show", *source, "--json", "--examples", "99").splitlines()]
  assert sorted((s["query"], s["passage"], len(s.get("negatives", ()))) for s in shown) == sorted(
      (row["query"], row["positive"], len(set(row["negatives"]))) for row in rows) or source[0].endswith(".jsonl")
  found = json.loads(run(capsys, "stats", *source, "--json"))
  assert found["pairs"] == len(rows) == len(shown) and found["unit"] == "words"
  assert found["distinct_queries"] == 20 and found["pairs_of_query"] == {"2": 20} and found["same_pairs"] == 0
  negatives = sum(len(example.get("negatives", ())) for example in shown)
  lengths = [len(row["positive"].split()) for row in rows] + [4] * negatives
  assert found["documents"]["texts"] == len(lengths) and found["documents"]["longest"] == max(lengths)
  np.testing.assert_allclose(found["documents"]["mean"], np.mean(lengths))
  assert sum(texts for _, texts in found["documents"]["histogram"]) == len(lengths)


def test_pieces_and_the_cut(data_dir, vocabulary, rows, capsys):
  path, tokenizer = write_jsonl(data_dir / "my.jsonl", rows), Tokenizer(vocabulary)
  limits = ["--vocabulary", str(vocabulary), "--query_length", "4", "--document_length", "9"]
  shown = run(capsys, "show", str(path), *limits, "--examples", "1", "--skip", "3").splitlines()
  assert shown[:3] == [str(path), '  fields: query: "query"; passage: "positive"; negatives: "negatives"; '
                       "not read: source", "--- my.jsonl, 4"]
  pieces = tokenizer.pieces_of(rows[3]["query"])
  assert shown[3].split()[1:4] == pieces[:3] and f"CUT OFF ({len(pieces) - 3} pieces)" in shown[3]
  found = json.loads(run(capsys, "stats", str(path), *limits, "--json", "--plot", str(data_dir / "lengths")))
  tokens = [len(ids) for ids in tokenizer.encode([row["query"] for row in rows], 999)]
  assert found["queries"]["mean"] == pytest.approx(np.mean(tokens)) and found["unit"] == "tokens"
  assert found["queries"]["cut"] == np.mean(np.array(tokens) > 4) and 0.5 < found["fill"] <= 1
  assert (data_dir / "lengths.png").stat().st_size > 5000 and (data_dir / "lengths.svg").exists()
  said = run(capsys, "stats", str(path), *limits)
  assert "40; 20 different queries" in said and f"{found['queries']['cut']:.1%} are cut at 4" in said


def test_languages(data_dir, capsys):
  texts = ["The weather is fine today, and the children are playing in the garden.",
           "Das Wetter ist heute schön, und die Kinder spielen im Garten."]
  path = write_jsonl(data_dir / "my.jsonl", [{"query": f"q {i}", "positive": texts[i % 4 == 3] + f" {i}"}
                                             for i in range(40)])
  assert json.loads(run(capsys, "stats", str(path), "--json"))["languages"] == {"en": 30, "de": 10}
  assert "languages   of 40 passages: en 75.0%, de 25.0%\n" in run(capsys, "stats", str(path))


def test_what_was_dropped(data_dir, capsys, monkeypatch):
  monkeypatch.setenv("GTR_DATA_DIR", str(data_dir))
  path = write_jsonl(data_dir / "my.jsonl", [{"query": "a", "positive": "b"}, {"query": "A", "positive": "b."}])
  assert main(["prepare", "pairs", str(path), "--name", "mine", "--workers", "1"]) == 0
  assert run(capsys, "show", "mine", "--dropped").splitlines() == [
      "=== duplicate: 1", "--- duplicate", "query       A", "passage     b."]
  many = [{"query": "q", "positive": f"p{i}"} for i in range(5)]
  path = write_jsonl(data_dir / "many.jsonl", many)
  assert main(["prepare", "pairs", str(path), "--name", "many", "--workers", "1"]) == 0
  assert "known       4 other passages that answer it" in run(capsys, "show", "many") and MOST_POSITIVES > 4


@pytest.mark.parametrize("arguments, message", [
    (["show", "nothere"], "no task or mixture 'nothere', nor prepared data of that name"),
    (["stats", "my.jsonl"], "fields 'a' are of no kind that is known"),
    (["show", "my.jsonl", "--module", "no.module"], "no module 'no.module'"),
])
def test_what_is_not_there(data_dir, capsys, monkeypatch, arguments, message):
  write_jsonl(data_dir / "my.jsonl", [{"a": "b"}])
  monkeypatch.chdir(data_dir)
  assert main(["data", *arguments]) == 2
  assert message in capsys.readouterr().err


def test_a_reader_that_has_read_enough(data_dir, rows):
  path = write_jsonl(data_dir / "my.jsonl", [row | {"positive": "long " * 300} for row in rows] * 20)
  command = f"{sys.executable} -m gtr_jax data show {path} --whole --examples 800 | head -1"
  run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
  assert run.returncode == 141 and run.stdout.splitlines() == [str(path)] and not run.stderr
