"""Encoding passages from texts to embeddings, tokenisation included; with --peer, beside sentence-transformers' encode.

Both get the same texts, weights and maximum length; embeddings are compared where the token ids agree.
"""

import itertools
import tempfile
from pathlib import Path
from statistics import median

import jax
import measure
import numpy as np
from flax import linen as nn

from gtr_jax.inference import embed
from gtr_jax.parallel import partitioning
from gtr_jax.text.tokenizer import Tokenizer


def main():
  parser = measure.arguments(__doc__)
  measure.pair_arguments(parser)
  parser.add_argument("--texts", type=int, default=20_000, help="passages to encode")
  parser.add_argument("--peer", action="store_true", help="sentence-transformers too (needs --pairs)")
  parser.add_argument("--peer_batch", type=int, default=32, help="its batch_size (its default)")
  args = parser.parse_args()
  if args.quick:
    args.texts = min(args.texts, 1000)
  if args.peer and args.pairs is None:
    raise SystemExit("--peer needs texts: give --pairs and --vocabulary")
  pairs, max_length = measure.read_pairs(args, args.texts), args.lengths[1]
  model = measure.small_encoder(args.quick)
  mesh = partitioning.make_mesh()
  params = nn.meta.unbox(model.init(jax.random.key(0)))
  tokenizer = None if args.vocabulary is None else Tokenizer(args.vocabulary, extra_ids=100)
  found = {}

  def ours(number):
    del number
    ids = pairs.passage_ids if pairs.passages is None else tokenizer.encode(pairs.passages, max_length)
    found["gtr_jax"] = embed.embed_tokens(model, params, ids, "passage", max_length, mesh)

  variants = {"gtr_jax": ours}
  with tempfile.TemporaryDirectory() as folder:
    if args.peer:
      import sentence_transformers_peer
      theirs = sentence_transformers_peer.build(model, params, args.vocabulary, Path(folder), max_length, 100)

      def peer(number):
        del number
        found["sentence-transformers"] = theirs.encode(pairs.passages, batch_size=args.peer_batch)

      variants["sentence-transformers"] = peer
    tokens = sum(map(len, pairs.passage_ids))
    seconds, rates = measure.in_turn(variants, args.repeats, lambda: measure.matmul_rate(model.config, 2048))
    same = None
    if args.peer:
      theirs_ids = [ids[0] for ids in (theirs.tokenize([text])["input_ids"].numpy() for text in pairs.passages[:500])]
      same = [i for i, ids in enumerate(theirs_ids) if np.array_equal(ids, pairs.passage_ids[i])]

  flops = measure.encoder_flops(model.config, [len(ids) for ids in pairs.passage_ids])
  slots = sum(batch.texts.tokens.size for batch in embed._batches(pairs.passage_ids, max_length, mesh.size, True))
  results, lines = {}, []
  for name, of_variant in seconds.items():
    share = median(flops / second / rate for second, rate in zip(of_variant, rates[name], strict=True))
    results[name] = {"texts_per_second": [args.texts / second for second in of_variant], "share_of_matmul_rate": share,
                     "gtr_jax_is_times_this": measure.ratio(seconds, "gtr_jax", name, dict.fromkeys(seconds, 1.0))}
    lines.append([name, f"{median(results[name]['texts_per_second']):.0f}", f"{tokens / median(of_variant):,.0f}",
                  f"{results[name]['gtr_jax_is_times_this']:.2f}", f"{100 * share:.0f} %"])
  print(measure.table(["encoder", "texts/s", "tokens/s", "gtr_jax is times this", "FLOP/s of matmul rate"], lines))
  print(f"{args.texts} passages, {tokens / args.texts:.0f} tokens on average; fill of the packed rows "
        f"{tokens / slots:.3f}; matmul rate {median(itertools.chain(*rates.values())) / 1e9:.0f} GFLOP/s")
  if same is not None:
    worst = max(np.abs(found["gtr_jax"][i] - found["sentence-transformers"][i]).max() for i in same)
    results["largest_difference"] = float(worst)
    print(f"largest difference of an embedding's number, over {len(same)} of 500 passages with equal ids: {worst:.1e}")
  measure.write_json(args.json, {"texts": args.texts, "max_length": max_length, "matmul_rate": rates,
                                 "encoders": results})


if __name__ == "__main__":
  main()
