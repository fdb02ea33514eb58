"""The contrastive loss and its gradient, dense and ring, over a mesh, beside the matrix products that they consist of.

The ring has to make four products of the size of the logits, for the logits, again the logits, and the gradients of
queries and passages. These alone, of whole shards at a time and with nothing between them, are "bare products".
"""

import functools
from statistics import median

import jax
import jax.numpy as jnp
import measure
import numpy as np

from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import Batch, split_hash


def inputs(batch_size, dim, mesh):
  """Queries, passages that are like them, and facts of a batch without duplicates, over the mesh."""
  rng = np.random.default_rng(0)
  groups, each = mesh.size, batch_size // mesh.size

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def drawn():
    return unit(rng.standard_normal((groups, each, dim), dtype=np.float32))

  queries = drawn()
  passages = unit(0.5 * queries + 0.8 * drawn())
  hashes = [split_hash(rng.integers(2**62, size=(groups, each, *more))) for more in ((), (), (), (1,))]
  none = np.ones((groups, 0), bool)
  batch = Batch(None, None, np.ones((groups, each), bool), none, none.astype(np.int32), none, *hashes)
  return jax.device_put((queries, passages, batch), partitioning.batch_sharding(mesh))


def with_gradient(loss):
  """Value and gradient of a loss, compiled."""
  return jax.jit(jax.value_and_grad(lambda queries, passages, batch: loss(queries, passages, batch)[0], argnums=(0, 1)))


def bare_products(queries, passages):
  """Runs the four products as often as there are hops in the ring."""
  hops = len(queries)
  sharded = queries.sharding.spec
  on_mesh = functools.partial(jax.shard_map, in_specs=sharded, out_specs=sharded)

  def product(equation):
    return jax.jit(on_mesh(lambda a, b: jnp.einsum(equation, a[0], b[0], precision=jax.lax.Precision.HIGHEST)[None]))

  logits, d_queries, d_passages = product("qd,pd->qp"), product("qp,pd->qd"), product("qp,qd->pd")
  scores = jax.block_until_ready(logits(queries, passages))

  def run():
    for _ in range(hops):
      for f, *operands in ((logits, queries, passages), (logits, queries, passages), (d_queries, scores, passages),
                           (d_passages, scores, queries)):
        jax.block_until_ready(f(*operands))

  return run


def main():
  parser = measure.arguments(__doc__)
  parser.add_argument("--batch", type=int, default=16384, help="pairs in the global batch")
  parser.add_argument("--dim", type=int, default=768, help="of the embeddings")
  parser.add_argument("--devices", type=int, default=8, help="how many CPU devices to take, where there are no others")
  parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="BATCH", help="peak memory of the ring's "
                      "value and gradient at these batches, each in a process of its own; 0: of an idle process")
  parser.add_argument("--memory_of", type=int, help="that process")
  args = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", args.devices)
  if args.quick:
    args.batch = min(args.batch, 4096)
  mesh = partitioning.make_mesh()
  with jax.set_mesh(mesh):
    if args.memory_of is not None:
      if args.memory_of:
        jax.block_until_ready(with_gradient(RingLoss())(*inputs(args.memory_of, args.dim, mesh)))
      measure.print_peak_memory()
      return
    queries, passages, batch = inputs(args.batch, args.dim, mesh)
    losses = {"dense": with_gradient(InBatchLoss()), "ring": with_gradient(RingLoss())}
    values = {name: loss(queries, passages, batch)[0] for name, loss in losses.items()}
    np.testing.assert_allclose(values["dense"], values["ring"], rtol=1e-5)
    variants = {name: lambda _, loss=loss: jax.block_until_ready(loss(queries, passages, batch))
                for name, loss in losses.items()}
    products = bare_products(queries, passages)
    variants["bare products"] = lambda _: products()
    seconds, _ = measure.in_turn(variants, args.repeats)
    temporaries = {name: loss.lower(queries, passages, batch).compile().memory_analysis().temp_size_in_bytes
                   for name, loss in losses.items()}
  same = dict.fromkeys(seconds, 1.0)
  times = {name: measure.ratio(seconds, "bare products", name, same) for name in seconds}
  rows = [[name, f"{1000 * median(of_variant):.0f}", f"{times[name]:.3f}",
           f"{temporaries[name] / 2**20:,.0f}" if name in temporaries else ""] for name, of_variant in seconds.items()]
  print(measure.table(["loss", "ms", "times bare products", "XLA temporaries, MiB a device"], rows))
  flops = 8 * args.batch**2 * args.dim
  print(f"batch {args.batch} x {args.dim}, {mesh.size} devices, value and gradient; bare products: "
        f"{flops / median(seconds['bare products']) / 1e9:.0f} GFLOP/s")
  flags = ["--devices", args.devices, "--dim", args.dim]
  memory = {size: measure.peak_memory(__file__, [*flags, "--memory_of", size]) for size in args.memory}
  for size, found in memory.items():
    print(f"{f'ring, batch {size}' if size else 'idle process'}: {found['resident'] / 2**20:,.0f} MiB resident at most")
  measure.write_json(args.json, {"batch": args.batch, "dim": args.dim, "seconds": seconds, "times_bare_products": times,
                                 "temporaries": temporaries, "memory": memory})


if __name__ == "__main__":
  main()
