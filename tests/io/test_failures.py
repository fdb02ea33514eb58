"""What a disk refuses is one line, whichever library says it, and loses nothing; a bug stays a traceback."""

import concurrent.futures
import contextlib
import errno
import functools
import inspect
import itertools
import json
import os
import shutil

import gin
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow as tf
from test_loop import MESH, STEP, lines, new_state, saved_steps
from tiny_model_dir import tiny_encoder, write_vocabulary
from tiny_training import TinyBatches

from gtr_jax.checkpoints.checkpointer import Checkpointer, list_steps
from gtr_jax.cli import encode
from gtr_jax.cli.main import main
from gtr_jax.errors import InputError, TrainingError
from gtr_jax.formats import model_dir
from gtr_jax.formats.model_dir import write_model_json
from gtr_jax.io import atomic, failures
from gtr_jax.training import run
from gtr_jax.training.loop import Periods, fit, resume
from gtr_jax.training.writers import JsonlWriter

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
_TMP = "/run/checkpoints/16.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/_sharding"
TENSORSTORE = (f'RESOURCE_EXHAUSTED: Error writing local file "{_TMP}": Failed writing: "{_TMP}.__lock": Failed to '
               "write 17794 bytes to file 9: No space left on device ")


def chained(error, cause=None, context=None):
  error.__context__ = context
  if cause is not None:
    error.__cause__ = cause
  return error


def through_gin():
  """gin raises a copy, which has the text only."""
  @gin.configurable(module="test_failures")
  def opens():
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/mnt/x")

  with pytest.raises(OSError) as e:
    opens()
  assert e.value.errno is None
  return e.value


@pytest.mark.parametrize("error, line", [
    (lambda: OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device; check the room"),
    (lambda: FULL, "No space left on device; check the room on the disk and its free inodes"),
    (lambda: OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), "/a: Disk quota exceeded; check your quota"),
    (lambda: OSError(errno.EROFS, "Read-only file system", "/a"), "/a: Read-only file system; give a folder that may"),
    (lambda: PermissionError(errno.EACCES, "Permission denied", b"/a"), "/a: Permission denied; give another path"),
    (lambda: OSError(errno.EMFILE, "Too many open files", "/a"), "/a: Too many open files; raise the limit of open"),
    (lambda: OSError(errno.EFBIG, "File too large"), "File too large; raise the limit of a file's size"),
    (lambda: OSError(errno.EIO, "Input/output error", "/a"), "/a: Input/output error; check the disk or the network"),
    (lambda: OSError(errno.ESTALE, "Stale file handle", "/a"), "/a: Stale file handle; check the disk or the network"),
    (lambda: OSError(errno.ENAMETOOLONG, "File name too long", "/a"), "/a: File name too long; give a shorter path"),
    (lambda: FileNotFoundError("File /a/b not found."), "/a/b: No such file or directory; give another path"),
    (lambda: OSError("8000 requested and 2031 written"), "only 2,031 of 8,000 numbers could be written; "),
    (lambda: shutil.Error([("/a", "/b", "[Errno 28] No space left on device: '/b'")]), "/b: No space left on device; "),
    (lambda: ValueError(TENSORSTORE + "[os_error_code='28']"), "/run/checkpoints/16: No space left on device; check"),
    (lambda: ValueError(TENSORSTORE), "/run/checkpoints/16: No space left on device; check"),
    (lambda: ValueError('NOT_FOUND: "/a/b": x [os_error_code=\'2\']'), "/a/b: No such file or directory; give another"),
    (lambda: tf.errors.ResourceExhaustedError(None, None, "/tb/events.v2; No space left on device"),
     "/tb/events.v2: No space left on device; check"),
    (lambda: tf.errors.FailedPreconditionError(None, None, "/tb; Read-only file system"), "/tb: Read-only file"),
    (lambda: tf.errors.UnknownError(None, None, "/d/a.tfrecord; Input/output error"), "/d/a.tfrecord: Input/output er"),
    (lambda: tf.errors.PermissionDeniedError(None, None, "/tb; Permission denied"), "/tb: Permission denied; give"),
    (lambda: tf.errors.NotFoundError(None, None, "gs://b/x: no such bucket"), "gs://b/x: cannot be reached (gs://b/x"),
    (lambda: concurrent.futures.BrokenExecutor("x"), "a worker process was killed (is memory short?); free"),
    (lambda: ExceptionGroup("two", [RuntimeError("x"), chained(RuntimeError("y"), cause=FULL)]), "No space left"),
    (lambda: chained(RuntimeError("saving failed"), cause=ValueError(TENSORSTORE)), "/run/checkpoints/16: No space"),
    (lambda: chained(ValueError("I/O operation on closed file"), context=FULL), "No space left on device; check"),
    (lambda: OSError(errno.ENOSPC, "No space left on device", f"/a/.b.json.{failures.HOST}-12-3.tmp"),
     "/a/b.json: No space left"),
    (through_gin, "/mnt/x: Read-only file system; give a folder"),
])
def test_one_line_of_what_why_and_what_to_do(error, line):
  found = failures.reason(error())
  assert found.startswith(line) and "\n" not in found and "; " in found


