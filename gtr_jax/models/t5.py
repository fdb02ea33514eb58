"""The T5 encoder (Raffel et al. 2020, arXiv 1910.10683): T5 1.0 (ReLU), T5 1.1 and mT5 (gated GELU).

The parameter tree is T5X's: unscanned layers, two-dimensional kernels `[embed, joined_kv]`, logical axis names on every
parameter. Attention sees only equal segment ids, and T5's relative positions depend only on distance, so a row may
hold one text or several and no text's result changes.

Letters: G groups, R rows, L length (also Q query and K key positions), E embed, H heads, D head_dim, F mlp, B buckets.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from gtr_jax.errors import InputError
from gtr_jax.parallel.partitioning import constrain, own_part
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive, Range

NORM_EPSILON = 1e-6

_ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "linear": lambda x: x,
}
_REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layer": jax.checkpoint_policies.nothing_saveable,
}
_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


@dataclass(frozen=True)
class T5Config:
  """Sizes and numerics of a T5 encoder.

  Attributes:
    vocab_size: rows of the token embedding.
    emb_dim: width of the residual stream.
    num_heads: attention heads.
    head_dim: width of a head; num_heads * head_dim need not be emb_dim.
    mlp_dim: width of the MLP's hidden layer.
    num_layers: layers.
    mlp_activations: ("relu",) for T5 1.0; ("gelu", "linear") for the gated GELU of T5 1.1 and mT5.
    relpos_buckets: buckets of the relative position bias, half of them for each direction.
    relpos_max_distance: distances from here on share one bucket.
    dropout_rate: used only where a dropout key is given.
    dtype: of the activations: "bfloat16", or "float32" (which follows float64 parameters up).
    remat: what the backward pass computes again instead of keeping it. Attention weights always; with "none" nothing
      else; with "dots" all but the results of the matrix products; with "layer" all but the input of each layer.
    scan_layers: compile one layer and loop over it: compiles faster, and copies the layers' parameters for the loop.
      The parameter tree stays the same; dropout draws other masks.
  """

  vocab_size: Positive
  emb_dim: Positive
  num_heads: Positive
  head_dim: Positive
  mlp_dim: Positive
  num_layers: Positive
  mlp_activations: tuple[str, ...] = ("relu",)
  relpos_buckets: Positive = 32
  relpos_max_distance: Positive = 128
  dropout_rate: Annotated[float, Range(0, below=1)] = 0.0
  dtype: str = "float32"
  remat: str = "none"
  scan_layers: bool = False

  def __post_init__(self):
    check_fields(self)
    if self.remat not in _REMAT_POLICIES:
      raise InputError(f"T5Config.remat is {self.remat!r}: use one of {', '.join(_REMAT_POLICIES)}")
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    if self.mlp_activations not in (("relu",), ("gelu", "linear")):
      raise InputError(f"T5Config.mlp_activations is {self.mlp_activations}: use ('relu',) for T5 1.0, "
                       "('gelu', 'linear') for T5 1.1 and mT5")
    if self.dtype not in ("float32", "bfloat16"):
      raise InputError(f"T5Config.dtype is {self.dtype!r}: use 'float32' or 'bfloat16' (T5 overflows in float16)")
    if self.relpos_buckets < 4 or self.relpos_buckets % 2 or self.relpos_max_distance <= self.relpos_buckets // 4:
      raise InputError(f"T5Config.relpos_buckets is {self.relpos_buckets} and relpos_max_distance "
                       f"{self.relpos_max_distance}: use an even number of at least 4 buckets, and a distance above a "
                       "quarter of it")


def relative_position_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
  """T5's bidirectional bucket of `key position - query position` (arXiv 1910.10683, section 2.1).

  Half of the buckets are for keys after the query. The first half of each half is one distance each; the rest, from
  `exact` on, grow by equal factors up to `max_distance`: `exact + floor(log(d / exact) / log(max / exact) * steps)`.
  Counted in integers, because rounding shows: bfloat16 is wrong at distances 45 and 90, and a device's own logarithm
  may fall below the exact steps at 16, 32 and 64.
  """
  half = num_buckets // 2
  exact = half // 2
  steps = half - exact
  size = abs(distance)
  if size >= exact:
    # log(d / exact) / log(max / exact) >= k / steps, without the logarithms.
    size = exact + sum(size**steps * exact**k >= max_distance**k * exact**steps for k in range(1, steps))
  return size + half * (distance > 0)


def attention(query_GxRxQxHxD: jax.Array, key_GxRxKxHxD: jax.Array, value_GxRxKxHxD: jax.Array,
              bias_GxHxQxK: jax.Array, segment_ids_GxRxL: jax.Array, *, dropout_rate: float = 0.0,
              dropout_key: jax.Array | None = None, precision: jax.lax.PrecisionLike = None) -> jax.Array:
  """Softmax attention within equal segment ids, `[G, R, Q, H, D]`. No scaling by 1 / sqrt(D), as in T5.

  Logits, bias and softmax are in float32 or better. Padding attends to padding, so no row of the softmax is empty.
  The `[H, Q, K]` weights of a row are computed again in the backward pass instead of being kept, a few rows at a time
  where that keeps them in the cache.
  """
  dtype = query_GxRxQxHxD.dtype
  rows, length, heads = query_GxRxQxHxD.shape[1:4]

  def of_rows(query, key, value, segment_ids, keep):
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key, precision=precision,
                        preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    bias = bias_GxHxQxK.astype(logits.dtype)
    logits = logits + bias.reshape(bias.shape[:1] + (1,) * (logits.ndim - bias.ndim) + bias.shape[1:])
    same_text = segment_ids[..., None, :, None] == segment_ids[..., None, None, :]
    weights = jax.nn.softmax(jnp.where(same_text, logits, jnp.finfo(logits.dtype).min), axis=-1)
    if keep is not None:
      weights = jnp.where(keep, weights / (1 - dropout_rate), 0)
    return jnp.einsum("...hqk,...khd->...qhd", weights.astype(dtype), value, precision=precision)

  keep = None
  if dropout_key is not None and dropout_rate:
    # One mask for all query positions, as in T5.
    keep = _keep(dropout_key, dropout_rate, (*segment_ids_GxRxL.shape[:2], heads, 1, length))
  inputs = (query_GxRxQxHxD, key_GxRxKxHxD, value_GxRxKxHxD, segment_ids_GxRxL, keep)
  at_once = max(1, _attention_bytes() // (4 * heads * length**2))
  if rows <= at_once:
    return jax.checkpoint(of_rows)(*inputs)
  inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs)
  out = jax.lax.map(lambda row: jax.checkpoint(of_rows)(*row), inputs, batch_size=at_once)
  return jnp.moveaxis(out, 0, 1)


def _attention_bytes() -> int:
  """How large the attention weights of the rows that are worked on at once may be, in float32."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)  # One may compile for another platform.
  platform = jax.default_backend() if device is None else device.platform
  return 2**21 if platform == "cpu" else 2**30


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout with one mask for all positions (axis -2), as in T5; `x` itself where `key` is None."""
  if key is None or rate == 0:
    return x
  return jnp.where(_keep(key, rate, (*x.shape[:-2], 1, x.shape[-1])), x / (1 - rate), 0)


def _keep(key, rate, shape):
  return own_part(lambda shape: jax.random.bernoulli(key, 1 - rate, shape), shape)


class Linear(nn.Module):
  """`x @ kernel` without a bias, in the config's activation dtype."""

  config: T5Config
  features: int
  axes: tuple[str, str]
  init: Callable

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = _param(self, "kernel", self.init, self.axes, (x.shape[-1], self.features))
    dtype = _activation_dtype(self.config, kernel)
    return jnp.einsum("...i,io->...o", x.astype(dtype), kernel.astype(dtype), precision=_precision(self.config))


