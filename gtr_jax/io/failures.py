"""What a disk, a network or the system's limits refuse, in one line, whichever library says it and however.

Python says it as OSError with an errno. TensorFlow, TensorStore, pyarrow and others have types of their own and put
the system's words into a text; Orbax raises what a thread has met later, chained or in a group; NumPy only counts.
"""

import concurrent.futures
import contextlib
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator

from etils import epath

HOST = re.sub(r"[^\w.]", "_", socket.gethostname())  # As `atomic` writes it into its temporary names.
_AGAIN = "then run it again"
_OTHER = "give another path, or mend this one"
_ROOM = ("check the room on the disk and its free inodes (df -h, df -i), or give a folder on another one, "
         f"{_AGAIN}")
_RIGHTS = f"{_OTHER}'s rights (ls -ld)"
_BROKEN = f"check the disk or the network file system that it lies on (dmesg, mount), {_AGAIN}"
_FILES = f"raise the limit of open files (ulimit -n), {_AGAIN}"
# What only comes of a disk, its rights and its limits: whoever says it, it is no fault of a program.
_HARD = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: f"check your quota (quota -s), or give another folder, {_AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f), or give a folder on another file system, {_AGAIN}",
    errno.EROFS: "give a folder that may be written to, or mount this one for writing",
    errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS, errno.EMFILE: _FILES, errno.ENFILE: _FILES,
    errno.EIO: _BROKEN, errno.ESTALE: _BROKEN, errno.EREMOTEIO: _BROKEN, errno.ENAMETOOLONG: "give a shorter path",
}
# What a program may also meet, and handle, on its way.
_SOFT = dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP,
                       errno.EXDEV, errno.EBUSY, errno.ETXTBSY), _OTHER) | {
    errno.ENODEV: _BROKEN, errno.ENXIO: _BROKEN, errno.ENOTCONN: _BROKEN,
    errno.ENOMEM: f"free some memory, {_AGAIN}", errno.EAGAIN: f"raise the limit of processes (ulimit -u), {_AGAIN}"}
_UNKNOWN = f"check the room on the disk, its limits and the network, {_AGAIN}"
_NUMBERS = {os.strerror(number): number for number in [*_SOFT, *_HARD] if number != errno.EAGAIN}
_CLASSES = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, IsADirectoryError: errno.EISDIR,
            NotADirectoryError: errno.ENOTDIR, FileExistsError: errno.EEXIST}
_PART = re.compile(r"(\d+) requested and (\d+) written")  # numpy.ndarray.tofile
_CODE = re.compile(r"os_error_code='(\d+)'|\[OS error (\d+)\b")  # TensorStore
_PATH = re.compile(r"""["'\x60]((?:/|gs://)[^"'\x60\n]+)["'\x60]|(?<![\w.:/<])((?:/|gs://)[^\s"'\x60:;,()\[\]]+)""")
_OURS = re.compile(rf"\.([^/]+)\.{HOST}-\d+-\d+\.tmp(?=/|$)")  # Of `atomic`: what it will be called.
_TEMPORARY = re.compile(r"\.orbax-checkpoint-tmp.*")  # Of a step of a checkpoint.
_FILE_LIBRARIES = ("tensorflow", "tensorstore", "pyarrow", "zstandard", "orbax", "h5py")
_NETWORK_LIBRARIES = ("gcsfs", "fsspec", "aiohttp", "google")
_REMOTE = ("NotFoundError", "PermissionDeniedError", "UnauthenticatedError", "UnavailableError", "AbortedError",
           "DeadlineExceededError", "UnknownError", "InternalError")  # Of TensorFlow, about a bucket.
_BUGS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError,
         SyntaxError, TypeError)


def reason(error: BaseException, place: epath.PathLike | None = None) -> str | None:
  """One line that says what could not be read or written, why, and what to do; None for an error of another kind.

  Args:
    error: what was raised. What it was raised from, and while, is looked at too.
    place: what was written, for an error that does not say it.
  """
  for one, sure in _causes(error):
    if found := _why(one, sure):
      path, why, advice = found
      path = _TEMPORARY.sub("", _OURS.sub(r"\1", path or "")) or (os.fspath(place) if place is not None else "")
      return f"{path}{': ' * bool(path)}{why}; {advice}"
  return None


