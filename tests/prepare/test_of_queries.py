"""Pairs of one query, over lines, files and splits: what answers it in one is no negative in another."""

import json

import pytest
from prepared_files import prepare_rows

from gtr_jax.io import data_root
from gtr_jax.io.lines import Part
from gtr_jax.prepare import records
from gtr_jax.prepare.interface import Counts
from gtr_jax.prepare.of_queries import MOST_POSITIVES
from gtr_jax.prepare.sources.dpr import Dpr
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs
from gtr_jax.text.same_text import text_key


@pytest.fixture
def prepare(tmp_path):
  """Prepares the rows of some files; gives the examples by passage, and the counts."""
  data_root.set_data_dir(str(tmp_path / "data"))

  def prepare(*files, source=None, **settings):
    examples, counts = prepare_rows(tmp_path, *files, source=source, **settings)
    found = {example.passage: example for _, example in examples}
    assert len(found) == len(examples)
    return found, counts

  yield prepare
  data_root.set_data_dir(None)


def keys(*texts):
  return {str((text_key(text) + 2**63) % 2**64 - 2**63) for text in texts}


def test_a_positive_of_one_line_is_no_negative_of_another(prepare):
  found, counts = prepare([["What is it?", "A", "B.", "n"], ["other", "C", "A"]], [["what is  it", "B", "a", "m"]])
  assert {passage: e.negatives for passage, e in found.items()} == {"A": ("n",), "B": ("m",), "C": ("A",)}
  assert {passage: set(e.positives) for passage, e in found.items()} == {"A": keys("b"), "B": keys("A"), "C": set()}
  assert counts["negative_is_positive"] == 2 and counts["written"] == 3


def test_what_is_labelled_as_no_answer_is_a_negative_of_all_pairs_of_the_query(prepare):
  rows = [{"query": "q", "passage": "A", "label": 1}, {"query": "Q", "passage": "no", "label": 0, "score": 0.25},
          {"query": "q", "passage": "a", "label": 0}, {"query": "alone", "passage": "x", "label": 0}]
  found, counts = prepare(rows, [{"query": "q", "positive": "B", "negatives": ["no", "n"], "scores": [0.9, 0.5, 0.1]}])
  assert set(found) == {"A", "B"} and str(found["A"].scores) == "(nan, 0.25)"
  assert found["A"].negatives == ("no",) and found["B"].negatives == ("no", "n")
  assert found["B"].scores == (0.9, 0.5, 0.1)
  assert counts["negative_is_positive"] == 2 and counts["negative_without_positive"] == 1


def test_also_of_other_splits_and_no_more_than_are_kept(prepare):
  many = [f"passage {i}" for i in range(MOST_POSITIVES + 4)]
  found, counts = prepare([{"query": "q", "pos": many}, {"query": "few", "pos": ["x", "y", "z"], "neg": ["n"]}])
  assert set(found["x"].positives) == keys("y", "z") and found["x"].negatives == ("n",)
  for passage in many:
    known = set(found[passage].positives)
    assert len(known) == MOST_POSITIVES and known <= keys(*many) - keys(passage)
  assert counts["more_positives"] == len(many) * 3
  others = [[f"q{i}", f"p{i}"] for i in range(30)]
  found, _ = prepare([{"query": "few", "pos": ["x", "y", "z"]}, *others], validation_share=0.5)
  assert set(found["y"].positives) == keys("x", "z")


def test_copies_of_a_pair_share_what_they_know(prepare):
  found, counts = prepare([{"query": "q", "positive": "A", "negatives": ["n"], "scores": [1, 0.5]}],
                          [{"query": "q", "positive": "a", "negatives": ["N", "m"], "neg_scores": [0.1, 0.2]}])
  assert found["A"].negatives == ("n", "m") and found["A"].scores == (1.0, 0.5, 0.2) and found["A"].positives == ()
  assert counts["duplicate"] == 1 and counts["negative_of_duplicate"] == 1


