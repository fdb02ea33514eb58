"""A model of one layer, as the beginning of a gin file."""


def tiny_model(vocab_size: int, emb_dim: int) -> str:
  """Imports and bindings; a file may go on with others."""
  return f"""
from __gin__ import dynamic_registration
from gtr_jax.models import dual_encoder
from gtr_jax.models import t5
include 'models/t5_1_0.gin'
t5.T5Config.vocab_size = {vocab_size}
t5.T5Config.emb_dim = {emb_dim}
t5.T5Config.num_heads = 2
t5.T5Config.head_dim = {emb_dim // 2}
t5.T5Config.mlp_dim = {2 * emb_dim}
t5.T5Config.num_layers = 1
"""
