"""seqio data sources of text pairs. Constructing one touches no disk; the data root is looked at when it is used.

Every source yields examples with the features of `shards.TEXTS` (scalar strings) and `shards.LISTS` (string vectors).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from gtr_jax.data import shards
from gtr_jax.data.datasets import Examples, many_at_once
from gtr_jax.data.json_examples import Fields
from gtr_jax.data.record_files import RecordFiles
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.io.bars import Bar
from gtr_jax.prepare import manifests
from gtr_jax.prepare.interface import Example

# Few open files, each read forward: the state of a reader is a few offsets, and restoring it is a few seeks.
_OPEN_SHARDS = 8

_OWN_FIELDS = Fields(("query",), ("passage",), "negatives", "negative_queries", "query_id", "passage_id",
                            "negative_ids")

Patterns = str | Sequence[str]


def _parse(records: tf.Tensor, texts: Sequence[str], lists: Sequence[str]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
  """Of serialized tf.train.Examples, features that are one text each, and those that are any number of them."""
  return tf.io.parse_example(records, {name: tf.io.FixedLenFeature([], tf.string) for name in texts} | {
      name: tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64) for name in lists})


def _hint(prepare: str | None) -> str:
  return f"run: {prepare}" if prepare else "correct the task's source, or the data root (--data_dir or GTR_DATA_DIR)"


def _find(patterns: Patterns, prepare: str | None) -> list[epath.Path]:
  """The files that the patterns name, sorted; InputError if one of the patterns names none."""
  files = []
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    path = data_root.resolve(pattern)
    found = sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else [path]
    if not found or not found[0].exists():
      raise InputError(f"{path}: no such file; {_hint(prepare)}")
    files += found
  return files


def _names(fields):
  """Of a source's own fields, those that are one text, and those that are any number of them."""
  return ([*fields.query, *fields.passage, *filter(None, (fields.query_id, fields.passage_id))],
          [*filter(None, (fields.negatives, fields.negative_ids, fields.negative_queries))])


def _from_fields(fields: Fields, raw: Examples, example_ids: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
  """The features of examples whose fields still have the source's own names."""

  def text(names, what):
    parts = tf.strings.strip(tf.stack([raw[name] for name in names], axis=1))
    joined = tf.strings.reduce_join(tf.ragged.boolean_mask(parts, tf.strings.length(parts) > 0), axis=1, separator=" ")
    return _checked(joined, tf.strings.length(joined) > 0, example_ids,
                    f": the {what} (field {' + '.join(names)}) is empty; remove the example")

  def listed(name):
    if not name:
      return tf.RaggedTensor.from_row_lengths(tf.zeros([0], tf.string), tf.zeros_like(example_ids, tf.int64))
    value = raw[name]
    ragged = isinstance(value, tf.RaggedTensor)
    return value if ragged else tf.RaggedTensor.from_tensor(value, row_splits_dtype=tf.int64)

  def identifier(name):
    return _ids(raw[name], name, example_ids) if name else tf.zeros_like(example_ids)

  def identifiers(name):
    values = listed(name)
    of_each = tf.repeat(example_ids, values.row_lengths())
    return values.with_flat_values(_ids(values.flat_values, name, of_each))

  return {
      "example_id": example_ids,
      "query": text(fields.query, "query"),
      "passage": text(fields.passage, "passage"),
      "query_id": identifier(fields.query_id),
      "passage_id": identifier(fields.passage_id),
      "negatives": listed(fields.negatives),
      "negative_ids": identifiers(fields.negative_ids),
      "negative_queries": listed(fields.negative_queries),
  }


def _checked(values, right, example_ids, message):
  """The values, where all are right; else an error that names the first example whose value is not."""
  wrong = tf.boolean_mask(example_ids, ~right)
  with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(right), [
      tf.strings.reduce_join(wrong[:1]) + message])]):
    return tf.identity(values)


