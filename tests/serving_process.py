"""`gtr-jax serve` as a process, as its clients find it."""

import contextlib
import dataclasses
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

_SECONDS = 180  # to be ready, and to end: more than a busy machine takes


@dataclasses.dataclass
class Running:
  """A server that is ready.

  Attributes:
    url: of it, without a slash at the end.
    stderr: the lines that it has written until now.
  """

  url: str
  stderr: list[str]

  @property
  def address(self) -> tuple[str, int]:
    """Host and port."""
    host, port = self.url.removeprefix("http://").split(":")
    return host, int(port)


@contextlib.contextmanager
def serving(*flags: object) -> Iterator[Running]:
  """A server with these flags, at a port of its own choice. It has to end by itself when it is told to."""
  process = subprocess.Popen([sys.executable, "-m", "gtr_jax", "serve", "--port", "0", *map(str, flags)],
                             stderr=subprocess.PIPE, text=True, errors="replace")
  lines: list[str] = []
  reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
  reader.start()
  try:
    yield Running(_ready(process, lines), lines)
    process.send_signal(signal.SIGTERM)
    assert process.wait(_SECONDS) == 0, "".join(lines)
  finally:
    process.kill()
    process.wait()
    reader.join()
    process.stderr.close()


def _ready(process, lines):
  until = time.monotonic() + _SECONDS
  while time.monotonic() < until:
    time.sleep(.05)
    said = re.search(r"http://[\d.]+:\d+", "".join(lines))
    if process.poll() is not None:
      break
    with contextlib.suppress(OSError):  # Not listening yet, or not ready: 503.
      if said and urllib.request.urlopen(f"{said[0]}/health", timeout=10).status == 200:
        return said[0]
  raise AssertionError(f"the server is not ready (exit status {process.poll()}):\n{''.join(lines)}")
