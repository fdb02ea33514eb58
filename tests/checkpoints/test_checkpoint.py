"""Checkpoints: what is read is what was saved, whole or not at all, on any mesh."""

import gc
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_training import tiny_loss, tiny_model

from gtr_jax.checkpoints.checkpointer import Checkpointer, check_place, find_checkpoint, restore_params
from gtr_jax.errors import InputError
from gtr_jax.parallel import partitioning
from gtr_jax.training import optimizers
from gtr_jax.training.state import TrainState, abstract_state, create_state


def make_state(value=0.0, mesh=None, embed=8, extra=None):
  """A small state with an optimizer's, divided over the mesh along the first axis where it can be."""
  mesh = mesh or partitioning.make_mesh(devices=jax.devices()[:1])
  params = {"encoder": {"kernel": value + jnp.arange(16 * embed, dtype=jnp.float32).reshape(16, embed)},
            "logit_scale": jnp.float32(value), **(extra or {})}
  state = TrainState(jnp.int32(value), params, optimizers.adamw(1e-3, clip_norm=1.0).init(params))
  return jax.device_put(state, jax.tree.map(lambda x: sharding_of(mesh, x), state))


def sharding_of(mesh, x):
  return NamedSharding(mesh, P("fsdp") if x.ndim == 2 else P())


def abstract(state, mesh=None):
  def leaf(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(mesh, x) if mesh else x.sharding)

  return jax.tree.map(leaf, state)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), jax.device_get(a), jax.device_get(b))


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "checkpoints"


def saved(folder, steps, metrics=None, **options):
  """A checkpointer that has saved the steps."""
  checkpointer = Checkpointer(folder, **options)
  for step in steps:
    checkpointer.save(step, make_state(step), {"n": step}, (metrics or {}).get(step))
  checkpointer.wait()
  return checkpointer


def test_what_is_saved_comes_back(folder):
  state, progress = make_state(3.0), {"sums": {"loss": 0.1 + 0.2}, "seconds": 1e-3}
  checkpointer = Checkpointer(folder)
  assert checkpointer.latest_step() is None and checkpointer.best_step() is None
  checkpointer.save(3, state, progress)
  checkpointer.close()
  with pytest.raises(InputError, match="holds no whole checkpoint"):
    Checkpointer(folder.parent / "other").restore(abstract(state))
  restored = Checkpointer(folder).restore(abstract(state))
  assert (restored.step, restored.progress) == (3, progress)
  assert_same(restored.state, state)


def test_relative_paths(folder, monkeypatch):
  monkeypatch.chdir(folder.parent)
  saved("run/checkpoints", [1, 2]).close()
  assert Checkpointer("run/checkpoints").restore(abstract(make_state())).step == 2
  assert_same(restore_params("run", abstract(make_state()).params), make_state(2).params)


def test_restores_onto_another_mesh(folder):
  wide = partitioning.make_mesh(data=2, fsdp=4)
  state = make_state(1.0, wide)
  checkpointer = Checkpointer(folder)
  checkpointer.save(1, state, {})
  for mesh in (partitioning.make_mesh(data=4, fsdp=2), partitioning.make_mesh(devices=jax.devices()[:1])):
    restored = checkpointer.restore(abstract(state, mesh)).state
    assert_same(restored, state)
    kernel = restored.params["encoder"]["kernel"]
    assert kernel.sharding.is_equivalent_to(sharding_of(mesh, kernel), 2)
    params = restore_params(folder, abstract(state, mesh).params)
    assert_same(params, state.params)


def test_keeps_the_last_and_the_best(folder):
  metrics = {1: 0.2, 2: 0.9, 3: 0.4, 5: 0.9, 6: float("nan")}
  checkpointer = saved(folder, [1, 2, 3, 4, 5, 6, 7], metrics, keep=2)
  assert checkpointer.steps() == [2, 6, 7]  # of equals, the earlier is the best
  assert (checkpointer.best_step(), checkpointer.latest_step()) == (2, 7)
  assert checkpointer.is_best(0.91) and not checkpointer.is_best(0.9) and not checkpointer.is_best(float("nan"))
  checkpointer.close()

  again = Checkpointer(folder, keep=1)  # another process knows it as well
  assert again.best_step() == 2
  again.save(8, make_state(8), {}, 0.95)
  again.wait()
  assert again.steps() == [8] and again.best_step() == 8


def test_the_best_may_be_the_least(folder):
  checkpointer = saved(folder, [1, 2, 3], {1: 3.0, 2: 1.0, 3: 2.0}, keep=1, mode="min")
  assert checkpointer.steps() == [2, 3] and checkpointer.best_step() == 2
  assert checkpointer.is_best(0.5) and not checkpointer.is_best(1.5)


