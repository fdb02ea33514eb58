"""Where collections are: folders, or sets of BEIR, which are downloaded where a network is there."""

import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath
from tqdm import tqdm

from gtr_jax.errors import InputError
from gtr_jax.evaluation.beir import SETS, SUITES, BeirSet, parts

ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
_BEIR, _NANO = "beir/", "nano-beir/"
_CHUNK = 1 << 20
_SECONDS = 30  # without an answer


class Found(NamedTuple):
  """A collection: its folder, its name, and which set of BEIR it is, if it is one."""

  folder: str
  name: str | None
  beir: BeirSet | None


def find_collections(references: Sequence[epath.PathLike], suite: str | None, root: epath.PathLike) -> list[Found]:
  """The folders of collections. Nothing is downloaded unless all that cannot be downloaded is there.

  Args:
    references: folders; or "beir/NAME" and "nano-beir/NAME", which are such a folder, else one below `root`, else are
      downloaded there. beir/cqadupstack stands for its forums.
    suite: "beir", "beir-public" or "nano-beir"; comes after them.
    root: where downloads go.

  Raises:
    InputError: sets are neither there nor to be had; names all of them, and what to put where.
  """
  places, missing = _look(references, suite, root)
  for reference, place in missing.items():
    archive = _archive_of(reference)
    try:
      if not place.exists():  # A forum comes with the others.
        _download(archive, epath.Path(root) / "beir" / archive.name)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
      left = [name for name, folder in missing.items() if not folder.exists()]
      addresses = ", ".join(dict.fromkeys(ADDRESS.format(name=_archive_of(name).name) for name in left))
      raise InputError(f"{', '.join(left)}: not there, and not to be had ({getattr(e, 'reason', e)}); put {addresses}, "
                       f"or what is in {'it' if len(left) == 1 else 'them'}, into {epath.Path(root) / 'beir'}") from e
  return _found(places)


def look_for_collections(references: Sequence[epath.PathLike], suite: str | None,
                         root: epath.PathLike) -> tuple[list[Found], list[str]]:
  """As `find_collections`, without downloading: those that are there, and the sets that would be downloaded."""
  places, missing = _look(references, suite, root)
  return _found({reference: place for reference, place in places.items() if reference not in missing}), list(missing)


def _look(references, suite, root) -> tuple[dict[str, epath.Path], dict[str, epath.Path]]:
  """Where all are, or will be; and those of them that can be downloaded."""
  references = [*map(os.fspath, references), *(name if name.startswith(_NANO) else _BEIR + name
                                               for name in SUITES.get(suite, ()))]
  places = {reference: _place(reference, epath.Path(root)) for reference in dict.fromkeys(references)}
  missing = {reference: place for reference, place in places.items() if _is_name(reference) and not place.exists()}
  by_hand = [reference for reference in missing if not _archive_of(reference).md5]
  if by_hand:
    raise InputError(_how_to_get(by_hand, missing, epath.Path(root)))
  return places, missing


def _found(places: dict[str, epath.Path]) -> list[Found]:
  found = []
  for reference, place in places.items():
    of = _set_of(reference)
    if of is None:
      found.append(Found(os.fspath(place), None, None))
      continue
    for part in parts(of.name):
      folder = place / part.partition("/")[2] if part != of.name else place
      found.append(Found(os.fspath(folder), part, SETS[part]))
  return found


def _is_name(reference: str) -> bool:
  return reference.startswith((_BEIR, _NANO))


def _set_of(reference: str) -> BeirSet | None:
  """The set that a name, or the end of a path, is of. Raises InputError for a name that no set has."""
  pieces = Path(reference).parts
  for start, kind in enumerate(pieces):
    name = "/".join(pieces[start + (kind == "beir"):])
    if kind in ("beir", "nano-beir") and name in SETS and name.startswith(_NANO) == (kind == "nano-beir"):
      return SETS[name]
  if _is_name(reference) and not os.path.exists(reference):
    kind = pieces[0]
    raise InputError(f"{reference}: no such folder, and no such set; there are "
                     f"{', '.join(name.removeprefix(_NANO) for name in SUITES[kind])}")
  return None


