"""The records of a task, and what becomes of them: from any of its records to the features of a batch.

Tasks of `add_pair_task` keep their texts, or the tokens that `seqio_cache_tasks` has written, and what is drawn or cut
is drawn and cut when a batch is made. Of any other seqio task the features of all examples are written once
(`written_tasks`).
"""

import concurrent.futures
import enum
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gtr_jax.data import written_tasks
from gtr_jax.data.batch_sizes import Lengths
from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.data.json_examples import OWN_FIELDS, Fields
from gtr_jax.data.order import Piece, key_of, random_bits
from gtr_jax.data.pair_task import PairTask, parse_cached
from gtr_jax.data.record_files import RecordFiles
from gtr_jax.data.registered import files_of
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, bars, data_root
from gtr_jax.prepare import of_queries, vectors

_AT_ONCE = 1 << 14  # Records.
_OF_A_CORE = 256  # Records whose features one makes, while others make those of the next.
_HASHES = 1_000_003
_BYTES_OF_TOKEN = 5  # Of English, with T5's vocabulary a little more than there are: for what is certainly cut.


def most_positives(task: Any, split: str, use_cached: bool) -> int:
  """How many other answers of its query a pair of the task has at most, or some more."""
  if not isinstance(task, PairTask):
    return 0
  return of_queries.MOST_POSITIVES if use_cached and task.supports_caching else task.source.most_positives(split)


@functools.cache
def _cores() -> concurrent.futures.Executor:
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "features")


class Records(NamedTuple):
  """Some records as they lie on disk.

  Attributes:
    records: object `[records]`, bytes.
    numbers: int64 `[records]`: for each record in each epoch another one, by which its negatives are drawn.
  """

  records: np.ndarray
  numbers: np.ndarray

  def take(self, places: np.ndarray) -> "Records":
    """Those at these places."""
    return Records._make(array[places] for array in self)


