"""DPR's files and what looks like them: NQ, TriviaQA, SQuAD; and NQ-open's questions with what a search has found."""

import argparse
import gzip
import json

import pytest
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.prepare.interface import Example
from gtr_jax.prepare.sources import dpr, nq_open


def context(number, title="Title", **more):
  return {"title": title, "text": f"text {number}", "score": 1.5, "title_score": 0, "passage_id": str(number)} | more


# As DPR reads it (dpr/data/biencoder_data.py, JsonQADataset: question, positive_ctxs, negative_ctxs and
# hard_negative_ctxs of title and text); score, title_score and passage_id are in the published files, which name the
# gold passage (score 1000) a second time where BM25 has found it too.
_RECORD = {"dataset": "nq_dev_psgs_w100", "question": "who sings  ", "answers": ["Linda Davis"],
           "positive_ctxs": [context(1, score=1000, title_score=1), context(1), context(2)],
           "negative_ctxs": [context(7), context(3)],
           "hard_negative_ctxs": [context(3), context(2, text="another text"), context(4, title=None),
                                  context(5, text=" ")]}


@pytest.fixture
def write(tmp_path):
  def written(name, *records, indent=4):
    text = json.dumps(list(records), indent=indent) if ".jsonl" not in name else (
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())
    return path

  return written


def run(*flags, module=dpr):
  parser = argparse.ArgumentParser()
  module.add_arguments(parser)
  return prepared(module.source(parser.parse_args(list(map(str, flags)))))


@pytest.mark.parametrize("name", ["nq.json", "nq.json.gz", "nq.jsonl", "nq.jsonl.gz"])
def test_fields(write, name):
  examples, counts = run(write(name, _RECORD))
  assert examples == [Example("who sings", "Title text 1", "", "1", ("Title text 3", "text 4"), ("3", "4"))]
  assert counts.reasons == {"negative_is_positive": 1}


def test_ids(write):
  """Null is none, a number of a table is its whole number, true is none and an error."""
  passages = [{"title": "", "text": f"text {i}", "passage_id": value} for i, value in enumerate((None, 3.0, 4, "5"))]
  record = {"question": "who", "positive_ctxs": passages[:1], "hard_negative_ctxs": passages[1:]}
  (example,), counts = run(write("nq.jsonl", record))
  assert (example.passage_id, example.negative_ids) == ("", ("3", "4", "5")) and not counts.places
  passages[1]["passage_id"] = True
  examples, counts = run(write("nq.jsonl", record, record))
  assert not examples and "true is no id" in counts.places[0]


def test_how_many_of_what(write):
  path = write("nq.json", _RECORD)
  examples, _ = run(path, "--num_positives", 0, "--negative_kinds", "random", "hard", "--num_negatives", 2)
  assert [(e.passage_id, e.negative_ids) for e in examples] == [("1", ("7", "3")), ("2", ("7", "3"))]
  examples, counts = run(path, "--negative_kinds")
  assert [e.negatives for e in examples] == [()] and "question_without_negatives" not in counts.reasons
  with pytest.raises(InputError, match="Dpr.num_negatives is -1: give"):
    dpr.Dpr((str(path),), num_negatives=-1)


def test_validation(write):
  examples, _ = run(write("train.json", _RECORD), "--validation", write("dev.json", _RECORD))
  assert [e.split for e in examples] == ["train", "validation"]
  examples, _ = run(write("t.json", _RECORD), "--validation", write("d.json", _RECORD), "--validation",
                    write("e.json", _RECORD))
  assert [e.split for e in examples] == ["train", "validation", "validation"]


def test_tevatron(write):
  # docs/datasets.md of Tevatron: query_id, query, positive_passages and negative_passages of docid, title, text.
  # Its MS MARCO has the title "-".
  examples, _ = run(write("train.jsonl", {
      "query_id": "17", "query": "a query", "positive_passages": [{"docid": "p1", "title": "T", "text": "one"}],
      "negative_passages": [{"docid": "n1", "title": "-", "text": "two"}, {"docid": "n2", "text": "three"}]}))
  assert [tuple(e[:6]) for e in examples] == [("a query", "T one", "17", "p1", ("two", "three"), ("n1", "n2"))]


def test_passages_without_ids(write):
  # The description in DPR's README: title and text alone, or just texts.
  examples, _ = run(write("x.json", {
      "question": "q", "answers": [], "positive_ctxs": [{"title": "T", "text": "one"}],
      "hard_negative_ctxs": ["two", "T one", {"title": "", "text": "three", "passage_id": 3}]}))
  assert [tuple(e[3:6]) for e in examples] == [("", ("two", "three"), ())]


def test_what_is_dropped_or_broken_is_counted(write):
  lone = json.loads('"\\ud800"')
  records = [_RECORD, *(_RECORD | {"positive_ctxs": []}, _RECORD | {"question": " "},
                        _RECORD | {"hard_negative_ctxs": []}),
             {"question": "q"}, [1], _RECORD | {"question": 3}, _RECORD | {"question": lone, "hard_negative_ctxs": []},
             _RECORD | {"positive_ctxs": [{"title": "no text"}]}]
  examples, counts = run(write("nq.json", *records))
  assert len(examples) == 2
  assert counts.reasons == {"negative_is_positive": 1, "without_positive": 1, "empty_question": 1,
                            "question_without_negatives": 2, "broken": 5}
  assert [place.partition("record ")[2] for place in counts.places[:2]] == [
      f"{n}: not a question with positive_ctxs, or a query with positive_passages: {what}"
      for n, what in ((5, "no field 'positive_passages'"), (6, "a value of another type"))]


