"""Host batches for training and validation, from a seqio task or mixture.

The input state of a training run is the state of its tf.data iterator after the last batch that was trained on, not the
last one that was read ahead: a batch carries the state that belongs to it. Restoring it seeks in the files, so it costs
the same at any step and reads no earlier record.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.data import run_vocabulary
from gtr_jax.data.batch_sizes import all_lengths, batch_maker
from gtr_jax.errors import InputError
from gtr_jax.text.batch import Batch, UsualShape, usual_shape
from gtr_jax.values.check import check_arguments
from gtr_jax.values.ranges import Length, NonNegative, Positive, Range, Says, Seed

_Lengths = Annotated[Mapping[str, Length], Says("a dictionary such as {'inputs': 64, 'targets': 256}")]


class BatchWithInfo(NamedTuple):
  """One training batch.

  Attributes:
    batch: this process's part, numpy arrays, `[groups of this process, ...]`.
    ids: the pairs' example ids (`file:line`), in the order of the pairs.
    input_state: what `TrainingBatches.restore` takes to go on after this batch, where `wants_state` asked for it.
    number: 1 for the first batch of the run, counted on over restores.
  """

  batch: Batch
  ids: list[str]
  input_state: bytes | None
  number: int


class TrainingBatches:
  """An endless iterator of training batches, read ahead by a thread.

  Deterministic for given data, seed and number of processes. Each process reads its own part of the data.

  Args:
    mixture_or_task_name: what seqio calls it.
    mixture_or_task_module: the module that registers it, such as "gtr_jax.tasks.pydoc".
    feature_lengths: token lengths, EOS included, of `inputs` and `targets`, and if they differ from those of
      `negative_inputs` and `negative_targets`.
    batch_size: pairs in the global batch.
    groups: data shards of the global batch.
    row_lengths: pack the pairs into rows of these lengths, of `inputs` and `targets` (negatives go with their side);
      None: one text a row, padded to its feature's length.
    microbatch_size: pairs of the global batch that are encoded at once, for gradient caching; None: all of them.
    negatives_per_example: hard negatives for each pair: the first so many, or as many as there are.
    negative_queries_per_example: the same for negative queries.
    data_fraction: train on this share of the queries, chosen by their hash: the same ones in every run.
    one_task_per_batch: of a mixture, take all pairs of a batch from one task, drawn by its rate: negatives of the same
      domain are harder.
    seed: of the order of the examples.
    vocabulary: SentencePiece model to read with; None takes the tasks' own.
    extra_ids: sentinel ids after the pieces of `vocabulary` (the released T5 `spiece.model`: 100).
    use_cached: read what `seqio_cache_tasks` has written.
    split: split of the tasks.
    process_index: which of `process_count` parts of each batch this process reads.
    process_count: see above.
    wants_state: says for a batch's number whether it carries its input state (say, where a checkpoint is due).
    read_ahead: batches that wait ready.

  Attributes:
    vocabulary_file: the vocabulary that the batches are read with.
    made_from: what decides the batches, JSON; an input state fits where it is the same.

  Raises:
    InputError: here or while iterating, for a task, module or file that is not there, a malformed example, or sizes
      that do not divide.
  """

  def __init__(self, mixture_or_task_name: str, mixture_or_task_module: str | None,
               feature_lengths: _Lengths, batch_size: Positive, *, groups: Positive = 1,
               row_lengths: _Lengths | None = None, microbatch_size: Positive | None = None,
               negatives_per_example: NonNegative = 0, negative_queries_per_example: NonNegative = 0,
               data_fraction: Annotated[float, Range(above=0, most=1)] = 1.0, one_task_per_batch: bool = False,
               seed: Seed = 0, vocabulary: str | None = None, extra_ids: NonNegative = 0, use_cached: bool = False,
               split: str = "train", process_index: NonNegative = 0, process_count: Positive = 1,
               wants_state: Callable[[int], bool] = lambda number: False, read_ahead: Positive = 2):
    check_arguments(TrainingBatches, locals())
    from gtr_jax.data import datasets  # Takes seconds: not before a run has said that it has begun.
    from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
    from gtr_jax.data.registered import files_of, find_cached, provider_of, rates_of, tasks_of, vocabulary_file_of
    self._datasets = datasets
    self.wants_state = wants_state
    self._name = mixture_or_task_name
    provider = provider_of(mixture_or_task_name, mixture_or_task_module, split)
    lengths = all_lengths(feature_lengths, negatives_per_example, negative_queries_per_example)
    self._make_batch = batch_maker(batch_size, microbatch_size, groups, process_count, row_lengths, lengths)
    converter = DualEncoderFeatureConverter(negatives_per_example, negative_queries_per_example)
    shard = datasets.shard_info(process_index, process_count)

    tasks = tasks_of(provider, split)
    if use_cached:
      find_cached(tasks)
    with datasets.input_errors(self._name):
      rates = rates_of(provider, tasks)

    def pairs(part, num_epochs=None):
      dataset = converter(part.get_dataset(lengths.of_task, split=split, use_cached=use_cached, shuffle=True, seed=seed,
                                           shard_info=shard, num_epochs=num_epochs, try_in_mem_cache=False),
                          lengths.of_converter)
      return datasets.of_queries(dataset, data_fraction)

    def batched():
      with run_vocabulary.use_vocabulary(vocabulary, extra_ids), datasets.input_errors(self._name):
        apart = tasks if one_task_per_batch else [provider]
        parts = [pairs(part).batch(batch_size // process_count, drop_remainder=True) for part in apart]
        return datasets.with_options(datasets.drawn(parts, rates, seed))

    # A dataset of its own for `check_first_batch`: a second iterator of the same one would change the order of both.
    self._batched, self._pairs_of = batched, [functools.partial(pairs, task, num_epochs=1) for task in tasks]
    self._data_fraction, self._vocabulary = data_fraction, (vocabulary, extra_ids)
    with run_vocabulary.use_vocabulary(vocabulary, extra_ids), datasets.input_errors(self._name):
      self.vocabulary_file = vocabulary_file_of(provider)
      self._iterator = iter(batched())
      files = [files_of(task, split, use_cached) for task in tasks]
    self.made_from = {
        "mixture_or_task_name": mixture_or_task_name, "split": split, "seed": seed, "use_cached": use_cached,
        "feature_lengths": dict(feature_lengths), "batch_size": batch_size,
        "row_lengths": dict(row_lengths) if row_lengths else None, "microbatch_size": microbatch_size,
        "negatives_per_example": negatives_per_example, "negative_queries_per_example": negative_queries_per_example,
        "data_fraction": data_fraction, "one_task_per_batch": one_task_per_batch,
        "process_index": process_index, "process_count": process_count,
        "training files of hash": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16],
        "a vocabulary of hash": hashlib.sha256(epath.Path(self.vocabulary_file.path).read_bytes()).hexdigest()[:16],
        "extra_ids": self.vocabulary_file.extra_ids}
    self._number = 0
    self._final_state: bytes | None = None
    self._ended = False
    self._stop = threading.Event()
    self._queue: queue.Queue[BatchWithInfo | BaseException | None] = queue.Queue(maxsize=read_ahead)
    self._thread = threading.Thread(target=self._read, name="TrainingBatches", daemon=True)

  @staticmethod
  def check_given(feature_lengths=None, batch_size=None, row_lengths=None, microbatch_size=None,
                  negatives_per_example=0, negative_queries_per_example=0, **_):
    """Raises InputError where arguments do not fit together, whatever the data, the mesh and the processes."""
    if feature_lengths is not None and batch_size is not None:
      lengths = all_lengths(feature_lengths, negatives_per_example, negative_queries_per_example)
      batch_maker(batch_size, microbatch_size, 1, 1, row_lengths, lengths)

  def check_first_batch(self) -> Batch:
    """Reads a batch that is not trained on, so that what is wrong with the data shows before anything is written.

    Packed, it also says how many rows batches usually have: whatever fits them gets as many, from now on.

    Returns:
      This process's part of a first batch, in the usual shape.

    Raises:
      InputError: there is none, a malformed example, or hard negatives are asked for and no example has one.
    """
    with run_vocabulary.use_vocabulary(*self._vocabulary), self._datasets.input_errors(self._name):
      if self._data_fraction < 1 and not all(any(True for _ in pairs().take(1)) for pairs in self._pairs_of):
        raise InputError(f"{self._name}: data_fraction {self._data_fraction} leaves no pair of one of its tasks; give "
                         "a larger share")  # An endless search otherwise.
      features = next(iter(self._batched()), None)
    if features is None:
      raise self._no_data()
    negatives = features.get("right_negative_encoder_input_tokens")
    if negatives is not None and not negatives.numpy().any():
      raise InputError(f"{self._name}: hard negatives are asked for (NEGATIVES_PER_EXAMPLE), and no example of the "
                       "first batch has one; declare the task's `negatives` field, or ask for 0")
    features = {name: value.numpy() for name, value in features.items() if name != "example_id"}
    if self.made_from["row_lengths"]:
      self._make_batch = functools.partial(self._make_batch, usual=usual_shape(self._make_batch(features)))
    return self._make_batch(features)

  def _no_data(self):
    return InputError(f"{self._name}: this process's part of the data is empty; use fewer processes")

  def restore(self, input_state: bytes) -> None:
    """Goes on after the batch that carried this state. Before the first batch is read only.

    Raises:
      InputError: the state belongs to another task, seed, batch size, vocabulary or number of processes.
    """
    if self._thread.ident is not None:
      raise RuntimeError("restore() comes before the first batch")
    info = self._datasets.unpack(input_state, self._iterator, self.made_from)
    self._number = info["number"]

  def __iter__(self) -> "TrainingBatches":
    return self

  def __next__(self) -> BatchWithInfo:
    if self._ended:
      raise StopIteration
    if self._thread.ident is None:
      atexit.register(self.close)  # A thread inside TensorFlow while Python shuts down would crash it.
      self._thread.start()
    item = self._queue.get()
    if isinstance(item, BatchWithInfo):
      return item
    self._ended = True
    atexit.unregister(self.close)
    if item is None:
      raise StopIteration
    raise item

  def stop(self) -> None:
    """Reads no more. What is read already is still yielded, then the iteration ends. Safe in a signal handler."""
    self._stop.set()

  def state_after_last(self) -> bytes:
    """The input state after the last batch of an iteration that `stop` has ended."""
    if not self._ended or self._final_state is None:
      raise RuntimeError("state_after_last() comes after stop() and the last batch")
    return self._final_state

  def close(self) -> None:
    """Stops and throws away what was read ahead."""
    self._stop.set()
    while self._thread.is_alive():
      with contextlib.suppress(queue.Empty):
        self._queue.get(timeout=0.05)
    self._ended = True
    atexit.unregister(self.close)

  def _read(self):
    """The thread: batches, with their states, into the queue."""
    try:
      number = self._number
      with self._datasets.input_errors(self._name):
        while not self._stop.is_set():
          features = next(self._iterator, None)
          if features is None:
            raise self._no_data()
          number += 1
          features = {k: v.numpy() for k, v in features.items()}
          ids = [i.decode() for i in features.pop("example_id")]
          state = self._state(number) if self.wants_state(number) else None
          self._queue.put(BatchWithInfo(self._make_batch(features), ids, state, number))
      self._final_state = self._state(number)
      self._queue.put(None)  # The end.
    except BaseException as e:  # The consumer raises it.
      self._queue.put(e)

  def _state(self, number):
    return self._datasets.pack(self._iterator, {"number": number, "made_from": self.made_from})


class ValidationBatches:
  """The batches of one pass over a validation split; every iteration yields the same ones again.

  The last batch is filled up with pairs that `Batch.valid` marks False. A mixture's tasks follow one another. Every
  process gets its part of every batch, so that all have the same number of batches. The arguments are those of
  `TrainingBatches`.
  """

  def __init__(self, mixture_or_task_name: str, mixture_or_task_module: str | None,
               feature_lengths: _Lengths, batch_size: Positive, *, groups: Positive = 1,
               row_lengths: _Lengths | None = None, microbatch_size: Positive | None = None,
               negatives_per_example: NonNegative = 0, negative_queries_per_example: NonNegative = 0,
               vocabulary: str | None = None, extra_ids: NonNegative = 0, use_cached: bool = False,
               split: str = "validation", process_index: NonNegative = 0, process_count: Positive = 1,
               max_batches: Positive | None = None):
    check_arguments(ValidationBatches, locals())
    from gtr_jax.data import datasets
    from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
    from gtr_jax.data.registered import find_cached, provider_of, tasks_of
    self._datasets = datasets
    self._name, self._batch_size = mixture_or_task_name, batch_size
    self._process_index, self._process_count = process_index, process_count
    self._packed = row_lengths is not None
    self._usual: UsualShape | None = None
    provider = provider_of(mixture_or_task_name, mixture_or_task_module, split)
    lengths = all_lengths(feature_lengths, negatives_per_example, negative_queries_per_example)
    self._make_batch = batch_maker(batch_size, microbatch_size, groups, process_count, row_lengths, lengths)
    converter = DualEncoderFeatureConverter(negatives_per_example, negative_queries_per_example)
    if use_cached:
      find_cached(tasks_of(provider, split))
    with run_vocabulary.use_vocabulary(vocabulary, extra_ids), datasets.input_errors(self._name):
      parts = [converter(task.get_dataset(lengths.of_task, split=split, use_cached=use_cached, shuffle=False,
                                          num_epochs=1, try_in_mem_cache=False), lengths.of_converter)
               for task in tasks_of(provider, split)]
    dataset = parts[0]
    for part in parts[1:]:
      dataset = dataset.concatenate(part)
    self._dataset = datasets.with_options(
        dataset.batch(batch_size).take(-1 if max_batches is None else max_batches))

  check_given = TrainingBatches.check_given

  def __iter__(self) -> Iterator[Batch]:
    part = self._batch_size // self._process_count
    mine = slice(self._process_index * part, (self._process_index + 1) * part)
    with self._datasets.input_errors(self._name):
      for features in self._dataset:
        features = {k: v.numpy() for k, v in features.items() if k != "example_id"}
        pairs = len(features["query_hash"])
        features["valid"] = np.ones(pairs, bool)
        fill = self._batch_size - pairs
        features = {k: np.concatenate([v, np.zeros((fill, *v.shape[1:]), v.dtype)])[mine] for k, v in features.items()}
        if self._packed and not self._usual:  # The first batch; the last one, with fewer pairs, has its shape too.
          usual = usual_shape(self._make_batch(features))
          self._usual = UsualShape(*(rows._replace(least=0) for rows in usual))
        yield self._make_batch(features, usual=self._usual)
