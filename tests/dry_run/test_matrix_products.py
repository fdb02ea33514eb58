"""Products as HLO writes them, and what a matrix unit spends on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gtr_jax.dry_run.hlo import Program
from gtr_jax.dry_run.instructions import Shape, parse
from gtr_jax.dry_run.matrix_products import OPCODES, MatrixProduct, matrix_product


# As the TPU's compiler writes them: tokens by a kernel, the kernel's gradient, and attention's two products.
@pytest.mark.parametrize("line, operands, expected", [
    ("  %a = bf16[26,640,3072]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=0bf_io0->0bf",
     [(26, 640, 768), (768, 3072, 1)], MatrixProduct(1, 26 * 640, 3072, 768)),
    ("  %a = bf16[768,3072,1]{2,1,0} convolution(%x, %y), window={size=26}, dim_labels=0fb_0io->bf0",
     [(26, 640, 768), (26, 640, 3072)], MatrixProduct(1, 768, 3072, 26 * 640)),
    ("  %a = f32[8,12,512,512]{3,2,1,0} convolution(%x, %y), window={size=8x12 stride=7x11 lhs_dilate=8x12}, "
     "dim_labels=0b1f_0o1i->01bf", [(8, 512, 12, 64), (8, 512, 12, 64)], MatrixProduct(96, 512, 512, 64)),
    ("  %a = bf16[8,12,64,512]{3,2,1,0} convolution(%x, %y), window={size=8x12 stride=7x11 lhs_dilate=8x12}, "
     "dim_labels=0f1b_01oi->01bf", [(8, 512, 12, 64), (8, 12, 512, 512)], MatrixProduct(96, 64, 512, 512)),
    ("  %a = f32[2048,128]{1,0} convolution(%x, %y), dim_labels=bf_oi->bf", [(2048, 768), (128, 768)],
     MatrixProduct(1, 2048, 128, 768))])
def test_convolutions(line, operands, expected):
  assert matrix_product(parse(line), tuple(Shape("bf16", dims) for dims in operands)) == expected


@pytest.mark.parametrize("formula, left, right, expected", [
    ("ij,jk->ik", (2, 3), (3, 5), MatrixProduct(1, 2, 5, 3)),
    ("rqhd,rkhd->rhqk", (2, 3, 5, 7), (2, 11, 5, 7), MatrixProduct(10, 3, 11, 7)),
    ("gri,gro->io", (2, 3, 5), (2, 3, 7), MatrixProduct(1, 5, 7, 6))])
def test_dots(formula, left, right, expected):
  text = jax.jit(lambda a, b: jnp.einsum(formula, a, b)).lower(np.ones(left), np.ones(right)).compiler_ir("hlo")
  program = Program(text.as_hlo_module().to_string(), 1)
  found = [matrix_product(one, operands) for one, operands, *_ in program.executed() if one.opcode in OPCODES]
  swapped = expected._replace(m=expected.n, n=expected.m)
  assert found in ([expected], [swapped])
  assert found[0].flops == 2 * np.einsum(formula, np.ones(left), np.ones(right)).sum()


def test_on_a_matrix_unit():
  """A side that it holds takes as long as a whole number of units; rows that go through, at least as long as one."""
  whole = MatrixProduct(3, 256, 512, 128)
  assert whole.flops_on(128) == whole.flops and whole.flops_on(256) == 2 * whole.flops
  assert MatrixProduct(1, 300, 128, 128).flops_on(128) == MatrixProduct(1, 300, 128, 128).flops
  assert MatrixProduct(1, 512, 512, 64).flops_on(128) == 2 * MatrixProduct(1, 512, 512, 64).flops
  assert MatrixProduct(1, 300, 300, 128).flops_on(128) == 2 * 300 * 384 * 128
  assert MatrixProduct(1, 1, 1, 1).flops_on(128) == 2 * 128**3
