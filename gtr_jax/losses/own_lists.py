"""For each query the list of its positive and the hard negatives that were mined for it, as arrays side by side.

Letters: G groups, Q pairs of one group, N hard negatives of one group.
"""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from gtr_jax.losses.in_batch import NO_PARAMS
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.teacher import OfTeacher, scores_of
from gtr_jax.values.check import check_fields


def of_owner(x: jax.Array, owner: jax.Array) -> jax.Array:
  """For each negative what its query has: `[G, Q, ...]` -> `[G, N, ...]`, by owners `[G, N]`."""
  return jax.vmap(lambda x, owner: x[owner])(x, owner)


def over_own(x: jax.Array, owner: jax.Array, pairs: int, reduce: Callable = jax.ops.segment_sum) -> jax.Array:
  """For each query what its negatives come to: `[G, N]` -> `[G, Q]`."""
  return jax.vmap(functools.partial(reduce, num_segments=pairs))(x, owner)


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
    return of_owner(x, self.owner)

  def total(self, x: jax.Array) -> jax.Array:
    """`[G, N]` -> `[G, Q]`."""
    return over_own(x, self.owner, self.own.shape[1])

  def top(self, x: jax.Array) -> jax.Array:
    """`[G, N]` -> `[G, Q]`, -inf of none."""
    return over_own(x, self.owner, self.own.shape[1], jax.ops.segment_max)

  def listed(self) -> jax.Array:
    """Which queries have a list of two or more, bool `[G, Q]`."""
    return self.valid_own & (self.total(self.valid_others.astype(self.own.dtype)) > 0)

  def accuracy(self) -> jax.Array:
    """Of the queries with a list, the share whose positive is strictly above all others."""
    listed = self.listed()
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
  return lists._replace(others=jnp.sum(lists.of_owner(q) * p[:, pairs:], -1),
                        valid_others=lists.valid_others & there[:, pairs:] & lists.of_owner(lists.valid_own))


class ListLoss(abc.ABC):
  """A loss of what student and teacher say of each query's list, and of nothing else in the batch; a dataclass."""

  own_negatives_only = True

  def __post_init__(self):
    check_fields(self)

  def on_mesh(self, mesh: jax.sharding.Mesh) -> Self:
    """The same loss."""
    del mesh
    return self

  def of_teacher(self, dim: int) -> OfTeacher:
    """Scores."""
    del dim
    return OfTeacher(scores=True)

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """None."""
    del dim
    return {}

  @abc.abstractmethod
  def of_lists(self, lists: OwnLists) -> jax.Array:
    """The loss, 0 where there is no list."""

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `InBatchLoss`, of a batch with a teacher's scores.

    Returns:
      The loss, and as metrics "loss", and "accuracy" among the own hard negatives.
    """
    del train
    check_own_params(self, params, ())
    lists = own_lists(self, queries, passages, batch)
    loss = self.of_lists(lists)
    return loss, {"loss": loss, "accuracy": lists.accuracy()}
