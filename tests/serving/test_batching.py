"""Texts of many requests in batches: the same embeddings as alone, in turn, once, and none for who has gone."""

import threading
import time

import jax
import numpy as np
import pytest
from tiny_model_dir import sentence, write_model_dir

from gtr_jax.inference import embed, row_queue
from gtr_jax.inference.load import load_model
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.serving import shapes as shapes_module
from gtr_jax.serving.batching import Batcher
from gtr_jax.serving.shapes import Shape, shapes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_model_dir(tmp_path_factory.mktemp("batching") / "run", seeds=(0,), shared=False)


class Waiting:
  """What `done` of a job gets."""

  def __init__(self):
    self.found, self._there, self.at = None, threading.Event(), None

  def __call__(self, found):
    self.found, self.at = found, time.monotonic()
    self._there.set()

  def result(self):
    assert self._there.wait(60)
    return self.found


def numbered(*numbers, length=3):
  """Tokens of texts that differ in their first one."""
  return [np.asarray([number, *[7] * (length - 1)], np.int32) for number in numbers]


class Devices:
  """Stands for the encoder: an embedding is a text's first token; it goes on only when it is let."""

  def __init__(self, batcher, monkeypatch):
    self.batches, self.go, self.fail = [], threading.Semaphore(0), False
    monkeypatch.setattr(batcher, "_encode", self._encode)

  def _encode(self, texts, shape, tower):
    self.batches.append([int(tokens[segments == text][0])
                         for tokens, segments in zip(texts.tokens[0], texts.segment_ids[0], strict=True)
                         for text in np.unique(segments[segments > 0])])
    assert self.go.acquire(timeout=60)
    if self.fail:
      raise RuntimeError("out of memory")
    found = np.zeros((1, shape.texts, 8), np.float32)
    for tokens, segments in zip(texts.tokens[0], texts.segment_ids[0], strict=True):
      for text in np.unique(segments[segments > 0]):
        found[0, text - 1] = tokens[segments == text][0]
    return found


@pytest.fixture
def batcher(run, monkeypatch):
  """Of rows of 40 tokens, two in a batch, that encodes nothing until `devices.go` says so."""
  batcher = Batcher(load_model(run, make_mesh(devices=jax.devices()[:1])), 80)
  batcher.devices = Devices(batcher, monkeypatch)
  batcher._thread.start()
  yield batcher
  batcher.devices.go.release(1000)
  batcher.end()


def waits_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


def test_shapes():
  assert shapes(512, None, True) == {
      56: [Shape(1, 64), Shape(2, 64), Shape(4, 64)], 256: [Shape(1, 288), Shape(2, 288), Shape(4, 288), Shape(7, 288)],
      512: [Shape(1, 576), Shape(2, 576), Shape(3, 576)]}
  assert list(shapes(300, None, True)) == [56, 256, 300]
  assert shapes(32, 80, True) == {32: [Shape(1, 40), Shape(2, 40)]}
  assert [of_length[0].length for of_length in shapes(512, None, False).values()] == [128, 384, 640]
  for longest in range(1, 700):
    found = shapes(longest, None, False)
    assert max(found) == longest
    assert all(most <= of_length[0].length for most, of_length in found.items())


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1)])
def test_embeddings_are_those_of_encode(run, shape):
  model = load_model(run, make_mesh(*shape, devices=jax.devices()[:int(np.prod(shape))]))
  batches = []
  batcher = Batcher(model, 160, batches.append)
  programs = []
  batcher.start(lambda done, total: programs.append((done, total)))
  assert programs == [(i + 1, len(programs)) for i in range(len(programs))]
  rng = np.random.default_rng(0)
  asked = [([sentence(i, int(n)) for i, n in enumerate(rng.integers(1, 40, rng.integers(1, 30)))],
            ("query", "passage")[r % 2]) for r in range(20)]
  answers = []
  for texts, tower in asked:
    tokens = embed.tokenize(model, texts, {"query": "query", "passage": "document"}[tower],
                            {"query": 16, "passage": 32}[tower])
    answers.append(Waiting())
    batcher.submit(tokens, tower, answers[-1])
  for (texts, tower), answer in zip(asked, answers, strict=True):
    found = answer.result()
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() > 0.1  # A client may ask for their lengths.
    np.testing.assert_allclose(found / np.linalg.norm(found, axis=1, keepdims=True),
                               embed.embed(model, texts, tower, progress=False), rtol=0, atol=1e-6)
  batcher.end()
  assert len(batches) > 4
  assert sum(batch.tokens for batch in batches) / sum(batch.slots for batch in batches) > 0.6
  assert batcher.waiting_texts == 0 and not batcher._in_flight


def test_no_program_is_compiled_later(run):
  batcher = Batcher(load_model(run, make_mesh(devices=jax.devices()[:1])), 160)
  batcher.start()
  compiled = embed.encode_packed._cache_size()
  for number, length in ((1, 3), (5, 3), (40, 9), (200, 20), (7, 32), (3, 1)):
    answer = Waiting()
    batcher.submit(numbered(*range(2, 2 + number), length=length), "passage", answer)
    assert answer.result().shape == (number, 8)
  batcher.end()
  assert embed.encode_packed._cache_size() == compiled


