"""What a folder of prepared data says of itself: manifest.json, dropped.jsonl and README.md."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypedDict

from etils import epath

from gtr_jax import __version__
from gtr_jax.errors import InputError
from gtr_jax.io import data_root, lines
from gtr_jax.io.atomic import write_json, write_text
from gtr_jax.io.contents import content_hash
from gtr_jax.io.json_file import check_json, read_json
from gtr_jax.io.lines import Part
from gtr_jax.prepare import card, decontaminate, records, transforms
from gtr_jax.prepare.interface import ALWAYS_MAY_BE_BROKEN, Counts, RetryableError, Source
from gtr_jax.text import language
from gtr_jax.values.check import wrong
from gtr_jax.values.ranges import Range

FORMAT = 12  # Raise it when records, their order, what makes two of them equal, or the manifest change.
SPLITS = ("train", "validation")
_NOT_OF_PARTS = ("name", "without", "decontaminate", "near_duplicates")  # What is read does not depend on them by name.
_SHOWN, _WIDTH = 3, 60  # Files or lines, and characters of a setting, in a message.
_NAME = re.compile(r"[\w-][\w.-]*")


_Count = Annotated[int, Range(0)]


class _Manifest(TypedDict):
  """What is read of one."""

  counts: Mapping[str, _Count]
  broken_places: list[str]
  examples: Mapping[str, _Count]
  splits: Mapping[str, Mapping[str, _Count]]
  filters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides the prepared data beside the source.

  Args:
    name: of the folder; None: the source's.
    validation_share: the share of the queries whose examples become the validation split.
    without: names of prepared data; pairs of theirs are dropped.
    decontaminate: folders of collections; examples with what these test are dropped.
    near_duplicates: whether pairs that are nearly the same as another are dropped (`near_pairs`).
    language: examples with a query or passage in another one are dropped (`text.language`); "any": none.
  """

  name: str | None = None
  validation_share: float = 0.0
  without: tuple[str, ...] = ()
  decontaminate: tuple[str, ...] = ()
  near_duplicates: bool = False
  language: str = language.ANY

  def __post_init__(self):
    if not 0 <= self.validation_share < 1:
      raise InputError(f"--validation_share {self.validation_share}: give a number from 0 to below 1")
    if self.name is not None:
      check_name(self.name)
    language.check(self.language)


def check_name(name: str) -> None:
  """Raises InputError where it is no name of prepared data."""
  if not _NAME.fullmatch(name):
    raise InputError(f"--name {name}: give a name of letters, digits, -, _ and . for a folder in the data root")


def describe(source: Source, settings: Settings) -> dict[str, Any]:
  """All that decides the result; "fingerprint" is its hash. Raises InputError where an input is missing."""
  name = settings.name or source.name
  check_name(name)
  parts = source.parts()
  files = list(dict.fromkeys(part.path for part in parts))
  of_collections = {path: os.path.basename(collection.rstrip("/")) for collection in settings.decontaminate
                    for path in decontaminate.files_of(collection)}
  inputs = [*files, *of_collections]
  for other in settings.without:
    if other == name:
      raise InputError(f"--without {name}: that is what is to be prepared; give another --name")
    inputs.append(os.fspath(data_root.resolve(other) / "manifest.json"))
    shards(other)
  filters = {"source": type(source).__name__} | dataclasses.asdict(source) | dataclasses.asdict(settings)
  filters["name"] = name
  described = [{"name": os.path.basename(path), "bytes": lines.size_of(path), "sha256": content_hash(epath.Path(path))}
               | ({"collection": of_collections[path]} if path in of_collections else {}) for path in inputs]
  description = {"format": FORMAT, "gtr_jax": __version__, "filters": dict(filters), "inputs": described,
                 "licence": source.licence}
  # Of content alone: data that have moved, or have only been touched, are the same.
  others = [read(other)["fingerprint"] for other in settings.without]
  filters |= {"without": others, "decontaminate": len(settings.decontaminate)}
  filters["language"] = language.identity(settings.language)
  whole = [FORMAT, __version__, _by_content(filters),
           [of["sha256"] for of in described[:len(inputs) - len(others)]],
           [_by_content([part.path, *part[1:]]) for part in parts]]
  digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode())
  return json.loads(json.dumps(description | {"fingerprint": digest.hexdigest()}, default=str))


