"""All pairs of a mining on disk, and what has to be known of them at once: which passages answer a query, and the
different passages.

The latter are sorted through buckets (`prepare.buckets`), so that memory does not grow with the pairs. What grows is a
few bytes for each different passage: where it lies, and its id.
"""

import array
import functools
import itertools
import json
import marshal
import os
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
import zstandard
from etils import epath

from gtr_jax.collections.corpus import Documents, View, full_text
from gtr_jax.io import atomic, jsonl
from gtr_jax.io.bars import Bar
from gtr_jax.io.line_table import LineTable
from gtr_jax.mining.pairs import Pair
from gtr_jax.parallel import processes
from gtr_jax.prepare import buckets
from gtr_jax.text.near_text import NEAR, runs
from gtr_jax.text.same_text import hash_key, text_key

_BUCKETS = 256
_PAIRS = 256  # Written together.
_LENGTH = struct.Struct("<Q")
_TWO = struct.Struct(">QQ")  # Big-endian: bytes are in the order of the numbers.
_ROWS = 512  # Of a table, that are read at once.
_QUERIES = 1024  # Whose passages' keys are remembered.
_QUERIES_NEAR = 16  # And their texts.
_MOST_NEAR = 10_000  # Texts of a query, to which others may be near: some 10 MB of memory.


