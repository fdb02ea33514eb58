"""Globally shuffled TFRecord shards, of JSON lines and other sources: written once, under a hash of their content.

Training reads any record by its number, and takes the order on disk for a random one.
"""

import functools
import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, jsonl, lines
from gtr_jax.io.bars import Bar

_FORMAT = 2  # Part of the hash: raise it when the records change.
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
  """The shards made from these JSONL files; makes them if they are not there yet.

  Raises:
    InputError: a line is not a JSON object, lacks a field, or has an empty query or passage; names file and line.
  """
  digest = [f"{_short(path)} {content_hash(path)}" for path in paths]
  size = sum(lines.size_of(path) * (4 if lines.is_compressed(path) else 1) for path in paths)
  return written_once([fields, *digest], lambda: map(serialize, read_examples(paths, fields)), size,
                      {"sources": [os.fspath(p) for p in paths], "fields": fields._asdict()})


def written_once(made_of: Any, records: Callable[[], Iterable[bytes]], size: int, described: dict[str, Any]) -> Shards:
  """Shuffled TFRecord shards of some records; writes them if they are not there yet.

  Args:
    made_of: all that decides the records, JSON.
    records: gives them.
    size: of all of them, about, in bytes.
    described: what people may want to know, for the manifest: "sources", and more.

  Raises:
    InputError: there is no record.
  """
  digest = hashlib.sha256(json.dumps([_FORMAT, _SEED, made_of]).encode()).hexdigest()
  folder = data_root.data_dir() / "cache" / digest[:32]
  for _ in range(3):  # Another process may just be replacing what this one has written.
    if (done := _complete(folder)) is not None:
      return done
    _write(records, described, folder, num_shards=min(_MAX_SHARDS, max(_MIN_SHARDS, size // _SHARD_BYTES)))
  if (done := _complete(folder)) is None:
    raise InputError(f"{folder}: does not hold what was written there; remove it, or choose another data folder")
  return done


def content_hash(path: epath.Path) -> str:
  """Of a file's bytes, hex."""
  stat = path.stat()
  return _content_hash(os.fspath(path), stat.length, stat.mtime)


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
  path = folder / "manifest.json"
  if not path.exists():
    return None
  try:
    manifest = jsonl.parse(path.read_bytes())
    files = {folder / name: size for name, size in manifest["files"].items()}
    examples = manifest["examples"]
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
  if any(not f.exists() or f.stat().length != size for f, size in files.items()):
    return None
  return Shards([os.fspath(f) for f in files], examples)


def _write(records, described, folder, num_shards):
  """Deals the examples to shards at random, then shuffles shard by shard: any order of all examples can come out."""
  if folder.exists():  # Of ours, and not whole: of no use.
    atomic.set_aside_and_remove(folder)
  with atomic.new_folder(folder, same=lambda: _complete(folder) is not None) as new:
    rng = random.Random(_SEED)
    dealt = [os.fspath(new / f"dealt-{i:05d}") for i in range(num_shards)]
    writers = [tf.io.TFRecordWriter(path) for path in dealt]
    counts, order = [0] * num_shards, list[int]()
    for record in records():
      order = order or rng.sample(range(num_shards), num_shards)  # Shards of equal size, to within one.
      shard = order.pop()
      writers[shard].write(record)
      counts[shard] += 1
    for writer in writers:
      writer.close()
    if not any(counts):
      raise InputError(f"{described['sources'][0]}: no example in it")
    filled = [(path, count) for path, count in zip(dealt, counts, strict=True) if count]
    files: dict[str, int] = {}
    written = tf.data.TFRecordDataset([path for path, _ in filled]).as_numpy_iterator()
    for path, count in filled:
      of_shard = list(itertools.islice(written, count))
      rng.shuffle(of_shard)
      name = f"examples-{len(files):05d}.tfrecord"
      with tf.io.TFRecordWriter(os.fspath(new / name)) as writer:
        for record in of_shard:
          writer.write(record)
      files[name] = (new / name).stat().length
      epath.Path(path).unlink()
    for path, count in zip(dealt, counts, strict=True):
      if not count:
        epath.Path(path).unlink()
    atomic.write_json(new / "manifest.json", described | {"examples": sum(counts), "files": files})


def serialize(example: dict) -> bytes:
  """A record of an example, as `TEXTS` and `LISTS` name its fields."""
  feature = {}
  for name in TEXTS + LISTS:
    values = example[name] if name in LISTS else [example[name]]
    feature[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def read_examples(paths: Sequence[epath.Path], fields: Fields) -> Iterator[dict]:
  """The examples of JSONL files, plain or compressed, as `TEXTS` and `LISTS` name them.

  Raises InputError with file and line.
  """
  without = {name for name in (fields.query_id, fields.passage_id) if name is not None}  # of all lines so far
  for path in paths:
    with (Bar(lines.size_of(path), f"shuffle {path.name}", "B", leave=False, delay=1) as bar,
          lines.on_bytes(bar.update)):
      for place, row, _ in jsonl.read_objects(path):
        try:
          yield _example(row, fields, f"{_short(path)}:{place.rpartition(':')[2]}")
        except ValueError as e:
          raise InputError(f"{place}: {e}; correct or remove the line") from e
        without -= row.keys()
  if without:
    raise InputError(f"{', '.join(map(os.fspath, paths))}: no line has a {min(without)!r}, which the task declares; "
                     "name the field of the ids, or leave it out")


def _short(path: epath.Path) -> str:
  """The path below the data root, or else the file's name."""
  return os.fspath(path.relative_to(data_root.data_dir())) if path.is_relative_to(data_root.data_dir()) else path.name


def _example(row: dict, fields: Fields, example_id: str) -> dict:
  """Raises ValueError, in words."""

  def there(name):
    if name not in row:
      raise ValueError(f"no field {name!r}, which the task declares, only {', '.join(map(repr, row)) or 'nothing'}")
    return row[name]

  def text(values, what, names):
    if len(values) > 1:  # A title may be null where there is none.
      values = ["" if value is None else value for value in values]
    for value, name in zip(values, names, strict=True):
      if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {jsonl.kind_of(value)}, not a string")
    joined = " ".join(v.strip() for v in values if v.strip())
    try:
      joined.encode()
    except UnicodeEncodeError as e:
      raise ValueError(f"the {what} is not valid Unicode ({e.reason})") from e
    if not joined:
      raise ValueError(f"the {what} (field {' + '.join(names)}) is empty")
    return joined

  def identifier(value, name):
    try:
      return jsonl.identifier(value)
    except ValueError as e:
      raise ValueError(f"field {name!r}: {e}") from e

  def listed(name):
    """The value of a field that may hold none, one or many."""
    value = None if name is None else row.get(name)
    return [] if value is None else value if isinstance(value, list) else [value]

  negatives, negative_ids = [], [identifier(i, fields.negative_ids) for i in listed(fields.negative_ids)]
  for negative in listed(fields.negatives):
    if isinstance(negative, dict):  # A passage like the positive one, with its own title, text and id.
      missing = [name for name in fields.passage if name not in negative]
      if missing:
        raise ValueError(f"a negative has no field {missing[0]!r}")
      negatives.append(text([negative[name] for name in fields.passage], "negative", fields.passage))
      if fields.passage_id in negative:
        negative_ids.append(identifier(negative[fields.passage_id], fields.passage_id))
    else:
      negatives.append(text([negative], "negative", [fields.negatives]))
  if negative_ids and len(negative_ids) != len(negatives):
    raise ValueError(f"{len(negative_ids)} ids for {len(negatives)} negatives")
  return {
      "example_id": example_id,
      "query": text([there(name) for name in fields.query], "query", fields.query),
      "passage": text([there(name) for name in fields.passage], "passage", fields.passage),
      "query_id": identifier(row.get(fields.query_id), fields.query_id),
      "passage_id": identifier(row.get(fields.passage_id), fields.passage_id),
      "negatives": negatives,
      "negative_ids": negative_ids,
      "negative_queries": [text([q], "negative query", [fields.negative_queries])
                           for q in listed(fields.negative_queries)],
  }


def record_description() -> dict[str, tf.io.FixedLenFeature | tf.io.RaggedFeature]:
  """How `tf.io.parse_single_example` reads a record."""
  return {name: tf.io.FixedLenFeature([], tf.string) for name in TEXTS} | {
      name: tf.io.RaggedFeature(tf.string) for name in LISTS}
