"""The contrastive loss over the whole global batch, dense: the reference for everything faster.

Letters: G groups, Q pairs in the global batch, N hard negatives, M negative queries, D embedding,
C candidates of one direction (the Q partners first, then the N or M negatives).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.errors import InputError
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.rounds import after
from gtr_jax.losses.teacher import NOTHING, OfTeacher, guide_of, guided_limit
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive, Range

NO_PARAMS: Mapping[str, jax.Array] = MappingProxyType({})


@dataclass(frozen=True)
class InBatchLoss:
  """Softmax cross entropy of each pair against every other example of the global batch.

  For query i, with s = 1 / temperature, dot products cos(., .) and candidates C_i = all positives p, then all hard
  negatives n, less those that are masked for i:

    forward_i  = -log( exp(s (cos(q_i, p_i) - margin)) / (exp(s (cos(q_i, p_i) - margin)) +
                                                          sum over the other c in C_i of exp(s cos(q_i, c))) )
    backward_i = the same from p_i to all queries, then all negative queries
    loss       = mean_i forward_i + mean_i backward_i     (sum of the means, over the valid pairs)

  GTR (Ni et al. 2021, arXiv 2112.07899) is the default; the margin is additive margin softmax (Yang et al. 2019, arXiv
  1902.08564), on the cosine and so multiplied by s; label smoothing is Szegedy et al. 2016 (arXiv 1512.00567), spread
  evenly over the unmasked candidates.

  Memory: the logits `[Q, Q + N]` and `[Q, Q + M]` in float32, with their gradients. Use it up to batches of a few
  thousand pairs for each device; values and gradients do not depend on the mesh.

  A candidate is masked for query i as a false negative when it is not i's own positive and has i's positive's passage
  hash or text hash, or its text is one that i knows (its own, or another that answers it), or is the positive of an
  example with i's query hash. Backward, a query is masked for the positive of i when that positive is masked for it
  forward, and a negative query when it has i's query hash. Pairs,
  negatives and negative queries that only fill up the batch are never candidates, and such pairs are not in the means.

  With `false_negative_margin` the model itself masks more, in training only and in both directions: a candidate whose
  dot product is above that of the own pair by more than this (Qwen3 Embedding, Zhang et al. 2025, arXiv 2506.05176:
  0.1). What it masks still counts for accuracy and MRR. With `guided` a teacher's cosines decide that in its place
  (GISTEmbed: Solatorio 2024, arXiv 2402.16829: margin 0), where it has vectors of the texts.

  Attributes:
    temperature: divides the dot products; with `learned_temperature` the initial value.
    bidirectional: add the backward direction.
    margin: subtracted from the own pair's dot product, in training only.
    label_smoothing: share of the target that is spread over all unmasked candidates, the own one included.
    learned_temperature: train log(1 / temperature), the parameter `logit_scale`.
    mask_false_negatives: mask as described.
    false_negative_margin: None masks nothing by what model or teacher say.
    guided: it is the teacher's dot products that are compared.
    teacher_dim: width of the teacher's vectors; None: that of the embeddings.
    own_negatives_only: a plain softmax over the own positive and the hard negatives mined for that very query. Forward
      only. Use it for data with many good negatives each, where the rest of the batch is too easy or too similar.
  """

  temperature: Annotated[float, Range(above=0, why="GTR: 0.01")] = 0.01
  bidirectional: bool = True
  margin: float = 0.0
  label_smoothing: Annotated[float, Range(0, below=1)] = 0.0
  learned_temperature: bool = False
  mask_false_negatives: bool = True
  false_negative_margin: float | None = None
  guided: bool = False
  teacher_dim: Positive | None = None
  own_negatives_only: bool = False

  def __post_init__(self):
    check_fields(self)
    if self.own_negatives_only and self.bidirectional:
      raise InputError(f"{type(self).__name__}.own_negatives_only has no backward direction: set bidirectional = "
                       "False as well")
    if self.guided and self.false_negative_margin is None:
      raise InputError(f"{type(self).__name__}.guided needs a false_negative_margin: above the own pair by how much a "
                       "candidate is masked (GISTEmbed: 0.0)")

  def of_teacher(self, dim: int) -> OfTeacher:
    """Vectors, where it is guided by them."""
    return OfTeacher(vectors=self.teacher_dim or dim) if self.guided else NOTHING

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "InBatchLoss":
    """The same loss: `RingLoss` looks at where the devices are."""
    del mesh
    return self

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """What the loss adds at the root of the model's parameters: `logit_scale`, float32 scalar, if it is learned."""
    del dim
    if not self.learned_temperature:
      return {}
    return {"logit_scale": jnp.asarray(-math.log(self.temperature), jnp.float32)}

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a global batch.

    Args:
      queries: `[groups, pairs + negative queries, D]`, each group's own queries first.
      passages: `[groups, pairs + hard negatives, D]`, each group's own positives first.
      batch: `text.batch.Batch`; its `queries` and `passages` are not read.
      params: the loss's own, of `init_params`.
      train: whether the margin is applied.

    Returns:
      The loss, and metrics of the forward direction over the valid queries: "loss" (both directions), "accuracy" (own
      positive strictly above every other unmasked candidate, no margin) and "mrr" (mean reciprocal rank among them).
    """
    check_own_params(self, params, ("logit_scale",) if self.learned_temperature else ())
    scale = jnp.exp(params["logit_scale"]) if self.learned_temperature else 1 / self.temperature
    loss, accuracy, mrr = self._compute(queries, passages, batch, scale, train)
    return loss, {"loss": loss, "accuracy": accuracy, "mrr": mrr}

  def _compute(self, queries, passages, batch, scale, train):
    """Loss, accuracy and MRR: what `RingLoss` computes in another way."""
    pairs = _flatten(batch, (queries, passages))
    q_QxD, n_queries_MxD = _split(queries, batch.valid.shape[1])
    p_QxD, n_passages_NxD = _split(passages, batch.valid.shape[1])

    guide = back_guide = None
    if train and self.guided and self.false_negative_margin is not None:
      (g_QxT, g_queries_MxT), (h_QxT, h_passages_NxT) = (
          _split(x, batch.valid.shape[1]) for x in after((queries, passages), guide_of(self, batch)))
      limit_Q = guided_limit(jnp.sum(g_QxT * h_QxT, axis=-1), (g_QxT, h_QxT), self.false_negative_margin)
      guide = dots(g_QxT, jnp.concatenate([h_QxT, h_passages_NxT])), limit_Q
      back_guide = dots(h_QxT, jnp.concatenate([g_QxT, g_queries_MxT])), limit_Q
    forward_mask = self._forward_mask(pairs)
    cosine_QxC = dots(q_QxD, jnp.concatenate([p_QxD, n_passages_NxD]))
    loss = self._direction(cosine_QxC, forward_mask, pairs.valid, scale, train, guide)
    if self.bidirectional:
      cosine_back_QxC = dots(p_QxD, jnp.concatenate([q_QxD, n_queries_MxD]))
      loss += self._direction(cosine_back_QxC, self._backward_mask(pairs), pairs.valid, scale, train, back_guide)

    rank = _rank_of_own(jax.lax.stop_gradient(cosine_QxC), forward_mask).astype(loss.dtype)
    return loss, mean(jnp.where(rank == 1, 1.0, 0.0).astype(loss.dtype), pairs.valid), mean(1 / rank, pairs.valid)

  def _direction(self, cosine_QxC, mask_QxC, valid_Q, scale, train, guide):
    if train and self.false_negative_margin is not None:
      compared_QxC, limit_Q = guide or (cosine_QxC, _own_value(cosine_QxC) + self.false_negative_margin)
      mask_QxC &= (compared_QxC <= limit_Q[:, None]) | _own(mask_QxC)
    if train and self.margin:
      cosine_QxC = cosine_QxC - self.margin * _own(cosine_QxC).astype(cosine_QxC.dtype)
    logits = cosine_QxC * scale
    own_Q = _own_value(logits)
    log_sum_Q = jax.nn.logsumexp(logits, axis=-1, where=mask_QxC)
    target_Q = own_Q
    if self.label_smoothing:
      mean_Q = jnp.sum(logits, axis=-1, where=mask_QxC) / jnp.sum(mask_QxC, axis=-1).astype(logits.dtype)
      target_Q = (1 - self.label_smoothing) * own_Q + self.label_smoothing * mean_Q
    return mean(log_sum_Q - target_Q, valid_Q)

  def _forward_mask(self, pairs):
    """True where passage c is a candidate for query i, bool `[Q, Q + N]`."""
    valid_C = jnp.concatenate([pairs.valid, pairs.negative_valid])
    number = jnp.arange(pairs.valid.size)
    mask = jnp.broadcast_to(valid_C[None], (number.size, valid_C.size))
    if self.own_negatives_only:
      owner_C = jnp.concatenate([number, pairs.negative_owner])
      mask &= number[:, None] == owner_C[None]
    if self.mask_false_negatives:
      mask &= ~jnp.concatenate([_same_example(pairs), _same_passage(pairs)[:, number.size:]], axis=1) & ~_known(pairs)
    return mask | _own(mask)

  def _backward_mask(self, pairs):
    """True where query c is a candidate for the positive of i, bool `[Q, Q + M]`."""
    valid_C = jnp.concatenate([pairs.valid, pairs.negative_query_valid])
    mask = jnp.broadcast_to(valid_C[None], (pairs.valid.size, valid_C.size))
    if self.mask_false_negatives:
      example = _same_example(pairs) | _known(pairs)[:, :pairs.valid.size].T
      mask &= ~jnp.concatenate([example, _same_query(pairs)[:, pairs.valid.size:]], axis=1)
    return mask | _own(mask)


class _Pairs(NamedTuple):
  """The batch without its groups. Hashes are those of the Q pairs, then of the negatives, but for those that a query
  knows, `[Q, K, 2]`; owners are global."""

  valid: jax.Array
  negative_valid: jax.Array
  negative_query_valid: jax.Array
  negative_owner: jax.Array
  query_hash: jax.Array
  passage_hash: jax.Array
  text_hash: jax.Array
  known_hash: jax.Array


def _flatten(batch, embeddings):
  """Once the embeddings are there."""
  of = _Pairs(*after(embeddings, [getattr(batch, name) for name in _Pairs._fields]))
  groups, pairs = of.valid.shape
  owner = of.negative_owner + pairs * jnp.arange(groups, dtype=of.negative_owner.dtype)[:, None]
  query, passage, text = (jnp.concatenate(_split(h, pairs)) for h in (of.query_hash, of.passage_hash, of.text_hash))
  return _Pairs(of.valid.reshape(-1), of.negative_valid.reshape(-1), of.negative_query_valid.reshape(-1),
                owner.reshape(-1), query, passage, text, of.known_hash.reshape(-1, *of.known_hash.shape[2:]))


def _split(x, pairs):
  """`[G, pairs + negatives, D]` -> the global `[Q, D]` of the pairs and `[N, D]` of the negatives."""
  return x[:, :pairs].reshape(-1, x.shape[-1]), x[:, pairs:].reshape(-1, x.shape[-1])


def dots(a_QxD, b_CxD):
  """Dot products in float32 or better, on every kind of device."""
  dtype = jnp.promote_types(a_QxD.dtype, jnp.float32)
  return jnp.einsum("qd,cd->qc", a_QxD.astype(dtype), b_CxD.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def _own(x_QxC):
  return jnp.eye(x_QxC.shape[0], x_QxC.shape[1], dtype=bool)


def _own_value(x_QxC):
  """The diagonal, without a gather that would cross the devices."""
  return jnp.sum(jnp.where(_own(x_QxC), x_QxC, 0), axis=-1)


def _equal(hash_Cx2, queries):
  """Whether the hash of example i equals that of c, bool `[Q, C]`."""
  high, low = hash_Cx2[:, 0], hash_Cx2[:, 1]
  return (high[:queries, None] == high[None]) & (low[:queries, None] == low[None])


def _same_passage(pairs):
  count = pairs.valid.size
  return _equal(pairs.passage_hash, count) | _equal(pairs.text_hash, count)


def _same_query(pairs):
  return _equal(pairs.query_hash, pairs.valid.size)


def _same_example(pairs):
  """Whether pairs i and c share their query, their passage or its text, bool `[Q, Q]`."""
  count = pairs.valid.size
  return _same_passage(pairs)[:, :count] | _same_query(pairs)[:, :count]


def _known(pairs):
  """Whether query i knows that passage c is no negative of it, bool `[Q, Q + N]`."""
  high, low = pairs.text_hash[:, 0], pairs.text_hash[:, 1]
  known = jnp.zeros((pairs.valid.size, high.size), bool)
  for number in range(pairs.known_hash.shape[1]):  # One after the other: all at once would be K times the memory.
    of_query = pairs.known_hash[:, number]
    known |= (of_query[:, :1] == high[None]) & (of_query[:, 1:] == low[None])
  return known


def _rank_of_own(cosine_QxC, mask_QxC):
  """1 + the other unmasked candidates that are not below the own one, int `[Q]`. A tie counts against the model."""
  own_Q = _own_value(cosine_QxC)
  return 1 + jnp.sum((cosine_QxC >= own_Q[:, None]) & mask_QxC & ~_own(mask_QxC), axis=-1)


def mean(values_Q, valid_Q):
  """Mean over the valid pairs, 0 if there are none."""
  return jnp.sum(jnp.where(valid_Q, values_Q, 0)) / jnp.maximum(jnp.sum(valid_Q), 1).astype(values_Q.dtype)
