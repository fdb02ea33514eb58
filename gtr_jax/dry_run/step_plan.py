"""A training step compiled for devices that need not be here, from shapes alone: what it needs, and what that takes.

Nothing is allocated and no data is read. Memory is what the compiler says. FLOPs and collectives are read from the
program as XLA has divided it over the devices, and before it fits it to one kind of them.
"""

import dataclasses
import importlib.metadata
import itertools
import math
import re
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gtr_jax.dry_run import described
from gtr_jax.dry_run.floor import floor
from gtr_jax.dry_run.hlo import Program, Work
from gtr_jax.dry_run.predicted import Predicted, predicted
from gtr_jax.errors import InputError
from gtr_jax.losses.teacher import NOTHING, OfTeacher, of_teacher
from gtr_jax.models import attention_kernel
from gtr_jax.parallel import chips, partitioning
from gtr_jax.text.batch import PASSAGE_SPREAD, QUERY_SPREAD, Batch, Taught
from gtr_jax.text.packing import Texts, round_rows
from gtr_jax.training.mfu import most_tokens_per_second
from gtr_jax.training.state import abstract_state, state_initializer
from gtr_jax.training.step import compile_step, make_train_step

PACKED_FILL = 0.95  # of the rows that best fit makes, as measured on question-answer pairs


@dataclass(frozen=True)
class BatchSizes:
  """What decides the shapes of a batch; the names are those of `data.pipeline.TrainingBatches`.

  `mean_tokens` are those of a query and of a passage, for the number of packed rows; None: half of the longest.
  """

  batch_size: int
  feature_lengths: Mapping[str, int]
  microbatch_size: int | None = None
  row_lengths: Mapping[str, int] | None = None
  negatives_per_example: int = 0
  negative_queries_per_example: int = 0
  mean_tokens: Sequence[float] | None = None


@dataclass(frozen=True)
class Plan:
  """What one device of a mesh needs for a training step. Bytes are of one device.

  Attributes:
    mesh: sizes of the mesh axes.
    compiler: who said what the temporaries are.
    parameters: in the whole model.
    tokens: token slots of the global batch.
    params_bytes: of the parameters.
    optimizer_bytes: of the rest of the state.
    batch_bytes: of the batch.
    temporary_bytes: activations, gathered parameters, gradients and all else that lives within a step only.
    work: FLOPs and collectives.
    seconds: the compilation took.
    out_of_memory: what the compiler says where it gave up because the step does not fit; else empty.
    program: that `work` was read from.
    predicted: what a step takes; None where the compiler does not say.
    at_peak: seconds, if the devices did nothing but the products of the encoder's kernels, at their peak: of real
      tokens, of all token slots where rows are not packed; by a step's seconds this is its MFU.
    unknown: why the compiler was asked what a step takes, and its answer could not be read; else empty.
  """

  mesh: dict[str, int]
  compiler: str
  parameters: int
  tokens: int
  params_bytes: int
  optimizer_bytes: int
  batch_bytes: int
  temporary_bytes: int
  work: Work
  seconds: float
  out_of_memory: str
  program: Program = dataclasses.field(repr=False)
  predicted: Predicted | None = None
  at_peak: float = 0.0
  unknown: str = ""

  @property
  def total_bytes(self) -> int:
    return self.params_bytes + self.optimizer_bytes + self.batch_bytes + self.temporary_bytes


_described: int | None = None  # How many devices jax has been told to take.


def describe_devices(count: int) -> None:
  """Has jax take `count` CPU devices, before anything else uses it.

  Raises:
    InputError: jax has started with others.
  """
  global _described
  if _described == count:
    return
  try:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    _described = count
  except RuntimeError as e:
    raise InputError(f"--described_devices {count}: jax has already started with {jax.device_count()} devices") from e


