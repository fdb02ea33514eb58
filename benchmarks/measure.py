"""What the benchmarks share: pairs to work on, variants timed in turn, the machine's matmul rate, tables and JSON."""

import argparse
import functools
import gzip
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.tokenizer import Tokenizer


class Pairs(NamedTuple):
  """Texts (None if they were drawn) and token ids with EOS, of queries and passages."""

  queries: list[str] | None
  passages: list[str] | None
  query_ids: list[np.ndarray]
  passage_ids: list[np.ndarray]


def arguments(description: str) -> argparse.ArgumentParser:
  """A parser with the flags that every benchmark has."""
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument("--quick", action="store_true", help="a smaller model and fewer repetitions: under a minute")
  parser.add_argument("--repeats", type=int, default=3, help="how often each variant is timed, in turn with the others")
  parser.add_argument("--json", metavar="FILE", help="also write the results there")
  return parser


def pair_arguments(parser: argparse.ArgumentParser) -> None:
  """Flags that say which pairs to work on."""
  parser.add_argument("--pairs", metavar="FILE", help="JSONL(.gz) of pairs; without it token ids are drawn, with "
                      "lengths like those of Reddit titles and posts (mean 18 and 104)")
  parser.add_argument("--query_field", default="title", help="of --pairs")
  parser.add_argument("--passage_field", default="body", help="of --pairs")
  parser.add_argument("--vocabulary", metavar="FILE", help="SentencePiece model (T5's spiece.model), for --pairs")
  parser.add_argument("--lengths", type=int, nargs=2, default=[64, 256], metavar=("QUERY", "PASSAGE"),
                      help="tokens of a text at most")


def read_pairs(args: argparse.Namespace, count: int) -> Pairs:
  """The first `count` pairs, again from the start if the file has fewer."""
  if args.pairs is None:
    rng = np.random.default_rng(0)

    def drawn(mean, spread, longest):
      lengths = np.clip(rng.normal(mean, spread, count), 3, longest).astype(int)
      return [np.append(rng.integers(2, 32000, n - 1), 1).astype(np.int32) for n in lengths]

    return Pairs(None, None, drawn(18.3, 9.7, args.lengths[0]), drawn(104, 48.7, args.lengths[1]))
  if args.vocabulary is None:
    raise SystemExit("--pairs needs --vocabulary: give T5's spiece.model")
  opened = gzip.open if args.pairs.endswith(".gz") else open
  rows = []
  with opened(args.pairs, "rt", encoding="utf-8") as f:
    for line in f:
      rows.append(json.loads(line))
      if len(rows) == count:
        break
  rows = [rows[i % len(rows)] for i in range(count)]
  queries, passages = ([row[field] for row in rows] for field in (args.query_field, args.passage_field))
  tokenizer = Tokenizer(args.vocabulary, extra_ids=100)
  return Pairs(queries, passages, tokenizer.encode(queries, args.lengths[0]),
               tokenizer.encode(passages, args.lengths[1]))


def small_encoder(quick: bool) -> DualEncoder:
  """4 layers, 256 wide, 4 heads, 1,024 in the MLP, T5's vocabulary; --quick: half of each."""
  size = 1 if quick else 2
  return DualEncoder(T5Config(vocab_size=32128, emb_dim=128 * size, num_heads=2 * size, head_dim=64, mlp_dim=512 * size,
                              num_layers=2 * size), projection_dim=128 * size)


def padded(ids: Sequence[np.ndarray], length: int) -> np.ndarray:
  """int32 `[texts, length]`."""
  out = np.zeros((len(ids), length), np.int32)
  for row, tokens in zip(out, ids, strict=True):
    row[:len(tokens)] = tokens
  return out


def features(pairs: Pairs, first: int, count: int, lengths: Sequence[int]) -> dict[str, np.ndarray]:
  """Model features of consecutive pairs, as the feature converter gives them."""
  which = slice(first, first + count)
  numbers = np.arange(first, first + count) + 1
  return {"left_encoder_input_tokens": padded(pairs.query_ids[which], lengths[0]),
          "right_encoder_input_tokens": padded(pairs.passage_ids[which], lengths[1]),
          "query_hash": numbers, "passage_hash": numbers, "text_hash": numbers}


