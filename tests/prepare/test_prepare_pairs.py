"""Pairs that others have made, in the kinds of lines that they publish.

Kinds and names of fields: the card of sentence-transformers/embedding-training-data ("Data Format": pairs, triplets,
sets, query-pairs, query-triplets); {"texts": [title, body], "tags", "meta"} is flax-sentence-embeddings/
stackexchange_title_body_jsonl; "title_body", "upvoted_answer", "downvoted_answer" is its
stackexchange_titlebody_best_and_down_voted_answer_jsonl; {"title", "body", "subreddit"} is
sentence-transformers/reddit-title-body.
"""

import argparse
import bz2
import gzip
import json
import lzma
import math
import re
from functools import partial
from pathlib import Path

import pytest
import zstandard
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.io import lines
from gtr_jax.prepare.interface import Example
from gtr_jax.prepare.sources import pair_fields, pairs_jsonl
from gtr_jax.prepare.sources.field_names import names_in
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.prepare.vectors import unpacked


@pytest.fixture
def file(tmp_path):
  def write(rows, name="pairs.jsonl"):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    compress = {".gz": partial(gzip.compress, mtime=0), ".bz2": bz2.compress, ".xz": lzma.compress,
                ".zst": zstandard.compress}
    path = tmp_path / name
    path.write_bytes(compress.get(path.suffix, bytes)(text))
    return str(path)
  return write


def _made(source):
  examples, counts = prepared(source)
  assert not counts.places, counts.places
  return [(e.query, e.passage, e.negatives) for e in examples]


@pytest.mark.parametrize(("row", "pairs"), [
    (["a", "b"], [("a", "b", ())]),
    (["a", "b", "n"], [("a", "b", ("n",))]),
    ({"query": "a", "pos": ["b", "c"]}, [("a", "b", ()), ("a", "c", ())]),
    ({"query": "a", "pos": ["b", "c"], "neg": ["n", "m"]}, [("a", "b", ("n", "m")), ("a", "c", ("n", "m"))]),
    ({"texts": ["a", "b"], "tags": ["t"], "meta": {"views": "3"}}, [("a", "b", ())]),
    ({"title": " a ", "body": "b\nc", "subreddit": "s"}, [("a", "b\nc", ())]),
    ({"title_body": "a", "upvoted_answer": "b", "downvoted_answer": "n"}, [("a", "b", ("n",))]),
    ({"anchor": "a", "positive": "b", "negative": "n"}, [("a", "b", ("n",))]),
    ({"query": "a", "positive": "b", "negatives": ["n", "m"], "source": "x"}, [("a", "b", ("n", "m"))]),
    ({"query": "a", "positive": "b", "negative_1": "n", "negative_2": "m"}, [("a", "b", ("n", "m"))]),
    ({"question": "a", "answer": "b"}, [("a", "b", ())]),
    ({"question": "a", "answer": "b", "context": "c", "label": 1}, [("a", "b", ())]),
    ({"question": "a", "passage": "b", "negatives": ["n"]}, [("a", "b", ("n",))]),
    ({"question": "a", "context": "b", "title": "t"}, [("a", "b", ())]),
    ({"query": "a", "document": "b"}, [("a", "b", ())]),
    ({"query": "a", "text": "b"}, [("a", "b", ())]),
    ({"query": "a", "context": "b"}, [("a", "b", ())]),
    ({"query": "a", "answer": "b", "text": "c"}, [("a", "b", ())]),
    ({"sentence1": "a", "sentence2": "b"}, [("a", "b", ())]),
    ({"sentence_1": "a", "sentence_2": "b"}, [("a", "b", ())]),
    ({"text1": "a", "text2": "b"}, [("a", "b", ())]),
    ({"title": "a", "text": "b", "score": 3}, [("a", "b", ())]),
    ({"question1": "a", "question2": "b", "is_duplicate": "1"}, [("a", "b", ())]),
    ({"text": "a", "text_pair": "b"}, [("a", "b", ())]),
    ({"query": "a", "positive": "b", "negative1": "n", "negative2": "m"}, [("a", "b", ("n", "m"))]),
    ({"Query": "a", "Positive": "b", "Negatives": '["n", "m"]', "Source": "x"}, [("a", "b", ("n", "m"))]),
    ({"query": "a", "pos": []}, []),
    ({"query": "a", "passage": "b", "label": True}, [("a", "b", ())]),
    ({"query": "a", "positive": "b", "hard_negatives": ["n"], "negative": "m"}, [("a", "b", ("n", "m"))]),
    ({"query": "a", "positive": "b", "hard_negative_1": "n", "hard_negative_2": "m"}, [("a", "b", ("n", "m"))]),
    ({"query_id": "1", "query": "a", "positive_passages": [{"docid": "2", "title": "t", "text": "b"}],
      "negative_passages": [{"docid": "3", "title": "", "text": "n"}]}, [("a", "t b", ("n",))]),
    ({"question": "a", "answers": ["x"], "positive_ctxs": [{"title": "t", "text": "b"}], "negative_ctxs": [],
      "hard_negative_ctxs": [{"title": "-", "text": "n"}]}, [("a", "t b", ("n",))]),
])
def test_kinds_of_lines(file, row, pairs):
  assert _made(PairsJsonl((file([row]),))) == pairs


