"""When two texts are nearly the same: they share most of their runs of words. `same_text` says when they are equal."""

import functools
import re

from gtr_jax.text.same_text import folded, hash_key

RUN = 8  # Words.
NEAR = 0.8  # Of the runs of the shorter text.
_AROUND = "\"'`.,;:!?()[]{}<>…“”‘’«»"  # A word may stand in or before these, and is the same.


def words(text: str) -> list[str]:
  """Folded, without punctuation around them; what bears meaning stays: "C" is not "C++", nor "-1" "1"."""
  return [word for word in (word.strip(_AROUND) or word for word in folded(text).split()) if re.search(r"\w", word)]


@functools.lru_cache(maxsize=64)
def runs(text: str) -> frozenset[int]:
  """64-bit hashes of all runs of 8 words, the same in every process; a shorter text is one run."""
  found = words(text)
  of_text = map(hash_key, map(" ".join, zip(*(found[i:] for i in range(RUN)), strict=False)))
  return frozenset(of_text) or frozenset([hash_key(" ".join(found))])


def are_near(one: str, other: str) -> bool:
  """Whether they share 0.8 of the runs of the shorter one: of texts below 8 words, all words in their order."""
  a, b = runs(one), runs(other)
  return len(a & b) >= NEAR * min(len(a), len(b))
