"""What the TPU's compiler says of a step, read from its program."""

import dataclasses
import importlib.metadata
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gtr_jax.dry_run import step_plan
from gtr_jax.dry_run.hlo import Program
from gtr_jax.dry_run.predicted import predicted
from gtr_jax.models import attention_kernel
from gtr_jax.parallel import chips

CHIP = dataclasses.replace(chips.CHIPS["v5e"], flops=1e12, memory_bandwidth=1e9, clock=1e9, interconnect=1e9)
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
KERNEL = ('custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/jvp()/Tower/encoder/attention/'
          'attention/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"%d",'
          '"transcendentals":"%d","bytes_accessed":"%d"}}}')
PROGRAM = f"""
HloModule step

%add (c: f32[], d: f32[]) -> f32[] {{
  %c = f32[] parameter(0)
  %d = f32[] parameter(1)
  ROOT %e = f32[] add(%c, %d)
}}

%one_layer (stack: f32[12,1000], x: f32[1000], out: f32[12,1000], i: s32[]) -> f32[12,1000] {{
  %stack = f32[12,1000]{{1,0:T(8,128)}} parameter(0)
  %x = f32[1000]{{0:T(1024)}} parameter(1)
  %out = f32[12,1000]{{1,0:T(8,128)}} parameter(2)
  %i = s32[] parameter(3)
  %zero = s32[] constant(0)
  %of_layer = f32[1,1000]{{1,0:T(8,128)}} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={{1,1000}}
  %flat = f32[1000]{{0:T(1024)}} bitcast(%of_layer)
  %sum = f32[1000]{{0:T(1024)}} add(%flat, %x)
  %of_out = f32[1,1000]{{1,0:T(8,128)}} bitcast(%sum)
  ROOT %updated = f32[12,1000]{{1,0:T(8,128)}} dynamic-update-slice(%out, %of_out, %i, %zero)
}}

%body (p: (s32[], f32[12,1000], f32[1000], f32[12,1000])) -> (s32[], f32[12,1000], f32[1000], f32[12,1000]) {{
  %p = (s32[], f32[12,1000], f32[1000], f32[12,1000]) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %stacked = f32[12,1000]{{1,0:T(8,128)}} get-tuple-element(%p), index=1
  %near = f32[1000]{{0:T(1024)S(1)}} get-tuple-element(%p), index=2
  %outs = f32[12,1000]{{1,0:T(8,128)}} get-tuple-element(%p), index=3
  %layer = f32[12,1000]{{1,0:T(8,128)}} fusion(%stacked, %near, %outs, %n), kind=kLoop, calls=%one_layer, metadata={{op_name="jit(train_step)/jvp()/Tower/encoder/while/body/mlp/wi/dot_general"}}, {CYCLES % 50_000}
  ROOT %next = (s32[], f32[12,1000], f32[1000], f32[12,1000]) tuple(%n, %stacked, %near, %layer)
}}

%condition (q: (s32[], f32[12,1000], f32[1000], f32[12,1000])) -> pred[] {{
  %q = (s32[], f32[12,1000], f32[1000], f32[12,1000]) parameter(0)
  %m = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant(12)
  ROOT %less = pred[] compare(%m, %end), direction=LT
}}

ENTRY %main (a: f32[12,1000], b: f32[1000], d: bf16[2,128,64]) -> (f32[12,1000], f32[1000], bf16[2,128,64]) {{
  %a = f32[12,1000]{{1,0:T(8,128)}} parameter(0)
  %b = f32[1000]{{0:T(1024)}} parameter(1)
  %d = bf16[2,128,64]{{2,1,0:T(8,128)(2,1)}} parameter(2)
  %none = s32[] constant(0)
  %begin = (f32[1000]{{0:T(1024)S(1)}}, f32[1000]{{0:T(1024)}}, u32[]{{:S(2)}}) copy-start(%b)
  %fast = f32[1000]{{0:T(1024)S(1)}} copy-done(%begin)
  %all = (s32[], f32[12,1000], f32[1000], f32[12,1000]) tuple(%none, %a, %fast, %a)
  %loop = (s32[], f32[12,1000], f32[1000], f32[12,1000]) while(%all), condition=%condition, body=%body
  %done = f32[12,1000]{{1,0:T(8,128)}} get-tuple-element(%loop), index=3
  %bounds = s32[2,2,1]{{2,1,0}} constant({{...}})
  %kernel = bf16[2,128,64]{{2,1,0:T(8,128)(2,1)}} custom-call(%bounds, %d, %d, %d), {KERNEL % (2 * 2 * 32768 * 64, 32768, 98304)}
  %summed = f32[1000]{{0:T(1024)}} all-reduce(%b), replica_groups={{{{0,1}}}}, to_apply=%add
  ROOT %result = (f32[12,1000], f32[1000], bf16[2,128,64]) tuple(%done, %summed, %kernel)
}}
"""  # noqa: E501


