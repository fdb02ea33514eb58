"""The encoder against transformers' T5EncoderModel, with the same weights.

`GOLDEN_UPDATE=1 python -m pytest tests/peers/test_t5_parity.py` writes torch's embeddings to tests/golden, for those
who test without torch.
"""

import os

import numpy as np
import pytest
import torch
import transformers
from t5_reference import GOLDEN, LENGTHS, MODELS, pack, random_params, random_tokens
from transformers.models.t5.modeling_t5 import T5Attention

from gtr_jax.models.attention import relative_position_bucket
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.packing import pad_texts

pytestmark = pytest.mark.peers


def torch_embeddings(model: DualEncoder, params: dict, tokens: np.ndarray) -> np.ndarray:
  """transformers' encoder, mean over the tokens that are not padding, dense, L2."""
  config = model.config
  encoder = transformers.T5EncoderModel(transformers.T5Config(
      vocab_size=config.vocab_size, d_model=config.emb_dim, d_kv=config.head_dim, d_ff=config.mlp_dim,
      num_layers=config.num_layers, num_heads=config.num_heads, dropout_rate=0.0,
      relative_attention_num_buckets=config.relpos_buckets, relative_attention_max_distance=config.relpos_max_distance,
      feed_forward_proj="relu" if config.mlp_activations == ("relu",) else "gated-gelu")).eval()
  native = params["encoder"]
  state = {"shared.weight": params["token_embedder"]["embedding"],
           "encoder.embed_tokens.weight": params["token_embedder"]["embedding"],
           "encoder.final_layer_norm.weight": native["encoder_norm"]["scale"],
           "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight":
               native["relpos_bias"]["rel_embedding"].T}
  for i in range(config.num_layers):
    layer, block = native[f"layers_{i}"], f"encoder.block.{i}.layer"
    for ours, theirs in zip(("query", "key", "value", "out"), "qkvo", strict=True):
      state[f"{block}.0.SelfAttention.{theirs}.weight"] = layer["attention"][ours]["kernel"].T
    for name, part in layer["mlp"].items():
      state[f"{block}.1.DenseReluDense.{name}.weight"] = part["kernel"].T
    state[f"{block}.0.layer_norm.weight"] = layer["pre_attention_layer_norm"]["scale"]
    state[f"{block}.1.layer_norm.weight"] = layer["pre_mlp_layer_norm"]["scale"]
  state = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
  missing, unexpected = encoder.load_state_dict(state, strict=False)
  assert not unexpected and all("embed_tokens" in name for name in missing)
  with torch.no_grad():
    ids = torch.tensor(tokens.astype(np.int64))
    mask = (ids != 0).long()
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    dense = mean @ torch.tensor(params["projection_layer"]["kernel"])
    return torch.nn.functional.normalize(dense, dim=-1).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_same_embeddings_as_transformers(name):
  model, tokens = MODELS[name], random_tokens()
  params = random_params(model)
  theirs = torch_embeddings(model, params, tokens)
  if os.environ.get("GOLDEN_UPDATE"):
    np.savez_compressed(GOLDEN / f"{name}.npz", tokens=tokens.astype(np.uint8), embeddings=theirs)
  padded = model.encode(params, pad_texts(tokens, 1), len(tokens))[0]
  np.testing.assert_allclose(padded, theirs, atol=1e-5, rtol=0)
  # 44, 45 and 46 share a row with 90, and so on: a text does not see its neighbours.
  texts = [row[:length] for row, length in zip(tokens, LENGTHS, strict=True)]
  packed = model.encode(params, pack(texts, [[6], [1, 5, 2], [0, 4, 3]], 512), len(texts))[0]
  np.testing.assert_allclose(packed, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (16, 40), (64, 300)])
def test_same_buckets_as_transformers(buckets, max_distance):
  distances = np.arange(-1000, 1001)
  theirs = T5Attention._relative_position_bucket(torch.tensor(distances), True, buckets, max_distance).numpy()
  ours = [relative_position_bucket(int(d), buckets, max_distance) for d in distances]
  np.testing.assert_array_equal(ours, theirs)


def test_golden_files_are_torch_s():
  for name, model in MODELS.items():
    golden = np.load(GOLDEN / f"{name}.npz")
    theirs = torch_embeddings(model, random_params(model), golden["tokens"].astype(np.int32))
    np.testing.assert_allclose(golden["embeddings"], theirs, atol=1e-6, rtol=0)
