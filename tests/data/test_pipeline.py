"""Batches: complete, reproducible, exact to resume; what goes wrong reaches the consumer in one line."""

import itertools
import shutil

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from tiny_text import pairs, spoil, task_name, words, write_jsonl

from gtr_jax.data.examples import add_pair_task, jsonl, tfrecord
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.errors import InputError

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
  batches = TrainingBatches(task(96, shuffle_buffer_size=4), None, LENGTHS, 8, groups=2, seed=3)
  items = take(batches, 24)
  batches.close()
  assert [x.number for x in items] == list(range(1, 25)) and all(x.input_state is None for x in items)
  assert items[0].batch.queries.tokens.shape == (2, 4, 16) and items[0].batch.valid.all()
  first, second = lines(items[:12]), lines(items[12:])
  assert len(set(first)) >= 90 and len(set(second)) >= 90  # But for the few that the buffer holds back.
  assert set(first) | set(second) == set(range(1, 97))
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


def test_resumes_bitwise_after_any_batch_through_mixture_and_epochs(task):
  names = [task(40, negatives=True), task(64)]
  mixture = task_name()
  seqio.MixtureRegistry.add(mixture, [(names[0], 1.0), (names[1], 2.0)])

  def make(**kwargs):
    return TrainingBatches(mixture, None, LENGTHS, 8, groups=2, negatives_per_example=1, seed=5, **kwargs)

  batches = make(wants_state=lambda number: number in (1, 20, 33))
  reference = take(batches, 40)  # Three to four epochs.
  batches.close()
  states = {x.number: x.input_state for x in reference if x.input_state}
  assert list(states) == [1, 20, 33]
  for number, state in states.items():
    resumed = make()
    resumed.restore(state)
    assert_same(take(resumed, 5), reference[number:number + 5])
    resumed.close()


def test_resuming_reads_no_earlier_record(task, data_dir):
  name = task(1500, shuffle_buffer_size=8)

  def make(**kwargs):
    return TrainingBatches(name, None, LENGTHS, 8, **kwargs)

  batches = make(wants_state=lambda number: number == 120)
  reference = take(batches, 150)
  batches.close()
  trained = {i for x in reference[:120] for i in x.ids}
  assert len(trained) == 960
  spoil((data_dir / "cache").glob("*/*.tfrecord"), trained)
  resumed = make()
  resumed.restore(reference[119].input_state)
  assert_same(take(resumed, 30), reference[120:])
  resumed.close()
  with pytest.raises(InputError, match=f"{name}: corrupted record"):  # Whoever reads it would have noticed.
    take(make(), 1)


def test_stop_yields_what_is_queued_and_its_state_is_that_of_the_last(task):
  name = task(64)
  batches = TrainingBatches(name, None, LENGTHS, 8, seed=1)
  first = take(batches, 3)
  with pytest.raises(RuntimeError):
    batches.state_after_last()
  batches.stop()
  rest = list(batches)
  assert len(rest) <= 3 and list(batches) == []
  assert [x.number for x in first + rest] == list(range(1, 4 + len(rest)))
  state = batches.state_after_last()
  resumed = TrainingBatches(name, None, LENGTHS, 8, seed=1)
  resumed.restore(state)
  after = take(resumed, 4)
  resumed.close()
  undisturbed = TrainingBatches(name, None, LENGTHS, 8, seed=1)
  assert_same(take(undisturbed, 3 + len(rest) + 4), first + rest + after)
  undisturbed.close()


def test_stop_before_the_first_batch_and_close_end_it(task):
  name = task(16)
  batches = TrainingBatches(name, None, LENGTHS, 8)
  batches.stop()
  assert list(batches) == [] and batches.state_after_last()
  batches = TrainingBatches(name, None, LENGTHS, 8)
  take(batches, 1)
  batches.close()
  assert not batches._thread.is_alive() and list(batches) == []


@pytest.mark.parametrize("change, message", [
    ({"seed": 2}, "made with seed 1, this run has 2"), ({"batch_size": 16}, "made with batch_size 8, this run has 16"),
    ({"feature_lengths": {"inputs": 8, "targets": 32}}, "made with feature_lengths"),
    ({"negatives_per_example": 1}, "made with negatives_per_example 0"),
])
def test_a_state_of_another_run_is_refused(task, change, message):
  arguments = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 1}
  name = task(32)
  batches = TrainingBatches(name, None, wants_state=lambda number: True, **arguments)
  state = take(batches, 1)[0].input_state
  batches.close()
  with pytest.raises(InputError, match=message):
    TrainingBatches(name, None, **arguments | change).restore(state)