def _archive_of(name: str) -> BeirSet:
  """The set that is downloaded for a set: that of all forums for one forum."""
  of = _set_of(name)
  return of if of.name.startswith(_NANO) else SETS[of.name.partition("/")[0]]


def _place(reference: str, root: epath.Path) -> epath.Path:
  here = epath.Path(reference)
  return root / reference if _set_of(reference) and _is_name(reference) and not here.exists() else here


def _how_to_get(names: Sequence[str], missing: dict[str, epath.Path], root: epath.Path) -> str:
  """What to do about sets that nobody may or can download."""
  private = [name for name in names if not _set_of(name).hub_name]
  nano = [name for name in names if name not in private]
  whose = []
  if private:
    whose.append(f"{', '.join(private)} (not public: github.com/beir-cellar/beir, examples/dataset, says how to make "
                 "them)")
  if nano:
    hub_names = ", ".join(_set_of(name).hub_name for name in nano)
    whose.append(f"{', '.join(nano)} (data sets on huggingface.co: {hub_names})")
  others = [name for name in missing if name not in names]
  rest = f"; {', '.join(others)} would be downloaded once these are there" if others else ""
  instead = ", or take --suite beir-public" if len(private) > 1 else ""
  folders = [root / names[0]] if len(names) == 1 else [root / kind / "NAME" for kind, of in (
      ("beir", private), ("nano-beir", nano)) if of]
  return (f"not there: {'; '.join(whose)}: put corpus.jsonl, queries.jsonl and qrels/test.tsv of each into "
          f"{' and '.join(map(os.fspath, folders))}{instead}{rest}")


def _download(of: BeirSet, folder: epath.Path) -> None:
  """Gets a set's zip file, goes on with one that was cut off, checks it, unpacks it and renames the folder."""
  if "://" in os.fspath(folder):
    raise InputError(f"{folder}: not there; unpack {ADDRESS.format(name=of.name)} and copy it there")
  folder = Path(folder)
  archive = folder.parent / f"{of.name}.zip"
  folder.parent.mkdir(parents=True, exist_ok=True)
  if not archive.exists():
    part = folder.parent / f"{of.name}.zip.part"
    _fetch(ADDRESS.format(name=of.name), part)
    _check(part, of)
    part.replace(archive)
  else:
    _check(archive, of)
  temporary = folder.parent / f".{of.name}.tmp"
  shutil.rmtree(temporary, ignore_errors=True)
  with zipfile.ZipFile(archive) as unpacked:
    for member in unpacked.infolist():
      if member.filename.startswith(f"{of.name}/"):  # Not what some system has left beside it.
        unpacked.extract(member, temporary)
  (temporary / of.name).replace(folder)
  shutil.rmtree(temporary)
  archive.unlink()


def _fetch(address: str, part: Path) -> None:
  have = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
  try:
    answer = urllib.request.urlopen(request, timeout=_SECONDS)
  except urllib.error.HTTPError as e:
    if have and e.code == 416:  # It is all there.
      return
    raise
  with answer:
    goes_on = answer.status == 206
    length = answer.headers.get("Content-Length")
    with part.open("ab" if goes_on else "wb") as f, tqdm(
        total=int(length) + have * goes_on if length else None, initial=have * goes_on, unit="B", unit_scale=True,
        desc=f"downloading {address.rpartition('/')[2]}", file=sys.stderr) as bar:
      while data := answer.read(_CHUNK):
        f.write(data)
        bar.update(len(data))
    if bar.total and part.stat().st_size < bar.total:
      raise InputError(f"{part}: the connection ended at {part.stat().st_size:,} of {bar.total:,} bytes; start again, "
                       "and it goes on there")


def _check(path: Path, of: BeirSet) -> None:
  """Raises InputError unless the file has the checksum that BEIR publishes."""
  with path.open("rb") as f:
    md5 = hashlib.file_digest(f, "md5").hexdigest()
  if md5 == of.md5:
    return
  if path.suffix == ".part":
    path.unlink()
    raise InputError(f"{path}: was not whole, or another file than BEIR's (md5 {md5}, not {of.md5}), and is removed; "
                     "start again")
  raise InputError(f"{path}: cut off, or another file than BEIR's (md5 {md5}, not {of.md5}); remove it, or put the "
                   "whole file there")