@pytest.mark.parametrize("error", [
    lambda: RuntimeError("a bug"), lambda: KeyError("No space left on device"), lambda: TypeError("Permission denied"),
    lambda: ValueError("no rows: No such file or directory"), MemoryError,
    lambda: tf.errors.ResourceExhaustedError(None, None, "OOM"),
    lambda: tf.errors.NotFoundError(None, None, "Op type not registered"),
    lambda: chained(KeyError("k"), context=FileNotFoundError(errno.ENOENT, "No such file or directory", "/a")),
    lambda: chained(KeyError("k"), context=FULL), lambda: chained(TypeError("t"), cause=FULL),
    lambda: chained(RuntimeError("a bug"), context=FileNotFoundError(errno.ENOENT, "No such file or directory", "/a")),
])
def test_a_bug_stays_one(error):
  assert failures.reason(error()) is None


def test_numpy_on_a_full_disk(tmp_path):
  """It writes what there is room for, and raises an error without a number."""
  with pytest.raises(OSError) as e, open("/dev/full", "wb") as f:
    np.ones(1 << 20).tofile(f)
  assert "could be written" in failures.reason(e.value) or "No space left" in failures.reason(e.value)


@pytest.mark.parametrize("error, text", [
    (tf.errors.ResourceExhaustedError(None, None, "/x; No space left on device"), "/x: No space left on device; check"),
    (ValueError(TENSORSTORE), "/run/checkpoints/16: No space left on device; check"),
    (ExceptionGroup("several", [FULL]), "No space left on device; check")])
def test_every_command_prints_it(monkeypatch, capsys, error, text):
  def fail(args):
    raise error

  monkeypatch.setattr(encode, "run", fail)
  assert main(["encode", "--model=a", "--collection=b", "--output=c"]) == 2
  assert capsys.readouterr().err.startswith(f"gtr-jax encode: {text}")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  with pytest.raises(OSError) as e, atomic.replacing(tmp_path / "out.json") as f:
    f.write(b"half")
    raise OSError(*FULL.args)
  assert failures.reason(e.value).startswith(f"{tmp_path / 'out.json'}: No space left on device")
  with pytest.raises(OSError) as e, atomic.new_folder(tmp_path / "out") as new:
    (new / "a" / "b").write_text("")
  assert failures.reason(e.value).startswith(f"{tmp_path / 'out'}: No such file or directory")
  assert not list(tmp_path.iterdir())


def start(folder, periods, batches=None):
  """Trains as `run.train` does, with what it makes of errors."""
  folder.mkdir(exist_ok=True)
  with run._told_where_it_goes_on(folder), contextlib.ExitStack() as closing:
    state, shardings = new_state()
    checkpointer = Checkpointer(folder / "checkpoints")
    closing.callback(checkpointer.close)
    batches = batches or TinyBatches()
    state, progress = resume(checkpointer, state, shardings, batches)
    writer = JsonlWriter(folder / "metrics.jsonl", int(state.step))
    closing.callback(writer.close)
    return fit(state, STEP, batches, checkpointer, periods=periods, mesh=MESH, writers=[writer], progress=progress)