def _of_rows(file, rows, **given):
  examples, counts = prepared(PairsJsonl((file(rows),), **given))
  assert not counts.places, counts.places
  return examples


@pytest.mark.parametrize("no", [0, "0", 0.0, False, [0], "0.00", " False "], ids=repr)
def test_a_label_says_which_pairs_are_none(file, no):
  rows = [{"query": "a", "passage": "b", "label": 1}, {"query": "a", "passage": "c", "label": no, "negatives": ["d"]}]
  for given in ({}, {"query": ("query",), "passage": ("passage",), "negatives": "negatives"}):
    examples = _of_rows(file, rows, **given)
    assert [(e.query, e.passage, e.is_negative, e.negatives) for e in examples] == [
        ("a", "b", False, ()), ("a", "c", True, ()), ("a", "d", True, ())]
  ignored = _of_rows(file, rows, ignore=("label",))
  assert [(e.passage, e.is_negative, e.negatives) for e in ignored] == [("b", False, ()), ("c", False, ("d",))]
  assert PairsJsonl((file(rows),)).fields() == ['query: "query"; passage: "passage"; negatives: "negatives"; '
                                                'label (1: a pair, 0: a negative): "label"']


@pytest.mark.parametrize(("row", "scores"), [
    ({"query": "a", "pos": ["b", "c"], "neg": ["n", "m"], "pos_scores": [0.9, 0.8], "neg_scores": [0.2, 1]},
     [(0.9, 0.2, 1.0), (0.8, 0.2, 1.0)]),
    ({"query": "a", "positive": "b", "negatives": ["n"], "scores": [3, -2.5]}, [(3.0, -2.5)]),
    ({"query": "a", "positive": "b", "score": 0.5}, [(0.5,)]),
    ({"query": "a", "passage": "b", "score": None}, [()]),
    ({"query": "a", "pos": ["b", "c"], "neg": ["n"], "pos_scores": [None, 0.5], "neg_scores": [math.nan]},
     [(), (0.5, math.nan)]),
    ({"query": "a", "pos": ["b"], "neg": ["n"], "pos_scores": [0.5], "neg_scores": "nan"}, [(0.5, math.nan)]),
    ({"query": "a", "passage": "b", "score": "nan"}, [()]), ({"query": "a", "passage": "b", "score": math.nan}, [()]),
    ({"query": "a", "positive": {"id": "d", "text": "b", "score": 1.5}, "neg": [{"text": "n", "score": 0.5}, "m"]},
     [(1.5, 0.5, math.nan)]),
    ({"question": "a", "positive_ctxs": [{"title": "", "text": "b", "score": 1000, "title_score": 1, "psg_id": "7"}],
      "hard_negative_ctxs": [{"title": "", "text": "n", "score": "2", "passage_id": "8"}]}, [(1000.0, 2.0)]),
    ({"query": "a", "positive": "b", "negative": "n", "positive_score": 3, "negative_score": 1}, [(3.0, 1.0)]),
    ({"query": "a", "pos": ["b"], "neg": ["B", "n"], "neg_scores": [0.7, 0.2], "pos_scores": [0.9]}, [(0.9, 0.2)]),
])
def test_scores_stay_with_their_texts(file, row, scores):
  assert repr([e.scores for e in _of_rows(file, [row])]) == repr(scores)


