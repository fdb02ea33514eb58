"""Several losses of one batch at once."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gtr_jax.errors import InputError
from gtr_jax.losses.in_batch import NO_PARAMS
from gtr_jax.losses.own_params import check_own_params
from gtr_jax.losses.rounds import after
from gtr_jax.losses.teacher import OfTeacher, of_teacher
from gtr_jax.values.check import check_fields


@dataclass(frozen=True)
class WeightedSumLoss:
  """The weighted sum of several losses over the same embeddings.

    loss = sum over k of weights_k * losses_k

  Take it to distil beside a contrastive loss, for instance. Memory: that of each loss, one after the other.

  Attributes:
    losses: two or more; no two may have a parameter of the same name (a learned temperature).
    weights: of each; () is 1 for all.
  """

  losses: tuple[Any, ...]
  weights: tuple[float, ...] = ()

  def __post_init__(self):
    check_fields(self)
    if len(self.losses) < 2 or len(self.weights) not in (0, len(self.losses)):
      raise InputError(f"WeightedSumLoss has {len(self.losses)} losses and {len(self.weights)} weights: give two or "
                       "more losses, and a weight for each or none")

  @property
  def _contrastive(self) -> Any:
    """The first that compares texts of the batch with each other, or else the first."""
    return next((loss for loss in self.losses if getattr(loss, "needs_candidates", True)), self.losses[0])

  @property
  def needs_candidates(self) -> bool:
    """Whether all compare a pair with others: where one does not, a pair without any still teaches."""
    return all(getattr(loss, "needs_candidates", True) for loss in self.losses)

  @property
  def temperature(self) -> float | None:
    """Of the contrastive one."""
    return getattr(self._contrastive, "temperature", None)

  @property
  def mask_false_negatives(self) -> bool:
    """Likewise."""
    return getattr(self._contrastive, "mask_false_negatives", True)

  @property
  def own_negatives_only(self) -> bool:
    """Likewise."""
    return getattr(self._contrastive, "own_negatives_only", False)

  @property
  def weight_of(self) -> dict[int, float] | None:
    """The lengths of a `MatryoshkaLoss` among them."""
    return next((loss.weight_of for loss in self.losses if hasattr(loss, "weight_of")), None)

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "WeightedSumLoss":
    """Of each."""
    return dataclasses.replace(self, losses=tuple(loss.on_mesh(mesh) for loss in self.losses))

  def of_teacher(self, dim: int) -> OfTeacher:
    """What any of them asks for. Raises InputError where they ask for vectors of different widths."""
    asked = [of_teacher(loss, dim) for loss in self.losses]
    widths = {of.vectors for of in asked if of.vectors}
    if len(widths) > 1:
      raise InputError(f"WeightedSumLoss: its losses expect a teacher's vectors of {' and '.join(map(str, widths))} "
                       "numbers: set one teacher_dim")
    return OfTeacher(max(widths, default=0), any(of.scores for of in asked))

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """Of all. Raises InputError where two have one of the same name."""
    of_each = [loss.init_params(dim) for loss in self.losses]
    twice = [name for name, count in Counter(name for of in of_each for name in of).items() if count > 1]
    if twice:
      raise InputError(f"WeightedSumLoss: two of its losses have a parameter {twice[0]!r}: let only one learn it")
    return {name: value for of in of_each for name, value in of.items()}

  def check_width(self, width: int) -> None:
    """As `MatryoshkaLoss`, of each that has one."""
    for loss in self.losses:
      if hasattr(loss, "check_width"):
        loss.check_width(width)

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `InBatchLoss`.

    Returns:
      The weighted sum; as metrics that as "loss", those of all losses (of two with one name the first's), and each
      loss by the name of its class.
    """
    names = [tuple(jax.eval_shape(functools.partial(loss.init_params, queries.shape[-1]))) for loss in self.losses]
    check_own_params(self, params, sum(names, ()))
    total: Any = jnp.zeros((), jnp.float32)
    found: dict[str, jax.Array] = {}
    for loss, weight, own in zip(self.losses, self.weights or (1.0,) * len(self.losses), names, strict=True):
      queries, passages = after(total, (queries, passages))
      value, metrics = loss(queries, passages, batch, params={name: params[name] for name in own}, train=train)
      total = total + weight * value
      found = {**metrics, **found, type(loss).__name__: value}
    return total, {**found, "loss": total}
