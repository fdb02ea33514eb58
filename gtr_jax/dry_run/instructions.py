"""Instructions of HLO, as `compiled.as_text()` and dumps of compiler passes write them."""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "token": 0, "bf16": 2, "c64": 8, "c128": 16}
_LINE = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")


class Shape(NamedTuple):
  """Of one array; whether it is in a TPU's fast memory."""

  dtype: str
  dims: tuple[int, ...]
  is_fast: bool = False

  @property
  def bytes(self) -> int:
    bits = re.search(r"\d+", self.dtype)
    return math.prod(self.dims) * _BYTES.get(self.dtype, int(bits[0]) // 8 if bits else 0)


class Instruction(NamedTuple):
  """One line; `shapes` are those of the result, more than one of a tuple."""

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool


class OfKernel(NamedTuple):
  """What the attention kernel says of itself: as if every text were as long as it may be.

  Of each logit there are so many `products` of `head_dim` numbers, and operations of the vector unit. `longest` is the
  length of the longest text, in whole blocks.
  """

  flops: int
  logits: int
  bytes: int
  products: int
  vector_operations: int
  head_dim: int
  longest: int


def of_kernel(instruction: Instruction, operands: tuple[Shape, ...]) -> OfKernel | None:
  """What a kernel of Pallas says of itself; None of anything else."""
  if instruction.opcode != "custom-call" or '"tpu_custom_call"' not in instruction.attributes:
    return None
  found = [re.search(rf'{name}\\?":\s*\\?"?(\d+)', instruction.attributes)
           for name in ("flops", "transcendentals", "bytes_accessed")]
  if not all(found):
    return None
  flops, logits, accessed = (int(number[1]) for number in found if number)
  # Forward: bias, mask, maximum, difference, exponential, sum, dtype, and of the output a scale and a sum. Backward:
  # bias, mask, difference, exponential, difference, product, gradient of the bias, and two dtypes.
  products, operations = (5, 10) if "attention_backward" in instruction.attributes else (2, 10)
  head_dim = flops // (2 * logits * products)
  return OfKernel(flops, logits, accessed, products, operations, head_dim,
                  logits * head_dim // math.prod(operands[1].dims))  # The queries, [N, L, H D].


def parse(line: str) -> Instruction | None:
  """That of a line; None where it holds none."""
  if (found := _LINE.match(line)) is None:
    return None
  root, name, result, opcode, rest = found.groups()
  end, depth = 0, 1
  while depth:
    depth += {"(": 1, ")": -1}.get(rest[end], 0)
    end += 1
  inside, after = rest[:end - 1], rest[end:]
  shapes = tuple(Shape(dtype, tuple(map(int, dims.split(","))) if dims else (), "S(1)" in layout)
                 for dtype, dims, layout in _SHAPE.findall(result))
  operands = () if opcode in ("constant", "parameter", "iota") else tuple(re.findall(r"%([\w.\-]+)", inside))
  attributes = inside if opcode in ("constant", "parameter") else after
  return Instruction(name, shapes, opcode, operands, attributes, bool(root))


def said(pattern: str, instruction: Instruction) -> re.Match[str]:
  """What every instruction of its kind says."""
  if (found := re.search(pattern, instruction.attributes)) is None:
    raise ValueError(f"{instruction.name}: no {pattern} in {instruction.attributes:.200}")
  return found