def part_keys(source: Source, settings: Settings, parts: Sequence[transforms.Shard | Part]) -> list[str]:
  """For each part a hash of all that decides what is read of it: the source's fields but for those that only list its
  files, other settings, and the content of that part; no path, time or number."""
  fields = {name: value for name, value in dataclasses.asdict(source).items() if name not in ("name", *source.listed)}
  tested = [[path.split("/")[-2:], content_hash(epath.Path(path))]  # Their names are in what dropped.jsonl says.
            for collection in settings.decontaminate for path in decontaminate.files_of(collection)]
  others = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NOT_OF_PARTS}
  common = [FORMAT, __version__, type(source).__name__, _by_content(fields), others,
            language.identity(settings.language), tested]

  def content(part: transforms.Shard | Part) -> list[Any]:
    if isinstance(part, transforms.Shard):
      return [part.name, read(part.name)["fingerprint"], os.path.basename(part.path)]
    # The endings of its name say how a file is read.
    return [content_hash(epath.Path(part.path)), pathlib.PurePath(part.path).suffixes, *part[1:]]

  return [hashlib.sha256(json.dumps([common, content(part)], sort_keys=True, default=str).encode()).hexdigest()[:32]
          for part in parts]


def _by_content(value: Any) -> Any:
  """The same with a hash of what is in a file in the place of its path."""
  if isinstance(value, Mapping):
    return {name: _by_content(of) for name, of in value.items() if name != "cache"}
  if isinstance(value, list | tuple):
    return list(map(_by_content, value))
  if isinstance(value, str) and value and (os.path.isfile(value) or "://" in value and epath.Path(value).is_file()):
    return content_hash(epath.Path(value))
  return value


def is_there(folder: epath.Path, description: Mapping[str, Any], max_broken: float) -> bool:
  """Whether that very preparation is in the folder. Raises InputError where something else is, or of that more lines
  are broken than may be."""
  if not folder.exists():
    return False
  manifest = folder / "manifest.json"
  if not manifest.exists():
    if "://" in os.fspath(folder):
      return False  # An interrupted copy; the manifest comes last.
    raise InputError(f"{folder} is there, but holds no prepared data; give another --name")
  there = read_json(manifest, dict, f"remove {folder}, or give another --name")
  if there.get("fingerprint") == description["fingerprint"]:
    check_json(manifest, there, _Manifest, f"remove {folder}, or give another --name")
    counts = Counts()
    counts.update(there["counts"], there["broken_places"])
    check_broken(counts, max_broken)
    _check_sizes(folder, there["splits"], f"remove {folder}, and prepare it again")
    return True
  raise InputError(f"{folder} holds what was prepared from other files or settings, or before one of the files "
                   f"changed{_differences(there, description)}; remove it, or give another --name")


class _Input(TypedDict):
  name: str
  sha256: str


class _Described(TypedDict):
  inputs: list[_Input]
  filters: dict[str, Any]


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  """What two descriptions differ in, in words; "" where they do not say it."""
  if (there.get("format"), there.get("gtr_jax")) != (now["format"], now["gtr_jax"]):
    return f": by gtr_jax {there.get('gtr_jax')}, in format {there.get('format')}, which is now {now['format']}"
  if any(True for _ in wrong(there, _Described)):
    return ""
  found = list[str]()
  before, after = ([(f"{of.get('collection', '')} {of['name']}".strip(), of["sha256"]) for of in side["inputs"]]
                   for side in (there, now))
  gone, new = ([name for name, sha256 in one if (name, sha256) not in other]
               for one, other in ((before, after), (after, before)))
  changed = [name for name in gone if name in new]
  for what, names in (("has changed", changed), ("is new", [name for name in new if name not in changed]),
                      ("is not among them any more", [name for name in gone if name not in changed])):
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    found += [f"{', '.join(names[:_SHOWN])}{more} {what}"] * bool(names)
  if not found and before != after:
    found.append("the same files in another order, by which of equal pairs the first is kept")
  settings = there["filters"]
  inputs = {of["name"] for of in (*there["inputs"], *now["inputs"])}
  for name, value in now["filters"].items():
    was = settings.get(name)
    if was != value and not (_has_path(was, inputs) or _has_path(value, inputs)):
      found.append(f"{name} was {json.dumps(was)[:_WIDTH]}, and is {json.dumps(value)[:_WIDTH]}")
  return f": {'; '.join(found)}" if found else ""


def _has_path(value: Any, names: Collection[str]) -> bool:
  """Whether a setting is of files: these are told apart by what is in them."""
  return any(isinstance(of, str) and ("/" in of or of in names or os.path.exists(of)) for of in (
      value if isinstance(value, list) else [value]))


def _check_sizes(folder: epath.Path, splits: Mapping[str, Mapping[str, int]], hint: str) -> None:
  """Raises InputError where a file is missing or cut off."""
  for files in splits.values():
    for file, size in files.items():
      if not (folder / file).exists() or (folder / file).stat().length != size:
        raise InputError(f"{folder / file}: missing, or not of the {size:,} bytes in the manifest; {hint}")


