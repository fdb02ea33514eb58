"""A process that is alive and stands still ends the run with its name; one that is only slow does not."""

import contextlib
import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from ports import free_port
from stands_still import LIMIT, SLOW, STILL
from test_process_group import Process, finish, port  # noqa: F401
from test_two_processes import Processes

from gtr_jax.errors import InputError
from gtr_jax.parallel import progress
from gtr_jax.parallel.progress import COMPILATION, READING, SAVE, STEP, Stamp, Watch, doing

# What happens to which of two processes.
STANDS_STILL = {"reading": 1, "writing": 0, "stopped 0": 0, "stopped 1": 1}
NAMES = {i: f"process {i} of 3 (on {host})" for i, host in enumerate("abc")}


class Clock:
  """What a watch finds while so many seconds pass, in which those heard say that they do what is given."""

  def __init__(self, factor=1.0, names=NAMES):
    self.watch = Watch(names, factor)

  def passes(self, seconds, **stamps):
    for _ in range(int(seconds / 2)):
      for name, stamp in stamps.items():
        self.watch.hear("abc".index(name), stamp)
      if stuck := self.watch.passed(2):
        return stuck
    return None


def test_doing():
  count = progress.current().number
  doing(STEP, 3)
  with doing(SAVE, 3):
    assert progress.current() == Stamp(count + 2, SAVE, 3)
  assert progress.current() == Stamp(count + 3, STEP, 3)
  doing(None)
  assert progress.current()[1:] == (None, None)


def test_who_is_behind_is_named():
  clock, ahead = Clock(), Stamp(9, STEP, 4)
  assert clock.passes(500, a=ahead, b=Stamp(8, STEP, 3), c=ahead) is None
  # It goes on, and stands still elsewhere, where it may for longer than the others in what they do.
  behind = Stamp(9, READING, 3)
  assert clock.passes(1700, a=Stamp(10, STEP, 4), b=behind, c=Stamp(10, STEP, 4)) is None
  stuck = clock.passes(200, a=Stamp(10, STEP, 4), b=behind, c=Stamp(10, STEP, 4))
  assert stuck.indices == (1,) and stuck.hears
  assert stuck.reason.startswith("process 1 of 3 (on b) is stuck in reading a batch (step 3) for 1800 seconds: ")


def test_several_that_are_behind():
  behind = Stamp(8, STEP)
  stuck = Clock().passes(700, a=Stamp(9, STEP), b=behind, c=behind)
  assert stuck.reason.startswith("process 1 of 3 (on b), process 2 of 3 (on c) are stuck in a training step for 600 s")
  stuck = Clock().passes(700, a=behind, b=behind, c=behind)
  assert stuck.indices == (0, 1, 2) and "seconds, all alike: " in stuck.reason


def test_limits_are_those_of_what_is_done():
  for what, limit in ((STEP, 600), (COMPILATION, 3600)):
    stamps = {name: Stamp(5, what) for name in "abc"}
    clock = Clock()
    assert clock.passes(limit - 10, **stamps) is None and clock.passes(20, **stamps)
    clock = Clock(factor=2)
    assert clock.passes(2 * limit - 10, **stamps) is None and clock.passes(20, **stamps)
  assert Clock().passes(1e5, **{name: Stamp() for name in "abc"}) is None  # before there is anything with a limit


def test_who_goes_on_is_never_stuck():
  clock = Clock()
  for count in range(100):
    assert clock.passes(550, **{name: Stamp(count, STEP, count) for name in "abc"}) is None


def test_who_is_not_heard_is_named():
  clock, same = Clock(), Stamp(1)
  assert clock.passes(100, a=same, b=same) is None
  assert clock.passes(100, a=same, b=same, c=same) is None
  stuck = clock.passes(200, a=same, b=same)
  assert stuck.indices == (2,) and not stuck.hears
  assert stuck.reason.startswith("process 2 of 3 (on c) is stuck: nothing was heard for 120 seconds, so stopped, ")
  clock = Clock(names={0: NAMES[0]})  # as the others look at process 0, which does not say what it does
  assert clock.passes(1e5, a=None) is None and clock.passes(200).indices == (0,)


