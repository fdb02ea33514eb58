"""A softmax over the own positive and the own hard negatives of each query, in linear memory.

Letters: G groups, N hard negatives of one group, D embedding.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gtr_jax.losses import own_lists
from gtr_jax.losses.in_batch import mean
from gtr_jax.losses.teacher import guide_of, guided_limit


def own_negatives(loss, queries, passages, batch, scale, margin, limit):
  """Loss, accuracy and MRR of `RingLoss` with `own_negatives_only`; nothing leaves its group.

  Args:
    loss: the `RingLoss`.
    queries, passages, batch: as for its call.
    scale: scalar of the type to compute in.
    margin: 0 where it does not apply.
    limit: `false_negative_margin`, or None where it does not apply.
  """
  pairs, owner_GxN = batch.valid.shape[1], jnp.asarray(batch.negative_owner)
  q, p = queries[:, :pairs].astype(scale.dtype), passages.astype(scale.dtype)

  of_owner = functools.partial(own_lists.of_owner, owner=owner_GxN)
  over_own = functools.partial(own_lists.over_own, owner=owner_GxN, pairs=pairs)

  own = jnp.sum(q * p[:, :pairs], axis=-1)
  cosine = jnp.sum(of_owner(q) * p[:, pairs:], axis=-1)
  mask = jnp.asarray(batch.negative_valid)
  if loss.mask_false_negatives:
    for h in map(jnp.asarray, (batch.passage_hash, batch.text_hash)):
      mask &= jnp.any(of_owner(h[:, :pairs]) != h[:, pairs:], axis=-1)
    known, text = of_owner(jnp.asarray(batch.known_hash)), jnp.asarray(batch.text_hash)[:, pairs:, None]
    mask &= ~jnp.any(jnp.all(known == text, axis=-1), axis=-1)

  own_logit, logits, seen = scale * (own - margin), scale * cosine, mask
  if limit is not None and loss.guided:
    g, h = guide_of(loss, batch)
    g = g[:, :pairs]
    limits = guided_limit(jnp.sum(g * h[:, :pairs], axis=-1), (g, h[:, :pairs]), limit)
    mask &= jnp.sum(of_owner(g) * h[:, pairs:], axis=-1) <= of_owner(limits)
  elif limit is not None:
    mask &= cosine <= of_owner(own) + limit
  masked = jnp.where(mask, logits, -jnp.inf)
  top = lax.stop_gradient(jnp.maximum(own_logit, over_own(masked, reduce=jax.ops.segment_max)))
  log_sum = jnp.log(jnp.exp(own_logit - top) + over_own(jnp.exp(masked - of_owner(top))))
  target = own_logit
  if loss.label_smoothing:
    average = (own_logit + over_own(jnp.where(mask, logits, 0))) / (1 + over_own(mask.astype(scale.dtype)))
    target = (1 - loss.label_smoothing) * own_logit + loss.label_smoothing * average
  ahead = over_own((seen & (cosine >= of_owner(own))).astype(scale.dtype))
  results = log_sum + (top - target), (ahead == 0).astype(scale.dtype), 1 / (1 + ahead)
  return tuple(mean(x, batch.valid) for x in results)