class IdRows:
  """Where ids are among many; 16 bytes for each, once one has been asked for.

  Args:
    ids: different ones, which are asked for again where hashes are equal.
  """

  def __init__(self, ids: Sequence[str]):
    self._ids = ids

  @functools.cached_property
  def _table(self) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, and the rows that they are of."""
    keys = np.fromiter(map(hash_key, self._ids), np.uint64, len(self._ids))
    order = np.argsort(keys, kind="stable")
    return keys[order], order

  def get(self, wanted: str | None) -> int | None:
    """The row of an id, None where there is none."""
    if wanted is None:
      return None
    key, (keys, rows) = np.uint64(hash_key(wanted)), self._table
    place = int(np.searchsorted(keys, key))
    while place < len(keys) and keys[place] == key:
      if self._ids[row := int(rows[place])] == wanted:
        return row
      place += 1
    return None


class Table:
  """Numbers by key: rows of two, sorted, on a local disk.

  In memory is the first key of every 512 rows: 1/64 byte for each.
  """

  def __init__(self, path: epath.PathLike):
    self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    weakref.finalize(self, os.close, self._file)
    self._rows = os.fstat(self._file).st_size // _TWO.size
    self._firsts = np.array([struct.unpack(">Q", os.pread(self._file, 8, row * _TWO.size))[0]
                             for row in range(0, self._rows, _ROWS)], np.uint64)
    self.of = functools.lru_cache(_QUERIES)(self._of)

  def _of(self, wanted: int) -> frozenset[int]:
    """The numbers of a key."""
    key, found = np.uint64(wanted), []
    block = max(int(np.searchsorted(self._firsts, key)) - 1, 0)
    while block < len(self._firsts) and self._firsts[block] <= key:
      table = np.frombuffer(os.pread(self._file, _ROWS * _TWO.size, block * _ROWS * _TWO.size), ">u8").reshape(-1, 2)
      start, stop = (np.searchsorted(table[:, 0], key, side) for side in ("left", "right"))
      found += table[start:stop, 1].tolist()
      if stop < len(table):
        break
      block += 1
    return frozenset(found)


class KnownPassages:
  """Which passages answer a query, on a local disk.

  Args:
    keys: a `Table` of (key of a query, key of a passage).
    ids: one of (key of a query's text, key of an id that it shares with other texts).
    places: one of (key of a query, where in `texts` those of its passages begin), of queries that have several.
    texts: lists of texts, behind their length.

  Attributes:
    of: gives the keys of the passages of a query, by its key.
    ids: gives the keys of the ids that a query's text has on any line and shares with others, by its key.
    near: gives what tells whether a text is near one of the passages that some keys of a query have, of up to 10,000 of
      each; None where they have no more than one.
  """

  def __init__(self, keys: epath.PathLike, ids: epath.PathLike, places: epath.PathLike, texts: epath.PathLike):
    self.of, self.ids, self._places = Table(keys).of, Table(ids).of, Table(places)
    self._texts = os.open(texts, os.O_RDONLY | os.O_CLOEXEC)
    weakref.finalize(self, os.close, self._texts)
    self.near = functools.lru_cache(_QUERIES_NEAR)(self._near)

  def _near(self, query_keys: tuple[int, ...]) -> Callable[[str], bool] | None:
    texts = dict[str, None]()
    for place in sorted(place for key in query_keys for place in self._places.of(key)):
      if len(texts) >= _MOST_NEAR:
        break
      length, = _LENGTH.unpack(os.pread(self._texts, _LENGTH.size, place))
      texts |= dict.fromkeys(marshal.loads(os.pread(self._texts, length, place + _LENGTH.size)))
    return near_one_of(list(texts)) if texts else None


def near_one_of(texts: Sequence[str]) -> Callable[[str], bool]:
  """What tells whether a text is near to one of these, as `near_text.are_near`: their runs are looked up together."""
  of_text = [np.fromiter(runs(text), np.uint64) for text in texts]
  counts = np.array([len(found) for found in of_text])
  owners = np.repeat(np.arange(len(texts), dtype=np.int32), counts)
  order = np.argsort(whole := np.concatenate(of_text), kind="stable")
  whole, owners = whole[order], owners[order]

  def is_near(text: str) -> bool:
    own = np.fromiter(runs(text), np.uint64)
    starts, stops = (np.searchsorted(whole, own, side) for side in ("left", "right"))
    there = np.flatnonzero(stops > starts)
    if not len(there):
      return False
    shared = np.bincount(np.concatenate([owners[starts[i]:stops[i]] for i in there]), minlength=len(texts))
    return bool(np.any(shared >= NEAR * np.minimum(counts, len(own))))

  return is_near


class PassagesOfPairs(NamedTuple):
  """The different passages of pairs, in the order in which they come first: those with the same id, or without one the
  same text, are one.

  Attributes:
    documents: whose ids are `passage_key` of each, 16 hexadecimal digits; texts are on disk.
    given_ids: gives by row the id that the pairs have for it, None where they have none.
    have_ids: whether there is one that has.
  """

  documents: Documents
  given_ids: Sequence[str | None]
  have_ids: bool


class Gathered(NamedTuple):
  """All pairs, and what was found out of them.

  Attributes:
    num_pairs: how many there are, those that are none aside.
    pairs: gives these, in their order, with each call.
    known: which passages answer a query, those of pairs that are none but known too.
    passages: the different ones, if they were asked for.
  """

  num_pairs: int
  pairs: Callable[[], Iterator[Pair]]
  known: KnownPassages
  passages: PassagesOfPairs | None


def gather(pairs: Iterable[Pair], folder: epath.Path, own_passages: bool, progress: bool = True) -> Gathered:
  """Reads all pairs, once.

  Args:
    pairs: those that are none too.
    folder: an empty one on a local disk, for the files.
    own_passages: whether the passages are wanted.
    progress: show progress bars on stderr.
  """
  dealt, first, by_id = (os.fspath(folder / f"{name}.buckets") for name in ("known", "first", "by_id"))
  whole, count = folder / "pairs", 0
  with (buckets.Writer(dealt, _BUCKETS) as known, buckets.Writer(first, _BUCKETS) as firsts,
        buckets.Writer(by_id, _BUCKETS) as wordings,
        atomic.replacing(whole) as file,
        Bar(None, "reading the pairs", " pairs", shown=progress and processes.is_first(), leave=False) as bar):
    for number, pair in enumerate(_written(pairs, file)):
      if own_passages and not pair.is_known:
        firsts.add(_TWO.pack(pair.passage_key, number))
      count += _is_one(pair)
      if not pair.is_negative:
        for text, identifier in pair.wordings:
          wordings.add(_TWO.pack(identifier, text))
        of_text = text_key(pair.passage)
        for query_key, passage_key in itertools.product(pair.query_keys, pair.passage_keys):
          known.add(_TWO.pack(query_key, passage_key), *([_encoded(pair.passage)] if passage_key == of_text else []))
      bar.update()
  return Gathered(count, lambda: filter(_is_one, _read(whole)), _known(dealt, _ids(by_id, folder), folder),
                  _passages(whole, first, folder) if own_passages else None)


def _is_one(pair: Pair) -> bool:
  return not pair.is_negative and not pair.is_known


def _encoded(text: str) -> bytes:
  return text.encode(errors="surrogatepass")


def _ids(dealt: str, folder: epath.Path) -> epath.Path:
  """A `Table` of (key of a text, key of its id), of rows the other way round, for ids that have several texts."""
  by_text, table = os.fspath(folder / "by_text.buckets"), folder / "ids"
  with buckets.Writer(by_text, _BUCKETS) as texts:
    different = (digest for digest, _ in itertools.groupby(itertools.chain.from_iterable(_sorted(dealt))))
    for identifier, rows in itertools.groupby(different, lambda digest: digest[:8]):
      of_id = [digest[8:] for digest in rows]
      for text in of_id if len(of_id) > 1 else ():
        texts.add(text + identifier)
  with atomic.replacing(table) as file:
    file.writelines(itertools.chain.from_iterable(_sorted(by_text)))
  for path in (dealt, by_text):
    epath.Path(path).unlink(missing_ok=True)
  return table


def _known(dealt: str, ids: epath.Path, folder: epath.Path) -> KnownPassages:
  """Of rows (key of a query, key of a passage), with the text of the passage where its key is that of its text."""
  keys, places, texts = (folder / name for name in ("known", "places", "texts"))
  with atomic.replacing(keys) as keys_file, atomic.replacing(places) as places_file, atomic.replacing(texts) as file:
    place = 0
    rows = itertools.chain.from_iterable(found for bucket in range(_BUCKETS)
                                         for found in buckets.read([dealt], bucket, _BUCKETS))
    for query_key, of_query in itertools.groupby(rows, lambda row: row[0][:8]):
      several: list[str] = []
      for digest, same in itertools.groupby(of_query, lambda row: row[0]):
        keys_file.write(digest)
        text = next((row[1] for row in same if len(row) > 1), None)
        if text is not None and len(several) < _MOST_NEAR:
          several.append(text.decode(errors="surrogatepass"))
      if len(several) > 1:  # A query's only passage is that of its pair.
        data = marshal.dumps(several)
        places_file.write(query_key + place.to_bytes(8))
        place += file.write(_LENGTH.pack(len(data)) + data)
  epath.Path(dealt).unlink(missing_ok=True)
  return KnownPassages(keys, ids, places, texts)


def _written(pairs: Iterable[Pair], file: IO[bytes]) -> Iterator[Pair]:
  """The pairs, on their way into a file: some at a time, as marshal has them, compressed, after their length."""
  compressor, pairs = zstandard.ZstdCompressor(level=1), iter(pairs)
  while some := list(itertools.islice(pairs, _PAIRS)):
    data = compressor.compress(marshal.dumps(list(map(tuple, some))))
    file.write(_LENGTH.pack(len(data)) + data)
    yield from some


def _read(path: epath.Path) -> Iterator[Pair]:
  with path.open("rb") as file:
    while length := file.read(_LENGTH.size):
      data = zstandard.ZstdDecompressor().decompress(file.read(_LENGTH.unpack(length)[0]))
      yield from itertools.starmap(Pair, marshal.loads(data))


def _sorted(path: str) -> Iterator[list[bytes]]:
  for bucket in range(_BUCKETS):
    for found in buckets.read([path], bucket, _BUCKETS):
      if found:
        yield [digest for digest, *_ in found]


def _passages(pairs: epath.Path, dealt: str, folder: epath.Path) -> PassagesOfPairs:
  parts, before = [], -1  # Of the numbers of the pairs whose passage is there for the first time.
  for digests in _sorted(dealt):
    table = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
    is_first = np.diff(table[:, 0], prepend=np.uint64(0)) != 0
    is_first[0] = int(table[0, 0]) != before  # A bucket may be read in parts.
    before = int(table[-1, 0])
    parts.append(table[is_first, 1].astype(np.int64))
  os.unlink(dealt)
  numbers = np.concatenate(parts)
  del parts
  numbers.sort()
  keys, starts, path, have_ids = array.array("Q"), array.array("q", [0]), folder / "passages", False
  with atomic.replacing(path) as file:
    for number, pair in enumerate(_read(pairs)):
      if len(keys) < len(numbers) and number == numbers[len(keys)]:
        keys.append(pair.passage_key)
        have_ids = have_ids or bool(pair.passage_id)
        line = json.dumps([pair.passage_id or None, *_title_and_text(pair)], ensure_ascii=False).encode() + b"\n"
        file.write(line)
        starts.append(starts[-1] + len(line))
  lines = LineTable(path, starts)
  ids = View(len(keys), lambda row: f"{keys[row]:016x}")
  given, titles, texts = (View(len(keys), lambda row, column=column: jsonl.parse(lines[row])[column])
                          for column in range(3))
  return PassagesOfPairs(Documents(ids, titles, texts), given, have_ids)


def _title_and_text(pair: Pair) -> tuple[str, str]:
  """Of a passage, which they make together."""
  title = pair.passage.removesuffix(pair.bare).strip() if pair.bare else ""
  return (title, pair.bare) if full_text(title, pair.bare) == pair.passage else ("", pair.passage)
