"""The losses of what a teacher says, and gradients, beside those of sentence-transformers."""

import jax
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import losses
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gtr_jax.losses.embedding_distillation import EmbeddingDistillationLoss
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.kl_distillation import KLDistillationLoss
from gtr_jax.losses.margin_mse import MarginMSELoss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.losses.similarity_distillation import SimilarityDistillationLoss
from gtr_jax.text.batch import make_batch

pytestmark = pytest.mark.peers

PAIRS, NEGATIVES, DIM = 12, 3, 8


class Given(torch.nn.Module):
  """A model whose embeddings are what it gets."""

  max_seq_length = 1
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))

  def forward(self, features):
    return {"sentence_embedding": features["embedding"]}

  def get_embedding_dimension(self):
    return DIM


class Guide(Given):
  """A teacher likewise."""

  def forward(self, features):
    return {"sentence_embedding": features["vector"]}


def made(negatives=NEGATIVES):
  """Columns of embeddings `[PAIRS, DIM]`: queries, positives, negatives; a teacher's vectors of the same, near each
  other where they belong together; its scores `[PAIRS, 1 + NEGATIVES]`."""
  rng = np.random.default_rng(0)

  def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

  columns = [unit(rng.normal(size=(PAIRS, DIM))) for _ in range(2 + negatives)]
  queries = rng.normal(size=(PAIRS, DIM))
  vectors = [unit(queries), *(unit(queries + rng.normal(size=(PAIRS, DIM))) for _ in range(1 + negatives))]
  return columns, vectors, rng.normal(size=(PAIRS, 1 + negatives)).astype(np.float32) * 2


def ours(loss, negatives=NEGATIVES):
  """(value, gradients of the columns)."""
  columns, vectors, scores = made(negatives)
  tokens = np.ones((PAIRS, 2), np.int32)
  number = np.arange(PAIRS)
  batch = make_batch({
      "left_encoder_input_tokens": tokens, "right_encoder_input_tokens": tokens,
      "right_negative_encoder_input_tokens": np.ones((PAIRS, negatives, 2), np.int32), "query_hash": number,
      "passage_hash": number, "text_hash": number, "query_vector": vectors[0], "passage_vector": vectors[1],
      "negative_vector": np.stack(vectors[2:], axis=1), "score": scores[:, 0], "negative_score": scores[:, 1:]}, 1)

  def value(columns):
    of_negatives = jax.numpy.stack(columns[2:], axis=1)
    passages = jax.numpy.concatenate([columns[1], of_negatives.reshape(-1, DIM)])
    return loss(columns[0][None], passages[None], batch)[0]

  found, gradients = jax.value_and_grad(value)(list(map(jax.numpy.asarray, columns)))
  return float(found), gradients


def compare(loss, theirs, factor=1.0, negatives=NEGATIVES, of_cosines=False):
  """`theirs(columns, vectors, scores)` is a torch scalar; `of_cosines`: it makes the columns' lengths 1 itself."""
  columns, vectors, scores = made(negatives)
  tensors = [torch.tensor(column, requires_grad=True) for column in columns]
  value = theirs(tensors, [torch.tensor(v) for v in vectors], torch.tensor(scores)) * factor
  value.backward()
  found, gradients = ours(loss, negatives)
  assert found == pytest.approx(value.item(), rel=2e-5) and abs(found) > 1e-3
  for gradient, tensor, column in zip(gradients, tensors, columns, strict=True):
    if of_cosines:
      gradient = gradient - np.sum(gradient * column, axis=-1, keepdims=True) * column
    np.testing.assert_allclose(gradient, 0 if tensor.grad is None else tensor.grad, rtol=2e-4, atol=2e-6)


def test_embeddings():
  """Columns count the same there, and texts here: here the same, as all columns have one length."""
  theirs = losses.EmbedDistillLoss(Given())
  compare(EmbeddingDistillationLoss(), lambda columns, vectors, _: theirs.compute_loss_from_embeddings(
      columns, vectors))


def test_margins():
  theirs = losses.MarginMSELoss(Given(), similarity_fct=lambda a, b: 20 * (a * b).sum(-1))
  compare(MarginMSELoss(), lambda columns, _, scores: theirs.compute_loss_from_embeddings(columns, scores))


def test_kl():
  """Theirs is multiplied by the square of the student's temperature."""
  theirs = losses.DistillKLDivLoss(Given(), student_temperature=0.1, teacher_temperature=0.5)
  compare(KLDistillationLoss(0.1, 0.5), lambda columns, _, scores: theirs.compute_loss_from_embeddings(
      columns, scores), factor=100)


def test_similarities():
  """Each query's list is the batch: as theirs of given scores, the teacher's cosines."""
  theirs = losses.DistillKLDivLoss(Given(), student_temperature=0.1, teacher_temperature=0.2)

  def of_batch(columns, vectors, _):
    passages, of_teacher = torch.cat(columns[1:]), torch.cat(vectors[1:])
    every = [columns[0], *(passage.expand(PAIRS, DIM) for passage in passages)]
    return theirs.compute_loss_from_embeddings(every, vectors[0] @ of_teacher.T)

  compare(SimilarityDistillationLoss(None, 0.1, 0.2, bidirectional=False), of_batch, factor=100)


@pytest.mark.parametrize("kind", [InBatchLoss, RingLoss])
def test_guided(kind):
  options = {"contrast_anchors": False, "contrast_positives": False, "temperature": 0.1}
  theirs = losses.GISTEmbedLoss(Given(), Guide(), **options)
  ours_is = kind(temperature=0.1, bidirectional=False, mask_false_negatives=False, false_negative_margin=0.0,
                 guided=True)
  unguided = kind(temperature=0.1, bidirectional=False, mask_false_negatives=False)
  assert ours(ours_is, 1)[0] < ours(unguided, 1)[0] - 0.1

  def of_three(columns, vectors, _):
    features = [{"embedding": column, "vector": vector, "input_ids": column} for column, vector in zip(
        columns, vectors, strict=True)]
    return theirs(features, None)

  compare(ours_is, of_three, negatives=1, of_cosines=True)