class TaskRecords:
  """The records of a split of a task.

  Args:
    task: of seqio.
    split: which one.
    use_cached: read what `seqio_cache_tasks` has written of it.
    lengths: of all features.
    converter: makes model features.
    key: of what is drawn for each example; None: nothing is.
    data_fraction: the share of the queries whose records these are, by a hash of the query.
    functions: of the tasks so far; those that are alike share theirs, as each takes a second to trace.

  Attributes:
    name: of the task.
    files: where the records are.
    block_sizes: int64 `[blocks]`, how many of the records of each block of the files are taken.
    content: a hash of all that decides them, hex; it does not depend on where they lie.

  Raises:
    InputError: files are not there, or damaged.
  """

  def __init__(self, task: Any, split: str, use_cached: bool, lengths: Lengths, converter: DualEncoderFeatureConverter,
               key: int | None, data_fraction: float, functions: dict[Any, "_Functions"]):
    self.name, self._key = task.name, key
    cached = use_cached and task.supports_caching
    kind: tuple[Any, ...]
    content: str | None = None
    if not isinstance(task, PairTask):
      files, parse = written_tasks.written(task, split, cached, lengths, converter)
      kind = (_Form.FEATURES,)
    elif cached:
      files, parse, kind = files_of(task, split, True), parse_cached, (_Form.TOKENS, task.graph_key)
    else:
      files, parse, content = files_of(task, split, False), task.source.parse, task.source.content(split)
      kind = (_Form.TEXTS, task.graph_key)
    self.files = RecordFiles(files, f"fetch or write it again; delete {data_root.data_dir() / 'cache'} if it is there: "
                             "that is made again")
    self.content = content or self.files.content
    if kind not in functions:
      functions[kind] = _Functions(task, parse, lengths, converter, key is not None, kind[0])
    self._functions, self._vectors = functions[kind], converter.teacher.vectors
    if any(converter.teacher) and kind[0] is not _Form.TEXTS:
      raise InputError(f"{task.name}: the loss asks for what a teacher says of the texts, and " + (
          "its cache has nothing of it; bind USE_CACHED_TASKS = False" if cached else
          "a task that add_pair_task has not declared has nothing of it; train on prepared pairs (gtr-jax teach)"))
    self.block_sizes, self._taken = self.files.block_sizes, None
    if data_fraction < 1 and len(self.files):
      self._taken = self._share(data_fraction)
      self.block_sizes = np.array([np.count_nonzero(taken) for taken in self._taken], np.int64)
      self.content = f"{key_of(self.content, np.concatenate(self._taken).tobytes()):016x}"

  def _share(self, data_fraction):
    """Of each block, which records are taken, bool `[records]`: found once, and kept beside the index."""
    ends = np.cumsum(self.files.block_sizes)[:-1]
    digest = key_of(self.files.content, self.name, data_fraction)
    place = data_root.data_dir() / "cache" / "indices" / f"{digest:016x}.npy"
    if place.exists():
      with place.open("rb") as file:
        return np.split(np.unpackbits(np.load(file), count=len(self.files)).astype(bool), ends)
    taken = []
    what = f"taking {data_fraction:g} of {self.name}"
    with bars.Bar(len(self.files), what, " pairs", leave=False, delay=1) as bar:
      for some in np.array_split(np.arange(len(ends) + 1), max(1, len(self.files) // _AT_ONCE)):
        found = self._read([Piece(0, block, 0, int(self.files.block_sizes[block])) for block in some.tolist()])
        taken.append(self._functions.query_hash(self.name, *found) % _HASHES < data_fraction * _HASHES)
        bar.update(len(found.records))
    with atomic.replacing(place) as file:
      np.save(file, np.packbits(np.concatenate(taken)))
    return np.split(np.concatenate(taken), ends)

  def read(self, pieces: Sequence[Piece]) -> Records:
    """The records of some pieces of the blocks of those that are taken, in order."""
    if self._taken is None:
      return self._read(pieces)
    wanted = [np.flatnonzero(self._taken[block])[first:last] for _, block, first, last in pieces]
    whole = [piece._replace(first=int(of[0]), last=int(of[-1]) + 1) for piece, of in zip(pieces, wanted, strict=True)]
    starts = np.cumsum([0, *(piece.last - piece.first for piece in whole[:-1])])
    return self._read(whole).take(np.concatenate([start + of - of[0]
                                                  for start, of in zip(starts, wanted, strict=True)]))

  def _read(self, pieces: Sequence[Piece]) -> Records:
    records, numbers = [], []
    for epoch, block, first, last in pieces:
      records += self.files.read(block, first, last)
      numbers.append(random_bits(key_of(self._key or 0, epoch, block), np.arange(first, last)) >> np.uint64(1))
    return Records(_objects(records), np.concatenate(numbers).astype(np.int64))

  def sizes(self, records: Records) -> np.ndarray:
    """int64 `[records, 2]`: about how long queries and passages are, with their negatives, after what is cut."""
    return self._functions.sizes(tf.constant(records.records)).numpy()

  def features(self, records: Records) -> dict[str, np.ndarray]:
    """The model features, of all records, made by all cores: `feature_converter` says which."""
    parts = [records.take(part) for part in np.array_split(
        np.arange(len(records.records)), -(-len(records.records) // _OF_A_CORE))]
    first = self._functions.features(self.name, *parts[0])  # Which traces them, with the vocabulary of this thread.
    others = _cores().map(lambda part: self._functions.features(self.name, *part), parts[1:])
    made = [first, *others]
    out = {name: np.concatenate([part[name] for part in made]) for name in first} if made[1:] else first
    return out | {name: self._unpacked(out[name]) for name in out if name.endswith("_vector")}

  def _unpacked(self, texts):
    """float32 `[..., numbers]` of vectors as they are packed; zeros of none."""
    out = np.zeros((texts.size, self._vectors), np.float32)
    for row, text in zip(out, texts.reshape(-1), strict=True):
      if text:
        vector = vectors.unpacked(text)
        if len(vector) != len(row):
          raise InputError(f"{self.name}: the teacher's vectors have {len(vector)} numbers, and the loss expects "
                           f"{len(row)}; set its teacher_dim to {len(vector)}")
        row[:] = vector
    return out.reshape(*texts.shape, self._vectors)


class _Form(enum.Enum):
  """What records hold: texts; tokens, as `seqio_cache_tasks` writes them; or features, as `written_tasks` does."""

  TEXTS, TOKENS, FEATURES = range(3)


_FIELDS = {
    _Form.TEXTS: OWN_FIELDS, _Form.TOKENS: Fields(("inputs",), ("targets",), "negative_targets", "negative_inputs"),
    _Form.FEATURES: Fields(("left_encoder_input_tokens", "left_negative_encoder_input_tokens"),
                           ("right_encoder_input_tokens", "right_negative_encoder_input_tokens"))}


class _Functions:
  """What TensorFlow makes of `Records` of a task of this kind, given its name; as numpy, of all records at once."""

  def __init__(self, task: Any, parse: Callable, lengths: Lengths, converter: DualEncoderFeatureConverter,
               draws: bool, form: _Form):
    self._form, self._lengths = form, lengths
    self.sizes = tf.function(self._sizes, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    if form is _Form.FEATURES:
      self.features = _function(parse, lambda _, examples: {k: v for k, v in examples.items() if k != "task"})
      self.query_hash = _function(parse, lambda _, examples: examples["query_hash"])
    else:
      seed = 0 if draws else None  # What is drawn is drawn by the numbers of the records.
      self.features = _function(parse, lambda numbers, examples: converter.convert(
          task.features(numbers, examples, lengths.of_task, seed, converter.teacher), lengths.of_converter))
      self.query_hash = _function(parse, lambda _, examples: task.query_hash(examples))

  def _sizes(self, records):
    """Of the query and of the passage of each record, with their negatives: int64 `[records, 2]`."""
    fields, sizes = _FIELDS[self._form], []
    for own, others, feature, negatives in ((fields.query, fields.negative_queries, "inputs", "negative_inputs"),
                                            (fields.passage, fields.negatives, "targets", "negative_targets")):
      of_task, longest = self._lengths.of_task.get(negatives), self._lengths.of_converter[feature]
      total = tf.add_n([self._length(records, name)[0] for name in own])
      if self._form is not _Form.FEATURES:
        longest *= _BYTES_OF_TOKEN if self._form is _Form.TEXTS else 1
        total = tf.minimum(total, longest)
        if isinstance(of_task, tuple) and others:
          length, there = self._length(records, others)
          total += tf.minimum(length // tf.maximum(there, 1), longest) * tf.minimum(there, of_task[0])
      sizes.append(total)
    return tf.stack(sizes, axis=1)

  def _length(self, records, name):
    """Of a field of each record: all that it holds in bytes or tokens, and how many texts."""
    if self._form is _Form.TEXTS:
      texts = tf.io.parse_example(records, {name: tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64)})[name]
      lengths = tf.ragged.map_flat_values(lambda flat: tf.cast(tf.strings.length(flat), tf.int64), texts)
      return tf.reduce_sum(lengths, axis=1), texts.row_lengths()
    of_each = f"{name}_lengths"
    parsed = tf.io.parse_example(records, {n: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
                                           for n in (name, of_each)})
    return tf.reduce_sum(tf.cast(parsed[name] != 0, tf.int64), axis=1), parsed[of_each].row_lengths()


def _function(parse: Callable, finish: Callable) -> Callable:
  """`finish` of numbers and parsed examples; numpy arrays."""

  @tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.string),
                                tf.TensorSpec([None], tf.int64)], autograph=False)
  def of_all(task, records, numbers):
    return finish(numbers, {**parse(records), "task": task})

  return lambda *arguments: tf.nest.map_structure(lambda tensor: tensor.numpy(), of_all(*map(tf.constant, arguments)))


def _objects(values: list) -> np.ndarray:
  """As numpy would not make it of bytes of one length, or ending in zeros."""
  out = np.empty(len(values), object)
  out[:] = values
  return out
