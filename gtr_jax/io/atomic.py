"""Files and folders that appear under their names only when whole: the one way in which gtr_jax writes.

What is being written lies beside its place as `.NAME.HOST-PID-N.tmp`. It is removed when writing fails (a full disk,
ctrl-C); what a killed process has left is removed by the next one on the same host that writes the same NAME. Nothing
of another form is ever touched. In a bucket, which cannot rename, a file appears when it is closed.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.failures import HOST, naming
from gtr_jax.io.paths import is_remote, location

_count = itertools.count()


@contextlib.contextmanager
def replacing(path: epath.PathLike, mode: str = "wb") -> Iterator[IO]:
  """Opens a new file ("wb" or "w", UTF-8) that takes the place of `path` when the block ends without an error.

  The folder is made if it is not there. Where the block raises, `path` is as it was. Of a link, the file that it leads
  to is replaced.

  Raises:
    InputError: a folder, a pipe or a device lies there.
  """
  path = location(path)
  if is_remote(path):
    with _uploaded(path, mode) as file:
      yield file
    return
  path = epath.Path(os.path.realpath(path))
  if path.exists() and not os.path.isfile(path):
    raise InputError(f"{path}: a folder; name the file to write in it" if path.is_dir() else
                     f"{path}: a pipe or a device, which cannot be replaced; name a file")
  path.parent.mkdir(parents=True, exist_ok=True)
  new = _beside(path)
  try:
    with naming(path, hidden=new):
      with new.open(mode, **({} if "b" in mode else {"encoding": "utf-8"})) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # Else a machine that stops may keep the name and lose the bytes.
      new.replace(path)
  except BaseException:
    new.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _uploaded(path: epath.Path, mode: str) -> Iterator[IO]:
  """A file of this machine's, which becomes the object `path` when the block ends without an error.

  What is written to a bucket at once cannot seek, as archives of arrays do, and is an object, if half of one, when an
  error ends it.
  """
  with (naming(tempfile.gettempdir(), hidden=tempfile.gettempdir()),
        tempfile.NamedTemporaryFile(mode, encoding=None if "b" in mode else "utf-8") as file):
    yield file
    file.flush()
    epath.Path(file.name).copy(path, overwrite=True)


def write_parts(path: epath.PathLike, parts: Iterable[bytes]) -> None:
  """Writes bytes that come in parts."""
  with replacing(path) as file:
    for part in parts:
      file.write(part)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a whole file."""
  write_parts(path, [data])


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a whole file, in UTF-8."""
  write_parts(path, [text.encode()])


def write_json(path: epath.PathLike, value: Any, indent: int | None = 1) -> None:
  """Writes a JSON value, for people to read too."""
  text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
  try:
    write_text(path, text)
  except UnicodeEncodeError:  # A path of bytes that are not UTF-8.
    write_text(path, json.dumps(value, indent=indent) + "\n")


@contextlib.contextmanager
def new_folder(path: epath.PathLike, same: Callable[[], bool] = lambda: False) -> Iterator[epath.Path]:
  """A new empty folder that gets the name `path` when the block ends without an error.

  Args:
    path: its place; nothing but an empty folder may lie there by then.
    same: asked where something has come to lie there: whether it is the same, written by another process, and will do.

  Raises:
    InputError: something else lies there; what was written is removed.
  """
  path = location(path)
  with _folder_beside(path) as new:
    with naming(path, hidden=new):
      yield new
    try:
      if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError
      new.rename(path)  # POSIX replaces an empty folder.
    except OSError as e:
      if not path.exists():
        raise
      if not same():
        raise InputError(f"{path}: exists; choose another folder, or remove it") from e


@contextlib.contextmanager
def scratch_folder(path: epath.PathLike) -> Iterator[epath.Path]:
  """A new empty folder beside `path`, on this machine's disk, which is removed when the block ends.

  Where `path` is in a bucket, the folder lies where temporary files do.
  """
  path = location(path)
  if is_remote(path):
    with tempfile.TemporaryDirectory() as folder:
      yield epath.Path(folder)
    return
  with _folder_beside(path) as new, naming(path, hidden=new):
    yield new


@contextlib.contextmanager
def _folder_beside(path: epath.Path) -> Iterator[epath.Path]:
  """A new empty folder of a hidden name, which is removed when the block ends, unless it has got another name."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = _beside(path)
  try:
    new.mkdir()
    yield new
  finally:
    remove(new)


def check_writable(folder: epath.PathLike) -> None:
  """Raises InputError where a folder, there or not, could not be made or written to: before what takes long.

  A file without a name is made in it, or where it would be. Of a bucket nothing is looked at.
  """
  folder = location(folder)
  if is_remote(folder):
    return
  place = os.path.abspath(folder)
  while not os.path.lexists(place):
    place = os.path.dirname(place)
  try:
    with tempfile.TemporaryFile(dir=place):
      pass
  except OSError as e:
    where = "" if place == os.path.abspath(folder) else f"{place}: "
    raise InputError(f"{folder}: cannot be written to ({where}{e.strerror}); give another folder, or mend this one's "
                     "rights or its disk (ls -ld, df -h)") from e


def set_aside_and_remove(path: epath.PathLike) -> None:
  """Removes a file or folder of ours that another process may be removing or writing anew at the same time."""
  path = location(path)
  aside = _beside(path)
  with contextlib.suppress(FileNotFoundError):  # Another process has just done so.
    path.rename(aside)
  remove(aside)


def _beside(path: epath.Path) -> epath.Path:
  """A name for what is being written; removes what killed processes of this host have left of theirs."""
  if not is_remote(path):
    of_ours = re.compile(re.escape(f".{path.name}.{HOST}-") + r"(\d+)-\d+\.tmp")
    for name in os.listdir(path.parent):
      if (left := of_ours.fullmatch(name)) and not _is_alive(int(left[1])):
        remove(path.parent / name)
  return path.parent / f".{path.name}.{HOST}-{os.getpid()}-{next(_count)}.tmp"


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def remove(path: epath.Path) -> None:
  """Removes a file or a folder of ours, if it is there."""
  if path.is_dir():
    if is_remote(path):
      path.rmtree()
    else:
      shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)
