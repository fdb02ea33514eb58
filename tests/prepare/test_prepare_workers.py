"""Worker processes: ctrl-C is for their parent alone."""

import os
import subprocess
import sys
from pathlib import Path

CODE = '''
import os
import pathlib
import signal
import sys

from gtr_jax.prepare import workers


def note(task):
  blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
  pathlib.Path(sys.argv[1], f"{task.number}-{os.getpid()}").write_text(str(blocked))


if __name__ == "__main__":
  print(len(list(workers.run(note, [workers.Task(i, "here") for i in range(8)], 2, lambda n: None))))
'''


def test_no_worker_hears_ctrl_c(tmp_path):
  """Not the first one either, with which Python starts a process of its own that lets interrupts through again."""
  (tmp_path / "out").mkdir()
  (tmp_path / "main.py").write_text(CODE)
  environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
  done = subprocess.run([sys.executable, tmp_path / "main.py", tmp_path / "out"], env=environment, check=True,
                        capture_output=True, text=True)
  assert done.stdout == "8\n"
  assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"True"}
