"""What of an object or a list may be meant in two ways, and what stands within the objects that are its texts."""

import json
import re

import pytest
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl


@pytest.fixture
def source(tmp_path):
  def of(*rows, **given):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PairsJsonl((str(path),), **given)
  return of


def read(source):
  examples, counts = prepared(source)
  return examples, counts.places


def made(source):
  examples, counts = prepared(source)
  assert not counts.places, counts.places
  return examples


def a_row(names):
  return {name: ["p"] if name in ("pos", "positives", "neg") else f"text of {name}" for name in names.split()}


@pytest.mark.parametrize(("names", "left"), [
    ("query title body", "query"), ("query title abstract", "query"), ("question title text", "question"),
    ("anchor title text", "anchor"), ("question title body", "question"), ("question title abstract", "question"),
    ("question answer passage", "passage"), ("question answer document", "document"),
    ("query answer document", "document"), ("query positive document", "document"),
    ("question answer positive negative", "positive"), ("question passage positive", "positive"),
    ("title text pos", "pos"), ("title body positive", "positive"), ("sentence1 sentence2 positive", "positive"),
    ("title text positives", "positives"), ("title text pos_1", "pos_1"), ("query passage question", "question"),
    ("query positive title text", "title"), ("question answer title text", "title"),
    ("query passage sentence1 sentence2", "sentence1"), ("question1 question2 query", "query"),
    ("Query Title Body", "Query")])
def test_a_query_or_a_passage_that_is_not_of_the_pair(source, names, left):
  row = a_row(names)
  with pytest.raises(InputError, match=rf"may be meant as .*'{left}'.*\(--query, --passage\)"):
    source(row).parts()
  with pytest.raises(InputError, match=rf"may be meant as .*'{left}'.*\(--query, --passage\)"):
    source({name: row[name] for name in reversed(row)}).parts()
  rest = [name for name in row if name != left]
  if left not in ("title", "sentence1"):  # Of two whole pairs it takes more to say which.
    query, passage = rest[:2]
    named = made(source(row, query=(query,), passage=(passage,), negatives="negative" * ("negative" in row),
                        ignore=("positives",) if left == "positives" else ()))
    assert [(one.query, one.passage) for one in named] == [(row[query], row[passage])]
  assert made(source(row, ignore=(left,)))


@pytest.mark.parametrize(("names", "pair"), [
    ("question answer context", "question answer"), ("query answer context", "query answer"),
    ("query positive text", "query positive"), ("query positive title", "query positive"),
    ("question positive negative", "question positive"), ("question document", "question document"),
    ("title body text", "title body"), ("title abstract text", "title abstract"), ("title body answer", "title body")])
def test_what_goes_with_a_pair(source, names, pair):
  example, = made(source(a_row(names)))
  assert [example.query, example.passage] == [f"text of {name}" for name in pair.split()]


@pytest.mark.parametrize("shape", ["set", "texts"])
@pytest.mark.parametrize("name", ["query", "positive", "Question", "pos", "pos_1"])
def test_a_pair_beside_a_set(source, shape, name):
  row = {shape: ["a", "b"], "title": "t", "source": "s", name: "c"}
  with pytest.raises(InputError, match=f"may be meant as '{shape}' or as '{name}'; .*--ignore {name}"):
    source(row).parts()
  assert len(made(source(row, ignore=(name,)))) == 1


@pytest.mark.parametrize("judged", [{"label": 0}, {"label": 1}, {"is_relevant": False}, {"negatives": ["n"]},
                                    {"is_positive": 0}, {"hasAnswer": True}], ids=str)
@pytest.mark.parametrize("row", [
    ["q", {"text": "p"}], ["q", "p", {"text": "n"}], {"texts": ["q", {"text": "p"}]},
    {"texts": [{"text": "q"}, "p"]}, {"set": ["a", {"text": "b"}, "c"]}, {"query": {"text": "q"}, "positive": "p"},
    {"query": "q", "passage": {"text": "p"}}, {"query": "q", "positive": "p", "negatives": [{"text": "n"}]}], ids=str)
