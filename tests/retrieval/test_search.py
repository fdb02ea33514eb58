"""Exact search equals brute force, ties included, on any number of devices."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gtr_jax.errors import InputError
from gtr_jax.retrieval import host_ranking, search
from gtr_jax.retrieval.search import Searcher, search_run


def brute_force(corpus, queries, k):
  scores = queries.astype(np.float64) @ corpus.T.astype(np.float64)
  rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(scores, rows, 1), rows


@pytest.fixture(params=["host", "devices"], autouse=True)
def where(request, monkeypatch):
  """Where the best are chosen: on CPUs the host, elsewhere the devices."""
  monkeypatch.setattr(search, "_on_host", lambda mesh: request.param == "host")
  return request.param


def mesh_of(*shape):
  axes = ("data", "fsdp", "model")[:len(shape)]
  return jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
                       devices=jax.devices()[:np.prod(shape)])


def whole_numbers(rng, *shape):
  """Small integers: products are exact, so many scores are equal."""
  return rng.integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize(("mesh", "keep"), [((1,), False), ((4, 1, 2), True), ((6,), True), ((7,), False)])
@pytest.mark.parametrize(("rows", "k"), [(1000, 10), (1000, 700), (3000, 7), (5, 10)])
def test_equals_brute_force_with_ties_at_the_cut(mesh, keep, rows, k, monkeypatch):
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 384)  # Several blocks, the last not full.
  rng = np.random.default_rng(rows + k)
  corpus, queries = whole_numbers(rng, rows, 6), whole_numbers(rng, 11, 6)
  scores, found = Searcher(corpus, mesh_of(*mesh), keep).search(queries, k)
  expected_scores, expected = brute_force(corpus, queries, k)
  assert scores.dtype == np.float32
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(scores, expected_scores)
  if k < rows:
    next_scores, _ = brute_force(corpus, queries, k + 1)
    assert (next_scores[:, k] == next_scores[:, k - 1]).any()  # There were ties at the cut to get wrong.


@pytest.mark.parametrize("mesh", [(1,), (4, 1, 2), (7,)])
@pytest.mark.parametrize("rows", [range(1000), range(130, 140), range(383, 385), range(400, 1000), range(999, 1000)])
def test_searches_some_rows_as_if_there_were_no_others(mesh, rows, monkeypatch):
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 384)
  rng = np.random.default_rng(rows.start)
  corpus, queries = whole_numbers(rng, 1000, 6), whole_numbers(rng, 11, 6)
  searcher = Searcher(corpus, mesh_of(*mesh))
  scores, found = searcher.search(queries, 20, rows=rows)
  expected_scores, expected = brute_force(corpus[rows.start:rows.stop], queries, 20)
  np.testing.assert_array_equal(found, expected + rows.start)
  np.testing.assert_array_equal(scores, expected_scores)
  assert searcher.search(queries, 20, rows=range(7, 7))[0].shape == (11, 0)


def test_devices_merge_in_pairs():
  """What one holds at a time is twice what it has found, and not what all have."""
  mesh, k = mesh_of(8), 20
  shapes = jax.ShapeDtypeStruct((16, 8), np.float32), jax.ShapeDtypeStruct((8 * 96, 8), np.float32)
  first, limits = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((), (2,)))
  best = [jax.ShapeDtypeStruct((16, k), t) for t in (np.float32, np.int32)]
  text = search._search_block.lower(*shapes, first, limits, *best, mesh=mesh).compile().as_text()
  assert len(re.findall(r" collective-permute(?:-start)?\(", text)) == 2 * 3
  assert "all-gather" not in text and not re.search(rf"\[16,{8 * k}\]", text)


def test_two_steps_are_used_and_exact_for_wide_rows():
  """All scores equal but few: the chunks' maxima tie as well."""
  rng = np.random.default_rng(1)
  corpus = np.ones((20_000, 1), np.float32)
  corpus[rng.choice(20_000, 5, replace=False)] = 2
  queries = np.asarray([[1.0], [-1.0], [0.0]], np.float32)
  _, found = Searcher(corpus, mesh_of(1)).search(queries, 40)
  assert 4 * 40 * search.CHUNK <= 20_000
  np.testing.assert_array_equal(found, brute_force(corpus, queries, 40)[1])


def test_negative_zero_ties_with_zero():
  corpus = np.asarray([[0.0], [-0.0], [0.0], [-0.0]], np.float32)
  _, found = Searcher(corpus, mesh_of(1)).search(np.ones((1, 1), np.float32), 4)
  assert found.tolist() == [[0, 1, 2, 3]]


def test_more_queries_than_one_program_takes(monkeypatch):
  monkeypatch.setattr(search, "MAX_QUERIES", 8)
  rng = np.random.default_rng(2)
  corpus, queries = whole_numbers(rng, 100, 4), whole_numbers(rng, 21, 4)
  _, found = Searcher(corpus, mesh_of(2)).search(queries, 3)
  np.testing.assert_array_equal(found, brute_force(corpus, queries, 3)[1])


