"""When two texts are nearly the same: they share words in a row. `same_text` says when they are equal.

What words are, and the hashes of their runs, is one thing for all that asks: mined negatives (`are_near`), collections
that must not be trained on (`prepare.decontaminate`), the demo's corpus (`demo.near_copies`). Each says how much is to
be shared.
"""

import functools
import re
from collections.abc import Callable, Iterable

import numpy as np

from gtr_jax.text.same_text import CLOSING, QUOTES, folded, hash_key

RUN = 8  # Words.
NEAR = 0.8  # Of the runs of the shorter text.
# A word may stand between these, and is the same; a point, ! or colon before it are part of it: .NET, !x, :w.
_BEFORE = "\"'`“„‘‚«»‹›「『〝([{（【《〈,;¿¡"
_BEHIND = CLOSING + "".join(QUOTES) + "`)]}）】》〉"
_OPERATORS = frozenset(("()", "[]", "{}", "::", "?.", "?:"))  # Words, though punctuation: "[] in Python".
_DASHES = "-‐‑‒–―−─·•"  # Nothing but these parts words, as white space does.
_MOST_KNOWN = 1 << 18  # Different words that a process remembers: some 30 MB.
_BASE = 0x9E3779B97F4A7C15  # Odd, so that it has an inverse modulo 2**64.
# Words of English that a question is asked with or without. Not among them: what asks (who, where), denies (not),
# counts (all, only), and says how things go together (for, from, with, before, or).
_STOP_WORDS = (
    "a an the this that these those there here it its is are was were be been being am do does did done has have had "
    "having can could will would shall should may might must of in on at to and so just also some any my your our "
    "their i we you he she they me us him her them please thanks thank hi hello hey question true tell say know think "
    "really actually i'm it's that's what's i've")
_IS_STOP_WORD = frozenset(_STOP_WORDS.split()).__contains__
_ENDING = re.compile(r"(?<=\w{3})(?:'s|ings?|ed|es|(?<!s)s|e)$")


def words(text: str) -> list[str]:
  """Folded, without punctuation around them; what bears meaning stays: "C" is not "C++", nor "-1" "1", and "&&", "<"
  and "👍" are words."""
  return [word for word in map(_bare, tokens_of(folded(text))) if word]


def tokens_of(folded_text: str) -> list[str]:
  """What white space and long dashes part, for `hashes_of`."""
  return (folded_text if folded_text.isascii() else folded_text.replace("—", " ")).split()


def _bare(token: str) -> str:
  """The word in a token; "" of punctuation and dashes alone."""
  word = token.rstrip(_BEHIND).lstrip(_BEFORE)
  if word.startswith("..") and word.lstrip(".")[:1].isalnum():
    word = word.lstrip(".")
  return word if word.strip(_DASHES) else token if token in _OPERATORS else ""


class _Hashes(dict[str, bytes]):
  """Token -> 8 bytes of a hash of its word, none where it has no word: texts consist of few different words, and a look
  is cheap."""

  def __init__(self, of_word: Callable[[str], str] = str):
    super().__init__()
    self._of_word = of_word

  def __missing__(self, token: str) -> bytes:
    if len(self) >= _MOST_KNOWN:
      self.clear()
    word = self._of_word(_bare(token))
    self[token] = found = hash_key(word).to_bytes(8, "little") if word else b""
    return found


def _content(word: str) -> str:
  """A word without its ending; "" of a stop word."""
  return "" if _IS_STOP_WORD(word) else _ENDING.sub("", word)


_hash_of, _content_of = _Hashes().__getitem__, _Hashes(_content).__getitem__


def hashes_of(tokens: Iterable[str]) -> bytes:
  """8 bytes of a hash of each word, the same in every process."""
  return b"".join(map(_hash_of, tokens))


def content_of(tokens: Iterable[str]) -> bytes:
  """The same of what two questions share that ask the same in nearly the same words: their words in order, without
  endings (cause, caused, causes) and without stop words of English, wherever these stand."""
  return b"".join(map(_content_of, tokens))


class Sums:
  """Hashes of any run of some words, from one sum over them.

  Of words with the hashes h, a run of n words from the i-th on has the hash h[i] B + ... + h[i + n - 1] B**n, modulo
  2**64 (Karp and Rabin 1987); B is odd, so that it is the same wherever the run stands.
  """

  def __init__(self, hashes: bytes):
    """Of `hashes_of`."""
    self.words = len(hashes) // 8
    powers, self._inverse = _powers(max(1024, 1 << self.words.bit_length()))
    self._sums = np.zeros(self.words + 1, np.uint64)
    (np.frombuffer(hashes, "<u8") * powers[:self.words]).cumsum(out=self._sums[1:])

  def runs(self, length: int) -> np.ndarray:
    """uint64 of each run of so many words; none where there are fewer."""
    if length > self.words:
      return np.zeros(0, np.uint64)
    return (self._sums[length:] - self._sums[:-length]) * self._inverse[:self.words + 1 - length]

  def run(self, start: int, stop: int) -> np.ndarray:
    """uint64 [1]: of the words from `start` to before `stop`."""
    return (self._sums[stop:stop + 1] - self._sums[start:start + 1]) * self._inverse[start:start + 1]


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
  """B, B**2, ... and 1, 1 / B, 1 / B**2, ..., modulo 2**64."""
  inverse = np.full(count, pow(_BASE, -1, 2**64), np.uint64)
  inverse[0] = 1
  return np.cumprod(np.full(count, _BASE, np.uint64)), np.cumprod(inverse)


@functools.lru_cache(maxsize=64)
def runs(text: str) -> frozenset[int]:
  """Hashes of all runs of 8 words; a shorter text is one run."""
  sums = Sums(hashes_of(tokens_of(folded(text))))
  return frozenset(sums.runs(min(RUN, sums.words)).tolist()) if sums.words else frozenset([0])


def contains(text: str, part: str) -> bool:
  """Whether the words of a part are in a text in a row."""
  whole, wanted = (Sums(hashes_of(tokens_of(folded(of)))) for of in (text, part))
  return not wanted.words or wanted.runs(wanted.words)[0] in whole.runs(wanted.words)


def are_near(one: str, other: str) -> bool:
  """Whether they share 0.8 of the runs of the shorter one: of texts below 8 words, all words in their order."""
  a, b = runs(one), runs(other)
  return len(a & b) >= NEAR * min(len(a), len(b))