@pytest.mark.parametrize(("row", "ids"), [
    ({"query_id": 7, "positive_id": "p", "negatives": ["n", "m"], "negative_ids": ["x", None]}, ("7", "p", ("x", ""))),
    ({"query_id": "q", "passage_id": "p", "negative": "n"}, ("q", "p", ())),
    ({"query_id": "q", "negatives": ["n", "b", "m"], "negative_ids": [1, 2, 3]}, ("q", "", ("1", "3"))),
    ({"negatives": ["n"], "negative_ids": None}, ("", "", ())),
    ({"pos": ["c"], "positive_id": "p", "neg": [], "negative_ids": []}, ("", "p", ())),
    ({"qid": "q", "docid": "d"}, ("q", "d", ())), ({"doc_id": 7}, ("", "7", ())), ({"pid": 7}, ("", "7", ())),
    ({"corpus_id": "d"}, ("", "d", ())), ({"passage_id": "p", "docid": "d"}, ("", "p", ())),
    ({"pos": ["c"], "pos_id": ["d"], "neg": ["n", "m"], "neg_id": ["e", "f"]}, ("", "d", ("e", "f"))),
    ({"pos": ["c"], "positive_ids": ["d"]}, ("", "d", ())), ({"positive_ids": ["d"]}, ("", "d", ())),
    ({"query_id": "q", "positive_passages": [{"docid": "d", "title": "", "text": "c"}],
      "negative_passages": [{"docid": "e", "text": "n"}, {"docid": "f", "text": "m"}]}, ("q", "d", ("e", "f"))),
    ({"pos": [{"_id": "d", "text": "c"}], "neg": [{"id": 3, "text": "n"}]}, ("", "d", ("3",))),
])
def test_ids_are_found_by_their_names(file, row, ids):
  passage = {} if {"pos", "positive_passages"} & {*row} else {"positive": "b"}
  example, = _of_rows(file, [{"query": "a"} | passage | row])
  assert (example.query_id, example.passage_id, example.negative_ids) == ids
  every = {*pair_fields.QUERY_IDS, *pair_fields.PASSAGE_IDS, *pair_fields._POSITIVE_IDS, *pair_fields._NEGATIVE_IDS,
           *pair_fields._OBJECT_IDS}
  ignored, = _of_rows(file, [{"query": "a"} | passage | row], ignore=tuple(every & names_in(passage | row)))
  assert (ignored.query_id, ignored.passage_id, ignored.negative_ids) == ("", "", ())


def vectors_of(example):
  return [unpacked(vector).tolist() for vector in example.vectors]


@pytest.mark.parametrize(("row", "expected"), [
    ({"positive": "b", "negatives": ["n", "m"], "query_vector": [1, 0.5], "positive_vector": [2, 0],
      "negative_vectors": [[3, 0], None]}, [[[1, 0.5], [2, 0], [3, 0], []]]),
    ({"pos": ["b", "c"], "neg": ["C", "n"], "pos_embeddings": [[1], [2]], "neg_embeddings": [[3], [4]]},
     [[[], [1], [4]], [[], [2], [4]]]),
    ({"positive": "b", "query_embedding": "[0.25, 4]"}, [[[0.25, 4], []]]),
    ({"positive": "b", "query_vector": None}, [[]]),
    ({"positive": "b", "negatives": ["n"], "label": 0, "query_vector": [1], "negative_vectors": [[2]]},
     [[[1], []], [[1], [2]]]),
])
def test_vectors_stay_with_their_texts(file, row, expected):
  assert [vectors_of(example) for example in _of_rows(file, [{"query": "a"} | row])] == expected


