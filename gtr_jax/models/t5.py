"""The T5 encoder (Raffel et al. 2020, arXiv 1910.10683): T5 1.0 (ReLU), T5 1.1 and mT5 (gated GELU).

The parameter tree is T5X's: unscanned layers, two-dimensional kernels `[embed, joined_kv]`, logical axis names on every
parameter. Attention sees only equal segment ids, and T5's relative positions depend only on distance, so a row may
hold one text or several and no text's result changes.

Everything from the embedder to the last norm takes the texts of several sides at once, each as an array of its own, and
takes them through layer after layer together: so a layer's parameters are gathered once for all of them, and so are
their gradients summed. Within `partitioning.over_shards` a module has a part of the heads, of the MLP's columns and of
the vocabulary, and what it adds up is that of all (Shoeybi et al. 2019, arXiv 1909.08053).

Letters: G groups, R rows, L length (also Q query and K key positions), E embed, H heads, D head_dim, F mlp, B buckets.
"""

import functools
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from gtr_jax.errors import InputError
from gtr_jax.models.attention import Pattern, attention, pattern, way_of
from gtr_jax.models.attention_kernel import KEPT
from gtr_jax.models.dropout import dropout
from gtr_jax.models.lora import FACTORS
from gtr_jax.parallel import shards
from gtr_jax.parallel.partitioning import platform
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive, Range

NORM_EPSILON = 1e-6
DTYPES = ("float32", "bfloat16")  # of activations
ATTENTIONS = ("auto", "reference", "kernel")
Sides = tuple[jax.Array, ...]

_ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "linear": lambda x: x,
}
_of_attention = jax.checkpoint_policies.save_only_these_names(KEPT)
_REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _of_attention),
    "mlp": _of_attention,
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
    dtype: of the activations: "bfloat16"; "float32" (which follows float64 parameters up); or "auto", the first on TPUs
      and GPUs and the second on CPUs.
    remat: what the backward pass computes again instead of keeping it. Attention weights always; with "none" nothing
      else; with "dots" all but the results of the matrix products; with "mlp" norms and the MLP's hidden layer, which
      is most of the memory and a third of the products (of the gated MLP more); with "layer" all but the input of each
      layer.
    scan_layers: compile one layer and loop over it: compiles faster, and copies the layers' parameters for the loop.
      The parameter tree stays the same; dropout draws other masks.
    attention: "reference", which holds logits of `[H, L, L]` a row; "kernel", on TPUs, which holds none and leaves out
      what texts of a packed row have nothing to do with (`attention_kernel`), and is the reference where there is no
      kernel for rows of a length, and on CPUs and GPUs; or "auto", which leaves that out on CPUs (`attention_by_text`)
      and is the reference elsewhere.
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
  dtype: str = "auto"
  remat: str = "none"
  scan_layers: bool = False
  attention: str = "auto"

  def __post_init__(self):
    check_fields(self)
    if self.remat not in _REMAT_POLICIES:
      raise InputError(f"T5Config.remat is {self.remat!r}: use one of {', '.join(_REMAT_POLICIES)}")
    if self.attention not in ATTENTIONS:
      raise InputError(f"T5Config.attention is {self.attention!r}: use one of {', '.join(ATTENTIONS)}")
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    if self.mlp_activations not in (("relu",), ("gelu", "linear")):
      raise InputError(f"T5Config.mlp_activations is {self.mlp_activations}: use ('relu',) for T5 1.0, "
                       "('gelu', 'linear') for T5 1.1 and mT5")
    if self.dtype not in ("auto", *DTYPES):
      raise InputError(f"T5Config.dtype is {self.dtype!r}: use 'auto', 'float32' or 'bfloat16' (T5 overflows in "
                       "float16)")
    if self.relpos_buckets < 4 or self.relpos_buckets % 2 or self.relpos_max_distance <= self.relpos_buckets // 4:
      raise InputError(f"T5Config.relpos_buckets is {self.relpos_buckets} and relpos_max_distance "
                       f"{self.relpos_max_distance}: use an even number of at least 4 buckets, and a distance above a "
                       "quarter of it")

  def dtype_on(self, platform: str) -> str:
    """`dtype`, or what "auto" means on this platform: "cpu", "gpu" or "tpu"."""
    if self.dtype != "auto":
      return self.dtype
    return "float32" if platform == "cpu" else "bfloat16"


