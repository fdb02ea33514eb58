"""Traces of steps: which, what they hold, and after SIGUSR1."""

import os
import signal

import pytest
from etils import epath
from jax.profiler import ProfileData
from test_loop import Evaluation, run
from tiny_training import TinyBatches

from gtr_jax.training import loop
from gtr_jax.training.loop import Periods
from gtr_jax.training.profiler import Profiler


def traced(folder):
  """Steps, and names of what the host was at, of each trace."""
  found = []
  for path in sorted((folder / "profile").glob("plugins/profile/*/*.xplane.pb")):
    events = [event for plane in ProfileData.from_file(os.fspath(path)).planes for line in plane.lines
              for event in line.events]
    steps = {value for event in events if event.name == "train" for name, value in event.stats if name == "step_num"}
    found.append((steps, {event.name for event in events}))
  return found


@pytest.fixture
def profiled(tmp_path, monkeypatch):
  """Has `run` trace."""
  fit = loop.fit

  def start(first, **options):
    import test_loop
    monkeypatch.setattr(test_loop, "fit", lambda *args, **kwargs: fit(
        *args, profiler=Profiler(epath.Path(tmp_path), first, 2), **kwargs))
    run(tmp_path, **options)
    return traced(tmp_path)

  return start


def test_given_steps(profiled, capfd):
  (steps, names), = profiled(3, periods=Periods(6, evaluate=4, checkpoint=4), evaluators=[Evaluation(0.1, 0.2)])
  assert steps == {3, 4}
  assert {"reading a batch", "waiting for the devices"} <= names
  assert not [name for name in names if name.startswith("$")]  # Frames of Python, which would bury all else.
  assert "traced steps until 4: tensorboard --logdir" in capfd.readouterr().err


def test_on_a_signal(profiled, capfd):
  batches = TinyBatches()

  class Signals:
    made_from, closed = batches.made_from, False

    def __iter__(self):
      for item in batches:
        if batches.number == 3:
          os.kill(os.getpid(), signal.SIGUSR1)
        yield item

    def close(self):
      batches.close()

  before = signal.getsignal(signal.SIGUSR1)
  (steps, _), = profiled(None, periods=Periods(8), batches=Signals())
  assert len(steps) in (2, 3) and min(steps) in (3, 4)  # The one after may have been begun.
  assert "SIGUSR1: the next steps are traced" in capfd.readouterr().err
  assert signal.getsignal(signal.SIGUSR1) == before


def test_a_trace_that_the_end_cuts_off(profiled):
  (steps, _), = profiled(6, periods=Periods(6))
  assert steps == {6}


def test_a_run_that_goes_on_behind_it_traces_nothing(profiled):
  assert len(profiled(3, periods=Periods(4))) == len(profiled(3, periods=Periods(9))) == 1
