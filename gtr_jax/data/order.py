"""Which examples a step trains on: a function of the seed and the step, whoever asks, and for a step far ahead too.

The records of a task lie on disk in blocks, shuffled when they were written. Its order is endless: an epoch after the
other, each through all records once, the blocks in an order of its own. A group (what one data shard of the mesh holds
of a batch) takes its examples of some steps, a window, from one stretch of that order: it reads a few blocks in one
piece and nothing else. Within the window they are dealt to the steps so that each gets as many tokens as the others.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gtr_jax.text.packing import balance

ORDER = 2  # Raise it when the batches of a seed change.
_CYCLE = 1 << 16  # Draws among tasks, in which each has its exact share.
_WINDOW, _WINDOW_BYTES = 1 << 14, 64 << 20  # Examples of all groups that a window has; fewer, if they are long,
_EPOCH_SHARE = 4  # or more than this part of an epoch.


class Piece(NamedTuple):
  """Records `first` to `last` (exclusive) of a block, in an epoch."""

  epoch: int
  block: int
  first: int
  last: int


class Place(NamedTuple):
  """Where the examples of a step are: in a row of a window of a stream."""

  stream: int
  window: int
  row: int


def key_of(*parts: int | float | str | bytes) -> int:
  """64 bits of what is named."""
  return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())


def random_bits(key: int, numbers: np.ndarray) -> np.ndarray:
  """uint64, as many as `numbers`: SplitMix64 (Steele et al. 2014), which no version of a library changes."""
  x = np.uint64(key) + (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return x ^ x >> np.uint64(31)


def permutation(key: int, count: int) -> np.ndarray:
  """int64 `[count]`."""
  return np.argsort(random_bits(key, np.arange(count)), kind="stable")


class TaskOrder:
  """The endless order of the records of a task.

  Args:
    block_sizes: int `[blocks]`, how many records each has.
    key: of the order; None: it is that of the blocks.
  """

  def __init__(self, block_sizes: np.ndarray, key: int | None):
    self._sizes, self._key = np.asarray(block_sizes, np.int64), key
    self.epoch_size = int(self._sizes.sum())
    self._of_epoch = functools.lru_cache(maxsize=2)(self._blocks)

  def _blocks(self, epoch):
    """The blocks in the order of an epoch, and where each ends in it."""
    order = np.arange(len(self._sizes))
    if self._key is not None:
      order = permutation(key_of(self._key, epoch), len(self._sizes))
    return order, np.cumsum(self._sizes[order])

  def pieces(self, start: int, stop: int) -> Iterator[Piece]:
    """What is at places `start` to `stop` (exclusive), in order."""
    while start < stop:
      epoch, at = divmod(start, self.epoch_size)
      blocks, ends = self._of_epoch(epoch)
      i = int(np.searchsorted(ends, at, side="right"))
      block = int(blocks[i])
      first = at - int(ends[i] - self._sizes[block])
      last = min(int(self._sizes[block]), first + stop - start)
      yield Piece(epoch, block, first, last)
      start += last - first


class Draws:
  """An endless sequence of tasks: in 65,536 draws each has its share by its rate, to within one, but at least one.

  Args:
    rates: of the tasks; a task of rate 0 is never drawn.
    key: of the sequence.
  """

  def __init__(self, rates: Sequence[float], key: int):
    self._key = key
    shares = np.asarray(rates, float) / sum(rates) * _CYCLE
    counts = np.where(shares > 0, np.maximum(1, np.floor(shares)), 0).astype(np.int64)
    for task in np.argsort(counts - shares, kind="stable")[:_CYCLE - counts.sum()]:
      counts[task] += 1
    counts[np.argmax(counts)] += _CYCLE - counts.sum()  # Where very rare tasks have been rounded up.
    self._counts = counts
    self._of_cycle = functools.lru_cache(maxsize=2)(self._cycle)

  def _cycle(self, number):
    tasks = np.repeat(np.arange(len(self._counts)), self._counts)
    return tasks if np.count_nonzero(self._counts) == 1 else tasks[permutation(key_of(self._key, number), _CYCLE)]

  def before(self, draw: int) -> np.ndarray:
    """int64 `[tasks]`: how often each was drawn before this draw."""
    cycle, rest = divmod(draw, _CYCLE)
    counts = cycle * self._counts
    return counts + np.bincount(self._of_cycle(cycle)[:rest], minlength=len(counts)) if rest else counts

  def task(self, draw: int) -> int:
    """Which one is drawn."""
    cycle, rest = divmod(draw, _CYCLE)
    return int(self._of_cycle(cycle)[rest])


class Stream:
  """Batches of examples of some tasks, each example's task drawn by the rates.

  Args:
    orders: of the tasks.
    rates: of the tasks.
    batch_size: examples in the global batch.
    groups: data shards of the global batch.
    key: of everything that is drawn.
    window: examples of all groups that a window has, about.

  Attributes:
    steps: of a window.
  """

  def __init__(self, orders: Sequence[TaskOrder], rates: Sequence[float], batch_size: int, groups: int, key: int,
               window: int):
    self._orders, self._key, self._groups = orders, key, groups
    self._draws, self._of_group = Draws(rates, key_of(key, "draws")), batch_size // groups
    used = [order.epoch_size * sum(rates) / rate for order, rate in zip(orders, rates, strict=True) if rate]
    self.steps = max(1, min(window, int(min(used)) // _EPOCH_SHARE) // batch_size)

  def pieces(self, window: int, group: int) -> list[tuple[int, Piece]]:
    """What a group reads for a window: (task, piece) pairs, of `steps` times the group's part of a batch."""
    count = self.steps * self._of_group
    start = (window * self._groups + group) * count
    ranges = zip(self._draws.before(start), self._draws.before(start + count), strict=True)
    return [(task, piece) for task, (first, last) in enumerate(ranges)
            for piece in self._orders[task].pieces(int(first), int(last))]

  def deal(self, window: int, group: int, query_sizes: np.ndarray, passage_sizes: np.ndarray) -> np.ndarray:
    """Deals a window's examples to its steps.

    Args:
      window: its number.
      group: likewise.
      query_sizes: int `[examples]`, how long each query is.
      passage_sizes: the same of passages with their negatives.

    Returns:
      int64 `[steps, examples of a step]`: by chance, but with equal sums of sizes.
    """
    order = permutation(key_of(self._key, "deal", window, group), len(query_sizes))
    dealt = balance(query_sizes[order], passage_sizes[order], self.steps) if self.steps > 1 else np.arange(len(order))
    return order[dealt].reshape(self.steps, -1)


