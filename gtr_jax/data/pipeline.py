"""Host batches for training and validation, from a seqio task or mixture.

A batch is a function of the seed and its number (`order`): nothing has to be remembered to go on after any of them, and
each process makes the groups that its devices hold, whoever makes the others.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.data import run_vocabulary
from gtr_jax.data.batch_sizes import all_lengths, batch_maker
from gtr_jax.data.order import ORDER, Streams, TaskOrder, key_of
from gtr_jax.errors import InputError
from gtr_jax.losses.teacher import NOTHING, OfTeacher
from gtr_jax.text.batch import Batch, UsualShape, usual_shape
from gtr_jax.values.check import check_arguments
from gtr_jax.values.ranges import Length, NonNegative, Positive, Range, Says, Seed

_Lengths = Annotated[Mapping[str, Length], Says("a dictionary such as {'inputs': 64, 'targets': 256}")]
_WITH_NEGATIVES = 8  # Batches, of which some example should have a hard negative where these are asked for.


class BatchWithInfo(NamedTuple):
  """One training batch.

  Attributes:
    batch: this process's part, numpy arrays, `[groups of this process, ...]`.
    ids: the pairs' example ids (`file:line`), in the order of the pairs.
    number: 1 for the first batch of the run: the step that trains on it.
  """

  batch: Batch
  ids: list[str]
  number: int


class TrainingBatches:
  """An endless iterator of training batches, made ahead by threads.

  Deterministic for given data and seed. All processes together make the batches that one alone makes.

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
    own_groups: numbers of the groups, of `groups`, that this process reads, ascending; None: all.
    read_ahead: batches that are made at once, ahead of the one that is asked for.
    teacher: what the loss asks of a teacher.

  Attributes:
    vocabulary_file: the vocabulary that the batches are read with.
    feature_lengths: as given.
    batch_size: likewise.
    num_pairs: in an epoch.
    made_from: what decides the batches, JSON: a run may go on with the batches of another where it is the same.

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
               split: str = "train", own_groups: Sequence[int] | None = None, read_ahead: Positive = 2,
               teacher: OfTeacher = NOTHING):
    check_arguments(TrainingBatches, locals())
    self._name, self.feature_lengths, self.batch_size = mixture_or_task_name, feature_lengths, batch_size
    lengths = all_lengths(feature_lengths, negatives_per_example, negative_queries_per_example)
    self._groups = range(groups) if own_groups is None else own_groups
    self._make_batch = batch_maker(batch_size, microbatch_size, groups, len(self._groups), row_lengths, lengths)
    self._packed, self._negatives, self._teacher = row_lengths is not None, negatives_per_example, teacher
    self._all_groups, self._of_group = groups, batch_size // groups
    from gtr_jax.data import datasets  # Takes seconds: not before a run has said that it has begun.
    from gtr_jax.data.registered import provider_of, rates_of, tasks_of, vocabulary_file_of
    provider = provider_of(mixture_or_task_name, mixture_or_task_module, split)
    tasks = tasks_of(provider, split)
    self._reading = functools.partial(_reading, datasets, mixture_or_task_name, vocabulary, extra_ids)
    with self._reading():
      self.vocabulary_file = vocabulary_file_of(provider)
      self._tasks = _task_records(tasks, split, use_cached, lengths, negatives_per_example,
                                  negative_queries_per_example, seed, data_fraction, teacher)
      rates = rates_of(provider, tasks)
    sizes = [int(task.block_sizes.sum()) for task in self._tasks]
    if 0 in sizes:
      raise InputError(f"{tasks[sizes.index(0)].name}: " + (
          f"data_fraction {data_fraction} leaves no pair of it; give a larger share" if data_fraction < 1 else
          f"no example in its split {split!r}"))
    self.num_pairs = sum(sizes)
    bytes_of_record = sum(task.files.num_bytes for task in self._tasks) // sum(len(task.files) for task in self._tasks)
    orders = [TaskOrder(task.block_sizes, key_of(seed, "order", number)) for number, task in enumerate(self._tasks)]
    self._streams = Streams(orders, rates, batch_size, groups, seed, one_task_per_batch, bytes_of_record)
    self.made_from = {
        "mixture_or_task_name": mixture_or_task_name, "split": split, "seed": seed, "use_cached": use_cached,
        "feature_lengths": dict(feature_lengths), "batch_size": batch_size,
        "row_lengths": dict(row_lengths) if row_lengths else None, "microbatch_size": microbatch_size,
        "negatives_per_example": negatives_per_example, "negative_queries_per_example": negative_queries_per_example,
        "data_fraction": data_fraction, "one_task_per_batch": one_task_per_batch,
        "rates": rates, "training data of hash": [task.content for task in self._tasks],
        "a vocabulary of hash": hashlib.sha256(epath.Path(self.vocabulary_file.path).read_bytes()).hexdigest()[:16],
        "extra_ids": self.vocabulary_file.extra_ids, "order": ORDER}
    self._number = 0
    self._made: collections.deque[concurrent.futures.Future[BatchWithInfo]] = collections.deque()
    self._pool = concurrent.futures.ThreadPoolExecutor(read_ahead, "TrainingBatches")
    self._read_ahead, self._closed = read_ahead, False
    self._windows: dict[tuple[int, int, int], concurrent.futures.Future[_Window]] = {}
    self._lock = threading.Lock()

  @staticmethod
  def check_given(feature_lengths=None, batch_size=None, row_lengths=None, microbatch_size=None,
                  negatives_per_example=0, negative_queries_per_example=0, **_):
    """Raises InputError where arguments do not fit together, whatever the data, the mesh and the processes."""
    if feature_lengths is not None and batch_size is not None:
      lengths = all_lengths(feature_lengths, negatives_per_example, negative_queries_per_example)
      batch_maker(batch_size, microbatch_size, 1, 1, row_lengths, lengths)

  def check_first_batch(self) -> Batch:
    """Makes the first batch, so that what is wrong with the data shows before anything is written.

    Packed, its first group also says how many rows batches usually have: whatever fits them gets as many, from now on.

    Returns:
      This process's part of a first batch, in the usual shape.

    Raises:
      InputError: a malformed example, or hard negatives are asked for and no example has one.
    """
    features = self._features(0, self._groups)

    def some(has):
      return has(features) or any(has(self._features(step, range(group, group + 1)))
                                  for step in range(_WITH_NEGATIVES) for group in range(self._all_groups))

    if self._negatives and not some(lambda part: part["right_negative_encoder_input_tokens"].any()):
      raise InputError(f"{self._name}: hard negatives are asked for (NEGATIVES_PER_EXAMPLE), and no example of the "
                       "first batches has one; declare the task's `negatives` field, or ask for 0")
    if self._teacher.vectors and not some(lambda part: part["passage_vector"].any()):
      raise self._not_taught("vectors")
    if self._teacher.scores and not some(lambda part: np.isfinite(part["score"]).any()):
      raise self._not_taught("scores")
    del features["example_id"]
    if self._packed:  # Of a group that all processes can read.
      first = features if self._groups[0] == 0 else self._features(0, range(1))
      first = {name: value[:self._of_group] for name, value in first.items() if name != "example_id"}
      self._make_batch = functools.partial(self._make_batch, usual=usual_shape(self._make_batch(first, groups=1)))
    return self._make_batch(features)

  def _not_taught(self, what):
    return InputError(f"{self._name}: the loss asks for a teacher's {what}, and no example of the first batches has "
                      f"them; add them with gtr-jax teach, or take another LOSS")

  def go_on_after(self, number: int, made_from: Mapping[str, Any]) -> None:
    """Goes on after the batch of this number of a run whose batches were made from that.

    Raises:
      InputError: from another task, seed, batch size, vocabulary or data.
    """
    for name, now in self.made_from.items():
      if (was := made_from.get(name)) != now:
        if name == "training data of hash" and isinstance(was, list) and len(was) == len(self._tasks):
          changed = [task.name for task, before in zip(self._tasks, was, strict=True) if task.content != before]
          raise InputError(f"the training data of {', '.join(changed)} have changed since the checkpoint; train on the "
                           "same, or start in another MODEL_DIR (--output)")
        other = ": other data, or another part of them held out" * (name == "mixture_or_task_name")
        raise InputError(f"the checkpoint's batches were made with {name} {was}, this run has {now}{other}; train as "
                         "before, or start in another MODEL_DIR (--output)")
    self._number = number

  def __iter__(self) -> "TrainingBatches":
    return self

  def __next__(self) -> BatchWithInfo:
    if self._closed:
      raise StopIteration
    while len(self._made) < self._read_ahead:
      self._made.append(self._pool.submit(self._batch, self._number + 1))
      self._number += 1
    try:
      item = self._made.popleft().result()
    except BaseException:
      self.close()
      raise
    return item

  def close(self) -> None:
    """Makes no more, and throws away what was made ahead."""
    self._closed = True
    self._pool.shutdown(cancel_futures=True)
    self._windows.clear()

  def _batch(self, number):
    features = self._features(number - 1, self._groups)
    ids = [i.decode() for i in features.pop("example_id")]
    return BatchWithInfo(self._make_batch(features), ids, number)

  def _features(self, step, groups):
    """Of the examples of these groups."""
    stream, window, row = self._streams.place(step)
    parts = []
    with self._reading():
      for start, group in enumerate(groups):
        found = self._window(stream, window, group)
        chosen = found.order[row]
        for task, records in found.records.items():
          if len(here := np.flatnonzero(found.tasks[chosen] == task)):
            parts.append((task, start * self._of_group + here, records.take(found.places[chosen[here]])))
      return _features_of(self._tasks, parts, len(groups) * self._of_group)

  def _window(self, stream, number, group):
    """What a group reads for some steps: whoever asks first reads it."""
    with self._lock:
      there = self._windows.get((stream, number, group))
      if is_new := there is None:
        for old in [key for key in self._windows if key[0] == stream and key[1] < number - 1]:
          del self._windows[old]
        there = self._windows[stream, number, group] = concurrent.futures.Future()
    if is_new:
      try:
        there.set_result(self._read_window(stream, number, group))
      except BaseException as e:
        there.set_exception(e)
    return there.result()

  def _read_window(self, stream, number, group):
    of_task = collections.defaultdict(list)
    for task, piece in self._streams.streams[stream].pieces(number, group):
      of_task[task].append(piece)
    records = {task: self._tasks[task].read(pieces) for task, pieces in of_task.items()}
    counts = [len(found.records) for found in records.values()]
    sizes = np.concatenate([self._tasks[task].sizes(found) for task, found in records.items()])
    order = self._streams.streams[stream].deal(number, group, sizes[:, 0], sizes[:, 1])
    return _Window(records, np.repeat(list(records), counts), np.concatenate(list(map(np.arange, counts))), order)


