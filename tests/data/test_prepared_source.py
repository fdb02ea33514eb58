"""Prepared data as a seqio source: TensorFlow reads the records, tasks train on them, from any step on."""

import itertools
import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf
import toy_source
from tiny_text import task_name, words
from toy_source import ToySource, write

from gtr_jax.data import shards
from gtr_jax.data.examples import add_pair_task, prepared, rate_by_size
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.errors import InputError
from gtr_jax.prepare import engine
from gtr_jax.prepare.manifests import Settings
from gtr_jax.prepare.records import key_of
from gtr_jax.text.tokenizer import Tokenizer

pytest_plugins = "data_fixtures"

LENGTHS = {"inputs": 8, "targets": 12, "negative_targets": (2, 12)}


@pytest.fixture
def prepare(data_dir, tmp_path):
  """Prepares rows under a name."""

  def prepare(name, rows, **settings):
    source = ToySource((write(tmp_path / f"{name}.jsonl", rows),))
    return engine.prepare(source, Settings(name, **settings), processes=1, say=lambda line: None)

  return prepare


def test_tensorflow_reads_the_records(prepare):
  rows = [{"query": "a question", "passage": "an answer " * 40, "query_id": "q1", "passage_id": "é",
           "negatives": ["no"], "negative_ids": ["n"]},
          {"query": "b", "passage": "c" * 20_000, "negatives": ["d", "e" * 200], "negative_queries": ["f"]},
          {"query": "Ünïcödé", "passage": "日本語 😀"}]
  folder = prepare("a", rows)
  dataset = tf.data.TFRecordDataset(sorted(map(str, folder.glob("train-*"))))  # It checks the checksums.
  found = {}
  description = {name: tf.io.FixedLenFeature([], tf.string) for name in shards.TEXTS} | {
      name: tf.io.RaggedFeature(tf.string) for name in shards.LISTS}
  for record in dataset:
    ex = tf.io.parse_single_example(record, description)
    assert len(bytes.fromhex(ex["example_id"].numpy().decode())) == 16
    found[ex["query"].numpy().decode()] = {
        name: [v.decode() for v in value.numpy()] if name in shards.LISTS else value.numpy().decode()
        for name, value in ex.items() if name != "example_id"}
    of_query = found[ex["query"].numpy().decode()]
    keys = {name: of_query.pop(name) for name in ("query_key", "passage_key", "negative_keys")}
    assert keys == {"query_key": key_of(of_query["query"]), "passage_key": key_of(of_query["passage"]),
                    "negative_keys": list(map(key_of, of_query["negatives"]))}
    assert tf.train.Example.FromString(record.numpy()).ByteSize() == len(record.numpy())
  defaults = dict.fromkeys({"query", "passage", "query_id", "passage_id"}, "") | {
      name: [] for name in shards.LISTS if name != "negative_keys"}
  assert found == {row["query"]: defaults | row for row in rows}


def test_a_task_reads_its_splits(prepare, vocabulary):
  task = add_pair_task(task_name(), prepared("toy", "train", "validation"), vocabulary=vocabulary)
  only_train = add_pair_task(task_name(), prepared("toy"), vocabulary=vocabulary,
                             prepare="gtr-jax prepare reddit RS_*.zst --name toy")
  assert set(task.splits) == {"train", "validation"} and set(only_train.splits) == {"train"}  # Nothing is there yet.
  rows = [{"query": words(4, i), "passage": words(9, 50 + i),
           "negatives": [words(3, i + 200 * j) for j in range(i % 3)]} for i in range(200)]
  prepare("toy", rows, validation_share=0.2)
  got = {split: list(task.get_dataset(LENGTHS, split=split, shuffle=False).as_numpy_iterator())
         for split in ("train", "validation")}
  assert {split: len(found) for split, found in got.items()} == {
      split: task.num_input_examples(split) for split in got} and 20 < len(got["validation"]) < 60
  assert rate_by_size(10**6)(task) == len(got["train"]) == rate_by_size(10**6)(only_train)
  tokenizer = Tokenizer(vocabulary)
  assert sorted(ex["targets"].tolist() for found in got.values() for ex in found) == sorted(
      tokenizer.encode([row["passage"]], 12)[0].tolist() for row in rows)
  assert sorted(len(ex["negative_targets"]) for found in got.values() for ex in found) == sorted(
      len(row["negatives"]) for row in rows)
  with pytest.raises(ValueError, match="prepared data 'toy' has fields of its own; declare none"):
    add_pair_task(task_name(), prepared("toy"), query="title", vocabulary=vocabulary)


