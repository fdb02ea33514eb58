"""BM25 against its formula, with ties in trec_eval's order; run files."""

import math

import bm25s
import numpy as np
import pytest

from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.retrieval import bm25
from gtr_jax.retrieval.bm25 import BM25Index, bm25_run
from gtr_jax.retrieval.runs import Ranking, in_order, read_run, write_run


def test_scores_are_lucenes_bm25():
  """score = sum over words of log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 (1 - b + b length / mean))."""
  texts = ["zebra zebra lion", "lion tiger panther giraffe", "zebra", "giraffe tiger"]
  (rows, scores), = BM25Index(texts, progress=False).search(["zebras lion"], 10)
  bags = [text.split() for text in texts]
  mean = np.mean([len(bag) for bag in bags])

  def score(bag):
    total = 0.0
    for word in ("zebra", "lion"):
      containing = sum(word in other for other in bags)
      idf = math.log(1 + (len(bags) - containing + 0.5) / (containing + 0.5))
      total += idf * bag.count(word) / (bag.count(word) + 1.5 * (0.25 + 0.75 * len(bag) / mean))
    return total

  expected = np.asarray([score(bag) for bag in bags])
  assert rows.tolist() == [0, 2, 1]  # Text 3 shares no word with the query.
  np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)


def test_some_rows_alone():
  texts = ["zebra lion", "lion", "zebra zebra", "giraffe", "zebra giraffe"]
  index = BM25Index(texts, progress=False)
  (rows, scores), = index.search(["zebra"], 10)
  (some, of_some), = index.search(["zebra"], 10, range(1, 4))
  assert sorted(rows.tolist()) == [0, 2, 4] and some.tolist() == [2]
  assert of_some[0] == scores[rows.tolist().index(2)]


def test_scores_are_those_of_bm25s(monkeypatch):
  """The index is built here, in parts, and by bm25s in one."""
  monkeypatch.setattr(bm25, "_TEXTS_AT_ONCE", 7)
  rng = np.random.default_rng(0)
  vocabulary = [f"word{i}" for i in range(50)]
  texts = [" ".join(rng.choice(vocabulary, length)) for length in rng.integers(1, 40, 100)]
  queries = [" ".join(rng.choice([*vocabulary, "unknown", "the"], 6)) for _ in range(20)]
  whole = bm25s.BM25()
  whole.index([text.split() for text in texts], show_progress=False)
  for query, (rows, scores) in zip(queries, BM25Index(texts, progress=False).search(queries, 100), strict=True):
    words = [word for word in query.split() if word in vocabulary]
    expected = whole.get_scores(words)
    assert len(rows) == np.count_nonzero(expected)
    np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)


def test_ties_are_in_trec_evals_order_also_at_the_cut():
  ids = ["a", "10", "b", "9", "c"]
  documents = Documents(ids, [""] * 5, ["same words here"] * 4 + ["something else entirely"])
  for k in range(1, 6):
    run = bm25_run(documents, ["q"], ["the same words"], k, progress=False)
    assert run["q"].doc_ids == ["b", "a", "9", "10"][:k]


def test_queries_keep_their_order_over_many_threads():
  words = [f"word{i}" for i in range(300)]
  documents = Documents([f"d{i}" for i in range(300)], [""] * 300, words)
  run = bm25_run(documents, [f"q{i}" for i in range(300)], words, 3, progress=False)
  assert [run[f"q{i}"].doc_ids for i in range(300)] == [[f"d{i}"] for i in range(300)]


def test_leaves_out_the_query_itself_and_stands_queries_without_words():
  documents = Documents(["x", "y", "z"], ["lions", "", ""], ["", "lions roar", "nothing"])
  run = bm25_run(documents, ["x", "q", "one letter", "unknown"], ["lions", "the of", "x", "tiger"], 1,
                 exclude_own_id=True, progress=False)
  assert {query_id: ranking.doc_ids for query_id, ranking in run.items()} == {
      "x": ["y"], "q": [], "one letter": [], "unknown": []}
  only_stop_words = Documents(["x"], [""], ["the of"])
  assert bm25_run(only_stop_words, ["q"], ["lion"], 1, progress=False)["q"].doc_ids == []


def test_a_run_file_keeps_scores_order_and_nothing_half_written(tmp_path):
  scores = np.float32([1.0, 0.1, np.nextafter(np.float32(0.1), np.float32(0)), 1e-7, 1e-7, -3.5])
  run = {"q1": Ranking(["a", "b", "c", "e", "d", "f"], scores), "q2": Ranking(["ü"], np.float32([2e20]))}
  path = tmp_path / "new" / "x.trec"
  write_run(path, run, "my system")
  assert path.read_text().splitlines()[0] == "q1 Q0 a 1 1.0 my_system"
  assert [p.name for p in path.parent.iterdir()] == ["x.trec"]
  back = read_run(path)
  assert {q: r.doc_ids for q, r in back.items()} == {q: r.doc_ids for q, r in run.items()}
  for query_id, ranking in run.items():
    np.testing.assert_array_equal(back[query_id].scores, ranking.scores)


def test_a_run_is_read_in_trec_evals_order_whatever_its_lines_say(tmp_path):
  path = tmp_path / "x.trec"
  path.write_text("q Q0 10 1 0.5 s\nq Q0 9 2 0.5 s\nq Q0 8 3 0.75 s\n")
  assert read_run(path)["q"].doc_ids == ["8", "9", "10"]
  assert in_order([], np.zeros(0)).doc_ids == []


@pytest.mark.parametrize(("line", "message"), [
    ("q Q0 d 2 0.5", "x.trec:2: 5 columns instead of the 6"),
    ("q Q0 d 2 high s", "x.trec:2: the score 'high' is not a number"),
    ("q Q0 d 2 nan s", "x.trec:2: the score is nan"),
    ("q Q0 a 2 0.5 s", "x.trec:2: document 'a' occurs twice for query 'q'"),
])
def test_bad_run_files(tmp_path, line, message):
  path = tmp_path / "x.trec"
  path.write_text("q Q0 a 1 0.5 s\n" + line + "\n")
  with pytest.raises(InputError, match=message):
    read_run(path)
  with pytest.raises(InputError, match="no such file"):
    read_run(tmp_path / "y.trec")