def _ids(value: tf.Tensor, name: str, example_ids: tf.Tensor) -> tf.Tensor:
  """Ids as strings, as `jsonl.identifier` makes them of JSON: 1.0 is 1, and NaN, the null of tables, is none."""
  if value.dtype == tf.string:
    return value
  if value.dtype.is_integer:
    return tf.strings.as_string(value)
  if not value.dtype.is_floating:
    raise InputError(f"the field {name!r} is {value.dtype.name}, which is no id; name one of texts or whole numbers")
  none = tf.math.is_nan(value)
  whole = tf.cast(tf.where(none, tf.zeros_like(value), value), tf.int64)
  texts = tf.where(none, "", tf.strings.as_string(whole))
  return _checked(texts, none | (tf.cast(whole, value.dtype) == value), example_ids,
                  f": field {name!r} has a number with a fraction, which is no id; correct the example")


class RecordSource(seqio.DataSource):
  """Pairs in TFRecord shards, of `shards`' records. Subclasses say which files a split has."""

  def __init__(self, splits: Mapping[str, Patterns], fields: Fields, prepare: str | None):
    self._patterns = dict(splits)
    self._fields = fields
    self._prepare = prepare
    super().__init__(splits=tuple(splits))

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def record_files(self, split: str) -> Sequence[str]:
    """The files whose records `parse` reads."""
    return self.list_shards(split)

  @property
  def record_fields(self) -> Fields:
    """Which fields of a record hold what; that decides the graph of `parse`, too."""
    return _OWN_FIELDS

  def content(self, split: str) -> str | None:
    """A hash of what the records are made from; None: they say it themselves."""
    del split
    return None

  def parse(self, records: tf.Tensor, places: tf.Tensor) -> Examples:
    """The examples of records. `places` names each, as `file:number`."""
    del places  # They have ids of their own.
    return _parse(records, shards.TEXTS, shards.LISTS)

  def get_dataset(self, split: str = "train", shuffle: bool = True, seed: int | None = None,
                  shard_info: seqio.ShardInfo | None = None, *, sequence_length: Any = None, use_cached: bool = False,
                  num_epochs: int | None = 1) -> tf.data.Dataset:
    files = self.list_shards(split)
    dataset = tf.data.Dataset.from_tensor_slices(files)
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      dataset = dataset.shuffle(len(files), seed=seed)
    dataset = dataset.interleave(_placed_records, cycle_length=_OPEN_SHARDS if shuffle else 1)
    return many_at_once(dataset, self.parse)


@tf.autograph.experimental.do_not_convert
def _placed_records(file: tf.Tensor) -> tf.data.Dataset:
  """Of a file, each record and its `file:number`."""
  name = tf.strings.split(file, "/")[-1]
  return tf.data.TFRecordDataset(file).enumerate(start=1).map(
      lambda number, record: (record, tf.strings.join([name, ":", tf.strings.as_string(number)])))


class JsonlSource(RecordSource):
  """JSONL or JSONL.gz files, one object a line, turned into shuffled TFRecord shards at the first use."""

  def list_shards(self, split: str) -> Sequence[str]:
    return self._shards(split).files

  def num_input_examples(self, split: str) -> int:
    return self._shards(split).num_examples

  def content(self, split):
    hashes = [shards.content_hash(path) for path in _find(self._patterns[split], self._prepare)]
    return hashlib.sha256(json.dumps([self._fields, hashes]).encode()).hexdigest()

  def _shards(self, split):
    return shards.shards_of(_find(self._patterns[split], self._prepare), self._fields)


class TfrecordSource(RecordSource):
  """TFRecord files of tf.train.Example with string fields, shuffled by whoever wrote them."""

  def list_shards(self, split: str) -> Sequence[str]:
    return [os.fspath(f) for f in _find(self._patterns[split], self._prepare)]

  def num_input_examples(self, split: str) -> int:
    """Counts them, which reads the files once."""
    return len(RecordFiles(self.list_shards(split), "fetch or write it again"))

  @property
  def record_fields(self):
    return self._fields

  def parse(self, records, places):
    return _from_fields(self._fields, _parse(records, *_names(self._fields)), places)


class PreparedSource(RecordSource):
  """What `gtr-jax prepare` has written below the data root; its records have all fields under their own names."""

  def __init__(self, name: str, splits: Sequence[str], fields: Fields, prepare: str | None):
    if any(field not in (None, own) for field, own in zip(fields, _OWN_FIELDS, strict=True)):
      raise ValueError(f"prepared data {name!r} has fields of its own; declare none")
    super().__init__(dict.fromkeys(splits, name), fields, prepare)
    self._name = name

  def list_shards(self, split: str) -> Sequence[str]:
    return [os.fspath(data_root.resolve(self._name) / file) for file in self._of(split, "splits")]

  def num_input_examples(self, split: str) -> int:
    return self._of(split, "examples")

  def _of(self, split, what):
    found = manifests.read(self._name, self._prepare)[what]
    if split not in found:
      raise InputError(f"{data_root.resolve(self._name)}: no split {split!r}, only {', '.join(found)}; prepare it with "
                       "--validation_share, or declare the splits that it has")
    return found[split]


