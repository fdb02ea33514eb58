"""The dual encoder of GTR (Ni et al. 2021, arXiv 2112.07899): T5 encoder, pooling, projection, L2 normalisation."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from gtr_jax.errors import InputError
from gtr_jax.models import t5
from gtr_jax.models.lora import Lora
from gtr_jax.models.pooling import POOLINGS, l2_normalize
from gtr_jax.parallel import shards
from gtr_jax.parallel.partitioning import BATCH_AXES, logical_spec, num_groups, over_shards
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive

TOWERS = ("query", "passage")
# Fields of the T5 configuration that make it no other model.
_HOW_TO_COMPUTE = ("dtype", "remat", "scan_layers", "attention")


class Tower(nn.Module):
  """Tokens and segment ids `[groups, rows, length]` of each side -> embeddings `[groups, num_texts, dim]` of each."""

  config: t5.T5Config
  projection_dim: int | None
  pooling: str
  normalize: bool

  @nn.compact
  def __call__(self, tokens: t5.Sides, segment_ids: t5.Sides, num_texts: Sequence[int]) -> t5.Sides:
    hidden = t5.TokenEmbedder(self.config, name="token_embedder")(tokens)
    hidden = t5.Encoder(self.config, name="encoder")(hidden, segment_ids)
    xs = tuple(map(POOLINGS[self.pooling], hidden, segment_ids, num_texts))
    if self.projection_dim is not None:
      xs = Projection(self.projection_dim, name="projection_layer")(xs)
    return tuple(map(l2_normalize, xs)) if self.normalize else xs


class Projection(nn.Module):
  """`x @ kernel` without a bias, in float32 or better whatever the encoder's dtype, of each side."""

  features: int

  @nn.compact
  def __call__(self, xs: t5.Sides) -> t5.Sides:
    init, axes = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"), ("embed", "affinity")
    own = t5.own_param(self, "kernel", init, axes, (xs[0].shape[-1], self.features))
    kernel = shards.gathered(own, axes, own.dtype)
    return tuple(jnp.einsum("gte,ea->gta", x, kernel, precision=jax.lax.Precision.HIGHEST) for x in xs)


