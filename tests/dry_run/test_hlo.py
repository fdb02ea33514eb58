"""What a dry run reads from HLO: FLOPs, loops, and who takes part in a collective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gtr_jax.dry_run import hlo
from gtr_jax.dry_run.hlo import Collective, Program
from gtr_jax.parallel import partitioning

# What the compilers of TPUs and GPUs write, and the CPU's does not.
OTHERS = """
HloModule others

%product (a: bf16[12,64,256], b: bf16[12,256,64]) -> bf16[12,64,64] {
  %a = bf16[12,64,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[12,256,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[12,64,64]{2,1,0:T(8,128)(2,1)} convolution(%a, %b), window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0io->0bf
}

%add (c: f32[], d: f32[]) -> f32[] {
  %c = f32[] parameter(0)
  %d = f32[] parameter(1)
  ROOT %e = f32[] add(%c, %d)
}

ENTRY %main (x: bf16[12,64,256], y: bf16[12,256,64]) -> (bf16[12,64,64], f32[16,8], f32[4,8]) {
  %x = bf16[12,64,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[12,256,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %z = f32[4,8]{1,0} constant({...})
  %unused = f32[4,4]{1,0} dot(%z, %z), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %start = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%z), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = f32[16,8]{1,0} all-gather-done(%start)
  %part = f32[2,8]{1,0} reduce-scatter(%z), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
  %sum = f32[4,8]{1,0} all-reduce(%z), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, to_apply=%add
  %sum2 = (f32[2,8]{1,0}, f32[4,8]{1,0}) all-reduce(%part, %sum), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%add
  %sum3 = f32[4,8]{1,0} get-tuple-element(%sum2), index=1
  %product.1 = bf16[12,64,64]{2,1,0} fusion(%x, %y), kind=kOutput, calls=%product
  ROOT %out = (bf16[12,64,64]{2,1,0}, f32[16,8]{1,0}, f32[4,8]{1,0}) tuple(%product.1, %done, %sum3)
}
"""  # noqa: E501


def test_reads_what_other_compilers_write():
  work = Program(OTHERS, 8).work()
  assert work.flops == 2 * 12 * 64 * 256 * 64
  assert work.matmul_bytes == 2 * (2 * 12 * 64 * 256 + 12 * 64 * 64)
  assert set(work.collectives) == {
      Collective("all-gather", "f32", 4, 4, False, 1, 3 * 128),
      Collective("reduce-scatter", "f32", 2, 2, False, 1, 128 / 2),
      Collective("all-reduce", "f32", 4, 7, False, 1, 2 * 128 * 3 / 4),
      Collective("all-reduce", "f32", 2, 5, False, 1, 128 + 64)}


@pytest.mark.parametrize("attributes, groups", [
    ("replica_groups={{0,2},{1,3}}, to_apply=%add", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("replica_groups={}", [[0, 1, 2, 3]]),
    ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", [[0, 2]]),
])
def test_groups_of_a_collective(attributes, groups):
  np.testing.assert_array_equal(hlo._groups(attributes, 4), groups)


def test_groups_of_a_compiled_program():
  """A sum along the outer axis of a mesh of 2 x 4 is among devices that are 4 apart."""
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("a", "b")))

  def spans(axis):
    f = jax.shard_map(lambda x: jax.lax.psum(x, axis), mesh=mesh, in_specs=jax.P("a", "b"), out_specs=jax.P(
        *(None if name == axis else name for name in "ab")))
    return [(c.devices, c.span) for c in Program(compiled(f, x).as_text(), 8).work().collectives]

  assert spans("a") == [(2, 5)]
  assert spans("b") == [(4, 4)]


def compiled(f, *args):
  return jax.jit(f).lower(*args).compile()


@pytest.mark.parametrize("trips", [1, 7])
def test_loops_are_multiplied_out(trips):
  """Which XLA's own analysis does not."""
  x = jnp.zeros((16, 16))

  def f(x):
    def outer(x, _):
      return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ x), x) + 1, None
    return jax.lax.scan(outer, x, length=trips)[0]

  program = compiled(f, x)
  assert Program(program.as_text(), 1).work().flops == trips * 3 * 2 * 16**3
  assert Program(program.as_text(), 1).work().unknown_loops == 0


def test_collectives_in_a_loop():
  mesh = partitioning.make_mesh(fsdp=2)
  rows = jax.P(("data", "fsdp"))
  x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=jax.NamedSharding(mesh, rows))
  w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "fsdp")))

  def f(x, w):
    return jnp.sum(jax.lax.scan(lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None), x, w)[0])

  with jax.set_mesh(mesh):
    work = Program(compiled(f, x, w).as_text(), 8).work()
  in_loop = [c for c in work.collectives if c.in_loop]
  assert [(c.kind, c.devices, c.count) for c in in_loop] == [("all-gather", 2, 5)]
  assert in_loop[0].bytes == 5 * 64 * 64 * 4 / 2
  assert [(c.kind, c.devices) for c in work.collectives if not c.in_loop] == [("all-reduce", 8)]