def encoder_flops(config: T5Config, lengths: Sequence[int]) -> float:
  """Operations of a forward pass over texts of these lengths, without padding, embedding and projection.

  2 x tokens x layers x (4 embed x heads x head_dim + matrices x embed x mlp), and in attention 4 x heads x head_dim x
  length^2 x layers. A training step is three times that: the backward pass has two products for each. Whatever is
  computed again (attention weights, gradient caching's second forward pass) does not count.
  """
  joined = config.num_heads * config.head_dim
  matrices = len(config.mlp_activations) + 1
  lengths = np.asarray(lengths, np.float64)
  linear = 2 * lengths.sum() * (4 * config.emb_dim * joined + matrices * config.emb_dim * config.mlp_dim)
  return config.num_layers * (linear + 4 * joined * np.square(lengths).sum())


def matmul_rate(config: T5Config, tokens: int) -> float:
  """Measured operations a second of the model's own products: forward and both backward ones, of one layer."""
  joined = config.num_heads * config.head_dim
  shapes = [(config.emb_dim, joined)] * 3 + [(joined, config.emb_dim), (config.emb_dim, config.mlp_dim),
                                             (config.mlp_dim, config.emb_dim)]
  seconds, dtype = {}, config.dtype_on(jax.default_backend())
  for wide, out in set(shapes):
    x, w, y = (jnp.ones(shape, dtype) for shape in ((tokens, wide), (wide, out), (tokens, out)))
    for equation, operands in (("ti,io->to", (x, w)), ("to,io->ti", (y, w)), ("ti,to->io", (x, y))):
      run = functools.partial(_run, _product(equation), operands)
      seconds[wide, out, equation] = median(_seconds(run) for _ in range(7))
  total = sum(of_shape for shape in shapes for (wide, out, _), of_shape in seconds.items() if (wide, out) == shape)
  return sum(3 * 2 * tokens * wide * out for wide, out in shapes) / total


@functools.cache
def _product(equation):
  return jax.jit(functools.partial(jnp.einsum, equation, precision=jax.lax.Precision.HIGHEST))


def in_turn(variants: Mapping[str, Callable[[int], None]], repeats: int,
            rate: Callable[[], float] | None = None) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Seconds of each variant, called with the number of the round, printed as they are measured; a first call before,
  which compiles, is not timed.

  Args:
    variants: name -> what to time; it must wait for its results.
    repeats: rounds; each round runs all variants one after the other.
    rate: measured before every call, because a shared machine's changes.

  Returns:
    Seconds and rates, by variant and round.
  """
  for name, variant in variants.items():
    start = time.perf_counter()
    variant(0)
    print(f"{name}: warm after {time.perf_counter() - start:.1f} s", flush=True)
  seconds, rates = ({name: [] for name in variants} for _ in range(2))
  for number in range(repeats):
    for name, variant in variants.items():
      rates[name].append(rate() if rate else 0.0)
      seconds[name].append(_seconds(lambda variant=variant, number=number: variant(number)))
      print(f"{name}: {seconds[name][-1]:.2f} s in round {number + 1} of {repeats}", flush=True)
  return seconds, rates


def ratio(seconds: Mapping[str, Sequence[float]], name: str, base: str, work: Mapping[str, float]) -> float:
  """How many times the work a second of `base` the variant does: the median over the rounds."""
  return median((work[name] / a) / (work[base] / b) for a, b in zip(seconds[name], seconds[base], strict=True))


def print_peak_memory(**more: float) -> None:
  """Prints the most bytes that this process ever had resident, for `peak_memory`; on Linux only."""
  # Not getrusage, whose maximum starts with that of the process that started this one.
  (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
  print(json.dumps({"resident": int(line.split()[1]) * 1024, **more}))


def peak_memory(script: str, flags: Sequence[object]) -> dict[str, float]:
  """What `print_peak_memory` prints in a process of its own that runs the script with these flags."""
  words = [sys.executable, script, *map(str, flags)]
  return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """Aligned columns."""
  cells = [[str(cell) for cell in row] for row in (header, *rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in
                             enumerate(zip(row, widths, strict=True))) for row in cells)


def write_json(path: str | None, results: Mapping[str, object]) -> None:
  """Writes the results with what they were measured on."""
  if path:
    machine = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__,
               "machine": platform.machine(), "python": platform.python_version()}
    Path(path).write_text(json.dumps({**machine, **results}, indent=1) + "\n")


def _run(function: Callable, operands: Sequence[jax.Array]) -> None:
  jax.block_until_ready(function(*operands))


def _seconds(function: Callable[[], object]) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start
