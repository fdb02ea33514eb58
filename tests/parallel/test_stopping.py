"""Processes that stop at the same place on a signal; here each is a thread with its own end of the connections.

What their main threads say is numbered by the tests, so that how far each is at a signal is not left to chance.
"""

import math
import os
import signal
import threading
import time

import pytest
from test_process_group import Process, finish, lines, port  # noqa: F401

from gtr_jax.parallel import processes, progress
from gtr_jax.parallel.progress import ENCODING, EVALUATION, SAVE, STEP, Stamp, doing
from gtr_jax.parallel.stopping import Stop, Stopped

END = 200  # the last place; who stops, does so before


class Main:
  """A main thread that goes from place to place, as far as it may.

  Args:
    may: places that it may go to before `go_on`.
    before: the number of what was said before.
  """

  def __init__(self, may, before=0):
    self.first, self.place, self.last, self._may = before, before, before + END, before + may
    self._more = threading.Event()
    self.there, self.hears = threading.Event(), threading.Event()
    self.hears.set()

  def __call__(self, group):
    """The place that it has stopped at."""
    group.allow_stop()
    while self.place < self.last:
      if self.place == self._may:
        self.there.set()
        assert self._more.wait(120)
      self.place += 1
      group.wait_while_held()
      if group.stops_after < self.place:
        break
    return self.place

  def go_on(self):
    self._more.set()

  def now(self):
    """What the group is told; not before it `hears`."""
    assert self.hears.wait(120)
    return Stamp(self.place, STEP)


def begin(port, *mains):  # noqa: F811
  """Starts them; returns when each is as far as it may be."""
  started = [Process(port, i, len(mains), main, main.now) for i, main in enumerate(mains)]
  for main in mains:
    assert main.there.wait(120)
  return started


def stopped_at(started):
  assert finish(started) == [None] * len(started)
  return [process.result for process in started]