def test_a_state_for_other_files_is_refused(task, data_dir):
  name = task(32)
  batches = TrainingBatches(name, None, LENGTHS, 8, wants_state=lambda number: True)
  state = take(batches, 1)[0].input_state
  batches.close()
  write_jsonl(data_dir / f"{name}.jsonl", pairs(33))
  with pytest.raises(InputError, match="training files"):
    TrainingBatches(name, None, LENGTHS, 8).restore(state)


def test_processes_read_different_parts(task):
  name = task(128, shuffle_buffer_size=2)
  seen = []
  for process in range(2):
    batches = TrainingBatches(name, None, LENGTHS, 16, groups=4, process_index=process, process_count=2)
    items = take(batches, 16)
    batches.close()
    assert items[0].batch.queries.tokens.shape == (2, 4, 16)
    seen.append(set(lines(items)))
  assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(1, 129))


def test_the_pipeline_has_no_python_function(task):
  """Such a pipeline's state could not be saved, and each call would wait for the interpreter."""
  name = task(16, negatives=True)
  dataset = seqio.get_mixture_or_task(name).get_dataset(LENGTHS | {"negative_targets": (1, 32)}, split="train")
  graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
  ops = {node.op for node in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
  assert "ParallelMapDatasetV2" in ops and not [op for op in ops if "PyFunc" in op or "Generator" in op]


def test_errors_of_the_thread_reach_the_consumer_as_one_line(data_dir, vocabulary):
  name = task_name()

  def example(**fields):
    feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode()])) for k, v in fields.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

  add_pair_task(name, tfrecord(train="x.tfrecord"), query="query", passage="passage", vocabulary=vocabulary)
  for bad, message in [(example(query="a", passage=" "), r": x.tfrecord:2: the passage \(field passage\) is empty"),
                       (example(query="a"), "passage")]:
    with tf.io.TFRecordWriter(str(data_dir / "x.tfrecord")) as writer:
      writer.write(example(query="a", passage="b"))
      writer.write(bad)
    batches = TrainingBatches(name, None, LENGTHS, 2)
    with pytest.raises(InputError, match=message) as e:
      take(batches, 2)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"{name}: ")
    assert not batches._thread.is_alive() or batches._thread.join(5) is None
    assert list(batches) == []


def test_what_the_first_batch_shows(task):
  name = task(16)
  TrainingBatches(name, None, LENGTHS, 8).check_first_batch()
  with pytest.raises(InputError, match=f"{name}: hard negatives are asked for .* or ask for 0"):
    TrainingBatches(name, None, LENGTHS, 8, negatives_per_example=1).check_first_batch()
  with pytest.raises(InputError, match="this process's part of the data is empty; use fewer processes"):
    TrainingBatches(task(1), None, LENGTHS, 8, groups=2, process_index=1, process_count=2).check_first_batch()
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
  with pytest.raises(InputError, match="on 2 processes"):
    TrainingBatches(name, None, LENGTHS, 8, groups=1, process_count=2)
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
  resumed = TrainingBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1, wants_state=lambda n: n == 2,
                            **packed_how)
  state = take(resumed, 2)[1].input_state
  resumed.close()
  with pytest.raises(InputError, match="row_lengths"):
    TrainingBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1).restore(state)
  resumed = TrainingBatches(name, None, LENGTHS, 8, groups=2, negatives_per_example=1, **packed_how)
  resumed.restore(state)
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
  parts = [list(ValidationBatches(name, None, LENGTHS, 8, groups=4, process_index=i, process_count=2))
           for i in range(2)]
  assert len(parts[0]) == len(parts[1]) == len(whole) == 3
  for a, b, both in zip(*parts, whole, strict=True):
    jax.tree.map(lambda x, y, z: np.testing.assert_array_equal(np.concatenate([x, y]), z), a, b, both)


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
  batches = TrainingBatches(name, None, LENGTHS, 8, wants_state=lambda number: number == 2)
  items = take(batches, 6)
  batches.close()
  assert items[0].ids == [""] * 8 and batches.vocabulary_file == (vocabulary, 0)
  assert len(np.unique(items[0].batch.query_hash.reshape(-1, 2), axis=0)) == 8
  resumed = TrainingBatches(name, None, LENGTHS, 8)
  resumed.restore(items[1].input_state)
  assert_same(take(resumed, 4), items[2:])
  resumed.close()
