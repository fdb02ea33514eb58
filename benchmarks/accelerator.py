"""Attention, training, encoding and search on one accelerator, each against what the chip could do; in ten minutes.

Prints each row as it is measured and a table of each part behind its last, and rewrites FILE with all of them. It needs
jax, flax, optax, orbax-checkpoint, numpy, sentencepiece and gin-config, and no data: texts are drawn, with 24 and 122
tokens on average, and weights are random. Where torch and transformers are installed, encoding is compared with
transformers' T5 encoder.
"""

import argparse
import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from gtr_jax import config
from gtr_jax.inference.embed import embed_tokens
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.attention import attention, kernel_refuses, pattern
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import chips, partitioning
from gtr_jax.retrieval import search
from gtr_jax.text.batch import RowLengths, make_batch
from gtr_jax.text.packing import pack_texts
from gtr_jax.training import optimizers
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step

LENGTHS, ROWS = (64, 256), RowLengths(64, 640)
Row = dict[str, Any]


class Sizes:
  """What is measured: on an accelerator, or with `--tiny` on any machine, to see that this script works."""

  def __init__(self, tiny: bool):
    # Rows, their length, heads and their width.
    self.attention = [(2, 128, 2, 64)] if tiny else [(64, 256, 12, 64), (32, 640, 12, 64), (16, 640, 32, 128),
                                                     (2, 4096, 12, 64)]
    self.models = ["tiny"] if tiny else ["base", "large", "xl", "xxl"]
    self.pairs, self.documents, self.encoded = (16, 32, "tiny") if tiny else (256, 20_000, "base")
    self.corpus, self.queries = (4096, (4,)) if tiny else (8_800_000, (16, 512))


class Results:
  """Rows of all parts, printed and written as they come."""

  def __init__(self, path: str | None):
    self._path, self._parts = path, {}

  def add(self, part: str, row: Row) -> None:
    self._parts.setdefault(part, []).append(row)
    print(f"{part}: " + ", ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)
    measure.write_json(self._path, self._parts)

  def show(self, part: str) -> None:
    """The table of a part."""
    rows = self._parts.get(part, [])
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(measure.table(names, [[_shown(row.get(name, "")) for name in names] for row in rows]), flush=True)


def _shown(value: Any) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_out_of_memory(error: Exception) -> bool:
  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def seconds_of(function: Callable[[], Any], repeats: int) -> float:
  """The median of some calls, after one that is not timed."""
  jax.block_until_ready(function())
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function())
    found.append(time.perf_counter() - start)
  return median(found)


def drawn(count: int, mean: float, longest: int, seed: int = 0) -> list[np.ndarray]:
  """Token ids of texts."""
  rng = np.random.default_rng(seed)
  lengths = np.clip(rng.gamma(4, mean / 4, count), 2, longest).astype(int)
  return [rng.integers(2, 100, length).astype(np.int32) for length in lengths]


