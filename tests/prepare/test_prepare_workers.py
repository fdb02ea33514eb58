"""Worker processes: ctrl-C is for their parent alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTE = '''
import os
import pathlib
import signal
import sys


def note(task):
  blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
  pathlib.Path(sys.argv[1], f"{task.number}-{os.getpid()}").write_text(str(blocked))
'''
CODE = '''
from gtr_jax.prepare import workers
from noting import note

print(len(list(workers.run(note, [workers.Task(i, "here") for i in range(8)], 2, lambda n: None))))
'''


def test_no_worker_hears_ctrl_c(tmp_path):
  """Not the first one either, with which Python starts a process of its own that lets interrupts through again."""
  (tmp_path / "out").mkdir()
  (tmp_path / "noting.py").write_text(NOTE)
  (tmp_path / "main.py").write_text(CODE)
  environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
  done = subprocess.run([sys.executable, tmp_path / "main.py", tmp_path / "out"], env=environment, check=True,
                        capture_output=True, text=True)
  assert done.stdout == "8\n"
  assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"True"}


SCRIPT = """
import operator, os, sys
from gtr_jax.prepare import workers
print("the script runs")
sys.path.insert(0, os.getcwd())
tasks = [workers.Task(i, str(i)) for i in range(4)]
print(sorted(task.number for task in workers.run(operator.attrgetter("number"), tasks, 2, abs)))
"""


@pytest.mark.parametrize("by_name", [True, False])
def test_a_script_needs_no_guard_and_may_lie_beside_a_clone(tmp_path, by_name):
  """Its workers do not run it again, and take no folder `gtr_jax` for the package."""
  (tmp_path / "gtr_jax").mkdir()
  (tmp_path / "script.py").write_text(SCRIPT)
  done = subprocess.run([sys.executable, "-P", *["script.py"] * by_name], cwd=tmp_path, input=SCRIPT,
                        capture_output=True, text=True)
  assert done.stdout == "the script runs\n[0, 1, 2, 3]\n", done.stderr
