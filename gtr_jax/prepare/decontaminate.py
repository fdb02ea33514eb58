"""Which examples give away what an evaluation collection tests: its queries, and the documents judged relevant."""

import functools
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from gtr_jax.collections.collection import corpus_file, qrels_file, queries_file, splits
from gtr_jax.collections.corpus import FIELDS, broken, document_of
from gtr_jax.collections.qrels import judgements_in
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, tables
from gtr_jax.io.lines import Part
from gtr_jax.io.paths import location
from gtr_jax.text.same_text import text_key

_GRAM = 13  # Words in a row that two texts do not share by chance (Brown et al. 2020, appendix C).
_SPLITS = ("test", "dev", "validation")  # MS MARCO is evaluated on dev; its test is that of TREC 2019.
_PLURALS = {"query": "queries", "document": "documents"}
_MOST_MISSING = 0.05  # Of what is judged: of some collections not all documents are to be had any more.
_NO_WORDS = re.compile(r"[^\w\s]|_|\s")  # Dashes, quotes and spaces of all alphabets.
_TO_WORDS = bytes(b if b > 127 or chr(b).isalnum() else 32 for b in range(256))
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, i + 1, 2**64) | 1 for i in range(_GRAM)], np.uint64)


def write_tested(collections: Sequence[str], path: str) -> None:
  """Gathers what the collections test into a file for `Tested`.

  A collection is a folder in BEIR layout, or a folder of such (CQADupStack), also below the data root.

  Raises:
    InputError: a collection lacks a file, or has no judgements.
  """
  names: list[str] = []
  found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"texts": ([], []), "grams": ([], [])}
  for folder in itertools.chain(*map(_folders, collections)):
    for kind, identifier, title, text in _tested(folder):
      owner = len(names)
      names.append(f"{folder.name} {kind} {identifier}")
      for whole in dict.fromkeys((f"{title} {text}".strip(), text)):
        grams = _grams(whole, shorter=kind == "document")
        if kind == "query" or not len(grams):
          found["texts"][0].append(np.array([text_key(whole)], np.uint64))
          found["texts"][1].append(np.array([owner], np.int32))
        found["grams"][0].append(grams)
        found["grams"][1].append(np.full(len(grams), owner, np.int32))
  arrays: dict[str, Any] = {"names": np.frombuffer(json.dumps(names).encode(), np.uint8)}
  for name, (hashes, owners) in found.items():
    different, first = np.unique(np.concatenate(hashes), return_index=True)
    arrays |= {name: different, f"{name}_owners": np.concatenate(owners)[first]}
  with atomic.replacing(path) as f:
    np.savez(f, **arrays)


class Tested:
  """Looks examples up among what is tested."""

  def __init__(self, path: str):
    with epath.Path(path).open("rb") as f, np.load(f) as arrays:
      self._arrays = dict(arrays)
    self._names = json.loads(self._arrays["names"].tobytes())

  def find(self, query: str, passage: str) -> str | None:
    """Names what is tested and the example has: a query (also as a line of the example's), 13 words in a row, or all
    the words of a shorter document."""
    texts = np.array([text_key(text) for text in dict.fromkeys((query, passage, *query.split("\n"))) if text],
                     np.uint64)
    return self._owner("texts", texts) or self._owner("grams", np.concatenate([_grams(query), _grams(passage)]))

  def _owner(self, kind, hashes):
    known = self._arrays[kind]
    if not len(known) or not len(hashes):
      return None
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    hits = np.flatnonzero(known[at] == hashes)
    return self._names[self._arrays[f"{kind}_owners"][at[hits[0]]]] if len(hits) else None


@functools.lru_cache(maxsize=1)
def load(path: str) -> Tested:
  """Once in a process."""
  return Tested(path)


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


def _grams(text: str, shorter: bool = True) -> np.ndarray:
  """uint64 hashes of every 13 words in a row; of all words of a shorter text, if these are asked for."""
  text = text if text.isascii() else _NO_WORDS.sub(" ", text)
  words = text.lower().encode(errors="surrogatepass").translate(_TO_WORDS).split()
  if not words or len(words) < _GRAM and not shorter:
    return np.zeros(0, np.uint64)
  hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words)) + np.uint64(0x517CC1B727220A95)
  hashes ^= hashes << np.uint64(29)
  hashes *= np.uint64(0xBF58476D1CE4E5B9)
  return np.correlate(hashes, _FACTORS[:len(words)], "valid")