def failing(function, call, error):
  """The function, whose call of that number raises."""
  numbers = itertools.count(1)

  def check():
    if next(numbers) == call:
      raise error

  def replaced(*args, **kwargs):
    check()
    return function(*args, **kwargs)

  async def awaited(*args, **kwargs):
    check()
    return await function(*args, **kwargs)

  return awaited if inspect.iscoroutinefunction(function) else replaced


@pytest.mark.parametrize("where, name, call, last", [
    (ocp.handlers.JsonCheckpointHandler, "async_save", 2, 10),
    (ocp.handlers.PyTreeCheckpointHandler, "async_save", 1, None), (JsonlWriter, "write", 17, 15),
    (Checkpointer, "save", 3, 20),
])
@pytest.mark.parametrize("error", [FULL, ValueError(TENSORSTORE), OSError(errno.EIO, "Input/output error", "/run/x")])
def test_training_on_a_full_disk_goes_on_where_it_says(tmp_path, monkeypatch, capfd, where, name, call, last, error):
  """In the main thread or in one that saves: one line, no file that is half written, and then the same losses."""
  periods = Periods(25, log=1, checkpoint=10 if where is not JsonlWriter else 5)
  whole, full = tmp_path / "whole", tmp_path / "full"
  start(whole, periods)
  with monkeypatch.context() as patch:
    patch.setattr(where, name, failing(getattr(where, name), call, error))
    with pytest.raises(InputError) as e:
      start(full, periods)
  message = str(e.value)
  goes_on = f"goes on from checkpoint {last}" if last else "begins anew"
  assert "\n" not in message and message.endswith(f"; training {goes_on} when it is started again")
  assert os.strerror(getattr(error, "errno", None) or errno.ENOSPC) in message and "/" in message
  assert list_steps(full / "checkpoints")[-1:] == [last] * (last is not None)
  assert {path.name for path in full.iterdir()} == {"checkpoints", "metrics.jsonl"}
  assert "Traceback" not in capfd.readouterr().err
  batches = TinyBatches()
  start(full, periods, batches)
  assert batches.yielded == list(range((last or 0) + 1, 26))
  assert lines(full) == lines(whole) and saved_steps(full) == saved_steps(whole)  # Nothing else is left.


def test_what_is_not_finite_is_said_on_a_full_disk_too(tmp_path, monkeypatch):
  from test_loop import make_step, run

  def fail(*args, **kwargs):
    raise OSError(*FULL.args)

  monkeypatch.setattr(atomic, "write_json", fail)
  with pytest.raises(TrainingError, match=r"step 3 is not finite .*, \.\.\. \(16 in all\); "):
    run(tmp_path, Periods(5), train_step=make_step("loss", 3))


def test_a_bug_in_training_stays_one(tmp_path, monkeypatch):
  monkeypatch.setattr(JsonlWriter, "write", failing(JsonlWriter.write, 3, KeyError("loss")))
  with pytest.raises(KeyError):
    start(tmp_path, Periods(5, log=1))
  assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_a_first_start_that_was_cut_off_can_be_started_again(tmp_path, monkeypatch):
  """The vocabulary is there already; of anything else in the folder nobody knows whose it is."""
  tokenizer = write_vocabulary(tmp_path / "vocabulary.model")
  make = functools.partial(write_model_json, tmp_path / "run", tiny_encoder(tokenizer), tokenizer, query_length=8,
                           document_length=8)
  with monkeypatch.context() as patch:
    patch.setattr(model_dir, "write_json", failing(atomic.write_json, 1, FULL))
    with pytest.raises(OSError):
      make()
  (tmp_path / "run/.model.json.elsewhere-12-3.tmp").write_text("{")
  (tmp_path / "run/notes.txt").write_text("mine")
  with pytest.raises(InputError, match="exists and is no training run's folder"):
    make()
  (tmp_path / "run/notes.txt").unlink()
  make()
  assert (tmp_path / "run/model.json").exists()
