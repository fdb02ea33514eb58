"""Batches: complete, reproducible, exact to resume; what goes wrong reaches the consumer in one line."""

import functools
import itertools
import json
import shutil
import threading

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from tiny_text import pairs, task_name, words, write_jsonl

from gtr_jax.data.examples import add_pair_task, jsonl, tfrecord
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.data.record_files import RecordFiles
from gtr_jax.errors import InputError
from gtr_jax.text.batch import with_rows

pytest_plugins = "data_fixtures"

LENGTHS = {"inputs": 16, "targets": 32}


@pytest.fixture
def task(data_dir, vocabulary):
  """Declares a task of so many pairs; returns its name."""

  def declare(number, split="train", negatives=False, shuffle_buffer_size=16):
    name = task_name()
    rows = [r | ({"negatives": [words(3, f"{name}{i}")] * (i % 3)} if negatives else {})
            for i, r in enumerate(pairs(number))]
    write_jsonl(data_dir / f"{name}.jsonl", rows)
    add_pair_task(name, jsonl(**{split: f"{name}.jsonl"}), query="query", passage="passage", vocabulary=vocabulary,
                  negatives="negatives" if negatives else None, shuffle_buffer_size=shuffle_buffer_size)
    return name

  return declare


def take(batches, number):
  return list(itertools.islice(batches, number))


def lines(items):
  return [int(i.split(":")[1]) for item in items for i in item.ids]


def assert_same(a, b):
  assert [x.ids for x in a] == [x.ids for x in b] and [x.number for x in a] == [x.number for x in b]
  jax.tree.map(np.testing.assert_array_equal, [x.batch for x in a], [x.batch for x in b])


def test_epochs_are_complete_and_each_has_its_own_order(task):
  batches = TrainingBatches(task(96), None, LENGTHS, 8, groups=2, seed=3)
  items = take(batches, 24)
  batches.close()
  assert [x.number for x in items] == list(range(1, 25)) and batches.num_pairs == 96
  assert items[0].batch.queries.tokens.shape == (2, 4, 16) and items[0].batch.valid.all()
  first, second = lines(items[:12]), lines(items[12:])
  assert sorted(first) == sorted(second) == list(range(1, 97))
  assert first != sorted(first) and first != second


def test_same_seed_same_batches(task):
  name = task(64, negatives=True)

  def batches(seed):
    made = TrainingBatches(name, None, LENGTHS, 8, negatives_per_example=2, seed=seed)
    items = take(made, 10)
    made.close()
    return items

  assert_same(batches(1), batches(1))
  assert lines(batches(1)) != lines(batches(2))


def of_mixture(task, **how):
  names = [task(40, negatives=True), task(64)]
  mixture = task_name()
  seqio.MixtureRegistry.add(mixture, [(names[0], 1.0), (names[1], 2.0)])
  return functools.partial(TrainingBatches, mixture, None, LENGTHS, 16, negatives_per_example=1, seed=5, **how)


@pytest.mark.parametrize("how", [{}, {"one_task_per_batch": True}, {"data_fraction": 0.6}])
def test_goes_on_bitwise_after_any_batch_through_mixture_and_epochs(task, how):
  make = of_mixture(task, groups=2, **how)
  batches = make()
  reference = take(batches, 30)  # Several epochs.
  batches.close()
  for number in (1, 13, 22):
    resumed = make()
    resumed.go_on_after(number, json.loads(json.dumps(batches.made_from)))
    assert_same(take(resumed, 5), reference[number:number + 5])
    resumed.close()


@pytest.mark.parametrize("counts, how", [
    ((2, 8), {"row_lengths": {"inputs": 16, "targets": 40}, "microbatch_size": 8}),
    ((2,), {"one_task_per_batch": True})])
