"""Programs of a few operations each, without loops, whose arrays are too large for a TPU's fast memory."""

import jax
import jax.numpy as jnp

from gtr_jax.models.t5 import NORM_EPSILON
from gtr_jax.training import optimizers

TOKENS, WIDTH, ROWS, LENGTH = 131072, 768, 128, 512


def array(*shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype)


def attention(q, k, v, segment_ids, bias):
  logits = jnp.einsum("rqhd,rkhd->rhqk", q, k, preferred_element_type=jnp.float32) + bias
  logits = jnp.where(segment_ids[:, None, :, None] == segment_ids[:, None, None, :], logits, -1e30)
  return jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def norm(x, scale):
  y = x.astype(jnp.float32)
  return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + NORM_EPSILON) * scale).astype(x.dtype)


def of_attention(heads, head_dim):
  vectors = array(ROWS, LENGTH, heads, head_dim)
  return attention, (vectors, vectors, vectors, array(ROWS, LENGTH, dtype=jnp.int32),
                     array(heads, LENGTH, LENGTH, dtype=jnp.float32))


def adafactor(param, gradient):
  optimizer = optimizers.adafactor(learning_rate=1e-3)
  params = {"kernel": param}
  updates, state = optimizer.update({"kernel": gradient}, optimizer.init(params), params)
  return param + updates["kernel"], state


TABLE, MATRIX = array(256_000, WIDTH, dtype=jnp.float32), array(8192, 8192, dtype=jnp.float32)
STREAM, IDS = array(TOKENS, WIDTH), array(TOKENS, dtype=jnp.int32)
VECTORS, SCALE = array(16384, WIDTH, dtype=jnp.float32), array(WIDTH, dtype=jnp.float32)
# A function and what it takes, by name.
OPERATIONS = {
    "product": (jnp.matmul, (array(16384, 16384), array(16384, 16384))),
    "product of tokens": (jnp.matmul, (STREAM, array(WIDTH, 4 * WIDTH))),
    "MLP": (lambda x, a, b, c: (jax.nn.gelu(x @ a) * (x @ b)) @ c,
            (STREAM, array(WIDTH, 2048), array(WIDTH, 2048), array(2048, WIDTH))),
    "residual": (jnp.add, (STREAM, STREAM)),
    "norm": (norm, (STREAM, SCALE)),
    "gradient of a norm": (lambda x, scale, y: jax.vjp(norm, x, scale)[1](y), (STREAM, SCALE, STREAM)),
    "Adafactor": (adafactor, (MATRIX, MATRIX)),
    "loss": (lambda q, p: -jnp.mean(jnp.diag(jax.nn.log_softmax(100 * q @ p.T, axis=-1))), (VECTORS, VECTORS)),
    "softmax": (lambda x: jax.nn.softmax(x, axis=-1), (array(ROWS * 12, LENGTH, LENGTH, dtype=jnp.float32),)),
    "attention, 12 heads of 64": of_attention(12, 64),
    "attention, 6 heads of 128": of_attention(6, 128),
    "embedding": (lambda table, ids: table[ids].astype(jnp.bfloat16), (TABLE, IDS)),
    "gradient of an embedding": (lambda table, ids, y: jax.grad(
        lambda t: jnp.sum(t[ids].astype(jnp.float32) * y))(table), (TABLE, IDS, STREAM)),
}
