"""The dry run: what it says of a step, the shapes that it assumes, and the command."""

import dataclasses
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_training import tiny_loss

from gtr_jax.cli.main import main
from gtr_jax.dry_run import described, step_plan
from gtr_jax.dry_run.floor import floor
from gtr_jax.dry_run.hlo import Collective, Program, Work
from gtr_jax.errors import InputError
from gtr_jax.losses.teacher import OfTeacher
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import chips, partitioning
from gtr_jax.text.batch import RowLengths, make_batch
from gtr_jax.training import optimizers

CONFIG = T5Config(vocab_size=128, emb_dim=32, num_heads=4, head_dim=16, mlp_dim=128, num_layers=3, dtype="float32")
SIZES = step_plan.BatchSizes(64, {"inputs": 8, "targets": 24})


def formula(config, sizes, projection):
  """FLOPs of the matrix products of a step, of all devices together."""
  joined, kernels = config.num_heads * config.head_dim, 1 + len(config.mlp_activations)
  forward = again = 0
  for length in sizes.feature_lengths.values():
    tokens = sizes.batch_size * length
    wo, scores = 2 * config.mlp_dim * config.emb_dim, 2 * length * joined
    layer = 8 * config.emb_dim * joined + kernels * wo + 2 * scores
    forward += tokens * config.num_layers * layer + 2 * sizes.batch_size * config.emb_dim * projection
    # The attention weights are computed again; with remat, before them all that goes into the last product, or of the
    # MLP alone.
    more = {"none": 0, "mlp": (kernels - 1) * wo, "layer": layer - wo}[config.remat]
    again += tokens * config.num_layers * (scores + more)
  loss = 2 * 3 * 2 * sizes.batch_size**2 * projection
  return 3 * forward + again + loss + (forward if sizes.microbatch_size else 0)


@pytest.mark.parametrize("options, sizes", [
    ({}, {}), ({"remat": "layer", "scan_layers": True}, {}), ({"remat": "mlp"}, {}),
    ({"mlp_activations": ("gelu", "linear")}, {}), ({"remat": "layer"}, {"microbatch_size": 16})],
    ids=["plain", "remat", "mlp", "gated", "cached"])
def test_flops_are_those_of_the_formula(options, sizes):
  config, sizes = dataclasses.replace(CONFIG, **options), dataclasses.replace(SIZES, **sizes)
  mesh = partitioning.make_mesh(1, 8, 1)
  plan = step_plan.plan(DualEncoder(config, 48), tiny_loss(), optimizers.adafactor(1e-3), mesh, sizes)
  assert 8 * plan.work.flops == pytest.approx(formula(config, sizes, 48), rel=1e-9)
  assert plan.work.float32_flops == plan.work.flops
  assert plan.work.unknown_loops == 0


def test_flops_of_each_dtype():
  """By default a step is that of accelerators: in bfloat16, but for attention's logits, the projection and the loss."""
  mesh, config = partitioning.make_mesh(1, 8, 1), dataclasses.replace(CONFIG, dtype="auto")
  plan = step_plan.plan(DualEncoder(config, 48), tiny_loss(), optimizers.adafactor(1e-3), mesh, SIZES)
  assert 8 * plan.work.flops == pytest.approx(formula(config, SIZES, 48), rel=1e-9)
  projection = 3 * 2 * (2 * 64 * 32 * 48)
  assert 8 * plan.work.float32_flops == pytest.approx(projection + 3 * 2 * 2 * 64**2 * 48, rel=1e-9)


def test_a_step_that_does_not_fit_one_device(monkeypatch):
  """Nothing is compiled then, and of one device no pass of the partitioner is written either."""
  mesh = partitioning.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  arguments = DualEncoder(CONFIG, 48), tiny_loss(), optimizers.adafactor(1e-3), mesh, SIZES
  assert step_plan.plan(*arguments).work.flops == pytest.approx(formula(CONFIG, SIZES, 48), rel=1e-9)
  monkeypatch.setattr(jax.stages.Lowered, "compile", out_of_memory)
  plan = step_plan.plan(*arguments)
  assert plan.out_of_memory and plan.total_bytes == 20 * 2**30
  assert plan.work.flops == pytest.approx(formula(CONFIG, SIZES, 48), rel=1e-9)


def out_of_memory(lowered, compiler_options):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm")