def read(name: str, prepare: str | None = None) -> dict[str, Any]:
  """The manifest of prepared data below the data root, or of a folder's full path.

  Raises:
    InputError: it is not there, or a file of it is missing or cut off.
  """
  folder = data_root.resolve(name)
  hint = f"run: {prepare or f'gtr-jax prepare … --name {name}'}"
  path = folder / "manifest.json"
  if not path.exists():
    raise InputError(f"{folder}: no prepared data there; {hint}")
  return _read(folder, path.stat().mtime, hint)


@functools.lru_cache(maxsize=64)
def _read(folder: epath.Path, mtime: float, hint: str) -> dict[str, Any]:
  """Looked at once in a process while the manifest stays: there may be thousands of files, and far away."""
  path = folder / "manifest.json"
  manifest = read_json(path, dict, f"remove {folder}, then {hint}")
  if manifest.get("format") != FORMAT:
    raise InputError(f"{folder}: not prepared data of this version of gtr_jax; remove it, then {hint}")
  check_json(path, manifest, _Manifest, f"remove {folder}, then {hint}")
  _check_sizes(folder, manifest["splits"], f"remove {folder}, then {hint}")
  return manifest


def records_of(name: str, split: str) -> Iterator[bytes]:
  """The records of a split, none where it is not there, in their order. Raises InputError as `read` does, and where a
  file is damaged."""
  folder = data_root.resolve(name)
  for file in read(name)["splits"].get(split, ()):
    yield from records.records_in(folder / file)


def shards(name: str) -> list[transforms.Shard]:
  """All files of prepared data. Raises InputError as `read` does."""
  return [transforms.Shard(name, os.fspath(data_root.resolve(name) / file))
          for files in read(name)["splits"].values() for file in files]


def shard_name(split: str, number: int, count: int) -> str:
  """As TensorFlow Datasets names them."""
  return f"{split}-{number:05d}-of-{count:05d}.tfrecord"


def check_broken(counts: Counts, max_broken: float) -> None:
  """Raises InputError where more lines are broken than may be; a `RetryableError` where most are not."""
  broken, read = counts.reasons["broken"], counts.reasons["read"]
  if broken > max(ALWAYS_MAY_BE_BROKEN, max_broken * read):
    error = RetryableError if broken < read / 2 else InputError
    raise error(f"{broken:,} of {read:,} lines are broken, more than a share of {max_broken:g}; the first: "
                f"{counts.places[0]}; mend the files, or let gtr-jax prepare leave more out (--max_broken)")


def write(folder: os.PathLike, description: Mapping[str, Any], tally: transforms.Tally,
          splits: Mapping[str, Mapping[str, int]]) -> None:
  """Writes dropped.jsonl and README.md (`card`), then manifest.json, beside the shards, which are there.

  Raises:
    InputError: there is nothing to train on.
  """
  reasons = dict(sorted(tally.reasons.items()))
  examples = {split: reasons[f"written_{split}"] for split in SPLITS if f"written_{split}" in reasons}
  if "train" not in examples:
    counted = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items()) or "nothing was read"
    left = "is left to train on" if examples else "is left"
    first = f"; the first broken ones: {' | '.join(tally.places[:_SHOWN])}" * bool(tally.places)
    raise InputError(f"no example {left} ({counted}{first}); are these the right files and settings?")
  new = epath.Path(folder)
  write_text(new / "dropped.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tally.dropped))
  counts = {name: n for name, n in reasons.items() if not name.startswith("written_")}
  counts |= {"read": counts.get("read", 0), "broken": counts.get("broken", 0), "written": sum(examples.values())}
  manifest = dict(description) | {"counts": counts, "broken_places": tally.places, "examples": examples,
                                  "splits": {split: splits[split] for split in examples}}
  write_whole(new, manifest)


def write_whole(folder: epath.Path, manifest: Mapping[str, Any]) -> None:
  """Writes README.md (`card`), then manifest.json, beside all else that is there."""
  write_text(folder / "README.md", card.text(manifest, _first_records(folder, manifest["splits"]["train"])))
  write_json(folder / "manifest.json", manifest)


def _first_records(folder: epath.Path, files: Iterable[str]) -> list[bytes]:
  """Of shards, whose order is a random one."""
  found: list[bytes] = []
  for file in files:
    with (folder / file).open("rb") as f:
      found += itertools.islice(records.read_records(f, file), card.EXAMPLES - len(found))
    if len(found) == card.EXAMPLES:
      break
  return found
