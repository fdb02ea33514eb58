"""Finds texts that repeat others in part, so that nothing that is tested on is trained on under another name."""

import itertools
from collections import Counter
from collections.abc import Iterable

from gtr_jax.text.near_text import runs

_SHARED = 0.3  # Of the runs of 8 words of the shorter text: `are_near` asks for more.


class NearCopies:
  """Texts to compare others with.

  Two texts are near copies if they share 0.3 of the runs of 8 words of the shorter one (`text.near_text`).
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
    found, place = runs(text), len(self._sizes)
    known = found & self._first.keys()
    for run in known:
      self._further.setdefault(run, []).append(place)
    self._first.update(dict.fromkeys(found - known, place))
    self._sizes.append(len(found))

  def __contains__(self, text: str) -> bool:
    """Whether one of the texts is a near copy of this one."""
    found = runs(text)
    known = found & self._first.keys()
    shared = Counter(map(self._first.__getitem__, known))
    shared.update(itertools.chain.from_iterable(map(self._further.__getitem__, known & self._further.keys())))
    return any(count >= _SHARED * min(len(found), self._sizes[place]) for place, count in shared.items())
