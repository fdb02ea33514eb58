"""A student that puts the positive as far above each hard negative as a teacher does."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from gtr_jax.losses.own_lists import ListLoss, OwnLists
from gtr_jax.values.ranges import Range


@dataclass(frozen=True)
class MarginMSELoss(ListLoss):
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

  def of_lists(self, lists: OwnLists) -> jax.Array:
    """As `ListLoss`."""
    margins = (lists.of_owner(lists.own) - lists.others) / self.temperature
    of_teacher = lists.of_owner(lists.teacher_own) - lists.teacher_others
    squares = jnp.where(lists.valid_others, (margins - of_teacher) ** 2, 0)
    return jnp.sum(squares) / jnp.maximum(jnp.sum(lists.valid_others), 1)
