"""What the compiler makes of the training step on a mesh: nothing whole that should be divided, no sum made too often.

HLO is that of the divided program, before the CPU's compiler fits it to the CPU.
"""

import collections
import dataclasses
import functools
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from tiny_training import VOCAB, tiny_loss

from gtr_jax.dry_run import hlo
from gtr_jax.dry_run.hlo import Program
from gtr_jax.dry_run.step_plan import BatchSizes, abstract_batch
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import make_batch
from gtr_jax.training import grad_cache, optimizers
from gtr_jax.training.state import abstract_state, state_initializer
from gtr_jax.training.step import compile_step, make_train_step

# No two sizes alike, so that a shape says what it is of.
MODEL = DualEncoder(T5Config(vocab_size=320, emb_dim=64, num_heads=8, head_dim=12, mlp_dim=384, num_layers=2,
                             remat="layer"), projection_dim=48)
LENGTHS = {"inputs": 8, "targets": 40}
HALF = dataclasses.replace(MODEL, config=dataclasses.replace(MODEL.config, dtype="bfloat16"))
TABLE, BIASES, EMBEDDINGS = (320, 64), (8, 32), (256, 48)
KERNELS = {(64, 96), (96, 64), (64, 384), (384, 64), (64, 48)}
GATHERED = 2 * (4 * 64 * 96 + 2 * 64 * 384 + 2 * 64) + 64 + 64 * 48  # Of the parameters under fsdp.
PARAMETERS = GATHERED + math.prod(TABLE) + math.prod(BIASES)
ARRAYS = 2 * 8 + 4  # Of parameters.


class Compiled:
  """A training step on a mesh of all eight devices, or of the first."""

  def __init__(self, mesh_shape, loss, pairs=256, microbatch_size=None, model=MODEL):
    mesh = partitioning.make_mesh(*mesh_shape, devices=jax.devices()[:int(np.prod(mesh_shape))])
    optimizer = optimizers.adamw(1e-3)
    init, shardings = state_initializer(model, loss, optimizer, mesh, 0)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
      state = abstract_state(jax.eval_shape(init), shardings)
      batch = abstract_batch(mesh, BatchSizes(pairs, LENGTHS, microbatch_size))
      step = compile_step(make_train_step(model, loss, optimizer, 0), shardings).lower(state, batch)
      step = step.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
      dumped = list(Path(folder).glob("*after_spmd-partitioning*.txt"))
      self.text = dumped[0].read_text() if dumped else step.as_text()
    self.memory = step.memory_analysis()
    program = Program(self.text, mesh.size)
    self.collectives = program.work().collectives
    self.executed, self.devices = list(program.executed()), mesh.size
    self.arguments = {shape.dims for instruction in program._computations[program._entry].values()
                      if instruction.opcode == "parameter" for shape in instruction.shapes}
    self.instructions = [instruction for instruction, *_ in self.executed]

  def shapes(self, *opcodes, floats=True):
    """Shapes of the results of these instructions."""
    return {shape.dims for i in self.instructions if i.opcode in opcodes for shape in i.shapes
            if not floats or shape.dtype.startswith("f")}

  def bytes(self, kind, in_loop):
    return sum(c.bytes for c in self.collectives if c.kind == kind and c.in_loop == in_loop)

  def exchanged(self, kind):
    """How often arrays of each dtype and shape are the result of such a collective among several devices."""
    found = collections.Counter()
    for instruction, _, times, _ in self.executed:
      if instruction.opcode == kind and hlo._groups(instruction.attributes, self.devices).shape[1] > 1:
        for shape in instruction.shapes:
          found[shape] += times
    return found


compiled_once = functools.cache(Compiled)


def step(mesh_shape, loss=InBatchLoss(), microbatch_size=None, model=MODEL):  # noqa: B008
  return compiled_once(mesh_shape, loss, microbatch_size=microbatch_size, model=model)  # named alike, for the cache


FSDP, DATA, BOTH, TENSOR = (1, 8, 1), (8, 1, 1), (2, 4, 1), (4, 1, 2)


@pytest.mark.parametrize("microbatch_size", [None, 64])
def test_under_fsdp_state_and_memory_are_divided(microbatch_size):
  one, eight = step((1, 1, 1), microbatch_size=microbatch_size), step(FSDP, microbatch_size=microbatch_size)
  # Parameters and two moments, the position biases alone whole; what comes in goes out in the same memory.
  state = 3 * 4 * (PARAMETERS / 8 + 8 * 32)
  batch = 256 / 8 * (2 * 4 * sum(LENGTHS.values()) + 1 + 3 * 8)
  assert eight.memory.argument_size_in_bytes < 1.02 * (state + batch)
  assert eight.memory.output_size_in_bytes < 1.02 * state + 1000
  assert eight.memory.alias_size_in_bytes > 0.98 * state
  assert not eight.arguments & {TABLE, *KERNELS}
  assert one.arguments >= {TABLE, *KERNELS}
  assert eight.memory.temp_size_in_bytes < one.memory.temp_size_in_bytes / (5 if microbatch_size is None else 3)


