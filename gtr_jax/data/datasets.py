"""What the input pipeline asks of TensorFlow beside its tasks. Apart, because TensorFlow takes seconds to import."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gtr_jax.io import data_root, tensorflow_log

tensorflow_log.quiet()

import tensorflow as tf  # noqa: E402

from gtr_jax.errors import InputError  # noqa: E402

Examples = Mapping[str, tf.Tensor | tf.RaggedTensor]
"""Of several examples, each value `[examples, …]`."""

_AT_ONCE = 128  # Examples.

tf.config.set_visible_devices([], "GPU")  # TensorFlow would seize the memory that jax needs.


def many_at_once(dataset: tf.data.Dataset, function: Callable[..., Examples],
                 finish: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> tf.data.Dataset:
  """What `function` makes of the dataset's examples, then `finish` of each.

  Of a single example most of the time would go into calls.
  """
  function, finish = map(tf.autograph.experimental.do_not_convert, (function, finish))
  return dataset.ragged_batch(_AT_ONCE).map(function, num_parallel_calls=tf.data.AUTOTUNE).unbatch().map(finish)


@contextlib.contextmanager
def input_errors(name: str) -> Iterator[None]:
  """What TensorFlow says of data it cannot read, in one line."""
  try:
    yield
  except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError) as e:
    message = re.sub(r'Graph execution error:.*File "[^"]*", line \d+, in \S+', "", e.message, flags=re.DOTALL)
    message = re.sub(r"\{\{.*?\}\}|\[\[.*|\[Op:.*|\n\t.*", "", message, flags=re.DOTALL)
    message = re.sub(r'assertion failed: \["?(.*?)"?\]', r"\1", " ".join(message.split()))
    if isinstance(e, tf.errors.DataLossError):
      message += (f"; fetch the file again, or delete {data_root.data_dir() / 'cache'} if it is there: that is made "
                  "again; what gtr-jax prepare has written, remove and prepare again")
    raise InputError(f"{name}: {message}") from e
