"""Compiled programs are kept from run to run: jax's persistent compilation cache, in a folder of the user's.

Commands ask for it, the library never does: what jax caches, and where, belongs to the process. jax bounds its cache by
a scan of all entries and a lock at every access, and needs a package for that; here the least recently used entries go
when a command begins.
"""

import hashlib
import importlib.metadata
import itertools
import os
import platform
import re
import sys
import warnings
from pathlib import Path

from gtr_jax.io.data_root import cache_home

MOST_BYTES = 2 * 1024**3
OFF, FOLDER = "JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"  # jax's own variables
_DIR = "jax_compilation_cache_dir"
_MARK = "compiled_programs_of_gtr_jax"
_NO = {form(word) for word in ("no", "false", "off", "n", "f", "0") for form in (str, str.upper, str.title)}
# What is in the way of an entry: half an entry of a killed process, a full disk.
_TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']*)'")
# Of /proc/cpuinfo: by these the compiler chooses its instructions.
_OF_CPU = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def root() -> Path:
  """The folder of all caches."""
  return Path(cache_home()) / "compiled"


def turn_off() -> None:
  """For this process, and those that it starts."""
  _set("jax_enable_compilation_cache", False)


def keep_programs(several_processes: bool = False) -> None:
  """Makes jax keep what it compiles from now on, and find what earlier runs have compiled.

  Does nothing where the user has decided otherwise by jax's own variables, and where there is no folder to write in.
  Nor do several processes: there jax writes in process 0 alone, and on TPUs a program that was read crashes where it
  runs without the first device, as what each of the other processes runs by itself does.

  Args:
    several_processes: whether this is one of several.
  """
  own = root() / _versions()
  given = os.environ.get(FOLDER)
  if os.environ.get(OFF, "true") in _NO or given not in (None, "", str(own)):
    return
  if several_processes:
    if given:
      _set(_DIR, None)  # The process that has started this one had set it.
    return
  if not _ready(own):
    return
  _trim(root(), MOST_BYTES)
  _set(_DIR, str(own))
  _set("jax_persistent_cache_min_compile_time_secs", 0.0)  # A run has about ten, all quicker to read than to compile.
  _set("jax_persistent_cache_min_entry_size_bytes", -1)
  _heal(own)


def _set(setting, value):
  """A setting of jax, also of processes that this one starts, without importing jax."""
  if value is None:
    os.environ.pop(setting.upper(), None)
  else:
    os.environ[setting.upper()] = str(value)
  if "jax" in sys.modules:
    import jax
    jax.config.update(setting, value)


def _versions() -> str:
  """Name of the folder. What was compiled for another CPU would crash with SIGILL."""
  packages = "-".join(f"{name}-{importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
  return f"{packages}-{hashlib.sha256(_cpu().encode()).hexdigest()[:12]}"


def _cpu() -> str:
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
      first = list(itertools.takewhile(str.strip, f))  # Of as many alike as there are cores.
  except OSError:  # not Linux
    first = []
  return "\n".join([platform.machine(), *(line for line in first if line.partition("\t")[0] in _OF_CPU)]
                   if first else [platform.machine(), platform.processor()])


def _ready(folder: Path) -> bool:
  """Whether the folder is there, ours alone (what lies there is run) and can be written in."""
  try:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / _MARK).touch()
    return folder.stat().st_uid == os.getuid()
  except OSError:
    return False


def _trim(folder: Path, most: int) -> None:
  """Removes the entries that were used the longest ago, of all versions, until `most` bytes are left."""
  entries = []
  for mark in folder.glob(f"*/{_MARK}"):
    for path in mark.parent.rglob("*"):
      try:
        if path != mark and path.is_file():
          stat = path.stat()
          entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
      except OSError:  # Another process has removed it.
        continue
  size = sum(size for _, size, _ in entries)
  for _, of_entry, path in sorted(entries):
    if size <= most:
      return
    try:
      path.unlink()
    except OSError:
      continue
    size -= of_entry


def _heal(folder: Path) -> None:
  """An entry that jax cannot read goes, so that jax writes it anew, and there is nothing to say."""
  show = warnings.showwarning
  if show.__qualname__.startswith(_heal.__qualname__):  # A command that runs others has seen to it.
    return

  def showwarning(message, category, *where, **more):
    if not (trouble := _TROUBLE.match(str(message))):
      show(message, category, *where, **more)
    elif trouble[1] == "reading":
      for path in folder.iterdir():
        if path.name.startswith(f"{trouble[2]}-") and path.name.endswith("-cache"):
          path.unlink(missing_ok=True)

  warnings.showwarning = showwarning
