"""Shares of the time of a run, over its processes."""

import json
import time

import pytest

from gtr_jax.parallel import progress
from gtr_jax.parallel.progress import COMPILATION, EVALUATION, READING, SAVE, SEARCH, STEP, doing
from gtr_jax.training.goodput import Goodput


class Clock:
  """The time of both clocks."""

  def __init__(self, monkeypatch):
    self.now = 1000.0
    monkeypatch.setattr(time, "perf_counter", lambda: self.now)
    monkeypatch.setattr(time, "time", lambda: 5000 + self.now)
    monkeypatch.setattr(progress, "_since", self.now)
    monkeypatch.setattr(progress, "_seconds", {})
    monkeypatch.setattr(progress, "_now", progress.Stamp())

  def passes(self, seconds):
    self.now += seconds


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


def test_each_second_counts_once(clock):
  clock.passes(3)  # Before the run: of another one in the same process.
  goodput = Goodput(progress.seconds())
  clock.passes(10)
  with doing(STEP):
    clock.passes(50)
    for what, seconds in ((COMPILATION, 20), (READING, 5), (SAVE, 4)):
      with doing(what):
        clock.passes(seconds)
    with doing(EVALUATION):
      clock.passes(2)
      with doing(SEARCH):
        clock.passes(6)
    clock.passes(3)
    expected = {"steps": 53, "compiling": 20, "waiting_for_data": 5, "saving": 4, "evaluating": 8, "starting": 10}
    assert goodput.seconds() == expected
    assert goodput.shares() == {kind: seconds / 100 for kind, seconds in expected.items()}


def test_a_pause_that_was_meant_costs_nothing(clock):
  goodput = Goodput(progress.seconds())
  with doing(STEP):
    clock.passes(80)
    saved = json.loads(json.dumps(goodput.to_json(ends=True)))
  clock.passes(3000)
  again = Goodput(progress.seconds(), saved)
  assert again.shares() == {"steps": 1, "compiling": 0, "waiting_for_data": 0, "saving": 0, "evaluating": 0,
                            "starting": 0}


def test_what_a_kill_costs_is_starting(clock, monkeypatch):
  goodput = Goodput(progress.seconds())
  clock.passes(10)
  with doing(STEP):
    clock.passes(80)
    saved = json.loads(json.dumps(goodput.to_json()))
    clock.passes(7)  # Lost.
  clock.passes(30)  # No machine.
  clock = Clock(monkeypatch)
  clock.now += 127  # Of the next process this is the beginning.
  monkeypatch.setattr(progress, "_since", clock.now)
  began = progress.seconds()
  clock.passes(5)
  with doing(STEP):
    clock.passes(20)
    goodput = Goodput(began, saved)
    clock.passes(1)
    assert goodput.seconds() == {"steps": 101, "compiling": 0, "waiting_for_data": 0, "saving": 0, "evaluating": 0,
                                 "starting": 10 + 7 + 30 + 5}
