"""Globally shuffled TFRecord shards, of JSON lines and other sources: written once, under a hash of their content.

Training reads any record by its number, and takes the order on disk for a random one. Parts of the input are read by
all cores; each record goes to the bucket of a hash, a pair's to that of its query, where it learns of the query's other
pairs, and a bucket, in the order of other hashes, is a shard.
TensorFlow is not imported, for it would cost every worker four seconds.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from gtr_jax.data import json_examples, tfrecord_examples
from gtr_jax.data.json_examples import Fields
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, jsonl, lines
from gtr_jax.io.bars import Bar
from gtr_jax.io.contents import content_hash
from gtr_jax.io.json_file import read_json
from gtr_jax.io.paths import is_remote
from gtr_jax.prepare import buckets, records, transforms, workers
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.of_queries import most_positives, right_negatives
from gtr_jax.text.same_text import folded

_FORMAT = 8  # Part of the hash: raise it when the records change, or their order.
_SHARD_BYTES = 32 << 20
_MIN_SHARDS, _MAX_SHARDS = 64, 1024
_FEW_BYTES = 4 << 20  # Are read by this process alone: others would take longer to begin.

# What a record holds. Lists are empty where an example has none; ids are empty where the task has none; keys are what
# equal texts share, as int64 in decimal.
TEXTS = ("example_id", "query", "passage", "query_id", "passage_id", "query_key", "passage_key")
LISTS = ("negatives", "negative_ids", "negative_queries", "negative_keys", "positives", "scores", "vectors")

Read = Callable[[Any], Generator[tuple[bytes, bytes], None, list[str]]]


class Shards(NamedTuple):
  files: list[str]
  num_examples: int
  most_positives: int = 0


def shards_of(paths: Sequence[epath.Path], fields: Fields, are_lines: bool) -> Shards:
  """The shards made from these files of JSON lines, or of TFRecord; makes them if they are not there yet.

  Raises:
    InputError: a line is not a JSON object, lacks a field, or has an empty query or passage; names file and line.
  """
  names = {os.fspath(path): _short(path) for path in paths}
  made_of = [fields, *(f"{name} {content_hash(epath.Path(path))}" for path, name in names.items())]
  size = sum(lines.size_of(path) * (4 if lines.is_compressed(path) else 1) for path in paths)

  def check(without: list[list[str]]) -> None:
    if missing := set.intersection(*map(set, without)):
      raise InputError(f"{', '.join(names)}: none has a {min(missing)!r}, which the task declares; name the field "
                       "of the ids, or leave it out")

  parts = functools.partial(lines.numbered_parts if are_lines else _whole, paths)
  return written_once(made_of, parts, functools.partial(_records, fields, names, are_lines), size,
                      {"sources": list(names), "fields": fields._asdict()}, check)


def _whole(paths: Sequence[epath.Path]) -> list[lines.Part]:
  return [lines.Part(os.fspath(path)) for path in paths]


def _records(fields: Fields, names: Mapping[str, str], are_lines: bool,
             part: lines.Part) -> Generator[tuple[bytes, bytes], None, list[str]]:
  read = json_examples.read_examples if are_lines else tfrecord_examples.read_examples
  examples = read(part, fields)
  while True:
    try:
      place, example = next(examples)
    except StopIteration as end:
      return end.value
    yield pair(example, f"{names[part.path]}:{place.rpartition(':')[2]}")


def pair(example: Example, example_id: str) -> tuple[bytes, bytes]:
  """What a `Read` of pairs yields: the digest of the pair, and the record, empty where the query is its own passage."""
  query, passage = folded(example.query), folded(example.passage)
  digest = records.digest_of(*(text.encode(errors="surrogatepass") for text in (query, passage)))
  if query == passage:
    return digest, b""
  return digest, records.serialize(right_negatives(example, query, passage, Counts()), example_id)


@dataclasses.dataclass(frozen=True)
class _Job:
  """What a worker knows."""

  read: Read | None
  parts: Sequence[Any]
  work: str
  folder: str
  shards: int
  data_dir: str
  are_pairs: bool

  def dealt(self) -> list[str]:
    return [f"{self.work}/{number:06d}.dealt" for number in range(len(self.parts))]


def written_once(made_of: Any, parts: Callable[[], Sequence[Any]], read: Read, size: int, described: dict[str, Any],
                 check: Callable[[list[list[str]]], None] = lambda ends: None, are_pairs: bool = True) -> Shards:
  """Shuffled TFRecord shards of some records; writes them if they are not there yet.

  Args:
    made_of: all that decides the records, JSON.
    parts: gives what can be read at the same time.
    read: of a part, its records, with 16 bytes of a hash each; in other processes where there are several and much to
      read.
    size: of all records, about, in bytes.
    described: what people may want to know, for the manifest: "sources", and more.
    check: gets what `read` has returned of each part, and raises InputError.
    are_pairs: the records and their hashes are those of `pair`.

  Raises:
    InputError: there is no record.
  """
  digest = hashlib.sha256(json.dumps([_FORMAT, made_of]).encode()).hexdigest()
  folder = data_root.data_dir() / "cache" / digest[:32]
  for _ in range(3):  # Another process may just be replacing what this one has written.
    if (done := _complete(folder)) is not None:
      return done
    _write(parts(), read, size, described, check, folder, are_pairs)
  if (done := _complete(folder)) is None:
    raise InputError(f"{folder}: does not hold what was written there; remove it, or choose another data folder")
  return done


def _complete(folder: epath.Path) -> Shards | None:
  """The shards in `folder`, or None unless each file that its manifest names is there in full."""
  path = folder / "manifest.json"
  if not path.exists():
    return None
  try:
    manifest = jsonl.parse(path.read_bytes())
    files = {folder / name: size for name, size in manifest["files"].items()}
    examples, counts = manifest["examples"], manifest["counts"]
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
  if any(not f.exists() or f.stat().length != size for f, size in files.items()):
    return None
  return Shards([os.fspath(f) for f in files], examples, most_positives(counts))


def _write(parts, read, size, described, check, folder, are_pairs):
  """Deals the records to shards, then writes shard by shard."""
  if folder.exists():  # Of ours, and not whole: of no use.
    atomic.set_aside_and_remove(folder)
  processes = 1 if size < _FEW_BYTES else os.cpu_count() or 1
  with (atomic.new_folder(folder, same=lambda: _complete(folder) is not None) as new,
        tempfile.TemporaryDirectory(dir=None if is_remote(new) else new, prefix="dealt-") as work,
        Bar(2 * size, f"shuffle {os.path.basename(described['sources'][0])}", "B", leave=False, delay=1) as bar):
    job = _Job(read, parts, work, os.fspath(new), min(_MAX_SHARDS, max(_MIN_SHARDS, size // _SHARD_BYTES)),
               os.fspath(data_root.data_dir()), are_pairs)
    with lines.on_bytes(bar.update):
      tasks = [workers.Task(number, str(part)) for number, part in enumerate(parts)]
      collections.deque(workers.run(functools.partial(_deal, job), tasks, processes, bar.update), maxlen=0)
      check([_told(f"{path}.json") for path in job.dealt()])
      write = functools.partial(_write_shard, dataclasses.replace(job, read=None, parts=range(len(parts))))
      tasks = [workers.Task(number, f"shard {number}") for number in range(job.shards)]
      collections.deque(workers.run(write, tasks, processes, bar.update), maxlen=0)
    files, counts = sorted(new.glob("examples-*.tfrecord")), collections.Counter[str]()
    if not files:
      raise InputError(f"{described['sources'][0]}: no example in it")
    for number in range(job.shards):
      counts.update(_told(f"{work}/{_shard_name(number)}.json", dict))
    atomic.write_json(new / "manifest.json", described | {
        "examples": counts.pop("examples"), "counts": counts, "files": {
            path.name: path.stat().length for path in files}})


def _told(path: str, kind: Any = list) -> Any:
  return read_json(epath.Path(path), kind, "start it again")


def _deal(job: _Job, task: workers.Task) -> None:
  """In a worker."""
  data_root.set_data_dir(job.data_dir)
  assert job.read is not None
  place, found = job.dealt()[task.number], job.read(job.parts[task.number])
  with buckets.Writer(place, job.shards) as dealt:
    while True:
      try:
        digest, record = next(found)
      except StopIteration as end:
        atomic.write_json(f"{place}.json", end.value or [])
        return
      dealt.add(digest, record)


def _write_shard(job: _Job, task: workers.Task) -> None:
  """In a worker."""
  counts, name = Counts(), _shard_name(task.number)
  read = buckets.read(job.dealt(), task.number, job.shards)
  found = (record for some in read for record in (
      _joined(some, counts) if job.are_pairs else [record for _, record in some]))
  if (first := next(found, None)) is not None:
    with atomic.replacing(f"{job.folder}/{name}.tfrecord") as file:
      for record in itertools.chain([first], found):
        records.write_record(file, record)
        counts.add("examples")
    del counts.reasons["written_train"]  # As many as "examples".
  atomic.write_json(f"{job.work}/{name}.json", counts.reasons)


def _shard_name(number: int) -> str:
  return f"examples-{number:05d}"


def _joined(dealt: list[tuple[bytes, bytes]], counts: Counts) -> list[bytes]:
  """The records of pairs, of those with equal texts one, each knowing of its query's others, as they are prepared."""
  pairs = [(digest, "train", record) for digest, record in dealt if record]
  if len(pairs) < len(dealt):
    counts.drop("query_is_passage", n=len(dealt) - len(pairs))
  return [pair.record for pair in transforms.kept(pairs, counts)]


def _short(path: epath.Path) -> str:
  """The path below the data root, or else the file's name."""
  return os.fspath(path.relative_to(data_root.data_dir())) if path.is_relative_to(data_root.data_dir()) else path.name
