"""What a compiled step does, read from its HLO text: FLOPs, what the matrix products read and write, and collectives.

XLA's own cost analysis counts the body of a loop once. Here every loop is multiplied out: its number of iterations is
the compiler's `known_trip_count`, or the constant that its condition compares the counter with, as JAX writes loops.
What nothing uses is not counted.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gtr_jax.dry_run import matrix_products
from gtr_jax.dry_run.instructions import Instruction, Shape, of_kernel, parse, said
from gtr_jax.dry_run.matrix_products import matrix_product

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = ("dynamic-slice", "dynamic-update-slice", "gather", "slice")
_AS_IT_IS = ("bitcast", "copy")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*-> .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


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
      elif of_line := parse(line):
        computation[of_line.name] = of_line
      elif computation and line.strip() != "}":  # In dumps what is said of a kernel takes several lines.
        last = next(reversed(computation.values()))
        computation[last.name] = last._replace(attributes=last.attributes + line)
    # An all-reduce of which every device keeps its own slice only is a reduce-scatter. The partitioner writes it so;
    # the compilers of TPUs and GPUs, not the CPU's, make one instruction of it.
    self._sliced = {name for computation in self._computations.values() for name in _only_sliced(computation)}

  def work(self, kernel_shares: Mapping[int, float] | None = None) -> Work:
    """Everything that running the module once does.

    Args:
      kernel_shares: what of its blocks the attention kernel computes, by the length of the longest text that its rows
        may hold, in whole blocks; 1 where it is not said.
    """
    work = Work()
    collectives: dict[tuple[Any, ...], Collective] = {}
    for instruction, operands, times, in_loop in self.executed():
      kind = instruction.opcode.removesuffix("-start")
      if kind == "while" and self.trip_count(instruction) is None:
        work.unknown_loops += 1
      elif kind in matrix_products.OPCODES:
        flops = times * matrix_product(instruction, operands).flops
        work.flops += flops
        if operands[0].dtype == "f32" and "operand_precision={highest" in instruction.attributes:
          work.float32_flops += flops
        work.matmul_bytes += times * sum(shape.bytes for shape in (*instruction.shapes, *operands))
      elif kernel := of_kernel(instruction, operands):
        computed = times * kernel.flops * (kernel_shares or {}).get(kernel.longest, 1.0)
        work.flops += computed
        work.float32_flops += computed if operands[1].dtype == "f32" else 0
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
    """What an instruction reads and writes: of arrays of which it only takes slices or rows, or updates some, these."""
    if instruction.opcode in ("gather", "slice", "dynamic-slice"):
      return [*instruction.shapes, *(shape._replace(is_fast=operands[0].is_fast) for shape in instruction.shapes),
              *operands[1:]]
    if instruction.opcode != "fusion":
      return [*instruction.shapes, *operands]
    inside = self._inside(instruction)
    found = []
    for number, shape in enumerate(operands):
      read = self._read(_parameter(inside, number), inside)
      if read is None or sum(part.bytes for part in read) > shape.bytes:
        found.append(shape)
      else:
        found += [part._replace(is_fast=shape.is_fast) for part in read]
    root = next(one for one in inside.values() if one.is_root)
    written = root.operands if root.opcode == "tuple" else (root.name,)
    if len(written) != len(instruction.shapes):  # One that makes several.
      return found + [*instruction.shapes]
    return found + [shape if (part := self._updated(name, inside)) is None else part._replace(is_fast=shape.is_fast)
                    for name, shape in zip(written, instruction.shapes, strict=True)]

  def _updated(self, name: str, inside: Mapping[str, Instruction]) -> Shape | None:
    """The part of an array that is new; None: all of it."""
    one = inside[name]
    if one.opcode == "dynamic-update-slice":
      return inside[one.operands[1]].shapes[0]
    if one.opcode in _AS_IT_IS:
      return self._updated(one.operands[0], inside)
    if one.opcode == "fusion" and len(one.shapes) == 1:
      within = self._inside(one)
      return self._updated(next(root.name for root in within.values() if root.is_root), within)
    return None

  def _read(self, name: str, inside: Mapping[str, Instruction]) -> list[Shape] | None:
    """The slices or rows that are read of an array of which no others are; None: all of it may be."""
    found: list[Shape] = []
    for user in (one for one in inside.values() if name in one.operands):
      if user.opcode in _SLICES and name == user.operands[0]:
        read: list[Shape] | None = [] if user.opcode == "dynamic-update-slice" else [*user.shapes]
      elif user.opcode in _AS_IT_IS or user.opcode == "fusion" and all(
          one.opcode in ("parameter", *_AS_IT_IS) for one in self._inside(user).values()):
        read = None if user.is_root else self._read(user.name, inside)
      elif user.opcode == "fusion":
        within = self._inside(user)
        read = self._read(_parameter(within, user.operands.index(name)), within)
      else:
        read = None
      if read is None:
        return None
      found += read
    return found

  def parts(self, instruction: Instruction, operands: tuple[Shape, ...]
            ) -> Iterator[tuple[Instruction, tuple[Shape, ...]]]:
    """What a fusion consists of, with the shapes of its operands; of anything else itself."""
    if instruction.opcode != "fusion":
      yield instruction, operands
      return
    inside = self._inside(instruction)
    for one in _used(inside):
      yield from self.parts(one, tuple(shape for operand in one.operands for shape in inside[operand].shapes))

  def _inside(self, instruction: Instruction, called: str = "calls") -> dict[str, Instruction]:
    return self._computations[said(rf"{called}=%?([\w.\-]+)", instruction)[1]]

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
          body = said(r"body=%?([\w.\-]+)", instruction)[1]
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
    condition = self._computations[said(r"condition=%?([\w.\-]+)", loop)[1]]
    root = next(i for i in condition.values() if i.is_root)
    if root.opcode == "compare":
      for operand in map(condition.__getitem__, root.operands):
        while operand.opcode == "copy":
          operand = condition[operand.operands[0]]
        if operand.opcode == "constant" and operand.attributes.isdigit() and self._counts_by_one(loop, root, condition):
          return int(operand.attributes)
    return None

  def _counts_by_one(self, loop: Instruction, compare: Instruction, condition: Mapping[str, Instruction]) -> bool:
    """Whether nothing else can be read of the loop."""
    body = self._inside(loop, "body")
    root = next(one for one in body.values() if one.is_root)
    for counter in map(condition.__getitem__, compare.operands):
      if (index := re.search(r"index=(\d+)", counter.attributes)) and root.opcode == "tuple":
        more = body[root.operands[int(index[1])]]
        steps = [body[name].attributes for name in more.operands if body[name].opcode == "constant"]
        return more.opcode != "add" or steps in ([], ["1"])
    return True


def _parameter(computation: Mapping[str, Instruction], number: int) -> str:
  return next(one.name for one in computation.values() if one.opcode == "parameter" and one.attributes == str(number))


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
