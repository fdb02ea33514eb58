"""Metrics for Weights & Biases, beside TensorBoard's: one run there for each MODEL_DIR, however often it goes on."""

import os
import secrets
from collections.abc import Mapping
from types import ModuleType
from typing import TypedDict

from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io.atomic import write_json
from gtr_jax.io.config_gin import bindings_of
from gtr_jax.io.json_file import read_json
from gtr_jax.io.paths import is_remote

RUN_FILE = "wandb.json"


class _Run(TypedDict):
  project: str
  id: str


def installed() -> ModuleType:
  """The module wandb. Raises InputError where it is not installed."""
  try:
    import wandb
  except ImportError as e:
    raise InputError("run.TrainingRun.wandb_project asks for Weights & Biases, which is not installed: pip install "
                     "wandb, or leave it out") from e
  return wandb


class WandbWriter:
  """Scalars for Weights & Biases. WANDB_MODE=offline keeps them in MODEL_DIR/wandb, for `wandb sync`.

  Args:
    project: there.
    directory: MODEL_DIR; wandb.json in it says which run there is its own.
    config_text: the resolved configuration, shown with the run.

  Raises:
    InputError: wandb is not installed or cannot begin a run; or the run of this folder is one of another project.
  """

  def __init__(self, project: str, directory: epath.Path, config_text: str):
    wandb = installed()
    place = directory / RUN_FILE
    if place.exists():
      run = read_json(place, _Run, "remove it, and the run goes on as a new one there")
      if run["project"] != project:
        raise InputError(f"{place}: this run is one of the project {run['project']!r}, not {project!r}; give that as "
                         "run.TrainingRun.wandb_project, or remove the file, and it goes on as a new one")
    else:
      run = {"project": project, "id": secrets.token_hex(4)}
      write_json(place, run)
    try:
      self._run = wandb.init(project=project, id=run["id"], resume="allow", name=directory.name,
                             dir=None if is_remote(directory) else os.fspath(directory),
                             config=bindings_of(config_text))
      # What is written again, from a checkpoint on, would be refused as the past of wandb's own step.
      self._run.define_metric("*", step_metric="step")
    except Exception as e:  # In types of its own: no key, no network, no such project.
      raise InputError(f"run.TrainingRun.wandb_project {project!r}: wandb cannot begin a run ({first_line(e)}); run "
                       "wandb login, or set WANDB_MODE=offline") from e

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Sends a row."""
    self._run.log({"step": step, **scalars})

  def flush(self) -> None:
    """It has threads of its own."""

  def close(self) -> None:
    """Waits until all is sent."""
    self._run.finish()
