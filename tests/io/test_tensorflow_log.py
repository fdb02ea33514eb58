"""What libraries log while they are loaded."""

import subprocess
import sys

WRITES = """\
import os
from gtr_jax.io import tensorflow_log
os.write(2, b"I0000 00:00:1 before\\n")
with tensorflow_log._without_information():
  os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n"
           b"I0000 00:00:1.5 1 port.cc:153] oneDNN\\nE0000 00:00:1.5 1 x.cc:1] wrong\\nIt is so.\\nno line end")
  DIES
os.write(2, b"\\nI0000 after\\n")
"""


def run(code):
  return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_only_information_is_left_out_and_only_then():
  done = run(WRITES.replace("DIES", "pass"))
  assert done.returncode == 0 and not done.stdout
  assert done.stderr == "I0000 00:00:1 before\nE0000 00:00:1.5 1 x.cc:1] wrong\nIt is so.\nno line end\nI0000 after\n"


def test_what_a_dying_process_says_is_not_lost():
  done = run(WRITES.replace("DIES", "os.abort()"))
  assert done.returncode < 0
  assert done.stderr == "I0000 00:00:1 before\nE0000 00:00:1.5 1 x.cc:1] wrong\nIt is so.\nno line end"
