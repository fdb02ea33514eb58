"""Data sets of ir_datasets, for which a module stands in that has what is asked of it (as in 0.6.3)."""

import argparse
import sys
import types
from typing import NamedTuple

import pytest
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.prepare.sources import ir_datasets_pairs


class Titled(NamedTuple):
  doc_id: str
  title: str
  text: str


class Page(NamedTuple):
  doc_id: str
  url: str
  body: str

  def default_text(self):
    return f"all of {self.body}"


class Query(NamedTuple):
  query_id: str
  text: str


class Topic(NamedTuple):
  query_id: str
  description: str

  def default_text(self):
    return self.description


class Qrel(NamedTuple):
  query_id: str
  doc_id: str
  relevance: int
  iteration: str


class DataSet:
  def __init__(self, docs, queries, qrels):
    self.rows = {"docs": docs, "queries": queries, "qrels": qrels}

  def __getattr__(self, name):
    kind = name.removeprefix("has_").removesuffix("_iter")
    if name.startswith("has_"):
      return lambda: bool(self.rows[kind])
    return lambda: iter(self.rows[kind])

  def docs_count(self):
    return len(self.rows["docs"])


DOCS = [Titled("d1", "t", "a passage"), Page("d2", "u", "a page"), Titled("d3", "", "é\nthird")]
SETS = {
    "set/train": DataSet(DOCS, [Query("q1", "one"), Topic("q2", "two")],
                         [Qrel("q1", "d1", 1, "0"), Qrel("q1", "d3", 0, "0"), Qrel("q2", "d2", 2, "0")]),
    "set/dev": DataSet(DOCS, [Query("q3", "three")], [Qrel("q3", "d3", 1, "0")]),
    "set": DataSet(DOCS, [], []), "other/train": DataSet(DOCS, [Query("q", "x")], [Qrel("q", "d1", 1, "0")])}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  monkeypatch.setenv("GTR_DATA_DIR", str(tmp_path))
  module = types.ModuleType("ir_datasets")
  module.load = SETS.__getitem__
  module.docs_parent_id = lambda name: name.partition("/")[0]
  monkeypatch.setitem(sys.modules, "ir_datasets", module)
  return module


def source(*flags):
  parser = argparse.ArgumentParser()
  ir_datasets_pairs.add_arguments(parser)
  return ir_datasets_pairs.source(parser.parse_args(flags))


def error(*flags):
  with pytest.raises(InputError) as e:
    source(*flags)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_pairs_and_judged_negatives(tmp_path):
  of_set = source("set/train", "--validation", "set/dev")
  assert of_set.name == "ir_datasets_set_train"
  examples, counts = prepared(of_set)
  assert sorted((e.split, e.query, e.passage, e.query_id, e.passage_id, e.negatives) for e in examples) == [
      ("train", "one", "t a passage", "q1", "d1", ("é\nthird",)), ("train", "two", "all of a page", "q2", "d2", ()),
      ("validation", "three", "é\nthird", "q3", "d3", ())]
  assert not counts.places
  assert [e.query for e in prepared(source("set/train", "--min_grade", "2"))[0]] == ["two"]


def test_a_data_set_is_read_once(tmp_path):
  source("set/train")
  kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir() if path.is_file()}
  assert set(kept) == {"ir_datasets-1-set-corpus.jsonl", "ir_datasets-1-set_train-queries.jsonl",
                       "ir_datasets-1-set_train-qrels.tsv"}
  source("set/train", "--validation", "set/dev")  # The documents are the same.
  assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}.items()


def test_what_is_not_there(module, monkeypatch):
  assert error("nothing") == "nothing: ir_datasets has no data set of this name; https://ir-datasets.com lists them"
  assert error("set") == ("set: has no queries and no judgements; name a part of it that has, such as one that ends in "
                          "/train")
  assert error("set/train", "--validation", "other/train").startswith(
      "--validation other/train: its documents are those of other, and not of set")

  def refuse(name):
    raise RuntimeError("To use it, sign\nit")

  monkeypatch.setattr(SETS["set/dev"], "queries_iter", lambda: map(refuse, ["x"]), raising=False)
  assert error("set/dev") == ("set/dev: ir_datasets cannot give its queries (RuntimeError: To use it, sign); "
                              "follow what it says, and start again")
  monkeypatch.setitem(sys.modules, "ir_datasets", None)
  assert error("set/train") == "prepare ir_datasets needs that package: pip install ir_datasets"
