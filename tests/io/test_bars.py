"""Progress on a terminal and in a pipe."""

import io

import pytest

from gtr_jax.io import bars
from gtr_jax.io.bars import Bar


class Terminal(io.StringIO):

  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Seconds, which pass when a test says so."""
  now = [100.0]
  monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
  return now


def test_a_line_every_ten_seconds_in_a_pipe(capsys, clock):
  with Bar(100, "train", "step", done=40) as bar:
    for step in range(41, 101):
      clock[0] += 0.5
      bar.update(1, f"loss {step}")
  assert capsys.readouterr().err.split("\n") == [
      "train: 60/100 (60%), 00:10 so far, 00:20 left,  2.00step/s, loss 60",
      "train: 80/100 (80%), 00:20 so far, 00:10 left,  2.00step/s, loss 80",
      "train: 100/100 (100%), 00:30 so far, 00:00 left,  2.00step/s, loss 100", ""]


def test_one_last_line_of_what_is_quick(capsys, clock):
  with Bar(3_000_000, "download", "B") as bar:
    clock[0] += 2
    bar.update(3_000_000)
  assert capsys.readouterr().err == "download: 3.00M/3.00M (100%), 00:02 so far, 00:00 left, 1.50MB/s\n"


def test_what_does_not_stay_says_nothing_if_it_is_quick(capsys, clock):
  with Bar(2, "searching", " blocks", leave=False) as bar:
    bar.update()
    assert not capsys.readouterr().err
    clock[0] += bars.SECONDS
    bar.update()
  assert capsys.readouterr().err == "searching: 2/2 (100%), 00:10 so far, 00:00 left,  5.00s/blocks\n"


def test_what_was_done_before_is_no_speed(capsys, clock):
  with Bar(10, "encoding", " texts") as bar:
    bar.skip(5)
    clock[0] += 5
    bar.update(5)
  assert capsys.readouterr().err == "encoding: 10/10 (100%), 00:05 so far, 00:00 left,  1.00 texts/s\n"


def test_what_does_not_come_again_says_nothing_of_the_rest(capsys, clock):
  with Bar(10, "train", "step") as bar:
    clock[0] += 90
    bar.uncounted(90)
    clock[0] += 5
    bar.update(5)
  assert capsys.readouterr().err == "train: 5/10 (50%), 01:35 so far, 00:05 left,  1.00step/s\n"


def test_all_was_done_before(capsys, clock):
  with Bar(10, "encoding", " texts") as bar:
    bar.skip(10)
  assert capsys.readouterr().err == "encoding: 10/10 (100%), 00:00 so far\n"


def test_nobody_knows_how_many(capsys, clock):
  with Bar(None, "download", "B") as bar:
    clock[0] += 1
    bar.update(1500)
  assert capsys.readouterr().err == "download: 1.50k, 00:01 so far, 1.50kB/s\n"


def test_what_counts_for_nothing_is_said_at_once(capsys, clock):
  with Bar(10, "train", "step", leave=False) as bar:
    bar.now("compiling (queries 2 x 8)")
    bars.say("step 1: loss 2")
  assert capsys.readouterr().err == "train: compiling (queries 2 x 8)\nstep 1: loss 2\n"


def test_a_bar_on_a_terminal(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr("sys.stderr", terminal)
  with Bar(4, "train", "step") as bar:
    bar.now("compiling")
    bar.update(4, "loss 2")
  shown = terminal.getvalue()
  assert "\r" in shown and "compiling" in shown and "4/4" in shown and "loss 2" in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_shown_where_nobody_wants_it(monkeypatch, clock, stream):
  stderr = stream()
  monkeypatch.setattr("sys.stderr", stderr)
  monkeypatch.setattr(bars, "_shown", True)
  bars.show(False)
  with Bar(4, "train", "step") as bar:
    clock[0] += 20
    bar.now("compiling")
    bar.update(4, "loss 2")
  with Bar(4, "train", "step", shown=False) as bar:
    bar.update(4)
  assert not stderr.getvalue() and bar.n == 4
