"""A sentence-transformers model with the architecture and weights of a `DualEncoder`, to be compared with."""

import shutil
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from gtr_jax.models.dual_encoder import DualEncoder

NATIVE_TO_TORCH = {
    "token_embedder/embedding": "shared.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "encoder/relpos_bias/rel_embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder/layers_{i}/pre_attention_layer_norm/scale": "encoder.block.{i}.layer.0.layer_norm.weight",
    "encoder/layers_{i}/attention/query/kernel": "encoder.block.{i}.layer.0.SelfAttention.q.weight",
    "encoder/layers_{i}/attention/key/kernel": "encoder.block.{i}.layer.0.SelfAttention.k.weight",
    "encoder/layers_{i}/attention/value/kernel": "encoder.block.{i}.layer.0.SelfAttention.v.weight",
    "encoder/layers_{i}/attention/out/kernel": "encoder.block.{i}.layer.0.SelfAttention.o.weight",
    "encoder/layers_{i}/pre_mlp_layer_norm/scale": "encoder.block.{i}.layer.1.layer_norm.weight",
    "encoder/layers_{i}/mlp/wi/kernel": "encoder.block.{i}.layer.1.DenseReluDense.wi.weight",
    "encoder/layers_{i}/mlp/wo/kernel": "encoder.block.{i}.layer.1.DenseReluDense.wo.weight",
    "projection_layer/kernel": "dense",
}


def build(model: DualEncoder, params: dict, vocabulary: str | Path, folder: Path, max_length: int,
          extra_ids: int = 0) -> SentenceTransformer:
  """T5EncoderModel, mean pooling, dense without bias, normalisation, with our weights.

  Args:
    model: shared tower, ReLU, mean pooling, with a projection.
    params: its parameters.
    vocabulary: SentencePiece model.
    folder: where transformers' files go.
    max_length: tokens of a text at most.
    extra_ids: sentinels after the vocabulary's pieces.
  """
  config = model.config
  encoder = transformers.T5EncoderModel(transformers.T5Config(
      vocab_size=config.vocab_size, d_model=config.emb_dim, d_kv=config.head_dim, d_ff=config.mlp_dim,
      num_layers=config.num_layers, num_heads=config.num_heads, dropout_rate=0.0))
  encoder.save_pretrained(folder)
  shutil.copy(vocabulary, folder / "spiece.model")
  transformers.T5Tokenizer.from_pretrained(folder, extra_ids=extra_ids).save_pretrained(folder)
  transformer = modules.Transformer(str(folder), max_seq_length=max_length)
  dense = modules.Dense(config.emb_dim, model.dim, bias=False, activation_function=torch.nn.Identity())
  theirs = dict(transformer.auto_model.named_parameters()) | {"dense": dense.linear.weight}
  ours = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  with torch.no_grad():
    for i in range(config.num_layers):
      for native, name in NATIVE_TO_TORCH.items():
        if native.format(i=i) in ours:
          value = np.array(ours.pop(native.format(i=i)))
          embedding = native.startswith("token_embedder")
          theirs.pop(name.format(i=i)).copy_(torch.tensor(value if embedding else value.T))
  assert not ours and not theirs
  return SentenceTransformer(modules=[transformer, modules.Pooling(config.emb_dim, "mean"), dense,
                                      modules.Normalize()], device="cpu")