def packed_rows(rows: int, length: int) -> np.ndarray:
  """Segment ids `[1, rows, length]` of drawn passages."""
  texts = measure.padded(drawn(rows * max(1, length // 128), 122, min(length, 256)), length)
  return pack_texts(texts[None], length, 0.1).segment_ids[:, :rows]


def config_of(size: str, **more: Any) -> T5Config:
  """Of gin/models."""
  config.parse([f"models/t5_{size}.gin"])
  return dataclasses.replace(T5Config(**config.bindings(T5Config)), dropout_rate=0.0, **more)


def share_of_peak(flops: float, seconds: float, dtype: str) -> Row:
  chip = chips.of_device(jax.devices()[0])
  return {"TFLOP/s": flops / seconds / 1e12} | (
      {"of the peak": flops / seconds / chip.flops_in(dtype)} if chip else {})


def attentions(sizes: Sizes, repeats: int) -> Iterator[Row]:
  """Forward and backward in bfloat16, by each path; how far it is from the reference in float32."""
  for rows, length, heads, head_dim in sizes.attention:
    segments = packed_rows(rows, length)
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.normal(size=(*segments.shape, heads, head_dim)) * scale, jnp.float32)
                        for scale in (0.3, 0.3, 1, 1))
    table = jnp.asarray(rng.normal(size=(heads, 32)), jnp.float32)

    def by_door(way, table, q, k, v, segments=segments):
      precision = "highest" if q.dtype == jnp.float32 else None
      return attention(q, k, v, pattern(table, jnp.asarray(segments), 128, way), precision=precision)

    def by_jax(implementation, table, q, k, v, segments=segments):
      of_rows = pattern(table, jnp.asarray(segments), 128, "reference")
      mask = segments[0][:, None, :, None] == segments[0][:, None, None, :]
      return jax.nn.dot_product_attention(q[0], k[0], v[0], bias=of_rows.bias[None].astype(q.dtype), mask=mask,
                                          scale=1.0, implementation=implementation)[None]

    paths = {"reference": functools.partial(by_door, "reference"), "jax.nn, XLA": functools.partial(by_jax, "xla")}
    if jax.default_backend() == "gpu":
      paths["jax.nn, cuDNN"] = functools.partial(by_jax, "cudnn")
    if not kernel_refuses(segments.shape[2], heads, head_dim):
      paths["kernel"] = functools.partial(by_door, "kernel")

    def gradient(path, dtype, table, *vectors, weights=weights):
      def f(table, *vectors):
        out = path(table, *vectors)
        return jnp.sum(out.astype(jnp.float32) * weights), out
      (_, out), gradients = jax.value_and_grad(f, argnums=(0, 1, 2, 3), has_aux=True)(
          table, *(x.astype(dtype) for x in vectors))
      return out, gradients

    exact = jax.jit(functools.partial(gradient, paths["reference"], jnp.float32))(table, q, k, v)
    lengths = np.bincount(segments.ravel())[1:]
    for name, path in paths.items():
      shape = {"path": name, "rows": segments.shape[1], "length": length, "heads": f"{heads} x {head_dim}"}
      try:
        run = jax.jit(functools.partial(gradient, path, jnp.bfloat16))
        found = run(table, q, k, v)
        seconds = seconds_of(functools.partial(run, table, q, k, v), repeats)
      except Exception as e:  # A path that there is not for this chip or shape is a result too.
        yield shape | {"error": f"{type(e).__name__}: {str(e).splitlines()[0]:.120}"}
        continue
      differences = [float(jnp.linalg.norm((a.astype(jnp.float32) - b).ravel()) / jnp.linalg.norm(b.ravel()))
                     for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)]
      flops = 3.5 * 4 * heads * head_dim * float(np.square(lengths, dtype=np.float64).sum())
      yield shape | {"ms": 1e3 * seconds, "farthest from float32": max(differences)} | share_of_peak(
          flops, seconds, "bfloat16")


