"""Metrics: the file of JSON lines, and writing in a thread."""

import os
import threading

import pytest

from gtr_jax.errors import InputError
from gtr_jax.training import writers
from gtr_jax.training.writers import InBackground, JsonlWriter


@pytest.fixture(params=["folder", "bucket"])
def path(request, tmp_path, monkeypatch):
  if request.param == "bucket":  # Where no file can grow.
    monkeypatch.setattr(writers, "is_remote", lambda path: True)
  return tmp_path / "metrics.jsonl"


def test_jsonl_is_cut_at_the_resumed_step(path):
  path.write_text('{"step": 5, "a": 1}\n{"step": 10, "a": 2}\n{"step": 10, "b": 2}\n{"step": 15, "a": 3}\n{"step": 1')
  writer = JsonlWriter(path, 10)
  assert path.read_text().count("\n") == 3
  for step in (12, 13):
    writer.write(step, {"a": 0.1})
    writer.flush()
    assert path.read_text().endswith(f'\n{{"step": {step}, "a": 0.1}}\n') and path.read_text().count("\n") == step - 8
  writer.close()
  assert path.read_text().count("\n") == 5 and os.listdir(path.parent) == ["metrics.jsonl"]
  JsonlWriter(path, 0).close()
  assert path.read_text() == ""
  path.write_text('{"step": 5}\n{"stop": 10}\n')
  with pytest.raises(InputError, match=r"metrics.jsonl:2: not a line of metrics"):
    JsonlWriter(path, 10)
  assert path.read_text().count("\n") == 2


class Slow:
  """Writes when it may, and notes what it is told."""

  def __init__(self, fails_at=None):
    self.told, self.may, self._fails_at = [], threading.Event(), fails_at

  def write(self, step, scalars):
    assert self.may.wait(60)
    if step == self._fails_at:
      raise OSError(28, "No space left on device")
    self.told.append((step, scalars["loss"]))

  def flush(self):
    self.told.append("flush")

  def close(self):
    self.told.append("close")


def test_nobody_waits_for_what_is_written_in_the_background():
  slow, other = Slow(), Slow()
  other.may.set()
  writer, scalars = InBackground([slow, other]), {"loss": 1.0}
  for step in range(5):
    writer.write(step, scalars)
  scalars["loss"] = 9.0  # What was given is written.
  assert not slow.told
  slow.may.set()
  writer.flush()
  rows = [(step, 1.0) for step in range(5)]
  for one in (slow, other):
    assert [of for of in one.told if of != "flush"] == rows and one.told[-1] == "flush"
    assert one.told.count("flush") <= 3  # Not one for each row: those that came in the meantime have one together.
  writer.write(5, {"loss": 2.0})
  writer.close()
  assert slow.told[-3:] == [(5, 2.0), "flush", "close"]


@pytest.mark.parametrize("call", [lambda writer: writer.flush(), lambda writer: writer.close()])
def test_what_goes_wrong_in_the_background_is_said(call):
  failing = Slow(fails_at=2)
  failing.may.set()
  writer = InBackground([failing])
  for step in range(3):
    writer.write(step, {"loss": 1.0})
    if step < 2:
      writer.flush()
  with pytest.raises(OSError, match="No space left"):
    call(writer)
  writer.close()  # Says it once.
  assert failing.told[-1] == "close"
