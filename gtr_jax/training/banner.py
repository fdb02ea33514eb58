"""What a run says of itself before its first step, and after its last."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from gtr_jax import __version__
from gtr_jax.io import bars
from gtr_jax.models.attention import kernel_refuses
from gtr_jax.models.parameters import trained
from gtr_jax.parallel import partitioning, processes
from gtr_jax.text.batch import Batch
from gtr_jax.training import memory

_LABEL = 10  # characters


def say(*lines: str) -> None:
  """Prints, in process 0, unless a command is to be quiet."""
  if bars.shown() and processes.is_first():
    print(*lines, sep="\n", flush=True)


def device_line() -> str:
  """The program and what it runs on."""
  devices = jax.devices()
  kind = "CPU device" if devices[0].platform == "cpu" else devices[0].device_kind
  several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
  return f"gtr_jax {__version__} on {len(devices)} {kind}{'s' * (len(devices) > 1)}{several}, JAX {jax.__version__}"


def banner(run: Any, num_pairs: int, lengths: dict[str, int], batch: Batch, state: Any,
           measured: Sequence[str], step: int) -> list[str]:
  """Lines of a run before its first step.

  Args:
    run: the `run.TrainingRun`.
    num_pairs: to train on.
    lengths: tokens at which texts are cut, of "inputs" and "targets".
    batch: this process's part of the first batch.
    state: the `TrainState`.
    measured: the evaluators, in words.
    step: that it begins at.
  """
  config, mesh = run.model.config, run.mesh
  dtype = config.dtype_on(mesh.devices.flat[0].platform)
  microbatched = batch.valid.ndim == 3
  shards = partitioning.num_groups(mesh)
  pairs = batch.valid.size // len(partitioning.own_groups(mesh)) * shards
  negatives = batch.negative_valid.size // max(1, batch.valid.size)
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
  parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
  start = run.initial_checkpoint_path or "RANDOM WEIGHTS"
  if step:
    start = f"its checkpoint of step {step}"
  lines = [_line("model", f"{config.num_layers} layers, {config.emb_dim} wide, {parameters / 1e6:,.1f} million "
                          f"parameters, vectors of {run.model.dim}, computed in {dtype}; from {start}")]
  if (lora := run.model.lora) is not None:
    number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained(run.model, state.params)))
    lines.append(_line("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}: {number:,} of the parameters are trained, the "
                               "others stay as they are"))
  if axes:
    lines.append(_line("mesh", axes))
  if config.attention == "kernel":
    lines.append(_line("attention", "; ".join(_attention(config, mesh, batch))))
  each = f", {negatives} hard negative{'s' * (negatives > 1)} each" if negatives else ""
  at_once = f", encoded {pairs // batch.valid.shape[1]} at once" if microbatched else ""
  lines.append(_line("batch", f"{pairs:,} pairs{each}{at_once}; {_rows(batch)}"))
  epochs = f", {run.train_steps * pairs / num_pairs:.3g} times the {num_pairs:,} pairs"
  temperature = getattr(run.loss, "temperature", None)
  lines.append(_line("steps", f"{run.train_steps:,}{epochs}; {_learning_rate(run)}" +
                     (f"; temperature {temperature:g}" if temperature else "")))
  lines.append(_line("texts", f"of the first batch, {_cut(batch.queries, lengths['inputs'], 'queries')} and "
                              f"{_cut(batch.passages, lengths['targets'], 'passages')}, where they are cut"))
  lines.append(_line("memory", _memory(run, batch, state, pairs, negatives)))
  if measured and run.eval_period:
    decides = f"; the best {run.best_metric} is kept" if run.best_metric else ""
    lines.append(_line("measured", f"{', '.join(measured)} every {run.eval_period:,} steps{decides}"))
  lines.append(_line("output", f"{run.model_dir}"))
  return lines


def _attention(config: Any, mesh: jax.sharding.Mesh, batch: Batch) -> Iterator[str]:
  """Of each side, whether the kernel that was asked for computes it."""
  with jax.set_mesh(mesh):
    for side, texts in (("queries", batch.queries), ("passages", batch.passages)):
      why_not = kernel_refuses(texts.tokens.shape[-1], config.num_heads // mesh.shape["model"], config.head_dim)
      yield f"of {side} by the reference, not the kernel: {why_not}" if why_not else f"of {side} by the kernel"


def warn(run: Any, num_pairs: int, pairs: int, opt_state: Any) -> None:
  """Says on stderr what of a run is hardly meant."""
  if not processes.is_first():
    return
  if pairs > num_pairs:
    print(f"a batch of {pairs:,} pairs from {num_pairs:,} repeats pairs, which then are no negatives of each other; a "
          f"batch of {num_pairs:,} or fewer is as good", file=sys.stderr)
  if run.model.lora is not None and run.initial_checkpoint_path is None:
    print("LoRA leaves RANDOM WEIGHTS as they are, and what is trained beside them makes little of them; give a model "
          "to start from (INITIAL_CHECKPOINT_PATH)", file=sys.stderr)
  factored = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.FactoredState))
  if run.model.lora is not None and any(isinstance(node, optax.FactoredState) for node in factored):
    print("Adafactor's steps are relative to a parameter's size, and half of LoRA's begin at 0 and hardly move; set "
          "OPTIMIZER = @optimizers.adamw()", file=sys.stderr)
  peak = _peak(run)
  if peak > run.train_steps / 2:
    print(f"the learning rate rises until step {peak:,} of {run.train_steps:,}, for more than half of the run, and "
          "hardly gets to where it is meant to be; set WARMUP_STEPS to a tenth of TRAIN_STEPS", file=sys.stderr)


def closing(run: Any, best_step: int | None, score: float | None, step: int, stopped_early: bool,
            before: float | None) -> list[str]:
  """Lines of a run after its last step: what is kept, and where.

  Args:
    run: the `run.TrainingRun`.
    best_step: by `run.best_metric`; None: nothing decides.
    score: of that step.
    step: the last one.
    stopped_early: because it got no better.
    before: the score of what the run started from; None: not measured.
  """
  short = stopped_early and step < run.train_steps  # What gives up at the last step has missed nothing.
  lines = [_line("done", f"{step:,} steps" + (", no longer because it got no better" if short else ""))]
  place = run.model_dir
  if best_step is not None and score is not None:
    lines.append(_line("best", f"step {best_step:,}: {run.best_metric} {score:.4f}{_beside(run, score, before)}"))
  lines.append(_line("where", f"{place}: --model {place} takes its {'best' if best_step is not None else 'last'} step"))
  return lines


def _beside(run: Any, score: float, before: float | None) -> str:
  """How the best score compares with the one before training, as far as both are shown."""
  if before is None:
    return ""
  gain = round(score, 4) - round(before, 4)
  if lower_is_better(run.best_metric):
    gain = -gain
  if gain > 0:
    return f" ({before:.4f} before training)"
  advice = (f"lower the learning rate (--learning_rate, or LEARNING_RATE), or stay with "
            f"{run.initial_checkpoint_path or 'what it started from'}")
  if gain == 0:
    return f", no better than before training ({before:.4f}): {advice}"
  return f", WORSE than before training ({before:.4f}): {advice}"


def lower_is_better(metric: str | None) -> bool:
  """Whether the best checkpoint is that of the lowest value: of a loss."""
  return (metric or "").endswith("loss")


def following(run: Any, collection: str | None) -> list[str]:
  """Lines after these: what to do with the model.

  Args:
    run: the `run.TrainingRun`.
    collection: a test collection to go on with; None: a placeholder is shown.
  """
  place, name = run.model_dir, collection or "COLLECTION"
  return [_line("next", f"gtr-jax evaluate --model {place} --collection {name} --bm25 --output {place}/results"),
          _line("", f"gtr-jax encode --model {place} --collection {name} --output {place}/embeddings && "
                    f"gtr-jax search --model {place} --embeddings {place}/embeddings"),
          _line("", f"gtr-jax convert {place} {place}/sentence_transformers")]


def _line(label: str, text: str) -> str:
  return f"{label:{_LABEL}}{text}"


def _rows(batch: Batch) -> str:
  shapes = [texts.tokens.shape[-2:] for texts in (batch.queries, batch.passages)]
  packed = any(texts.segment_ids[..., :1].shape[-2] != count for texts, count in (
      (batch.queries, batch.query_hash.shape[-2]), (batch.passages, batch.passage_hash.shape[-2])))
  if not packed:
    return "one text a row, of " + " and ".join(f"{length}" for _, length in shapes) + " tokens"
  return "packed into rows of " + " and ".join(f"{length}" for _, length in shapes) + " tokens"


def _cut(texts: Any, limit: int, name: str) -> str:
  """How many texts are as long as may be, and therefore perhaps cut."""
  ids = texts.segment_ids.reshape(-1, texts.segment_ids.shape[-2] * texts.segment_ids.shape[-1])
  counts = np.concatenate([np.bincount(of_part)[1:] for of_part in ids])
  counts = counts[counts > 0]
  return f"{np.mean(counts >= limit):.1%} of the {name} reach {limit} tokens"


def _peak(run: Any) -> int:
  """The step at which the learning rate is highest."""
  steps = np.unique(np.linspace(0, run.train_steps, 257).astype(int))
  return int(steps[np.argmax(jax.vmap(run.optimizer.learning_rate)(steps))])


def _learning_rate(run: Any) -> str:
  peak = _peak(run)
  return f"learning rate {float(run.optimizer.learning_rate(peak)):.3g}" + (f" from step {peak:,}" if peak else "")


def _memory(run: Any, batch: Batch, state: Any, pairs: int, negatives: int) -> str:
  shapes = {name: texts.tokens.shape[-2:] for name, texts in (("queries", batch.queries), ("passages", batch.passages))}
  microbatches = batch.valid.shape[1] if batch.valid.ndim == 3 else 1
  needed = memory.estimated_bytes(run.model, state.params, state.opt_state, run.mesh, shapes, pairs,
                                  pairs * (1 + negatives), microbatches)
  there = memory.available_bytes()
  if run.mesh.devices.flat[0].platform == "cpu":
    needed *= jax.local_device_count()
  each = " on each device" if run.mesh.size > 1 and run.mesh.devices.flat[0].platform != "cpu" else ""
  text = f"about {needed / 1e9:.2g} GB needed{each}" + ("" if there is None else f", {there / 1e9:.2g} GB there")
  if there is not None and needed > there:
    text += "; TOO LITTLE, by this estimate: set a smaller MICROBATCH_SIZE"
  return text