@pytest.mark.parametrize(("row", "message"), [
    ({"query_vector": [1, 2], "positive_vector": [1]}, "vectors of 1 and 2 numbers"),
    ({"negatives": ["n"], "negative_vectors": [[1], [2]]}, "'negative_vectors' is no list of 1 vectors"),
    ({"query_vector": ["x"]}, "'query_vector' has a text"), ({"query_vector": [1e39]}, "not finite in float32"),
])
def test_vectors_that_are_none(file, row, message):
  with pytest.raises(InputError, match=message):
    PairsJsonl((file([{"query": "a", "positive": "b"} | row]),)).parts()


def test_as_many_ids_as_negatives(file):
  with pytest.raises(InputError, match=r"'negative_ids' has 1 ids for 2 negatives; .* \(--ignore negative_ids\)"):
    PairsJsonl((file([{"query": "a", "positive": "b", "negatives": ["n", "m"], "negative_ids": ["x"]}]),)).parts()


def test_of_posts_a_score_is_what_readers_think(file):
  examples = _of_rows(file, [{"title": "a", "body": "b", "score": 312}])
  assert examples[0].scores == ()
  assert PairsJsonl((file([{"title": "a", "body": "b", "score": 312}]),)).fields()[0].endswith("not read: score")


def test_what_is_taken_for_what_is_said(file):
  first = [{"query": "a", "positive": "b", "title": "t", "id": "7", "doc": "8", "rank": 3},
           {"query": "a", "positive": "b", "negative": "n"}, {"query": "a", "positive": 3, "other": "x"}, "broken"]
  second = [["a", "b"], {"set": ["a", "b"]}, {"texts": ["a", "b"]}, {"query": "a", "pos": ["b"], "neg": ["n"]}]
  paths = file(first, "first.jsonl"), file(second, "second.jsonl.gz")
  assert PairsJsonl(paths[:1]).fields() == [
      'query: "query"; passage: "positive"; negatives: "negative"; not read: title, id, doc, rank, other']
  said = PairsJsonl(paths).fields()
  assert [line.split()[0] for line in said] == ["query:", "lists:", "of", "and"]
  assert said[3] == "and 2 other kinds of lines"
  assert PairsJsonl(paths[1:]).fields()[3] == "and 1 other kind of lines"
  named = PairsJsonl(paths[:1], query=("title", "query"), passage=("positive",))
  assert named.fields() == ['query: "title" + "query"; passage: "positive"; not read: id, doc, rank']
  many = PairsJsonl((file([{"query": "a", "positive": "b", **{f"x{i}": "t" for i in range(10)}}]),))
  assert many.fields()[0].endswith("not read: x0, x1, x2, x3, x4, x5, x6, x7 and 2 more")


def test_the_texts_of_a_set_are_not_each_others_negatives(file):
  examples, _ = prepared(PairsJsonl((file([{"set": ["a", "b", "c"]}, {"set": ["d", "e"]}, ["f", "g"]]),)))
  assert [(e.query, e.passage) for e in examples] == [("a", "b"), ("b", "c"), ("d", "e"), ("f", "g")]
  ids = [(e.query_id, e.passage_id) for e in examples]
  assert [e.is_mutual for e in examples] == [True, True, True, False]
  assert ids[0] == ids[1] != ids[2] and ids[0][0] == ids[0][1] and ids[3] == ("", "")


@pytest.mark.parametrize(("value", "made"), [(None, ""), ("", ""), (7, "7"), (7.0, "7"), ("7", "7"), (0, "0")])
def test_ids(file, value, made):
  path = file([{"q": "a", "p": "b", "qid": value, "pid": value}])
  (example,), _ = prepared(PairsJsonl((path,), query=("q",), passage=("p",), query_id="qid", passage_id="pid"))
  assert (example.query_id, example.passage_id) == (made, made)


