"""Weights & Biases: with wandb itself, offline, where it is installed; else with a module in its place."""

import json
import sys
import types

import pytest
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.training.wandb_writer import WandbWriter, installed

CONFIG = "from __gin__ import dynamic_registration\n\ngtr_jax.training.run.TrainingRun.train_steps = 8\n"


class Stand:
  """In the place of the module and of a run: notes what it is asked."""

  def __init__(self):
    self.begun, self.rows, self.finished = [], [], 0

  def init(self, **arguments):
    self.begun.append(arguments)
    return types.SimpleNamespace(log=self.rows.append, define_metric=lambda name, step_metric: None,
                                 finish=lambda: setattr(self, "finished", self.finished + 1))


@pytest.fixture
def stand(monkeypatch):
  made = Stand()
  monkeypatch.setitem(sys.modules, "wandb", made)
  return made


def test_a_run_that_goes_on_is_the_same_run_there(stand, tmp_path):
  for steps in ((2, 4), (4, 6)):  # From a checkpoint at step 2 on.
    writer = WandbWriter("project", epath.Path(tmp_path), CONFIG)
    for step in steps:
      writer.write(step, {"train/loss": 1 / step})
    writer.close()
  first, second = stand.begun
  assert first == second and first["resume"] == "allow" and first["project"] == "project"
  assert first["config"] == {"gtr_jax.training.run.TrainingRun.train_steps": "8"}
  assert first["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"] and len(first["id"]) == 8
  assert [row["step"] for row in stand.rows] == [2, 4, 4, 6] and stand.rows[0]["train/loss"] == 0.5
  assert stand.finished == 2
  WandbWriter("project", epath.Path(tmp_path / "other"), CONFIG)
  assert stand.begun[-1]["id"] != first["id"]


def test_another_project_and_what_wandb_refuses(stand, tmp_path, monkeypatch):
  WandbWriter("project", epath.Path(tmp_path), CONFIG)
  with pytest.raises(InputError, match=r"wandb.json: this run is one of the project 'project', not 'other'"):
    WandbWriter("other", epath.Path(tmp_path), CONFIG)

  def refuses(**_):
    raise RuntimeError("api_key not configured (no-tty)\nmore")

  monkeypatch.setattr(stand, "init", refuses)
  with pytest.raises(InputError, match=r"cannot begin a run \(api_key not configured \(no-tty\)\); run wandb login"):
    WandbWriter("project", epath.Path(tmp_path), CONFIG)
  (tmp_path / "wandb.json").write_text("{}")
  with pytest.raises(InputError, match="wandb.json: damaged, .*; remove it"):
    WandbWriter("project", epath.Path(tmp_path), CONFIG)


def test_where_it_is_not_installed(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match="wandb_project asks for Weights & Biases, which is not installed: pip install"):
    installed()


def test_with_wandb_itself_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  for step in (1, 2):
    writer = WandbWriter("project", epath.Path(tmp_path), CONFIG)
    writer.write(step, {"train/loss": 0.5})
    writer.close()
  run = json.loads((tmp_path / "wandb.json").read_text())["id"]
  written = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
  assert set(written) == {f"run-{run}.wandb"} and all(path.stat().st_size for path in tmp_path.rglob("*.wandb"))
