"""What a run takes of its tasks: negatives drawn anew, a share of the queries, one task a batch, cached token ids."""

import itertools
import json
from collections import defaultdict

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from tiny_text import pairs, task_name, words, write_jsonl

from gtr_jax.data.examples import add_pair_task, jsonl
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.errors import InputError

pytest_plugins = "data_fixtures"

LENGTHS = {"inputs": 16, "targets": 32}
NEGATIVES = 6  # of each pair


@pytest.fixture
def declare(data_dir, vocabulary):
  """Declares a task of so many pairs, each with `NEGATIVES` different negatives; returns its name."""

  def declare(number, **kwargs):
    name = task_name()
    write_jsonl(data_dir / f"{name}.jsonl",
                [row | {"id": i // 2, "negatives": [words(5, f"{name} {i} {k}") for k in range(NEGATIVES)],
                        "negative_ids": [f"{i} {k}" for k in range(NEGATIVES)]} for i, row in enumerate(pairs(number))])
    add_pair_task(name, jsonl(train=f"{name}.jsonl", validation=f"{name}.jsonl"), query="query", passage="passage",
                  query_id="id", negatives="negatives", negative_ids="negative_ids", vocabulary=vocabulary,
                  shuffle_buffer_size=16, **kwargs)
    return name

  return declare


def take(batches, number):
  taken = list(itertools.islice(batches, number))
  batches.close()
  return taken


def drawn(name, number, **kwargs):
  """Example id -> its negatives, `[negatives, length]`, each time that it comes in so many batches."""
  times = defaultdict(list)
  for batch in take(TrainingBatches(name, None, LENGTHS, 8, **kwargs), number):
    tokens = batch.batch.passages.tokens[0][8:].reshape(8, -1, LENGTHS["targets"])  # Positives come first.
    for example_id, of_pair in zip(batch.ids, tokens.tolist(), strict=True):
      times[example_id].append(of_pair)
  return times


def test_negatives_are_drawn_anew_in_every_epoch_and_alike_in_every_run(declare):
  name = declare(32, sample_negatives=True)
  times = drawn(name, 48, negatives_per_example=2, seed=7)  # Twelve epochs.
  assert times == drawn(name, 48, negatives_per_example=2, seed=7)
  assert times != drawn(name, 48, negatives_per_example=2, seed=8)
  pairs_of_epochs = [two for of_pair in times.values() for two in itertools.pairwise(of_pair)]
  assert sum(a != b for a, b in pairs_of_epochs) > 0.9 * len(pairs_of_epochs) > 0.9 * 32 * 9  # By chance 29 of 30.
  assert all(a != b for of_pair in times.values() for a, b in of_pair)  # Never the same one twice.
  seen = [len({tuple(n) for negatives in of_pair for n in negatives}) for of_pair in times.values()]
  assert min(seen) >= 5 and max(seen) == NEGATIVES


def test_else_the_first_negatives_are_taken(declare):
  assert all(negatives == of_pair[0] for of_pair in drawn(declare(16), 6, negatives_per_example=2).values()
             for negatives in of_pair)
  name = declare(16, sample_negatives=True)
  a, b = (next(iter(ValidationBatches(name, None, LENGTHS, 16, negatives_per_example=2))) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_share_of_the_queries_is_the_same_one_in_every_run(declare):
  name = declare(400)

  def taken(seed, fraction):
    batches = take(TrainingBatches(name, None, LENGTHS, 8, seed=seed, data_fraction=fraction), 120)
    return {int(i.split(":")[1]) - 1 for batch in batches for i in batch.ids}

  fifth, again, more = taken(0, 0.2), taken(1, 0.2), taken(2, 0.4)
  assert fifth == again < more
  assert 0.12 * 400 < len(fifth) < 0.28 * 400
  assert all((line ^ 1) in fifth for line in fifth)  # Two pairs have the same query id: both or none.
  with pytest.raises(InputError, match="data_fraction 1e-09 leaves no pair of it; give a larger"):
    TrainingBatches(name, None, LENGTHS, 8, data_fraction=1e-9).check_first_batch()
  with pytest.raises(InputError, match="data_fraction is 0: give a number above 0 and up to 1"):
    TrainingBatches(name, None, LENGTHS, 8, data_fraction=0)


def test_all_pairs_of_a_batch_come_from_one_task(declare):
  names, mixture = [declare(32), declare(32)], task_name()
  seqio.MixtureRegistry.add(mixture, [(names[0], 3.0), (names[1], 1.0)])

  def tasks(**kwargs):
    batches = take(TrainingBatches(mixture, None, LENGTHS, 8, seed=3, **kwargs), 80)
    return [{i.partition(".")[0] for i in batch.ids} for batch in batches]

  assert sum(len(of_batch) > 1 for of_batch in tasks()) > 40
  one = tasks(one_task_per_batch=True)
  assert {len(of_batch) for of_batch in one} == {1}
  assert 45 < sum(names[0] in of_batch for of_batch in one) < 75
  assert one == tasks(one_task_per_batch=True)
  parts = [tasks(one_task_per_batch=True, groups=2, own_groups=[i]) for i in range(2)]
  assert parts[0] == parts[1]  # Or the processes' parts would be of different tasks.


def test_all_of_it_goes_on_bitwise(declare):
  names, mixture = [declare(32, sample_negatives=True) for _ in range(2)], task_name()
  seqio.MixtureRegistry.add(mixture, [(names[0], 3.0), (names[1], 1.0)])

  def make():
    return TrainingBatches(mixture, None, LENGTHS, 8, negatives_per_example=2, one_task_per_batch=True,
                           data_fraction=0.7, seed=3)

  whole, resumed = take(make(), 20), make()
  resumed.go_on_after(13, resumed.made_from)
  for a, b in zip(take(resumed, 7), whole[13:], strict=True):
    assert a.ids == b.ids
    jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)


