"""Tasks of JSON lines read what `gtr-jax prepare` would make of them, or refuse it."""

import json

import pytest
from tiny_text import task_name, write_jsonl

from gtr_jax.data.examples import add_pair_task, jsonl
from gtr_jax.errors import InputError
from gtr_jax.prepare.records import example_in, read_records

pytest_plugins = "data_fixtures"


@pytest.fixture
def examples(data_dir, vocabulary):
  """The examples of a task of some lines, by passage; it declares query, passage and negatives, and what is asked."""

  def examples(rows, **fields):
    write_jsonl(data_dir / "pairs.jsonl", rows)
    fields = {"query": "query", "passage": "passage", "negatives": "negatives"} | fields
    task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), vocabulary=vocabulary, **fields)
    found = [example_in(record) for file in task.source.list_shards("train") for record in raw(file)]
    assert task.num_input_examples("train") == len(found)
    return {example.passage: example for example in found}

  return examples


def raw(file):
  with open(file, "rb") as f:
    return list(read_records(f, file))


def test_negatives_that_are_none(examples):
  found = examples([
      {"query": "one", "passage": "A a", "negatives": ["a  A.", "One?", "n", "N.", "m"]},  # On one line only.
      {"query": "What is X?", "passage": "B b.", "negatives": ["c  C", "what is x", "n"]},
      {"query": "what is x", "passage": "C c", "negatives": ["b B", "m"]}])
  assert {passage: e.negatives for passage, e in found.items()} == {"A a": ("n", "m"), "B b.": ("n",), "C c": ("m",)}


def test_copies_of_a_pair_are_one(examples):
  found = examples([{"query": "q", "passage": "A", "negatives": ["n"]},
                    {"query": "Q?", "passage": "a.", "negatives": "m"}, {"query": "q", "passage": "B"}])
  assert set(found) == {"A", "B"} and found["A"].negatives == ("n", "m")


def test_by_ids(examples):
  rows = [{"query": "q", "passage": "A", "pid": 7, "negatives": ["A with a title", "n"], "nids": [7, 8]},
          {"query": "q", "passage": "B", "pid": 9, "negatives": ["A edited", "m"], "nids": [7, 5]}]
  found = examples(rows, passage_id="pid", negative_ids="nids")
  assert found["A"].negatives == ("n",) and found["B"].negatives == ("m",) and found["B"].negative_ids == ("5",)


@pytest.mark.parametrize(("more", "named"), [
    ({"label": 0}, "'label', which says whether"), ({"label": 1}, "'label', which says"),
    ({"is_duplicate": 0}, "'is_duplicate', which says"),
    ({"hard_negatives": ["x"]}, "'hard_negatives', which may change"), ({"score": 0.5}, "'score'"),
])
def test_a_field_that_may_change_what_is_meant_is_named(examples, more, named):
  with pytest.raises(InputError, match=f"pairs.jsonl:2: .*{named}.*gtr-jax prepare pairs"):
    examples([{"query": "a", "passage": "b"}, {"query": "q", "passage": "A", "negatives": ["n"]} | more])


def test_fields_that_are_declared_or_only_tell_more_are_not(examples):
  row = {"query": "q", "passage": "A", "negatives": ["n"], "title": "T", "scores": [0.5, 0.1], "source": "s"}
  assert list(examples([row])) == ["A"]
  named = [{"query": "q", "passage": "A", "hard_negatives": ["m"]}]
  assert examples(named, negatives="hard_negatives")["A"].negatives == ("m",)
  assert list(examples([{"label": "the query", "passage": "A"}], query="label")) == ["A"]


def test_what_cannot_be_seen_is_empty(examples):
  for field in ("query", "passage"):
    with pytest.raises(InputError, match=rf"pairs.jsonl:1: the {field} .* is empty"):
      examples([{"query": "q", "passage": "p"} | {field: "\u200b\ufeff"}])


def test_a_query_that_is_its_passage_is_counted_and_left_out(examples, data_dir):
  found = examples([{"query": "Same  text?", "passage": "same text"}, {"query": "q", "passage": "A"},
                    {"query": "r", "passage": "R."}])
  assert set(found) == {"A"}
  manifest, = data_dir.glob("cache/*/manifest.json")
  assert json.loads(manifest.read_text())["counts"]["query_is_passage"] == 2


def test_a_missing_shard_is_named(data_dir, vocabulary):
  for number in (0, 2):
    write_jsonl(data_dir / f"train-0000{number}-of-00003.jsonl", [{"query": "q", "passage": f"p{number}"}])
  task = add_pair_task(task_name(), jsonl(train="train-*.jsonl"), vocabulary=vocabulary)
  with pytest.raises(InputError, match="train-00001-of-00003.jsonl: no such file, but train-00000-of-00003.jsonl says"):
    task.source.list_shards("train")


def test_negatives_as_prepare_reads_them(examples):
  """A list of JSON in a text; objects, if nothing in them may judge."""
  found = examples([{"query": "q", "passage": "A", "negatives": '["n", "a."]'}, {"query": "r", "passage": "B\0b"},
                    {"query": "r", "passage": "C", "negatives": ["Bb", None, "m"]}])
  assert {passage: e.negatives for passage, e in found.items()} == {"A": ("n",), "Bb": (), "C": ("m",)}
  with pytest.raises(InputError, match="pairs.jsonl:1: a negative has a field 'label'.*gtr-jax prepare pairs"):
    examples([{"query": "q", "passage": "A", "negatives": [{"passage": "n", "label": 1}]}])
