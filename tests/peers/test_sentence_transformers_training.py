"""Twenty training steps beside sentence-transformers: same weights, texts, loss and optimizer, so the same losses."""

import jax
import numpy as np
import pytest
import sentence_transformers_peer
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from t5_reference import random_params
from tiny_model_dir import WORDS, write_vocabulary

from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.matryoshka import MatryoshkaLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import make_batch
from gtr_jax.training import optimizers
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step

pytestmark = pytest.mark.peers

STEPS, PAIRS, LENGTH = 20, 16, 24
RATE, EPSILON, WEIGHT_DECAY = 1e-4, 1e-6, 0.1


def texts_of_step(step: int, columns: int) -> list[list[str]]:
  """`columns` lists of texts: queries, positives that share words with them, hard negatives that do so less."""
  rng = np.random.default_rng(step)

  def text(count, *kept):
    return " ".join([*kept, *rng.choice(WORDS, count)])

  queries = [text(rng.integers(2, 6)) for _ in range(PAIRS)]
  out = [queries, [text(rng.integers(1, 7), *query.split()[:2]) for query in queries],
         [text(rng.integers(1, 7), query.split()[0]) for query in queries]]
  return out[:columns]


def train_sentence_transformer(model: SentenceTransformer, columns: int,
                               weight_of: dict[int, float]) -> tuple[list[float], list[list[np.ndarray]]]:
  """The losses, and the token ids of each step's columns, padded with 0. `weight_of`: of Matryoshka's dimensions."""
  loss = losses.MultipleNegativesRankingLoss(model, scale=100.0)
  if weight_of:
    loss = losses.MatryoshkaLoss(model, loss, list(weight_of), list(weight_of.values()))
  groups = {True: [], False: []}
  for name, parameter in model.named_parameters():
    groups["norm" not in name and "relative_attention_bias" not in name].append(parameter)
  optimizer = torch.optim.AdamW([{"params": groups[True], "weight_decay": WEIGHT_DECAY},
                                 {"params": groups[False], "weight_decay": 0.0}], lr=RATE, eps=EPSILON)
  history, ids = [], []
  for step in range(STEPS):
    features = [model.tokenize(column) for column in texts_of_step(step, columns)]
    ids.append([f["input_ids"].numpy().astype(np.int32) for f in features])
    optimizer.zero_grad()
    value = loss(features, None)
    value.backward()
    optimizer.step()
    history.append(value.item())
  return history, ids


def train_here(model: DualEncoder, params: dict, tokenizer, columns: int, weight_of: dict[int, float]):
  """The same with gtr_jax's own step."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  loss = InBatchLoss(temperature=0.01, bidirectional=False, mask_false_negatives=False)
  if weight_of:
    loss = MatryoshkaLoss(loss, tuple(weight_of), tuple(weight_of.values()))
  optimizer = optimizers.adamw(RATE, eps=EPSILON, weight_decay=WEIGHT_DECAY)
  state, shardings = create_state(model, loss, optimizer, mesh, seed=0)
  state = state.replace(params=jax.tree.map(lambda x, s: jax.device_put(x, s), params, shardings.params))
  train_step = compile_step(make_train_step(model, loss, optimizer, seed=0), shardings)
  history, ids = [], []

  def padded(texts):
    rows = np.zeros((len(texts), LENGTH), np.int32)
    for row, tokens in zip(rows, tokenizer.encode(texts, LENGTH), strict=True):
      row[:len(tokens)] = tokens
    return rows

  for step in range(STEPS):
    left, right, *negatives = (padded(column) for column in texts_of_step(step, columns))
    features = {"left_encoder_input_tokens": left, "right_encoder_input_tokens": right}
    features |= {name: np.arange(PAIRS) for name in ("query_hash", "passage_hash", "text_hash")}
    if negatives:
      features["right_negative_encoder_input_tokens"] = negatives[0][:, None]
      features |= {name: np.arange(PAIRS)[:, None] for name in ("negative_passage_hash", "negative_text_hash")}
    with jax.set_mesh(mesh):
      state, metrics = train_step(state, partitioning.global_batch(mesh, make_batch(features, 1)))
    history.append(float(metrics["loss"]))
    ids.append([left, right, *negatives])
  return history, ids


@pytest.mark.parametrize("columns, weight_of", [(2, {}), (3, {}), (3, {32: 1.0, 16: 0.5, 8: 0.25})],
                         ids=["pairs", "hard_negative", "matryoshka"])
def test_same_losses_as_sentence_transformers(columns, weight_of, tmp_path):
  tokenizer = write_vocabulary(tmp_path / "spiece.model")
  model = DualEncoder(T5Config(vocab_size=160, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_layers=2), 32)
  assert tokenizer.size <= 160
  params = random_params(model)
  theirs = sentence_transformers_peer.build(model, params, tmp_path / "spiece.model", tmp_path / "t5", LENGTH)
  their_losses, their_ids = train_sentence_transformer(theirs, columns, weight_of)
  our_losses, our_ids = train_here(model, params, tokenizer, columns, weight_of)
  for a, b in zip(their_ids, our_ids, strict=True):
    for left, right in zip(a, b, strict=True):
      np.testing.assert_array_equal(left, right[:, :left.shape[1]])
      assert not right[:, left.shape[1]:].any()
  assert np.ptp(our_losses) > 0.1
  np.testing.assert_allclose(our_losses, their_losses, atol=1e-4, rtol=0)
