"""The records of a task, and what becomes of them: from any of its records to the features of a batch.

Tasks of `add_pair_task` keep their texts, or the tokens that `seqio_cache_tasks` has written, and what is drawn or cut
is drawn and cut when a batch is made. Of any other seqio task the features of all examples are written once
(`written_tasks`).
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gtr_jax.data import datasets, written_tasks
from gtr_jax.data.batch_sizes import Lengths
from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.data.order import Piece, key_of, random_bits
from gtr_jax.data.pair_task import PairTask, cached_description
from gtr_jax.data.record_files import RecordFiles
from gtr_jax.data.registered import files_of
from gtr_jax.io import atomic, bars, data_root

_AT_ONCE = 1 << 14  # Records.
_HASHES = 1_000_003
_BYTES_OF_TOKEN = 5  # Of English, with T5's vocabulary a little more than there are: for what is certainly cut.


class Records(NamedTuple):
  """Some records as they lie on disk.

  Attributes:
    records: object `[records]`, bytes.
    places: object `[records]`, `file:number` of each.
    numbers: int64 `[records]`: for each record in each epoch another one, by which its negatives are drawn.
  """

  records: np.ndarray
  places: np.ndarray
  numbers: np.ndarray

  def __getitem__(self, index: Any) -> "Records":  # type: ignore[override]  # Of all three.
    return Records._make(tuple.__getitem__(self, i)[index] for i in range(3))


class TaskRecords:
  """The records of a split of a task.

  Args:
    task: of seqio.
    split: which one.
    use_cached: read what `seqio_cache_tasks` has written of it.
    lengths: of all features.
    converter: makes model features.
    seed: of what is drawn for each example; None: nothing is.
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
               seed: int | None, data_fraction: float, functions: dict[Any, "_Functions"]):
    self.name, self._key = task.name, key_of(seed or 0, "negatives", task.name)
    cached = use_cached and task.supports_caching
    content: str | None = None
    if not isinstance(task, PairTask):
      files, parse = written_tasks.written(task, split, cached, lengths, converter)
      key = written_tasks.__name__
    elif cached:
      files, parse, key = files_of(task, split, True), _parse_cached, (PairTask, task.graph_key)
    else:
      files, parse, content = files_of(task, split, False), task.source.parse, task.source.content(split)
      key = (task.source.graph_key, task.graph_key)
    self.files = RecordFiles(files, f"fetch or write it again; delete {data_root.data_dir() / 'cache'} if it is there: "
                             "that is made again")
    self.content = content or self.files.content
    if key not in functions:
      functions[key] = _Functions(task, parse, lengths, converter, seed)
    self._functions = functions[key]
    negatives, queries = _numbers(lengths)
    self._longest = np.array([lengths.of_converter["inputs"] * (1 + queries),
                              lengths.of_converter["targets"] * (1 + negatives)])
    if isinstance(task, PairTask) and not cached:
      self._longest *= _BYTES_OF_TOKEN
    self.block_sizes, self._taken = self.files.block_sizes, None
    if data_fraction < 1:
      self._taken = self._share(data_fraction)
      self.block_sizes = np.array([np.count_nonzero(taken) for taken in self._taken], np.int64)

  def _share(self, data_fraction):
    """Of each block, which records are taken, bool `[records]`: found once, and kept beside the index."""
    ends = np.cumsum(self.files.block_sizes)[:-1]
    place = data_root.data_dir() / "cache" / "indices" / f"{key_of(self.files.content, self.name, data_fraction):016x}.npy"
    if place.exists():
      with place.open("rb") as file:
        return np.split(np.unpackbits(np.load(file), count=len(self.files)).astype(bool), ends)
    taken = []
    with bars.Bar(len(self.files), f"looking for {data_fraction:g} of {self.name}", " pairs", leave=False, delay=1) as bar:
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
    return self._read(whole)[np.concatenate([start + of - of[0] for start, of in zip(starts, wanted, strict=True)])]

  def _read(self, pieces: Sequence[Piece]) -> Records:
    records, places, numbers = [], [], []
    for epoch, block, first, last in pieces:
      records += self.files.read(block, first, last)
      name, of_file = self.files.place(block, first, last)
      places += [f"{name}:{number}".encode() for number in of_file.tolist()]
      numbers.append(random_bits(key_of(self._key, epoch, block), np.arange(first, last)) >> np.uint64(1))
    return Records(_objects(records), _objects(places), np.concatenate(numbers).astype(np.int64))

  def sizes(self, records: Records) -> np.ndarray:
    """int64 `[records, 2]`: about how long queries and passages are, with their negatives, after what is cut."""
    return np.minimum(self._functions.sizes(self.name, *records), self._longest)

  def features(self, records: Records) -> dict[str, np.ndarray]:
    """The model features, of all records: `feature_converter` says which."""
    return self._functions.features(self.name, *records)


@tf.autograph.experimental.do_not_convert
def _parse_cached(record, place):
  del place  # It has an id of its own.
  return tf.io.parse_single_example(record, cached_description())


class _Functions:
  """What TensorFlow makes of `Records` of a task of this kind, given its name; as numpy, of all records at once."""

  def __init__(self, task: Any, parse: Callable, lengths: Lengths, converter: DualEncoderFeatureConverter,
               seed: int | None):
    if isinstance(task, PairTask):
      self.features = _function(parse, lambda numbered: converter(
          task.numbered_features(numbered, lengths.of_task, seed), lengths.of_converter))
      self.sizes = _function(parse, _each(lambda example: task.sizes(example, *_numbers(lengths))))
      self.query_hash = _function(parse, _each(task.query_hash))
    else:
      self.features = _function(parse, _each(lambda example: {k: v for k, v in example.items() if k != "task"}))
      self.sizes = _function(parse, _each(written_tasks.sizes))
      self.query_hash = _function(parse, _each(operator.itemgetter("query_hash")))


def _numbers(lengths: Lengths) -> list[int]:
  """How many negatives and negative queries each example has."""
  wanted = (lengths.of_task.get(name) for name in ("negative_targets", "negative_inputs"))
  return [of[0] if isinstance(of, tuple) else 0 for of in wanted]


def _each(function: Callable) -> Callable:
  function = tf.autograph.experimental.do_not_convert(function)
  return lambda numbered: numbered.map(lambda _, example: function(example))


def _function(parse: Callable, finish: Callable) -> Callable:
  """`finish` of a dataset of (number, parsed example), all its elements at once."""
  texts = tf.TensorSpec([None], tf.string)

  @tf.function(input_signature=[tf.TensorSpec([], tf.string), texts, texts, tf.TensorSpec([None], tf.int64)],
               autograph=False)
  def of_all(task, records, places, numbers):

    @tf.autograph.experimental.do_not_convert
    def parsed(record, place, number):
      return number, {**parse(record, place), "task": task}

    numbered = tf.data.Dataset.from_tensor_slices((records, places, numbers))
    numbered = numbered.map(parsed, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = datasets.with_options(finish(numbered).batch(tf.size(numbers, tf.int64)))
    return dataset.get_single_element()

  return lambda *arguments: tf.nest.map_structure(lambda tensor: tensor.numpy(), of_all(*map(tf.constant, arguments)))


def _objects(values: list) -> np.ndarray:
  """As numpy would not make it of bytes of one length, or ending in zeros."""
  out = np.empty(len(values), object)
  out[:] = values
  return out