def test_a_step():
  found = predicted(Program(PROGRAM, 2), CHIP)
  kernel = 4 * 2 * 128 * 64 * 2 + 4 * 4  # Bytes: four arrays, and the bounds.
  assert found.hbm_bytes == 4000 + 12 * 8004 + kernel  # Of the stacks a layer, of what is fast nothing.
  width = 2 * 2 * 32768 * 64 * 2 / CHIP.flops  # Heads of 64 take a matrix unit of 128.
  of_kernel = max(width, kernel / 1e9)
  assert {part: seconds.expected for part, seconds in found.parts.items()} == pytest.approx(
      {"products with kernels": 12 * 50e-6, "attention": of_kernel, "the interconnect": 4e-6,
       "waiting for the memory": 0})
  assert {part: seconds.least for part, seconds in found.parts.items()} == pytest.approx(
      {"products with kernels": 12 * 8004 / 1e9, "attention": of_kernel, "the interconnect": 4e-6,
       "waiting for the memory": 4000 / 1e9})  # What is copied beside them, and nothing is long enough for it.
  assert found.expected == pytest.approx(sum(seconds.expected for seconds in found.parts.values()))
  assert found.least == pytest.approx(sum(seconds.least for seconds in found.parts.values()))
  assert [*found.parts] == ["products with kernels", "attention", "the interconnect", "waiting for the memory"]


def test_a_kernel_that_leaves_blocks_out():
  """By the length of its rows in whole blocks: here 32,768 logits of 2 rows, 1 head and 128 queries, so 128."""
  fast = dataclasses.replace(CHIP, memory_bandwidth=1e15)
  of_all, of_half = (predicted(Program(PROGRAM, 2), fast, shares).parts["attention"] for shares in ({}, {128: 0.5}))
  assert of_half == pytest.approx([0.5 * seconds for seconds in of_all])
  assert predicted(Program(PROGRAM, 2), fast, {640: 0.5}).parts["attention"] == of_all


def test_collectives_in_a_loop_count_as_often_as_it_runs():
  sums = "  %again = f32[1000]{0:T(1024)} all-reduce(%near), replica_groups={{0,1}}, to_apply=%add\n"
  root = "  ROOT %next = (s32[], f32[12,1000], f32[1000], f32[12,1000]) tuple(%n, %stacked, "
  text = PROGRAM.replace(root + "%near", sums + root + "%again")
  assert text != PROGRAM
  assert predicted(Program(text, 2), CHIP).parts["the interconnect"] == pytest.approx(2 * [(12 + 1) * 4e-6])


def test_what_runs_beside_others_counts_where_it_takes_longer():
  text = PROGRAM.replace(" all-reduce(", " all-reduce-start(")
  assert "the interconnect" not in predicted(Program(text, 2), CHIP).parts
  slow = dataclasses.replace(CHIP, interconnect=1e6)
  found = predicted(Program(text, 2), slow)
  assert (found.least, found.expected) == pytest.approx((4000 / 1e6, 4000 / 1e6))
  thin = dataclasses.replace(CHIP, memory_bandwidth=1e7)
  found = predicted(Program(PROGRAM, 2), thin)
  assert (found.least, found.expected) == pytest.approx(2 * (found.hbm_bytes / 1e7 + 4e-6,))
  assert found.parts["waiting for the memory"].expected > 0


# How a dump of a compiler pass says it.
DUMPED = """
ENTRY %main (d: bf16[2,128,64]) -> bf16[2,128,64] {
  %d = bf16[2,128,64]{2,1,0} parameter(0)
  %kernel = bf16[2,128,64]{2,1,0} custom-call(%d, %d, %d), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "TUzv", "cost_estimate": {
"bytes_accessed":98304,
"flops":8388608,
"transcendentals":32768
}, "serialization_format": 1}}
  ROOT %twice = bf16[2,128,64]{2,1,0} add(%kernel, %kernel)
}
"""  # noqa: E501


def test_kernels_in_dumps_count():
  work = Program(DUMPED, 1).work()
  assert (work.flops, work.matmul_bytes) == (8388608, 98304)
  assert Program(DUMPED, 1).work({128: 0.25}).flops == 8388608 / 4