def test_any_number_of_processes_makes_the_same_batches(task, counts, how):
  """Also packed."""
  make = of_mixture(task, groups=8, **how)

  def parts(count):
    made = []
    for process in range(count):
      batches = make(own_groups=tuple(range(8 // count * process, 8 // count * (process + 1))))
      batches.check_first_batch()
      made.append(take(batches, 12))
      batches.close()
    return made

  whole, = parts(1)
  for count in counts:
    for items in zip(whole, *parts(count), strict=True):
      assert [i for item in items[1:] for i in item.ids] == items[0].ids
      rows = [max(texts.tokens.shape[-2] for texts in sides) for sides in zip(*(item.batch[:2] for item in items[1:]),
                                                                              strict=True)]
      filled = [with_rows(item.batch, *rows) for item in items[1:]]  # As they agree on it.
      jax.tree.map(lambda expected, *found: np.testing.assert_array_equal(np.concatenate(found), expected),
                   items[0].batch, *filled)


def test_going_on_costs_the_same_at_any_step(task, monkeypatch):
  name, read = task(1500), []
  of_block = RecordFiles.read
  monkeypatch.setattr(RecordFiles, "read", lambda self, block, first, last: read.append(last - first) or of_block(
      self, block, first, last))

  def read_from(number):
    batches = TrainingBatches(name, None, LENGTHS, 8, read_ahead=1)
    batches.go_on_after(number, batches.made_from)
    assert next(batches).number == number + 1
    batches.close()
    total = sum(read)
    read.clear()
    return total

  assert read_from(0) == read_from(1_000_000) == read_from(10**12) < 400


def test_close_ends_it(task):
  batches = TrainingBatches(task(16), None, LENGTHS, 8)
  take(batches, 1)
  batches.close()
  assert list(batches) == [] and not [t for t in threading.enumerate() if t.name.startswith("TrainingBatches")]


@pytest.mark.parametrize("change, message", [
    ({"seed": 2}, "made with seed 1, this run has 2"), ({"batch_size": 16}, "made with batch_size 8, this run has 16"),
    ({"feature_lengths": {"inputs": 8, "targets": 32}}, "made with feature_lengths"),
    ({"negatives_per_example": 1}, "made with negatives_per_example 0"),
])
def test_the_batches_of_another_run_are_refused(task, change, message):
  arguments = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 1}
  name = task(32)
  made_from = TrainingBatches(name, None, **arguments).made_from
  with pytest.raises(InputError, match=message):
    TrainingBatches(name, None, **arguments | change).go_on_after(1, made_from)


def test_other_content_is_refused_and_another_place_is_not(task, data_dir, tmp_path, vocabulary):
  name = task(32)
  made_from = TrainingBatches(name, None, LENGTHS, 8).made_from
  moved = task_name()
  shutil.copy(data_dir / f"{name}.jsonl", tmp_path / "moved.jsonl")
  add_pair_task(moved, jsonl(train=str(tmp_path / "moved.jsonl")), query="query", passage="passage",
                vocabulary=vocabulary)
  TrainingBatches(moved, None, LENGTHS, 8).go_on_after(1, made_from | {"mixture_or_task_name": moved})
  write_jsonl(data_dir / f"{name}.jsonl", pairs(33))
  with pytest.raises(InputError, match=f"the training data of {name} have changed since the checkpoint"):
    TrainingBatches(name, None, LENGTHS, 8).go_on_after(1, made_from)


def test_validation_data_are_known_by_content(task, data_dir):
  name = task(32)

  def content():
    return ValidationBatches(name, None, LENGTHS, 8, split="train").content

  before = content()
  (data_dir / f"{name}.jsonl").touch()
  assert content() == before
  write_jsonl(data_dir / f"{name}.jsonl", pairs(33))
  assert content() != before


def test_the_pipeline_has_no_python_function(task):
  """Such a pipeline's state could not be saved, and each call would wait for the interpreter."""
  name = task(16, negatives=True)
  dataset = seqio.get_mixture_or_task(name).get_dataset(LENGTHS | {"negative_targets": (1, 32)}, split="train")
  graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
  ops = {node.op for node in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
  assert "ParallelMapDatasetV2" in ops and not [op for op in ops if "PyFunc" in op or "Generator" in op]


def test_wrong_records_are_one_line(data_dir, vocabulary):
  name = task_name()

  def example(**fields):
    feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode()])) for k, v in fields.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

  add_pair_task(name, tfrecord(train="x.tfrecord"), query="query", passage="passage", vocabulary=vocabulary)
  for bad, message in [(example(query="a", passage=" "), r"x.tfrecord:2: the passage \(field passage\) is empty; "),
                       (example(query="a"), "passage")]:
    with tf.io.TFRecordWriter(str(data_dir / "x.tfrecord")) as writer:
      writer.write(example(query="a", passage="b"))
      writer.write(bad)
    with pytest.raises(InputError, match=message) as e:
      TrainingBatches(name, None, LENGTHS, 2)
    assert "\n" not in str(e.value)


