"""For each query the list of its positive and the hard negatives that were mined for it, as arrays side by side.

Letters: G groups, Q pairs of one group, N hard negatives of one group.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.losses.teacher import scores_of


class OwnLists(NamedTuple):
  """What student and teacher say of the passages of each query's list.

  Attributes:
    own: the student's dot product with the positive, `[G, Q]`.
    others: with each hard negative, `[G, N]`.
    teacher_own: the teacher's score of the positive, 0 where there is none, `[G, Q]`.
    teacher_others: of each hard negative, `[G, N]`.
    valid_own: bool `[G, Q]`: whether pair and teacher's score are there.
    valid_others: bool `[G, N]`: whether the negative, its score and that of its query's positive are.
    owner: `[G, N]`, of each negative.
  """

  own: jax.Array
  others: jax.Array
  teacher_own: jax.Array
  teacher_others: jax.Array
  valid_own: jax.Array
  valid_others: jax.Array
  owner: jax.Array

  def of_owner(self, x: jax.Array) -> jax.Array:
    """`[G, Q]` -> `[G, N]`."""
    return jax.vmap(lambda x, owner: x[owner])(x, self.owner)

  def total(self, x: jax.Array) -> jax.Array:
    """`[G, N]` -> `[G, Q]`."""
    return jax.vmap(lambda x, owner: jax.ops.segment_sum(x, owner, self.own.shape[1]))(x, self.owner)

  def top(self, x: jax.Array) -> jax.Array:
    """`[G, N]` -> `[G, Q]`, -inf of none."""
    return jax.vmap(lambda x, owner: jax.ops.segment_max(x, owner, self.own.shape[1]))(x, self.owner)

  def accuracy(self) -> jax.Array:
    """Of the queries with a list, the share whose positive is strictly above all others."""
    listed = self.valid_own & (self.total(self.valid_others.astype(self.own.dtype)) > 0)
    first = self.own > self.top(jnp.where(self.valid_others, self.others, -jnp.inf))
    return jnp.sum(listed & first) / jnp.maximum(jnp.sum(listed), 1)


def own_lists(loss: Any, queries: jax.Array, passages: jax.Array, batch: Any) -> OwnLists:
  """Of a batch with a teacher's scores; the arguments are those of a loss."""
  pairs, owner = batch.valid.shape[1], jnp.asarray(batch.negative_owner)
  dtype = jnp.promote_types(jnp.promote_types(queries.dtype, passages.dtype), jnp.float32)
  q, p = queries[:, :pairs].astype(dtype), passages.astype(dtype)
  scores = scores_of(loss, batch).astype(dtype)
  there, scores = jnp.isfinite(scores), jnp.nan_to_num(scores, posinf=0.0, neginf=0.0)
  lists = OwnLists(jnp.sum(q * p[:, :pairs], -1), p[:, pairs:, 0], scores[:, :pairs], scores[:, pairs:],
                   jnp.asarray(batch.valid) & there[:, :pairs], jnp.asarray(batch.negative_valid), owner)
  q_of_negatives = jax.vmap(lambda x, owner: x[owner])(q, owner)
  return lists._replace(others=jnp.sum(q_of_negatives * p[:, pairs:], -1),
                        valid_others=lists.valid_others & there[:, pairs:] & lists.of_owner(lists.valid_own))