def trainings(sizes: Sizes, repeats: int) -> Iterator[Row]:
  """Whole steps, packed: MFU on real tokens; half of the pairs where they do not fit. Larger models than base compute
  each layer again, which caps it at three quarters."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  for size in sizes.models:
    for name in ("reference", "kernel") if jax.default_backend() == "tpu" else ("reference",):
      pairs = sizes.pairs
      while pairs >= 16:
        how = {"remat": "none"} if size in ("tiny", "base") else {"remat": "layer", "scan_layers": True}
        model = DualEncoder(config_of(size, attention=name, **how), projection_dim=768)
        queries, passages = drawn(pairs, 24, LENGTHS[0]), drawn(pairs, 122, LENGTHS[1], 1)
        features = measure.features(measure.Pairs(None, None, queries, passages), 0, pairs, LENGTHS)
        row = {"model": size, "attention": name, "remat": how["remat"], "pairs": pairs}
        try:
          yield row | _training(model, features, mesh, repeats, [len(text) for text in queries + passages])
          break
        except jax.errors.JaxRuntimeError as e:
          if not is_out_of_memory(e):
            raise
          yield row | {"error": "does not fit"}
          pairs //= 2


def _training(model, features, mesh, repeats, lengths):
  loss, optimizer = InBatchLoss(), optimizers.adafactor(1e-3)
  state, shardings = create_state(model, loss, optimizer, mesh, seed=0)
  step = compile_step(make_train_step(model, loss, optimizer, seed=0), shardings)
  batch = make_batch(features, 1, row_lengths=ROWS)
  with jax.set_mesh(mesh):
    on_device = partitioning.global_batch(mesh, batch)

    def run():
      nonlocal state
      state, metrics = step(state, on_device)
      return metrics["loss"]

    seconds = seconds_of(run, repeats)
  slots = sum(texts.tokens.size for texts in (batch.queries, batch.passages))
  return {"ms": 1e3 * seconds, "tokens/s": sum(lengths) / seconds, "fill": sum(lengths) / slots} | share_of_peak(
      3 * measure.encoder_flops(model.config, lengths), seconds, model.config.dtype_on(jax.default_backend()))


def encodings(sizes: Sizes, repeats: int) -> Iterator[Row]:
  """Documents of up to 256 tokens."""
  of_model = config_of(sizes.encoded)
  of_model = dataclasses.replace(of_model, dtype=of_model.dtype_on(jax.default_backend()))
  model, mesh = DualEncoder(of_model, projection_dim=768), partitioning.make_mesh(devices=jax.devices()[:1])
  tokens = drawn(sizes.documents, 122, LENGTHS[1])
  lengths = [len(text) for text in tokens]
  params = create_state(model, InBatchLoss(), optimizers.adamw(0.0), mesh, seed=0)[0].params
  seconds = seconds_of(lambda: embed_tokens(model, params, tokens, "passage", LENGTHS[1], mesh), min(repeats, 3))
  yield {"encoder": f"gtr_jax, {sizes.encoded}", "tokens/s": sum(lengths) / seconds} | share_of_peak(
      measure.encoder_flops(of_model, lengths), seconds, of_model.dtype)
  if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
    theirs = _transformers(of_model, tokens, min(repeats, 3))
    yield {"encoder": "transformers, texts sorted by length, batches of 128", "tokens/s": sum(lengths) / theirs,
           "gtr_jax is times this": theirs / seconds}


def _transformers(of_model, tokens, repeats):
  import torch
  import transformers
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = transformers.T5EncoderModel(transformers.T5Config(
      vocab_size=of_model.vocab_size, d_model=of_model.emb_dim, d_kv=of_model.head_dim, d_ff=of_model.mlp_dim,
      num_layers=of_model.num_layers, num_heads=of_model.num_heads)).to(device, getattr(torch, of_model.dtype)).eval()
  tokens = sorted(tokens, key=len, reverse=True)

  def run():
    found = []
    with torch.inference_mode():
      for first in range(0, len(tokens), 128):
        texts = tokens[first:first + 128]
        ids = torch.from_numpy(measure.padded(texts, len(texts[0]))).long().to(device)
        mask = (ids != 0)[..., None]
        hidden = model(input_ids=ids, attention_mask=mask[..., 0].long()).last_hidden_state
        found.append(((hidden * mask).sum(1) / mask.sum(1)).float())
    return torch.cat(found).cpu().numpy()

  return seconds_of(run, repeats)


class _Rows:
  """A corpus of which only a part is drawn, and repeated: what is searched does not matter for how long it takes."""

  def __init__(self, rows: int, dim: int):
    self.shape = rows, dim
    self._drawn = np.random.default_rng(0).normal(size=(min(rows, 1 << 18), dim)).astype(np.float32)

  def __getitem__(self, rows: slice) -> np.ndarray:
    first, stop, _ = rows.indices(self.shape[0])
    return self._drawn[np.arange(first, stop) % len(self._drawn)]


def searches(sizes: Sizes, repeats: int) -> Iterator[Row]:
  """Exact search in float32, with the corpus on the device; the share of the memory's bandwidth that reading it is.

  As long as it does not fit, half of the corpus is left out.
  """
  search.RESIDENT_BYTES = 1 << 40
  chip = chips.of_device(jax.devices()[0])
  rows, numbers = sizes.corpus, list(sizes.queries)
  while numbers:
    row = {"corpus": f"{rows:,} x 768", "queries": numbers[0], "top": 100}
    try:
      corpus = _Rows(rows, 768)
      searcher = search.Searcher(corpus, partitioning.make_mesh(devices=jax.devices()[:1]))
      seconds = seconds_of(functools.partial(searcher.search, corpus[slice(0, numbers[0])], 100), repeats)
    except jax.errors.JaxRuntimeError as e:
      if not is_out_of_memory(e) or rows < 1 << 16:
        raise
      yield row | {"error": "does not fit"}
      rows //= 2
      continue
    bandwidth = 4.0 * rows * 768 / seconds
    yield row | {"ms": 1e3 * seconds, "GB/s": bandwidth / 1e9} | (
        {"of the bandwidth": bandwidth / chip.memory_bandwidth} if chip else {})
    numbers.pop(0)


PARTS: dict[str, tuple[Callable[[Sizes, int], Iterator[Row]], float]] = {  # With their shares of the time.
    "attention": (attentions, 0.3), "search": (searches, 0.15), "encoding": (encodings, 0.2),
    "training": (trainings, 0.35)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("file", nargs="?", metavar="FILE", help="JSON")
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
  parser.add_argument("--seconds", type=float, default=540, help="after a part's share of them no row of it is begun")
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that this works: on a CPU a minute")
  args = parser.parse_args()
  results, sizes, device = Results(args.file), Sizes(args.tiny), jax.devices()[0]
  print(f"{device.device_kind}, jax {jax.__version__}", flush=True)
  for name in args.parts:
    part, share = PARTS[name]
    end = time.monotonic() + args.seconds * share / sum(PARTS[of][1] for of in args.parts)
    for row in part(sizes, args.repeats):
      results.add(name, row)
      if time.monotonic() > end:
        print(f"{name}: what is left has no time", flush=True)
        break
    results.show(name)


if __name__ == "__main__":
  main()
