"""Tasks of seqio that `add_pair_task` has not declared: the features of all their examples, written once.

Such a task may do anything to its data (filter it, make several examples of one), so there is no record whose number
says where an example is. Its preprocessors run once, without shuffling and with seed 0, and what they give is shuffled
on disk like JSON lines.
"""

import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from gtr_jax.data import datasets, shards
from gtr_jax.data.batch_sizes import Lengths
from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.data.registered import files_of, there
from gtr_jax.io.bars import Bar
from gtr_jax.io.contents import content_hash
from gtr_jax.prepare import buckets
from gtr_jax.prepare.records import key_of

_TEXTS = ("inputs_pretokenized", "targets_pretokenized")  # As seqio's `tokenize` keeps them.
_LOOKED_AT = 64  # Examples that say whether a task still gives what was written.


def written(task: Any, split: str, use_cached: bool, lengths: Lengths,
            converter: DualEncoderFeatureConverter) -> tuple[list[str], Callable]:
  """The TFRecord files of the model features of a task's examples, and what parses a record of them.

  They are written anew where the task's files, its preprocessors' modules or what they make of the first examples have
  changed.
  """
  made = task.get_dataset(lengths.of_task, split=split, use_cached=use_cached, shuffle=False, seed=0, num_epochs=1,
                          try_in_mem_cache=False)
  spec = converter(made, lengths.of_converter).element_spec  # Which says what is wrong with its features.

  @tf.autograph.experimental.do_not_convert
  def with_texts(example):
    return (converter.convert(example, lengths.of_converter),
            {name: example[name] for name in _TEXTS if name in example})

  dataset = made.map(with_texts, num_parallel_calls=tf.data.AUTOTUNE)
  with datasets.input_errors(task.name):
    first = hashlib.sha256(b"".join(
        _serialize(*found) for found in dataset.take(_LOOKED_AT).as_numpy_iterator())).hexdigest()
  files = list(map(epath.Path, there(files_of(task, split, use_cached))))
  made_of = ["task", task.name, split, use_cached, sorted((name, str(of)) for name, of in spec.items()), first,
             [content_hash(file) for file in files], list(map(_code, task.preprocessors))]

  def records(split: str) -> Generator[tuple[bytes, bytes], None, list[str]]:
    del split
    with (datasets.input_errors(task.name),
          Bar(None, f"reading {task.name}", " examples", leave=False, delay=1) as bar):
      for number, example in enumerate(dataset.as_numpy_iterator()):
        yield buckets.hash_of(str(number)), _serialize(*example)
        bar.update()
    return []

  size = sum(file.stat().length for file in files)
  described = {"sources": [f"{task.name}, {split}", *map(os.fspath, files)]}
  done = shards.written_once(made_of, lambda: [split], records, size, described, are_pairs=False)
  description = {name: tf.io.FixedLenFeature(of.shape, tf.string if of.dtype == tf.string else tf.int64)
                 for name, of in spec.items()}

  def parse(records):
    return {name: tf.cast(value, spec[name].dtype) if spec[name].dtype != tf.string else value
            for name, value in tf.io.parse_example(records, description).items()}

  return done.files, parse


def _serialize(example: dict, texts: dict) -> bytes:
  """Of model features, and of the texts that they were made of, whose hashes are theirs, but not beside negatives: of
  those there are tokens only."""
  feature, keys = {}, {name: int(key_of(text.decode(errors="replace"))) for name, text in texts.items()
                       if "negative_text_hash" not in example}
  known = example["known_hash"] * 0
  known[0] = keys.get("inputs_pretokenized", example["known_hash"][0])
  hashes = {"query_hash": keys.get("inputs_pretokenized"), "passage_hash": keys.get("targets_pretokenized"),
            "text_hash": keys.get("targets_pretokenized"), "known_hash": known}
  for name, value in (example | {name: np.asarray(of) for name, of in hashes.items() if of is not None}).items():
    if isinstance(value, bytes):
      feature[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    else:
      feature[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value.reshape(-1).tolist()))
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def _code(preprocessor: Any) -> str:
  """A hash of the file that a preprocessor is in, with its arguments."""
  arguments = ""
  while isinstance(preprocessor, functools.partial):
    arguments += repr((preprocessor.args, sorted(preprocessor.keywords.items())))
    preprocessor = preprocessor.func
  try:
    file = inspect.getsourcefile(inspect.unwrap(preprocessor))
    code = epath.Path(file).read_bytes() if file else b""
  except (TypeError, OSError):
    code = repr(type(preprocessor)).encode()
  return hashlib.sha256(code + re.sub(r" at 0x[0-9a-f]+", "", arguments).encode()).hexdigest()
