"""Which examples give away what an evaluation collection tests: its queries, and the documents judged relevant.

An example does where it has one of these. Words are those of `text.near_text`, equal texts those of `text.same_text`;
a line is one of the example's query, or the first of its passage.

- A line that is equal to a test query, or has the same words but for endings and stop words.
- A test query of 6 to 12 words, in a row, anywhere. The words of a shorter one stand together in too many texts.
- 13 words in a row of a test query or a relevant document.
- A query or passage with the very words of a relevant document that has fewer.

What a question asks for is one of its words ("What are the symptoms of measles?"), so that questions with another word
there are others, however much they share.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.collections.collection import corpus_file, qrels_file, queries_file, splits
from gtr_jax.collections.corpus import FIELDS, broken, document_of
from gtr_jax.collections.qrels import judgements_in
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, tables
from gtr_jax.io.lines import Part
from gtr_jax.io.paths import location
from gtr_jax.text.near_text import Sums, content_of, hashes_of, tokens_of
from gtr_jax.text.same_text import bytes_key, folded, folded_key, hash_key, text_key

_RUN = 13  # Words in a row that two texts do not share by chance (Brown et al. 2020, appendix C).
_CONTAINED = 6  # A test query of as many words is one wherever they stand in a row.
_LONGEST = 25  # Words of a text that may be a query, and nothing else. A longer query has 13 in a row.
_SPLITS = ("test", "dev", "validation")  # MS MARCO is evaluated on dev; its test is that of TREC 2019.
_PLURALS = {"query": "queries", "document": "documents"}
_MOST_MISSING = 0.05  # Of what is judged: of some collections not all documents are to be had any more.
_APART = hash_key("between two texts").to_bytes(8, "little")  # Of what no word is.
_MOST_BITS = 24  # Of a table of 16 MB.
_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)
# What a hash is of, a bit of each: equal texts, the words of a query that are no stop words, all words of a query, its
# first `_CONTAINED` words, `_RUN` words in a row, all words of a document. The first of these names what is found.
_TEXT, _CONTENT_OF_QUERY, _QUERY, _BEGINNING, _RUN_OF_WORDS, _DOCUMENT = (1 << bit for bit in range(6))


def write_tested(collections: Sequence[str], path: str) -> None:
  """Gathers what the collections test into a file for `Tested`.

  A collection is a folder in BEIR layout, or a folder of such (CQADupStack), also below the data root.

  Raises:
    InputError: a collection lacks a file, or has no judgements.
  """
  names: list[str] = []
  found: list[np.ndarray] = []
  kinds_of, owners_of = [], []
  for folder in itertools.chain(*map(_folders, collections)):
    for kind, identifier, title, text in _tested(folder):
      for whole in dict.fromkeys((f"{title} {text}".strip(), text)):
        for of, hashes in _hashes(whole, kind == "query"):
          found.append(hashes)
          kinds_of.append(np.full(len(hashes), of, np.uint8))
          owners_of.append(np.full(len(hashes), len(names), np.int32))
      names.append(f"{folder.name} {kind} {identifier}")
  different, first, same = np.unique(np.concatenate(found), return_index=True, return_inverse=True)
  kinds = np.zeros(len(different), np.uint8)
  np.bitwise_or.at(kinds, same, np.concatenate(kinds_of))
  arrays: dict[str, Any] = {"names": np.frombuffer(json.dumps(names).encode(), np.uint8), "hashes": different,
                            "kinds": kinds, "owners": np.concatenate(owners_of)[first]}
  with atomic.replacing(path) as f:
    np.savez(f, **arrays)


def _hashes(text: str, is_query: bool) -> Iterator[tuple[int, np.ndarray]]:
  """Of something tested: what of it is found, and the uint64 hashes."""
  tokens = tokens_of(folded(text))
  sums = Sums(hashes_of(tokens))
  yield _RUN_OF_WORDS, sums.runs(_RUN)
  if text and (is_query or not sums.words):
    yield _TEXT, np.array([text_key(text)], np.uint64)
  if not sums.words:
    return
  if sums.words < _RUN:
    yield _QUERY if is_query else _DOCUMENT, sums.run(0, sums.words)
  if is_query and _CONTAINED <= sums.words < _RUN:
    yield _BEGINNING, sums.run(0, _CONTAINED)
  content = content_of(tokens)
  if is_query and content:
    yield _CONTENT_OF_QUERY, np.array([bytes_key(content)], np.uint64)


class Tested:
  """Looks examples up among what is tested."""

  def __init__(self, path: str):
    with epath.Path(path).open("rb") as f, np.load(f) as arrays:
      self._names = json.loads(arrays["names"].tobytes())
      self._known, self._kinds, self._owners = arrays["hashes"], arrays["kinds"], arrays["owners"]
    self._known = np.append(self._known, np.uint64(0))  # Found where all are lower.
    # Nearly all that is looked up is not there, which a table says at once: for the last bits of a hash, which of the
    # eight values of its first three are known.
    bits = min(_MOST_BITS, max(10, 3 + len(self._known).bit_length()))
    self._last_bits = np.uint64((1 << bits) - 1)
    self._may_be = np.zeros(1 << bits, np.uint8)
    np.bitwise_or.at(self._may_be, self._known[:-1] & self._last_bits, _bit_of(self._known[:-1]))

  def find(self, query: str, passage: str) -> str | None:
    """Names what is tested and the example has, or None."""
    hashes: list[bytes] = []
    count = 0  # Of words.
    keys: list[int] = []
    documents = []  # Of texts that may be a short one: the first word, and behind the last one.
    for text in filter(None, (query, passage)):
      start = count
      for number, line in enumerate(text.split("\n")):
        folded_line = folded(line)
        tokens = tokens_of(folded_line)
        hashes.append(hashes_of(tokens))
        count += len(hashes[-1]) // 8
        if folded_line and (text is query or not number) and len(tokens) <= _LONGEST:
          keys.append(folded_key(folded_line))
          if content := content_of(tokens):
            keys.append(bytes_key(content))
      if start < count < start + _RUN:
        documents.append((start, count))
        if "\n" in text:
          keys.append(text_key(text))
      hashes.append(_APART)
      count += 1
    sums = Sums(b"".join(hashes))
    looked_up = [(_RUN_OF_WORDS, sums.runs(_RUN)), (_BEGINNING, sums.runs(_CONTAINED)),
                 (_TEXT | _CONTENT_OF_QUERY, np.array(keys, np.uint64)),
                 *((_DOCUMENT, sums.run(*text)) for text in documents)]
    if not (hits := self._hits(looked_up)):
      return None
    begun = [place for kind, place, _ in hits if kind == _BEGINNING]
    if begun:
      hits += self._hits([(_QUERY, sums.run(start, stop)) for start in begun
                          for stop in range(start + _CONTAINED, min(start + _RUN, sums.words + 1))])
    hits = [hit for hit in hits if hit[0] != _BEGINNING]
    return self._names[min(hits)[2]] if hits else None

  def _hits(self, looked_up: list[tuple[int, np.ndarray]]) -> list[tuple[int, int, int]]:
    """Of hashes and what they are to be of: what they are of, the place of the hash, whose it is."""
    hashes = np.concatenate([of_kind for _, of_kind in looked_up])
    places = (self._may_be[(hashes & self._last_bits).view(np.int64)] & _bit_of(hashes)).nonzero()[0]
    if not len(places):
      return []
    at = self._known[:-1].searchsorted(hashes[places])
    there = self._known[at] == hashes[places]
    if not there.any():
      return []
    hits, begin = [], 0
    for kind, of_kind in looked_up:
      for place, known in zip(places[there].tolist(), at[there].tolist(), strict=True):
        if begin <= place < begin + len(of_kind) and (found := int(self._kinds[known]) & kind):
          hits.append((found, place - begin, int(self._owners[known])))
      begin += len(of_kind)
    return hits


def _bit_of(hashes: np.ndarray) -> np.ndarray:
  """uint8: the first three bits, one of eight."""
  return _BITS[(hashes >> np.uint64(61)).view(np.int64)]


class File(NamedTuple):
  """What `write_tested` has written, by what is in it: a path may be written again."""

  path: str
  sha256: str

  @classmethod
  def at(cls, path: str) -> "File":
    with epath.Path(path).open("rb") as f:
      return cls(path, hashlib.sha256(f.read()).hexdigest())


@functools.lru_cache(maxsize=1)
def load(file: File) -> Tested:
  """Once in a process."""
  return Tested(file.path)


def files_of(collection: str) -> list[str]:
  """The files of a collection that are read. Raises InputError where one is missing."""
  return [file for folder in _folders(collection) for path in _files(folder) for file in tables.files(path)]


def _folders(collection: str) -> list[epath.Path]:
  folder = location(collection)
  folder = folder if folder.exists() else data_root.resolve(collection)
  parts = sorted({path.parent for path in folder.glob("*/corpus.jsonl*")})
  return parts if parts and not list(folder.glob("corpus.jsonl*")) else [folder]


def _files(folder: epath.Path) -> list[str]:
  """Corpus, queries, and the judgements of one or more splits."""
  tested = [split for split in _SPLITS if split in splits(folder)]
  if not tested:
    qrels_file(folder, _SPLITS[0])  # Raises.
  return list(map(os.fspath, (corpus_file(folder), queries_file(folder, tested[0]),
                              *(qrels_file(folder, split) for split in tested))))


def _tested(folder: epath.Path) -> Iterator[tuple[str, str, str, str]]:
  """(kind, id, title, text) of each tested query and document."""
  corpus, queries, *qrels = _files(folder)
  asked, relevant = set(), set()
  for _, query_id, doc_id, grade in itertools.chain(*(judgements_in(Part(path)) for path in qrels)):
    asked.add(query_id)
    if grade > 0:
      relevant.add(doc_id)
  if not asked:
    raise InputError(f"{', '.join(qrels)}: no judgements; decontamination needs them")
  for kind, path, wanted in (("query", queries, asked), ("document", corpus, relevant)):
    missing = set(wanted)
    rest = tables.read_lines(Part(path), FIELDS)
    for line in rest:
      if not line.data.strip():
        continue
      try:
        found = document_of(line.data)
      except ValueError as e:
        raise broken(path, line, rest, e) from e
      if found.id in wanted:
        missing.discard(found.id)
        yield kind, found.id, found.title, found.text.strip()
    if len(missing) > _MOST_MISSING * len(wanted):
      raise InputError(f"{', '.join(qrels)}: {len(missing):,} of {len(wanted):,} judged {_PLURALS[kind]}, such as "
                       f"{min(missing)!r}, are not in {path}; is it cut off, or another collection's?")
