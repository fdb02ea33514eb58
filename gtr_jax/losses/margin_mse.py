"""A student that puts the positive as far above each hard negative as a teacher does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from gtr_jax.losses.in_batch import NO_PARAMS
from gtr_jax.losses.own_lists import own_lists
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.teacher import OfTeacher
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Range


@dataclass(frozen=True)
class MarginMSELoss:
  """Squared difference of the margins of student and teacher (Hofstätter et al. 2020, arXiv 2010.02666, equation 4).

  Of query i with its positive p_i, each of its own hard negatives n, and the teacher's scores t,

    loss = mean over all (i, n) of ( s (q_i . p_i - q_i . n) - (t(i, p_i) - t(i, n)) )^2

  Take it for cross-encoders' scores of mined negatives (logits, about -10 to 10): false negatives do no harm, as their
  margin is small. As embeddings have length 1, s has to span the teacher's margins: the default 1 / temperature is 20.
  Nothing is compared with the rest of the batch; add `InBatchLoss` by `WeightedSumLoss`. Memory: none of its own.

  Attributes:
    temperature: 1 / s.
  """

  temperature: Annotated[float, Range(above=0, why="1 for embeddings that are not normalised")] = 0.05

  own_negatives_only = True

  def __post_init__(self):
    check_fields(self)

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "MarginMSELoss":
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
    margins = (lists.of_owner(lists.own) - lists.others) / self.temperature
    of_teacher = lists.of_owner(lists.teacher_own) - lists.teacher_others
    squares = jnp.where(lists.valid_others, (margins - of_teacher) ** 2, 0)
    loss = jnp.sum(squares) / jnp.maximum(jnp.sum(lists.valid_others), 1)
    return loss, {"loss": loss, "accuracy": lists.accuracy()}