@pytest.mark.parametrize("value", [True, 1.5, ["x"], {"x": 1}], ids=repr)
def test_what_is_no_id(file, value):
  rows = [{"q": "a", "p": "b", "qid": "1"}, {"q": "c", "p": "d", "qid": value}]
  examples, counts = prepared(PairsJsonl((file(rows),), query=("q",), passage=("p",), query_id="qid"))
  assert len(examples) == 1 and "pairs.jsonl:2: field 'qid': " in counts.places[0] and "is no id" in counts.places[0]


def test_a_positive_is_no_negative(file):
  several = {"query": "a", "pos": ["b", "c", "d"], "neg": ["C", "n", "D\n", ""]}
  path = file([["a", "The  Answer", "the answer ", "n"], several])
  examples, counts = prepared(PairsJsonl((path,), max_pairs=2))
  assert [(e.passage, e.negatives) for e in examples] == [("The  Answer", ("n",)), ("b", ("n",)), ("c", ("n",))]
  assert counts.reasons == {"negative_is_positive": 3, "more_pairs_in_a_line": 1}


def test_named_fields(file):
  path = file([{"t": "a", "s": " b ", "long": "c", "bad": ["n"], "n": 7, "url": "u", "other": "o"}])
  source = PairsJsonl((path,), query=("t", "s"), passage=("long",), negatives="bad", query_id="n", passage_id="url")
  (example,), _ = prepared(source)
  assert example == Example("a b", "c", "7", "u", ("n",))
  untitled = file([{"q": "a", "title": None, "text": "b"}], "untitled.jsonl")
  assert _made(PairsJsonl((untitled,), query=("q",), passage=("title", "text"))) == [("a", "b", ())]
  with pytest.raises(InputError, match=r"jsonl:1: no field 'body', only 't', 's', .*expected \{.query.: ..., .posi"):
    PairsJsonl((path,), query=("t",), passage=("body",)).parts()
  with pytest.raises(InputError, match="jsonl:1: no field 'id', nor in the lines behind it, only 't'"):
    PairsJsonl((path,), query=("t",), passage=("long",), negatives="bad", query_id="id").parts()
  for given in ({"query": ("t",)}, {"negatives": "n"}, {"query_id": "n"}):
    with pytest.raises(InputError, match="go together|--(negatives|query_id) goes with --query and --passage"):
      PairsJsonl((path,), **given)


