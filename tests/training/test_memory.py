"""The estimate of a step's memory beside what XLA allocates."""

import jax
import pytest

from gtr_jax.dry_run import step_plan
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.training import memory, optimizers
from gtr_jax.training.state import state_initializer


@pytest.mark.parametrize("microbatch, activations", [(None, ("relu",)), (16, ("gelu", "linear"))])
def test_as_the_compiler_says(microbatch, activations):
  """Within a third: a first choice, that leaves 40 % of the memory."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  model = DualEncoder(T5Config(1000, 64, 4, 16, 256, 3, mlp_activations=activations))
  loss, optimizer = InBatchLoss(temperature=0.01), optimizers.adafactor(1e-3)
  sizes = step_plan.BatchSizes(64, {"inputs": 32, "targets": 128}, microbatch)
  compiled = step_plan.plan(model, loss, optimizer, mesh, sizes)
  batch = step_plan.abstract_batch(mesh, sizes)
  state = jax.eval_shape(state_initializer(model, loss, optimizer, mesh, 0)[0])
  shapes = {name: getattr(batch, name).tokens.shape[-2:] for name in ("queries", "passages")}
  estimated = memory.estimated_bytes(model, state.params, state.opt_state, mesh, shapes, 64, 64,
                                     64 // (microbatch or 64))
  alone = memory.estimated_bytes(model, state.params, state.opt_state, mesh, {}, 64, 64, 64 // (microbatch or 64))
  assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) * 8 < alone < estimated
  assert 0.75 < estimated / compiled.total_bytes < 1.4


def test_what_a_container_may_have(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, "_CGROUP", tmp_path)
  whole = memory.available_bytes()
  assert whole and whole > 0
  (tmp_path / "memory.max").write_text("3000000\n")
  (tmp_path / "memory.current").write_text("1000000\n")
  assert memory.available_bytes() == 2_000_000
  (tmp_path / "memory.max").write_text("max\n")
  assert memory.available_bytes() > 2_000_000
