"""Pairs in tables are prepared as the same pairs in JSON lines, byte by byte."""

import itertools
import json

import pyarrow
import pytest
import table_files
from prepared_in_memory import prepared
from pyarrow import parquet

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.io import data_root, tables
from gtr_jax.prepare import engine, manifests
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl

TITLED = [{"query": str(2000 + i), "title": None if i % 3 == 0 else f"title, {i}",
           "text": f'a "text" {i}\nof two lines', "others": [f"[not] {i}", f'["neither {i}"'][:i % 3],
           "relevant": i % 4 != 0, "id": i // 2} for i in range(40)]
SCORED = [{"query": f"q {i // 2}", "pos": [f"p {i}", f"and {i}"], "neg": [f"n {i}", f"m {i}"],
           "pos_scores": [1.5, -2e-3], "neg_scores": [0.25, 3]} for i in range(40)]
LABELED = [{"sentence1": f"a {i // 2}", "sentence2": f"b {i}", "label": i % 2, "source": "x"} for i in range(40)]
SEVERAL = [{"anchor": f"a {i}", "positive": f"p {i}", "negative_1": f"[{i}]", "negative_2": f"n {i}",
            "positive_score": i / 8} for i in range(40)]
NAMED = {"query": ("query",), "passage": ("title", "text"), "negatives": "others", "query_id": "id"}
CASES = {"titled": (TITLED, NAMED), "scored": (SCORED, {}), "labeled": (LABELED, {}), "several": (SEVERAL, {})}


@pytest.fixture(autouse=True)
def no_data_dir():
  yield
  data_root.set_data_dir(None)


def shards(source, folder):
  data_root.set_data_dir(str(folder))
  done = engine.prepare(source, manifests.Settings(), processes=1, say=lambda line: None)
  manifest = json.loads((done / "manifest.json").read_text())
  return [path.read_bytes() for path in sorted(done.glob("*.tfrecord"))], manifest["counts"], manifest["inputs"]


@pytest.mark.parametrize("form", table_files.FORMS)
@pytest.mark.parametrize("case", CASES)
def test_as_json_lines(tmp_path, monkeypatch, case, form):
  rows, named = CASES[case]
  of_lines = PairsJsonl((table_files.write(tmp_path, "x.jsonl", rows),), **named)
  monkeypatch.setattr(tables, "PART_BYTES", 1)  # Row groups and record batches apart.
  source = PairsJsonl((table_files.write(tmp_path, form, rows),), **named)
  (expected, counts), (found, of_table) = prepared(of_lines), prepared(source)
  assert found == expected and of_table.reasons == counts.reasons and not counts.places
  assert source.fields() == of_lines.fields()


@pytest.mark.parametrize("form", ["x.csv", "shards", "dataset"])
def test_the_files_are_those_of_json_lines(tmp_path, form):
  rows = TITLED + TITLED[:4]
  expected = shards(PairsJsonl((table_files.write(tmp_path, "x.jsonl", rows),), **NAMED), tmp_path / "data")
  found = shards(PairsJsonl((table_files.write(tmp_path, form, rows),), **NAMED), tmp_path / "of_table")
  assert found[:2] == expected[:2] and expected[1]["read"] == 44 and expected[1]["duplicate"] == 3
  names = {"dataset": ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"],
           "shards": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]}
  assert [entry["name"] for entry in found[2]] == names.get(form, [form])


def test_by_several_processes(tmp_path, monkeypatch, capsys):
  path = table_files.write(tmp_path, "x.parquet", SCORED)
  monkeypatch.setattr(tables, "PART_BYTES", 1)
  assert len(PairsJsonl((path,)).parts()) == 4
  for workers in ("1", "2"):
    assert main(["prepare", "pairs", path, "--data_dir", str(tmp_path / workers), "--workers", workers]) == 0
    assert "\nread 40, written 80 (train 80)\n" in capsys.readouterr().out
  first, second = ([file.read_bytes() for file in sorted((tmp_path / workers / "pairs").glob("*.tfrecord"))]
                   for workers in ("1", "2"))
  assert first == second


def test_columns_that_nobody_asks_for_are_not_read(tmp_path):
  """Pictures and vectors beside a pair are nothing to it; but what may change its meaning is looked at by its name."""
  columns = {"query": ["a"], "positive": ["b"], "image": pyarrow.array([b"\xff"], pyarrow.binary())}
  parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
  source = PairsJsonl((str(tmp_path / "x.parquet"),))
  (example,), counts = prepared(source)
  assert (example.query, example.passage) == ("a", "b") and not counts.places
  assert source.fields() == ['query: "query"; passage: "positive"; not read: image']
  parquet.write_table(pyarrow.table(columns | {"grade": [b"\xff"]}), tmp_path / "x.parquet")
  with pytest.raises(InputError, match=r"x.parquet:row 1: .*'grade', which may change what the pair"):
    source.parts()
  assert prepared(PairsJsonl(source.paths, ignore=("grade",)))[0] == [example]


def test_lists_and_sets_in_columns(tmp_path):
  for name, rows in (("sets", [{"set": ["a", "b", "c"]}]), ("texts", [{"texts": ["a", "b"]}])):
    examples, _ = prepared(PairsJsonl((table_files.write(tmp_path, f"{name}.jsonl", rows),)))
    table_files.write_parquet(tmp_path / f"{name}.parquet", rows)
    assert prepared(PairsJsonl((str(tmp_path / f"{name}.parquet"),)))[0] == examples != []


@pytest.mark.parametrize("cell, negatives", [
    ('["n", "m"]', ("n", "m")), (' [ "n" ] ', ("n",)), ("[]", ()), ("", ()), ("[1] says", ("[1] says",)),
    ("[n]", ("[n]",)), ('[{"title": "t", "text": "n"}]', ("t n",))])
def test_lists_in_a_cell(tmp_path, cell, negatives):
  path = table_files.write(tmp_path, "x.csv", [{"query": "a", "positive": "b", "negatives": cell}])
  (example,), counts = prepared(PairsJsonl((path,)))
  assert example.negatives == negatives and not counts.places
  path = table_files.write(tmp_path, "x.tsv", [{"query": "a", "positive": '["x"]', "negative": '["n"]'}])
  (example,), _ = prepared(PairsJsonl((path,)))
  assert (example.passage, example.negatives) == ('["x"]', ('["n"]',))  # Of one text each.


@pytest.mark.parametrize("row, message", [
    ({"negatives": "['n', 'm']"}, "field 'negatives' begins as a list, and is not JSON (Expecting value at column 2); "
                                  "write it as JSON"),
    ({"negatives": "[3]", "neg_scores": "x"}, "field 'neg_scores' has a text ('x'), where a number is expected"),
    ({"score": "0,5"}, "field 'score' has a text ('0,5'), where a number is expected"),
    ({"label": ""}, "label is null, NaN or empty: give 0 or 1, or leave it out with --ignore label"),
    ({"label": "2"}, "field 'label' is a text ('2')"),
    ({"pos_scores": "[0.5"}, "field 'pos_scores' begins as a list, and is not JSON"),
    ({"pos_scores": '[0.5, "x"]'}, "field 'pos_scores' has a text ('x')"),
])
def test_cells_that_are_something_else(tmp_path, row, message):
  path = table_files.write(tmp_path, "x.csv", [{"query": "a", "positive": "b"} | row])
  with pytest.raises(InputError) as e:
    PairsJsonl((path,)).parts()
  assert str(e.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize("text, message", [
    ("what is jit,a compiler\nb,c\n", "x.csv:2: fields 'what is jit', 'a compiler' are of no kind that is known; the "
                                      "first line of CSV and TSV names their columns"),
    ("1,2\n3,4\n", "x.csv:1: the first line of CSV or TSV names its columns"),
    ("a,b\n", "x.csv: no row")])
def test_a_first_line_that_names_nothing(tmp_path, text, message):
  (tmp_path / "x.csv").write_text(text)
  with pytest.raises(InputError) as e:
    PairsJsonl((str(tmp_path / "x.csv"),)).parts()
  assert str(e.value).startswith(f"{tmp_path}/{message}")


def test_a_changed_file_of_a_folder_is_prepared_anew(tmp_path):
  source = PairsJsonl((table_files.write(tmp_path, "dataset", SCORED),))
  before = manifests.describe(source, manifests.Settings())
  assert manifests.describe(source, manifests.Settings()) == before
  table_files.write_stream(tmp_path / "dataset/data-00001-of-00002.arrow", SCORED[:7])
  after = manifests.describe(source, manifests.Settings())
  assert after["fingerprint"] != before["fingerprint"]
  assert [old == new for old, new in zip(before["inputs"], after["inputs"], strict=True)] == [True, False]


def test_several_forms_together(tmp_path):
  rows = iter(SCORED)
  paths = [table_files.write(tmp_path, form, list(itertools.islice(rows, 10)))
           for form in ("x.jsonl", "x.parquet", "dataset", "x.csv")]
  expected, _ = prepared(PairsJsonl((table_files.write(tmp_path, "all.jsonl", SCORED),)))
  assert prepared(PairsJsonl(tuple(paths)))[0] == expected


def test_a_tested_collection_of_tables(tmp_path):
  """What it tests is not trained on; all its files are inputs."""
  folder = tmp_path / "tested"
  (folder / "qrels").mkdir(parents=True)
  table_files.write_shards(folder / "corpus", [{"_id": f"d{i}", "text": f"tested {i}"} for i in range(4)])
  table_files.write_parquet(folder / "queries.parquet", [{"_id": "q", "text": "q 3"}])
  table_files.write_text(folder / "qrels" / "test.csv", [{"query-id": "q", "corpus-id": "d1", "score": 1}])
  data_root.set_data_dir(str(tmp_path / "data"))
  source = PairsJsonl((table_files.write(tmp_path, "x.parquet", SCORED),))
  done = engine.prepare(source, manifests.Settings(decontaminate=(str(folder),)), processes=1, say=lambda line: None)
  manifest = json.loads((done / "manifest.json").read_text())
  assert manifest["counts"]["contaminated"] == 4  # Of two rows.
  assert [entry["name"] for entry in manifest["inputs"]] == [
      "x.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "queries.parquet", "test.csv"]