def test_a_loop_that_counts_otherwise_is_unknown():
  def f(step):
    program = jax.jit(lambda x: jax.lax.while_loop(lambda c: c[0] < 10, lambda c: (c[0] + step, c[1] @ c[1]), (0, x)))
    return Program(program.lower(jnp.ones((4, 4))).compiler_ir("hlo").as_hlo_module().to_string(), 1).work()

  assert (f(1).flops, f(1).unknown_loops) == (10 * 2 * 4**3, 0)
  assert (f(3).flops, f(3).unknown_loops) == (2 * 4**3, 1)


# What fusions read of their arrays: slices, rows, a part that others of theirs have copied in place, or all of them.
READS = """
%copied (p: f32[12,1000]) -> f32[12,1000] {
  %p = f32[12,1000]{1,0} parameter(0)
  ROOT %same = f32[12,1000]{1,0} copy(%p)
}

%sliced (q: f32[12,1000]) -> f32[1,1000] {
  %q = f32[12,1000]{1,0} parameter(0)
  %r = f32[12,1000]{1,0} bitcast(%q)
  ROOT %fourth = f32[1,1000]{1,0} slice(%r), slice={[3:4], [0:1000]}
}

%reads (a: f32[12,1000], b: f32[12,1000], c: f32[12,1000], d: f32[12,1000], i: s32[], j: s32[7,1]) -> (f32[12,1000], f32[1,1000], f32[7,1000], f32[12,1000]) {
  %a = f32[12,1000]{1,0} parameter(0)
  %b = f32[12,1000]{1,0} parameter(1)
  %c = f32[12,1000]{1,0} parameter(2)
  %d = f32[12,1000]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %j = s32[7,1]{1,0} parameter(5)
  %zero = s32[] constant(0)
  %in_place = f32[12,1000]{1,0} fusion(%a), kind=kLoop, calls=%copied
  %part = f32[1,1000]{1,0} fusion(%b), kind=kLoop, calls=%sliced
  %updated = f32[12,1000]{1,0} dynamic-update-slice(%in_place, %part, %i, %zero)
  %rows = f32[7,1000]{1,0} gather(%c, %j), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,1000}
  %whole = f32[12,1000]{1,0} copy(%d)
  ROOT %all = (f32[12,1000]{1,0}, f32[1,1000]{1,0}, f32[7,1000]{1,0}, f32[12,1000]{1,0}) tuple(%updated, %part, %rows, %whole)
}

ENTRY %main (a: f32[12,1000], b: f32[12,1000], c: f32[12,1000], d: f32[12,1000], i: s32[], j: s32[7,1]) -> (f32[12,1000], f32[1,1000], f32[7,1000], f32[12,1000]) {
  %a = f32[12,1000]{1,0} parameter(0)
  %b = f32[12,1000]{1,0} parameter(1)
  %c = f32[12,1000]{1,0} parameter(2)
  %d = f32[12,1000]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %j = s32[7,1]{1,0} parameter(5)
  ROOT %fused = (f32[12,1000]{1,0}, f32[1,1000]{1,0}, f32[7,1000]{1,0}, f32[12,1000]{1,0}) fusion(%a, %b, %c, %d, %i, /*index=5*/%j), kind=kLoop, calls=%reads
}
"""  # noqa: E501


def test_what_a_fusion_reads_and_writes():
  program = Program(READS, 1)
  fused, operands = next((one, of_one) for one, of_one, *_ in program.executed(into_fusions=False)
                         if one.opcode == "fusion")
  dims = [shape.dims for shape in program.accessed(fused, operands)]
  assert dims == [(1, 1000), (7, 1000), (12, 1000), (), (7, 1),  # b, c, d, i, j: nothing of what is updated.
                  (1, 1000), (1, 1000), (7, 1000), (12, 1000)]
  opcodes = {one.opcode for one, _ in program.parts(fused, operands)}
  assert {"dynamic-update-slice", "slice", "gather", "copy"} <= opcodes and "fusion" not in opcodes