@dataclass(frozen=True)
class DualEncoder:
  """One T5 encoder for queries and passages, or one for each.

  Attributes:
    config: of the encoder (both towers have the same sizes).
    projection_dim: width of the embeddings; None leaves the encoder's own width and makes no projection layer.
    pooling: "mean" over a text's tokens, or its "first" token.
    normalize: whether embeddings have length 1.
    shared: one tower for both sides, with the parameter tree of `Tower`; otherwise `{"query": tree, "passage": tree}`.
    lora: what is trained beside which kernels, instead of all parameters.
  """

  config: t5.T5Config
  projection_dim: Positive | None = 768
  pooling: str = "mean"
  normalize: bool = True
  shared: bool = True
  lora: Lora | None = None

  def __post_init__(self):
    check_fields(self)
    if self.pooling not in POOLINGS:
      raise InputError(f"DualEncoder.pooling is {self.pooling!r}: use one of {', '.join(POOLINGS)}")

  @property
  def dim(self) -> int:
    """Width of the embeddings."""
    return self.config.emb_dim if self.projection_dim is None else self.projection_dim

  @property
  def merged(self) -> "DualEncoder":
    """The same, of parameters that `lora` has been merged into."""
    return dataclasses.replace(self, lora=None)

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Initial float32 parameters, each boxed as `nn.LogicallyPartitioned` with its logical axis names."""
    tokens = jnp.zeros((1, 1, 1), jnp.int32)

    def tower_params(key):
      return dict(self._tower().init(key, (tokens,), (tokens,), (1,))["params"])

    params = tower_params(key) if self.shared else {
        tower: tower_params(k) for tower, k in zip(TOWERS, jax.random.split(key), strict=True)}
    return params if self.lora is None else self.lora.with_factors(params, key)

  @functools.lru_cache  # noqa: B019  (as many as there are models)
  def specs(self) -> dict[str, Any]:
    """How a mesh divides the parameters: a tree of `PartitionSpec`."""
    return jax.tree.map(lambda box: logical_spec(box.names), jax.eval_shape(self.init, jax.random.key(0)),
                        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))

  def encode(self, params: Mapping[str, Any], texts: Any, num_texts: int, *, tower: str = "query",
             dropout_key: jax.Array | None = None) -> jax.Array:
    """Embeddings of the texts of one side.

    Args:
      params: unboxed parameters; further leaves at the root, those of losses, are ignored.
      texts: `text.packing.Texts`, int32 tokens and segment ids `[groups, rows, length]`.
      num_texts: texts in each group, static; text `i` has segment id `1 + i`.
      tower: "query" or "passage".
      dropout_key: dropout is applied only where it is given; the towers derive different masks from the same key.

    Returns:
      float32 (float64 for float64 parameters) `[groups, num_texts, dim]`; zero for a text without tokens.

    Raises:
      InputError: there is no such tower, or the groups cannot be divided over the mesh.
    """
    return self._encode(params, (tower,), (texts,), (num_texts,), dropout_key)[0]

  def encode_both(self, params: Mapping[str, Any], queries: Any, passages: Any, num_texts: tuple[int, int],
                  dropout_key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Embeddings of queries and of passages: as `encode` of each, layer after layer together in a shared tower.

    Args:
      params: as of `encode`.
      queries: the texts of one side.
      passages: and of the other.
      num_texts: of each, in each group, static.
      dropout_key: the masks are others than those of `encode`.
    """
    of_queries, of_passages = self._encode(params, TOWERS, (queries, passages), num_texts, dropout_key)
    return of_queries, of_passages

  def _encode(self, params, towers, texts, num_texts, dropout_key):
    for tower in towers:
      if tower not in TOWERS:
        raise InputError(f"no tower {tower!r}: use one of {', '.join(TOWERS)}")
    mesh, groups = jax.sharding.get_abstract_mesh(), len(texts[0].tokens)
    if not mesh.empty and not mesh.manual_axes and groups % num_groups(mesh):
      raise InputError(f"{groups} groups of texts cannot be divided over {num_groups(mesh)} data shards (mesh "
                       f"{dict(mesh.shape)}): make them a multiple of it, or change the mesh")
    specs, grouped = self.specs(), PartitionSpec(BATCH_AXES)
    params = {name: params[name] for name in specs}
    if shards.within():
      return self._encode_part(towers, num_texts, params, texts, dropout_key)

    def encode(params, texts, dropout_key):
      return self._encode_part(towers, num_texts, shards.own_gradients(params, specs), texts, dropout_key)

    return over_shards(encode, (specs, grouped, PartitionSpec()), grouped)(params, texts, dropout_key)

  def _encode_part(self, towers, num_texts, params, texts, dropout_key):
    """Of the groups that are here."""
    sides = [(tower, of_side.tokens, of_side.segment_ids, number)
             for tower, of_side, number in zip(towers, texts, num_texts, strict=True)]
    embeddings = []
    if self.lora is not None:
      params = self.lora.scaled(params)
    for of_tower in [sides] if self.shared else [[side] for side in sides]:
      (tower, *_), *inputs = zip(*of_tower, strict=True)
      rngs = {} if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, TOWERS.index(tower))}
      own = params if self.shared else params[tower]
      embeddings += self._tower().apply({"params": own}, *inputs, rngs=rngs)
    return tuple(embeddings)

  def to_json(self) -> dict[str, Any]:
    """A plain dict for model.json, without what only decides how it is computed."""
    fields = dataclasses.asdict(self)
    for name in _HOW_TO_COMPUTE:
      del fields["config"][name]
    fields["config"]["mlp_activations"] = list(self.config.mlp_activations)
    if self.lora is None:
      del fields["lora"]
    else:
      fields["lora"]["kernels"] = list(self.lora.kernels)
    return fields

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> "DualEncoder":
    """The inverse of `to_json`. Raises InputError where a field is unknown or missing."""
    try:
      config = {name: value for name, value in fields["config"].items() if name not in _HOW_TO_COMPUTE}
      lora = {"lora": Lora(**fields["lora"])} if fields.get("lora") is not None else {}
      return cls(**{**fields, "config": t5.T5Config(**config), **lora})
    except (TypeError, KeyError) as e:
      raise InputError(f"the model description does not fit this version of gtr_jax ({e}): write it again with the "
                       "version that made it, or update gtr_jax") from e

  def _tower(self):
    return Tower(self.config, self.projection_dim, self.pooling, self.normalize)