@contextlib.contextmanager
def naming(path: epath.PathLike, hidden: epath.PathLike) -> Iterator[None]:
  """Gives what the system refuses in the block the name `path`, where it has none or that of what lies in `hidden`."""
  try:
    yield
  except OSError as e:
    named = os.fspath(e.filename) if isinstance(e.filename, str | os.PathLike) else None
    if named is None and e.errno in _HARD or named is not None and named.startswith(os.fspath(hidden)):
      e.filename, e.filename2 = os.fspath(path), None
    raise


def _causes(error: BaseException | None, sure: bool = True, seen: frozenset = frozenset()) -> Iterator[tuple]:
  """(exception, whether it is said to be the cause) of an error and all that led to it, the nearest first."""
  if error is None or id(error) in seen:
    return
  seen |= {id(error)}
  if "\n  In call to configurable" in str(error) and error.__context__ is not None:  # gin's copy has only the text.
    yield from _causes(error.__context__, sure, seen)
    return
  yield error, sure
  if isinstance(error, BaseExceptionGroup):
    for one in error.exceptions:
      yield from _causes(one, sure, seen)
  if isinstance(error, _BUGS):
    return
  yield from _causes(error.__cause__, sure, seen)
  if error.__cause__ is None and not error.__suppress_context__:
    yield from _causes(error.__context__, False, seen)


def _why(error: BaseException, sure: bool) -> tuple[str | None, str, str] | None:
  """(path, reason, advice) of one exception, or None. Of what may not be the cause, only what is hard."""
  if not isinstance(error, Exception) or isinstance(error, _BUGS):
    return None
  if isinstance(error, concurrent.futures.BrokenExecutor):
    return None, "a worker process was killed (is memory short?)", f"free some memory, {_AGAIN}"
  text = " ".join(str(error).split())
  if part := _PART.search(text):
    return None, f"only {int(part[2]):,} of {int(part[1]):,} numbers could be written", _ROOM
  if isinstance(error, OSError) and (number := _errno(error)) is not None:
    if not sure and number not in _HARD:
      return None
    path = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else _path_in(error, text)
    why = error.strerror or os.strerror(number)
    advice = (_HARD | _SOFT).get(number) or (_OTHER if path else _UNKNOWN)
    return os.fsdecode(path) if path else None, " ".join(str(why).split()), advice
  library = type(error).__module__.partition(".")[0]
  if (number := _number(text)) is not None and (number in _HARD or sure and (
      isinstance(error, OSError) or library in _FILE_LIBRARIES or _CODE.search(text))):
    return _path_in(error, text), os.strerror(number), (_HARD | _SOFT).get(number, _OTHER)
  if not sure:
    return None
  path = _path_in(error, text)
  if library in _NETWORK_LIBRARIES or library == "tensorflow" and type(error).__name__ in _REMOTE and "gs://" in text:
    return (path if path and path.startswith("gs://") else None,
            f"cannot be reached ({text[:200] or type(error).__name__})",
            f"check the name, the network and your rights, {_AGAIN}")
  if isinstance(error, OSError):
    return None, text[:300] or type(error).__name__, _UNKNOWN
  return None


def _errno(error: OSError) -> int | None:
  """Where a library raises one with a text only, by its class."""
  if error.errno is not None:
    return error.errno
  return next((number for kind, number in _CLASSES.items() if isinstance(error, kind)), None)


def _number(text: str) -> int | None:
  """The errno that a text of a library tells of."""
  if code := _CODE.search(text):
    return int(code[1] or code[2])
  return next((number for words, number in _NUMBERS.items() if words in text), None)


def _path_in(error: BaseException, text: str) -> str | None:
  """The last path in a text: libraries put the file after what it belongs to."""
  if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
    return os.fspath(error.args[0][0][1])
  found = [quoted or plain for quoted, plain in _PATH.findall(text.partition(" [tensorstore_spec=")[0])]
  return found[-1] if found else None