@pytest.mark.parametrize("mesh, microbatch_size", [(FSDP, None), (FSDP, 64), (BOTH, None), (BOTH, 64)], ids=str)
def test_under_fsdp_parameters_are_gathered_and_gradients_scattered(mesh, microbatch_size):
  """Layer by layer where they are used, once for both sides; no activation, nor the table of tokens, is gathered."""
  compiled = step(mesh, microbatch_size=microbatch_size)
  gathered = compiled.shapes("all-gather")
  assert gathered & KERNELS == KERNELS and TABLE not in gathered
  # Besides, scales of norms, and the embeddings for the dense loss.
  assert all(len(dims) <= 3 and 40 not in dims for dims in gathered - KERNELS), gathered
  microbatches, share = (256 // microbatch_size if microbatch_size else 1), (mesh[1] - 1) / mesh[1]
  shards = compiled.bytes("reduce-scatter", microbatch_size is not None)
  of_loss = 0 if microbatch_size else 2 * math.prod(EMBEDDINGS)  # The gradient of the dense loss.
  assert shards == pytest.approx(4 * (share * microbatches * GATHERED + 7 / 8 * of_loss))
  if mesh == FSDP:
    whole = compiled.bytes("all-reduce", True) + compiled.bytes("all-reduce", False)
    assert whole < 0.02 * shards  # position biases, metrics


@pytest.mark.parametrize("mesh", [DATA, BOTH, FSDP, TENSOR], ids=str)
@pytest.mark.parametrize("microbatch_size", [None, 64])
def test_gradients_are_summed_once_and_in_float32(mesh, microbatch_size):
  """Of both sides together, though activations and the kernels that are gathered are bfloat16."""
  compiled = step(mesh, microbatch_size=microbatch_size, model=HALF)
  (data, fsdp, tensor), microbatches = mesh, (256 // microbatch_size if microbatch_size else 1)
  scattered = compiled.exchanged("reduce-scatter")
  assert {shape.dtype for shape in scattered} <= {"f32"}
  assert scattered.total() == (ARRAYS - 2) * microbatches * (fsdp > 1)
  summed = {shape: times for shape, times in compiled.exchanged("all-reduce").items() if len(shape.dims) > 1}
  activations = {shape: times for shape, times in summed.items() if len(shape.dims) == 4}
  gradients = {shape: times for shape, times in summed.items() if len(shape.dims) == 2 and shape.dims != EMBEDDINGS}
  assert {shape.dtype for shape in gradients} == {"f32"}
  kernels = 2 * 6 + 3  # With the table, the position biases and the projection.
  assert sum(gradients.values()) == (kernels if data > 1 else 1)
  gathered = {shape.dtype for shape in compiled.exchanged("all-gather") if shape.dims in KERNELS - {(64, 48)}}
  assert gathered == ({"bf16"} if fsdp > 1 else set())
  # Of activations along `model`: the embedded tokens; and in each layer, forward, again and backward, two.
  each = 2 if tensor > 1 else 0
  layers, passes = 2, 3 - 1 / 2 + (1 if microbatch_size else 0)
  assert sum(activations.values()) <= each * (2 * layers * passes + 3) * microbatches


@pytest.mark.parametrize("remat", ["none", "dots", "mlp", "layer"])
def test_one_layer_is_gathered_at_a_time(remat):
  """The backward pass gathers again instead of keeping what the forward pass has gathered."""
  model = dataclasses.replace(MODEL, config=dataclasses.replace(MODEL.config, remat=remat))
  layers, passes, compiled = 2, 2, step(FSDP, model=model)
  kernel = {shape: times for shape, times in compiled.exchanged("all-gather").items() if shape.dims == (64, 384)}
  assert sum(kernel.values()) == layers * passes


def test_gradient_cache_keeps_the_gradient_divided():
  compiled = step(FSDP, microbatch_size=64)
  carried = compiled.shapes("while")
  assert carried >= {(320, 8), (8, 96), (96, 8), (8, 384), (384, 8), (8, 48)}
  assert not carried & {TABLE, *KERNELS}


@pytest.mark.parametrize("mesh", [DATA, BOTH], ids=str)
def test_gradient_cache_sums_over_data_once(mesh):
  """Not in every microbatch: each device adds up its own, and at the end comes one sum."""
  compiled = step(mesh, microbatch_size=64)
  over_data = [c for c in compiled.collectives if c.devices == mesh[0] and c.kind in ("all-reduce", "reduce-scatter")]
  assert not [c for c in over_data if c.in_loop]
  share = (mesh[0] - 1) / mesh[0]
  expected = 2 * share * 4 * PARAMETERS / mesh[1]
  assert sum(c.bytes for c in over_data if c.kind == "all-reduce") == pytest.approx(expected, rel=0.05)
  if mesh == DATA:
    assert not [c for c in compiled.collectives if c.in_loop]


def test_no_position_bias_is_summed_in_a_layer():
  """Its gradient is of the size of the attention weights; that of its table is summed once."""
  for mesh in (FSDP, DATA):
    summed = step(mesh).shapes("all-reduce")
    assert (8, 32) in summed
    assert not [dims for dims in summed if dims[-2:] in ((40, 40), (8, 8))]


@pytest.mark.parametrize("microbatch_size", [None, 64])
@pytest.mark.parametrize("mesh", [FSDP, BOTH], ids=str)
def test_the_ring_has_no_global_logits(mesh, microbatch_size):
  """Neither all of them nor the rows of a device, nor embeddings of all devices at one."""
  dense, ring = (step(mesh, loss, microbatch_size) for loss in (InBatchLoss(), RingLoss()))
  assert "256,256]" in dense.text or "32,256]" in dense.text
  assert not re.search(r"\[(256|32|64),256\]", ring.text)
  assert (256, 48) in dense.shapes("all-gather") or (8, 32, 48) in dense.shapes("all-gather")
  assert all(dims[-1] != 48 or dims == (64, 48) for dims in ring.shapes("all-gather"))
  permutes = [c.devices for c in ring.collectives if c.kind == "collective-permute"]
  assert permutes and set(permutes) == {8}


def gradient(mesh_shape, model, boxed):
  """Of a batch in two microbatches, with dropout, in float64."""
  mesh = partitioning.make_mesh(*mesh_shape)
  rng = np.random.default_rng(0)
  features = {name: rng.integers(1, 1 << 60, 32) for name in ("query_hash", "passage_hash", "text_hash")}
  features |= {f"{side}_encoder_input_tokens": rng.integers(1, VOCAB, (32, length)).astype(np.int32)
               for side, length in (("left", 6), ("right", 9))}
  shardings = partitioning.state_shardings(mesh, boxed)
  params = jax.device_put(jax.tree.map(lambda x: x.astype("float64"), nn.meta.unbox(boxed)), shardings)
  batch = partitioning.global_batch(mesh, make_batch(features, partitioning.num_groups(mesh), microbatches=2))
  f = jax.jit(lambda params, batch: grad_cache.gradient(model, tiny_loss(), params, batch, jax.random.key(1))[0])
  with jax.set_mesh(mesh):
    return jax.device_get(f(params, batch))


def test_summing_once_changes_nothing():
  """The masks of dropout too are those of a mesh that the compiler alone divides."""
  config = T5Config(VOCAB, 16, 2, 8, 32, 2, dropout_rate=0.2, remat="layer", scan_layers=True)
  model = DualEncoder(config, 8)
  with jax.enable_x64(True):
    boxed = jax.jit(model.init)(jax.random.key(0))
    expected = gradient(FSDP, model, boxed)
    for mesh in (DATA, BOTH):
      got = gradient(mesh, model, boxed)
      for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)


XXL = """
import json
from gtr_jax.dry_run import step_plan
step_plan.describe_devices(64)
from gtr_jax.parallel import partitioning
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.training import optimizers
config = T5Config(32128, 1024, 128, 128, 65536, 24, dtype="bfloat16", remat="layer", scan_layers=True)
sizes = step_plan.BatchSizes(2048, {"inputs": 64, "targets": 256})
mesh = partitioning.make_mesh(1, 64, 1)
plan = step_plan.plan(DualEncoder(config), InBatchLoss(), optimizers.adafactor(1e-3), mesh, sizes)
print(json.dumps([plan.params_bytes, plan.optimizer_bytes, plan.temporary_bytes, plan.parameters]))
"""


def test_xxl_on_64_described_devices():
  """Its largest activation, in one layer, is 69 GB for the whole batch and 1.1 GB for a device's part."""
  run = subprocess.run([sys.executable, "-c", XXL], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  params, optimizer, temporaries, parameters = json.loads(run.stdout)
  assert params < 1.01 * 4 * parameters / 64
  assert optimizer < 0.1 * params
  assert temporaries < 18e9
