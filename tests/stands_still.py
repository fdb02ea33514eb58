"""What test_standing_still.py starts: one of two processes that train, until one of them stands still."""

import os
import signal
import sys
import time
from pathlib import Path

import one_of_two

from gtr_jax.parallel import processes, progress

SLOW, STILL, LIMIT = 3, 6, 40  # the batch that takes long, the one that never comes; seconds


class SlowBatches(one_of_two.PartOfBatches):
  """One of them takes long, as is allowed."""

  def __iter__(self):
    for item in super().__iter__():
      if self.number == SLOW:
        time.sleep(LIMIT / 5)
      yield item


class HangingWriter(one_of_two.JsonlWriter):
  """Writes to a file system that hangs."""

  def write(self, step, scalars):
    if step == STILL:
      hang()
    super().write(step, scalars)


def hang():
  """As where a file system does: nobody writes to this pipe."""
  os.mkfifo(sys.argv[3] + "/pipe")
  open(sys.argv[3] + "/pipe").close()


def main(index, port, folder, what):
  progress.BEAT_SECONDS, progress.SILENT_SECONDS = 0.2, LIMIT
  progress.LIMITS |= {progress.STEP: LIMIT, progress.READING: LIMIT}
  processes.join("test", processes.Cluster(f"localhost:{port}", 2, index), "start again")
  one_of_two.PartOfBatches = SlowBatches
  interruption = {}
  if what == "writing":
    one_of_two.JsonlWriter = HangingWriter
  elif what == "reading" and index == 1:
    interruption = {"after": STILL, "then": hang}
  elif what == f"stopped {index}":
    interruption = {"after": STILL, "then": lambda: os.kill(os.getpid(), signal.SIGSTOP)}
  one_of_two.Training(data=2).run(folder / "run", **interruption)


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
