"""What packages document, read by all cores: nearly all of the time is Python's parser."""

import collections
import functools
import gc
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from etils import epath

from gtr_jax.demo import docstrings
from gtr_jax.demo.docstrings import Documentation
from gtr_jax.io import atomic
from gtr_jax.io.bars import Bar
from gtr_jax.io.json_file import read_json
from gtr_jax.io.lines import on_bytes, progress
from gtr_jax.prepare import workers

_PART_BYTES = 1 << 20
_FEW_BYTES = 8 << 20  # Are read by this process alone: others would take longer to begin.


class _File(NamedTuple):
  package: str
  path: Path
  module: str
  size: int


def read_packages(folders: Mapping[str, Path]) -> dict[str, list[Documentation]]:
  """What each package documents, in the sorted order of its files and in the order of the text within each.

  Args:
    folders: of the packages, by the names that qualified names begin with; empty for a folder of top-level modules.
  """
  files = [file for package, folder in folders.items() for file in _files(package, folder)]
  size = sum(file.size for file in files)
  parts = _parts(files)
  processes = 1 if size < _FEW_BYTES else os.cpu_count() or 1
  read: dict[str, list[Documentation]] = {package: [] for package in folders}
  with tempfile.TemporaryDirectory(prefix="pydoc-") as work, Bar(size, "reading packages", "B", leave=False) as bar:
    tasks = [workers.Task(number, str(part[0].path)) for number, part in enumerate(parts)]
    with on_bytes(bar.update):
      collections.deque(workers.run(functools.partial(_read, parts, work), tasks, processes, bar.update), maxlen=0)
    for task in tasks:
      for package, *documented in read_json(epath.Path(_place(work, task)), list, "start it again"):
        read[package].append(Documentation(*documented))
  return read


def _files(package, folder):
  for path in docstrings.python_files(folder):
    parts = [package, *path.relative_to(folder).with_suffix("").parts]
    yield _File(package, path, ".".join(p for p in parts if p and p != "__init__"), path.stat().st_size)


def _parts(files: list[_File]) -> list[list[_File]]:
  """Files in a row, about as much to read in each part."""
  parts: list[list[_File]] = []
  room = 0
  for file in files:
    if room <= 0:
      parts.append([])
      room = _PART_BYTES
    parts[-1].append(file)
    room -= file.size
  return parts


def _read(parts: list[list[_File]], work: str, task: workers.Task) -> None:
  """In a worker."""
  found = []
  collecting = gc.isenabled()
  gc.disable()  # Half of the time: syntax trees are many small objects and no garbage.
  try:
    for file in parts[task.number]:
      found += [(file.package, *documented) for documented in docstrings.read_file(file.path, file.module)]
      progress.on_bytes(file.size)
  finally:
    if collecting:
      gc.enable()
  atomic.write_json(_place(work, task), found, indent=None)


def _place(work: str, task: workers.Task) -> str:
  return f"{work}/{task.number}.json"
