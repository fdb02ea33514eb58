"""One process at a time, by a file's lock, which goes with the process that holds it."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)  # The last: of folders, on some.


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: bool) -> Iterator[int]:
  """Holds the lock of a file, which is made, or of a folder: for this process and those that it hands the descriptor.

  A file system that has no locks is taken at its user's word that nobody else is there.

  Args:
    path: of this machine: a folder that is there, or a file in one.
    wait: for whoever holds it, instead of BlockingIOError.
  """
  flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
  descriptor = os.open(path, flags, 0o644)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
    yield descriptor
  finally:
    os.close(descriptor)  # A child that has it, and is left over, keeps the lock.
