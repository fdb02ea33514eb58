"""seqio data sources of text pairs. Constructing one touches no disk; the data root is looked at when it is used.

Every source yields examples with the features of `shards.TEXTS` (scalar strings) and `shards.LISTS` (string vectors).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from gtr_jax.data import shards
from gtr_jax.data.datasets import Examples, many_at_once
from gtr_jax.data.json_examples import OWN_FIELDS, Fields, example_of
from gtr_jax.data.tfrecord_examples import field
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.io.bars import Bar
from gtr_jax.io.contents import content_hash
from gtr_jax.io.table_folders import check_shards
from gtr_jax.prepare import manifests
from gtr_jax.prepare.of_queries import most_positives

# Few open files, each read forward: the state of a reader is a few offsets, and restoring it is a few seeks.
_OPEN_SHARDS = 8

Patterns = str | Sequence[str]


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
    check_shards([os.fspath(file) for file in found], path.name)
    files += found
  return files


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

  def most_positives(self, split: str) -> int:
    """How many other answers of its query a pair has at most, or some more."""
    raise NotImplementedError

  def made_of(self, split: str) -> list[epath.Path]:
    """The files that decide what is in a split. Raises InputError where one is not there."""
    raise NotImplementedError

  def content(self, split: str) -> str | None:
    """A hash of what the records are made from; None: they say it themselves."""
    del split
    return None

  def parse(self, records: tf.Tensor) -> Examples:
    """The examples of records."""
    return tf.io.parse_example(records, {name: tf.io.FixedLenFeature([], tf.string) for name in shards.TEXTS} | {
        name: tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64) for name in shards.LISTS})

  def get_dataset(self, split: str = "train", shuffle: bool = True, seed: int | None = None,
                  shard_info: seqio.ShardInfo | None = None, *, sequence_length: Any = None, use_cached: bool = False,
                  num_epochs: int | None = 1) -> tf.data.Dataset:
    files = self.list_shards(split)
    dataset = tf.data.Dataset.from_tensor_slices(files)
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      dataset = dataset.shuffle(len(files), seed=seed)
    dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=_OPEN_SHARDS if shuffle else 1)
    return many_at_once(dataset, self.parse)


class _FileSource(RecordSource):
  """Files of pairs, turned into shuffled shards at the first use."""

  _are_lines = True

  def list_shards(self, split: str) -> Sequence[str]:
    return self._shards(split).files

  def num_input_examples(self, split: str) -> int:
    return self._shards(split).num_examples

  def most_positives(self, split):
    return self._shards(split).most_positives

  def made_of(self, split):
    return _find(self._patterns[split], self._prepare)

  def content(self, split):
    hashes = [content_hash(path) for path in self.made_of(split)]
    return hashlib.sha256(json.dumps([self._fields, hashes]).encode()).hexdigest()

  def _shards(self, split):
    return shards.shards_of(self.made_of(split), self._fields, self._are_lines)


class JsonlSource(_FileSource):
  """JSONL or JSONL.gz, one object a line."""


class TfrecordSource(_FileSource):
  """TFRecord of tf.train.Example."""

  _are_lines = False


class PreparedSource(RecordSource):
  """What `gtr-jax prepare` has written below the data root; its records have all fields under their own names."""

  def __init__(self, name: str, splits: Sequence[str], fields: Fields, prepare: str | None):
    if any(field not in (None, own) for field, own in zip(fields, OWN_FIELDS, strict=True)):
      raise ValueError(f"prepared data {name!r} has fields of its own; declare none")
    super().__init__(dict.fromkeys(splits, name), fields, prepare)
    self._name = name

  def list_shards(self, split: str) -> Sequence[str]:
    return [os.fspath(data_root.resolve(self._name) / file) for file in self._of(split, "splits")]

  def num_input_examples(self, split: str) -> int:
    return self._of(split, "examples")

  def made_of(self, split):
    self._of(split, "splits")
    return [data_root.resolve(self._name) / "manifest.json"]

  def most_positives(self, split):
    self._of(split, "examples")
    return most_positives(manifests.read(self._name, self._prepare)["counts"])

  def _of(self, split, what):
    found = manifests.read(self._name, self._prepare)[what]
    if split not in found:
      raise InputError(f"{data_root.resolve(self._name)}: no split {split!r}, only {', '.join(found)}; prepare it with "
                       "--validation_share, or declare the splits that it has")
    return found[split]


class TfdsSource(RecordSource):
  """A dataset of TensorFlow Datasets that has been built already (`tfds build`), turned into shuffled shards."""

  def __init__(self, name: str, splits: Mapping[str, str], fields: Fields, prepare: str | None):
    self._name = name
    super().__init__(splits, fields, prepare)

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

  def num_input_examples(self, split: str) -> int:
    return self._builder().info.splits[self._patterns[split]].num_examples

  def list_shards(self, split: str) -> Sequence[str]:
    return self._shards(split).files

  def most_positives(self, split):
    return self._shards(split).most_positives

  def made_of(self, split):
    return [epath.Path(f.filename) for f in self._builder().info.splits[self._patterns[split]].file_instructions]

  def _shards(self, split):
    tfds_split = self._patterns[split]
    instructions = self._builder().info.splits[tfds_split].file_instructions
    files = [[os.path.basename(f.filename), content_hash(epath.Path(f.filename)), f.skip, f.take]
             for f in instructions]
    size = sum(epath.Path(f.filename).stat().length for f in instructions)
    described = {"sources": [f"{self._name} {tfds_split}"], "fields": self._fields._asdict()}
    return shards.written_once(["tfds", self._name, self._fields, files], lambda: [split], self._records, size,
                               described)

  def _records(self, split):
    config = tfds.ReadConfig(skip_prefetch=True, try_autocache=False, add_tfds_id=True)
    dataset = self._builder().as_dataset(self._patterns[split], shuffle_files=False, read_config=config)
    with Bar(self.num_input_examples(split), f"reading {self._name}", " pairs", leave=False, delay=1) as bar:
      for found in dataset.as_numpy_iterator():
        place = found.pop("tfds_id").decode()
        try:
          row = {name: field(np.ravel(value).tolist()) for name, value in found.items() if not isinstance(value, dict)}
          example = example_of(row, self._fields)
        except ValueError as e:
          raise InputError(f"{self._name}: {place}: {e}; correct or remove the example, or the fields that the task "
                           "declares") from e
        yield shards.pair(example, place)
        bar.update()
    return []