def plan(model: Any, loss: Any, optimizer: Any, mesh: jax.sharding.Mesh, sizes: BatchSizes,
         chip: chips.Chip | None = None, slices: int = 1, across_slices: Any = "data") -> Plan:
  """Compiles the training step.

  Args:
    model: a `DualEncoder`; a dtype of "auto" is that of accelerators.
    loss: an `InBatchLoss` or `RingLoss`.
    optimizer: of `gtr_jax.training.optimizers`.
    mesh: of devices, or of described ones.
    sizes: of the batch.
    chip: where its own compiler is installed, that says what memory the step needs.
    slices: that its devices are in.
    across_slices: of `make_mesh`.

  Raises:
    InputError: the model cannot be divided over the mesh.
  """
  start = time.monotonic()
  compiler, out_of_memory = f"the compiler for {mesh.devices.flat[0].platform}", ""
  expected, unknown = None, ""
  if chip and mesh.devices.flat[0].platform == "cpu" and described.has_compiler(chip):
    of_chips = described.devices(chip, mesh.size, slices)
    mesh = partitioning.make_mesh(**dict(mesh.shape), devices=of_chips.devices, across_slices=across_slices)
    compiler = f"the compiler for {of_chips.name}"
  loss = loss.on_mesh(mesh)
  # By the CPU's compiler too it is the step of an accelerator.
  attention = "reference" if model.config.attention == "auto" else model.config.attention
  model = dataclasses.replace(model, config=dataclasses.replace(
      model.config, dtype=model.config.dtype_on("tpu"), attention=attention))
  shares = kernel_shares(model.config, mesh, sizes)
  init, shardings = state_initializer(model, loss, optimizer, mesh, 0)
  with jax.set_mesh(mesh):
    state = abstract_state(jax.eval_shape(init), shardings)
    batch = abstract_batch(mesh, sizes, of_teacher(loss, model.dim))
    lowered = compile_step(make_train_step(model, loss, optimizer, 0), shardings).lower(state, batch)
    params_bytes, state_bytes, batch_bytes = _bytes(state.params), _bytes(state), _bytes(batch)
    program, compiled = compile_lowered(lowered, mesh)
    if isinstance(compiled, Exception):
      out_of_memory = str(compiled)
      if (found := _temporary_bytes(out_of_memory, state_bytes + batch_bytes)) is None:  # It was something else.
        raise compiled
      temporary_bytes = found
    elif (memory := compiled.memory_analysis()) is None:
      raise InputError(f"{compiler} does not say what memory a step needs; describe the devices with "
                       "--described_devices")
    else:
      temporary_bytes = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
      if chip and chip.clock and mesh.devices.flat[0].platform == "tpu":
        expected, unknown = _expected(compiled, mesh, chip, shares)
  parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
  tokens = sum(texts.tokens.size for texts in (batch.queries, batch.passages))
  fastest = most_tokens_per_second(model, mesh) if expected else None
  at_peak = _real_tokens(sizes, tokens) / fastest if fastest else 0.0
  return Plan(dict(mesh.shape), compiler, parameters, tokens, params_bytes, state_bytes - params_bytes, batch_bytes,
              temporary_bytes, program.work(shares), time.monotonic() - start, out_of_memory, program, expected,
              at_peak, unknown)


def _expected(compiled: Any, mesh: jax.sharding.Mesh, chip: chips.Chip,
              shares: Mapping[int, float]) -> tuple[Predicted | None, str]:
  """What a step takes by the compiler's program, or why that cannot be read."""
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # A libtpu may use operations that this jax has not heard of.
    return None, (f"How long a step takes is not known: jax {jax.__version__} cannot read the program that libtpu "
                  f"{importlib.metadata.version('libtpu')} makes of it. It can read its own libtpu's: pip install "
                  f"'jax[tpu]=={jax.__version__}'")
  return predicted(Program(text, mesh.size, _slices(mesh)), chip, shares), ""