def test_judgements_within_texts(source, row, judged):
  name, = judged
  text = json.dumps(row)
  assert len(made(source(row))) in (1, 2)
  row = json.loads(re.sub(r'("text": "\w")', lambda found: found[0] + ", " + json.dumps(judged)[1:-1], text))
  with pytest.raises(InputError, match=rf"a field '{name}', which may change .* \(--ignore {name}\)"):
    source(row).parts()
  assert len(made(source(row, ignore=(name,)))) in (1, 2)


def test_a_score_within_a_query(source):
  """Of what, nobody knows."""
  for row in ([{"text": "q", "score": 1}, "p"], {"set": ["a", {"text": "b", "score": 1}]}):
    examples, places = read(source(["a", "b"], row))
    assert len(examples) == 1 and "a field 'score', which may change" in places[0]


def test_ids_and_scores_within_texts(source):
  query, passage, negative = ({"text": "q", "id": 7}, {"text": "p", "score": 0.1, "id": "x"},
                              {"text": "n", "docid": "y", "score": 0})
  for row in ([query, passage, negative], {"query": query, "positive": passage, "negative": negative}):
    _, example = made(source(["a", "b"], row))  # A first line that begins with an object is taken for an array of them.
    assert (example.query, example.passage, example.negatives) == ("q", "p", ("n",))
    assert (example.query_id, example.passage_id, example.negative_ids, example.scores) == ("7", "x", ("y",), (0.1, 0))
  example, = made(source({"texts": [query, passage]}))
  assert (example.query_id, example.passage_id, example.scores) == ("7", "x", (0.1,))
  example, = made(source(["q", "p", "n"]))
  assert (example.query_id, example.passage_id, example.negative_ids, example.scores) == ("", "", (), ())
  of_line = {"query": {"qid": "a", "text": "q"}, "positive": "p", "query_id": "b"}
  with pytest.raises(InputError, match="'b' in the line and 'a' within"):
    source(of_line).parts()
  assert made(source(of_line, ignore=("qid",)))[0].query_id == "b"


@pytest.mark.parametrize("said", ["true", "False", " yes", "no", "neutral", "entailment", "contradiction", "relevant"])
def test_what_annotators_say_is_no_negative(source, said):
  with pytest.raises(InputError, match=f"a list with '{said}' behind its pair, which looks like a score or a label"):
    source(["q", "p", said]).parts()
  for row in (["a synonym", "Irrelevant", said], ["a synonym", "another", f"{said} words"]):
    example, = made(source(row))
    assert example.negatives == (row[2].strip(),)


@pytest.mark.parametrize("name", ["score", "scores", "pos_score", "pos_scores", "positive_score", "positiveScores"])
@pytest.mark.parametrize("names", ["sentence1 sentence2", "sentence_1 sentence_2", "text text_pair", "question answer",
                                   "question1 question2", "query text"])
def test_scores_of_what_may_be_no_pair(source, names, name):
  row = a_row(names) | {name: 0.05}
  query, passage = names.split()
  for given in ({}, {"query": (query,), "passage": (passage,)}):
    with pytest.raises(InputError, match=rf"a pair with a '{name}', which may say how alike .*--ignore {name}"):
      source(row, **given).parts()
    assert [one.scores for one in made(source(row, ignore=(name,), **given))] == [()]


def test_scores_of_a_teacher(source):
  for row in ({"question": "a", "answer": "b", "negatives": ["n"], "scores": [3, 1]},
              {"question": "a", "answer": "b", "negatives": ["n"], "pos_scores": [3], "neg_scores": [1]}):
    assert [one.scores for one in made(source(row))] == [(3, 1)]
  for name in ("scores", "positive_score"):
    assert [one.scores for one in made(source({"query": "a", "positive": "b", name: 3}))] == [(3,)]


def test_scores_of_a_post(source):
  with pytest.raises(InputError, match="a pair with a 'scores', which may say"):
    source({"title": "a", "body": "b", "scores": 3}).parts()


def test_null_among_negatives_is_none(source):
  row = {"query": "a", "positive": "b", "negatives": ["x", None, "", "y"], "negative_ids": [1, None, 3, 4],
         "neg_scores": [0.1, None, 0.3, 0.4], "pos_scores": [1]}
  example, = made(source(row))
  assert (example.negatives, example.negative_ids, example.scores) == (("x", "y"), ("1", "4"), (1, 0.1, 0.4))
  example, = made(source(["a", "b", None, "n"]))
  assert example.negatives == ("n",)
