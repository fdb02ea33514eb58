"""Wordings of one query id, and ids of passages: where they are held out, and what is known to answer them."""

import collections

import pytest
from prepared_files import prepare_rows

from gtr_jax.io import data_root
from gtr_jax.prepare import near_pairs, records, transforms
from gtr_jax.prepare.of_queries import MOST_POSITIVES
from gtr_jax.text.same_text import folded


@pytest.fixture
def prepare(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  yield lambda *files, **settings: prepare_rows(tmp_path, *files, **settings)
  data_root.set_data_dir(None)


def negatives_of(found):
  return {example.passage: example.negatives for _, example in found}


def wording(number, of_id, **fields):
  return {"query_id": f"q{of_id}", "query": f"wording {number} of {of_id}", "positive": f"answer {number} to {of_id}",
          **fields}


def without_id(row):
  return {name: value for name, value in row.items() if name != "query_id"}


def splits_by(found, key):
  splits = collections.defaultdict(set)
  for split, example in found:
    splits[key(example)].add(split)
  return splits


def is_drawn(text, share):
  """Of a query without an id, by the hash that decided before ids did."""
  return records.share_of(folded(text).encode()) < share


@pytest.mark.parametrize("near_duplicates", [False, True])
def test_wordings_of_an_id_are_on_one_side(prepare, near_duplicates):
  rows = [wording(number, of_id) for number in range(3) for of_id in range(120)]
  found, _ = prepare(rows[::2], rows[1::2], validation_share=0.2, near_duplicates=near_duplicates)
  sides = splits_by(found, lambda example: example.query_id)
  assert len(found) == 360 and len(sides) == 120 and all(len(splits) == 1 for splits in sides.values())
  assert 12 < sum(splits == {"validation"} for splits in sides.values()) < 40  # A share of the ids: not of any wording.


def test_the_words_of_a_query_are_on_one_side_with_ids_and_without(prepare):
  rows = [wording(number, of_id) for number in range(3) for of_id in range(100)]
  alone = [without_id(row) | {"query": row["query"].upper(), "positive": f"more {i}"} for i, row in enumerate(rows)]
  found, _ = prepare(rows, alone, validation_share=0.2)
  assert len(found) == 600
  for sides in (splits_by(found, lambda example: folded(example.query)),
                splits_by(found, lambda example: folded(example.query).split()[-1])):  # Those of the ids, too.
    assert all(len(splits) == 1 for splits in sides.values())
    assert {*map(frozenset, sides.values())} == {frozenset({"train"}), frozenset({"validation"})}


def test_words_of_two_ids_are_held_out_with_either(prepare):
  rows = [wording(number, of_id) for number in range(2) for of_id in range(100)]
  both = [wording(0, of_id) | {"query_id": f"q{of_id + 1}", "positive": f"more {of_id}"} for of_id in range(0, 100, 2)]
  found, _ = prepare(rows + both, validation_share=0.3)
  assert all(len(splits) == 1 for splits in splits_by(found, lambda example: example.query).values())
  ids = splits_by(found, lambda example: example.query_id)
  alone = splits_by([(split, example) for split, example in found if example.query.startswith("wording 1")],
                    lambda example: example.query_id)  # Whose words are those of one id: by which they are drawn.
  for of_id in range(0, 100, 2):
    of_both = {*alone[f"q{of_id}"], *alone[f"q{of_id + 1}"]}
    assert ids[f"q{of_id}"] == alone[f"q{of_id}"] | {"validation" if "validation" in of_both else "train"}


def test_queries_of_one_wording_are_drawn_as_without_ids(prepare):
  rows = [{"query_id": f"q{i}", "query": f"question {i}", "positive": f"answer {i}"} for i in range(200)]
  many = [wording(number, "too many") for number in range(MOST_POSITIVES + 1)]  # That is no id of a query.
  for given in (rows + many, list(map(without_id, rows + many))):
    found, _ = prepare(given, validation_share=0.2)
    assert {example.query for split, example in found if split == "validation"} == {
        row["query"] for row in given if is_drawn(row["query"], 0.2)}
    assert len(found) == len(given)


def test_a_text_of_a_set_is_drawn_by_itself(prepare):
  """Also where ids say otherwise: it is trained on in no set, and in no pair."""
  sets = [{"set": [f"wording 0 of {i}", f"another text of {i}"]} for i in range(100)]
  rows = [wording(number, of_id) for number in range(2) for of_id in range(100)]
  found, _ = prepare(sets + rows, validation_share=0.2)
  sides = splits_by(found, lambda example: example.query)
  assert all(len(splits) == 1 for splits in sides.values())
  texts = {text for split, example in found if split == "train" and not example.query_id.startswith("q")
           for text in (example.query, example.passage)}
  drawn = [text for of_set in sets for text in of_set["set"] if is_drawn(text, 0.2)]
  assert drawn and texts.isdisjoint(drawn)
  assert all(sides[text] == {"validation"} for text in drawn if text.startswith("wording"))


def test_near_pairs_are_ranked_by_the_side_that_ids_decide():
  """Of two that are near, the one held out stays."""
  words = "one two three four five six seven eight nine ten eleven"
  pairs = []
  for end, side in (("x", b"train"), ("y", b"validation")):
    query, passage = f"{words} {end}", f"{words} twelve thirteen"
    digest = records.digest_of(query.encode(), passage.encode())
    example = transforms.Example(query, passage, end)
    pairs += [(digest, "train", records.serialize(example, digest.hex())),
              (digest[:8] + bytes(8), records.SIDE, side)]
  ranks = [near_pairs.rank_of(pair) for pair in transforms.different(sorted(pairs))]
  assert sorted(rank[0] for rank in ranks) == [0, 1]


@pytest.mark.parametrize(("source", "short"), [({"min_words": 2}, "Alpha"), ({"max_characters": 40}, "long " * 20)])
def test_the_id_of_an_answer_that_a_filter_leaves_out(prepare, source, short):
  rows = [{"query": "what is alpha", "passage_id": "p1", "positive": short},
          {"query": "what is alpha", "passage_id": "p2", "positive": "Alpha denotes a beginning",
           "negatives": ["Alpha (a letter)", "beta is second"], "negative_ids": ["p1", "p9"]}]
  found, counts = prepare(rows, source=source)
  assert negatives_of(found) == {"Alpha denotes a beginning": ("beta is second",)}
  assert counts["negative_is_positive"] == 1


def test_the_ids_of_more_pairs_than_are_made_and_of_copies(prepare):
  several = {"query": "q", "pos": ["a 1", "a 2", "a 3", "a 4"], "pos_ids": ["p1", "p2", "p3", "p4"]}
  other = {"query": "Q", "positive": "b", "negatives": ["edited 2", "edited 3", "n"],
           "negative_ids": ["p2", "p3", "p0"]}
  assert negatives_of(prepare([several, other], source={"max_pairs": 2})[0])["b"] == ("n",)
  copies = [{"query": "q", "positive": "same text", "passage_id": number} for number in (1, 2, 3)]
  other = {"query": "q", "positive": "b", "negatives": [f"edited {i}" for i in (1, 2, 3, 4)],
           "negative_ids": [1, 2, 3, 4]}
  found, counts = prepare(copies, [other])
  assert negatives_of(found)["b"] == ("edited 4",) and counts["duplicate"] == 2
  prepare([copies[0], ["another", "pair"]])
  found, _ = prepare(copies, [other], without=("p2",))  # Where none of them is trained on.
  assert negatives_of(found) == {"b": ("edited 4",)}
  own = [{"query": "q", "positive": "Q.", "passage_id": 7},
         {"query": "q", "positive": "b", "negatives": ["the query, edited", "n"], "negative_ids": [7, 8]}]
  found, _ = prepare(own)
  assert negatives_of(found) == {"b": ("n",)} and found[0][1].positives == ()


@pytest.mark.parametrize("source", [{}, {"min_words": 2}, {"max_characters": 20}, {"max_pairs": 1}])
def test_answers_to_another_wording_by_text_and_by_id(prepare, source):
  """Whether they are trained on or left out: too short, too long, or one too many."""
  rows = [{"query_id": "q1", "query": "what is alpha", "pos": ["the first one", "Alpha", "a much longer text on alpha"],
           "pos_ids": ["p1", "p2", "p3"]},
          {"query_id": "q1", "query": "alpha meaning", "positive": "a beginning", "negatives": [
              "Alpha", "a much longer text on ALPHA", "edited 1", "edited 2", "edited 3", "no answer"],
           "negative_ids": ["", "", "p1", "p2", "p3", "p4"]},
          {"query_id": "q2", "query": "what is beta", "positive": "the second", "negatives": ["Alpha", "edited 1"],
           "negative_ids": ["", "p1"]}]
  for files in ([rows], [rows[1:], rows[:1]]):
    found, _ = prepare(*files, source=source)
    of = negatives_of(found)
    assert of["a beginning"] == ("no answer",)
    assert of["the second"] == ("Alpha", "edited 1")


def test_texts_of_a_set_are_no_negatives_of_each_other_on_any_line(prepare):
  rows = [{"set": ["text one", "text two", "text three"]}, {"query": "text three", "positive": "answer", "negatives": [
      "text one", "text two", "n"]}, {"query": "text one", "positive": "x", "negatives": ["text three", "answer"]}]
  found, _ = prepare(rows)
  of = negatives_of(found)
  assert of["answer"] == ("n",) and of["x"] == ("answer",)
  for _, example in found:
    assert records.key_of(example.query) not in example.positives
