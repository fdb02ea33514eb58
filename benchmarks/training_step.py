"""Training steps side by side: padded, packed, gradient caching; with --peer, sentence-transformers on the same work.

Every variant sees the same pairs, lengths, weights, temperature and batch, and takes whole steps: loss, gradient,
update. sentence-transformers' loss has one direction and one learning rate for all; ours both directions.
"""

import itertools
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import jax
import measure
import numpy as np

from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import RowLengths, make_batch
from gtr_jax.training import optimizers
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step


class Ours:
  """A variant of our step; called with a round's number, it takes the steps on that round's pairs."""

  def __init__(self, model, pairs, lengths, batch_size, rounds, steps=1, loss=None, **how):
    self._mesh = partitioning.make_mesh(devices=jax.devices()[:1])
    loss, optimizer = loss or InBatchLoss(), optimizers.adamw(1e-4)
    self._state, shardings = create_state(model, loss, optimizer, self._mesh, seed=0)
    self._step = compile_step(make_train_step(model, loss, optimizer, seed=0), shardings)
    self._steps = steps
    self._batches = [make_batch(measure.features(pairs, number * batch_size, batch_size, lengths), 1, **how)
                     for number in range(rounds * steps)]
    of_shapes = {tuple(texts.tokens.shape for texts in batch[:2]): batch for batch in self._batches}
    for batch in of_shapes.values():  # Each is compiled.
      self._take_step(batch)

  @property
  def shapes(self):
    """Rows and lengths of both sides, a set over the batches."""
    return {tuple(texts.tokens.shape[-2:] for texts in batch[:2]) for batch in self._batches}

  @property
  def fill(self):
    """Real tokens over token slots."""
    sides = [texts.tokens for batch in self._batches for texts in batch[:2]]
    return sum(np.count_nonzero(side) for side in sides) / sum(side.size for side in sides)

  def __call__(self, number):
    for batch in self._batches[number * self._steps:(number + 1) * self._steps]:
      self._take_step(batch)

  def _take_step(self, batch):
    with jax.set_mesh(self._mesh):
      self._state, metrics = self._step(self._state, partitioning.global_batch(self._mesh, batch))
      assert np.isfinite(metrics["loss"])

  @property
  def temporaries(self):
    """XLA's own count of temporary bytes of the step on the first batch."""
    with jax.set_mesh(self._mesh):
      batch = partitioning.global_batch(self._mesh, self._batches[0])
      return self._step.lower(self._state, batch).compile().memory_analysis().temp_size_in_bytes


def peers(model, pairs, args, folder):
  """sentence-transformers' step with the plain and the cached loss."""
  import sentence_transformers_peer
  import torch
  from sentence_transformers.sentence_transformer import losses
  params = jax.device_get(create_state(model, InBatchLoss(), optimizers.adamw(0.0),
                                       partitioning.make_mesh(devices=jax.devices()[:1]), seed=0)[0].params)

  steps = max(1, args.round // args.batch)

  def variant(make_loss, name):
    theirs = sentence_transformers_peer.build(model, params, args.vocabulary, Path(folder, name), args.lengths[1], 100)
    loss = make_loss(theirs)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4)

    def step(number):
      which = slice(number * args.batch, (number + 1) * args.batch)
      columns = []
      for texts, longest in ((pairs.queries, args.lengths[0]), (pairs.passages, args.lengths[1])):
        theirs.max_seq_length = longest
        columns.append(theirs.tokenize(texts[which]))
      optimizer.zero_grad()
      loss(columns, None).backward()
      optimizer.step()

    return lambda number: [step(number * steps + i) for i in range(steps)]

  return {
      "sentence-transformers": variant(partial(losses.MultipleNegativesRankingLoss, scale=100.0), "plain"),
      "sentence-transformers, cached": variant(partial(losses.CachedMultipleNegativesRankingLoss, scale=100.0,
                                                       mini_batch_size=args.peer_microbatch), "cached")}


def memory_of(args, batch_size):
  """Peak resident bytes of a process of its own that takes one step, and XLA's temporaries."""
  flags = [flag for name in ("pairs", "vocabulary", "query_field", "passage_field")
           if (value := getattr(args, name)) for flag in (f"--{name}", value)]
  flags += ["--lengths", *args.lengths, "--row_lengths", *args.row_lengths, "--batch", args.batch]
  return measure.peak_memory(__file__, [*flags, "--memory_of", batch_size, *["--quick"] * args.quick])


