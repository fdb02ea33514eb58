"""Any loss over embeddings that are cut to their first numbers as well."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gtr_jax.errors import InputError
from gtr_jax.losses.in_batch import NO_PARAMS
from gtr_jax.losses.rounds import after
from gtr_jax.losses.teacher import OfTeacher, of_teacher
from gtr_jax.models.pooling import l2_normalize
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive


@dataclass(frozen=True)
class MatryoshkaLoss:
  """The sum of a loss over embeddings of several lengths (Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    loss = sum over k of weights_k * L(first dimensions_k numbers of every embedding, normalised again)

  Take it where vectors shall be cut shorter after training (`--dimensions` of encode), which costs as much of the
  loss's time as the lengths together have of the whole, and nothing of the encoder's. Whole embeddings are always among
  them. Memory: that of the loss for each length, one after the other.

  Attributes:
    loss: what is computed of each length, for instance an `InBatchLoss` or a `RingLoss`; all share its parameters.
    dimensions: the lengths; the width of the embeddings is one of them.
    weights: of each length; () is 1 for all.
    normalize: whether what is cut gets length 1 again, as the model's own embeddings have it
      (`DualEncoder.normalize`).
  """

  loss: Any
  dimensions: tuple[Positive, ...]
  weights: tuple[float, ...] = ()
  normalize: bool = True

  def __post_init__(self):
    check_fields(self)
    if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
      raise InputError(f"MatryoshkaLoss.dimensions is {self.dimensions}: give each length of embeddings once, for "
                       "instance (768, 256, 64)")
    if self.weights and len(self.weights) != len(self.dimensions):
      raise InputError(f"MatryoshkaLoss.weights has {len(self.weights)} numbers for {len(self.dimensions)} dimensions: "
                       "give one for each, or none")

  @property
  def weight_of(self) -> dict[int, float]:
    """Of each length, the longest first."""
    weights = self.weights or (1.0,) * len(self.dimensions)
    return dict(sorted(zip(self.dimensions, weights, strict=True), reverse=True))

  @property
  def temperature(self) -> float | None:
    """Of the loss."""
    return getattr(self.loss, "temperature", None)

  @property
  def mask_false_negatives(self) -> bool:
    """Of the loss."""
    return getattr(self.loss, "mask_false_negatives", True)

  @property
  def own_negatives_only(self) -> bool:
    """Of the loss."""
    return getattr(self.loss, "own_negatives_only", False)

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "MatryoshkaLoss":
    """Of the loss."""
    return dataclasses.replace(self, loss=self.loss.on_mesh(mesh))

  def of_teacher(self, dim: int) -> OfTeacher:
    """Of the loss."""
    return of_teacher(self.loss, dim)

  def init_params(self, dim: int) -> dict[str, jax.Array]:
    """Of the loss."""
    return self.loss.init_params(dim)

  def check_width(self, width: int) -> None:
    """Raises InputError where embeddings of this width cannot be cut so, or would not be trained as they are."""
    if max(self.dimensions) != width:
      raise InputError(f"MatryoshkaLoss.dimensions is {self.dimensions}, and embeddings are {width} wide: the longest "
                       "has to be that (or set dual_encoder.DualEncoder.projection_dim)")

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Any, *,
               params: Mapping[str, jax.Array] = NO_PARAMS,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `InBatchLoss`.

    Returns:
      The weighted sum, and the metrics of whole embeddings, but for "loss", which is the sum; "mrr_64" is that of
      embeddings cut to 64 numbers.

    Raises:
      InputError: as `check_width`.
    """
    width = queries.shape[-1]
    self.check_width(width)
    total: Any = jnp.zeros((), jnp.float32)
    found: dict[str, jax.Array] = {}
    for length, weight in self.weight_of.items():
      cut = [x if length == width else self._cut(x, length) for x in (queries, passages)]
      cut = after(total, cut)
      of_length, metrics = self.loss(*cut, batch, params=params, train=train)
      total = total + weight * of_length
      of_less = {f"mrr_{length}": metrics["mrr"]} if "mrr" in metrics else {f"loss_{length}": of_length}
      found |= metrics if length == width else of_less
    return total, {**found, "loss": total}

  def _cut(self, x, length):
    return l2_normalize(x[..., :length]) if self.normalize else x[..., :length]
