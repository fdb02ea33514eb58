"""Looking at training data: what is shown is what a run would read."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
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
      (row["query"], row["positive"], len(set(row["negatives"]))) for row in rows)
  found = json.loads(run(capsys, "stats", *source, "--json"))
  assert found["pairs"] == len(rows) == len(shown) and found["unit"] == "words"
  assert found["distinct_queries"] == 20 and found["pairs_of_query"] == {"2": 20} and found["same_pairs"] == 0
  negatives = sum(len(example.get("negatives", ())) for example in shown)
  lengths = [len(row["positive"].split()) for row in rows] + [4] * negatives
  assert found["documents"]["texts"] == len(lengths) and found["documents"]["longest"] == max(lengths)
  np.testing.assert_allclose(found["documents"]["mean"], np.mean(lengths))
  assert sum(texts for _, texts in found["documents"]["histogram"]) == len(lengths)


def test_negatives_that_are_none(data_dir, capsys):
  """Are not shown of a file either."""
  (data_dir / "own.jsonl").write_text(json.dumps({"query": "e", "positive": "p", "negatives": ["e", "P.", "n", "n"]}))
  shown = [json.loads(line) for line in run(capsys, "show", str(data_dir / "own.jsonl"), "--json").splitlines()]
  assert [example["negatives"] for example in shown] == [["n"]]


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


def test_of_a_file_nothing_was_dropped_yet(data_dir, rows, capsys):
  path = write_jsonl(data_dir / "my.jsonl", rows)
  for source in (str(path), "my.jsonl", "nothing.jsonl"):
    assert main(["data", "show", source, "--dropped"]) == 2
    said = capsys.readouterr().err
    assert f"{source}: --dropped is of prepared data; give the name of what" in said and "--name" not in said


def test_nothing_was_dropped(data_dir, rows, capsys, monkeypatch):
  monkeypatch.setenv("GTR_DATA_DIR", str(data_dir))
  path = write_jsonl(data_dir / "my.jsonl", rows)
  assert main(["prepare", "pairs", str(path), "--name", "mine", "--workers", "1"]) == 0
  assert run(capsys, "show", "mine", "--dropped") == "nothing was left out: read 40, written 40\n"
  assert run(capsys, "show", "mine", "--dropped", "--json") == ""


def test_why_a_line_was_dropped_is_whole(data_dir, capsys, monkeypatch):
  monkeypatch.setenv("GTR_DATA_DIR", str(data_dir))
  rows = [{"query": f"q {i}", "passage": f"p {i}", "label": 1} for i in range(30)]
  rows[20]["label"] = "perhaps"
  rows[21] |= {"passage": (long := words(60, 1)), "query": long}
  assert main(["prepare", "pairs", str(write_jsonl(data_dir / "my.jsonl", rows)), "--name", "mine"]) == 0
  shown = run(capsys, "show", "mine", "--dropped").splitlines()
  why = shown.index(next(line for line in shown if line.startswith("why")))
  whole = " ".join(line[12:] for line in shown[why:why + 3])
  assert whole.startswith("field 'label' is a text ('perhaps')") and "(--ignore label)" in whole
  assert f"passage     {long[:120]}…" in shown


def test_rows_that_are_no_answers(data_dir, capsys):
  """And pairs of one text twice, which are counted and dropped by `prepare`."""
  rows = [{"query": f"q {i // 2}", "passage": words(4 + i, i), "label": i % 2} for i in range(10)]
  path = write_jsonl(data_dir / "my.jsonl", [*rows, {"query": "Same text", "passage": "same text.", "label": 1}])
  shown = run(capsys, "show", str(path), "--examples", "2").splitlines()
  assert [line.split("  ")[0] for line in shown[2:]] == ["--- my.jsonl, 1", "query", "no answer", "--- my.jsonl, 2",
                                                         "query", "passage"]
  found = json.loads(run(capsys, "stats", str(path), "--json"))
  assert (found["pairs"], found["no_answers"], found["query_is_passage"]) == (6, 5, 1)
  assert found["pairs_of_query"] == {"1": 6} and found["documents"]["texts"] == 11
  assert found["documents"]["longest"] == 13 and found["distinct_passages"] == 6
  said = run(capsys, "stats", str(path))
  assert "no answers  5 rows more, " in said and "of 1 pairs the query is the passage" in said


def test_broken_lines(data_dir, capsys):
  rows = [{"query": f"q {i}", "positive": {"x": i} if i % 4 else f"p {i}"} for i in range(12)]
  path = write_jsonl(data_dir / "my.jsonl", rows)
  shown = run(capsys, "show", str(path), "--examples", "2").splitlines()
  assert shown[-4] == "broken: 3 of the lines that were looked at"
  assert shown[-3] == f'  {path}:2: an object ({{"x": 1}}), where a text is expected'
  of_all = ["broken: 9 of the lines that were looked at, of which the first 5", shown[-3]]
  for what in ("show", "stats"):
    said = run(capsys, what, str(path)).splitlines()
    assert said[-6:-4] == of_all and said[-1].startswith(f"  {path}:7:")
  found = json.loads(run(capsys, "stats", str(path), "--json"))
  assert found["left_out"] == {"broken": 9} and found["broken_places"][0] == shown[-3].strip()
  capsys.readouterr()
  assert main(["data", "show", str(path), "--json", "--examples", "2"]) == 0
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == 2 and "broken: 3 of the lines" in err
  assert run(capsys, "show", str(path), "--skip", "3").splitlines()[2] == "no pair behind the first 3"


def test_several_sources(data_dir, rows, capsys, monkeypatch):
  """Files by a pattern, and prepared data: one behind the other."""
  monkeypatch.setenv("GTR_DATA_DIR", str(data_dir))
  write_jsonl(data_dir / "part-1.jsonl", rows[:10])
  write_jsonl(data_dir / "part-2.jsonl", [*rows[10:16], {"query": 1, "positive": "x"}])
  path = write_jsonl(data_dir / "my.jsonl", rows[16:])
  assert main(["prepare", "pairs", str(path), "--name", "mine", "--workers", "1"]) == 0
  sources = ["mine", f"{data_dir}/part-*.jsonl"]
  for given in (sources, [*sources[:1], *(f"{data_dir}/part-{i}.jsonl" for i in (1, 2))]):
    shown = [json.loads(line) for line in run(capsys, "show", *given, "--json", "--examples", "99").splitlines()]
    assert sorted(s["passage"] for s in shown) == sorted(row["positive"] for row in rows)
    assert json.loads(run(capsys, "stats", *given, "--json"))["pairs"] == 40
  said = run(capsys, "show", *sources).splitlines()
  assert said[0] == "2 sources" and said[1] == "  mine" and any(line.startswith(f"  {data_dir}/part-") for line in said)
  assert run(capsys, "stats", *sources).splitlines()[-2:] == [
      "broken: 1 of the lines that were looked at",
      f"  {data_dir}/part-2.jsonl:7: a number (1), where a text is expected"]


def test_the_longest_texts(data_dir, capsys, monkeypatch):
  """The last line and the last bar say from where to where they go, and how many they are."""
  path = write_jsonl(data_dir / "my.jsonl", [{"query": f"q {i}", "positive": words(5 if i else 99, i)}
                                             for i in range(200)])
  said = run(capsys, "stats", str(path)).splitlines()
  assert said[-1].split() == ["20", "to", "99", "1", "#"]
  labels = []
  monkeypatch.setattr(Axes, "set", lambda axes, **settings: labels.append(settings["xlabel"]))
  run(capsys, "stats", str(path), "--plot", str(data_dir / "lengths"))
  assert labels == ["words", "words (the last bar: 20 to 99, 1 texts)"]


@pytest.mark.parametrize("arguments, message", [
    (["show", "runs/nosuch.parquet"], "runs/nosuch.parquet: no such file"),
    (["stats", "nosuch.jsonl.gz"], "nosuch.jsonl.gz: no such file"),
    (["show", "nosuch-*.jsonl"], "nosuch-*.jsonl: no such file, nor one of such a name"),
    (["show", "my.jsonl", "--query_length", "8"], "--query_length and --document_length are in tokens: give --vocab"),
    (["stats", "my.jsonl", "--document_length", "8"], "are in tokens: give --vocabulary"),
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
