"""What answers a query is known by its text, by the ids that this text has on any line, and by all pairs of these."""

import random

import pytest
from mining_runs import mined_from, write

from gtr_jax.io import data_root
from gtr_jax.prepare import engine, manifests
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl

FILLING = [{"query": f"lion {i}", "positive": f"lion number {i}"} for i in range(4)]


@pytest.fixture(autouse=True)
def data_folder(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  yield
  data_root.set_data_dir(None)


def negatives_by_positive(mined):
  return {record["positive"]: set(record["negatives"]) for record in mined}


def test_texts_of_a_set_for_a_line_without_its_mark(tmp_path):
  of_set = ["lion one text", "lion two text", "lion three text"]
  rows = [{"set": of_set}, *FILLING, *({"query": text.upper(), "positive": f"lion answer {i}"}
                                       for i, text in enumerate(of_set))]
  found = negatives_by_positive(mined_from(tmp_path, rows, num_negatives=20))
  for i in range(3):  # The last text is a query of no pair of the set.
    assert found[f"lion answer {i}"] == {f"lion number {n}" for n in range(4)} | {
        f"lion answer {n}" for n in range(3) if n != i}
  assert {*of_set[1:]} <= found["lion number 0"]


def test_pairs_of_an_id_for_a_line_with_the_words_alone(tmp_path):
  rows = [{"query_id": "q1", "query": "lion food", "positive": "lion eats one"},
          {"query_id": "q1", "query": "meal of a lion", "passage_id": "p2", "positive": "lion eats two"},
          {"query": "Lion food?", "positive": "lion eats three"},
          {"query": "another lion", "passage_id": "p2", "positive": "lion eats two, edited much by others"}, *FILLING]
  found = negatives_by_positive(mined_from(tmp_path, rows, num_negatives=20))
  own = {"lion eats one", "lion eats two", "lion eats three"}
  assert own.isdisjoint(found["lion eats three"]) and own.isdisjoint(found["lion eats one"])
  assert "lion eats two, edited much by others" not in found["lion eats three"]  # By its id.
  assert own & found["lion eats two"] == {"lion eats three"}  # The line without the id is not of the other words.
  assert found["lion number 0"] >= own


def test_what_is_near_to_the_only_passage_of_words_that_ids_join_to_others(tmp_path):
  words = "the lion eats one zebra and two goats on each day of the year and then it sleeps"
  rows = [{"set": ["lion one text", "lion two text"]}, {"query": "lion two text", "positive": words},
          {"query": "lion days", "positive": f"{words} well"}, *FILLING]
  found = negatives_by_positive(mined_from(tmp_path, rows, num_negatives=20))
  assert f"{words} well" not in found[words] and f"{words} well" in found["lion number 0"]


def test_prepare_finds_no_answer_among_what_is_mined(tmp_path):
  """With ids, sets and lines without either, of few texts: what is known is the same in both."""
  rng, rows = random.Random(0), list(FILLING)
  texts = [f"lion {a} {b}" for a in "abcdefghij" for b in "klm"]
  for _ in range(40):
    one, other, third = rng.sample(texts, 3)
    rows.append(rng.choice(({"set": [one, other, third]}, {"query": one, "positive": other}, {
        "query_id": f"q{rng.randrange(8)}", "query": one, "passage_id": f"p{texts.index(other) % 20}",
        "positive": other})))
  mined = mined_from(tmp_path, rows, num_negatives=5)
  assert sum(len(record["negatives"]) for record in mined) > 150
  folder = engine.prepare(PairsJsonl((str(write(tmp_path / "mined.jsonl", mined)),)), manifests.Settings("again"),
                          processes=1, say=lambda line: None)
  counts = manifests.read(str(folder))["counts"]
  assert counts["written"] > 50 and "negative_is_positive" not in counts
