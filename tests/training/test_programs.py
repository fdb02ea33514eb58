"""Programs that are compiled ahead compute what jit computes, and what is compiled is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import tiny_batch

from gtr_jax.parallel.partitioning import global_batch, make_mesh
from gtr_jax.text.batch import with_rows
from gtr_jax.training.programs import Programs, Wanted, compile_ahead, in_words, known


@pytest.fixture
def traced():
  return []


@pytest.fixture
def programs(traced):
  def function(weight, batch):
    traced.append(batch.queries.tokens.shape)
    return weight * jnp.sum(batch.queries.tokens)

  return Programs(jax.jit(function))


def test_compiled_ahead_and_otherwise_by_jit(programs, traced, capsys):
  mesh = make_mesh()
  batch = tiny_batch(0, mesh.size)
  other = with_rows(batch, batch.queries.tokens.shape[1] + 1, batch.passages.tokens.shape[1])
  weight = jnp.float32(0.5)
  compile_ahead(mesh, [Wanted("training", programs, weight, batch)])
  assert capsys.readouterr().err == "compiling: 1 of 1 (training: queries 8 x 2 x 6, passages 8 x 2 x 8)\n"
  assert len(traced) == 1 and known(programs, batch) and not known(programs, other)
  for given in (batch, other):
    np.testing.assert_allclose(programs(weight, global_batch(mesh, given)), batch.queries.tokens.sum() / 2)
  assert len(traced) == 2  # The second is new; the first was not traced again.
  assert not known(lambda state, batch: (state, {}), batch)


def test_shapes_in_words():
  assert in_words(tiny_batch(0, 1)) == "queries 16 x 6, passages 16 x 8"