@pytest.mark.parametrize(("row", "says"), [
    ({"a": 1, "b": 2}, "fields 'a', 'b' are of no kind that is known"), ({}, "fields none are"), (["a"], "a list of 1"),
    ("3", "neither a list nor an object"), ("", "no pair in it"),
    ({"premise": "a", "hypothesis": "b"}, r'no kind that is known; expected \{"query": ..., "positive": .*'
     r'\{"question": ..., "answer": ...\}, \{"anchor": ..., "positive": ...\}, \['),
    ({"query": "a", "text": "b", "document": "c"}, "meant as 'query' and 'document' or as 'query' and 'text'; nam"),
    ({"query": "a", "title": "b", "text": "c"}, "meant as 'query' and 'text' or as 'title' and 'text'"),
    ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "a pair with a 'score', which may say"),
    ({"question": "a", "answer": "b", "score": 12}, r"a 'score', which may say .* say so \(--ignore score\)"),
    ({"title": "a", "body": "b", "query": "c", "positive": "d"},
     "meant as 'title' and 'body' or as 'query' and 'positive'; name those"),
    ({"query": "a", "positive": "b", "pos": ["c"]}, "meant as 'query' and 'pos' or as 'query' and 'positive'"),
    ({"query": "a", "document": "b", "label": 2}, r"field 'label' is a number \(2\), where 1 says that the texts "),
    ({"query": "a", "positive": "b", "label": "entailment"}, r"'label' is a text \('entailment'\), where 1 says"),
    ({"query": "a", "positive": "b", "label": 1, "is_duplicate": 0}, "fields 'label' and 'is_duplicate', which may be"),
    ({"query": "a", "positive": "b", "irrelevant_passages": ["c"]}, "a field 'irrelevant_passages', which may change "),
    ({"set": ["a", "b"], "label": 0}, "a field 'label', which may change what the pair means"),
    ({"query": "a", "pos": ["b"], "neg": ["c", "d"], "neg_scores": [0.5]}, "'neg_scores' has 1 scores for 1 passages "
     "and 2 negatives; correct it"),
    ({"query": "a", "pos": ["b"], "pos_scores": ["high"]}, r"'pos_scores' has a text \('high'\), where a number is"),
    (["a", "b", "0.2"], "a list with '0.2' behind its pair, which looks like a score or a label"),
    ({"query": "a", "positive": "b", "label": None}, "label is null, NaN or empty: give 0 or 1, or leave it out with "
     "--ignore label"),
    ({"query": "a", "positive": "b", "Label": math.nan}, "Label is null, NaN or empty: give 0 or 1"),
    ({"query": "a", "positive": "b", "is_duplicate": ""}, "is_duplicate is null, NaN or empty: give 0 or 1"),
    ({"query": "a", "positive": "b", "negative": "n", "score": 3.2}, "a 'score' beside a passage and its negatives"),
    ({"premise": "a", "hypothesis": "b", "label": 0}, "whose labels 0 often says that .*--ignore label"),
    ({"query": "a", "pos": [{"text": "b", "label": 0}]}, "a field 'label', which may change what the pair means"),
    ({"query": "a", "pos": [{"text": "b", "docid": "d"}], "pos_id": ["e"]}, "'e' in the line and 'd' within a passage"),
    ({"query": "a", "pos": ["b", "c"], "pos_id": ["e"]}, "'pos_id' has 1 ids for 2 passages"),
    ({"query": "a", "pos": [{"text": "b", "score": "high"}]}, "'score' has a text"),
    (["a", "b", "n", " -1e3"], "which looks like a score or a label"),
])
def test_a_file_of_another_kind_is_refused(file, row, says):
  with pytest.raises(InputError, match=says):
    PairsJsonl((file([row]),)).parts()


def test_broken_lines_are_counted(file, tmp_path):
  path = file([["a", "b"], '["a", "b', ["a", 3], {"x": 1}, ["c", None], {"query": "q", "pos": [[]]}, ["e", "f"]])
  with open(path, "ab") as f:
    f.write(b'["\xff", "b"]\n["last", "line"]')
  examples, counts = prepared(PairsJsonl((path,)))
  assert [e.query for e in examples] == ["a", "e", "last"]
  assert counts.reasons == {"broken": 6}
  assert [int(place.split(":")[1]) for place in counts.places] == [2, 3, 4, 5, 6, 8]
  assert "a number (3), where a text is expected" in counts.places[1].replace("'", "")


def test_a_label_that_is_null_makes_no_pair(file):
  rows = [{"query": "a", "passage": "b", "label": 1.0}, {"query": "a", "passage": "c", "label": None},
          '{"query": "a", "passage": "d", "label": NaN}', {"query": "a", "passage": "e", "label": "1.00"}]
  examples, counts = prepared(PairsJsonl((file(rows),)))
  assert [e.passage for e in examples] == ["b", "e"] and counts.reasons == {"broken": 2}
  assert all("label is null, NaN or empty: give 0 or 1, or leave it out with --ignore label" in place
             for place in counts.places)


def test_filters_are_counted(file):
  path = file([["", "b"], ["a", " "], ["one", "two words"], ["x y", "long " * 9],
               {"set": ["a", "b", "c", "d"]}])
  examples, counts = prepared(PairsJsonl((path,), min_words=2, max_characters=20, max_pairs=2))
  assert not examples
  assert counts.reasons == {"empty": 2, "too_short": 3, "too_long": 1, "more_pairs_in_a_line": 1}


def test_odd_characters(file):
  """Half of a character, as an escape, and a NUL go; all else stays."""
  path = file(['["cut \\ud83d off", "nul \\u0000 and é \\ud83d\\ude00"]'])
  assert _made(PairsJsonl((path,))) == [("cut  off", "nul  and é 😀", ())]
  (example,), _ = prepared(PairsJsonl((path,)))
  example.query.encode()


