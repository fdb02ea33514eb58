"""The dual encoder of GTR (Ni et al. 2021, arXiv 2112.07899): T5 encoder, pooling, projection, L2 normalisation."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gtr_jax.errors import InputError
from gtr_jax.models import t5
from gtr_jax.models.pooling import POOLINGS, l2_normalize
from gtr_jax.parallel.partitioning import constrain, num_groups
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive

TOWERS = ("query", "passage")
_HOW_TO_TRAIN = ("remat", "scan_layers")  # fields of the T5 configuration that change no result


class Tower(nn.Module):
  """Tokens and segment ids `[groups, rows, length]` -> embeddings `[groups, num_texts, dim]`."""

  config: t5.T5Config
  projection_dim: int | None
  pooling: str
  normalize: bool

  @nn.compact
  def __call__(self, tokens: jax.Array, segment_ids: jax.Array, num_texts: int) -> jax.Array:
    hidden = t5.TokenEmbedder(self.config, name="token_embedder")(tokens)
    hidden = t5.Encoder(self.config, name="encoder")(hidden, segment_ids)
    x = POOLINGS[self.pooling](hidden, segment_ids, num_texts)
    x = constrain(x, "group", "text", "activation_embed")
    if self.projection_dim is not None:
      x = Projection(self.projection_dim, name="projection_layer")(x)
    if self.normalize:
      x = l2_normalize(x)
    return constrain(x, "group", "text", "affinity")


class Projection(nn.Module):
  """`x @ kernel` without a bias, in float32 or better whatever the encoder's dtype."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    kernel = self.param("kernel", nn.with_logical_partitioning(init, ("embed", "affinity")),
                        (x.shape[-1], self.features), jnp.float32)
    return jnp.einsum("gte,ea->gta", x, kernel, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class DualEncoder:
  """One T5 encoder for queries and passages, or one for each.

  Attributes:
    config: of the encoder (both towers have the same sizes).
    projection_dim: width of the embeddings; None leaves the encoder's own width and makes no projection layer.
    pooling: "mean" over a text's tokens, or its "first" token.
    normalize: whether embeddings have length 1.
    shared: one tower for both sides, with the parameter tree of `Tower`; otherwise `{"query": tree, "passage": tree}`.
  """

  config: t5.T5Config
  projection_dim: Positive | None = 768
  pooling: str = "mean"
  normalize: bool = True
  shared: bool = True

  def __post_init__(self):
    check_fields(self)
    if self.pooling not in POOLINGS:
      raise InputError(f"DualEncoder.pooling is {self.pooling!r}: use one of {', '.join(POOLINGS)}")

  @property
  def dim(self) -> int:
    """Width of the embeddings."""
    return self.config.emb_dim if self.projection_dim is None else self.projection_dim

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Initial float32 parameters, each boxed as `nn.LogicallyPartitioned` with its logical axis names."""
    mesh = jax.sharding.get_abstract_mesh()
    tokens = jnp.zeros((1 if mesh.empty else num_groups(mesh), 1, 1), jnp.int32)

    def tower_params(key):
      return dict(self._tower().init(key, tokens, tokens, 1)["params"])

    if self.shared:
      return tower_params(key)
    return {tower: tower_params(k) for tower, k in zip(TOWERS, jax.random.split(key), strict=True)}

  def encode(self, params: Mapping[str, Any], texts: Any, num_texts: int, *, tower: str = "query",
             dropout_key: jax.Array | None = None) -> jax.Array:
    """Embeddings of the texts of one side.

    Args:
      params: unboxed parameters; further leaves at the root (`logit_scale`) are ignored.
      texts: `text.packing.Texts`, int32 tokens and segment ids `[groups, rows, length]`.
      num_texts: texts in each group, static; text `i` has segment id `1 + i`.
      tower: "query" or "passage".
      dropout_key: dropout is applied only where it is given; the towers derive different masks from the same key.

    Returns:
      float32 (float64 for float64 parameters) `[groups, num_texts, dim]`; zero for a text without tokens.
    """
    if tower not in TOWERS:
      raise InputError(f"no tower {tower!r}: use one of {', '.join(TOWERS)}")
    params = params if self.shared else params[tower]
    rngs = {} if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, TOWERS.index(tower))}
    return self._tower().apply({"params": params}, texts.tokens, texts.segment_ids, num_texts, rngs=rngs)

  def to_json(self) -> dict[str, Any]:
    """A plain dict for model.json, without what only decides how training is computed."""
    fields = dataclasses.asdict(self)
    for name in _HOW_TO_TRAIN:
      del fields["config"][name]
    fields["config"]["mlp_activations"] = list(self.config.mlp_activations)
    return fields

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> "DualEncoder":
    """The inverse of `to_json`. Raises InputError where a field is unknown or missing."""
    try:
      config = {name: value for name, value in fields["config"].items() if name not in _HOW_TO_TRAIN}
      return cls(**{**fields, "config": t5.T5Config(**config)})
    except (TypeError, KeyError) as e:
      raise InputError(f"the model description does not fit this version of gtr_jax ({e}): write it again with the "
                       "version that made it, or update gtr_jax") from e

  def _tower(self):
    return Tower(self.config, self.projection_dim, self.pooling, self.normalize)
