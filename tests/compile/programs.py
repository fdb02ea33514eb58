"""The programs of `make test-compile`, compiled for chips that need not be here.

`python tests/compile/programs.py NAME` compiles one and prints as JSON what the tests look at.
"""

import argparse
import dataclasses
import itertools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from gtr_jax.cli import dry_run
from gtr_jax.dry_run import described, step_plan
from gtr_jax.dry_run.instructions import of_kernel
from gtr_jax.parallel import chips

LAUNCH = Path(__file__).parents[2] / "docs" / "launch"
DEEP = ("t5.T5Config.remat='layer'", "t5.T5Config.scan_layers=True")  # as of base and larger ones
RING = "LOSS=@ring.RingLoss()"
KERNEL = ("t5.T5Config.attention='kernel'", "ROW_LENGTHS={'inputs': 64, 'targets': 640}")


def of_launch_file(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The gin files and bindings that a launch file gives to `gtr-jax train`."""
  text = (LAUNCH / name).read_text()
  found = re.findall(r"--(gin_file=|gin\.)([^\s\\]+)", text)
  values = [(kind, value.replace('"', "")) for kind, value in found]
  return (tuple(value for kind, value in values if kind == "gin_file="),
          tuple(value for kind, value in values if kind == "gin." and not value.startswith(("MODEL_DIR", "MIXTURE"))))


class Training(NamedTuple):
  """A training step: a model, a recipe and a mesh on chips; `fits` is empty, or why it does not."""

  chip: str
  devices: int
  files: tuple[str, ...]
  bindings: tuple[str, ...] = ()
  slices: int = 1
  fits_not: str = ""


class Encoding(NamedTuple):
  """A batch of documents of a model."""

  chip: str
  devices: int
  model: str
  model_parallel: int = 1


class Search(NamedTuple):
  """A block of a corpus searched for 512 queries; of int8 or binary vectors, for candidates."""

  chip: str
  devices: int
  k: int
  precision: str = "float32"


class Attention(NamedTuple):
  """The kernel for rows of queries, keys and values, and its gradient."""

  chip: str
  length: int
  dtype: str
  rows: int = 64
  heads: int = 12
  head_dim: int = 64


class Layers(NamedTuple):
  """Training steps of 64 pairs of 64 and 256 tokens: what two more layers add, by the reference and by the kernel."""

  chip: str
  size: str
  packed: bool


class Product(NamedTuple):
  """A product of two square matrices that keeps the matrix units busy."""

  chip: str
  size: int = 4096


class Operations(NamedTuple):
  """Those of `operations.py`, each a program."""

  chip: str


def training(chip, devices, size, *files, **options):
  return Training(chip, devices, (f"models/t5_{size}.gin", *files), **options)


SLICE = "meshes/tpu_slice.gin"
PROGRAMS: dict[str, Training | Encoding | Search | Attention | Layers | Product | Operations] = {
    "small, 8 x v5e": training("v5e", 8, "small", "runs/pretrain.gin", "meshes/data_parallel.gin",
                               bindings=(*DEEP, "BATCH_SIZE=256")),
    "search, 256 x v5e": Search("v5e", 256, 1000),
    "search int8, 8 x v5e": Search("v5e", 8, 400, "int8"),
    "search binary, 8 x v5e": Search("v5e", 8, 400, "binary"),
    "encode base, 8 x v5e": Encoding("v5e", 8, "base"),
    "small, one v5e": training("v5e", 1, "small", "runs/pretrain.gin", fits_not="2,048 pairs at once"),
    "launch on TPUs": Training("v5e", 16, *of_launch_file("gke_jobset.yaml")),
    "launch with Slurm": Training("h100", 16, *of_launch_file("slurm.sh")),
    "base, one h100": training("h100", 1, "base", "recipes/sentence_t5_nli.gin", "meshes/one_gpu.gin"),
    "base, 64 x v4": training("v4", 64, "base", "recipes/gtr_finetune_10_percent.gin", SLICE),
    "base, 2 slices of 16 x v5e": training(
        "v5e", 32, "base", "runs/pretrain.gin", "meshes/data_parallel.gin", slices=2,
        bindings=(*DEEP, "MICROBATCH_SIZE=1024", "BATCH_SIZE=16384", RING)),
    "large, 64 x v5e": training("v5e", 64, "large", "recipes/gtr_finetune_rocketqa.gin", SLICE),
    "large, 8 x v6e, tensor": training("v6e", 8, "large", "recipes/gtr_finetune_nq.gin", "meshes/tensor.gin",
                                       bindings=(*DEEP, "MICROBATCH_SIZE=128")),
    "xl, 8 x h100": training("h100", 8, "xl", "recipes/gtr_finetune_only.gin", "meshes/eight_gpus.gin"),
    "xxl, 64 x v5p": training("v5p", 64, "xxl", "recipes/gtr_pretrain.gin", SLICE),
    "xxl, 256 x v5e": training("v5e", 256, "xxl", "recipes/gtr_pretrain.gin", SLICE),
    "base, 256 x v5e, 65,536": training("v5e", 256, "base", "runs/pretrain.gin", "meshes/data_parallel.gin",
                                        bindings=(*DEEP, "MICROBATCH_SIZE=8192", "BATCH_SIZE=65536", RING)),
    "base, 8 x v6e, tensor, kernel": training("v6e", 8, "base", "runs/pretrain.gin", "meshes/tensor.gin",
                                              bindings=(*DEEP, *KERNEL, "BATCH_SIZE=256")),
    "base, 8 x v5p, kernel": training("v5p", 8, "base", "runs/pretrain.gin", "meshes/fsdp.gin",
                                      bindings=(*DEEP, *KERNEL, "BATCH_SIZE=512", "MICROBATCH_SIZE=256")),
    "encode xxl, 8 x v5e": Encoding("v5e", 8, "xxl", model_parallel=8),
}
PROGRAMS |= {f"attention, {length} tokens in {dtype}, {chip}": Attention(chip, length, dtype, rows) for (
    length, dtype, rows), chip in itertools.product(
        [(64, "bfloat16", 64), (640, "float32", 64), (8192, "bfloat16", 2)], ["v5e", "v5p", "v6e"])}
PROGRAMS["attention, 1024 tokens in float32, v4"] = Attention("v4", 1024, "float32", 2)  # The longest there.
PROGRAMS |= {f"layers of base, {how}, v5e": Layers("v5e", "base", how == "packed") for how in ("padded", "packed")}
PROGRAMS |= {f"product, {chip}": Product(chip) for chip in ("v5e", "v5p", "v6e")}
PROGRAMS["operations, v5e"] = Operations("v5e")
IN_CI = ("small, 8 x v5e", "search, 256 x v5e", "encode base, 8 x v5e", "attention, 640 tokens in float32, v5e")
TO_HOST = {"infeed", "outfeed", "send", "recv"}


def compiled_training(case: Training) -> dict[str, Any]:
  plan = dry_run.make_plan(argparse.Namespace(
      gin_file=list(case.files), gin_bindings=list(case.bindings), gin_search_paths="", mean_tokens=None,
      described_devices=case.devices, chip=case.chip, slices=case.slices))
  assert not plan.compiler.endswith("cpu"), plan.compiler
  return {"mesh": plan.mesh, "params_bytes": plan.params_bytes, "parameters": plan.parameters,
          "total_bytes": plan.total_bytes, "out_of_memory": plan.out_of_memory, "seconds": plan.seconds,
          "tokens": plan.tokens, **read(plan.program)}


def compiled_encoding(case: Encoding) -> dict[str, Any]:
  step_plan.describe_devices(1)
  import jax
  import jax.numpy as jnp

  from gtr_jax import config
  from gtr_jax.inference import embed
  from gtr_jax.inference.row_queue import TOKENS_PER_BATCH
  from gtr_jax.models.parameters import abstract_parameters
  from gtr_jax.parallel import partitioning
  from gtr_jax.text.packing import Texts
  from gtr_jax.training import run
  mesh = mesh_of(case, model=case.model_parallel)
  config.load(run.TrainingRun, [f"models/t5_{case.model}.gin", "runs/pretrain.gin"], [], [], dry_run.NOT_NEEDED)
  model = config.bindings(run.TrainingRun)["model"]
  groups, length = partitioning.num_groups(mesh), 512
  tokens = jax.ShapeDtypeStruct((groups, TOKENS_PER_BATCH // length, length), jnp.int32,
                                sharding=partitioning.batch_sharding(mesh))
  params = abstract_parameters(model, mesh)
  with jax.set_mesh(mesh):
    lowered = embed.encode_packed.lower(model, params, Texts(tokens, tokens), 64, "passage")
    return of_program(lowered, mesh)


def compiled_search(case: Search) -> dict[str, Any]:
  step_plan.describe_devices(1)
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from gtr_jax.retrieval import search
  mesh = mesh_of(case)
  whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names))

  def array(dtype, *shape, sharding=whole):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  limits = array(jnp.int32), array(jnp.int32, 2)  # where the block begins, and which rows exist
  best = [array(dtype, 512, case.k) for dtype in (jnp.float32, jnp.int32, jnp.float32)]
  with jax.set_mesh(mesh):
    if case.precision == "float32":
      block = array(jnp.float32, case.devices * search.CHUNK, 768, sharding=rows)
      return of_program(search._search_block.lower(array(jnp.float32, 512, 768), block, *limits, *best[:2], mesh=mesh),
                        mesh)
    dtype, width = (jnp.int8, 768) if case.precision == "int8" else (jnp.uint32, 24)
    return of_program(search._search_codes.lower(
        array(dtype, 512, width), array(jnp.float32, 512, 768),
        array(dtype, case.devices * search.MAX_BLOCK_ROWS, width, sharding=rows), *limits, *best, mesh=mesh), mesh)


def compiled_attention(case: Attention) -> dict[str, Any]:
  step_plan.describe_devices(1)
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from gtr_jax.models import attention
  mesh = described.devices(chips.CHIPS[case.chip], 1)
  one = NamedSharding(jax.sharding.Mesh(mesh.devices[:1], ("one",)), PartitionSpec())
  vectors = jax.ShapeDtypeStruct((1, case.rows, case.length, case.heads, case.head_dim), case.dtype, sharding=one)
  table, segments = (jax.ShapeDtypeStruct(shape, dtype, sharding=one) for shape, dtype in (
      ((case.heads, 32), jnp.float32), ((1, case.rows, case.length), jnp.int32)))

  def gradient(table, q, k, v, segments):
    def f(table, q, k, v):
      pattern = attention.pattern(table, segments, 128, "kernel")
      precision = "highest" if case.dtype == "float32" else None
      return attention.attention(q, k, v, pattern, precision=precision).astype(jnp.float32).sum()
    return jax.value_and_grad(f, argnums=(0, 1, 2, 3))(table, q, k, v)

  compiled = jax.jit(gradient).lower(table, vectors, vectors, vectors, segments).compile()
  text = compiled.as_text()
  sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", text)]
  return {"temporaries": compiled.memory_analysis().temp_size_in_bytes, "largest": max(sizes),
          "kernels": text.count("tpu_custom_call")}


def compiled_layers(case: Layers) -> dict[str, Any]:
  """Seconds and bytes that a layer adds to a step; of the reference and of the kernel."""
  step_plan.describe_devices(1)
  import numpy as np
  from jax.sharding import Mesh

  from gtr_jax import config
  from gtr_jax.parallel.partitioning import AXES
  from gtr_jax.training import run
  config.load(run.TrainingRun, [f"models/t5_{case.size}.gin", "runs/pretrain.gin"], [], [], dry_run.NOT_NEEDED)
  of_run = config.bindings(run.TrainingRun)
  chip, lengths = chips.CHIPS[case.chip], {"inputs": 64, "targets": 256}
  packing = {"row_lengths": {"inputs": 640, "targets": 640}, "mean_tokens": (24, 122)} if case.packed else {}
  mesh = Mesh(np.asarray(described.devices(chip, 1).devices[:1]).reshape(1, 1, 1), AXES)
  found = {}
  for attention in ("reference", "kernel"):
    of_layers = {}
    for layers in (2, 4):
      model = of_run["model"]
      model = dataclasses.replace(model, config=dataclasses.replace(
          model.config, num_layers=layers, attention=attention, dropout_rate=0.0))
      plan = step_plan.plan(model, of_run["loss"], of_run["optimizer"], mesh,
                            step_plan.BatchSizes(64, lengths, **packing), chip)
      of_layers[layers] = plan.predicted
    found[attention] = {name: (getattr(of_layers[4], name) - getattr(of_layers[2], name)) / 2
                        for name in ("expected", "hbm_bytes")}
  return found


def compiled_product(case: Product) -> dict[str, Any]:
  step_plan.describe_devices(1)
  import jax
  import jax.numpy as jnp
  matrix = jax.ShapeDtypeStruct((case.size, case.size), jnp.bfloat16)
  return {"seconds": predicted_of(case.chip, jnp.matmul, (matrix, matrix))["expected"],
          "least": 2 * case.size**3 / chips.CHIPS[case.chip].flops}


def compiled_operations(case: Operations) -> dict[str, Any]:
  step_plan.describe_devices(1)
  import operations
  return {name: predicted_of(case.chip, *of_name) for name, of_name in operations.OPERATIONS.items()}


def predicted_of(chip_name: str, f: Any, shapes: Any) -> dict[str, float]:
  """What a function of one chip takes: by us, twice, and by XLA's cost analysis."""
  import jax
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from gtr_jax.dry_run.hlo import Program
  from gtr_jax.dry_run.predicted import predicted
  chip = chips.CHIPS[chip_name]
  one = NamedSharding(Mesh(described.devices(chip, 1).devices[:1], ("one",)), PartitionSpec())
  compiled = jax.jit(f).lower(*(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for x in shapes)).compile()
  of_step = predicted(Program(compiled.as_text(), 1), chip)
  assert of_step is not None
  return {"least": of_step.least, "expected": of_step.expected,
          "of_analysis": compiled.cost_analysis()["optimal_seconds"]}


def mesh_of(case: Encoding | Search, **axes: int) -> Any:
  from gtr_jax.parallel import partitioning
  return partitioning.make_mesh(**axes, devices=described.devices(chips.CHIPS[case.chip], case.devices).devices)


def of_program(lowered: Any, mesh: Any) -> dict[str, Any]:
  program, compiled = step_plan.compile_lowered(lowered, mesh)
  if isinstance(compiled, Exception):
    raise compiled
  memory = compiled.memory_analysis()
  return {"mesh": dict(mesh.shape), "total_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes +
          memory.output_size_in_bytes - memory.alias_size_in_bytes, "out_of_memory": "", **read(program)}


def read(program: Any) -> dict[str, Any]:
  """What the devices exchange, and whether something goes to the host."""
  work = program.work()
  results = [shape for instruction, *_ in program.executed() if instruction.opcode.startswith("all-gather")
             for shape in instruction.shapes if shape.dtype not in ("u32", "s32", "pred")]
  opcodes = {instruction.opcode.removesuffix("-start").removesuffix("-done")
             for instruction, *_ in program.executed()}
  return {"collectives": [dataclasses.asdict(collective) for collective in work.collectives],
          "gathered": sorted({(math.prod(shape.dims), shape.dtype, shape.dims) for shape in results}, reverse=True),
          "to_host": sorted(opcodes & TO_HOST),
          "kernels": len({instruction.name for instruction, operands, *_ in program.executed()
                         if of_kernel(instruction, operands)}),
          "flops": work.flops, "float32_flops": work.float32_flops,
          "unknown_loops": work.unknown_loops}


def main(name: str) -> None:
  case = PROGRAMS[name]
  of = {Training: compiled_training, Encoding: compiled_encoding, Search: compiled_search,
        Attention: compiled_attention, Layers: compiled_layers, Product: compiled_product,
        Operations: compiled_operations}[type(case)]
  print(json.dumps(of(case)))


if __name__ == "__main__":
  main(sys.argv[1])
