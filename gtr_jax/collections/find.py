"""Where collections are: folders, or sets of BEIR, which are downloaded where a network is there."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from gtr_jax.collections import download
from gtr_jax.collections.beir import SETS, SUITES, BeirSet, parts
from gtr_jax.errors import InputError
from gtr_jax.io.paths import location

_BEIR, _NANO = "beir/", "nano-beir/"


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
    try:
      if not place.exists():  # A forum comes with the others.
        download.download(_archive_of(reference), _folder_of(reference, epath.Path(root)))
    except download.NO_NETWORK as e:
      left = [name for name, folder in missing.items() if not folder.exists()]
      raise InputError(f"{', '.join(left)}: not there, and not to be had ({getattr(e, 'reason', e)}); "
                       f"{_by_hand(left, epath.Path(root))}") from e
  return _found(places)


def look_for_collections(references: Sequence[epath.PathLike], suite: str | None,
                         root: epath.PathLike) -> tuple[list[Found], list[str]]:
  """As `find_collections`, without downloading: those that are there, and the sets that would be downloaded."""
  places, missing = _look(references, suite, root)
  return _found({reference: place for reference, place in places.items() if reference not in missing}), list(missing)


def _look(references: Sequence[epath.PathLike], suite: str | None,
          root: epath.PathLike) -> tuple[dict[str, epath.Path], dict[str, epath.Path]]:
  """Where all are, or will be; and those of them that can be downloaded."""
  of_suite = SUITES.get(suite, ()) if suite is not None else ()
  names = [*map(os.fspath, references), *(name if name.startswith(_NANO) else _BEIR + name for name in of_suite)]
  places = {reference: _place(reference, epath.Path(root)) for reference in dict.fromkeys(names)}
  missing = {reference: place for reference, place in places.items() if _is_name(reference) and not place.exists()}
  private = [reference for reference in missing if not download.is_public(_archive_of(reference))]
  if private:
    raise InputError(_how_to_make(private, missing, epath.Path(root)))
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
  key = os.path.normpath(name).removeprefix(_BEIR)
  return SETS[key if key.startswith(_NANO) else key.partition("/")[0]]


def _place(reference: str, root: epath.Path) -> epath.Path:
  here = location(reference)
  return root / reference if _set_of(reference) and _is_name(reference) and not here.exists() else here


def _folder_of(reference: str, root: epath.Path) -> epath.Path:
  """Where a download goes."""
  name = _archive_of(reference).name
  return root / (name if name.startswith(_NANO) else _BEIR + name)


def _by_hand(names: Sequence[str], root: epath.Path) -> str:
  """What to do where sets cannot be downloaded."""
  zipped, nano = (list(dict.fromkeys(download.address(_archive_of(name)) for name in names if name.startswith(kind)))
                  for kind in (_BEIR, _NANO))
  how = []
  if zipped:
    how.append(f"put {', '.join(zipped)}, or what is in {'it' if len(zipped) == 1 else 'them'}, into {root / _BEIR}")
  if nano:
    how.append(f"write {', '.join(nano)} as corpus.jsonl, queries.jsonl and qrels/test.tsv into {root / _NANO}/NAME")
  return ", and ".join(how)


def _how_to_make(private: Sequence[str], missing: dict[str, epath.Path], root: epath.Path) -> str:
  """What to do about sets that nobody may download."""
  others = [name for name in missing if name not in private]
  rest = f"; {', '.join(others)} would be downloaded once these are there" if others else ""
  instead = ", or take --suite beir-public" if len(private) > 1 else ""
  folder = root / (private[0] if len(private) == 1 else "beir/NAME")
  return (f"not there: {', '.join(private)} (not public: github.com/beir-cellar/beir, examples/dataset, says how to "
          f"make them): put corpus.jsonl, queries.jsonl and qrels/test.tsv of each into {folder}{instead}{rest}")