def test_bytes_of_state_and_batch():
  mesh = partitioning.make_mesh(1, 4, 2)
  plan = step_plan.plan(DualEncoder(CONFIG, 48), tiny_loss(), optimizers.adamw(1e-3), mesh, SIZES)
  scales = 7 * 32 * 4  # Divided over fsdp, like the projection, and not over model; the position biases the other way.
  assert plan.params_bytes == 4 * (plan.parameters - 7 * 32 - 4 * 32 - 32 * 48) / 8 + scales / 4 + 32 * 48 + 4 * 32 * 2
  assert plan.optimizer_bytes == 2 * plan.params_bytes + 3 * 4  # two moments and three counts of steps
  assert plan.batch_bytes == 64 / 4 * (2 * 4 * (8 + 24) + 1 + 4 * 8)
  assert plan.total_bytes == plan.params_bytes + plan.optimizer_bytes + plan.batch_bytes + plan.temporary_bytes
  assert plan.temporary_bytes > 64 / 8 * 24 * 128 * 4


def features(pairs, rng):
  def tokens(*shape):
    mean, ids = shape[-1] / 2, rng.integers(1, 99, shape)
    lengths = np.clip(rng.normal(mean, mean / 4, shape[:-1]).round(), 1, shape[-1])
    return np.where(np.arange(shape[-1]) < lengths[..., None], ids, 0).astype(np.int32)

  hashes = {name: np.zeros(shape, np.int64) for name, shape in (
      ("query_hash", pairs), ("passage_hash", pairs), ("text_hash", pairs),
      ("negative_passage_hash", (pairs, 2)), ("negative_text_hash", (pairs, 2)))}
  return {"left_encoder_input_tokens": tokens(pairs, 8), "right_encoder_input_tokens": tokens(pairs, 24),
          "right_negative_encoder_input_tokens": tokens(pairs, 2, 32),
          "left_negative_encoder_input_tokens": tokens(pairs, 1, 6), **hashes}


@pytest.mark.parametrize("microbatch_size", [None, 128])
def test_the_batch_has_the_shapes_of_a_real_one(microbatch_size):
  mesh = partitioning.make_mesh(fsdp=2, model=2)
  sizes = step_plan.BatchSizes(512, {"inputs": 8, "targets": 24, "negative_inputs": 6, "negative_targets": 32},
                             microbatch_size, negatives_per_example=2, negative_queries_per_example=1)
  given, parts = features(512, np.random.default_rng(0)), microbatch_size and 512 // microbatch_size
  real = make_batch(given, 4, microbatches=parts)
  assumed = step_plan.abstract_batch(mesh, sizes)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(lambda x: (x.shape, x.dtype), assumed)
  taught = {f"{name}{of}": np.zeros((512, *([2] if name == "negative_" else []), *([5] if of == "vector" else [])),
                                    np.float32) for name, of in (("query_", "vector"), ("passage_", "vector"), (
                                        "negative_", "vector"), ("", "score"), ("negative_", "score"))}
  real, assumed = make_batch(given | taught, 4, microbatches=parts), step_plan.abstract_batch(
      mesh, sizes, OfTeacher(5, True))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(lambda x: (x.shape, x.dtype), assumed)
  real = make_batch(given, 4, row_lengths=RowLengths(16, 48), microbatches=parts)
  means = [np.count_nonzero(np.concatenate([given[f"{side}_encoder_input_tokens"][:, None], np.pad(
      given[f"{side}_negative_encoder_input_tokens"], ((0, 0), (0, 0), (0, pad)))], 1)) / count
           for side, pad, count in (("left", 2, 1024),)] + [12 / 3 + 16 * 2 / 3]
  packed = dataclasses.replace(sizes, row_lengths={"inputs": 16, "targets": 48}, mean_tokens=means)
  assumed = step_plan.abstract_batch(mesh, packed)
  for side in ("queries", "passages"):
    ours, theirs = getattr(assumed, side).tokens.shape, getattr(real, side).tokens.shape
    assert ours[:-2] == theirs[:-2] and ours[-1] == theirs[-1]
    assert ours[-2] == pytest.approx(theirs[-2], rel=0.15)


def test_floors():
  chip = chips.Chip(flops=1e12, float32_flops=1e11, memory=1e9, memory_bandwidth=1e11, interconnect=1e10, domain=8,
                    network=1e9, source="")
  work = Work(2e12, 1e11, 1e10, [Collective("all-gather", "bf16", 8, 8, True, 3, 2e9),
                                 Collective("all-reduce", "f32", 4, 13, False, 1, 5e8)])
  least = floor(chip, work, 5e8)
  assert (least.compute, least.memory, least.interconnect) == pytest.approx((1.9 + 1, 0.11, 0.7))
  assert least.seconds == pytest.approx(2.9)
  least = floor(dataclasses.replace(chip, network=None, flops=1e16, float32_flops=1e15), work, 5e8)
  assert least.interconnect is None and least.seconds == pytest.approx(0.11)


