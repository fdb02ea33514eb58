"""Training pairs of collections in BEIR layout.

The layout is as beir/datasets/data_loader.py reads it: corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and
qrels/SPLIT.tsv with a header and query id, document id, grade.
"""

import argparse
import gzip
import json

import pytest
import table_files
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.prepare.sources import beir_pairs


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("GTR_DATA_DIR", str(tmp_path / "data"))
  folder = tmp_path / "fiqa"
  (folder / "qrels").mkdir(parents=True)
  documents = [{"_id": f"d{i}", "title": f"Title {i}" if i % 2 else "", "text": f"text {i}"} for i in range(6)]
  documents.append({"_id": "empty", "title": "Only a title", "text": " "})
  (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
  (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": f"query {i} "}) + "\n"
                                                for i in range(4)))
  write_qrels(folder, "train", "q0 d0 1", "q0 d1 2", "q0 d2 0", "q1 d3 1", "q1 d4 -1", "q1 d4 -1")
  return folder


def write_qrels(folder, split, *rows):
  lines = ["query-id corpus-id score", *rows]
  (folder / "qrels" / f"{split}.tsv").write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))


def run(*flags):
  parser = argparse.ArgumentParser()
  beir_pairs.add_arguments(parser)
  return prepared(beir_pairs.source(parser.parse_args(list(map(str, flags)))))


def test_pairs_and_judged_negatives(folder):
  examples, counts = run(folder)
  assert [tuple(e[:6]) for e in examples] == [
      ("query 0", "text 0", "q0", "d0", ("text 2",), ("d2",)),
      ("query 0", "Title 1 text 1", "q0", "d1", ("text 2",), ("d2",)),
      ("query 1", "Title 3 text 3", "q1", "d3", ("text 4",), ("d4",))]
  assert {e.split for e in examples} == {"train"}
  assert counts.reasons == {"query_without_judgement": 2}


def test_dev_is_the_validation_split(folder):
  write_qrels(folder, "dev", "q2 d4 1", "q0 d5 1")
  examples, _ = run(folder)
  assert [(e.query_id, e.passage_id, e.negatives) for e in examples if e.split == "validation"] == [
      ("q0", "d5", ()), ("q2", "d4", ())]
  assert sum(e.split == "train" for e in examples) == 3
  assert {e.split for e in run(folder, "--validation_split", "")[0]} == {"train"}
  write_qrels(folder, "other", "q3 d4 1")
  assert [e.query_id for e in run(folder, "--validation_split", "other")[0] if e.split == "validation"] == ["q3"]


def test_a_collection_below_the_data_folder(folder, tmp_path):
  folder.rename((tmp_path / "data/beir").mkdir(parents=True) or tmp_path / "data/beir/fiqa")
  assert len(run("beir/fiqa")[0]) == 3
  with pytest.raises(InputError, match="beir/nothing: no such folder, nor below .*data; give one in BEIR layout"):
    run("beir/nothing")


def test_min_grade(folder):
  examples, counts = run(folder, "--min_grade", 2)
  assert [(e.passage_id, e.negative_ids) for e in examples] == [("d1", ("d2",))]  # d0, of grade 1, is no negative.
  assert counts.reasons["grade_too_low"] == 2


def test_what_is_known_to_be_positive_for_dev_is_no_negative_in_training(folder):
  write_qrels(folder, "dev", "q0 d5 1")
  negatives = folder / "negatives.jsonl"
  # As sentence-transformers publishes them (see test_prepare_msmarco.py); BEIR's msmarco has the same ids.
  negatives.write_text(json.dumps({"qid": "q0", "pos": ["d0"], "neg": {"bm25": ["d5", "d1", "d4", "d2"]}}) + "\n")
  examples, counts = run(folder, "--negatives", negatives)
  assert {e.negative_ids for e in examples if e.query_id == "q0" and e.split == "train"} == {("d2", "d4")}
  assert counts.reasons["negative_is_positive"] == 3