def main():
  parser = measure.arguments(__doc__)
  measure.pair_arguments(parser)
  parser.add_argument("--batch", type=int, default=128, help="pairs in a batch, and in a microbatch")
  parser.add_argument("--row_lengths", type=int, nargs=2, default=[64, 288], metavar=("QUERY", "PASSAGE"),
                      help="of packed rows")
  parser.add_argument("--grad_cache", type=int, nargs="*", default=[512], metavar="BATCH",
                      help="batches with gradient caching, packed, in microbatches of --batch")
  parser.add_argument("--round", type=int, default=512, metavar="PAIRS",
                      help="that each variant trains on between two times of the others, if its batch is not larger")
  parser.add_argument("--peer", action="store_true", help="sentence-transformers too (needs --pairs)")
  parser.add_argument("--peer_microbatch", type=int, default=32, help="of its cached loss (its default)")
  parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="BATCH", help="peak memory of gradient "
                      "caching with the ring loss at these batches, each in a process of its own, which takes one step")
  parser.add_argument("--memory_of", type=int, help="that process")
  args = parser.parse_args()
  if args.quick:
    args.batch, args.grad_cache = min(args.batch, 64), [2 * min(args.batch, 64)] if args.grad_cache else []
    args.round = args.batch
  model, rows = measure.small_encoder(args.quick), RowLengths(*args.row_lengths)
  if args.memory_of:
    pairs = measure.read_pairs(args, args.memory_of)
    step = Ours(model, pairs, args.lengths, args.memory_of, 1, loss=RingLoss(), row_lengths=rows,
                microbatches=args.memory_of // args.batch)
    temporaries = step.temporaries
    measure.print_peak_memory(temporaries=temporaries)
    return
  if args.peer and args.pairs is None:
    raise SystemExit("--peer needs texts: give --pairs and --vocabulary")

  pairs = measure.read_pairs(args, args.repeats * max([args.batch, args.round, *args.grad_cache]))
  variants = {"padded": (args.batch, {}), "packed": (args.batch, {"row_lengths": rows})} | {
      f"packed, cached, {size}": (size, {"row_lengths": rows, "microbatches": size // args.batch})
      for size in args.grad_cache}
  sizes, ours = {}, {}
  for name, (size, how) in variants.items():
    steps = max(1, args.round // size)
    sizes[name] = size * steps
    ours[name] = Ours(model, pairs, args.lengths, size, args.repeats, steps, **how)
  with tempfile.TemporaryDirectory() as folder:
    others = peers(model, pairs, args, folder) if args.peer else {}
    sizes |= dict.fromkeys(others, sizes["packed"])
    slots = int(np.mean([sum(texts.tokens.size for texts in batch[:2]) for batch in ours["packed"]._batches]))
    seconds, rates = measure.in_turn({**ours, **others}, args.repeats, lambda: measure.matmul_rate(model.config, slots))

  def flops(size, number):
    which = slice(number * size, (number + 1) * size)
    return 3 * sum(measure.encoder_flops(model.config, [len(ids) for ids in side[which]])
                   for side in (pairs.query_ids, pairs.passage_ids))

  results, lines = {}, []
  for name, of_variant in seconds.items():
    share = median(flops(sizes[name], number) / second / rate
                   for number, (second, rate) in enumerate(zip(of_variant, rates[name], strict=True)))
    results[name] = {"pairs_per_second": [sizes[name] / second for second in of_variant], "share_of_matmul_rate": share,
                     "times_padded": measure.ratio(seconds, name, "padded", sizes),
                     "packed_is_times_this": measure.ratio(seconds, "packed", name, sizes)}
    if name in ours:
      results[name] |= {"fill": ours[name].fill, "temporaries": ours[name].temporaries,
                        "programs": len(ours[name].shapes)}
    lines.append([name, variants[name][0] if name in ours else args.batch,
                  f"{median(results[name]['pairs_per_second']):.1f}", f"{results[name]['times_padded']:.2f}",
                  f"{results[name]['packed_is_times_this']:.2f}", f"{100 * share:.0f} %",
                  f"{results[name].get('fill', float('nan')):.3f}",
                  f"{results[name].get('temporaries', float('nan')) / 2**20:,.0f}"])
  print(measure.table(["variant", "batch", "pairs/s", "times padded", "packed is times this", "FLOP/s of matmul rate",
                       "fill", "XLA temporaries, MiB"], lines))
  rate = median(itertools.chain(*rates.values()))
  print(f"matmul rate of the model's shapes, forward and backward: {rate / 1e9:.0f} GFLOP/s; FLOPs are those of real "
        "tokens, 3 x forward (see measure.encoder_flops)")
  memory = {size: memory_of(args, size) for size in args.memory}
  for size, found in memory.items():
    print(f"gradient caching and ring, batch {size}: {found['resident'] / 2**20:,.0f} MiB resident at most, XLA "
          f"temporaries {found['temporaries'] / 2**20:,.0f} MiB")
  measure.write_json(args.json, {"batch": args.batch, "lengths": args.lengths, "row_lengths": args.row_lengths,
                                 "matmul_rate": rates, "variants": results, "memory": memory})


if __name__ == "__main__":
  main()
