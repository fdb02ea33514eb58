"""A model of one layer and endless synthetic batches with the data pipeline's interface, for the training tests."""

from typing import NamedTuple

import numpy as np

from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.batch import Batch, make_batch

VOCAB, PAIRS = 64, 16


def tiny_model(dropout_rate: float = 0.0, emb_dim: int = 16, projection_dim: int = 8) -> DualEncoder:
  config = T5Config(vocab_size=VOCAB, emb_dim=emb_dim, num_heads=2, head_dim=8, mlp_dim=32, num_layers=1,
                    dropout_rate=dropout_rate)
  return DualEncoder(config, projection_dim=projection_dim)


def tiny_loss(**options) -> InBatchLoss:
  return InBatchLoss(**{"temperature": 0.1, **options})


def tiny_batch(number: int, groups: int) -> Batch:
  """Pairs whose passages repeat some of the query's tokens, so that there is something to learn."""
  rng = np.random.default_rng(number)
  left = rng.integers(1, VOCAB, (PAIRS, 6)).astype(np.int32)
  right = np.concatenate([left[:, :4], rng.integers(1, VOCAB, (PAIRS, 4)).astype(np.int32)], axis=1)
  right[::3, 6:] = 0
  hashes = {name: rng.integers(1, 1 << 60, PAIRS) for name in ("query_hash", "passage_hash", "text_hash")}
  return make_batch({"left_encoder_input_tokens": left, "right_encoder_input_tokens": right, **hashes}, groups)


class Item(NamedTuple):
  batch: Batch
  ids: list[str]
  input_state: bytes | None


class TinyBatches:
  """Batch n is `tiny_batch(n)`; the input state is n in ASCII. Once begun, two batches are always ready."""

  def __init__(self, groups: int = 1, wants_state=lambda number: False, end: int | None = None):
    self.groups, self.wants_state, self.end = groups, wants_state, end
    self.number = 0
    self.stopped = self.closed = False
    self.yielded = []

  def restore(self, input_state: bytes) -> None:
    self.number = int(input_state)

  def __iter__(self):
    while self.number != self.end:
      self.number += 1
      self.yielded.append(self.number)
      state = b"%d" % self.number if self.wants_state(self.number) else None
      yield Item(tiny_batch(self.number, self.groups), [f"train.jsonl:{self.number}.{i}" for i in range(PAIRS)], state)

  def stop(self) -> None:
    if not self.stopped:
      self.stopped, self.end = True, self.number + (2 if self.yielded else 0)

  def state_after_last(self) -> bytes:
    assert self.number == self.end
    return b"%d" % self.number

  def close(self) -> None:
    self.closed = True
