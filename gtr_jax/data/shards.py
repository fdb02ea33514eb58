"""JSON lines -> globally shuffled TFRecord shards, written once and kept under a hash of what they were made from.

A training pipeline that reads JSON needs a Python function inside tf.data, and such a pipeline's state cannot be saved;
a pipeline that shuffles in memory has a state of the buffer's size. So both are done here, once.
"""

import functools
import gzip
import hashlib
import itertools
import json
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf
from etils import epath
from tqdm import tqdm

from gtr_jax.data import root
from gtr_jax.errors import InputError

_FORMAT = 1  # Part of the hash: raise it when the records change.
_SEED = 0
_SHARD_BYTES = 32 << 20  # One shard is shuffled in memory at a time.
_MIN_SHARDS, _MAX_SHARDS = 64, 1024

# What a record holds. Lists are empty where an example has none; ids are empty where the task has none.
TEXTS = ("example_id", "query", "passage", "query_id", "passage_id")
LISTS = ("negatives", "negative_ids", "negative_queries")


class Fields(NamedTuple):
  """Which fields of a source hold what; several names are joined with a space. None: the source has no such field."""

  query: tuple[str, ...]
  passage: tuple[str, ...]
  negatives: str | None = None
  negative_queries: str | None = None
  query_id: str | None = None
  passage_id: str | None = None
  negative_ids: str | None = None


class Shards(NamedTuple):
  files: list[str]
  num_examples: int


