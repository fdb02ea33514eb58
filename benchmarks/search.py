"""Exact search over random unit vectors, and the same as int8 and binary; with --peer, beside FAISS's flat index."""

from functools import partial
from statistics import median

import jax
import measure
import numpy as np

from gtr_jax.parallel import partitioning
from gtr_jax.retrieval.quantization import SAMPLE_ROWS, fit
from gtr_jax.retrieval.search import Searcher


class Codes:
  """Vectors as a store of this precision has them."""

  def __init__(self, vectors, precision):
    self.quantizer = fit(precision, vectors[:SAMPLE_ROWS[precision]])
    self._codes, self.shape = self.quantizer.encode(vectors), vectors.shape

  def codes(self, rows):
    return self._codes[rows]


def main():
  parser = measure.arguments(__doc__)
  parser.add_argument("--rows", type=int, default=200_000, help="vectors in the corpus")
  parser.add_argument("--dim", type=int, default=768, help="their size")
  parser.add_argument("--queries", type=int, default=500, help="at once")
  parser.add_argument("--top_k", type=int, nargs="*", default=[10, 100, 1000], help="results for each query")
  parser.add_argument("--peer", action="store_true", help="FAISS too")
  args = parser.parse_args()
  if args.quick:
    args.rows, args.top_k = min(args.rows, 20_000), [100]
  rng = np.random.default_rng(0)
  corpus, queries = (rng.standard_normal((n, args.dim), dtype=np.float32) for n in (args.rows, args.queries))
  corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  mesh = partitioning.make_mesh()
  searchers = {"gtr_jax": Searcher(corpus, mesh), "int8": Searcher(Codes(corpus, "int8"), mesh),
               "binary": Searcher(Codes(corpus, "binary"), mesh)}
  found = {}

  def ours(name, k, number):
    del number
    found[name, k] = searchers[name].search(queries, k)

  def bare(number):
    del number
    products(on_device, queries).block_until_ready()

  # The floor: the scores alone, a slice of the corpus at a time.
  slices = np.array_split(np.arange(args.rows), max(args.rows // 20_000, 1))
  on_device = [jax.device_put(corpus[which]) for which in slices]
  products = jax.jit(lambda parts, queries: sum((queries @ part.T).max() for part in parts))
  variants = {"products alone": bare}
  if args.peer:
    import faiss
    index = faiss.IndexFlatIP(args.dim)
    index.add(corpus)

    def faiss_search(k, number):
      del number
      found["faiss", k] = index.search(queries, k)

  for k in args.top_k:
    variants |= {f"{name}, top {k}": partial(ours, name, k) for name in searchers}
    if args.peer:
      variants[f"FAISS flat, top {k}"] = partial(faiss_search, k)
  seconds, _ = measure.in_turn(variants, args.repeats)
  rows = []
  ratios = {}
  work = dict.fromkeys(seconds, 1.0)
  for name, of_variant in seconds.items():
    k, small = name.rpartition(" ")[2], name.startswith(("int8", "binary"))
    peer = f"FAISS flat, top {k}"
    if args.peer and name.startswith("gtr_jax"):
      ratios[k] = measure.ratio(seconds, name, peer, work)
      np.testing.assert_allclose(found["gtr_jax", int(k)][0], found["faiss", int(k)][0], atol=1e-5)
    rows.append([name, f"{1000 * median(of_variant):.0f}", f"{args.queries / median(of_variant):.0f}",
                 f"{measure.ratio(seconds, name, 'products alone', work):.2f}",
                 f"{ratios[k]:.2f}" if name.startswith("gtr_jax") and args.peer else "",
                 f"{measure.ratio(seconds, name, f'gtr_jax, top {k}', work):.2f}" if small else ""])
  print(measure.table(["search", "ms", "queries/s", "times products", "times FAISS", "times float32"], rows))
  flops = 2 * args.rows * args.dim * args.queries
  print(f"{args.rows} x {args.dim}, {args.queries} queries; products alone: "
        f"{flops / median(seconds['products alone']) / 1e9:.0f} GFLOP/s")
  measure.write_json(args.json, {"rows": args.rows, "dim": args.dim, "queries": args.queries, "seconds": seconds,
                                 "times_faiss": ratios})


if __name__ == "__main__":
  main()