def test_what_is_not_there_names_the_command(prepare, vocabulary, data_dir):
  task = add_pair_task(task_name(), prepared("toy", "train", "validation"), vocabulary=vocabulary)
  named = add_pair_task(task_name(), prepared("toy"), vocabulary=vocabulary, prepare="gtr-jax prepare reddit R*")

  def read(task, split="train"):
    return next(iter(task.get_dataset(LENGTHS, split=split)))

  with pytest.raises(InputError, match="data/toy: no prepared data there; run: gtr-jax prepare … --name toy"):
    read(task)
  with pytest.raises(InputError, match=r"data/toy: no prepared data there; run: gtr-jax prepare reddit R\*"):
    read(named)
  folder = prepare("toy", toy_source.rows(100))
  with pytest.raises(InputError, match="toy: no split 'validation', only train; prepare it with --validation_share"):
    read(task, "validation")
  shutil.copytree(folder, data_dir / "cut")
  shard = next((data_dir / "cut").glob("train-00007-*"))
  shard.write_bytes(shard.read_bytes()[:-1])
  cut = add_pair_task(task_name(), prepared("cut"), vocabulary=vocabulary)
  with pytest.raises(InputError, match=rf"{shard.name}: missing, or not of the [\d,]+ bytes in the manifest; remove"):
    read(cut)
  (data_dir / "other").mkdir()
  (data_dir / "other/manifest.json").write_text('{"sha256": {}}')
  other = add_pair_task(task_name(), prepared("other"), vocabulary=vocabulary)
  with pytest.raises(InputError, match="other: not prepared data of this version of gtr_jax; remove it, then run"):
    read(other)


def test_goes_on_in_the_middle_and_moved_data_are_the_same(prepare, vocabulary, data_dir):
  prepare("toy", toy_source.rows(1500), validation_share=0.05)
  shutil.copytree(data_dir / "toy", data_dir / "moved")

  def make(name):
    return TrainingBatches(name, None, {"inputs": 8, "targets": 12}, 8, vocabulary=str(vocabulary))

  batches, resumed = make("toy"), make("moved")
  reference = list(itertools.islice(batches, 120))
  resumed.go_on_after(100, batches.made_from | {"mixture_or_task_name": "moved"})
  again = list(itertools.islice(resumed, 20))
  batches.close()
  resumed.close()
  assert [x.ids for x in again] == [x.ids for x in reference[100:]]
  jax.tree.map(np.testing.assert_array_equal, [x.batch[:2] for x in again], [x.batch[:2] for x in reference[100:]])
  validation = list(ValidationBatches("toy", None, {"inputs": 8, "targets": 12}, 8, vocabulary=str(vocabulary)))
  assert validation[0].valid.all() and len(validation) > 2


def test_prepared_data_are_a_task_by_their_name(prepare, vocabulary):
  """Nothing is declared; the run says the vocabulary."""
  prepare("toy-1", [{"query": f"q{i} " + words(2, f"q{i}"), "passage": f"p{i} " + words(4, f"p{i}")}
                    for i in range(40)], validation_share=0.2)
  lengths = {"inputs": 8, "targets": 12}
  with pytest.raises(InputError, match="prepared data has no vocabulary of its own: set VOCABULARY"):
    TrainingBatches("toy-1", None, lengths, 4)
  batches = TrainingBatches("toy-1", None, lengths, 4, vocabulary=str(vocabulary))
  validation = list(ValidationBatches("toy-1", None, lengths, 4, vocabulary=str(vocabulary)))
  assert batches.num_pairs + sum(int(batch.valid.sum()) for batch in validation) == 40
  assert next(iter(batches)).batch.valid.all()
  batches.close()
  with pytest.raises(InputError, match="no task or mixture 'toy-2', nor prepared data of that name"):
    TrainingBatches("toy-2", None, lengths, 4)
