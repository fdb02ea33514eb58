"""Who is in which batch where many wait: by a clock that runs as fast as batches would be encoded."""

import types

import jax
import numpy as np
from tiny_model_dir import write_model_dir

from gtr_jax.inference.load import load_model
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.serving import batching

_SLOTS_PER_SECOND = 45_000


def test_neither_large_requests_nor_small_ones_starve(tmp_path, monkeypatch):
  """64 clients, each of which sends 1 to 32 texts when it has its answer, and five queries a second beside them."""
  clock, rng = types.SimpleNamespace(now=0.0), np.random.default_rng(0)
  monkeypatch.setattr(batching, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
  model = load_model(write_model_dir(tmp_path / "run", seeds=(0,)), make_mesh(devices=jax.devices()[:1]))
  monkeypatch.setitem(model.lengths, "document", 256)
  batcher, answered, sent, fills = batching.Batcher(model), {False: [], True: []}, 0, []

  def ask(is_query):
    nonlocal sent
    lengths = [18] if is_query else np.clip(rng.normal(104, 49, rng.integers(1, 33)), 3, 256).astype(int).tolist()
    texts = []
    for length in lengths:
      sent += 1
      texts.append(np.asarray([sent, *[7] * (length - 1)], np.int32))
    began = clock.now

    def done(_):
      answered[is_query].append(clock.now - began)
      if not is_query:
        ask(False)

    batcher.submit(texts, "passage", done)

  for _ in range(64):
    ask(False)
  for _ in range(1000):
    while len(answered[True]) + 1 < 5 * clock.now and not any(job.embeddings.shape[0] == 1 for job in batcher._turns):
      ask(True)
    rows, shape, _ = batcher._choose()
    texts = [text for row in rows for _, text in row]
    assert all(len(row) <= shape.texts_of_row for row in rows) and len(rows) <= shape.rows
    assert all(begin + len(text.tokens) <= shape.length for row in rows for begin, text in row)
    fills.append(sum(len(text.tokens) for text in texts) / (shape.rows * shape.length))
    places = np.asarray([r * shape.texts_of_row + i for r, row in enumerate(rows) for i in range(len(row))])
    clock.now += shape.rows * shape.length / _SLOTS_PER_SECOND
    batcher._finish(texts, places, np.zeros((1, shape.texts, model.encoder.dim), np.float32), clock.now - .01,
                    shape.rows * shape.length)
  large = answered[False][64:]
  assert np.mean(fills) > .96
  assert np.percentile(large, 99) < 1.4 * np.median(large)
  assert np.percentile(answered[True], 99) < .2