def test_files_without_questions(write, tmp_path):
  for text, says in (("", "is empty"), ("[]", "an empty array of JSON"), (" [\n ]\n", "an empty array of JSON")):
    (tmp_path / "nq.json").write_text(text)
    with pytest.raises(InputError, match=f"nq.json: {says}"):
      run(tmp_path / "nq.json")


def test_what_is_not_utf8_is_broken(write):
  path = write("nq.json", _RECORD, _RECORD)
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"who", b"\xff\xfe", 1))
  examples, counts = run(path)
  assert len(examples) == 1 and "record 1: not UTF-8" in counts.places[0]


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("indent", [None, 4])
def test_an_array_in_pieces(write, monkeypatch, chunk, indent):
  monkeypatch.setattr(dpr, "_CHUNK", chunk)
  records = [_RECORD | {"question": f"é \\u \" ] }} {i} {'long ' * i}", "x": [1.25, -3e-7, None, True]}
             for i in range(20)]
  found = list(dpr.array_records(str(write("nq.json", *records, indent=indent))))
  assert [value for _, value in found] == records and found[-1][0].endswith("nq.json, record 20")
  assert list(dpr.array_records(str(write("empty.json", indent=indent)))) == []


@pytest.mark.parametrize("damage, message", [
    (lambda text: text[:len(text) // 2], "it is cut off"), (lambda text: text[:-2], "it is cut off"),
    (lambda text: text[:1], "it is cut off"), (lambda text: text.replace('"answers"', "answers", 1), "in record 1"),
    (lambda text: text.replace("},\n{", "}\n{", 1), "no comma after record 1"),
    (lambda text: text[:-2] + ",\n]", "Expecting value in record 4"), (lambda text: "[" * 50000, "nested too deeply")])
def test_a_damaged_array(write, damage, message):
  path = write("nq.json")
  path.write_text(damage("[\n" + ",\n".join([json.dumps(_RECORD)] * 3) + "\n]"))
  with pytest.raises(InputError, match=f"nq.json: not a whole JSON array of records: .*{message}"):
    run(path)


def test_a_cut_archive(write):
  path = write("nq.json.gz", *[_RECORD] * 500)
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(InputError, match="nq.json.gz: the archive is cut off"):
    run(path)


@pytest.fixture
def search(tmp_path, monkeypatch):
  """DPR's table of passages (see test_passages.py) and a TREC run."""
  monkeypatch.setenv("GTR_DATA_DIR", str(tmp_path / "data"))
  (tmp_path / "psgs_w100.tsv").write_text(
      "id\ttext\ttitle\n1\tHe sang it with Reba.\tLinda Davis\n2\t\"The singer, Linda  DAVIS, won\"\tSong\n"
      "3\tby Linda Davison\tX\n4\tLinda Davis again\tY\n")
  (tmp_path / "bm25.trec").write_text("0 Q0 3 1 9.5 x\n0 Q0 4 4 1 x\n0 Q0 1 2 8.5 x\n0 Q0 2 3 2 x\n1 Q0 1 1 1 x\n"
                                      "1 Q0 17 2 1 x\n9 Q0 1 1 1 x\n")
  return "--run", tmp_path / "bm25.trec", "--passages", tmp_path / "psgs_w100.tsv"


# NQ-open (natural-questions/nq_open/README.md: question, answer), DPR's nq-train.qa.csv (dpr/data/retriever_data.py,
# CsvQASrc: csv.reader(delimiter="\t"), the answers a Python list).
@pytest.mark.parametrize("name, text", [
    ("NQ-open.train.jsonl", '{"question": "who sings", "answer": ["X", "Linda Davis"]}\n'
                            '{"question": "b", "answer": ["B"]}\n{"question": "c", "answer": ["C"]}\n'),
    ("nq-train.qa.csv", "who sings\t['X', 'Linda Davis']\nb\t\"[\"\"B\"\"]\"\nc\t['C']\n")])
def test_nq_open(search, tmp_path, name, text):
  (tmp_path / name).write_text(text)
  examples, counts = run(tmp_path / name, *search, module=nq_open)
  assert [tuple(e[:6]) for e in examples] == [
      ("who sings", "Song The singer, Linda  DAVIS, won", "0", "2",
       ("X by Linda Davison", "Linda Davis He sang it with Reba."), ("3", "1"))]
  assert counts.reasons == {"question_without_positive": 1, "unknown_passage": 1, "question_without_passages": 1,
                            "unknown_question": 1}
  run_of = lambda *flags: run(tmp_path / name, *search, *flags, module=nq_open)[0]  # noqa: E731
  assert [e.passage_id for e in run_of("--num_positives", 2)] == ["2", "4"]
  assert run_of("--depth", 2) == []
  assert run_of("--num_negatives", 1)[0].negative_ids == ("3",)


def test_nq_open_with_a_broken_line(search, tmp_path):
  for line in ('{"question": "a"}', "{", '{"question": "a", "answer": [3]}', "[1]"):
    (tmp_path / "q.jsonl").write_text('{"question": "b", "answer": ["B"]}\n' + line + "\n")
    with pytest.raises(InputError, match="q.jsonl:2: .*correct the line"):
      run(tmp_path / "q.jsonl", *search, module=nq_open)
