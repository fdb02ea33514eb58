"""T5's attention on CPUs, text by text: of a packed row only what its texts have to do with themselves is computed.

The texts of all rows are sorted by size, and of each size a few are taken at a time: as many as keep the cores busy
with logits that stay in their caches. A text is taken as a multiple of some positions, so that the compiler gets a
handful of shapes; what lies before or behind it is masked. The backward pass computes the weights again.

Letters: P positions of all rows, B texts at once, S positions that a text is taken as, H heads, D head_dim, L length of
a row.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.parallel import shards

SHORTEST = 128  # Positions of a row from which on this is faster than whole rows.
_LOGITS, _TEXTS = 2**18, 4  # At once, at most.


class Texts(NamedTuple):
  """Where the texts of rows are, int32: sorted by size; behind them, what is none.

  Attributes:
    begins: the first position of each, among those of all rows one behind the other, `[P]`.
    lengths: of each, `[P]`.
    bounds: the first text of each of `_sizes`, and behind the last.
  """

  begins: jax.Array
  lengths: jax.Array
  bounds: jax.Array


def texts_of(segment_ids_NxL: jax.Array) -> Texts:
  """The runs of equal segment ids but 0."""
  ids, sizes = segment_ids_NxL, jnp.array(_sizes(segment_ids_NxL.shape[1]))
  nothing = jnp.zeros_like(ids[:, :1])
  is_first = (ids != 0) & (ids != jnp.concatenate([nothing, ids[:, :-1]], axis=1))
  is_last = (ids != 0) & (ids != jnp.concatenate([ids[:, 1:], nothing], axis=1))
  begins, = jnp.nonzero(is_first.reshape(-1), size=ids.size, fill_value=ids.size)
  ends, = jnp.nonzero(is_last.reshape(-1), size=ids.size, fill_value=ids.size - 1)
  lengths = ends + 1 - begins
  size = jnp.where(lengths > 0, jnp.searchsorted(sizes, lengths), len(sizes))
  order = jnp.argsort(size)
  return Texts(begins[order], lengths[order], jnp.searchsorted(size[order], jnp.arange(len(sizes) + 1)))


def _sizes(length):
  """What texts of up to so many positions are taken as: multiples of 32, and above 128 of a third or a quarter."""
  found = [0]
  while found[-1] < length:
    found.append(min(found[-1] + max(32, 2**max(found[-1].bit_length() - 2, 0)), length))
  return found[1:]


class _Group(NamedTuple):
  """Some texts of one size; where there are no more, the last one again, whose result is the same."""

  size: int
  begins: jax.Array  # [B]
  is_text: jax.Array  # [B, S]
  is_again: jax.Array  # [B]

  def of(self, x_PxHxD):
    """`[B, S, H, D]`"""
    return jax.vmap(lambda begin: jax.lax.dynamic_slice_in_dim(x_PxHxD, begin, self.size))(self.begins)

  def put(self, x_PxHxD, new_BxSxHxD):
    """What is not of these texts stays."""
    for begin, is_text, new in zip(self.begins, self.is_text, new_BxSxHxD, strict=True):
      old = jax.lax.dynamic_slice_in_dim(x_PxHxD, begin, self.size)
      new = jnp.where(is_text[:, None, None], new.astype(old.dtype), old)
      x_PxHxD = jax.lax.dynamic_update_slice_in_dim(x_PxHxD, new, begin, 0)
    return x_PxHxD


def _over_groups(of_group: Callable[[_Group, Any], Any], length: int, like_PxHxD: jax.Array, texts: Texts,
                 carry: Any) -> Any:
  """What `of_group` makes of the carry, one group after the other."""
  positions, heads, _ = like_PxHxD.shape
  for number, size in enumerate(_sizes(length)):
    at_once = max(1, min(_TEXTS, _LOGITS // (heads * size**2)))
    first, behind = texts.bounds[number], texts.bounds[number + 1]

    def body(step, carry, size=size, at_once=at_once, first=first, behind=behind):
      texts_B = first + step * at_once + jnp.arange(at_once)
      is_again, texts_B = texts_B >= behind, jnp.minimum(texts_B, behind - 1)
      begins = jnp.minimum(texts.begins[texts_B], positions - size)  # Of the last texts, from before them on.
      before, lengths = (texts.begins[texts_B] - begins)[:, None], texts.lengths[texts_B][:, None]
      position = jnp.arange(size)[None]
      is_text = (position >= before) & (position < before + lengths)
      return of_group(_Group(size, begins, is_text, is_again), carry)

    carry = jax.lax.fori_loop(0, -(-(behind - first) // at_once), body, carry)
  return carry


def _weights(query_BxHxSxD, key_BxHxDxS, bias_HxLxL, group, precision):
  dtype = jnp.promote_types(query_BxHxSxD.dtype, jnp.float32)
  logits = jnp.matmul(query_BxHxSxD, key_BxHxDxS, precision=precision, preferred_element_type=dtype)
  logits = logits + bias_HxLxL[None, :, :group.size, :group.size].astype(dtype)
  return jax.nn.softmax(jnp.where(group.is_text[:, None, None], logits, jnp.finfo(dtype).min), axis=-1)


def _by_head(*xs_BxSxHxD):
  """`[B, H, S, D]`, written out: products of operands whose heads are apart are slower."""
  return jax.lax.optimization_barrier(tuple(x.swapaxes(1, 2) for x in xs_BxSxHxD))


def _turned(*xs_BxSxHxD):
  """`[B, H, D, S]`, written out."""
  return jax.lax.optimization_barrier(tuple(x.transpose(0, 2, 3, 1) for x in xs_BxSxHxD))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(length, precision, q, k, v, bias, texts):
  return _forward(length, precision, q, k, v, bias, texts)[0]


def _forward(length, precision, q, k, v, bias, texts):
  def of_group(group, out):
    query, value = _by_head(group.of(q), group.of(v))
    key, = _turned(group.of(k))
    weights = _weights(query, key, bias, group, precision)
    return group.put(out, jnp.matmul(weights.astype(v.dtype), value, precision=precision).swapaxes(1, 2))

  nothing, _ = shards.alike(jnp.zeros_like(q), q)
  out = _over_groups(of_group, length, q, texts, nothing)
  return out, (q, k, v, bias, texts, out)


def _backward(length, precision, kept, of_out):
  q, k, v, bias, texts, out = kept
  product = functools.partial(jnp.einsum, precision=precision,
                              preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))

  def of_group(group, gradients):
    of_q, of_k, of_v, of_bias = gradients
    key, value, of_here = group.of(k), group.of(v), jnp.where(group.is_text[:, :, None, None], group.of(of_out), 0)
    delta = jnp.sum(of_here.astype(bias.dtype) * group.of(out).astype(bias.dtype), axis=-1).swapaxes(1, 2)
    turned_key, turned_value = _turned(key, value)
    query, key, of_here = _by_head(group.of(q), key, of_here)
    weights = _weights(query, turned_key, bias, group, precision)
    of_logits = weights * (product("bhsd,bhdt->bhst", of_here, turned_value) - delta[..., None])
    of_bias = of_bias.at[:, :group.size, :group.size].add(
        jnp.sum(jnp.where(group.is_again[:, None, None, None], 0, of_logits), axis=0).astype(bias.dtype))
    weights, of_logits = weights.astype(q.dtype), of_logits.astype(q.dtype)
    return (group.put(of_q, product("bhst,bhtd->bshd", of_logits, key)),
            group.put(of_k, product("bhst,bhsd->bthd", of_logits, query)),
            group.put(of_v, product("bhst,bhsd->bthd", weights, of_here)), of_bias)

  nothing = shards.alike(*map(jnp.zeros_like, (q, k, v, bias)), q)[:-1]
  return *_over_groups(of_group, length, q, texts, tuple(nothing)), None


_attention.defvjp(_forward, _backward)


def attention(query_NxLxHxD: jax.Array, key_NxLxHxD: jax.Array, value_NxLxHxD: jax.Array, bias_HxLxL: jax.Array,
              texts: Texts, *, precision: jax.lax.PrecisionLike = None) -> jax.Array:
  """Softmax attention within each text, `[N, L, H, D]`, as `attention.attention`; 0 where there is none.

  Args:
    query_NxLxHxD: of any type of floating point.
    key_NxLxHxD: likewise.
    value_NxLxHxD: likewise.
    bias_HxLxL: of each pair of positions; of their distance alone.
    texts: of `texts_of`.
    precision: of the products.
  """
  shape = query_NxLxHxD.shape
  q, k, v = (x.reshape(-1, *shape[2:]) for x in (query_NxLxHxD, key_NxLxHxD, value_NxLxHxD))
  q, k, v, bias, *of_texts = shards.alike(q, k, v, bias_HxLxL, *texts)
  return _attention(shape[1], precision, q, k, v, bias, Texts(*of_texts)).reshape(shape)
