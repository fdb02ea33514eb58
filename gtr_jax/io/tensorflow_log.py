"""TensorFlow without its chatter, by its own settings and, where it has none, before it is imported.

Its libraries log while they are loaded, before anything can be set: that they found no GPU, which nobody has asked for.
What they say of lesser weight than a warning is left out then; all else is passed on, also where the process dies.
"""

import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# The two that log: each has a copy of what looks for CUDA.
_LIBRARIES = ("libtensorflow_framework.so.2", "python/profiler/internal/_pywrap_profiler_plugin.so")
_FILTER = """\
import re, sys
for line in iter(sys.stdin.buffer.readline, b""):
  if not re.match(rb"I\\d{4} |WARNING: All log messages before absl::InitializeLog", line):
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
"""


def quiet() -> None:
  """Errors only; before TensorFlow is imported, else too late for the most of it. Costs nothing the second time."""
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # As jax sets it.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  if "tensorflow" in sys.modules or (spec := importlib.util.find_spec("tensorflow")) is None:
    return
  folder = Path((spec.submodule_search_locations or [""])[0])
  paths = [folder / name for name in _LIBRARIES if (folder / name).is_file()]
  with _without_information() if paths else contextlib.nullcontext():
    for path in paths:
      with contextlib.suppress(OSError):  # Whatever is wrong with it, the import will say.
        ctypes.CDLL(str(path))


@contextlib.contextmanager
def _without_information() -> Iterator[None]:
  """What is written to stderr goes through another process, which outlives this one."""
  try:
    sys.stderr.flush()
    real = os.dup(2)
  except (OSError, ValueError):  # There is none.
    yield
    return
  passes_on = subprocess.Popen([sys.executable, "-I", "-S", "-c", _FILTER], stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, start_new_session=True)
  assert passes_on.stdin is not None
  os.dup2(passes_on.stdin.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(real, 2)
    os.close(real)
    passes_on.stdin.close()
    passes_on.wait()
