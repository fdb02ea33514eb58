"""The attention kernel with blocks of several sizes, forward and backward in bfloat16, on this TPU.

Prints each time as it is measured, and at the end what belongs into `_BLOCK_OF` of models/attention_kernel.py: the size
whose times, over all shapes, are the shortest on average. Texts are drawn, with 122 tokens on average, and packed;
shapes are those of base (12 heads of 64) and of XXL (64 heads of 64), and single long texts.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
from accelerator import packed_rows, seconds_of

from gtr_jax.models import attention_kernel
from gtr_jax.models.attention import attention, kernel_refuses, pattern

BLOCKS = (128, 256, 512)


class Shape(NamedTuple):
  """Of queries; `is_long`: one text a row."""

  rows: int
  length: int
  heads: int
  head_dim: int = 64
  is_long: bool = False

  def segment_ids(self) -> np.ndarray:
    """`[1, rows, length]`"""
    return np.ones((1, self.rows, self.length), np.int32) if self.is_long else packed_rows(self.rows, self.length)


SHAPES = (Shape(128, 64, 12), Shape(64, 256, 12), Shape(32, 640, 12), Shape(8, 640, 64), Shape(2, 4096, 12, 64, True))
QUICK = (Shape(4, 64, 2), Shape(1, 256, 2, 64, True))


def of_shape(shape: Shape) -> Callable[[], Any]:
  """Computes the outputs and all gradients, with blocks of the size that holds now."""
  segments = jnp.asarray(shape.segment_ids())
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(*segments.shape, shape.heads, shape.head_dim)) * scale, jnp.bfloat16)
             for scale in (0.3, 0.3, 1))
  table = jnp.asarray(rng.normal(size=(shape.heads, 32)), jnp.float32)

  def f(table, q, k, v):
    out = attention(q, k, v, pattern(table, segments, 128, "kernel"))
    return jnp.sum(jnp.square(out.astype(jnp.float32)))

  return functools.partial(jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3))), table, q, k, v)


def main():
  parser = measure.arguments(__doc__)
  parser.add_argument("--interpret", action="store_true", help="on any machine: to see that this script works")
  args = parser.parse_args()
  attention_kernel.INTERPRET = args.interpret
  kind = jax.devices()[0].device_kind
  found = {}
  for shape, block in itertools.product(QUICK if args.quick else SHAPES, BLOCKS):
    if why_not := kernel_refuses(shape.length, shape.heads, shape.head_dim):
      raise SystemExit(f"rows of {shape.length} on {kind}: there is no kernel: {why_not}")
    attention_kernel._BLOCK_OF[kind] = block
    try:
      seconds = seconds_of(of_shape(shape), args.repeats)
    except jax.errors.JaxRuntimeError as e:  # It may need more fast memory than there is.
      seconds = math.inf
      print(str(e).splitlines()[0])
    found[shape, block] = seconds
    print(f"{shape.rows} x {shape.length}, {shape.heads} heads, blocks of {block}: {1e3 * seconds:.3f} ms", flush=True)
  shapes = sorted({shape for shape, _ in found})
  print(measure.table(["rows", "length", "heads", *(f"blocks of {block}, ms" for block in BLOCKS)], [
      [str(shape.rows), str(shape.length), str(shape.heads), *(f"{1e3 * found[shape, block]:.3f}" for block in BLOCKS)]
      for shape in shapes]))
  of_block = {block: math.prod(found[shape, block] / found[shape, BLOCKS[0]] for shape in shapes)**(1 / len(shapes))
              for block in BLOCKS}
  best = min(BLOCKS, key=of_block.__getitem__)
  said = "interpreted, which says nothing of any chip; " * args.interpret
  print(f"{said}_BLOCK_OF: {kind!r}: {best}  # {of_block[best]:.2f} of the time of blocks of {BLOCKS[0]}")
  measure.write_json(args.json, {"device": kind, "seconds": [
      {**shape._asdict(), "block": block, "seconds": seconds} for (shape, block), seconds in found.items()]})


if __name__ == "__main__":
  main()
