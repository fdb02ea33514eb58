"""From the path or name that a user gives to the place of a model: `~`, pages of the Hugging Face hub, its cache."""

import os
import re

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.paths import is_remote, location, reached

_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?!datasets/|spaces/)([^/\s]+/[^/?#\s]+).*"
                   r"|hf://(?:models/)?([^/@\s]+/[^/@\s]+).*", re.IGNORECASE)
_CACHED = "models--"  # how the cache of the hub names the folder of a model: models--owner--name
_SHOWN = 5
_OWNERS = {"sentence-transformers": "(gtr|sentence)-t5-(base|large|xl|xxl)",
           "google-t5": "t5-(small|base|large|3b|11b)", "google": "(t5-v1_1|t5-efficient|mt5|flan-t5)-.+"}


def locate(path: epath.PathLike) -> epath.Path:
  """The place that a path of a model means, there or not: of the hub's cache of a model, its snapshot.

  Raises:
    InputError: it is no path, a page of the hub, a cache that holds several, or a link to nothing.
  """
  if (page := _PAGE.fullmatch(os.fspath(path).strip())) and not os.path.exists(path):
    raise InputError(f"{path}: a page of the Hugging Face hub; give the model's name, {page[1] or page[2]}")
  folder = location(path)
  with reached(path):
    if os.path.islink(folder) and not folder.exists():
      raise InputError(f"{path}: a link to {os.readlink(folder)}, where nothing is; mend it, or give the "
                       "model's folder")
    return _in_cache(folder)


def is_hub_name(path: epath.PathLike) -> bool:
  """`owner/name`. What begins as a path, ends with a slash or has several is none, nor a step of T5X."""
  return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/(?!checkpoint_\d+$)[A-Za-z0-9][\w.-]*", os.fspath(path)))


def full_name(path: epath.PathLike) -> str | None:
  """`owner/name` on the hub of a T5 or GTR that is given without its owner; None: it is no name of one."""
  name = os.fspath(path)
  return next((f"{owner}/{name}" for owner, names in _OWNERS.items() if re.fullmatch(names, name)), None)


def cached_name(folder: epath.Path) -> str | None:
  """`owner/name` of a snapshot in the cache of the hub, or None for another folder."""
  root = folder.parent.parent.name
  return root.removeprefix(_CACHED).replace("--", "/") if _is_cache(folder.parent.parent) and _CACHED in root else None


def _is_cache(folder: epath.Path) -> bool:
  """Whether the cache of the hub keeps one model there."""
  return (folder / "snapshots").is_dir() and (folder.name.startswith(_CACHED) or (folder / "refs").is_dir() or
                                               (folder / "blobs").is_dir())


def _in_cache(folder: epath.Path) -> epath.Path:
  if is_remote(folder) or not folder.is_dir():
    return folder
  whole = folder / "hub" if (folder / "hub").is_dir() else folder  # ~/.cache/huggingface, or hub/ in it
  if models := sorted(entry.name for entry in whole.iterdir() if entry.name.startswith(_CACHED)):
    if len(models) > 1:
      more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
      raise InputError(f"{folder}: the cache of the Hugging Face hub, with several models; give one of them: "
                       f"{', '.join(str(whole / name) for name in models[:_SHOWN])}{more}")
    raise InputError(f"{folder}: the cache of the Hugging Face hub; give the model in it, {whole / models[0]}")
  if re.match("(datasets|spaces)--", folder.name) and (folder / "snapshots").is_dir():
    raise InputError(f"{folder}: no model, but what the cache of the Hugging Face hub keeps of a data set or space; "
                     f"give a folder {_CACHED}…")
  root = folder.parent if folder.name in ("snapshots", "refs", "blobs") else folder
  return _snapshot(root) if _is_cache(root) else folder


def _snapshot(root: epath.Path) -> epath.Path:
  """The snapshot that refs/main names, or the only one."""
  snapshots = sorted(entry.name for entry in (root / "snapshots").iterdir() if entry.is_dir())
  main = root / "refs" / "main"
  named = main.read_bytes().decode(errors="replace").strip() if main.is_file() else None
  if named in snapshots:
    return root / "snapshots" / named
  said = "has no refs/main" if named is None else f"refs/main names {named!r:.60}, which is not in snapshots/"
  if not snapshots:
    raise InputError(f"{root}: the Hugging Face hub's cache of a model, of which no snapshot is there; download the "
                     "model, and give its name or its folder")
  if len(snapshots) == 1 and named is None:
    return root / "snapshots" / snapshots[0]
  more = f" and {len(snapshots) - _SHOWN} more" if len(snapshots) > _SHOWN else ""
  raise InputError(f"{root}: the Hugging Face hub's cache of a model; it {said}: give one of the snapshots: "
                   f"{', '.join(str(root / 'snapshots' / name) for name in snapshots[:_SHOWN])}{more}")
