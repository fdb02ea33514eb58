"""Running a sweep's jobs on this machine: some at a time, each in its own process, failures kept apart."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from gtr_jax.errors import InputError
from gtr_jax.io import lock
from gtr_jax.io.atomic import write_text
from gtr_jax.sweep.plan import Job

POLL_SECONDS = 0.2
_LOCK = ".lock"
_ERROR = re.compile(r"gtr-jax \w+( \(process .*?\))?: |[\w.]*(Error|Exception|Interrupt)\b")


class Process(Protocol):
  """A job that runs; as of `subprocess.Popen`."""

  def poll(self) -> int | None: ...

  def terminate(self) -> None: ...

  def kill(self) -> None: ...


Start = Callable[[Job, Path, int], Process]
"""(job, its log, number of the worker) -> the process."""


class Outcome(NamedTuple):
  """Why jobs failed, by name, and the signal that stopped the sweep before all had run, if one did."""

  failed: dict[str, str]
  stopped_by: int | None


def log_of(output: str, job: Job) -> Path:
  """What a job prints; added to when it is started again."""
  return Path(output, "logs", f"{job.name}.log")


def marker_of(output: str, name: str) -> Path:
  """The file that says that a job is done, for what (its stamp), and when: another time, another result."""
  return Path(output, "done", name)


def started_of(output: str, name: str) -> Path:
  """The markers of the jobs that a job came after, one after the other, as they were when it was started."""
  return Path(output, "started", name)


def read_marker(path: Path) -> str:
  """What a marker says; "" of one that is not there. A damaged one says what no job was done for."""
  try:
    return path.read_bytes().decode("utf-8", "replace")
  except FileNotFoundError:
    return ""


def done_jobs(output: str, jobs: Mapping[str, Job]) -> set[str]:
  """The jobs that were done with these settings, whose results are there, and were made from what is there."""
  done: set[str] = set()
  for job in jobs.values():  # Each after those that it needs.
    text = read_marker(marker_of(output, job.name)) if os.path.exists(job.makes) else ""
    if re.fullmatch(re.escape(job.stamp) + r"\n(\d+\n)?", text) and _has_its_inputs(output, job, done):
      done.add(job.name)
  return done


def set_aside(output: str, jobs: Mapping[str, Job], say: Callable[[str], None]) -> None:
  """Renames folders of trainings that started from what is made again, so that they do not go on from there."""
  done = done_jobs(output, jobs)
  for job in jobs.values():
    begun = started_of(output, job.name).exists() or marker_of(output, job.name).exists()
    if job.words[0] == "train" and begun and os.path.exists(job.makes) and not _has_its_inputs(output, job, done):
      old = next(old for i in itertools.count(1) if not os.path.exists(old := f"{job.makes}.old{i}"))
      os.rename(job.makes, old)
      say(f"{job.name}: what it was trained from is made again, and so is it; the earlier one is {old}")


def _has_its_inputs(output: str, job: Job, done: set[str]) -> bool:
  """Whether what the job came after is done, and was not done again since the job was started."""
  started = started_of(output, job.name)
  return done.issuperset(job.after) and (not started.exists() or read_marker(started) == _inputs(output, job))


def _inputs(output: str, job: Job) -> str:
  return "".join(read_marker(marker_of(output, name)) for name in job.after)


@contextlib.contextmanager
def locked(output: str) -> Iterator[int]:
  """Holds the folder for this process and those that it hands the yielded descriptor.

  Raises:
    InputError: another sweep, or a process that one started, is at work there.
  """
  os.makedirs(output, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      descriptor = stack.enter_context(lock.locked(os.path.join(output, _LOCK), wait=False))
    except BlockingIOError as e:
      raise InputError(f"{output}: a sweep, or a command that one started, is at work in this folder; wait for it, or "
                       "stop it") from e
    yield descriptor


def starter(lock_descriptor: int, workers: int) -> Start:
  """Starts jobs as processes of their own, which ctrl-C at the terminal does not reach.

  Where CUDA_VISIBLE_DEVICES lists GPUs, each worker gets an equal part of them.
  """
  gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]

  def start(job: Job, log: Path, worker: int) -> Process:
    environment = dict(os.environ)
    if workers > 1 and len(gpus) >= workers:
      share = len(gpus) // workers
      environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[worker * share:(worker + 1) * share])
    with log.open("ab") as out:
      return subprocess.Popen([sys.executable, "-P", "-m", "gtr_jax", *job.words], stdin=subprocess.DEVNULL, stdout=out,
                              stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                              pass_fds=(lock_descriptor,))

  return start


def run_jobs(jobs: Mapping[str, Job], output: str, workers: int, start: Start,
             say: Callable[[str], None] = print) -> Outcome:
  """Runs all jobs that are not done, each when what it needs is.

  The first SIGINT or SIGTERM ends the jobs that run as SIGTERM does (a training saves) and waits for them; the second
  kills them. What they were doing goes on at the next call.
  """
  set_aside(output, jobs, say)
  done = done_jobs(output, jobs)
  todo = {name: job for name, job in jobs.items() if name not in done}
  number = {name: i for i, name in enumerate(todo, start=1)}
  for folder in ("logs", "started", "done"):
    Path(output, folder).mkdir(parents=True, exist_ok=True)
  running: dict[str, tuple[Process, int, float]] = {}
  failed: dict[str, str] = {}
  signals: list[int] = []

  def stop(received, _):
    signals.append(received)
    for process, *_ in running.values():
      process.terminate() if len(signals) == 1 else process.kill()

  handlers = {of: signal.signal(of, stop) for of in (signal.SIGINT, signal.SIGTERM)}
  try:
    while running or todo and not signals:
      for job in list(todo.values()):  # Each after those that it needs.
        if before_it := [of for of in job.after if of in failed]:
          failed[job.name] = f"not started, for {before_it[0]} failed"
          del todo[job.name]
      ready = [job for job in todo.values() if not any(of in todo or of in running for of in job.after)]
      free = sorted(set(range(workers)) - {worker for _, worker, _ in running.values()})
      for job, worker in zip(ready if not signals else (), free, strict=False):
        log = log_of(output, job)
        say(f"[{number[job.name]}/{len(number)}] {job.name} starts; its log: {log}")
        del todo[job.name]
        marker_of(output, job.name).unlink(missing_ok=True)  # Of an earlier time.
        if job.words[0] == "evaluate":  # Or else it would add to the results of other flags.
          Path(job.makes).unlink(missing_ok=True)
        write_text(started_of(output, job.name), _inputs(output, job))
        running[job.name] = start(job, log, worker), worker, time.monotonic()
        if signals:  # It came while the process was being made.
          running[job.name][0].terminate()
      for name, (process, _, began) in list(running.items()):
        if (code := process.poll()) is None:
          continue
        del running[name]
        job, seconds = jobs[name], time.monotonic() - began
        if code == 0:
          write_text(marker_of(output, name), f"{job.stamp}\n{time.time_ns()}\n")
          say(f"[{number[name]}/{len(number)}] {name} done in {seconds:,.0f} s")
        elif signals:
          say(f"[{number[name]}/{len(number)}] {name} stopped")
        else:
          failed[name] = last_error(log_of(output, job)) or f"exit code {code}"
          say(f"[{number[name]}/{len(number)}] {name} FAILED after {seconds:,.0f} s: {failed[name]}")
      if running:
        time.sleep(POLL_SECONDS)
  finally:
    for of, handler in handlers.items():
      signal.signal(of, handler)
  return Outcome(failed, signals[0] if signals else None)


def last_error(log: Path) -> str:
  """The last line in which a job, or Python, said why it ended; "" where there is none."""
  text = log.read_bytes()[-100_000:].decode("utf-8", "replace") if log.exists() else ""
  lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
  errors = list(filter(_ERROR.match, lines))
  return errors[-1][:500] if errors else ""