class Linear(nn.Module):
  """`x @ kernel` without a bias, in the config's activation dtype, of each side.

  Where `model` divides the inputs, what comes is the sum over its devices; its terms are float32 or better. Where there
  are factors beside the kernel (`lora`), `(x @ lora_a) @ lora_b` is added.
  """

  config: T5Config
  features: int
  axes: tuple[str, str]
  init: Callable

  @nn.compact
  def __call__(self, xs: Sides) -> Sides:
    own = own_param(self, "kernel", self.init, self.axes, (xs[0].shape[-1], self.features))
    dtype, is_sum = _activation_dtype(self.config, own), shards.is_divided(self.axes[0], "model")
    factors: list[jax.Array] = [
        self.get_variable("params", name) for name in FACTORS if self.has_variable("params", name)]

    def products(own, factors, xs):
      kernel = shards.gathered(own, self.axes, dtype)
      product = functools.partial(jnp.einsum, "...i,io->...o", precision=_precision(self.config),
                                  preferred_element_type=jnp.promote_types(dtype, jnp.float32) if is_sum else None)
      ys = tuple(product(x.astype(dtype), kernel) for x in xs)
      if not factors:
        return ys
      a, b = factors  # `model` divides one of them, and the gradient of the other is summed along it, in its own dtype.
      a, b = (a, shards.varying(b, "model")) if is_sum else (shards.varying(a, "model"), b)
      a = shards.gathered(a, (self.axes[0], "lora_rank"), dtype)
      b = shards.gathered(b, ("lora_rank", self.axes[1]), dtype)
      return tuple(y + product(product(x.astype(dtype), a).astype(dtype), b) for x, y in zip(xs, ys, strict=True))

    if self.config.remat == "none" and shards.size("fsdp") > 1:
      products = jax.checkpoint(products)  # What is gathered is never kept: nor would the other kinds of remat keep it.
    ys = products(own, factors, xs)
    return tuple(shards.summed(y, "model").astype(dtype) for y in ys) if is_sum else ys


class RMSNorm(nn.Module):
  """`x / sqrt(mean(x^2) + 1e-6) * scale`, float32 or better; no mean subtracted, no bias."""

  config: T5Config

  @nn.compact
  def __call__(self, xs: Sides) -> Sides:
    own = own_param(self, "scale", nn.initializers.ones, ("embed",), (xs[0].shape[-1],))
    scale = shards.gathered(own, ("embed",), own.dtype)

    def normalized(x):
      x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
      return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))

    return tuple(map(normalized, xs))


class TokenEmbedder(nn.Module):
  """Token ids `[G, R, L]` -> vectors `[G, R, L, E]`, of each side."""

  config: T5Config

  @nn.compact
  def __call__(self, tokens: Sides) -> Sides:
    config = self.config
    table = own_param(self, "embedding", nn.initializers.normal(1.0), ("vocab", "embed"),
                      (config.vocab_size, config.emb_dim))
    flat = [x.reshape(len(x), -1) for x in tokens]
    vectors = shards.look_up(table, jnp.concatenate(flat, axis=1), _activation_dtype(config, table))
    of_sides = jnp.split(vectors, list(itertools.accumulate(x.shape[1] for x in flat))[:-1], axis=1)
    return tuple(x.reshape(*of_side.shape, -1) for x, of_side in zip(of_sides, tokens, strict=True))


class RelativePositionBias(nn.Module):
  """The bias that all layers share, within what `attention` takes, for each side's segment ids `[G, R, L]`."""

  config: T5Config

  @nn.compact
  def __call__(self, segment_ids: Sides) -> tuple[Pattern, ...]:
    config = self.config
    table = own_param(self, "rel_embedding", _fan_avg_uniform, ("heads", "relpos_buckets"),
                      (config.num_heads, config.relpos_buckets))

    def of_side(ids):
      return pattern(table, ids, config.relpos_max_distance,
                     way_of(config.attention, ids.shape[2], len(table), config.head_dim))

    return tuple(map(of_side, segment_ids))


class SelfAttention(nn.Module):
  """Multi-head self-attention, `[G, R, L, E]` -> `[G, R, L, E]`, of each side."""

  config: T5Config

  @nn.compact
  def __call__(self, xs: Sides, patterns: tuple[Pattern, ...]) -> Sides:
    config = self.config

    def heads(name, init):
      joined = Linear(config, config.num_heads * config.head_dim, ("embed", "joined_kv"), init, name=name)(xs)
      return [x.reshape(*x.shape[:-1], -1, config.head_dim) for x in checkpoint_name(joined, KEPT)]

    # The missing 1 / sqrt(head_dim) of the logits is in the initial query kernel.
    inputs = (heads("query", lambda *args: _fan_in_normal(*args) * config.head_dim**-0.5),
              heads("key", _fan_in_normal), heads("value", _fan_in_normal), patterns)
    of_heads = (attention(*of_side, dropout_rate=config.dropout_rate, dropout_key=_dropout_key(self),
                          precision=_precision(config)) for of_side in zip(*inputs, strict=True))
    outs = tuple(checkpoint_name(out.reshape(*out.shape[:-2], -1), KEPT) for out in of_heads)
    return checkpoint_name(
        Linear(config, config.emb_dim, ("joined_kv", "embed"), _fan_in_normal, name="out")(outs), KEPT)


