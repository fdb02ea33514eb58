"""MS MARCO's files, its published hard negatives, and RocketQA's."""

import argparse
import collections
import gzip
import json
import pickle

import numpy as np
import pytest
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.io import lines
from gtr_jax.prepare import pickles
from gtr_jax.prepare.interface import Counts
from gtr_jax.prepare.sources import msmarco, rocketqa


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """As sentence-transformers reads them (examples/sentence_transformer/training/ms_marco/train_bi-encoder_mnrl.py and
  eval_msmarco.py): collection.tsv and queries.*.tsv of id and text, qrels.dev.tsv of query, 0, passage, 1."""
  monkeypatch.setenv("GTR_DATA_DIR", str(tmp_path / "data"))
  folder = tmp_path / "msmarco"
  folder.mkdir()
  (folder / "collection.tsv").write_text("".join(f"{i}\tpassage {i}\n" for i in range(60)) + "60\t \n61\tpassage 0\n")
  (folder / "queries.train.tsv").write_text("1185869\twhat is this\n2\t leading space \n28\tno judgement\n")
  (folder / "qrels.train.tsv").write_text("1185869\t0\t0\t1\n1185869\t0\t1\t1\n2\t0\t2\t1\n")
  (folder / "queries.dev.small.tsv").write_text("1048585\tdev query\n")
  (folder / "qrels.dev.small.tsv").write_text("1048585 0 7 1\n")  # With spaces, as Anserini has it.
  return folder


def run(*flags, module=msmarco):
  parser = argparse.ArgumentParser()
  module.add_arguments(parser)
  return prepared(module.source(parser.parse_args(list(map(str, flags)))))


def write_jsonl(path, *records):
  text = "".join(json.dumps(r) + "\n" for r in records).encode()
  path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
  return path


def negatives_of(examples, query_id="1185869"):
  found = {e.negative_ids for e in examples if e.query_id == query_id and e.split == "train"}
  assert len(found) == 1
  return list(found.pop())


def test_pairs(folder):
  examples, counts = run(folder)
  assert [(e.query, e.passage, e.query_id, e.passage_id, e.split) for e in examples] == [
      ("what is this", "passage 0", "1185869", "0", "train"), ("what is this", "passage 1", "1185869", "1", "train"),
      ("leading space", "passage 2", "2", "2", "train"), ("dev query", "passage 7", "1048585", "7", "validation")]
  assert counts.reasons == {"query_without_judgement": 1}


def test_negatives_of_another_collection(folder):
  for record, message in (({"qid": 7, "pos": [0], "neg": {"bm25": [3]}}, "none of its first 1 queries, such as '7'"),
                          ({"qid": 2, "pos": [0], "neg": {"bm25": [900, 901, 3]}}, "2 of the first 3 negatives")):
    path = write_jsonl(folder / "hard.jsonl", record)
    with pytest.raises(InputError, match=message):
      run(folder, "--negatives", path)
  (folder / "triples.tsv").write_text("7\t0\t3\n")
  with pytest.raises(InputError, match="triples.tsv: none of its first 1 queries"):
    run(folder, "--negatives", folder / "triples.tsv")


def test_scores_that_are_no_numbers(folder):
  ranked = [{"pid": 30, "ce-score": float("nan")}, {"pid": 31, "ce-score": 1.0}]
  path = write_jsonl(folder / "hard.jsonl", {"qid": 2, "pos": [{"pid": 2, "ce-score": 9.0}], "neg": {"a": ranked}})
  _, counts = run(folder, "--negatives", path)
  assert counts.reasons["broken"] == 1 and "the score nan is not a number" in counts.places[0]
  (folder / "qrels.train.tsv").write_text("2\t0\t2\t1\n2\t0\t3\t\u00b2\n")
  assert "the grade '²' is not a whole number" in run(folder)[1].places[0]


def test_judgements_of_two_columns_and_titles(folder):
  # RocketQA's corpus/marco: data_process/utils.py, load_id_text (para.txt, para.title.txt, train.query.txt: id, text)
  # and load_pos_examples (qrels.train.tsv: query, passage); a passage without a title has "-".
  for old, new in (("collection.tsv", "para.txt"), ("queries.train.tsv", "train.query.txt"),
                   ("queries.dev.small.tsv", "dev.query.txt"), ("qrels.dev.small.tsv", "qrels.dev.tsv")):
    (folder / old).rename(folder / new)
  (folder / "qrels.train.tsv").write_text("1185869\t0\n1185869\t1\n2\t2\n")
  (folder / "para.title.txt").write_text("1\tA title\n2\t-\n")
  assert [e.passage for e in run(folder)[0]] == ["passage 0", "A title passage 1", "passage 2", "passage 7"]


