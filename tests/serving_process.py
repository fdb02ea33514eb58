"""`gtr-jax serve` as a process, as its clients find it."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

_SECONDS = 180  # to be ready, and to end: more than a busy machine takes


class Serving:
  """The process.

  Attributes:
    process: itself.
    lines: that it has written to stderr until now.
    port: where it listens.
  """

  def __init__(self, *flags: object):
    self.lines: list[str] = []
    self.process = subprocess.Popen([sys.executable, "-m", "gtr_jax", "serve", "--port", "0", *map(str, flags)],
                                    stderr=subprocess.PIPE, text=True, errors="replace")
    self._reads = threading.Event()
    self._reads.set()
    self._reader = threading.Thread(target=self._read)
    self._reader.start()
    self.port = int(re.search(r":(\d+): loading", self.line(": loading and compiling"))[1])

  def _read(self):
    for line in self.process.stderr:
      self._reads.wait()
      self.lines.append(line)

  def pause(self) -> None:
    """Reads no more of what it writes."""
    self._reads.clear()

  def go_on(self) -> None:
    """Reads what it has written."""
    self._reads.set()

  @property
  def url(self) -> str:
    """Without a slash at the end."""
    return f"http://127.0.0.1:{self.port}"

  @property
  def address(self) -> tuple[str, int]:
    """Host and port."""
    return "127.0.0.1", self.port

  def line(self, part: str, after: int = 0) -> str:
    """The first line that has this, after so many of them, as soon as it is there."""
    until = time.monotonic() + _SECONDS
    while True:
      ended = self.process.poll() is not None and not self._reader.is_alive()
      for line in self.lines[after:]:
        if part in line:
          return line
      assert not ended and time.monotonic() < until, f"no line with {part!r} in\n{''.join(self.lines)}"
      time.sleep(.01)

  def ready(self) -> "Serving":
    """Itself, when it answers."""
    self.line('"event":"ready"')
    return self

  def end(self) -> int:
    """By SIGTERM; its exit code, when all its lines are there."""
    self.process.send_signal(signal.SIGTERM)
    code = self.process.wait(_SECONDS)
    self._reader.join()
    return code

  def kill(self) -> None:
    """If it is still there."""
    self.process.kill()
    self.process.wait()
    self.go_on()
    self._reader.join()
    self.process.stderr.close()


@contextlib.contextmanager
def serving(*flags: object) -> Iterator[Serving]:
  """A server with these flags that is ready. It has to end by itself when it is told to."""
  server = Serving(*flags)
  try:
    yield server.ready()
    assert server.end() == 0, "".join(server.lines)
  finally:
    server.kill()
