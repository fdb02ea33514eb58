"""Which files of a folder are read as one table: by their names, and by what `datasets` has written beside them."""

import fnmatch
import os
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import diagnose, jsonl

BINARY = (".parquet", ".arrow", ".feather")
ENDINGS = (*BINARY, ".csv", ".tsv", ".jsonl")
COMPRESSED = tuple(diagnose.ARCHIVES.values())
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
# Behind the number the hub has put a hash of its own for each shard.
_SHARD = re.compile(r"(?P<before>(?:.*[-_.])?)(?P<number>\d+)(?P<of>[-_]of[-_])(?P<count>\d+)"
                    r"(?P<hash>-[0-9a-f]{16})?(?P<after>.*)")


def in_folder(folder: epath.Path) -> list[str]:
  """The files of one split. Raises InputError where there are none, or not all, or those of several splits."""
  if (folder / "dataset_dict.json").exists():  # Of datasets.DatasetDict.save_to_disk.
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if "train" not in names:
      raise InputError(f"{folder}: a DatasetDict without a split 'train'; name the folder of one of its splits "
                       f"({', '.join(names) or 'none'})")
    return in_folder(folder / "train")
  if (folder / "state.json").exists():  # Of datasets.Dataset.save_to_disk.
    state = _object(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
      raise InputError(f"{folder}: a dataset whose rows are chosen by indices; write it anew with "
                       "datasets.load_from_disk(…).flatten_indices().save_to_disk(…)")
    try:
      named = [os.fspath(folder / file["filename"]) for file in state.get("_data_files") or ()]
    except (TypeError, KeyError) as e:
      raise InputError(f"{folder / 'state.json'}: not as datasets writes it; write the dataset anew") from e
    if named:
      return named
  found = sorted(os.fspath(path) for path in folder.iterdir() if _is_named_as_table(path.name) and not path.is_dir())
  check_shards(found, "*")
  if not found:
    below = sorted((path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
                    and any(_is_named_as_table(file.name) for file in path.iterdir())),
                   key=lambda name: (name != "train", name))
    folders = ""
    if below:
      folders = ("one of its folders, " if len(below) > 1 else "its folder ") + ", ".join(f"{name}/" for name in below)
    raise InputError(f"{folder}: a folder, where a file was expected, and nothing to read ({', '.join(ENDINGS)}) in "
                     f"it; name {f'{folders}, or files in it' if folders else 'the files in it'}")
  splits = {split for path in found for split in [_split(path)] if split}
  if len(splits) > 1:
    raise InputError(f"{folder}: files of several splits ({', '.join(sorted(splits))}); name those of one, such as "
                     f"'{folder}/*{min(splits, key=_SPLITS.index)}*'")
  if splits - {"train"}:
    raise InputError(f"{folder}: files of the split {min(splits)!r} alone; if they are meant, name them: "
                     f"'{folder}/*{min(splits)}*'")
  return found


def _is_named_as_table(name):
  if name.startswith(".") or name.startswith("cache-") and name.endswith(".arrow"):  # What datasets.map has left.
    return False
  name = name.lower()
  return name.removesuffix(next(filter(name.endswith, COMPRESSED), "")).endswith(ENDINGS)


def _split(path):
  """As the hub names files: train-00000-of-00002.parquet, squad-train.arrow."""
  words = os.path.basename(path).replace("_", "-").replace(".", "-").split("-")
  return next((split for split in _SPLITS if split in words), "")


def _object(path: epath.Path) -> dict[str, Any]:
  try:
    found = jsonl.parse(path.read_bytes())
    if not isinstance(found, dict):
      raise ValueError(f"{jsonl.kind_of(found)}, not an object")
  except ValueError as e:
    raise InputError(f"{path}: {e}; write the dataset anew") from e
  return found


def check_shards(found: Sequence[str], pattern: str) -> None:
  """Raises InputError where files are numbered as train-00000-of-00003, and one of them is not there that is of the
  pattern."""
  sets: dict[tuple[str, ...], dict[int, str]] = {}
  for path in found:
    folder, name = os.path.split(path)
    if shard := _SHARD.fullmatch(name):
      of_set = (folder, shard["before"], shard["of"], shard["count"], "-…" if shard["hash"] else "", shard["after"])
      sets.setdefault(of_set, {})[int(shard["number"])] = name
  for (folder, before, of, count, any_hash, after), there in sets.items():
    if len(there) == 1 and f"{before}{min(there):0{len(count)}}{of}" not in there[min(there)]:
      continue  # week-1-of-2019
    first = int(min(there) > 0 and int(count) in there)  # Some count from 1.
    for number in range(first, int(count) + first):
      one = f"{before}{number:0{len(count)}}{of}{count}{any_hash}{after}"
      like = one.replace("-…", "-" + 16 * "0")
      if number not in there and fnmatch.fnmatchcase(like, pattern):
        raise InputError(f"{os.path.join(folder, one)}: no such file, but {there[min(there)]} says that there are "
                         f"{int(count)}; fetch it, or name the files that are meant")