class MLP(nn.Module):
  """ReLU MLP, or gated GELU with two input kernels (Shazeer 2020, arXiv 2002.05202), of each side."""

  config: T5Config

  @nn.compact
  def __call__(self, xs: Sides) -> Sides:
    config = self.config
    names = ["wi"] if len(config.mlp_activations) == 1 else [f"wi_{i}" for i in range(len(config.mlp_activations))]
    parts = [tuple(map(_ACTIVATIONS[activation], Linear(
        config, config.mlp_dim, ("embed", "mlp"), _fan_in_truncated, name=name)(xs)))
        for name, activation in zip(names, config.mlp_activations, strict=True)]
    hidden = tuple(dropout(functools.reduce(operator.mul, of_side), config.dropout_rate, _dropout_key(self), of_model=3)
                   for of_side in zip(*parts, strict=True))
    return Linear(config, config.emb_dim, ("mlp", "embed"), _fan_in_truncated, name="wo")(hidden)


class EncoderLayer(nn.Module):
  """Pre-norm attention and MLP, each on a residual, of each side."""

  config: T5Config

  @nn.compact
  def __call__(self, xs: Sides, patterns: tuple[Pattern, ...]) -> Sides:
    config = self.config

    def added(xs, ys):
      return tuple(x + dropout(y, config.dropout_rate, _dropout_key(self)) for x, y in zip(xs, ys, strict=True))

    def normalized(name):
      # The gradient is summed over `model` here, once for all products, and before it has the activations' dtype.
      return tuple(shards.varying(y, "model") for y in RMSNorm(config, name=name)(xs))

    ys = normalized("pre_attention_layer_norm")
    xs = added(xs, SelfAttention(config, name="attention")(ys, patterns))
    ys = normalized("pre_mlp_layer_norm")
    return added(xs, MLP(config, name="mlp")(ys))


class Encoder(nn.Module):
  """Embedded tokens `[G, R, L, E]` and segment ids `[G, R, L]` of each side -> `[G, R, L, E]` of each.

  Dropout where there is an rng.
  """

  config: T5Config

  @nn.compact
  def __call__(self, xs: Sides, segment_ids: Sides) -> Sides:
    config = self.config
    patterns = RelativePositionBias(config, name="relpos_bias")(segment_ids)
    xs = self._dropout(xs)
    if config.scan_layers and not self.is_initializing():
      xs = self._scan_layers(xs, patterns)
    else:
      for i in range(config.num_layers):
        xs = _remat_layer(config)(config, name=f"layers_{i}")(xs, patterns)
    normalized = RMSNorm(config, name="encoder_norm")(xs)
    return self._dropout(tuple(y.astype(x.dtype) for x, y in zip(xs, normalized, strict=True)))

  def _dropout(self, xs):
    return tuple(dropout(x, self.config.dropout_rate, _dropout_key(self)) for x in xs)

  def _scan_layers(self, xs, patterns):
    """The layers as a loop over their stacked parameters: each layer gathers its own, and in their dtype are the
    gradients that the loop stacks. Where only some layers have factors, as a loop for each stretch of layers alike."""
    config = self.config
    layers = [self.variables["params"][f"layers_{i}"] for i in range(config.num_layers)]
    key = _dropout_key(self)
    keys = None if key is None else jax.random.split(key, config.num_layers)

    def step(xs, of_layer):
      params, key = of_layer
      rngs = {} if key is None else {"dropout": key}
      return _remat_layer(config)(config, parent=None).apply({"params": params}, xs, patterns, rngs=rngs), None

    begin = 0
    for _, alike in itertools.groupby(layers, jax.tree.structure):
      params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(stretch := list(alike)))
      end = begin + len(stretch)
      xs, _ = jax.lax.scan(step, xs, (params, None if keys is None else keys[begin:end]))
      begin = end
    return xs


def _remat_layer(config):
  policy = _REMAT_POLICIES[config.remat]
  return EncoderLayer if policy is None else nn.remat(EncoderLayer, policy=policy)


def own_param(module: nn.Module, name: str, init: Callable, axes: tuple[str, ...],
              shape: tuple[int, ...]) -> jax.Array:
  """A module's float32 parameter of this shape, or the part of it that this device has."""
  if shards.within():
    return module.get_variable("params", name)  # `param` would refuse a part.
  param: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
  return param


def _activation_dtype(config, param):
  return jnp.bfloat16 if config.dtype_on(platform()) == "bfloat16" else jnp.promote_types(param.dtype, jnp.float32)


def _precision(config):
  """float32 means float32: GPUs and TPUs would take fewer bits by default."""
  return None if config.dtype_on(platform()) == "bfloat16" else jax.lax.Precision.HIGHEST


def _dropout_key(module):
  return module.make_rng("dropout") if module.has_rng("dropout") else None
