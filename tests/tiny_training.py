"""A model of one layer and endless synthetic batches with the data pipeline's interface, for the training tests."""

from typing import NamedTuple

import numpy as np

from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.batch import Batch, make_batch

VOCAB, PAIRS = 64, 16


def tiny_model(projection_dim: int = 8, **options) -> DualEncoder:
  config = T5Config(**{"vocab_size": VOCAB, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32,
                       "num_layers": 1, "dtype": "float32", **options})
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


class TinyBatches:
  """Batch n is `tiny_batch(n)`."""

  made_from = {"tiny batches": 1}

  def __init__(self, groups: int = 1, end: int | None = None):
    self.groups, self.end = groups, end
    self.number = 0
    self.closed = False
    self.yielded = []

  def go_on_after(self, number: int, made_from: dict) -> None:
    assert made_from == self.made_from
    self.number = number

  def __iter__(self):
    while self.number != self.end:
      self.number += 1
      self.yielded.append(self.number)
      yield Item(tiny_batch(self.number, self.groups), [f"train.jsonl:{self.number}.{i}" for i in range(PAIRS)])

  def close(self) -> None:
    self.closed = True