# What a TPU's compiler makes of a sum over two slices: the host sends and receives, and nothing uses what is sent.
ACROSS = """
ENTRY %main (a: f32[1000], b: f32[1000]) -> (f32[1000], f32[2,1000]) {
  %a = f32[1000]{0:T(1024)} parameter(0)
  %b = f32[1000]{0:T(1024)} parameter(1)
  %layer = f32[1000]{0:T(1024)} add(%a, %b), metadata={op_name="jit/Tower/mlp/dot"}, backend_config={"estimated_cycles":"50000"}
  %token = token[] after-all()
  %send = (f32[1000]{0:T(1024)}, u32[], token[]) send(%layer, %token), channel_id=6, is_host_transfer=true
  %sent = token[] send-done(%send), channel_id=6, is_host_transfer=true
  %recv = (f32[2,1000]{1,0:T(4,128)}, u32[], token[]) recv(%token), channel_id=5, is_host_transfer=true
  %received = (f32[2,1000]{1,0:T(4,128)}, token[]) recv-done(%recv), channel_id=5, is_host_transfer=true
  %of_all = f32[2,1000]{1,0:T(4,128)} get-tuple-element(%received), index=0
  ROOT %result = (f32[1000], f32[2,1000]) tuple(%b, %of_all)
}
"""  # noqa: E501


def test_what_goes_to_other_slices():
  """It is computed, though nothing here depends on it; it counts where a rate is known and it is what is waited for."""
  found = predicted(Program(ACROSS, 2), CHIP)
  assert found.parts == {"products with kernels": pytest.approx((12000 / 1e9, 50000 / CHIP.clock))}
  assert found.uncounted == 4000
  known = dataclasses.replace(CHIP, network=1e6)
  found = predicted(Program(ACROSS, 2), known)
  assert found.expected == pytest.approx(4000 / 1e6) and found.uncounted == 0 and "the interconnect" in found.parts


def test_a_program_that_jax_cannot_read(monkeypatch):
  class Compiled:
    def as_text(self):
      raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.99")
  expected, why = step_plan._expected(Compiled(), None, CHIP, {})
  assert expected is None
  assert "libtpu 0.0.99 makes of it" in why and f"pip install 'jax[tpu]=={jax.__version__}'" in why


def test_other_compilers_say_nothing():
  assert predicted(Program(PROGRAM.replace("estimated_cycles", "other"), 2), CHIP) is None


def test_the_blocks_of_packed_rows():
  """Against the blocks that the kernel's own bounds have, of rows whose first text begins before them."""
  config = SimpleNamespace(attention="kernel")
  mesh = SimpleNamespace(devices=np.array([SimpleNamespace(device_kind="TPU v5e")]))
  sizes = step_plan.BatchSizes(8, {"inputs": 64, "targets": 256}, None, {"inputs": 64, "targets": 640},
                               mean_tokens=(24, 128))
  starts = 8 * np.arange(16)
  bounds = attention_kernel.runs_of((starts[:, None] + np.arange(640)) // 128, 128).bounds
  share = float((bounds[:, 1] - bounds[:, 0]).sum()) / len(starts) / 25
  assert 0.4 < share < 0.6
  assert step_plan.kernel_shares(config, mesh, sizes) == pytest.approx({128: 1.0, 640: share})
  assert step_plan.kernel_shares(config, mesh, dataclasses.replace(sizes, mean_tokens=None))[640] == share
  assert step_plan.kernel_shares(config, mesh, dataclasses.replace(sizes, row_lengths=None)) == {}
  assert step_plan.kernel_shares(SimpleNamespace(attention="reference"), mesh, sizes) == {}


# Single instructions: a slice reads what it writes; what only reserves memory takes no time.
SINGLE = """
ENTRY %main (a: f32[12,1000]) -> (f32[1,1000], f32[12,1000]) {
  %a = f32[12,1000]{1,0} parameter(0)
  %reserved = f32[12,1000]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %part = f32[1,1000]{1,0} slice(%a), slice={[3:4], [0:1000]}, backend_config={"estimated_cycles":"5"}
  ROOT %all = (f32[1,1000]{1,0}, f32[12,1000]{1,0}) tuple(%part, %reserved)
}
"""


def test_single_instructions():
  found = predicted(Program(SINGLE, 1), CHIP)
  assert found.hbm_bytes == 2 * 4000 and found.least == pytest.approx(8000 / 1e9)


def test_real_tokens_are_those_of_the_texts():
  sizes = step_plan.BatchSizes(8, {"inputs": 64, "targets": 256, "negative_targets": 256}, None,
                               {"inputs": 640, "targets": 640}, 2, mean_tokens=(24, 122))
  assert step_plan._real_tokens(sizes, 7680) == 8 * (24 + 3 * 122)
  assert step_plan._real_tokens(dataclasses.replace(sizes, row_lengths=None), 7680) == 7680
