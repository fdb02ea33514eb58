"""What `pipeline` asks of TensorFlow: datasets and their states. Apart, because TensorFlow takes seconds to import."""

import contextlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtr_jax.io import data_root, tensorflow_log

tensorflow_log.quiet()

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

from gtr_jax.errors import InputError  # noqa: E402

tf.config.set_visible_devices([], "GPU")  # TensorFlow would seize the memory that jax needs.


def shard_info(index: int, count: int) -> Any:
  """What seqio takes to read one of `count` parts."""
  return seqio.ShardInfo(index=index, num_shards=count) if count > 1 else None


def of_queries(dataset: tf.data.Dataset, fraction: float) -> tf.data.Dataset:
  """The pairs whose query is in the share of the data that is trained on, by its hash."""
  def is_taken(pair):
    return tf.cast(pair["query_hash"] % 1_000_003, tf.float64) < fraction * 1_000_003

  return dataset.filter(is_taken) if fraction < 1 else dataset


def drawn(parts: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int) -> tf.data.Dataset:
  """Elements of all parts, each from one that is drawn by its rate."""
  return parts[0] if len(parts) == 1 else tf.data.Dataset.sample_from_datasets(list(parts), rates, seed=seed)


def with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Deterministic, and with a state that can be saved."""
  options = tf.data.Options()
  options.deterministic = True
  # A symbolic state would be smaller but read the buffered examples again.
  options.experimental_symbolic_checkpoint = False
  # Its thread is not woken where an iterator is done with, so that each pass over validation data waits seconds for it.
  options.autotune.enabled = False
  return dataset.with_options(options)


@contextlib.contextmanager
def input_errors(name: str) -> Iterator[None]:
  """What TensorFlow says of data it cannot read, in one line."""
  try:
    yield
  except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError) as e:
    message = re.sub(r"\{\{.*?\}\}|\[\[.*|\[Op:.*|\n\t.*", "", e.message, flags=re.DOTALL)
    message = re.sub(r'assertion failed: \["?(.*?)"?\]', r"\1", " ".join(message.split()))
    if isinstance(e, tf.errors.DataLossError):
      message += (f"; fetch the file again, or delete {data_root.data_dir() / 'cache'} if it is there: that is made "
                  "again; what gtr-jax prepare has written, remove and prepare again")
    raise InputError(f"{name}: {message}") from e


def pack(iterator: tf.data.Iterator, info: Mapping[str, Any]) -> bytes:
  """The iterator's state and `info` as one zip file."""
  out = io.BytesIO()
  with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(out, "w") as archive:
    tf.train.Checkpoint(iterator=iterator).write(os.path.join(folder, "state"))
    for path in sorted(Path(folder).iterdir()):
      archive.write(path, path.name)
    archive.writestr("info.json", json.dumps(info))
  return out.getvalue()


def unpack(state: bytes, iterator: tf.data.Iterator, made_from: Mapping[str, Any]) -> dict[str, Any]:
  """Puts the iterator into the packed state and returns its `info`. Raises InputError where it is of other data."""
  with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(io.BytesIO(state)) as archive:
    info = json.loads(archive.read("info.json"))
    for k, now in made_from.items():
      was = info["made_from"].get(k)
      if was != now:
        other = ": other data, or another part of them held out" * (k == "mixture_or_task_name")
        raise InputError(f"the checkpoint's input state was made with {k} {was}, this run has {now}{other}; train as "
                         "before, or start in another MODEL_DIR (--output)")
    archive.extractall(folder)
    tf.train.Checkpoint(iterator=iterator).read(os.path.join(folder, "state")).assert_consumed()
  return info
