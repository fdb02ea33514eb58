"""The matrix products of HLO: their FLOPs, and those that a matrix unit of a TPU spends on them."""

import math
import re
from typing import NamedTuple

from gtr_jax.dry_run.instructions import Instruction, Shape, said

OPCODES = ("dot", "convolution")


class MatrixProduct(NamedTuple):
  """`batch` products of an `[m, k]` by a `[k, n]` matrix."""

  batch: int
  m: int
  n: int
  k: int

  @property
  def flops(self) -> int:
    return 2 * self.batch * self.m * self.n * self.k

  def flops_on(self, unit: int) -> int:
    """As many as the matrix unit would do in the time that it takes.

    It holds a `[unit, unit]` part of one operand while rows of the other go through it, and takes as long for `unit` of
    them as for fewer, until the next part is there (https://github.com/jax-ml/scaling-book, tpus.md).
    """
    k = _whole(self.k, unit)
    return 2 * self.batch * k * min(_whole(self.n, unit) * max(self.m, unit), _whole(self.m, unit) * max(self.n, unit))


def matrix_product(instruction: Instruction, operands: tuple[Shape, ...]) -> MatrixProduct:
  """What an instruction of `OPCODES` computes."""
  left, right = operands[:2]
  out = instruction.shapes[0]
  if instruction.opcode == "dot":
    k = math.prod(left.dims[i] for i in _axes("lhs_contracting_dims", instruction))
    batch = math.prod(left.dims[i] for i in _axes("lhs_batch_dims", instruction))
    return MatrixProduct(batch, math.prod(left.dims) // (k * batch), math.prod(right.dims) // (k * batch), k)
  # The TPU's compiler writes products as convolutions, batches among the spatial axes; only what is not padding counts.
  labels, kernel, result = said(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction).groups()
  sizes = {"m": out.dims[result.index("b")], "n": out.dims[result.index("f")], "k": right.dims[kernel.index("i")],
           "batch": 1}
  window = dict(re.findall(r"(\w+)=([\dx_\-]+)",
                           (re.search(r"window=\{([^}]*)\}", instruction.attributes) or ["", ""])[1]))
  for axis in range(len(labels) - 2):
    c = str(axis)
    of_left, of_right, of_out = left.dims[labels.index(c)], right.dims[kernel.index(c)], out.dims[result.index(c)]
    role = "m" if of_right == 1 else "n" if of_left == 1 else "k" if of_out == 1 else "batch"
    sizes[role] *= _valid_positions(of_left, of_right, of_out,
                                    {name: value.split("x")[axis] for name, value in window.items()})
  return MatrixProduct(**sizes)


def _axes(name: str, product: Instruction) -> list[int]:
  found = re.search(rf"{name}=\{{([\d,]*)\}}", product.attributes)
  return [int(i) for i in found[1].split(",") if i] if found else []


def _whole(size: int, unit: int) -> int:
  return -(-size // unit) * unit


def _valid_positions(left: int, kernel: int, out: int, option: dict[str, str]) -> int:
  """Along one spatial axis, the pairs of output and kernel positions that meet an element of the left operand."""
  stride, dilation = int(option.get("stride", 1)), int(option.get("lhs_dilate", 1))
  kernel_dilation, low = int(option.get("rhs_dilate", 1)), int(option.get("pad", "0_0").split("_")[0])
  positions = (o * stride + k * kernel_dilation - low for o in range(out) for k in range(kernel))
  return sum(0 <= p < (left - 1) * dilation + 1 and p % dilation == 0 for p in positions)