def test_saving_does_not_see_later_updates(folder):
  """Saving goes on in the background while the next steps write into the same, donated memory."""
  mesh = partitioning.make_mesh(data=2, fsdp=4)
  update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  checkpointer = Checkpointer(folder, keep=10)
  progress = {"sums": []}
  size = {"embedding": jnp.zeros((4096, 256))}
  state = make_state(0.0, mesh, extra=size)
  description = abstract(state)
  for step in (1, 2, 3):
    state = update(state)
    progress["sums"].append(step)
    checkpointer.save(step, state, progress)
    for _ in range(5):
      state = update(state)
  checkpointer.wait()
  progress["sums"].append(4)
  for step, value in ((1, 1.0), (2, 7.0), (3, 13.0)):
    restored = checkpointer.restore(description, step)
    assert np.all(restored.state.params["embedding"] == value)
    assert restored.state.params["logit_scale"] == value
    assert restored.progress == {"sums": list(range(1, step + 1))}


def test_another_size_names_the_leaf(folder):
  saved(folder, [1]).close()
  other = make_state(embed=4)
  for restore in (lambda: Checkpointer(folder).restore(abstract(other)),
                  lambda: restore_params(folder.parent, abstract(other).params)):
    with pytest.raises(InputError) as error:
      restore()
    assert "encoder/kernel is [16, 8] in the checkpoint and [16, 4] in the configuration" in str(error.value)
    assert str(folder / "1") in str(error.value) and "\n" not in str(error.value)


def test_leaves_too_few_and_too_many_are_named(folder):
  saved(folder, [1]).close()
  bigger = make_state(extra={"projection_layer": {"kernel": jnp.zeros((8, 4))}})
  with pytest.raises(InputError, match="lacks opt_state/1/mu/projection_layer/kernel, .* params/projection_layer"):
    Checkpointer(folder).restore(abstract(bigger))
  with pytest.raises(InputError, match="lacks opt_state/1/mu/b, opt_state/1/mu/c, opt_state/1/nu/b and 3 more;"):
    Checkpointer(folder).restore(abstract(make_state(extra={"b": jnp.zeros(1), "c": jnp.zeros(1)})))
  with pytest.raises(InputError, match="the checkpoint lacks params/projection_layer/kernel;"):
    restore_params(folder, abstract(bigger).params)
  smaller = {"encoder": {}}
  with pytest.raises(InputError, match="the checkpoint has, unasked for, params/encoder/kernel;"):
    restore_params(folder, smaller)
  with pytest.raises(InputError, match="the checkpoint has, unasked for, opt_state"):
    state = make_state()
    Checkpointer(folder).restore(abstract(state.replace(opt_state=())))


def test_params_do_not_need_the_optimizers_state(folder):
  """Whatever the optimizer was, and with a learned temperature or without."""
  checkpointer = Checkpointer(folder)
  params = {"encoder": {"kernel": jnp.ones((4, 4))}, "logit_scale": jnp.float32(2.0)}
  checkpointer.save(1, TrainState(jnp.int32(1), params, optimizers.adafactor(1e-3).init(params)), {})
  checkpointer.close()
  description = jax.eval_shape(lambda: params)
  assert_same(restore_params(folder.parent, description), params)
  del description["logit_scale"]
  assert restore_params(folder.parent, description).keys() == {"encoder"}
  without = {"encoder": params["encoder"]}
  other = Checkpointer(folder.parent / "other" / "checkpoints")
  other.save(1, TrainState(jnp.int32(1), without, ()), {})
  other.close()
  assert restore_params(folder.parent / "other", jax.eval_shape(lambda: params)).keys() == {"encoder"}


