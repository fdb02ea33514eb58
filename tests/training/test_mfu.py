"""Tokens a second at the peak of a chip."""

import types

import jax
import pytest
import test_loop
from tiny_training import tiny_model

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import chips, partitioning
from gtr_jax.training import loop
from gtr_jax.training.loop import Periods
from gtr_jax.training.mfu import most_tokens_per_second

MESH = partitioning.make_mesh()


@pytest.mark.parametrize("kind, name", [
    ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"),
    ("TPU v5e", "v5e"), ("TPU v5p", "v5p"), ("TPU v6e", "v6e"), ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H100 PCIe", None), ("NVIDIA H100 NVL", None), ("NVIDIA GH200 480GB", None),
    ("NVIDIA H200", "h200"), ("cpu", None), ("NVIDIA A100-SXM4-40GB", None)])
def test_which_chip_a_device_is(kind, name):
  assert chips.of_device(types.SimpleNamespace(device_kind=kind)) is chips.CHIPS.get(name)


@pytest.mark.parametrize("dtype, flops", [("bfloat16", 197e12), ("float32", 197e12 / 6)])
@pytest.mark.parametrize("shared", [True, False])
def test_six_flops_a_parameter(monkeypatch, dtype, flops, shared):
  monkeypatch.setattr(chips, "of_device", lambda device: chips.CHIPS["v5e"])
  base = T5Config(32128, 768, 12, 64, 3072, 12, dtype=dtype)
  kernels = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
  found = most_tokens_per_second(DualEncoder(base, shared=shared), MESH)
  assert found == pytest.approx(8 * flops / (6 * kernels))


def test_unknown_chips_have_none():
  assert jax.devices()[0].device_kind == "cpu"
  assert most_tokens_per_second(tiny_model(), MESH) is None


def test_it_stands_in_the_metrics(tmp_path, monkeypatch, capfd):
  fit = loop.fit
  monkeypatch.setattr(test_loop, "fit", lambda *args, **kwargs: fit(*args, most_tokens_per_second=1e7, **kwargs))
  test_loop.run(tmp_path, Periods(8, log=4))
  last = test_loop.lines(tmp_path, without_throughput=False)[-1]
  assert last["train/mfu"] == last["train/tokens_per_second"] / 1e7
  assert ", MFU " in capfd.readouterr().err
