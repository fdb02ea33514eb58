"""The input pipeline alone: examples to padded and to packed batches, tokenisation included; and the fill of the rows.

Pairs a second of one CPU second, because a machine's cores share the work: times the cores, it has to exceed what the
devices train.
"""

import itertools
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import measure
import numpy as np

from gtr_jax.data.examples import add_pair_task, jsonl
from gtr_jax.data.pipeline import TrainingBatches
from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.io import data_root


def cpu_seconds():
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


def drawn_texts(folder, count):
  """Pairs of drawn words, and a vocabulary for them."""
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 9))) for _ in range(5000)]
  rows = [{"title": " ".join(rng.choice(words, rng.integers(5, 15))), "body": " ".join(rng.choice(words, rng.integers(
      20, 110)))} for _ in range(count)]
  train_vocabulary((row["body"] for row in rows[:1000]), folder / "spiece.model", 2000)
  return rows, folder / "spiece.model"


def main():
  parser = measure.arguments(__doc__)
  measure.pair_arguments(parser)
  parser.add_argument("--batch", type=int, nargs="*", default=[128, 2048], help="pairs in a batch")
  parser.add_argument("--row_lengths", type=int, nargs=2, default=[64, 288], metavar=("QUERY", "PASSAGE"))
  parser.add_argument("--groups", type=int, nargs="*", default=[1, 8], help="data shards")
  parser.add_argument("--batches", type=int, default=100, help="to measure the fill over")
  args = parser.parse_args()
  if args.quick:
    args.batch, args.batches = [128], min(args.batches, 20)
  results, rows = {}, []
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    if args.pairs is None:
      texts, vocabulary = drawn_texts(folder, 5000)
      (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
      args.query_field, args.passage_field, pairs, extra_ids = "title", "body", "pairs.jsonl", 0
    else:
      vocabulary, pairs, extra_ids = args.vocabulary, os.path.abspath(args.pairs), 100
    data_root.set_data_dir(name)
    add_pair_task("pairs", jsonl(train=str(pairs)), query=args.query_field, passage=args.passage_field,
                  vocabulary=os.path.abspath(vocabulary), extra_ids=extra_ids)
    lengths = dict(zip(("inputs", "targets"), args.lengths, strict=True))
    for packed in (False, True):
      row_lengths = dict(zip(("inputs", "targets"), args.row_lengths, strict=True)) if packed else None
      start = time.perf_counter()
      batches = TrainingBatches("pairs", None, lengths, args.batch[-1], row_lengths=row_lengths)
      next(batches)
      first = time.perf_counter() - start
      count = max(6, 20_000 // args.batch[-1])
      start, cpu = time.perf_counter(), cpu_seconds()
      for _ in range(count):
        next(batches)
      wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
      batches.close()
      of_cpu = count * args.batch[-1] / cpu
      results["packed" if packed else "padded"] = {"pairs_per_cpu_second": of_cpu, "first_batch": first,
                                                   "pairs_per_second": count * args.batch[-1] / wall}
      print(f"whole pipeline, {'packed' if packed else 'padded'}, batch {args.batch[-1]}: {of_cpu:,.0f} pairs for each "
            f"CPU second ({16 * of_cpu:,.0f} pairs/s on 16 such cores), {count * args.batch[-1] / wall:,.0f} pairs/s "
            f"here on {os.cpu_count()}; the first batch after {first:.1f} s, "
            f"{'from the shard cache' if packed else 'with nothing in the shard cache'}", flush=True)

    for size in args.batch:
      for groups in args.groups:
        batches = TrainingBatches("pairs", None, lengths, size, row_lengths=row_lengths, groups=groups)
        batches.check_first_batch()
        fills, shapes = [], set()
        for item in itertools.islice(batches, args.batches):
          sides = [texts.tokens for texts in item.batch[:2]]
          fills.append(sum(np.count_nonzero(side) for side in sides) / sum(side.size for side in sides))
          shapes.add(tuple(side.shape for side in sides))
        batches.close()
        results[f"batch {size}, {groups} groups"] = {"fill": float(np.mean(fills)), "programs": len(shapes)}
        rows.append([size, groups, f"{np.mean(fills):.3f}", len(shapes)])
  print(measure.table(["batch", "groups", "fill", "programs"], rows))
  measure.write_json(args.json, {"batches": args.batches, "row_lengths": args.row_lengths, **results})


if __name__ == "__main__":
  main()
