"""Finds texts that repeat others in part, so that nothing that is tested on is trained on under another name."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"\w+")
_SHINGLE = 8
_SHARED = 0.3


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


def contains(text: str, part: str) -> bool:
  """Whether the words of a part are in a text in a row."""
  words, lowered = _words(part), text.lower()
  return all(word in lowered for word in words) and " ".join(words) in " ".join(_WORD.findall(lowered))


@functools.lru_cache(maxsize=1)  # Who asks for a text adds it next.
def shingles(text: str) -> frozenset[int]:
  """Hashes of all runs of 8 words; a shorter text is one run."""
  words = _words(text)
  runs = map(hash, zip(*(words[i:] for i in range(_SHINGLE)), strict=False))
  return frozenset(runs) or frozenset([hash(tuple(words))])


class NearCopies:
  """Texts to compare others with.

  Two texts are near copies if they share 0.3 of the runs of 8 words of the shorter one.
  """

  def __init__(self, texts: Iterable[str] = ()):
    # Run -> the first text that has it, and further ones, which few runs have: a list for each would be slow.
    self._first: dict[int, int] = {}
    self._further: dict[int, list[int]] = {}
    self._sizes: list[int] = []
    for text in texts:
      self.add(text)

  def add(self, text: str) -> None:
    """One more text to compare with."""
    runs, place = shingles(text), len(self._sizes)
    known = runs & self._first.keys()
    for run in known:
      self._further.setdefault(run, []).append(place)
    self._first.update(dict.fromkeys(runs - known, place))
    self._sizes.append(len(runs))

  def __contains__(self, text: str) -> bool:
    """Whether one of the texts is a near copy of this one."""
    runs = shingles(text)
    known = runs & self._first.keys()
    shared = Counter(map(self._first.__getitem__, known))
    shared.update(itertools.chain.from_iterable(map(self._further.__getitem__, known & self._further.keys())))
    return any(count >= _SHARED * min(len(runs), self._sizes[place]) for place, count in shared.items())