def test_other_names_of_files(folder):
  for name in ("corpus", "queries"):
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress((folder / f"{name}.jsonl").read_bytes(), mtime=0))
    (folder / f"{name}.jsonl").unlink()
  assert len(run(folder)[0]) == 3
  (folder / "queries.jsonl.gz").rename(folder / "queries_train.jsonl.gz")
  assert len(run(folder)[0]) == 3
  (folder / "queries_train.jsonl.gz").rename(folder / "queries_all.jsonl.gz")
  with pytest.raises(InputError, match="fiqa: no queries.jsonl or queries.train.tsv, .*; there are"):
    run(folder)
  assert len(run(folder, "--queries", folder / "queries_all.jsonl.gz")[0]) == 3


def test_what_is_not_there_is_counted(folder):
  write_qrels(folder, "train", "q0 d0 1", "q0 d1 1", "q1 d3 1", "q1 nowhere 1", "q1 empty 1", "q9 d2 1", "q2 d4 0 ")
  examples, counts = run(folder)
  assert len(examples) == 3
  assert counts.reasons == {"unknown_passage": 1, "empty_passage": 1, "unknown_query": 1, "query_without_judgement": 1}


def test_judgements_of_another_collection(folder):
  write_qrels(folder, "train", "q0 MED-1 1", "q1 MED-2 1", "q2 d1 1")
  with pytest.raises(InputError, match="2 of the first 3 judged passages, such as 'MED-1', are not in .*corpus.jsonl"):
    run(folder)
  write_qrels(folder, "train", "a d0 1", "b d1 1", "q2 d1 1")
  with pytest.raises(InputError, match="2 of the first 3 judged queries, such as 'a', are not in .*queries.jsonl"):
    run(folder)


def test_broken_lines(folder):
  with (folder / "queries.jsonl").open("ab") as f:
    f.write(b'{"_id": "q4"}\n{"_id": "q5", "text": \n\xff\n["q6", "x"]\n{"_id": "q7", "text": "\\ud800"}\n')
  with (folder / "qrels" / "train.tsv").open("a") as f:
    f.write("q0\nq0\td1\thigh\nq0\t0\td1\t1\textra\n")
  examples, counts = run(folder)
  assert len(examples) == 3 and counts.reasons["broken"] == 8
  assert any("queries.jsonl:5: not a query with _id and text" in place for place in counts.places)


def test_judgements_that_contradict_each_other(folder):
  write_qrels(folder, "train", "q0 d0 1", "q0 d0 0", "q1 d1 1")
  with pytest.raises(InputError, match="train.tsv: query 'q0', passage 'd0' is judged 1 in one line and 0 in another"):
    run(folder)


def test_missing_files(folder):
  with pytest.raises(InputError, match=r"test.tsv: no such file; splits here: train\."):
    run(folder, "--split", "test")
  with pytest.raises(InputError, match="nothing: no such folder"):
    run(folder / "nothing")
  write_qrels(folder, "train")
  with pytest.raises(InputError, match="train.tsv: no judgements in it"):
    run(folder)


@pytest.mark.parametrize("form", ["csv", "parquet", "folder"])
def test_a_collection_of_tables(folder, tmp_path, form):
  write_qrels(folder, "dev", "q2 d4 1")
  expected, counts = run(folder)
  tables, ending = tmp_path / "tables" / "fiqa", "" if form == "folder" else f".{form}"
  (tables / "qrels").mkdir(parents=True)
  writers = {"csv": table_files.write_text, "parquet": table_files.write_parquet, "folder": table_files.write_dataset}
  write = writers[form]
  for name in ("corpus", "queries"):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    write(tables / f"{name}{ending}", list(map(json.loads, lines)))
  for split in ("train", "dev"):
    header, *rows = (line.split("\t") for line in (folder / f"qrels/{split}.tsv").read_text().splitlines())
    write(tables / f"qrels/{split}{ending}", [dict(zip(header, row, strict=True)) for row in rows])
  found, of_tables = run(tables)
  key = lambda example: example[:4]  # noqa: E731
  assert sorted(found, key=key) == sorted(expected, key=key) and of_tables.reasons == counts.reasons
  assert {example.split for example in found} == {"train", "validation"}
