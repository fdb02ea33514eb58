"""A kernel that is wrong on a chip is noticed before it trains anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_training import VOCAB, tiny_model

from gtr_jax.errors import TrainingError
from gtr_jax.models import attention_kernel
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import make_batch
from gtr_jax.training.kernel_check import check_kernel


@pytest.fixture
def check(monkeypatch):
  monkeypatch.setattr(attention_kernel, "INTERPRET", True)
  tokens = np.random.default_rng(0).integers(1, VOCAB, (8, 12)).astype(np.int32)
  features = {"left_encoder_input_tokens": tokens[:, :6], "right_encoder_input_tokens": tokens,
              "valid": np.ones(8, bool)}
  features |= {name: np.arange(8) for name in ("query_hash", "passage_hash", "text_hash")}
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(jax, "shard_map", lambda f, **specs: f)  # On one device; see test_equality.py.

  def run(microbatches=None, **options):
    model = tiny_model(num_heads=8, head_dim=16, **{"attention": "kernel", **options})
    params = nn.meta.unbox(model.init(jax.random.key(0)))
    check_kernel(model, params, make_batch(features, 1, microbatches=microbatches), mesh)

  return run


@pytest.mark.parametrize("microbatches", [None, 2])
def test_what_is_right_passes(check, microbatches):
  check(microbatches)


@pytest.mark.parametrize(("wrong", "what"), [
    ("bias_tiles", "embeddings"), ("_backward_kernel", "gradient")])
def test_what_is_wrong_is_said(check, monkeypatch, wrong, what):
  right = getattr(attention_kernel, wrong)
  if wrong == "bias_tiles":
    monkeypatch.setattr(attention_kernel, wrong, lambda *args: jnp.roll(right(*args), 1, axis=2))
  else:
    def with_other_values(*args, shape):
      right(*args, shape=shape)
      args[9][...] = 2 * args[9][...]
    monkeypatch.setattr(attention_kernel, wrong, with_other_values)
  with pytest.raises(TrainingError, match=f"attention kernel's {what} of the first batch differ .*'reference'"):
    check()
  check(attention="reference")