def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(batcher):
  first, much, little = Waiting(), Waiting(), Waiting()
  batcher.submit(numbered(1000), "passage", first)
  waits_until(lambda: len(batcher.devices.batches) == 1)
  batcher.submit(numbered(*range(2, 202), length=30), "passage", much)
  batcher.submit(numbered(900), "passage", little)
  batcher.devices.go.release(3)  # The first, and two of the hundred that `much` takes.
  assert little.result()[0, 0] == 900
  assert much.found is None
  batcher.devices.go.release(1000)
  np.testing.assert_array_equal(much.result()[:, 0], np.arange(2, 202))


@pytest.mark.parametrize("lengths", [(30, 5), (5, 30)])
@pytest.mark.parametrize("towers", [("passage", "passage"), ("passage", "query"), ("query", "passage")])
def test_one_text_does_not_wait_for_many_of_another_length_or_tower(run, monkeypatch, lengths, towers):
  monkeypatch.setattr(row_queue, "LONGEST_IN_SHORT_ROWS", 16)
  monkeypatch.setattr(shapes_module, "_SHORTEST", 8)
  batcher = Batcher(load_model(run, make_mesh(devices=jax.devices()[:1])), 80)
  devices = Devices(batcher, monkeypatch)
  batcher._thread.start()
  first, many, one = Waiting(), Waiting(), Waiting()
  batcher.submit(numbered(1), towers[0], first)
  waits_until(lambda: len(devices.batches) == 1)
  batcher.submit(numbered(*range(2, 202), length=lengths[0]), towers[0], many)
  batcher.submit(numbered(900, length=lengths[1]), towers[1], one)
  devices.go.release(4)
  assert one.result()[0, 0] == 900
  assert many.found is None
  devices.go.release(1000)
  np.testing.assert_array_equal(many.result()[:, 0], np.arange(2, 202))
  batcher.end()


def test_the_same_text_is_encoded_once(batcher):
  first, one, two = Waiting(), Waiting(), Waiting()
  batcher.submit(numbered(1), "passage", first)
  waits_until(lambda: len(batcher.devices.batches) == 1)
  batcher.submit(numbered(5, 6, 5), "passage", one)
  batcher.submit(numbered(6, 1, 7), "passage", two)
  assert batcher.waiting_texts == 3  # 1 is being encoded.
  batcher.devices.go.release(1000)
  assert one.result()[:, 0].tolist() == [5, 6, 5]
  assert two.result()[:, 0].tolist() == [6, 1, 7]
  assert sorted(number for batch in batcher.devices.batches for number in batch) == [1, 5, 6, 7]
  again = Waiting()
  batcher.submit(numbered(5), "passage", again)  # It is not in flight any more.
  assert again.result()[0, 0] == 5 and batcher.devices.batches[-1] == [5]


def test_queries_and_documents_of_two_towers_are_not_the_same(batcher):
  one, two = Waiting(), Waiting()
  batcher.submit(numbered(5), "passage", one)
  batcher.submit(numbered(5), "query", two)
  batcher.devices.go.release(1000)
  assert one.result()[0, 0] == two.result()[0, 0] == 5
  assert batcher.devices.batches == [[5], [5]]


def test_who_has_gone_is_forgotten_and_who_shared_a_text_is_not(batcher):
  first, gone, stays, other = (Waiting() for _ in range(4))
  batcher.submit(numbered(1), "passage", first)
  waits_until(lambda: len(batcher.devices.batches) == 1)
  job = batcher.submit(numbered(5, 6, 1), "passage", gone)
  batcher.submit(numbered(6), "passage", stays)
  also = batcher.submit(numbered(8), "passage", other)
  batcher.forget(job)
  batcher.forget(also)
  assert batcher.waiting_texts == 1
  batcher.devices.go.release(1000)
  assert stays.result()[0, 0] == 6 and first.result()[0, 0] == 1
  batcher.end()
  assert gone.found is None and other.found is None
  assert batcher.devices.batches == [[1], [6]]
  assert not batcher._in_flight and not batcher._turns


def test_what_a_device_refuses_is_said_to_who_asked_and_the_next_is_answered(batcher):
  refused, one = Waiting(), Waiting()
  batcher.devices.fail = True
  batcher.submit(numbered(1, 2), "passage", refused)
  batcher.devices.go.release(1)
  assert isinstance(refused.result(), RuntimeError)
  batcher.devices.fail = False
  batcher.submit(numbered(1, 3), "passage", one)
  batcher.devices.go.release(1000)
  assert one.result()[:, 0].tolist() == [1, 3]


def test_what_is_there_is_encoded_before_the_end(batcher):
  answers = [Waiting() for _ in range(5)]
  for number, answer in enumerate(answers):
    batcher.submit(numbered(*range(2 + 100 * number, 90 + 100 * number), length=20), "passage", answer)
  batcher.devices.go.release(1000)
  batcher.end()
  assert all(answer.found is not None for answer in answers)
  with pytest.raises(RuntimeError, match="ended"):
    batcher.submit(numbered(1), "passage", Waiting())


def test_the_wait_that_is_expected(batcher):
  batcher._rate = 100.0
  batcher.submit(numbered(1), "passage", Waiting())
  waits_until(lambda: len(batcher.devices.batches) == 1)
  batcher.submit(numbered(*range(2, 102), length=20), "passage", Waiting())
  assert batcher.expected_wait() == batcher.expected_wait(2000) == 20
  # A request of a text has its turn after the first ones of the others.
  assert batcher.expected_wait(3) == 2 * 10 / 100