def test_what_the_first_batch_shows(task):
  name = task(16)
  TrainingBatches(name, None, LENGTHS, 8).check_first_batch()
  with pytest.raises(InputError, match=f"{name}: hard negatives are asked for .* or ask for 0"):
    TrainingBatches(name, None, LENGTHS, 8, negatives_per_example=1).check_first_batch()
  TrainingBatches(task(1), None, LENGTHS, 8, groups=2, own_groups=[1]).check_first_batch()
  checked = TrainingBatches(task(40, negatives=True), None, LENGTHS, 8, negatives_per_example=1)
  plain = TrainingBatches(checked._name, None, LENGTHS, 8, negatives_per_example=1)
  checked.check_first_batch()
  assert_same(take(checked, 3), take(plain, 3))
  checked.close()
  plain.close()


def test_wrong_names_and_sizes(task):
  name = task(16)
  with pytest.raises(InputError, match="batch of 10 pairs cannot be divided over 4 data shards"):
    TrainingBatches(name, None, LENGTHS, 10, groups=4)
  with pytest.raises(InputError, match=f"no task or mixture 'other', nor prepared data .*; registered are: .*{name}"):
    TrainingBatches("other", None, LENGTHS, 8)
  with pytest.raises(InputError, match="no module 'no.such.tasks'"):
    TrainingBatches(name, "no.such.tasks", LENGTHS, 8)
  with pytest.raises(InputError, match="no split 'validation', only train"):
    ValidationBatches(name, None, LENGTHS, 8)
  with pytest.raises(InputError, match="give inputs and targets"):
    TrainingBatches(name, None, {"inputs": 8}, 8)


@pytest.mark.parametrize("sizes, message", [
    ({"row_lengths": {"inputs": 15, "targets": 32}}, "rows of 15 tokens for inputs .* allows 16"),
    ({"row_lengths": {"inputs": 16, "targets": 32}, "negatives_per_example": 1,
      "feature_lengths": {**LENGTHS, "negative_targets": 40}}, "rows of 32 tokens for targets .* allows 40"),
    ({"row_lengths": {"inputs": 16}}, "give one for inputs and one for targets"),
    ({"row_lengths": 32}, "row_lengths is 32: give a dictionary"),
    ({"microbatch_size": 3}, "MICROBATCH_SIZE. is 3: it must divide the batch of 8"),
    ({"microbatch_size": 0}, "microbatch_size is 0: give a positive whole number"),
    ({"microbatch_size": 2, "groups": 4}, "a microbatch of 2 pairs cannot be divided over 4 data shards"),
])
@pytest.mark.parametrize("kind", [TrainingBatches, ValidationBatches])
def test_sizes_that_do_not_fit_are_refused_at_once(task, kind, sizes, message):
  sizes = {"feature_lengths": LENGTHS, **sizes}
  with pytest.raises(InputError, match=message):
    kind(task(16), None, batch_size=8, split="train", **sizes)


@pytest.mark.parametrize("microbatches", [None, 2])
def test_packed_batches_hold_the_pairs_of_the_padded_ones(task, microbatches):
  name = task(40, negatives=True)

  def queries(**how):
    batches = TrainingBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1, **how)
    items = take(batches, 4)
    batches.close()
    return [sorted(map(tuple, x.batch.query_hash.reshape(-1, 2).tolist())) for x in items], items

  packed_how = {"row_lengths": {"inputs": 16, "targets": 40}, "microbatch_size": microbatches and 8 // microbatches}
  expected, padded = queries()
  found, packed = queries(**packed_how)
  assert found == expected and [x.ids for x in packed] == [x.ids for x in padded]
  batch = packed[0].batch
  assert batch.valid.shape == ((2, 2, 2) if microbatches else (2, 4))
  assert batch.passages.tokens.shape[-1] == 40 and batch.passages.tokens.size < padded[0].batch.passages.tokens.size
  resumed = TrainingBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1, **packed_how)
  with pytest.raises(InputError, match="row_lengths"):
    TrainingBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1).go_on_after(2, resumed.made_from)
  resumed.go_on_after(2, resumed.made_from)
  assert_same(take(resumed, 2), packed[2:])
  resumed.close()


