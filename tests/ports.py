"""Ports for the servers of the tests."""

import itertools
import os
import socket

_numbers = itertools.count(os.getpid() * 97)


def free_port() -> int:
  """A port that nothing listens at, a different one each time.

  It is below those that the kernel gives to outgoing connections: any connection on the machine could take one of those
  between here and its use.
  """
  for number in itertools.islice(_numbers, 12_000):
    with socket.socket() as s:
      try:
        s.bind(("", port := 20_000 + number % 12_000))
        return port
      except OSError:  # Somebody's.
        continue
  raise OSError("no port from 20000 to 31999 is free")