def kernel_shares(config: Any, mesh: jax.sharding.Mesh, sizes: BatchSizes) -> dict[int, float]:
  """What of its blocks the attention kernel computes of packed rows, by their length in whole blocks.

  Of texts that are all as long as the average, one behind the other, wherever the first of them begins; others meet in
  more of them.
  """
  block, starts = attention_kernel.block_of(mesh.devices.flat[0].device_kind), 16
  shares: dict[int, float] = {}
  row_lengths = sizes.row_lengths or {} if config.attention == "kernel" else {}
  for side, length in row_lengths.items():
    mean = _mean_tokens(sizes, side)
    blocks, met = -(-length // block), 0
    for query, start in itertools.product(range(blocks), range(starts)):
      before = start / starts * mean  # So much of the first text is not in the row.
      begin = max((query * block + before) // mean * mean - before, 0)
      end = (((query + 1) * block - 1 + before) // mean + 1) * mean - before
      met += min(math.ceil(end / block), blocks) - int(begin // block)
    shares[blocks * block] = min(met / starts / blocks**2, shares.get(blocks * block, 1.0))
  return shares


def _slices(mesh: jax.sharding.Mesh) -> list[int]:
  """Which the devices of a TPU are in; where there is but one, they do not say."""
  return [getattr(device, "slice_index", 0) for device in mesh.devices.flat if device.platform == "tpu"]


def compile_lowered(lowered: Any, mesh: jax.sharding.Mesh) -> tuple[Program, Any]:
  """The program as it is divided over the devices, and what their compiler makes of it, or the error that it gives."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      compiled = lowered.compile(
          compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
    except jax.errors.JaxRuntimeError as e:
      compiled = e
    dumped = sorted(Path(folder).glob("*.after_*spmd-partitioning.*.txt"))
    whole: Any = lowered.compiler_ir("hlo")  # Of a single device, which nothing is partitioned for.
    text = dumped[-1].read_text() if dumped else whole.as_hlo_module().to_string()
    return Program(text, mesh.size, _slices(mesh)), compiled


def abstract_batch(mesh: jax.sharding.Mesh, sizes: BatchSizes, asked: OfTeacher = NOTHING) -> Batch:
  """The batch that `text.batch.make_batch` would make, as shapes with shardings, of sizes that divide, with what of a
  teacher is asked for."""
  groups, pairs = partitioning.num_groups(mesh), sizes.batch_size
  at_once = sizes.microbatch_size or pairs
  lead = (groups, pairs // at_once) if sizes.microbatch_size else (groups,)
  own = at_once // groups
  sharding = partitioning.batch_sharding(mesh)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=sharding)

  def texts(side, others, spread):
    rows, length = own * (1 + others), _longest(sizes, side)
    if sizes.row_lengths:
      length = sizes.row_lengths[side]
      rows = round_rows(math.ceil(rows * _mean_tokens(sizes, side) / (length * PACKED_FILL)), rows, spread)
    return Texts(array(jnp.int32, rows, length), array(jnp.int32, rows, length))

  k, m = sizes.negatives_per_example, sizes.negative_queries_per_example
  of_passages = array(jnp.uint32, own * (1 + k), 2)
  teacher = Taught(
      array(jnp.float32, own * (1 + m), asked.vectors) if asked.vectors else None,
      array(jnp.float32, own * (1 + k), asked.vectors) if asked.vectors else None,
      array(jnp.float32, own * (1 + k)) if asked.scores else None)
  return Batch(texts("inputs", m, QUERY_SPREAD), texts("targets", k, PASSAGE_SPREAD), array(jnp.bool_, own),
               array(jnp.bool_, own * k), array(jnp.int32, own * k), array(jnp.bool_, own * m),
               array(jnp.uint32, own * (1 + m), 2), of_passages, of_passages,
               array(jnp.uint32, own, 1, 2), teacher)


def _negatives(sizes: BatchSizes, side: str) -> int:
  return sizes.negative_queries_per_example if side == "inputs" else sizes.negatives_per_example


def _longest(sizes: BatchSizes, side: str) -> int:
  """Tokens of the longest text of "inputs" or "targets"."""
  of_negatives = sizes.feature_lengths.get(f"negative_{side}", 0) if _negatives(sizes, side) else 0
  return max(sizes.feature_lengths[side], of_negatives)


def _real_tokens(sizes: BatchSizes, slots: int) -> float:
  """Of the texts, where they are packed; else of all token slots, as how long texts are is not known."""
  if not sizes.row_lengths:
    return slots
  return sizes.batch_size * sum((1 + _negatives(sizes, side)) * _mean_tokens(sizes, side) for side in sizes.row_lengths)


def _mean_tokens(sizes: BatchSizes, side: str) -> float:
  return sizes.mean_tokens[side == "targets"] if sizes.mean_tokens else _longest(sizes, side) / 2


def _temporary_bytes(message: str, others: int) -> int | None:
  """What the TPU's compiler says that it needs, in either of two ways; None where it says something else."""
  if of_temporaries := re.search(r"temporaries \(([\d.]+)([KMGT])\) exceeds", message):
    return _in_bytes(of_temporaries)
  used = re.search(r"Used ([\d.]+)([KMGT]) of", message)
  return max(_in_bytes(used) - others, 0) if used else None


def _in_bytes(size: re.Match[str]) -> int:
  return int(float(size[1]) * 1024 ** (" KMGT".index(size[2])))


def _bytes(tree: Any) -> int:
  """Of one device's part."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


_CPU_NOTE = """\
Temporaries are those of the CPU's compiler, which computes bfloat16 in float32 and attention in small pieces: an \
accelerator's differ, and for bfloat16 are mostly smaller. With libtpu installed, --chip v4, v5e, v5p or v6e asks the \
TPU's compiler, with jax's plugin for CUDA, --chip h100 or h200 the GPU's.
"""
_FLOOR_NOTE = """\
The floor is the longest of three: FLOPs at the peak rate of their dtype; what the matrix products read and write, and \
the state read and written once, at the memory's bandwidth; what the collectives send, passed round rings one after \
the other, at the interconnect's. A step takes longer, but for small ones whose products stay in a TPU's fast memory. \
?: no source for that figure.
"""

_PREDICTED_NOTE = """\
At least: each operation by its FLOPs, its vector operations or its bytes, whichever takes longest at published rates. \
Expected: by the cycles that the compiler says. Of the attention kernel, of which it says none, both count what it \
computes of texts of the average length; collectives count where nothing else runs meanwhile. MFU is of real tokens \
where rows are packed, else of token slots.
"""


def report(plan: Plan, names: Sequence[str]) -> str:
  """The plan as text, with a row for each of these chips."""
  axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
  devices = math.prod(plan.mesh.values())
  lines = [f"{devices} device{'s' * (devices > 1)} ({axes}), {plan.parameters:,} parameters, "
           f"{plan.tokens:,} token slots a step; {plan.compiler}, {plan.seconds:.0f} s", "", "memory of each device"]
  lines += [f"  {name:18}{_size(value):>12}" for name, value in (
      ("parameters", plan.params_bytes), ("optimizer state", plan.optimizer_bytes), ("batch", plan.batch_bytes),
      ("temporaries", plan.temporary_bytes), ("total", plan.total_bytes))]
  lines += ["", f"work of each device in a step: {plan.work.flops:.3e} FLOPs in matrix products, "
            f"{plan.work.float32_flops / max(plan.work.flops, 1):.0%} of them in float32, which read and write "
            f"{_size(plan.work.matmul_bytes)}", "",
            f"  {'collective':20}{'dtype':>10}{'devices':>9}{'in a loop':>11}{'times':>8}{'each device sends':>20}"]
  lines += [f"  {c.kind:20}{c.dtype:>10}{c.devices:9}{'yes' if c.in_loop else 'no':>11}{c.count:8,}{_size(c.bytes):>20}"
            for c in plan.work.collectives] or ["  none"]
  if plan.work.unknown_loops:
    lines.append(f"  {plan.work.unknown_loops} loops of unknown length are counted once")
  lines += ["", f"  {'chip':8}{'memory':>10}{'fits':>14}{'compute':>12}{'memory':>12}{'interconnect':>14}{'floor':>12}"]
  for name in names:
    chip = chips.CHIPS[name]
    least = floor(chip, plan.work, plan.params_bytes + plan.optimizer_bytes)
    share = plan.total_bytes / chip.memory
    fits = f"{'yes' if share <= 1 and not plan.out_of_memory else 'no'}, {share:.0%}"
    lines.append(f"  {name:8}{_size(chip.memory):>10}{fits:>14}{_time(least.compute):>12}{_time(least.memory):>12}"
                 f"{_time(least.interconnect):>14}{_time(least.seconds):>12}")
  notes = [_FLOOR_NOTE] + ([_CPU_NOTE] if plan.compiler.endswith("cpu") else [])
  if of_step := plan.predicted:
    lines += ["", f"  {'a step on ' + names[0]:28}{'at least':>12}{'expected':>12}"]
    lines += [f"  {part:28}{_time(seconds.least):>12}{_time(seconds.expected):>12}"
              for part, seconds in of_step.parts.items()
              if seconds.expected > 0.005 * of_step.expected or seconds.least > 0.005 * of_step.least]
    lines += [f"  {'in all':28}{_time(of_step.least):>12}{_time(of_step.expected):>12}",
              f"  {'MFU':28}{plan.at_peak / of_step.least:>12.0%}{plan.at_peak / of_step.expected:>12.0%}",
              f"{_size(of_step.hbm_bytes)} to and from each device's memory"]
    notes.append(_PREDICTED_NOTE)
    if of_step.uncounted:
      notes.append(f"Each device sends {_size(of_step.uncounted)} to other slices; no source for how fast that is, "
                   "so it is not counted.")
  if plan.unknown:
    notes.append(plan.unknown)
  return "\n".join([*lines, "", *(textwrap.fill(note, 120) for note in notes)])


def _size(count: float) -> str:
  power = 0
  while count >= 999.5 and power < 4:
    count, power = count / 1000, power + 1
  return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _time(seconds: float | None) -> str:
  return "?" if seconds is None else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