def test_the_vocabulary_in_use_is_named(task, vocabulary, tmp_path):
  name = task(16)
  assert TrainingBatches(name, None, LENGTHS, 8).vocabulary_file == (vocabulary, 0)
  other = tmp_path / "other.model"
  shutil.copy(vocabulary, other)
  assert TrainingBatches(name, None, LENGTHS, 8, vocabulary=str(other), extra_ids=7).vocabulary_file == (str(other), 7)
  with pytest.raises(InputError, match="gone.model: no such vocabulary"):
    TrainingBatches(name, None, LENGTHS, 8, vocabulary=str(tmp_path / "gone.model"))


def test_validation_is_one_pass_filled_up_and_the_same_again(task):
  name = task(21, split="validation", negatives=True)
  batches = ValidationBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1)
  first, second = list(batches), list(batches)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert [b.valid.sum() for b in first] == [8, 8, 5]
  last = first[-1]
  assert last.valid.reshape(-1).tolist() == [True] * 5 + [False] * 3
  assert (last.queries.tokens.reshape(8, -1)[5:] == 0).all() and (last.passages.segment_ids.reshape(2, 8, -1)[1, 1:4]
                                                                   == 0).all()
  texts = {tuple(row) for b in first for row in b.queries.tokens.reshape(-1, 16)[b.valid.reshape(-1)]}
  assert len(texts) == 21
  assert len(list(ValidationBatches(name, None, LENGTHS, 8, max_batches=2))) == 2


def test_validation_on_two_processes_is_the_same_batches_in_parts(task):
  name = task(21, split="validation")
  whole = list(ValidationBatches(name, None, LENGTHS, 8, groups=4))
  groups = [0, 3], [1, 2]  # As a mesh may put the devices of processes.
  parts = [list(ValidationBatches(name, None, LENGTHS, 8, groups=4, own_groups=own)) for own in groups]
  assert len(parts[0]) == len(parts[1]) == len(whole) == 3
  for batches in zip(whole, *parts, strict=True):
    for both, *own in zip(*map(jax.tree.leaves, batches), strict=True):
      for found, numbers in zip(own, groups, strict=True):
        np.testing.assert_array_equal(found, both[numbers])


def test_validation_of_a_mixture_has_every_pair_of_its_tasks_that_have_the_split(task):
  names = [task(5, split="validation"), task(7, split="validation"), task(4)]
  mixture = task_name()
  seqio.MixtureRegistry.add(mixture, [(name, 1.0) for name in names])
  assert [b.valid.sum() for b in ValidationBatches(mixture, None, LENGTHS, 8)] == [8, 4]


def test_a_plain_seqio_task_will_do(data_dir, vocabulary):
  """Without ids, hashes or negatives, as a T5X user has it."""
  rows = pairs(24)
  (data_dir / "lines.tsv").write_text("".join(f"{r['query']}\t{r['passage']}\n" for r in rows))
  tokens = seqio.Feature(seqio.SentencePieceVocabulary(vocabulary))

  def columns(dataset):
    return dataset.map(lambda line: dict(zip(("inputs", "targets"), tf.unstack(tf.strings.split(line, "\t"), num=2),
                                             strict=True)))

  name = task_name()
  seqio.TaskRegistry.add(
      name, seqio.TextLineDataSource({"train": str(data_dir / "lines.tsv")}), {"inputs": tokens, "targets": tokens},
      [columns, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim], shuffle_buffer_size=16)
  batches = TrainingBatches(name, None, LENGTHS, 8)
  items = take(batches, 6)
  batches.close()
  assert items[0].ids == [""] * 8 and batches.vocabulary_file == (vocabulary, 0)
  assert len(np.unique(items[0].batch.query_hash.reshape(-1, 2), axis=0)) == 8
  resumed = TrainingBatches(name, None, LENGTHS, 8)
  resumed.go_on_after(2, batches.made_from)
  assert_same(take(resumed, 4), items[2:])
  resumed.close()