def test_pairs_of_a_query_do_not_lie_together(prepare, tmp_path):
  rows = [{"query": f"q{i}", "pos": [f"p{i} {k}" for k in range(4)]} for i in range(2000)]
  prepare(rows)
  order = []
  for path in sorted((tmp_path / "data" / "p0").glob("*.tfrecord")):
    with path.open("rb") as f:
      order += [records.example_in(record).query for record in records.read_records(f, str(path))]
  together = sum(a == b for a, b in zip(order, order[1:], strict=False))
  assert len(order) == 8000 and together < 400  # Of 6,000: about 3 of each 125 that a shard has.


@pytest.mark.parametrize(("source", "answer", "reason"), [
    ({"min_words": 2}, "short", "too_short"), ({"max_characters": 60}, "long " * 20, "too_long"),
    ({"max_pairs": 1}, "the second of the line", "more_pairs_in_a_line"),
])
def test_what_is_not_trained_on_is_an_answer_all_the_same(prepare, source, answer, reason):
  rows = [{"query": "Is it this?", "pos": ["the first of the line", answer]},
          {"query": "is it this", "positive": "another answer", "negatives": [answer.upper(), "no answer"]},
          {"query": "is it this", "positive": answer, "label": 0}, {"query": "alone at all", "positive": "x " * 50}]
  found, counts = prepare(rows, source=source)
  assert found["another answer"].negatives == ("no answer",) and counts[reason] >= 1
  assert set(found["another answer"].positives) == keys("the first of the line", answer)
  assert found["the first of the line"].negatives == ()
  assert "negative_without_positive" not in counts