def test_floors_between_slices():
  """Of a sum over 2 slices of 4 each device has a quarter to send on; of parts that all get, its own."""
  text = """
ENTRY %main (a: f32[1000]) -> (f32[1000], f32[8000], f32[4000]) {
  %a = f32[1000]{0} parameter(0)
  %summed = f32[1000]{0} all-reduce(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %of_all = f32[8000]{0} all-gather(%a), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %within = f32[4000]{0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %result = (f32[1000], f32[8000], f32[4000]) tuple(%summed, %of_all, %within)
}
"""
  chip = dataclasses.replace(chips.CHIPS["v5e"], interconnect=1e9, network=1e6)
  work = Program(text, 8, [0] * 4 + [1] * 4).work()
  between = {(c.kind, c.slices): c.between_slices for c in work.collectives}
  assert between == {("all-reduce", 2): 2 * 0.5 * 4000 / 4, ("all-gather", 2): 4000, ("all-gather", 1): 0}
  assert floor(chip, work, 0).interconnect == pytest.approx((1000 + 4000) / 1e6 + 3 * 4000 / 1e9)
  assert floor(dataclasses.replace(chip, network=None), work, 0).interconnect is None
  assert Program(text, 8).work().collectives[0].between_slices == 0


@pytest.mark.parametrize("name, devices, expected", [
    ("v5e", 8, "v5e:2x4"), ("v5e", 256, "v5e:16x16"), ("v5p", 64, "v5p:4x4x4"), ("v5p", 256, "v5p:4x8x8"),
    ("v4", 192, "v4:4x4x12"), ("v5p", 8960, "v5p:16x20x28"), ("v4", 4, "v4:2x2x1"), ("v5e", 2, "v5e:1x2")])
def test_tpu_slices(name, devices, expected):
  assert described.tpu_slices(chips.CHIPS[name], devices) == (expected, 1)
  assert described.tpu_slices(chips.CHIPS[name], 3 * devices, 3) == (expected, 3)


@pytest.mark.parametrize("name, devices, slices, message", [
    ("v5e", 48, 1, "--described_devices 48: a slice of v5e has a power of two of chips; give 32 or 64"),
    ("v5e", 96, 2, "--described_devices 96 --slices 2: .*; give 64 or 128"),
    ("v5p", 1000, 1, "a power of two of chips, or a multiple of 64; give 512 or 1,024"),
    ("v6e", 512, 1, "a slice of v6e has at most 256 chips; give --slices 2 or more"),
    ("v5e", 8, 3, "--slices 3: slices have the same number of chips each; give a multiple of 3")])
def test_slices_that_do_not_exist(name, devices, slices, message):
  with pytest.raises(InputError, match=message):
    described.tpu_slices(chips.CHIPS[name], devices, slices)


