"""Weights and token ids that do not come from JAX: what the golden files and the live comparison with torch share."""

from pathlib import Path

import numpy as np

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.packing import Texts

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = (1, 44, 45, 46, 90, 300, 512)
MODELS = {
    "t5_1_0": DualEncoder(T5Config(vocab_size=61, emb_dim=32, num_heads=4, head_dim=6, mlp_dim=48, num_layers=3), 20),
    "t5_1_1": DualEncoder(T5Config(vocab_size=61, emb_dim=32, num_heads=4, head_dim=6, mlp_dim=48, num_layers=3,
                                   mlp_activations=("gelu", "linear")), 20),
}


def random_params(model: DualEncoder, seed: int = 0) -> dict:
  """The native parameter tree from numpy's frozen generator, with position biases large enough to matter."""
  rng, config = np.random.RandomState(seed), model.config
  width, joined = config.emb_dim, config.num_heads * config.head_dim

  def normal(*shape, std):
    return rng.normal(0, std, shape).astype(np.float32)

  def kernel(rows, columns):
    return {"kernel": normal(rows, columns, std=rows**-0.5)}

  def norm():
    return {"scale": 1 + normal(width, std=0.2)}

  encoder = {"relpos_bias": {"rel_embedding": normal(config.num_heads, config.relpos_buckets, std=2.0)}}
  for i in range(config.num_layers):
    wi = ("wi",) if len(config.mlp_activations) == 1 else ("wi_0", "wi_1")
    encoder[f"layers_{i}"] = {
        "pre_attention_layer_norm": norm(),
        "attention": {**{name: kernel(width, joined) for name in ("query", "key", "value")},
                      "out": kernel(joined, width)},
        "pre_mlp_layer_norm": norm(),
        "mlp": {**{name: kernel(width, config.mlp_dim) for name in wi}, "wo": kernel(config.mlp_dim, width)},
    }
  encoder["encoder_norm"] = norm()
  return {"token_embedder": {"embedding": normal(config.vocab_size, width, std=1.0)}, "encoder": encoder,
          "projection_layer": kernel(width, model.dim)}


def random_tokens(seed: int = 0) -> np.ndarray:
  """int32 `[len(LENGTHS), max(LENGTHS)]`, padded with 0."""
  rng = np.random.RandomState(seed)
  tokens = rng.randint(1, 61, (len(LENGTHS), max(LENGTHS)))
  return np.where(np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None], tokens, 0).astype(np.int32)


def pack(token_lists: list[np.ndarray], rows: list[list[int]], length: int) -> Texts:
  """One group: row r holds the texts `rows[r]`, one after the other, then padding."""
  tokens, segments = np.zeros((2, 1, len(rows), length), np.int32)
  for r, texts in enumerate(rows):
    at = 0
    for i in texts:
      tokens[0, r, at:at + len(token_lists[i])] = token_lists[i]
      segments[0, r, at:at + len(token_lists[i])] = 1 + i
      at += len(token_lists[i])
  return Texts(tokens, segments)