class _Window(NamedTuple):
  """The examples of a group in some steps.

  Attributes:
    records: by task.
    tasks: int `[examples]`, the task of each.
    places: int `[examples]`, its place among its task's records.
    order: int `[steps, examples of a step]`.
  """

  records: dict[int, Any]
  tasks: np.ndarray
  places: np.ndarray
  order: np.ndarray


class ValidationBatches:
  """The batches of one pass over a validation split; every iteration yields the same ones again.

  The last batch is filled up with pairs that `Batch.valid` marks False. A mixture's tasks follow one another. Every
  process gets its part of every batch, so that all have the same number of batches. The arguments are those of
  `TrainingBatches`.

  Attributes:
    content: hashes of the tasks' data.
  """

  def __init__(self, mixture_or_task_name: str, mixture_or_task_module: str | None,
               feature_lengths: _Lengths, batch_size: Positive, *, groups: Positive = 1,
               row_lengths: _Lengths | None = None, microbatch_size: Positive | None = None,
               negatives_per_example: NonNegative = 0, negative_queries_per_example: NonNegative = 0,
               vocabulary: str | None = None, extra_ids: NonNegative = 0, use_cached: bool = False,
               split: str = "validation", own_groups: Sequence[int] | None = None,
               max_batches: Positive | None = None, teacher: OfTeacher = NOTHING):
    check_arguments(ValidationBatches, locals())
    lengths = all_lengths(feature_lengths, negatives_per_example, negative_queries_per_example)
    self._groups = range(groups) if own_groups is None else own_groups
    self._make_batch = batch_maker(batch_size, microbatch_size, groups, len(self._groups), row_lengths, lengths)
    self._packed = row_lengths is not None
    self._usual: UsualShape | None = None
    self._batch_size, self._of_group = batch_size, batch_size // groups
    from gtr_jax.data import datasets
    from gtr_jax.data.registered import provider_of, tasks_of
    provider = provider_of(mixture_or_task_name, mixture_or_task_module, split)
    self._reading = functools.partial(_reading, datasets, mixture_or_task_name, vocabulary, extra_ids)
    with self._reading():
      self._tasks = _task_records(tasks_of(provider, split), split, use_cached, lengths, negatives_per_example,
                                  negative_queries_per_example, None, 1.0, teacher)
    self.content = " ".join(task.content for task in self._tasks)
    self._orders = [TaskOrder(task.block_sizes, None) for task in self._tasks]
    self._starts = np.cumsum([0, *(order.epoch_size for order in self._orders)]).tolist()
    batches = -(-self._starts[-1] // batch_size)
    self._batches = batches if max_batches is None else min(batches, max_batches)

  check_given = TrainingBatches.check_given

  def __iter__(self) -> Iterator[Batch]:
    for number in range(self._batches):
      features = self._features(number, self._groups)
      if self._packed and self._usual is None:  # The last batch, with fewer pairs, has the shape of the first, too.
        usual = usual_shape(self._make_batch(self._features(0, range(1)), groups=1))
        self._usual = UsualShape(*(rows._replace(least=0) for rows in usual))
      yield self._make_batch(features, usual=self._usual)

  def _features(self, number, groups):
    """Of these groups of a batch."""
    parts, there = [], np.zeros((len(groups), self._of_group), bool)
    with self._reading():
      for place, group in enumerate(groups):
        first = number * self._batch_size + group * self._of_group
        there[place] = np.arange(first, first + self._of_group) < self._starts[-1]
        for task, (order, start) in enumerate(zip(self._orders, self._starts, strict=False)):
          here = range(max(first, start), min(first + self._of_group, start + order.epoch_size))
          if here:
            records = self._tasks[task].read(order.pieces(here.start - start, here.stop - start))
            parts.append((task, place * self._of_group + np.arange(here.start, here.stop) - first, records))
      if not parts:  # Nothing is left for it: of the first pair, only the shapes.
        task, order = next((task, order) for task, order in enumerate(self._orders) if order.epoch_size)
        parts.append((task, np.zeros(1, int), self._tasks[task].read(order.pieces(0, 1))))
      features = _features_of(self._tasks, parts, there.size)
    del features["example_id"]
    valid = there.reshape(-1)
    nothing = {"score": np.nan, "negative_score": np.nan}
    return {name: np.where(valid.reshape(-1, *[1] * (value.ndim - 1)), value, nothing.get(name, 0)).astype(value.dtype)
            for name, value in features.items()} | {"valid": valid}


@contextlib.contextmanager
def _reading(datasets, name, vocabulary, extra_ids):
  """In which texts are read with this vocabulary, and what TensorFlow says of data is one line; in any thread."""
  with run_vocabulary.use_vocabulary(vocabulary, extra_ids), datasets.input_errors(name):
    yield


def _task_records(tasks, split, use_cached, lengths, negatives, negative_queries, seed, data_fraction, teacher):
  from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
  from gtr_jax.data.registered import find_cached
  from gtr_jax.data.task_records import TaskRecords, most_positives
  if use_cached:
    find_cached(tasks)
  known = 1 + max(most_positives(task, split, use_cached) for task in tasks)
  converter = DualEncoderFeatureConverter(negatives, negative_queries, known, teacher)
  functions: dict[Any, Any] = {}
  return [TaskRecords(task, split, use_cached, lengths, converter, None if seed is None else key_of(seed, number),
                      data_fraction, functions) for number, task in enumerate(tasks)]


def _features_of(tasks: Sequence[Any], parts: Sequence[tuple[int, np.ndarray, Any]],
                 count: int) -> dict[str, np.ndarray]:
  """The model features of `count` examples: `parts` are (task, places among them, records)."""
  out: dict[str, np.ndarray] = {}
  for number in sorted({task for task, _, _ in parts}):
    places, records = zip(*((places, records) for task, places, records in parts if task == number), strict=True)
    records = type(records[0])(*map(np.concatenate, zip(*records, strict=True)))
    for name, value in tasks[number].features(records).items():
      if name not in out:
        out[name] = np.zeros((count, *value.shape[1:]), value.dtype)
      out[name][np.concatenate(places)] = value
  return out
