"""Processes of a Python that has imported everything already: most of a short life would be imports else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.02


class Forked:
  """A child process, as `subprocess.Popen` has it.

  Args:
    run: what it does; it ends by raising SystemExit.
    environment: variables that it has beside those of this process.
    output: the file that it prints to.
    folder: that it works in.

  Attributes:
    pid: of the process, and of its session.
    returncode: None while it runs; below 0, the signal that it died of.
  """

  def __init__(self, run: Callable[[], object], environment: dict[str, str], output: Path, folder: Path):
    self.returncode: int | None = None
    sys.stdout.flush()
    self.pid = os.fork()
    if self.pid:
      return
    os.setsid()
    os.chdir(folder)
    with open(output, "wb") as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    run()
    raise SystemExit

  def poll(self) -> int | None:
    if self.returncode is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.returncode = os.waitstatus_to_exitcode(status)
    return self.returncode

  def wait(self, seconds: float) -> int:
    """Raises subprocess.TimeoutExpired."""
    deadline = time.monotonic() + seconds
    while self.poll() is None:
      if time.monotonic() > deadline:
        raise subprocess.TimeoutExpired("a forked process", seconds)
      time.sleep(_POLL_SECONDS)
    assert self.returncode is not None
    return self.returncode

  def send_signal(self, number: signal.Signals) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def terminate(self) -> None:
    self.send_signal(signal.SIGTERM)
