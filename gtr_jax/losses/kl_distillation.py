"""A student whose softmax over each query's own list is a teacher's."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from gtr_jax.losses.own_lists import ListLoss, OwnLists
from gtr_jax.values.ranges import Range


@dataclass(frozen=True)
class KLDistillationLoss(ListLoss):
  """KL divergence of the student's softmax over a query's list from the teacher's.

  Of query i with the list L_i of its positive and its own hard negatives, the teacher's scores t and
  P_i(c) = softmax over L_i of t(i, c) / teacher_temperature, S_i(c) = softmax over L_i of q_i . c / temperature,

    loss = mean over i of sum over c in L_i of P_i(c) (log P_i(c) - log S_i(c))

  (RocketQAv2: Ren et al. 2021, arXiv 2110.07367, section 3.2; ColBERTv2 and others likewise.) Of a query without
  negatives nothing can be learned, and it does not count. Take it for lists of many negatives whose order matters more
  than their margins; how sharp the teacher is, is `teacher_temperature`. Memory: none of its own.

  Attributes:
    temperature: divides the student's dot products.
    teacher_temperature: divides the teacher's scores: 1 for a cross-encoder's logits, .01 to .05 for cosines.
  """

  temperature: Annotated[float, Range(above=0, why="0.05, as embeddings have length 1")] = 0.05
  teacher_temperature: Annotated[float, Range(above=0, why="1 for logits")] = 1.0

  def of_lists(self, lists: OwnLists) -> jax.Array:
    """As `ListLoss`."""
    def log_softmax(own, others):
      """Of each list: that of the positive, and of the negatives."""
      others = jnp.where(lists.valid_others, others, -jnp.inf)
      top = jax.lax.stop_gradient(jnp.maximum(own, lists.top(others)))
      log_sum = top + jnp.log(jnp.exp(own - top) + lists.total(jnp.exp(others - lists.of_owner(top))))
      return own - log_sum, jnp.where(lists.valid_others, others - lists.of_owner(log_sum), 0)

    of_teacher = log_softmax(lists.teacher_own / self.teacher_temperature,
                             lists.teacher_others / self.teacher_temperature)
    of_student = log_softmax(lists.own / self.temperature, lists.others / self.temperature)
    own, others = (jnp.exp(p) * (p - s) for p, s in zip(of_teacher, of_student, strict=True))
    listed = lists.listed()
    of_query = own + lists.total(jnp.where(lists.valid_others, others, 0))
    return jnp.sum(jnp.where(listed, of_query, 0)) / jnp.maximum(jnp.sum(listed), 1)