def test_a_collection_of_three_columns(folder):
  # Tevatron's corpus.tsv: id, title, text.
  (folder / "collection.tsv").write_text("".join(f"{i}\tTitle {i}\ttext {i}\n" for i in range(9)))
  assert run(folder, "--passage_columns", "id,title,text")[0][0].passage == "Title 0 text 0"


# msmarco-hard-negatives.jsonl.gz, as the same script of sentence-transformers reads it: qid, pos, neg[system], numbers.
_NEGATIVES = {"qid": 1185869, "pos": [0, 1, 9], "neg": {"bm25": [10, 1, 11, 12], "ance": [10, 20, 9, 21, 61, 60, 99]}}


def test_negatives_of_systems(folder):
  path = write_jsonl(folder / "msmarco-hard-negatives.jsonl.gz", _NEGATIVES, {"qid": 5, "pos": [], "neg": {}})
  examples, counts = run(folder, "--negatives", path)
  # Best ones first, by turns; positives out, known to the judgements (1) or the negatives' file (9) alone; 61 has the
  # text of the positive 0, 60 is empty, and 99 is not there.
  assert negatives_of(examples) == ["10", "20", "11", "12", "21"]
  assert examples[0].negatives[:2] == ("passage 10", "passage 20")
  assert negatives_of(examples, "2") == []
  assert counts.reasons == {
      "negative_is_positive": 2, "empty_negative": 1, "unknown_negative": 1, "query_without_negatives": 1,
      "query_without_judgement": 1, "negatives_of_unknown_query": 1, "query_of_other_systems": 1}
  assert negatives_of(run(folder, "--negatives", path, "--systems", "ance")[0]) == ["10", "20", "21"]
  assert negatives_of(run(folder, "--negatives", path, "--num_negatives", 3)[0]) == ["10", "20", "11"]
  assert next(e for e in examples if e.split == "validation").negatives == ()


def test_systems_that_no_line_names(folder):
  path = write_jsonl(folder / "n.jsonl.gz", {"qid": 2}, [], _NEGATIVES)
  with pytest.raises(InputError, match=r"--systems bm26: no such system in .*n.jsonl.gz; systems there: ance, bm25"):
    run(folder, "--negatives", path, "--systems", "bm25", "bm26")
  with pytest.raises(InputError, match="--systems bm25: .*no file is given; systems there: none"):
    run(folder, "--systems", "bm25")


def test_negatives_of_several_flags(folder):
  more = write_jsonl(folder / "more.jsonl", {"qid": 2, "pos": [2], "neg": {"other": [30]}})
  flags = "--negatives", write_jsonl(folder / "n.jsonl", _NEGATIVES), "--negatives", more
  examples, _ = run(folder, *flags)
  assert negatives_of(examples, "2") == ["30"] and len(negatives_of(examples)) == 5
  examples, _ = run(folder, *flags, "--systems", "bm25", "--systems", "other")
  assert negatives_of(examples, "2") == ["30"] and negatives_of(examples) == ["10", "11", "12"]


def test_a_query_id_twice(folder):
  with (folder / "queries.train.tsv").open("a") as f:
    f.write("2\tleading space\n")
  assert len(run(folder)[0]) == 4  # The same text.
  with (folder / "queries.train.tsv").open("a") as f:
    f.write("2\tanother text\n")
  with pytest.raises(InputError, match="train.tsv.*: the query id '2' is there twice, of 'leading space' and of "
                     "'another text'; ids must be unique"):
    run(folder)