class Tpu:
  """What a mesh reads of a chip of two slices of 2 x 4."""

  platform, device_kind = "tpu", "TPU v5 lite"

  def __init__(self, number):
    self.id, self.slice_index, self.process_index, self.core_on_chip = number, number // 8, number // 4, 0
    self.coords = [number % 8 // 4, number % 4, 0]

  def __repr__(self):
    return str(self.id)


def test_which_axis_crosses_the_network_between_slices():
  chips_of_two = [Tpu(number) for number in range(16)]

  def slices(*shape, **how):
    mesh = partitioning.make_mesh(*shape, devices=chips_of_two, **how)
    return mesh, np.vectorize(lambda chip: chip.slice_index)(mesh.devices)

  mesh, found = slices(4, 2, 2)
  assert (found[:2] == 0).all() and (found[2:] == 1).all()
  assert partitioning.slices_of_shards(mesh) == (0, 0, 0, 0, 1, 1, 1, 1)
  mesh, found = slices(2, 4, 2, across_slices="fsdp")
  assert (found[:, :2] == 0).all() and (found[:, 2:] == 1).all()
  assert partitioning.slices_of_shards(mesh) == (0, 0, 1, 1, 0, 0, 1, 1)
  mesh, _ = slices(1, 8, 2, across_slices="model")
  assert partitioning.slices_of_shards(mesh) == ()  # Each is on both.
  with pytest.raises(InputError, match=r"does not fit 2 slices of 8 devices: the axis 'data' crosses them .*multiple"):
    slices(1, 16, 1)


MESSAGES = [
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded", 15 * 2**30),
    ("Ran out of memory on HBM, the total memory required for HLO temporaries (53.76G) exceeds available HBM (15.75G)",
     int(53.76 * 2**30)),
    ("Program hbm requirement 20.00G", None)]


@pytest.mark.parametrize("message, expected", MESSAGES)
def test_what_the_tpu_s_compiler_says_of_memory(message, expected):
  assert step_plan._temporary_bytes(message, 5 * 2**30) == expected


def test_every_chip_has_a_source():
  for chip in chips.CHIPS.values():
    assert chip.source.startswith("https://")
    assert 1e13 < chip.flops < 1e16 and 1e9 < chip.memory < 1e12 and 1e10 < chip.interconnect < chip.memory_bandwidth


DRY = ["train", "--dry_run", "--gin_file=models/t5_tiny.gin", "--gin_file=runs/pretrain.gin", "--gin.BATCH_SIZE=64",
       "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 16}"]


def test_the_command(capsys):
  """Without data, a model folder or a task; with one chip only."""
  assert main([*DRY, "--gin_file=meshes/fsdp.gin", "--gin.ROW_LENGTHS={'inputs': 16, 'targets': 32}",
                   "--mean_tokens", "4", "8", "--chip", "h100"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("8 devices (data 1 x fsdp 8 x model 1), 2,204,096 parameters, ")
  assert {"parameters", "optimizer state", "batch", "temporaries", "total"} <= {
      line[2:20].strip() for line in out.splitlines()}
  assert "all-gather" in out and "reduce-scatter" in out and "bfloat16 in float32" in out
  assert [line.split()[0] for line in out.splitlines() if line.startswith("  h")] == ["h100"]
  assert "v5e    " not in out


def test_a_recipe_that_starts_from_another_model(capsys):
  assert main(["train", "--dry_run", "--gin_file=models/t5_tiny.gin", "--gin_file=recipes/gtr_finetune.gin",
                   "--gin.BATCH_SIZE=8", "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 16}",
                   "--gin.ROW_LENGTHS=None"]) == 0
  assert "8 devices" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["--chip", "v9"], "--chip v9: there is none of that name; use one of v4, v5e,"),
    (["--coordinator_address", "localhost:1", "--num_processes", "2", "--process_id", "0"],
     "--dry_run runs in one process"),
    (["--described_devices", "64"], "jax has already started with 8 devices"),
    (["--gin_file=meshes/tensor.gin", "--gin.partitioning.make_mesh.model=3"], "does not fit 8 devices"),
    (["--mean_tokens", "4", "8"], "set ROW_LENGTHS to pack texts"),
    (["--mean_tokens", "4", "17", "--gin.ROW_LENGTHS={'inputs': 8, 'targets': 32}"], "TASK_FEATURE_LENGTHS allows 16"),
    (["--gin.BATCH_SIZE=65"], "a batch of 65 pairs cannot be divided over 8 data shards: change the batch size "
     "(--batch_size, BATCH_SIZE) or"),
    (["--gin.BATCH_SIZE='x'"], "BATCH_SIZE is 'x': give a positive whole number"),
    (["--gin.MICROBATCH_SIZE=12"], "(MICROBATCH_SIZE) is 12: it must divide the batch of 64"),
    (["--gin.MICROBATCH_SIZE=0"], "MICROBATCH_SIZE is 0: give a positive whole number"),
    (["--gin.ROW_LENGTHS={'inputs': 8, 'targets': 15}"], "are shorter than its longest text"),
    (["--gin.ROW_LENGTHS={'inputs': 8, 'targets': 16.0}"], "ROW_LENGTHS['targets'] is 16.0: give a whole"),
    (["--gin.ROW_LENGTHS=288"], "ROW_LENGTHS is 288: give a dictionary such as {'inputs': 64, "),
    (["--gin.TASK_FEATURE_LENGTHS=64"], "TASK_FEATURE_LENGTHS is 64: give a dictionary such as"),
    (["--gin.NEGATIVES_PER_EXAMPLE=-1"], "NEGATIVES_PER_EXAMPLE is -1: give a whole number of 0 or more"),
    (["--gin.LOSS=@ring.RingLoss"], "LOSS is @ring.RingLoss: write it with (), as @ring.RingLoss()"),
    (["--gin.partitioning.make_mesh.fsdp='x'"], "make_mesh.fsdp is 'x': give a positive whole number, or -1"),
    (["--gin.NO_SUCH_MACRO=1"], "nothing in this run uses NO_SUCH_MACRO"),
])
def test_wrong_input_gets_one_line(flags, message, capsys):
  assert main([*DRY, *flags]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("gtr-jax train: ") and message in error


def test_its_flags_need_it(capsys):
  assert main(["train", "--gin_file=models/t5_tiny.gin", "--described_devices", "8"]) == 2
  assert "--described_devices belongs to --dry_run" in capsys.readouterr().err


def test_devices_that_are_not_here():
  code = ("from gtr_jax.parallel import partitioning\nfrom gtr_jax.dry_run import step_plan\n"
          "step_plan.describe_devices(12)\n"
          "print(dict(partitioning.make_mesh(fsdp=3).shape))")
  out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
  assert out == "{'data': 4, 'fsdp': 3, 'model': 1}\n" and math.prod((4, 3, 1)) == 12