def test_finds_the_best_then_the_last(folder):
  saved(folder, [1, 2, 3], {2: 0.5}, keep=3).close()
  for path, name in ((folder.parent, "2"), (folder, "2"), (folder / "3", "3"), (str(folder / "1"), "1")):
    assert find_checkpoint(path).name == name
  saved(folder.parent / "b" / "checkpoints", [1, 2], keep=2).close()
  assert find_checkpoint(folder.parent / "b").name == "2"
  for path in (folder / "4", folder.parent / "nowhere"):
    with pytest.raises(InputError, match="holds no whole checkpoint"):
      find_checkpoint(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's other reads of the step
def test_damage_is_one_line(folder):
  """Files cut short by a full disk, say: an error that names the folder, and never wrong numbers."""
  saved(folder, [1, 2]).close()
  for path in (folder / "2" / "state").rglob("*"):
    if path.is_file() and path.stat().st_size and "ocdbt" in str(path) + path.name:
      path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
  for restore in (lambda: Checkpointer(folder).restore(abstract(make_state())),
                  lambda: restore_params(folder / "2", abstract(make_state()).params)):
    with pytest.raises(InputError) as error:
      restore()
    assert str(folder / "2") in str(error.value) and "\n" not in str(error.value)
    assert "move it elsewhere, and step 1 is taken instead" in str(error.value)
  gc.collect()
  (folder / "2").rename(folder.parent / "2")  # As it says.
  assert Checkpointer(folder).restore(abstract(make_state())).step == 1


def test_progress_and_metric_can_be_set_later(folder):
  checkpointer = saved(folder, [1, 2], {1: 0.5})
  checkpointer.set_progress(2, {"n": 3}, 0.7)
  assert checkpointer.best_step() == 2
  checkpointer.close()
  again = Checkpointer(folder)
  assert again.best_step() == 2 and again.metric_of(2) == 0.7
  assert again.restore(abstract(make_state())).progress == {"n": 3}


def test_a_step_that_is_the_best_no_more_is_removed_at_the_end(folder):
  """Saved on a signal and evaluated when training goes on, the last step comes up as the best behind the last save."""
  checkpointer = saved(folder, [1, 2, 3], {1: 0.5})
  checkpointer.finish()
  assert checkpointer.steps() == [1, 2, 3]
  checkpointer.set_progress(3, {"n": 3}, 0.7)
  checkpointer.finish()
  assert checkpointer.steps() == [2, 3] and checkpointer.best_step() == 3
  assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
  checkpointer.close()


def test_nothing_on_the_screen(folder, capfd, recwarn):
  saved(folder, [1, 2, 3, 4], {1: 0.5, 3: 0.7}, keep=1).close()
  Checkpointer(folder).restore(abstract(make_state()))
  restore_params(folder, abstract(make_state()).params)
  restore_params(folder, jax.eval_shape(lambda: make_state().params))
  out = capfd.readouterr()
  assert (out.out, out.err) == ("", "")
  assert not list(recwarn)


def test_orbax_s_hint_is_dropped(caplog):
  logging.warning("Waiting for previous save to complete took %f seconds. If this number is high, ...", 2.0)
  logging.warning("something else")
  assert caplog.messages == ["something else"]


def test_fine_tuning_takes_the_parameters_only(folder):
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  before, _ = create_state(tiny_model(), tiny_loss(), optimizers.adafactor(1e-3), mesh, seed=0)
  checkpointer = Checkpointer(folder)
  checkpointer.save(70, before.replace(step=jnp.int32(70)), {}, 0.3)
  checkpointer.save(80, jax.tree.map(jnp.zeros_like, before), {})
  checkpointer.close()
  loss, optimizer = tiny_loss(learned_temperature=True), optimizers.adamw(1e-3)
  state, shardings = create_state(tiny_model(), loss, optimizer, mesh, seed=1)
  wanted = abstract_state(state, shardings).params
  assert_same(restore_params(folder.parent, wanted), before.params)
  assert not np.any(restore_params(folder / "80", wanted)["token_embedder"]["embedding"])
  other = {**wanted, "projection_layer": {"kernel": jax.ShapeDtypeStruct((16, 4), jnp.float32)}}
  with pytest.raises(InputError, match=r"projection_layer/kernel is \[16, 8\] in the checkpoint and \[16, 4\]"):
    restore_params(folder.parent, other)


_KILLED = """
import os, signal, sys, threading
sys.path[:0] = {tests!r}
import conftest
from test_checkpoint import *
checkpointer = Checkpointer({folder!r})
big = {{"embedding": jnp.zeros((4096, 512))}}
for step in range(1, 100):
  checkpointer.save(step, make_state(step, extra=big), {{"n": step}})
  if step == {step}:
    threading.Event().wait({delay})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_killed_while_saving(folder, delay):
  """The step before is whole, and the one in the making is there in full or not at all."""
  here = os.path.dirname(__file__)
  script = _KILLED.format(tests=[here, os.path.dirname(here)], folder=str(folder), step=3, delay=delay)
  assert subprocess.run([sys.executable, "-c", script]).returncode == -9
  checkpointer = Checkpointer(folder)
  assert checkpointer.latest_step() in (2, 3)
  restored = checkpointer.restore(abstract(make_state(extra={"embedding": jnp.zeros((4096, 512))})))
  assert restored.progress == {"n": restored.step}
  assert restored.state.params["logit_scale"] == restored.step
  assert not [p for p in folder.iterdir() if not p.name.isdecimal()]


def test_a_bucket_wants_googles_client(monkeypatch):
  """Orbax imports it, long after a run has begun."""
  monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
  check_place("/a/folder")
  with pytest.raises(InputError, match=r"gs://b/run: .* needs google-cloud-storage: pip install 'gtr_jax\[gcs\]'"):
    check_place("gs://b/run")
