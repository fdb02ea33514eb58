"""Finds texts that repeat others in part, so that nothing that is tested on is trained on under another name."""

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
  return " ".join(_words(part)) in " ".join(_words(text))


def shingles(text: str) -> set[int]:
  """Hashes of all runs of 8 words; a shorter text is one run."""
  words = _words(text)
  return set(map(hash, zip(*(words[i:] for i in range(_SHINGLE)), strict=False))) or {hash(tuple(words))}


class NearCopies:
  """Texts to compare others with.

  Two texts are near copies if they share 0.3 of the runs of 8 words of the shorter one.
  """

  def __init__(self, texts: Iterable[str] = ()):
    self._places: dict[int, list[int]] = {}
    self._sizes: list[int] = []
    for text in texts:
      self.add(text)

  def add(self, text: str) -> None:
    """One more text to compare with."""
    runs = shingles(text)
    for run in runs:
      self._places.setdefault(run, []).append(len(self._sizes))
    self._sizes.append(len(runs))

  def __contains__(self, text: str) -> bool:
    """Whether one of the texts is a near copy of this one."""
    runs = shingles(text)
    shared = Counter(place for run in runs for place in self._places.get(run, ()))
    return any(count >= _SHARED * min(len(runs), self._sizes[place]) for place, count in shared.items())