def shards_of(paths: Sequence[epath.Path], fields: Fields) -> Shards:
  """The shards made from these JSONL(.gz) files; makes them if they are not there yet.

  Raises:
    InputError: a line is not a JSON object, lacks a field, or has an empty query or passage; names file and line.
  """
  digest = hashlib.sha256(json.dumps([_FORMAT, _SEED, fields]).encode())
  size = 0
  for path in paths:
    stat = path.stat()
    size += stat.length * (4 if path.name.endswith(".gz") else 1)
    digest.update(f"{_short(path)} {_content_hash(os.fspath(path), stat.length, stat.mtime)}\n".encode())
  folder = root.data_dir() / "cache" / digest.hexdigest()[:32]
  for _ in range(3):  # Another process may just be replacing what this one has written.
    if (done := _complete(folder)) is not None:
      return done
    _write(paths, fields, folder, num_shards=min(_MAX_SHARDS, max(_MIN_SHARDS, size // _SHARD_BYTES)))
  if (done := _complete(folder)) is None:
    raise InputError(f"{folder}: does not hold what was written there; remove it, or choose another data folder")
  return done


@functools.lru_cache(maxsize=1024)
def _content_hash(path: str, length: int, mtime: float) -> str:
  """Of a file's bytes; not computed again in this process while length and time stay."""
  digest = hashlib.sha256()
  with epath.Path(path).open("rb") as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def _complete(folder: epath.Path) -> Shards | None:
  """The shards in `folder`, or None unless each file that its manifest names is there in full."""
  manifest = folder / "manifest.json"
  if not manifest.exists():
    return None
  manifest = json.loads(manifest.read_text())
  files = [folder / name for name in manifest["files"]]
  if any(not f.exists() or f.stat().length != n for f, n in zip(files, manifest["files"].values(), strict=True)):
    return None
  return Shards([os.fspath(f) for f in files], manifest["examples"])


def _write(paths, fields, folder, num_shards):
  """Deals the examples to shards at random, then shuffles shard by shard: any order of all examples can come out."""
  new = folder.parent / f"{folder.name}.{uuid.uuid4().hex}.tmp"
  new.mkdir(parents=True)
  try:
    rng = random.Random(_SEED)
    dealt = [os.fspath(new / f"dealt-{i:05d}") for i in range(num_shards)]
    writers = [tf.io.TFRecordWriter(path) for path in dealt]
    counts, order = [0] * num_shards, []
    for example in read_jsonl(paths, fields):
      order = order or rng.sample(range(num_shards), num_shards)  # Shards of equal size, to within one.
      shard = order.pop()
      writers[shard].write(_serialize(example))
      counts[shard] += 1
    for writer in writers:
      writer.close()
    if not any(counts):
      raise InputError(f"{paths[0]}: no example in it")
    filled = [(path, count) for path, count in zip(dealt, counts, strict=True) if count]
    files, records = {}, tf.data.TFRecordDataset([path for path, _ in filled]).as_numpy_iterator()
    for path, count in filled:
      shard = list(itertools.islice(records, count))
      rng.shuffle(shard)
      name = f"examples-{len(files):05d}.tfrecord"
      with tf.io.TFRecordWriter(os.fspath(new / name)) as writer:
        for record in shard:
          writer.write(record)
      files[name] = (new / name).stat().length
      epath.Path(path).unlink()
    for path, count in zip(dealt, counts, strict=True):
      if not count:
        epath.Path(path).unlink()
    sources = [os.fspath(p) for p in paths]
    (new / "manifest.json").write_text(
        json.dumps({"sources": sources, "fields": fields._asdict(), "examples": sum(counts), "files": files}, indent=1))
    _move(new, folder)
  finally:
    if new.exists():
      new.rmtree()


def _move(new: epath.Path, folder: epath.Path) -> None:
  """Renames, where other processes may do so at once: any of theirs will do, for they are equal."""
  for last_try in (False, False, False, True):
    try:
      new.rename(folder)
      return
    except (OSError, tf.errors.OpError):
      if _complete(folder) is not None:
        return
      if last_try:
        raise
    aside = folder.parent / f"{folder.name}.{uuid.uuid4().hex}.tmp"  # What is there is not whole, and of no use.
    try:
      folder.rename(aside)
    except (OSError, tf.errors.OpError):
      continue  # Another process has just done so.
    aside.rmtree()


def _serialize(example: dict) -> bytes:
  feature = {}
  for name in TEXTS + LISTS:
    values = example[name] if name in LISTS else [example[name]]
    feature[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def read_jsonl(paths: Sequence[epath.Path], fields: Fields) -> Iterator[dict]:
  """The examples of JSONL(.gz) files, as `TEXTS` and `LISTS` name them. Raises InputError with file and line."""
  for path in paths:
    with path.open("rb") as raw:
      total = path.stat().length
      lines = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
      with tqdm(total=total, desc=f"shuffle {path.name}", unit="B", unit_scale=True, leave=False, delay=1) as bar:
        number = 0
        try:
          for number, line in enumerate(lines, 1):
            if number % 1000 == 0:
              bar.update(raw.tell() - bar.n)
            if line.strip():
              yield _example(line, fields, f"{path}:{number}", f"{_short(path)}:{number}")
        except (EOFError, gzip.BadGzipFile) as e:
          raise InputError(f"{path}:{number + 1}: not a whole gzip file ({e}); fetch it again") from e


def _short(path: epath.Path) -> str:
  """The path below the data root, or else the file's name."""
  return os.fspath(path.relative_to(root.data_dir())) if path.is_relative_to(root.data_dir()) else path.name


def _example(line: bytes, fields: Fields, where: str, example_id: str) -> dict:
  try:
    row = json.loads(line)
  except ValueError as e:  # Also what is not UTF-8.
    raise InputError(f"{where}: not JSON ({e}); correct or remove the line") from e
  if not isinstance(row, dict):
    raise InputError(f"{where}: not a JSON object; correct or remove the line")

  def get(name):
    if name not in row:
      raise InputError(f"{where}: no field {name!r}, only {', '.join(map(repr, row)) or 'an empty object'}; correct "
                       "the line, or the fields that the task declares")
    return row[name]

  def text(values, what, names):
    for value, name in zip(values, names, strict=True):
      if not isinstance(value, str):
        raise InputError(f"{where}: field {name!r} is not a string; correct or remove the line")
    joined = " ".join(v.strip() for v in values if v.strip())
    try:
      joined.encode()
    except UnicodeEncodeError as e:
      raise InputError(f"{where}: the {what} is not valid Unicode ({e.reason}); correct or remove the line") from e
    if not joined:
      raise InputError(f"{where}: the {what} (field {' + '.join(names)}) is empty; remove the line")
    return joined

  def listed(name):
    """The value of a field that may hold none, one or many."""
    value = None if name is None else row.get(name)
    return [] if value is None else value if isinstance(value, list) else [value]

  negatives, negative_ids = [], [str(i) for i in listed(fields.negative_ids)]
  for negative in listed(fields.negatives):
    if isinstance(negative, dict):  # A passage like the positive one, with its own title, text and id.
      missing = [name for name in fields.passage if name not in negative]
      if missing:
        raise InputError(f"{where}: a negative has no field {missing[0]!r}; correct the line")
      negatives.append(text([negative[name] for name in fields.passage], "negative", fields.passage))
      if fields.passage_id in negative:
        negative_ids.append(str(negative[fields.passage_id]))
    else:
      negatives.append(text([negative], "negative", [fields.negatives]))
  if negative_ids and len(negative_ids) != len(negatives):
    raise InputError(f"{where}: {len(negative_ids)} ids for {len(negatives)} negatives; correct the line")
  return {
      "example_id": example_id,
      "query": text([get(name) for name in fields.query], "query", fields.query),
      "passage": text([get(name) for name in fields.passage], "passage", fields.passage),
      "query_id": str(get(fields.query_id)) if fields.query_id else "",
      "passage_id": str(get(fields.passage_id)) if fields.passage_id else "",
      "negatives": negatives,
      "negative_ids": negative_ids,
      "negative_queries": [text([q], "negative query", [fields.negative_queries])
                           for q in listed(fields.negative_queries)],
  }


def record_description() -> dict[str, tf.io.FixedLenFeature | tf.io.RaggedFeature]:
  """How `tf.io.parse_single_example` reads a record."""
  return {name: tf.io.FixedLenFeature([], tf.string) for name in TEXTS} | {
      name: tf.io.RaggedFeature(tf.string) for name in LISTS}
