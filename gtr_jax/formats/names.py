"""The arrays of a dual encoder: their names here and in T5X, their names in Hugging Face, and their shapes.

One table for both directions. T5X's tree is the native one; Hugging Face keeps every matrix but the embedding
transposed, and the projection in a file of its own (`2_Dense` of a sentence-transformers folder).
"""

from typing import NamedTuple

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config


class Name(NamedTuple):
  """One array: its path in the native tree, its name in Hugging Face, and whether that one is the transpose."""

  native: str
  huggingface: str
  shape: tuple[int, ...]
  transposed: bool = True


_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}


def encoder_names(config: T5Config) -> list[Name]:
  """The arrays of a T5 encoder, with their native shapes."""
  wide, joined = config.emb_dim, config.num_heads * config.head_dim
  names = [
      Name("token_embedder/embedding", "shared.weight", (config.vocab_size, wide), transposed=False),
      Name("encoder/relpos_bias/rel_embedding", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
           (config.num_heads, config.relpos_buckets)),
      Name("encoder/encoder_norm/scale", "encoder.final_layer_norm.weight", (wide,), transposed=False)]
  gated = len(config.mlp_activations) > 1
  for i in range(config.num_layers):
    native, block = f"encoder/layers_{i}", f"encoder.block.{i}.layer"
    names += [Name(f"{native}/pre_attention_layer_norm/scale", f"{block}.0.layer_norm.weight", (wide,), False),
              Name(f"{native}/pre_mlp_layer_norm/scale", f"{block}.1.layer_norm.weight", (wide,), False)]
    for ours, theirs in _ATTENTION.items():
      names.append(Name(f"{native}/attention/{ours}/kernel", f"{block}.0.SelfAttention.{theirs}.weight",
                        (joined, wide) if ours == "out" else (wide, joined)))
    for mlp in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
      names.append(Name(f"{native}/mlp/{mlp}/kernel", f"{block}.1.DenseReluDense.{mlp}.weight",
                        (config.mlp_dim, wide) if mlp == "wo" else (wide, config.mlp_dim)))
  return names


def projection_name(encoder: DualEncoder) -> Name:
  """The projection, whose name in Hugging Face is that within `2_Dense`."""
  return Name("projection_layer/kernel", "linear.weight", (encoder.config.emb_dim, encoder.dim))


def names(encoder: DualEncoder) -> list[Name]:
  """All arrays of a dual encoder with one tower for both sides."""
  return [*encoder_names(encoder.config), *[projection_name(encoder)] * (encoder.projection_dim is not None)]