def until(condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.parametrize("signalled", [[0], [1], [2], [1, 2], [0, 1, 2], [2, 2]])
def test_all_stop_behind_the_furthest(port, signalled):  # noqa: F811
  mains = [Main(3), Main(7), Main(5)]
  started = begin(port, *mains)
  for index in signalled:
    started[index].group.stop()
  until(lambda: all(process.group.stops_after == 7 for process in started))
  for main in mains:
    main.go_on()
  assert stopped_at(started) == [8, 8, 8]
  started[0].group._hold_all()  # On one more signal.
  assert not started[0].group._held and started[0].group.stops_after == 7


def test_without_a_signal_nobody_stops(port):  # noqa: F811
  mains = [Main(1), Main(2)]
  started = begin(port, *mains)
  for main in mains:
    main.go_on()
  assert stopped_at(started) == [END, END]


@pytest.mark.parametrize("signalled", [0, 1, 2])
def test_where_one_has_come_to_the_end_all_do(port, signalled):  # noqa: F811
  mains = [Main(3), Main(4), Main(5)]
  started = begin(port, *mains)
  mains[1].go_on()
  assert stopped_at(started[1:2]) == [END]
  started[signalled].group.stop()
  until(lambda: all(process.group.stops_after == END for process in started))
  for main in mains:
    main.go_on()
  assert stopped_at(started) == [END] * 3


@pytest.mark.parametrize("signalled", [0, 1])
@pytest.mark.parametrize("deaf", [0, 1])
def test_nobody_goes_on_before_the_furthest_is_known(port, signalled, deaf):  # noqa: F811
  """The others say the next place, and wait at it, however long one takes to answer."""
  mains = [Main(3), Main(4), Main(9)]
  started = begin(port, *mains)
  mains[deaf].hears.clear()
  started[signalled].group.stop()
  until(lambda: all(process.group._held for process in started))
  for main in mains:
    main.go_on()
  until(lambda: [main.place for main in mains] == [4, 5, 10])
  mains[deaf].hears.set()
  # They have said a place more by then, but one that they do not pass.
  assert len(set(places := stopped_at(started))) == 1 and places[0] in (10, 11)


@pytest.mark.parametrize("lost", [0, 1])
def test_one_that_is_lost_while_the_others_wait_for_it_ends_them(port, capfd, lost):  # noqa: F811
  mains = [Main(3), Main(4), Main(5)]
  started = begin(port, *mains)
  mains[lost].hears.clear()
  started[2].group.stop()
  others = [process for i, process in enumerate(started) if i != lost]
  until(lambda: all(process.group._held for process in others))
  for main in mains:
    main.go_on()
  started[lost].end(-9)
  assert [process.exit_code() for process in others] == [1, 1]
  said = lines(capfd)
  assert len(said) == 2 and all(f"process {lost} of 3" in line and " is gone: killed" in line for line in said), said
  assert all(process.group.stops_after == math.inf for process in others)
  mains[lost].hears.set()


class Here:
  """The main thread of the test as that of one of two processes; the other one is a `Main`, with the same numbers."""

  def __init__(self, port, monkeypatch, index, may, other=Main):  # noqa: F811
    self.main = other(may, progress.current().number)
    mains = [lambda group: None, self.main] if index == 0 else [self.main, lambda group: None]
    nows = [progress.current, self.main.now] if index == 0 else [self.main.now, progress.current]
    both = [Process(port, i, 2, main, now) for i, (main, now) in enumerate(zip(mains, nows, strict=True))]
    self.group, self.other, self.groups = both[index].group, both[1 - index], [process.group for process in both]
    assert all(process.met.wait(120) for process in both)
    monkeypatch.setattr(processes, "_group", self.group)

  def wait_until_heard(self):
    """Of a signal, by both: a main thread that goes on before may come to its last place."""
    until(lambda: all(group._held or group.stops_after < math.inf for group in self.groups))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("signalled", ["this", "the other", "both"])
def test_all_give_an_evaluation_up_at_the_same_place(port, monkeypatch, capfd, index, signalled):  # noqa: F811
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  here = Here(port, monkeypatch, index, 5)
  with Stop("it is given up") as stop:
    assert here.main.there.wait(120)
    with pytest.raises(Stopped), stop.given_up(), doing(EVALUATION):
      doing(ENCODING)
      if signalled != "this":
        here.other.group.stop()
      if signalled != "the other":
        os.kill(os.getpid(), signal.SIGTERM)
      here.wait_until_heard()
      for _ in range(END):
        doing(ENCODING)
    here.main.go_on()
    doing(SAVE)  # Is a place to stop at no more.
    assert stop.asked()
  assert stopped_at([here.other]) == [here.main.first + 6]
  assert progress.current().number == here.main.first + 8  # The end of the context, and the save.
  assert stop.received is (None if signalled == "the other" else signal.SIGTERM)
  assert capfd.readouterr().err.count("SIGTERM: it is given up (ctrl-C aborts)") == (signalled != "the other")
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_where_not_all_have_begun(port, monkeypatch, index):  # noqa: F811
  """Those that begin later must not miss it: nobody may be stopped before all may."""
  heard = threading.Event()

  class Late(Main):

    def __call__(self, group):
      heard.wait(0.5)
      return super().__call__(group)

  here = Here(port, monkeypatch, index, 0, Late)
  with Stop("it ends") as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    here.wait_until_heard()
    heard.set()
    here.main.go_on()
    while not stop.asked():
      doing(STEP)
      assert progress.current().number < here.main.first + END
  assert stopped_at([here.other]) == [progress.current().number]


def test_at_the_end_of_a_context_too_all_are_told_the_same(port, monkeypatch):  # noqa: F811
  """That is said without waiting there, so whoever asks has to wait."""
  here = Here(port, monkeypatch, 1, 1)
  with Stop("it ends") as stop:
    assert here.main.there.wait(120)
    with doing(SAVE):
      here.main.hears.clear()
      here.other.group.stop()
      until(lambda: here.group._held)
    threading.Timer(0.3, here.main.hears.set).start()
    assert stop.asked()
    here.main.go_on()
  assert stopped_at([here.other]) == [here.main.first + 2] == [progress.current().number]