class RMSNorm(nn.Module):
  """`x / sqrt(mean(x^2) + 1e-6) * scale`, in float32 or better; no mean subtracted, no bias."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = _param(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
    dtype = _activation_dtype(self.config, scale)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
    return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)


class TokenEmbedder(nn.Module):
  """Token ids `[G, R, L]` -> vectors `[G, R, L, E]`."""

  config: T5Config

  @nn.compact
  def __call__(self, tokens_GxRxL: jax.Array) -> jax.Array:
    config = self.config
    table = _param(self, "embedding", nn.initializers.normal(1.0), ("vocab", "embed"),
                   (config.vocab_size, config.emb_dim))
    return _look_up(_activation_dtype(config, table), table, tokens_GxRxL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(dtype: jnp.dtype, table: jax.Array, tokens_GxRxL: jax.Array) -> jax.Array:
  """Rows of the table in this dtype. Their gradients, thousands for a frequent token, are summed in the table's.

  Under fsdp the table is gathered, and not the activations; its gradient stays divided like the table.
  """
  table = constrain(constrain(table.astype(dtype), "vocab", "embed"), "vocab", None)
  return _constrain_hidden(jnp.take(table, tokens_GxRxL, axis=0))


def _look_up_gradient(dtype, looked_up, gradient_GxRxLxE):
  table, tokens_GxRxL = looked_up
  gradient_GxRxLxE = constrain(_constrain_hidden(gradient_GxRxLxE), "data_group", "row", "length", "embed")
  total = jnp.zeros_like(table).at[tokens_GxRxL].add(gradient_GxRxLxE.astype(table.dtype))
  return constrain(total, "vocab", "embed"), None


_look_up.defvjp(lambda dtype, table, tokens_GxRxL: (_look_up(dtype, table, tokens_GxRxL), (table, tokens_GxRxL)),
                _look_up_gradient)


class RelativePositionBias(nn.Module):
  """The bias that all layers share, once for each group, `[G, H, L, L]`."""

  config: T5Config

  @nn.compact
  def __call__(self, groups: int, length: int) -> jax.Array:
    config = self.config
    table_HxB = _param(self, "rel_embedding", _fan_avg_uniform, ("heads", "relpos_buckets"),
                       (config.num_heads, config.relpos_buckets))
    # The bias is constant along diagonals. Distances 0, 1, .., L - 1, then -L, .., -1, in one period of 2 L; the flat
    # sequence of repeats, read in rows of 2 L - 1, moves by one place to the right in each row: [i, j] is at j - i.
    buckets = [relative_position_bucket(distance, config.relpos_buckets, config.relpos_max_distance)
               for distance in (*range(length), *range(-length, 0))]
    # Each group has a table of its own: its gradient is summed over the devices once, and not in every layer.
    table_GxHxB = jnp.broadcast_to(table_HxB[None], (groups, *table_HxB.shape))
    table_GxHxB = constrain(table_GxHxB, "group", "activation_heads", None)
    flat = jnp.tile(jnp.take(table_GxHxB, jnp.array(buckets), axis=2), (1, 1, length))[..., :length * (2 * length - 1)]
    bias_GxHxLxL = flat.reshape(*table_GxHxB.shape[:2], length, 2 * length - 1)[..., :length]
    return constrain(bias_GxHxLxL, "group", "activation_heads", None, None)


class SelfAttention(nn.Module):
  """Multi-head self-attention, `[G, R, L, E]` -> `[G, R, L, E]`."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, segment_ids: jax.Array, bias_GxHxLxL: jax.Array) -> jax.Array:
    config = self.config

    def heads(name, init):
      joined = Linear(config, config.num_heads * config.head_dim, ("embed", "joined_kv"), init, name=name)(x)
      split = joined.reshape(*joined.shape[:-1], config.num_heads, config.head_dim)
      return constrain(split, "group", "row", "length", "activation_heads", "head_dim")

    # The missing 1 / sqrt(head_dim) of the logits is in the initial query kernel.
    query = heads("query", lambda *args: _fan_in_normal(*args) * config.head_dim**-0.5)
    key, value = heads("key", _fan_in_normal), heads("value", _fan_in_normal)
    out = attention(query, key, value, bias_GxHxLxL, segment_ids, dropout_rate=config.dropout_rate,
                    dropout_key=_dropout_key(self), precision=_precision(config))
    out = out.reshape(*out.shape[:-2], -1)
    return Linear(config, config.emb_dim, ("joined_kv", "embed"), _fan_in_normal, name="out")(out)


