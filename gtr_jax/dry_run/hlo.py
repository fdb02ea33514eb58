"""What a compiled step does, read from its HLO text: FLOPs, what the matrix products read and write, and collectives.

XLA's own cost analysis counts the body of a loop once. Here every loop is multiplied out: its number of iterations is
the compiler's `known_trip_count`, or the constant that its condition compares the counter with, as JAX writes loops.
What nothing uses is not counted.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "token": 0, "bf16": 2, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*-> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


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
  """What the attention kernel says of itself; `products` of so many are of each logit."""

  flops: int
  logits: int
  bytes: int
  products: int


@dataclass(frozen=True)
class Collective:
  """A kind of collective of a step: how often, and what each device sends, if the devices pass parts round a ring.

  Of arrays of one dtype, as HLO calls it ("f32"), or of several ("f32, s32"). `devices` take part together; from the
  first of them to the last they are `span` devices apart, both counted, and they are in so many `slices`. To other
  slices each sends `between_slices`, if what is summed is summed within a slice first.
  """

  kind: str
  dtype: str
  devices: int
  span: int
  in_loop: bool
  count: int
  bytes: float
  slices: int = 1
  between_slices: float = 0.0


@dataclass
class Work:
  """What one device does in a step.

  Attributes:
    flops: of the matrix products and of kernels; a multiplication and an addition are 2.
    float32_flops: of these, those of float32 products that no shorter type may stand in for.
    matmul_bytes: what they read and write.
    collectives: the largest first.
    unknown_loops: loops whose number of iterations could not be read; counted once.
  """

  flops: float = 0.0
  float32_flops: float = 0.0
  matmul_bytes: float = 0.0
  collectives: list[Collective] = field(default_factory=list)
  unknown_loops: int = 0


class Program:
  """The computations of an HLO module.

  Args:
    text: of `compiled.as_text()`, or of a dump of a compiler pass.
    num_devices: for collectives that name no groups.
    slices: that the devices are in, one number for each; empty: all in one.
  """

  def __init__(self, text: str, num_devices: int, slices: Sequence[int] = ()):
    self._num_devices = num_devices
    self._slices = np.array(slices or [0] * num_devices)
    self._computations: dict[str, dict[str, Instruction]] = {}
    self._entry = ""
    computation: dict[str, Instruction] = {}
    for line in text.splitlines():
      if match := _COMPUTATION.match(line):
        computation = self._computations.setdefault(match[2], {})
        if match[1]:
          self._entry = match[2]
      elif match := _INSTRUCTION.match(line):
        instruction = _instruction(*match.groups())
        computation[instruction.name] = instruction
      elif computation and line.strip() != "}":  # In dumps what is said of a kernel takes several lines.
        last = next(reversed(computation.values()))
        computation[last.name] = last._replace(attributes=last.attributes + line)
    # An all-reduce of which every device keeps its own slice only is a reduce-scatter. The partitioner writes it so;
    # the compilers of TPUs and GPUs, not the CPU's, make one instruction of it.
    self._sliced = {name for computation in self._computations.values() for name in _only_sliced(computation)}

  def work(self) -> Work:
    """Everything that running the module once does."""
    work = Work()
    collectives: dict[tuple[Any, ...], Collective] = {}
    for instruction, operands, times, in_loop in self.executed():
      kind = instruction.opcode.removesuffix("-start")
      if kind == "while" and self.trip_count(instruction) is None:
        work.unknown_loops += 1
      elif kind in ("dot", "convolution"):
        flops = times * _flops(instruction, operands)
        work.flops += flops
        if operands[0].dtype == "f32" and "operand_precision={highest" in instruction.attributes:
          work.float32_flops += flops
        work.matmul_bytes += times * sum(shape.bytes for shape in (*instruction.shapes, *operands))
      elif kernel := of_kernel(instruction):
        work.flops += times * kernel.flops
        work.float32_flops += times * kernel.flops if operands[1].dtype == "f32" else 0
        work.matmul_bytes += times * kernel.bytes
      elif kind in COLLECTIVES:
        collective = self.collective(instruction, operands, times)
        if collective.devices > 1:
          key = collective.kind, collective.dtype, collective.devices, collective.span, collective.slices, in_loop
          others = collectives.get(key)
          collectives[key] = replace(
              collective, in_loop=in_loop, count=times + (others.count if others else 0),
              bytes=collective.bytes + (others.bytes if others else 0),
              between_slices=collective.between_slices + (others.between_slices if others else 0))
    work.collectives = sorted(collectives.values(), key=lambda c: -c.bytes)
    return work

  def collective(self, instruction: Instruction, operands: tuple[Shape, ...], times: int) -> Collective:
    """One instruction of `COLLECTIVES`, run so often."""
    kind = instruction.opcode.removesuffix("-start")
    kind = "reduce-scatter" if instruction.name in self._sliced else kind
    groups = _groups(instruction.attributes, self._num_devices)
    devices, span = groups.shape[1], int(np.max(np.ptp(groups, axis=1))) + 1
    slices = max(len(set(group)) for group in self._slices[groups].tolist())
    dtype = ", ".join(sorted({shape.dtype for shape in operands}))
    size = times * sum(shape.bytes for shape in operands)
    between = 0.0
    if slices > 1:  # What is summed within a slice first, each of its devices has a part of.
      between = size * _sent(kind, slices) * (slices / devices if kind in ("all-reduce", "reduce-scatter") else 1)
    return Collective(kind, dtype, devices, span, False, times, size * _sent(kind, devices), slices, between)

  def accessed(self, instruction: Instruction, operands: tuple[Shape, ...]) -> list[Shape]:
    """What an instruction reads and writes: of arrays that a fusion only takes slices of, or updates, these."""
    whole = [*instruction.shapes, *operands]
    if instruction.opcode != "fusion":
      return whole
    inside = self._computations[_said(r"calls=%?([\w.\-]+)", instruction)[1]]
    users = defaultdict(list)
    for one in inside.values():
      for operand in one.operands:
        users[operand].append(one)
    found = []
    for number, shape in enumerate(operands):
      parameter = next(one for one in inside.values() if one.opcode == "parameter" and one.attributes == str(number))
      slices, is_sliced = _slices_of(parameter.name, users, inside)
      found += [part._replace(is_fast=shape.is_fast) for part in slices] if is_sliced else [shape]
    updates = {one.shapes[0].dims: inside[one.operands[1]].shapes[0] for one in inside.values()
               if one.opcode == "dynamic-update-slice"}
    found += [updates[shape.dims]._replace(is_fast=shape.is_fast) if shape.dims in updates else shape
              for shape in instruction.shapes]
    return found

  def executed(self, into_fusions: bool = True) -> Iterator[tuple[Instruction, tuple[Shape, ...], int, bool]]:
    """Every instruction that is run, with the shapes of its operands, how often, and whether in a loop."""
    todo = [(self._entry, 1, False)]
    while todo:
      name, times, in_loop = todo.pop()
      computation = self._computations[name]
      for instruction in _used(computation):
        operands = tuple(s for operand in instruction.operands for s in computation[operand].shapes)
        yield instruction, operands, times, in_loop
        if instruction.opcode == "while":
          body = _said(r"body=%?([\w.\-]+)", instruction)[1]
          todo.append((body, times * (self.trip_count(instruction) or 1), True))
        elif not instruction.opcode.endswith(("-done", "-update")) and (
            into_fusions or instruction.opcode in ("conditional", "call")):
          called = _CALLED.findall(instruction.attributes)
          for branches in _BRANCHES.findall(instruction.attributes):
            called += re.findall(r"%?([\w.\-]+)", branches)
          todo += [(c, times, in_loop) for c in called if c in self._computations]

  def trip_count(self, loop: Instruction) -> int | None:
    """How often a while loop runs; None where that cannot be read."""
    if match := re.search(r'known_trip_count\\?"?:\{\\?"?n\\?"?:\\?"?(\d+)', loop.attributes):
      return int(match[1])
    condition = self._computations[_said(r"condition=%?([\w.\-]+)", loop)[1]]
    root = next(i for i in condition.values() if i.is_root)
    if root.opcode == "compare":
      for operand in map(condition.__getitem__, root.operands):
        while operand.opcode == "copy":
          operand = condition[operand.operands[0]]
        if operand.opcode == "constant" and operand.attributes.isdigit():
          return int(operand.attributes)
    return None


def _slices_of(name: str, users: Mapping[str, list[Instruction]],
               inside: Mapping[str, Instruction]) -> tuple[list[Shape], bool]:
  """The slices that a fusion takes of one of its arrays, or updates of it; and whether it does nothing else with it."""
  found: list[Shape] = []
  for user in users[name]:
    if user.opcode == "dynamic-slice":
      found += user.shapes
    elif user.opcode == "bitcast":
      slices, is_sliced = _slices_of(user.name, users, inside)
      if not is_sliced:
        return [], False
      found += slices
    elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
      return [], False
  return found, True


def of_kernel(instruction: Instruction) -> OfKernel | None:
  """What a kernel of Pallas says of itself; None of anything else."""
  if instruction.opcode != "custom-call" or '"tpu_custom_call"' not in instruction.attributes:
    return None
  found = [re.search(rf'{name}\\?":\s*\\?"?(\d+)', instruction.attributes)
           for name in ("flops", "transcendentals", "bytes_accessed")]
  if not all(found):
    return None
  flops, logits, accessed = (int(number[1]) for number in found if number)
  return OfKernel(flops, logits, accessed, 5 if "attention_backward" in instruction.attributes else 2)


def _instruction(root: str | None, name: str, result: str, opcode: str, rest: str) -> Instruction:
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


def _only_sliced(computation: dict[str, Instruction]) -> set[str]:
  """The all-reduces that are an operand of dynamic slices and of nothing else."""
  reduced = {i.name for i in computation.values() if i.opcode in ("all-reduce", "all-reduce-start")}
  users = [(operand, i.opcode) for i in computation.values() for operand in i.operands if operand in reduced]
  return {name for name, _ in users} - {name for name, opcode in users if opcode != "dynamic-slice"}


def _used(computation: dict[str, Instruction]) -> list[Instruction]:
  """The instructions that the root depends on, or what is sent elsewhere: to other slices it goes without a result."""
  todo = [i.name for i in computation.values() if i.is_root or i.opcode == "send"]
  seen = set()
  while todo:
    name = todo.pop()
    if name not in seen:
      seen.add(name)
      todo += computation[name].operands
  return [i for i in computation.values() if i.name in seen]


def _said(pattern: str, instruction: Instruction) -> re.Match[str]:
  """What every instruction of its kind says."""
  if (found := re.search(pattern, instruction.attributes)) is None:
    raise ValueError(f"{instruction.name}: no {pattern} in {instruction.attributes:.200}")
  return found


def _flops(product: Instruction, operands: tuple[Shape, ...]) -> float:
  left, right = operands[:2]
  out = math.prod(product.shapes[0].dims)
  if product.opcode == "dot":
    contracted = _said(r"lhs_contracting_dims=\{([\d,]*)\}", product)[1]
    return 2.0 * out * math.prod(left.dims[int(i)] for i in contracted.split(",") if i)
  # The TPU's compiler writes products as convolutions, batches among the spatial axes; only what is not padding counts.
  labels, kernel, result = _said(r"dim_labels=(\w+)_(\w+)->(\w+)", product).groups()
  flops = 2.0 * right.dims[kernel.index("i")]
  flops *= math.prod(product.shapes[0].dims[result.index(c)] for c in "bf")
  window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", product.attributes) or ["", ""])[1]))
  for axis in range(len(labels) - 2):
    c = str(axis)
    option = {name: value.split("x")[axis] for name, value in window.items()}
    flops *= _valid_positions(left.dims[labels.index(c)], right.dims[kernel.index(c)],
                              product.shapes[0].dims[result.index(c)], option)
  return flops


def _valid_positions(left: int, kernel: int, out: int, option: dict[str, str]) -> int:
  """Along one spatial axis, the pairs of output and kernel positions that meet an element of the left operand."""
  stride, dilation = int(option.get("stride", 1)), int(option.get("lhs_dilate", 1))
  kernel_dilation, low = int(option.get("rhs_dilate", 1)), int(option.get("pad", "0_0").split("_")[0])
  positions = (o * stride + k * kernel_dilation - low for o in range(out) for k in range(kernel))
  return sum(0 <= p < (left - 1) * dilation + 1 and p % dilation == 0 for p in positions)


def _groups(attributes: str, num_devices: int) -> np.ndarray:
  """Which devices take part in one collective together, `[groups, devices]`; of a permutation, the rings."""
  devices = np.arange(num_devices)
  if pairs := re.search(r"source_target_pairs=\{\{(.*?)\}\}", attributes):
    follower = {int(a): int(b) for a, b in (pair.split(",") for pair in pairs[1].split("},{"))}
    return np.array([_ring(follower)])
  # Of axes of a mesh, possibly of parts of them: mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b','a':(1)2}
  if axes := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\)\)?)? \{(.*?)\}", attributes):
    sizes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", axes[1])}
    if moved := re.match(r"\[([\d,]+)\]T\(([\d,]+)", axes[2] or ""):
      devices = devices.reshape(_numbers(moved[1])).transpose(_numbers(moved[2]))
    shape, taken = [], []
    named = {name: (int(before), int(part)) if part else (1, sizes[name])
             for name, before, part in re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", axes[3])}
    for name, size in sizes.items():
      before, part = named.get(name, (size, 1))
      taken += [False, True, False]
      shape += [before, part, size // (before * part)]
    order = sorted(range(len(taken)), key=taken.__getitem__)  # What a group takes comes last.
    members = math.prod(part for _, part in named.values())
    return devices.reshape(shape).transpose(order).reshape(-1, members)
  if listed := re.search(r"replica_groups=\{\{([\d,{}]+)\}\}", attributes):
    return np.array([_numbers(group) for group in listed[1].split("},{")])
  if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
    grid = devices.reshape(_numbers(counted[2]))
    return grid.transpose(_numbers(counted[3]) if counted[3] else range(grid.ndim)).reshape(_numbers(counted[1]))
  return devices[None]


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _ring(follower: dict[int, int]) -> list[int]:
  """The devices that what the first one sends goes through, until it is back or ends."""
  ring = [min(follower)]
  while (following := follower.get(ring[-1])) is not None and following not in ring:
    ring.append(following)
  return ring


def _sent(kind: str, devices: int) -> float:
  """What a device sends for each byte of its operand."""
  share = (devices - 1) / devices
  return {"all-gather": devices - 1, "all-reduce": 2 * share, "reduce-scatter": share, "all-to-all": share,
          "collective-permute": 1}[kind]