def test_also_what_is_in_another_language_gives_a_test_away_or_is_prepared_already(prepare, tmp_path):
  german = "Das Wetter wird morgen schön und warm, sagen die Leute im Dorf"
  rows = [{"query": "how is the weather here", "positive": "It will be warm and sunny tomorrow"},
          {"query": "how is the weather here", "positive": german},
          {"query": "how is the weather here", "positive": "Look out of the window", "negatives": [german, "No idea"]}]
  found, counts = prepare(rows, language="en")
  assert found["Look out of the window"].negatives == ("No idea",) and counts["language"] == 1
  assert keys(german) < set(found["Look out of the window"].positives)
  collection = tmp_path / "collection"
  (collection / "qrels").mkdir(parents=True)
  (collection / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": german}) + "\n")
  (collection / "queries.jsonl").write_text('{"_id": "q", "text": "something that nobody has asked"}\n')
  (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
  found, counts = prepare(rows[1:], decontaminate=(str(collection),))
  assert set(found["Look out of the window"].positives) == keys(german) and counts["contaminated"] == 1
  prepare(rows[1:2])
  found, counts = prepare(rows, [{"query": "another", "positive": "y"}], without=("p2",))
  assert found["Look out of the window"].negatives == ("No idea",) and counts["in_p2"] == 1
  assert keys(german) < set(found["Look out of the window"].positives)


def test_of_broken_and_empty_pairs_nothing_is_known(prepare):
  found, _ = prepare([{"query": "q", "positive": "A", "negatives": ["n"]}, {"query": "q", "positive": ""},
                      {"query": "", "positive": "n"}, {"query": "q", "pos": ["n", 3]}], source={"max_pairs": 1})
  assert found["A"].negatives == ("n",) and found["A"].positives == ()


def test_negatives_that_are_the_query_or_there_twice(prepare):
  row = {"query": "What is it?", "positive": "A", "negatives": ["n", "what is it", "N.", "m"],
         "negative_ids": [1, 2, 3, 4], "scores": [0.9, 0.1, 0.2, 0.3, 0.4]}
  found, counts = prepare([row])
  assert found["A"].negatives == ("n", "m") and found["A"].scores == (0.9, 0.1, 0.4)
  assert found["A"].negative_ids == ("1", "4")
  assert counts["negative_is_query"] == 1 and counts["equal_negative"] == 1


def test_negatives_that_are_a_passage_by_its_id_or_cannot_be_seen(prepare):
  passages = [{"docid": "7", "title": "Paris", "text": "capital of France"}, {"docid": "8", "text": "a city"}]
  found, counts = prepare(
      [{"query": "who", "positive_passages": passages[:1], "negative_passages": [
          {"docid": "7", "title": "", "text": "capital of France"}, {"docid": "9", "text": "n"}]},
       {"query": "who", "positive_passages": passages[1:], "negative_passages": [
           {"docid": "7", "text": "capital of France, edited"}, {"docid": "5", "text": "m"}]},
       {"query": "unseen", "positive": "p", "negatives": ["\u200b", "x", "\ufeff \u00ad"], "scores": [1, 2, 3, 4]}])
  assert found["Paris capital of France"].negatives == ("n",) and found["a city"].negatives == ("m",)
  assert found["p"].negatives == ("x",)
  assert found["p"].scores == (1.0, 3.0) and counts["negative_is_positive"] == 2


def test_one_query_id_in_other_words_is_one_query(prepare):
  rows = [{"query_id": 1, "query": "what is x", "positive": "A a", "negatives": ["B b", "n"]},
          {"query_id": 1, "query": "define x", "positive": "B b", "negatives": ["a A.", "m"]},
          {"query": "Define x?", "positive": "C"},
          {"query_id": 2, "query": "another", "positive": "D", "negative": "A a"}]
  for files in ([rows], [[row] for row in rows], [rows[::-1]]):
    found, counts = prepare(*files)
    assert {passage: e.negatives for passage, e in found.items()} == {"A a": ("n",), "B b": ("m",), "C": (),
                                                                      "D": ("A a",)}
    assert set(found["A a"].positives) == keys("b b") and set(found["B b"].positives) == keys("a a", "c")
    assert counts["negative_is_positive"] == 2 and counts["written"] == 4 and counts["read"] == 4
  everywhere = [{"query_id": 0, "query": f"q{i}", "positive": f"p{i}", "negative": f"p{i + 1}"} for i in range(40)]
  assert all(e.negatives and not e.positives for e in prepare(everywhere)[0].values())


class _Heard(Counts):
  """Keeps what a source says of answers that it makes no pair of."""

  def __init__(self):
    super().__init__()
    self.answers = []

  def answer(self, example):
    self.answers.append((example.query, example.passage, example.passage_id))


def test_sources_that_take_some_answers_name_the_others(tmp_path):
  questions = tmp_path / "questions.jsonl"
  questions.write_text(json.dumps({"question": "q", "hard_negative_ctxs": [], "positive_ctxs": [
      {"title": "", "text": text} for text in ("first", "second", "third")]}) + "\n")
  for number, others in ((1, ["second", "third"]), (2, ["third"]), (0, [])):
    heard = _Heard()
    list(Dpr((str(questions),), num_positives=number).read(Part(str(questions), kind="train"), heard))
    assert heard.answers == [("q", text, "") for text in others]
  for name, text in (("passages", "1\tgood\n2\tfair\n3\tbad\n"), ("queries", "7\twhat\n"),
                     ("qrels", "7\t0\t1\t2\n7\t0\t2\t1\n7\t0\t3\t0\n")):
    (tmp_path / f"{name}.tsv").write_text(text)
  source = JudgedPairs("judged", str(tmp_path / "passages.tsv"), (str(tmp_path / "queries.tsv"),),
                       str(tmp_path / "qrels.tsv"), str(tmp_path / "cache"), min_grade=2)
  heard = _Heard()
  values = [value for part in source.parts() for _, value in source.read(part, heard)]
  assert [e.passage for e in source.join("7", values, heard)] == ["good"] and heard.answers == [("what", "fair", "2")]