def test_who_was_stopped_itself_blames_nobody():
  clock, same = Clock(), Stamp(1, STEP)
  assert clock.passes(100, a=same, b=same, c=same) is None
  assert clock.watch.passed(1e5) is None
  assert clock.passes(100, a=same, b=same, c=same) is None


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "long"])
def test_patience_that_is_none(monkeypatch, text):
  monkeypatch.setenv("GTR_PATIENCE", text)
  with pytest.raises(InputError, match=f"GTR_PATIENCE={text}: give a factor"):
    progress.patience()


def test_patience(monkeypatch):
  assert progress.patience() == 1
  monkeypatch.setenv("GTR_PATIENCE", "2.5")
  assert progress.patience() == 2.5


@pytest.mark.parametrize("still", [0, 1])
def test_all_end_with_the_name_where_the_file_system_hangs(port, capfd, monkeypatch, still):  # noqa: F811
  """Where the run would go on, it does not say either."""
  monkeypatch.setattr(progress, "BEAT_SECONDS", 0.1)
  monkeypatch.setattr(progress, "LIMITS", {STEP: 2})
  monkeypatch.setattr("gtr_jax.parallel.process_group._ADVICE_SECONDS", 0.5)
  processes = [Process(port, index, 3, lambda group: threading.Event().wait(),
                       lambda index=index: Stamp(5 + (index != still), STEP, 7)) for index in range(3)]
  for process in processes:
    process.group.make_advice = threading.Event().wait
  assert [process.exit_code() for process in processes] == [1, 1, 1]
  lines = [line for line in capfd.readouterr().err.split("\n") if line]
  said = rf"process {still} of 3 \(on \S+\) is stuck in a training step \(step 7\) for 2 seconds: .*; do it again"
  assert len(lines) == 3 and all(re.fullmatch(rf"test \(process \d of 3\): {said}", line) for line in lines), lines


def test_slow_ones_go_on(port, monkeypatch):  # noqa: F811
  monkeypatch.setattr(progress, "BEAT_SECONDS", 0.1)
  monkeypatch.setattr(progress, "LIMITS", {STEP: 60})
  processes = [Process(port, index, 2, lambda group: not threading.Event().wait(3) and group.wait_for_all(bye=True),
                       lambda index=index: Stamp(index, STEP)) for index in range(2)]
  assert finish(processes) == [None, None] and not any(process.ended.is_set() for process in processes)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """By what happens to one of them: two processes, and their folder. All at once, as they wait for the most part."""
  script, started = Path(__file__).parents[1] / "stands_still.py", {}
  with contextlib.ExitStack() as stack:
    for what in STANDS_STILL:
      folder, number = tmp_path_factory.mktemp("still"), free_port()
      started[what] = stack.enter_context(Processes(
          folder, "still", [[script, i, number, folder, what] for i in range(2)],
          [{"JAX_NUM_CPU_DEVICES": "1"}] * 2)), folder
    yield started


@pytest.mark.parametrize("what", STANDS_STILL)
def test_training_ends(pairs, what):
  """Not at the batch that is only slow."""
  still, (pair, folder) = STANDS_STILL[what], pairs[what]
  with pair:
    names = {i: rf"process {i} of 2 \(on \S+\)" for i in range(2)}
    if what.startswith("stopped"):
      said = f"is stuck: nothing was heard for {LIMIT} seconds, so stopped, or the machine hangs; .*"
      assert pair.processes[1 - still].wait(300) == 1, pair.outputs()
      os.kill(pair.processes[still].pid, signal.SIGCONT)  # It finds nobody.
      pair.exit_codes()
      told = [1 - still]
    else:
      said = rf"is stuck in {'reading a batch' if still else 'a training step'}( \(step \d+\))? for {LIMIT} seconds: .*"
      assert pair.exit_codes() == [1, 1], pair.outputs()
      told = [0, 1]
    for i in told:
      line = rf"^test \(process {i} of 2\): {names[still]} {said}; start again$"
      assert re.search(line, pair.outputs()[i], re.M), pair.outputs()
  steps = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
  assert SLOW <= steps[-1] <= STILL
