"""How long the TPU's compiler expects a step to take, and what for: its program says the cycles of each operation.

What it does not say is taken from published rates: kernels of Pallas by their products, as wide as the matrix unit
takes them, and by what they read and write; single operations by their bytes; collectives by the interconnect. Those
that run beside others ("-start") count only where they take longer than all of these.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from gtr_jax.dry_run.floor import collective_seconds
from gtr_jax.dry_run.hlo import COLLECTIVES, Instruction, Program, Shape, of_kernel
from gtr_jax.parallel.chips import Chip

_CYCLES = re.compile(r'estimated_cycles\\?":\\?"(\d+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
         "partition-id", "replica-id", "iota", "opt-barrier", "recv"}
_COPIES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")  # Between the memories, beside other operations.
# What of a step an operation is for, by the first of these that its name has.
_PARTS = (("optimizer", "optimizer"), ("loss", "loss"), ("layer_norm", "norms"), ("encoder_norm", "norms"),
          ("attention/query", "products with kernels"), ("attention/key", "products with kernels"),
          ("attention/value", "products with kernels"), ("attention/out", "products with kernels"),
          ("/mlp", "products with kernels"), ("attention", "attention"), ("relpos_bias", "attention"),
          ("token_embedder", "token embeddings"), ("Tower", "the rest of the encoder"))


@dataclass(frozen=True)
class Predicted:
  """A step on one device.

  Attributes:
    seconds: at least, if the compiler is right.
    parts: seconds by what they are for, the longest first; what is waited for in "the interconnect".
    hbm_bytes: read from the device's memory and written to it; what stays in the fast memory is not.
    uncounted: bytes that it sends to other slices, where no rate is known for that.
  """

  seconds: float
  parts: dict[str, float]
  hbm_bytes: float
  uncounted: float = 0.0


def predicted(program: Program, chip: Chip) -> Predicted | None:
  """What the program of a TPU's compiler says of a step; None where it says nothing.

  Args:
    program: of `compiled.as_text()`.
    chip: a TPU that it was compiled for.
  """
  parts: dict[str, float] = defaultdict(float)
  cycles, hbm_bytes, waits, beside, sent = 0, 0.0, 0.0, 0.0, 0.0
  for instruction, operands, times, _ in program.executed(into_fusions=False):
    kind = instruction.opcode.removesuffix("-start")
    if kind in _FREE or kind.endswith(("-done", "-update")):
      continue
    if kind == "send":  # To other slices.
      sent += times * operands[0].bytes
      continue
    if kind in COLLECTIVES:
      seconds = collective_seconds(chip, program.collective(instruction, operands, times)) or 0.0
      if instruction.opcode.endswith("-start"):
        beside += seconds
      else:
        waits += seconds
      continue
    hbm_bytes += times * (moved := _moved(program, instruction, operands))
    if instruction.opcode != kind and kind in _COPIES:
      continue
    if said := _CYCLES.search(instruction.attributes):
      cycles += int(said[1])
      seconds = int(said[1]) / chip.clock
    elif kernel := of_kernel(instruction):
      width = kernel.flops / (2 * kernel.logits * kernel.products)
      seconds = max(kernel.flops / chip.flops_in("float32" if operands[1].dtype == "f32" else "bfloat16")
                    * -(-width // chip.matrix_unit) * chip.matrix_unit / width, moved / chip.memory_bandwidth)
    else:
      seconds = moved / chip.memory_bandwidth
    parts[_part(instruction)] += times * seconds
  if not cycles:
    return None
  beside += sent / chip.network if chip.network else 0.0
  computing = max(sum(parts.values()), hbm_bytes / chip.memory_bandwidth)
  if (more := computing - sum(parts.values())) > 0:
    parts["waiting for the memory"] += more
  if (more := waits + max(beside - computing, 0.0)) > 0:
    parts["the interconnect"] += more
  return Predicted(sum(parts.values()), dict(sorted(parts.items(), key=lambda part: -part[1])), hbm_bytes,
                   0.0 if chip.network else sent)


def _part(instruction: Instruction) -> str:
  name = found[1] if (found := _NAME.search(instruction.attributes)) else ""
  return next((part for word, part in _PARTS if word in name), "all else")


def _moved(program: Program, instruction: Instruction, operands: tuple[Shape, ...]) -> float:
  """Bytes between the device's memory and the fast one, or the cores."""
  if instruction.opcode == "copy-start":  # (to, from, context)
    return sum(shape.bytes for shape in instruction.shapes[:2] if not shape.is_fast)
  if instruction.opcode.endswith("-start"):  # (from, to, context), of which a part is read
    return instruction.shapes[1].bytes if len(instruction.shapes) > 1 else 0
  return sum(shape.bytes for shape in program.accessed(instruction, operands) if not shape.is_fast)