def write_cache(folder, name, split, without=()):
  """As `seqio_cache_tasks` does, whose Beam pipeline calls the same functions (seqio/beam_utils.py)."""
  task = seqio.get_mixture_or_task(name)
  examples = list(task.preprocess_precache(task.source.get_dataset(split, shuffle=False)).as_numpy_iterator())
  (folder / name).mkdir(parents=True)
  with tf.io.TFRecordWriter(str(folder / name / f"{split}.tfrecord-00000-of-00001")) as writer:
    for example in examples:
      writer.write(seqio.dict_to_tfexample({k: v for k, v in example.items() if k not in without}).SerializeToString())
  features = {key: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
              for key, spec in task.preprocess_precache(task.source.get_dataset(split)).element_spec.items()
              if key not in without}
  (folder / name / f"info.{split}.json").write_text(
      json.dumps({"num_shards": 1, "features": features, "seqio_version": seqio.__version__}))
  (folder / name / f"stats.{split}.json").write_text(json.dumps({"examples": len(examples)}))
  (folder / name / "COMPLETED").write_text("")


def test_cached_token_ids_give_the_same_batches_without_the_source(declare, data_dir, vocabulary, tmp_path):
  name = declare(32)
  with pytest.raises(InputError, match=rf"{name}: not cached in {data_dir}/seqio_cache; run seqio_cache_tasks "):
    TrainingBatches(name, None, LENGTHS, 8, use_cached=True)

  expected = list(ValidationBatches(name, None, LENGTHS, 8, negatives_per_example=2, split="train"))
  write_cache(data_dir / "seqio_cache", name, "train")
  (data_dir / f"{name}.jsonl").unlink()
  cached = list(ValidationBatches(name, None, LENGTHS, 8, negatives_per_example=2, split="train", use_cached=True))
  assert len(cached) == len(expected) == 4
  for batch, of_source in zip(cached, expected, strict=True):  # A cache does not say how many a query knows at most.
    known = np.concatenate([of_source.known_hash, np.zeros_like(batch.known_hash[:, :, 1:])], axis=2)
    jax.tree.map(np.testing.assert_array_equal, batch, of_source._replace(known_hash=known))
  shorter = next(iter(ValidationBatches(name, None, {"inputs": 4, "targets": 6}, 8, split="train", use_cached=True)))
  assert shorter.queries.tokens.shape == (1, 8, 4) and shorter.passages.tokens.shape == (1, 8, 6)
  assert len(take(TrainingBatches(name, None, LENGTHS, 8, use_cached=True), 9)) == 9

  other = tmp_path / "other.model"
  train_vocabulary([words(12, i) + f" q{i} p{i}" for i in range(300)], other, size=250)
  with pytest.raises(InputError, match=rf"{name}: was cached with another vocabulary; train with that one, or run "):
    list(ValidationBatches(name, None, LENGTHS, 8, split="train", use_cached=True, vocabulary=str(other)))


def test_a_cache_whose_hashes_mean_something_else_is_refused(declare, data_dir):
  name = declare(16)
  write_cache(data_dir / "seqio_cache", name, "train", without=["cache_format"])  # As before there were formats.
  with pytest.raises(InputError, match=rf"{name}: was cached by a gtr_jax that held other texts for equal; run seqio_"):
    list(ValidationBatches(name, None, LENGTHS, 8, split="train", use_cached=True))
