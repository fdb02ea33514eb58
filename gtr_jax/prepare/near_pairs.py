"""Pairs that are nearly the same as another, found without comparing all with all.

Two pairs are near where their queries share 0.8 of the runs of words of both (Jaccard), and so do their passages;
`near_text` says what a run is. Of those that are near to each other the first stays: one of the validation split before
one to train on, then the one with the smaller digest. What is near to an earlier one is left out, whether that stays or
not, so that it is the same in whatever order and by however many workers they are looked at.

Candidates are pairs that agree in a band: in `_ROWS` minima of hashes of the query's runs and as many of the passage's
(MinHash, Broder 1997; bands, Leskovec et al., Mining of Massive Datasets, 3.4). What shares 0.8 on both sides agrees in
one of 8 bands with a probability of 0.985, with equal queries of 0.9997. Candidates' texts decide, so that none is left
out that is not near. Where very many agree in a band, each is compared with the first ten of them alone.

A band is 16 bytes, the digest of a pair 17, and both go through buckets on disk: about 300 bytes for each pair.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gtr_jax.prepare import records
from gtr_jax.prepare.records import Pair
from gtr_jax.text.near_text import NEAR, runs
from gtr_jax.text.same_text import text_key

BANDS, _ROWS = 8, 2
MOST_COMPARED = 10  # With each, of those that agree in a band.
_NO_WORDS = runs("")
_FACTORS = np.frombuffer(hashlib.shake_128(b"near pairs").digest(8 * BANDS * _ROWS), np.uint64) | np.uint64(1)


class Earlier(NamedTuple):
  """A pair that another one may be near to."""

  rank: bytes  # As `rank_of`.
  query: str
  passage: str


def rank_of(pair: Pair) -> bytes:
  """17 bytes, in whose order the first of pairs that are near stays."""
  return (b"\0" if pair.split == "validation" else b"\1") + pair.digest


def bands(query: str, passage: str) -> Iterator[bytes]:
  """16 bytes for each band that the pair is in. Where both texts are one run, near is equal, and one band does."""
  both = [_runs(text) for text in (query, passage)]
  minima = [(np.fromiter(of, np.uint64, len(of))[:, None] * _FACTORS).min(axis=0) for of in both]
  for band in range(1 if all(len(of) == 1 for of in both) else BANDS):
    rows = (of[band * _ROWS:(band + 1) * _ROWS].tobytes() for of in minima)
    yield hashlib.blake2b(b"".join(rows), digest_size=16, salt=bytes([band])).digest()


def candidates(ranks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
  """(earlier, later) of the pairs that are in one band: digests."""
  first: list[bytes] = []
  for rank in sorted(set(ranks)):
    yield from ((earlier, rank[1:]) for earlier in first)
    if len(first) < MOST_COMPARED:
      first.append(rank[1:])


def earlier(pairs: Iterable[Pair], later: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Earlier]]:
  """(digest of a later one, pair that it may be near to) of some pairs and their `candidates`."""
  of_pairs: dict[bytes, set[bytes]] = {}
  for digest, other in later:
    of_pairs.setdefault(digest, set()).add(other)
  for pair in pairs:
    if pair.digest in of_pairs:
      texts = Earlier(rank_of(pair), *_texts(pair.record))
      yield from ((other, texts) for other in sorted(of_pairs[pair.digest]))


def near_to(record: bytes, others: Sequence[Earlier]) -> Earlier | None:
  """The first of those that a pair is near to."""
  query, passage = _texts(record)
  return next((other for other in sorted(set(others)) if are_near_copies(query, other.query)
               and are_near_copies(passage, other.passage)), None)


def are_near_copies(one: str, other: str) -> bool:
  """Whether two texts share 0.8 of the runs of both: of texts below 8 words, all words in their order."""
  a, b = _runs(one), _runs(other)
  return len(a & b) >= NEAR * len(a | b)


def _runs(text: str) -> frozenset[int]:
  """A text without a word is like none but itself."""
  found = runs(text)
  return found if found != _NO_WORDS else frozenset([text_key(text)])


def _texts(record: bytes) -> tuple[str, str]:
  texts = records.texts_of(record)
  return texts["query"][0], texts["passage"][0]


def bands_of(pairs: Iterable[Pair]) -> Iterator[tuple[bytes, bytes]]:
  """(band, rank) of each pair and band."""
  for pair in pairs:
    yield from zip(bands(*_texts(pair.record)), itertools.repeat(rank_of(pair)), strict=False)