def test_html(file):
  path = file([["What is &lt;p&gt;?", "<p>one</p><pre>x\n  y</pre>", "<b>no</b>"]])
  assert _made(PairsJsonl((path,), html=True)) == [("What is <p>?", "one\nx\n  y", ("no",))]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_compressed_and_cut_off(file, tmp_path, suffix):
  rows = [[f"query {i}", f"passage {i * i}"] for i in range(500)]
  path = file(rows, f"pairs.jsonl{suffix}")
  assert [list(p[:2]) for p in _made(PairsJsonl((path,)))] == rows
  if suffix:
    (tmp_path / f"cut{suffix}").write_bytes(Path(path).read_bytes()[:-40])
    with pytest.raises(InputError, match=f"cut{suffix}: the archive is"):
      prepared(PairsJsonl((str(tmp_path / f"cut{suffix}"),)))


def test_byte_ranges_are_the_whole_file(file, monkeypatch):
  rows = [[f"query é {i}", "passage " * (i % 7 + 1)] for i in range(200)]
  source = PairsJsonl((file(rows),))
  monkeypatch.setattr(lines, "line_parts", lambda paths, size=333, kind="", of=lines.line_parts: of(paths, size, kind))
  assert len(source.parts()) > 20
  assert [p[0] for p in _made(source)] == [row[0] for row in rows]


def test_flags_are_the_fields():
  parser = argparse.ArgumentParser()
  pairs_jsonl.add_arguments(parser)
  assert pairs_jsonl.source(parser.parse_args(["a.jsonl"])) == PairsJsonl(("a.jsonl",))
  given = ("a b --query t,s --passage p --negatives n --query_id i --passage_id j --ignore x,y --html --max_pairs 2 "
           "--min_words 3 --max_characters 4")
  assert pairs_jsonl.source(parser.parse_args(given.split())) == PairsJsonl(
      ("a", "b"), ("t", "s"), ("p",), "n", "i", "j", ("x", "y"), True, 2, 3, 4)
  with pytest.raises(InputError, match="no such file"):
    PairsJsonl(("none.jsonl",)).parts()


def test_the_documentation_names_every_field():
  text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
  text = text.partition("### All names")[2].partition("\n## ")[0]
  found = {cells[1].strip(): re.findall("`([^`]+)`", cells[2]) for cells in (
      line.split("|") for line in text.splitlines() if "`" in line and line.startswith("|"))}
  for row, names in {
      "query and passage": [name for pair in pair_fields._NAMES for name in pair],
      "the same, where none of those is there": [name for pair in pair_fields._LOOSER for name in pair],
      "query, beside several passages": pair_fields._QUERIES,
      "several passages": [*pair_fields._POSITIVES, "positive_1", "positive_2"],
      "label": pair_fields._LABELS, "scores of passages": pair_fields._SCORES,
      "scores of negatives": pair_fields._NEGATIVE_SCORES, "id of the query": pair_fields.QUERY_IDS,
      "id of the passage": pair_fields.PASSAGE_IDS, "ids of all passages": pair_fields._POSITIVE_IDS,
      "ids of all negatives": pair_fields._NEGATIVE_IDS,
      "id within a passage that is an object": pair_fields._OBJECT_IDS, "score there": ["score"],
      "id within a query that is an object": pair_fields._IN_QUERIES[0]}.items():
    assert found.pop(row) == list(names), row
  patterns = dict(zip(("hard negatives", "vector of the query", "vectors of passages", "vectors of negatives"),
                      (pair_fields._NEGATIVES, *pair_fields._VECTORS), strict=True))
  assert found.keys() == patterns.keys()
  named = set(re.findall("[a-z]+", text))
  assert {part for pattern in patterns.values() for part in re.findall("(?<!\\\\)[a-z]{2,}", pattern.pattern)} <= named
  for row, pattern in patterns.items():
    assert all(map(pattern.fullmatch, found[row])), row