class TfdsSource(seqio.DataSource):
  """A dataset of TensorFlow Datasets that has been built already (`tfds build`)."""

  def __init__(self, name: str, splits: Mapping[str, str], fields: Fields, prepare: str | None):
    self._name = name
    self._tfds_splits = dict(splits)
    self._fields = fields
    self._prepare = prepare
    super().__init__(splits=tuple(splits))

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def _builder(self):
    folder = data_root.data_dir() / "tensorflow_datasets"
    hint = self._prepare or f"tfds build {self._name} --data_dir {folder}"
    try:
      builder = tfds.builder(self._name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as e:
      raise InputError(f"{folder}: no dataset {self._name!r} of TensorFlow Datasets; run: {hint}") from e
    if not builder.is_prepared():
      raise InputError(f"{folder}: {self._name!r} is not built; run: {hint}")
    return builder

  def list_shards(self, split: str) -> Sequence[str]:
    return [f.filename for f in self._builder().info.splits[self._tfds_splits[split]].file_instructions]

  def num_input_examples(self, split: str) -> int:
    return self._builder().info.splits[self._tfds_splits[split]].num_examples

  def get_dataset(self, split: str = "train", shuffle: bool = True, seed: int | None = None,
                  shard_info: seqio.ShardInfo | None = None, *, sequence_length: Any = None, use_cached: bool = False,
                  num_epochs: int | None = 1) -> tf.data.Dataset:
    config = tfds.ReadConfig(
        shuffle_seed=seed, skip_prefetch=True, try_autocache=False, add_tfds_id=True,
        interleave_cycle_length=_OPEN_SHARDS,
        input_context=shard_info and tf.distribute.InputContext(
            num_input_pipelines=shard_info.num_shards, input_pipeline_id=shard_info.index))
    dataset = self._builder().as_dataset(self._tfds_splits[split], shuffle_files=shuffle, read_config=config)
    texts, lists = _names(self._fields)

    def used(raw):
      if missing := [name for name in (*texts, *lists) if name not in raw]:
        raise InputError(f"no field {missing[0]!r} in the source, only {', '.join(map(repr, raw))}; correct the fields "
                         "that the task declares")
      return {name: raw[name] for name in (*texts, "tfds_id")} | {name: tf.reshape(raw[name], [-1]) for name in lists}

    return many_at_once(dataset.map(tf.autograph.experimental.do_not_convert(used)),
                        lambda raw: _from_fields(self._fields, raw, raw["tfds_id"]))

  def record_files(self, split: str) -> Sequence[str]:
    """The examples as shuffled records, which are written at the first use."""
    info = self._builder().info
    instructions = info.splits[self._tfds_splits[split]].file_instructions
    files = [[os.path.basename(f.filename), shards.content_hash(epath.Path(f.filename)), f.skip, f.take]
             for f in instructions]
    size = sum(epath.Path(f.filename).stat().length for f in instructions)
    described = {"sources": [f"{self._name} {self._tfds_splits[split]}"], "fields": self._fields._asdict()}
    return shards.written_once(["tfds", self._name, self._fields, files], lambda: [split], self._records, size,
                               described).files

  def _records(self, split):
    with Bar(self.num_input_examples(split), f"reading {self._name}", " pairs", leave=False, delay=1) as bar:
      for texts in self.get_dataset(split, shuffle=False).as_numpy_iterator():
        example_id = texts.pop("example_id").decode()
        of_example: dict[str, Any] = {
            name: tuple(text.decode() for text in value.tolist()) if name in shards.LISTS else value.decode()
            for name, value in texts.items()}
        yield shards.pair(Example(**of_example), example_id)
        bar.update()
    return []

  parse, record_fields, content = RecordSource.parse, RecordSource.record_fields, RecordSource.content
