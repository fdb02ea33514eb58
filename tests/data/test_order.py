"""Which examples a step trains on, by arithmetic alone: complete, in proportion, alike for everybody, at any step."""

import itertools
from collections import Counter

import numpy as np
import pytest

from gtr_jax.data.order import Draws, Streams, TaskOrder, permutation, random_bits

SIZES = np.array([16, 16, 16, 5, 16, 16, 9])  # 94 in all.


def records(pieces):
  return [(piece.block, i) for piece in pieces for i in range(piece.first, piece.last)]


def test_random_numbers_that_no_library_changes():
  """The published sequence of SplitMix64 from seed 1234567 (rosettacode.org, "Pseudo-random numbers/Splitmix64")."""
  assert random_bits(1234567, np.arange(5)).tolist() == [
      6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
  assert sorted(permutation(2**63, 1000)) == list(range(1000))


def test_an_epoch_has_every_record_once_in_an_order_of_its_own():
  order = TaskOrder(SIZES, 3)
  epochs = [records(order.pieces(94 * n, 94 * (n + 1))) for n in range(3)]
  assert all(sorted(epoch) == sorted((block, i) for block, size in enumerate(SIZES) for i in range(size))
             for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 3
  far = 94 * 10**9
  assert sorted(records(order.pieces(far, far + 94))) == sorted(epochs[0])
  in_parts = [records(order.pieces(start, stop)) for start, stop in itertools.pairwise([0, 1, 50, 93, 94, 140])]
  assert sum(in_parts, []) == records(order.pieces(0, 140))
  assert records(TaskOrder(SIZES, None).pieces(15, 18)) == [(0, 15), (1, 0), (1, 1)]


def test_tasks_are_drawn_in_proportion():
  draws = Draws([3.0, 1.0, 0.0, 1e-9], 5)
  drawn = np.array([draws.task(i) for i in range(3000)])
  counts = np.bincount(drawn, minlength=4)
  assert abs(counts[0] / 3000 - 0.75) < 0.03 and counts[2] == 0
  for stop in (0, 1, 1234, 3000):
    assert draws.before(stop).tolist() == np.bincount(drawn[:stop], minlength=4).tolist()
  cycle = 1 << 16
  assert abs(draws.before(cycle) - np.array([49151, 16384, 0, 1])).max() <= 1  # Each once at least.
  assert draws.before(10**6 * cycle).tolist() == (10**6 * draws.before(cycle)).tolist()


def batches(streams, steps, groups, sizes=SIZES):
  """Of each step: (task, record) of all groups, in order."""
  ends = np.cumsum(sizes) - sizes
  made, rng = [], np.random.default_rng(0)
  lengths = rng.integers(1, 100, (len(streams.streams) + 5, sizes.sum()))
  for step in steps:
    stream, window, row = streams.place(step)
    made.append([])
    for group in range(groups):
      found = [(task, int(ends[block] + i)) for task, piece in streams.streams[stream].pieces(window, group)
               for block, i in records([piece])]
      length = np.array([lengths[task, i] for task, i in found])
      dealt = streams.streams[stream].deal(window, group, length, length)
      assert sorted(dealt.ravel().tolist()) == list(range(len(found)))
      made[-1] += [found[i] for i in dealt[row]]
  return made, lengths


def test_a_window_is_dealt_completely_and_evenly():
  sizes = np.full(200, 16)
  streams = Streams([TaskOrder(sizes, 1)], [1.0], 32, 2, 9, False, 100)
  steps = streams.streams[0].steps
  assert steps == 3200 // 4 // 32
  made, lengths = batches(streams, range(steps * 4), 2, sizes)
  assert sorted(record for batch in made for _, record in batch) == list(range(3200))
  totals = [sum(lengths[record] for record in batch) for batch in made]
  by_chance = lengths[0].std() * 32 ** 0.5
  assert np.std([[lengths[r] for r in batch] for batch in made], axis=1).min() > 15  # Each has short and long ones,
  assert np.std(totals[:steps]) < by_chance / 3  # and as much as the others.


@pytest.mark.parametrize("one_task", [False, True])
def test_a_mixture_takes_its_tasks_in_turn_and_completely(one_task):
  orders = [TaskOrder(SIZES, 1), TaskOrder(SIZES, 2)]
  streams = Streams(orders, [2.0, 1.0], 8, 4, 9, one_task, 100)
  made, _ = batches(streams, range(300), 4)
  assert all(len(batch) == 8 for batch in made)
  tasks = Counter(task for batch in made for task, _ in batch)
  assert abs(tasks[0] / 2400 - 2 / 3) < 0.06
  for task in range(2):
    times = Counter(record for batch in made for of, record in batch if of == task)
    assert set(times) == set(range(94)) and max(times.values()) - min(times.values()) <= 2
  if one_task:
    assert all(len({task for task, _ in batch}) == 1 for batch in made)
  far = batches(streams, [10**9], 4)[0]
  assert far == batches(streams, [10**9], 4)[0] and len(far[0]) == 8


def test_small_data_repeat_within_a_batch():
  streams = Streams([TaskOrder(np.array([5]), 1)], [1.0], 16, 2, 9, False, 100)
  (batch,), _ = batches(streams, [0], 2, np.array([5]))
  assert sorted(Counter(record for _, record in batch).values()) == [3, 3, 3, 3, 4]