class MLP(nn.Module):
  """ReLU MLP, or gated GELU with two input kernels (Shazeer 2020, arXiv 2002.05202)."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    names = ["wi"] if len(config.mlp_activations) == 1 else [f"wi_{i}" for i in range(len(config.mlp_activations))]
    parts = (_ACTIVATIONS[activation](Linear(config, config.mlp_dim, ("embed", "mlp"), _fan_in_truncated, name=name)(x))
             for name, activation in zip(names, config.mlp_activations, strict=True))
    hidden = constrain(functools.reduce(operator.mul, parts), "group", "row", "length", "activation_mlp")
    hidden = dropout(hidden, config.dropout_rate, _dropout_key(self))
    return Linear(config, config.emb_dim, ("mlp", "embed"), _fan_in_truncated, name="wo")(hidden)


class EncoderLayer(nn.Module):
  """Pre-norm attention and MLP, each on a residual."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, segment_ids: jax.Array, bias_GxHxLxL: jax.Array) -> jax.Array:
    config = self.config
    y = RMSNorm(config, name="pre_attention_layer_norm")(x)
    y = SelfAttention(config, name="attention")(y, segment_ids, bias_GxHxLxL)
    x = _constrain_hidden(x + dropout(y, config.dropout_rate, _dropout_key(self)))
    y = RMSNorm(config, name="pre_mlp_layer_norm")(x)
    y = MLP(config, name="mlp")(y)
    return _constrain_hidden(x + dropout(y, config.dropout_rate, _dropout_key(self)))