_SCORES = {1185869: {0: 9.0, 1: 5.0, 9: 9.0, 10: 2.0, 11: 2.01, 12: -3.0, 20: 1.5}, 2: {2: 3.0}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("number", [float, np.float32, np.float64])
def test_margin_of_scores_in_a_pickle(folder, protocol, number):
  # cross-encoder-ms-marco-MiniLM-L-6-v2-scores.pkl.gz, as the same script reads it: ce_scores[qid][pid].
  negatives = write_jsonl(folder / "negatives.jsonl", _NEGATIVES)
  path = folder / "scores.pkl.gz"
  path.write_bytes(gzip.compress(pickle.dumps(
      {q: {p: number(score) for p, score in scores.items()} for q, scores in _SCORES.items()}, protocol), mtime=0))
  examples, counts = run(folder, "--negatives", negatives, "--scores", path)
  assert negatives_of(examples) == ["10", "20", "12"]  # At most 5.0 - 3, the worst positive's less the margin.
  assert counts.reasons["negative_scores_too_high"] == 1 and counts.reasons["negative_without_score"] == 4
  assert negatives_of(run(folder, "--negatives", negatives, "--scores", path, "--margin", 3.6)[0]) == ["12"]


def test_scores_in_json_lines_or_among_the_negatives(folder):
  records = [{"qid": q, "scores": {str(p): s for p, s in scores.items()}} for q, scores in _SCORES.items()]
  scores, negatives = write_jsonl(folder / "s.jsonl.gz", *records), write_jsonl(folder / "n.jsonl", _NEGATIVES)
  assert negatives_of(run(folder, "--negatives", negatives, "--scores", scores)[0]) == ["10", "20", "12"]
  # BEIR's examples/retrieval/training/train_msmarco_v3.py reads pos and neg of objects with pid and ce-score.
  scored = {p: {"pid": p, "ce-score": s} for p, s in _SCORES[1185869].items()}
  inline = {"qid": 1185869, "pos": [scored[0], scored[1]], "neg": {"bm25": [scored[p] for p in (10, 11, 12)]}}
  assert negatives_of(run(folder, "--negatives", write_jsonl(folder / "n.jsonl", inline))[0]) == ["10", "12"]


def test_triples_of_ids(folder):
  # qidpidtriples.train.full.2.tsv, as Tevatron's examples/coCondenser-marco/get_data.sh reads it: query, positive,
  # negative; lines end with \r\n and come by query.
  lines = [f"1185869\t0\t{i}" for i in range(10, 40)] + [f"2\t2\t{i}" for i in range(40, 45)]
  path = folder / "qidpidtriples.train.full.2.tsv"
  path.write_text("\r\n".join(lines) + "\r\n")
  examples, _ = run(folder, "--negatives", path, "--num_negatives", 5)
  drawn = negatives_of(examples)
  assert len(drawn) == 5 and set(drawn) <= set(map(str, range(10, 40))) and drawn != sorted(drawn)
  assert sorted(negatives_of(examples, "2")) == [str(i) for i in range(40, 45)]
  path.write_text("\n".join(lines[::-1]) + "\n")
  assert negatives_of(run(folder, "--negatives", path, "--num_negatives", 5)[0]) == drawn
  path.write_text("what is this\ta text\tanother text\n")
  assert "not three ids" in run(folder, "--negatives", path)[1].places[0]


def test_broken_lines_are_counted(folder):
  with (folder / "queries.train.tsv").open("ab") as f:
    f.write(b"4 no tab\n5\ta\tb\n6\t\xff\n")
  with (folder / "qrels.train.tsv").open("a") as f:
    f.write("2\n2\t0\t2\tx\n")
  with (folder / "collection.tsv").open("a") as f:
    f.write("no tab\n")
  negatives = write_jsonl(folder / "n.jsonl", {"qid": 2}, {"qid": 2, "pos": [1], "neg": {"bm25": 3}}, [],
                          {"qid": [], "pos": [], "neg": {}})
  examples, counts = run(folder, "--negatives", negatives)
  assert len(examples) == 4 and counts.reasons["broken"] == 10
  assert any("collection.tsv:63: 1 columns" in place for place in counts.places)
  said = [place.partition("n.jsonl")[2] for place in counts.places if "n.jsonl" in place]
  form = "not {qid, pos: [pid], neg: {system: [pid]}}"
  assert said == [f":1: {form} (no field 'neg')", f":2: {form} (a value of another type)",
                  f":3: {form} (a value of another type)", f":4: {form} ([] is no id)"]


def test_what_is_missing(folder, tmp_path):
  with pytest.raises(InputError, match="nothing: no such file; fetch.*or give --collection FILE"):
    run(folder, "--collection", folder / "nothing")
  with pytest.raises(InputError, match="scores of negatives, and no negatives"):
    run(folder, "--scores", folder / "collection.tsv")
  (folder / "qrels.train.tsv").unlink()
  with pytest.raises(InputError, match="msmarco: no qrels.train.tsv; fetch and unpack it .*--qrels FILE"):
    run(folder)
  with pytest.raises(InputError, match="no such folder"):
    run(tmp_path / "nowhere")


def test_judgements_of_another_collection(folder):
  (folder / "qrels.train.tsv").write_text("1185869\t0\tD301595\t1\n2\t0\tD1359209\t1\n")
  with pytest.raises(InputError, match="qrels.train.tsv and .*collection.tsv do not belong together: 2 of the first 2 "
                     "judged passages, such as 'D301595', are not in .*collection.tsv; one of the two is another"):
    run(folder)


def test_a_cut_archive(folder):
  path = write_jsonl(folder / "n.jsonl.gz", *[_NEGATIVES | {"qid": i} for i in range(1000)])
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(InputError, match="n.jsonl.gz: the archive is cut off"):
    run(folder, "--negatives", path)


class _Attack:
  def __reduce__(self):
    return print, ("called",)


@pytest.mark.parametrize("content", [
    [1], {1: 2}, {1: {2: "x"}}, {1: {2: print}}, {1: {2: _Attack()}}, {_Attack(): {}}, None])
def test_a_pickle_of_something_else(tmp_path, capsys, content):
  (tmp_path / "s.pkl").write_bytes(pickle.dumps(content))
  with pytest.raises(InputError, match="s.pkl: not a pickle of .query id: .* give the scores as JSON lines"):
    list(pickles.read_nested(str(tmp_path / "s.pkl")))
  assert "called" not in capsys.readouterr().out


def test_pickles_are_read_as_pickle_does(tmp_path):
  path = tmp_path / "s.pkl"
  scores = collections.defaultdict(dict)
  scores |= {str(q): {p: -q / 7 + p for p in range(q % 1500)} for q in range(0, 3000, 371)}
  scores["2000000000000"] = {2**31 - 1: 1, 2**31: 2, 300: 0, -1: -5}
  path.write_bytes(pickle.dumps(scores))
  expected = {q: {str(p): float(s) for p, s in v.items()} for q, v in scores.items()}
  assert dict(pickles.read_nested(str(path))) == expected
  for size in (0, 1, 20, 5000):
    path.write_bytes(pickle.dumps(scores)[:size])
    with pytest.raises(InputError, match="it is cut off" if size else "s.pkl: is empty"):
      list(pickles.read_nested(str(path)))


def test_rocketqa(tmp_path):
  # marco_de1_denoise.tsv, as RocketQA reads it (model/src/reader/reader_de.py: query, title_pos, para_pos, title_neg,
  # para_neg, label); the cross-encoder's as reader_ce.py does (query, title, para, label).
  dual, cross = tmp_path / "marco_de1_denoise.tsv", tmp_path / "marco_ce0.tsv"
  dual.write_text("q1\t-\tpositive\tT\tn1\t0\nq2\tA\tp2\t\tn2\t0\nq1\t-\tpositive\t-\tn3\t0\nq1\tB\tp1\t-\tpositive\t0\n"
                  "broken\tline\n")
  cross.write_text("q3\t\tyes\t1\nq3\t-\tno\t0\nq4\t-\tno\t0\nq3\t-\tnot\t0\nq3\t-\tlabel\t7\n")
  examples, counts = run(dual, cross, module=rocketqa)
  assert [(e.query, e.passage, e.negatives) for e in examples] == [
      ("q1", "positive", ("T n1", "n3")), ("q1", "B p1", ("T n1", "n3")), ("q2", "A p2", ("n2",)),
      ("q3", "yes", ("no", "not"))]
  assert counts.reasons == {"broken": 2, "negative_is_positive": 1, "query_without_positive": 1}
  assert {e.negatives for e in run(dual, "--num_negatives", 1, module=rocketqa)[0]} == {("T n1",), ("n2",)}


def test_parts_of_files_give_the_same(folder, monkeypatch):
  path = folder / "triples.tsv"
  path.write_text("".join(f"{q}\t0\t{i}\n" for q in (1185869, 2) for i in range(10, 50)))
  whole = run(folder, "--negatives", path, "--num_negatives", 7)[0]
  monkeypatch.setattr(lines.line_parts, "__defaults__", (50, ""))
  found, counts = run(folder, "--negatives", path, "--num_negatives", 7)
  assert sorted(found) == sorted(whole) and isinstance(counts, Counts)