def test_the_mesh_around_the_call_does_not_matter():
  with jax.set_mesh(mesh_of(2, 2)):
    scores, rows = Searcher(np.float32([[1], [3], [2]]), mesh_of(4)).search(np.ones((1, 1), np.float32), 2)
  assert (scores.tolist(), rows.tolist()) == ([[3, 2]], [[1, 2]])


def test_a_search_compiles_once_for_all_blocks_and_calls(where, monkeypatch):
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 32)
  rng = np.random.default_rng(3)
  searcher = Searcher(whole_numbers(rng, 300, 5), mesh_of(2))
  program = host_ranking._scores if where == "host" else search._search_block
  program.clear_cache()
  for _ in range(2):
    searcher.search(whole_numbers(rng, 3, 5), 4)
  assert program._cache_size() == 1


def test_the_memory_of_scores_is_used_again(where):
  """Also after a search for other numbers of queries and results, which neither disturbs nor is disturbed."""
  rng = np.random.default_rng(4)
  corpus, many, few = whole_numbers(rng, 3000, 6), whole_numbers(rng, 40, 6), whole_numbers(rng, 3, 6)
  searcher = Searcher(corpus, mesh_of(2))
  for queries, k in ((many, 1000), (few, 3), (many, 2), (many, 7)):
    _, found = searcher.search(queries, k)
    np.testing.assert_array_equal(found, brute_force(corpus, queries, k)[1])
  if where == "host":
    pointers = [shard.data.unsafe_buffer_pointer() for shard in searcher._memory.addressable_shards]
    searcher.search(many, 7)
    assert [shard.data.unsafe_buffer_pointer() for shard in searcher._memory.addressable_shards] == pointers


def test_a_cpu_of_this_process_is_the_host(monkeypatch):
  monkeypatch.undo()
  assert search._on_host(mesh_of(2))
  for platform, several in (("tpu", False), ("cpu", True)):
    devices = np.asarray([SimpleNamespace(platform=platform)])
    assert not search._on_host(SimpleNamespace(devices=devices, is_multi_process=several))


def test_scores_that_are_no_numbers_come_last_on_the_host():
  """They are the worst, and hide nothing of other rows."""
  scores = np.float32([[np.nan, 1, 2, np.nan, 3, 1]])
  best = [np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int32)]
  for start in (0, 3):
    best = host_ranking._merged(best, scores[:, start:start + 3], start, 3)
  assert best[1].tolist() == [[1, 2, 4]]
  best = host_ranking._merged(best, np.full((1, 4), np.nan, np.float32), 6, 3)
  assert best[1].tolist() == [[1, 2, 4]]


def test_what_is_not_kept_is_read_once_and_one_block_ahead(monkeypatch):
  """Else a host that reads faster than its devices search would fill their memory with blocks."""
  monkeypatch.setattr(search, "MAX_BLOCK_ROWS", 32)
  events = []

  class Corpus:
    shape = (128, 3)

    def __getitem__(self, rows):
      events.append(rows.start)
      return np.ones((rows.stop - rows.start, 3), np.float32)

  wait = jax.block_until_ready
  monkeypatch.setattr(search.jax, "block_until_ready", lambda x: events.append("waited") or wait(x))
  Searcher(Corpus(), mesh_of(1), keep=False).search(np.ones((1, 3), np.float32), 2)
  assert events == [0, 32, "waited", 64, "waited", 96, "waited", "waited"]


def test_run_is_in_trec_evals_order_and_can_leave_out_the_query_itself():
  doc_ids = ["d9", "d10", "d1", "c"]  # Descending, as a store keeps them.
  corpus = np.asarray([[1.0], [1.0], [1.0], [2.0]], np.float32)
  queries = np.ones((2, 1), np.float32)
  run = search_run(Searcher(corpus), doc_ids, ["d10", "c"], queries, 2, progress=False)
  assert run["d10"].doc_ids == ["c", "d9"]
  run = search_run(Searcher(corpus), doc_ids, ["d10", "c"], queries, 2, exclude_own_id=True, progress=False)
  assert run["d10"].doc_ids == ["c", "d9"]
  assert run["c"].doc_ids == ["d9", "d10"]
  run = search_run(Searcher(corpus), doc_ids, ["d9"], queries[:1], 9, exclude_own_id=True, progress=False)
  assert run["d9"].doc_ids == ["c", "d10", "d1"]
  assert run["d9"].scores.tolist() == [2, 1, 1]


def test_bad_input():
  with pytest.raises(InputError, match="size 3"):
    Searcher(np.ones((2, 3), np.float32)).search(np.ones((1, 4), np.float32), 1)
  with pytest.raises(InputError, match="empty"):
    Searcher(np.ones((0, 3), np.float32))