class Encoder(nn.Module):
  """Embedded tokens `[G, R, L, E]` and segment ids `[G, R, L]` -> `[G, R, L, E]`. Dropout where there is an rng."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
    config = self.config
    bias_GxHxLxL = RelativePositionBias(config, name="relpos_bias")(x.shape[0], x.shape[2])
    x = dropout(x, config.dropout_rate, _dropout_key(self))
    if config.scan_layers and not self.is_initializing():
      x = self._scan_layers(x, segment_ids, bias_GxHxLxL)
    else:
      for i in range(config.num_layers):
        x = _remat_layer(config)(config, name=f"layers_{i}")(x, segment_ids, bias_GxHxLxL)
    x = RMSNorm(config, name="encoder_norm")(x)
    return dropout(x, config.dropout_rate, _dropout_key(self))

  def _scan_layers(self, x, segment_ids, bias_GxHxLxL):
    """The layers as one loop over their stacked parameters, kernels already in the activation dtype."""
    config = self.config

    def stacked(path, *leaves):
      dtype = _activation_dtype(config, leaves[0]) if path[-1].key == "kernel" else leaves[0].dtype
      return jnp.stack([leaf.astype(dtype) for leaf in leaves])

    params = jax.tree_util.tree_map_with_path(
        stacked, *(self.variables["params"][f"layers_{i}"] for i in range(config.num_layers)))
    key = _dropout_key(self)
    keys = None if key is None else jax.random.split(key, config.num_layers)

    def step(x, of_layer):
      params, key = of_layer
      rngs = {} if key is None else {"dropout": key}
      return _remat_layer(config)(config, parent=None).apply({"params": params}, x, segment_ids, bias_GxHxLxL,
                                                             rngs=rngs), None

    return jax.lax.scan(step, x, (params, keys))[0]


def _remat_layer(config):
  policy = _REMAT_POLICIES[config.remat]
  return EncoderLayer if policy is None else nn.remat(EncoderLayer, policy=policy)


def _param(module, name, init, axes, shape):
  return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def _activation_dtype(config, param):
  return jnp.bfloat16 if config.dtype == "bfloat16" else jnp.promote_types(param.dtype, jnp.float32)


def _precision(config):
  """float32 means float32: GPUs and TPUs would take fewer bits by default."""
  return None if config.dtype == "bfloat16" else jax.lax.Precision.HIGHEST


def _dropout_key(module):
  return module.make_rng("dropout") if module.has_rng("dropout") else None


def _constrain_hidden(x):
  return constrain(x, "group", "row", "length", "activation_embed")
