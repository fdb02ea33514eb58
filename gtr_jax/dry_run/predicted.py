"""How long a step takes on a TPU, and what for, by the program that its compiler has made.

Twice: at least, each operation by the longest of three at published rates (FLOPs, as the matrix unit takes their
shapes; operations of the vector unit; bytes to and from the memory); and as the compiler expects, which says the cycles
of most operations. Kernels of Pallas, of which it says none, and single operations count alike in both.

Bytes that are copied beside other operations count where all of them take longer than what is computed; collectives by
the interconnect, and those beside others ("-start") where they take longer than all of that.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gtr_jax.dry_run import matrix_products
from gtr_jax.dry_run.floor import collective_seconds
from gtr_jax.dry_run.hlo import COLLECTIVES, Program
from gtr_jax.dry_run.instructions import Instruction, OfKernel, Shape, of_kernel
from gtr_jax.dry_run.matrix_products import matrix_product
from gtr_jax.parallel.chips import Chip

_CYCLES = re.compile(r'estimated_cycles\\?":\\?"(\d+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
         "partition-id", "replica-id", "iota", "opt-barrier", "recv"}
# What moves numbers, and does not compute with them.
_MOVES = _FREE | {"broadcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "fusion", "gather",
                  "pad", "reshape", "slice", "transpose"}
# Calls that compute nothing: they reserve memory, or tell the compiler something.
_SAID = ("AllocateBuffer", "AssumeGatherIndicesInBound", "PrepareAsyncCallStart", "PrepareAsyncCallDone")
_COPIES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")  # Between the memories, beside other operations.
# What of a step an operation is for, by the first of these that its name has.
_PARTS = (("optimizer", "optimizer"), ("loss", "loss"), ("layer_norm", "norms"), ("encoder_norm", "norms"),
          ("attention/query", "products with kernels"), ("attention/key", "products with kernels"),
          ("attention/value", "products with kernels"), ("attention/out", "products with kernels"),
          ("/mlp", "products with kernels"), ("attention", "attention"), ("relpos_bias", "attention"),
          ("token_embedder", "token embeddings"), ("Tower", "the rest of the encoder"))


class Seconds(NamedTuple):
  """At least, and as the compiler expects."""

  least: float
  expected: float


@dataclass(frozen=True)
class Predicted:
  """A step on one device.

  Attributes:
    least: seconds.
    expected: seconds, if the compiler is right.
    parts: of both, by what they are for, the longest first; what is waited for in "the interconnect".
    hbm_bytes: read from the device's memory and written to it; what stays in the fast memory is not.
    uncounted: bytes that it sends to other slices, where no rate is known for that.
  """

  least: float
  expected: float
  parts: dict[str, Seconds]
  hbm_bytes: float
  uncounted: float = 0.0


def predicted(program: Program, chip: Chip, kernel_shares: Mapping[int, float] | None = None) -> Predicted | None:
  """What a step takes; None where the compiler says nothing.

  Args:
    program: of `compiled.as_text()`.
    chip: a TPU that it was compiled for.
    kernel_shares: of `Program.work`.
  """
  least: dict[str, float] = defaultdict(float)
  expected: dict[str, float] = defaultdict(float)
  cycles, hbm_bytes, waits, beside, sent = 0, 0.0, 0.0, 0.0, 0.0
  for instruction, operands, times, _ in program.executed(into_fusions=False):
    kind = instruction.opcode.removesuffix("-start")
    if kind in _FREE or kind.endswith(("-done", "-update")) or _is_said(instruction):
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
    in_memory = moved / chip.memory_bandwidth
    if kernel := of_kernel(instruction, operands):
      shortest = said = max(_of_kernel(kernel, operands, chip, kernel_shares or {}), in_memory)
    else:
      shortest = max(_computing(program, instruction, operands, chip), in_memory)
      of_compiler = _CYCLES.search(instruction.attributes)
      said = int(of_compiler[1]) / chip.clock if of_compiler else shortest
      cycles += of_compiler is not None
    least[_part(instruction)] += times * shortest
    expected[_part(instruction)] += times * said
  if not cycles:
    return None
  beside += sent / chip.network if chip.network else 0.0
  for parts in (least, expected):
    _add_waiting(parts, hbm_bytes / chip.memory_bandwidth, waits, beside)
  both = {part: Seconds(least.get(part, 0.0), expected.get(part, 0.0)) for part in {**least, **expected}}
  return Predicted(sum(least.values()), sum(expected.values()),
                   dict(sorted(both.items(), key=lambda part: -part[1].expected)), hbm_bytes,
                   0.0 if chip.network else sent)


def _add_waiting(parts: dict[str, float], memory: float, waits: float, beside: float) -> None:
  """To what is computed, what it waits for: the memory, and what is exchanged."""
  computing = max(sum(parts.values()), memory)
  for part, more in (("waiting for the memory", computing - sum(parts.values())),
                     ("the interconnect", waits + max(beside - computing, 0.0))):
    if more > 0:
      parts[part] += more


def _computing(program: Program, instruction: Instruction, operands: tuple[Shape, ...], chip: Chip) -> float:
  """Seconds of the matrix unit or of the vector unit, the longer; they work side by side."""
  products, operations = 0.0, 0
  for part, of_part in program.parts(instruction, operands):
    if part.opcode in matrix_products.OPCODES:
      is_float32 = of_part[0].dtype == "f32" and "operand_precision={highest" in part.attributes
      products += (matrix_product(part, of_part).flops_on(chip.matrix_unit)
                   / chip.flops_in("float32" if is_float32 else "bfloat16"))
    elif part.opcode == "reduce":
      operations += math.prod(of_part[0].dims)
    elif part.opcode not in _MOVES and part.shapes:
      operations += math.prod(part.shapes[0].dims)
  return max(products, operations / chip.vector_operations)


def _of_kernel(kernel: OfKernel, operands: tuple[Shape, ...], chip: Chip, shares: Mapping[int, float]) -> float:
  """Likewise, of the attention kernel, of whose products the heads are one side."""
  on_unit = -(-kernel.head_dim // chip.matrix_unit) * chip.matrix_unit / kernel.head_dim
  rate = chip.flops_in("float32" if operands[1].dtype == "f32" else "bfloat16")
  return shares.get(kernel.longest, 1.0) * max(kernel.flops * on_unit / rate,
                                               kernel.logits * kernel.vector_operations / chip.vector_operations)


def _is_said(instruction: Instruction) -> bool:
  return instruction.opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in _SAID)


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