class Streams:
  """One stream of all tasks; or one for each task, of which every batch is of one.

  Args:
    orders: of the tasks.
    rates: of the tasks.
    batch_size: see `Stream`.
    groups: see `Stream`.
    seed: of everything.
    one_task_per_batch: take all examples of a batch from one task.
    record_bytes: how long a record is on average.
  """

  def __init__(self, orders: Sequence[TaskOrder], rates: Sequence[float], batch_size: int, groups: int, seed: int,
               one_task_per_batch: bool, record_bytes: int):
    apart = one_task_per_batch and len(orders) > 1
    window = min(_WINDOW, _WINDOW_BYTES // max(1, record_bytes)) // (len(orders) if apart else 1)
    self._draws = Draws(rates, key_of(seed, "tasks of batches")) if apart else None
    shares = [[float(task == of) for task in range(len(orders))] for of in range(len(orders))] if apart else [rates]
    self.streams = [Stream(orders, share, batch_size, groups, key_of(seed, number), window)
                    for number, share in enumerate(shares)]

  def place(self, step: int) -> Place:
    """Of the examples of a step; 0 is the first."""
    stream, number = 0, step
    if self._draws:
      stream = self._draws.task(step)
      number = int(self._draws.before(step)[stream])
    return Place(stream, *divmod(number, self.streams[stream].steps))
