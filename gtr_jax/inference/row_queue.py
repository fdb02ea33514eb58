"""Texts of any lengths in rows of a few lengths, which wait until they fill a batch.

Letters: G groups, R rows of a group, L length.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gtr_jax.text.packing import Texts, best_fit

LONGEST_IN_SHORT_ROWS = 256  # Tokens; a longer text opens a row that is made for twice as many, ..
TOKENS_OF_TEXT = 12  # There is room for so many texts in a row as if each had so many tokens.
TOKENS_PER_BATCH = 16_384  # Token slots of one batch on each data shard.
CPU_TOKENS_PER_BATCH = 2048  # The same on a CPU, whose cache has to hold the activations.
_LENGTHS_TRIED = 5  # Of the rows of the last batch.


def texts_of_rows(max_length: int) -> list[int]:
  """The most tokens of a text that rows are made for, ascending, where texts have at most `max_length`."""
  made_for = [min(LONGEST_IN_SHORT_ROWS, max_length)]
  while made_for[-1] < max_length:
    made_for.append(min(2 * made_for[-1], max_length))
  return made_for


def row_length(longest: int, on_cpu: bool) -> int:
  """Of rows that are made for texts of so many tokens: an eighth more, for a good fit."""
  multiple = _multiple(on_cpu)
  return -(-longest * 9 // 8 // multiple) * multiple


def tokens_of_batch(on_cpu: bool) -> int:
  """Token slots of a whole batch on each data shard."""
  return CPU_TOKENS_PER_BATCH if on_cpu else TOKENS_PER_BATCH


def _multiple(on_cpu: bool) -> int:
  return 8 if on_cpu else 128


class PackedTexts(NamedTuple):
  """Texts `[G, R, L]` with room for `num_texts` in each group, and which embedding is whose.

  Attributes:
    texts: the tokens.
    num_texts: in each group, at most.
    numbers: int `[n]`, of the texts that are there.
    places: int `[n]`, where their embeddings are in the flat `[G * num_texts]`.
  """

  texts: Texts
  num_texts: int
  numbers: np.ndarray
  places: np.ndarray


class RowQueue:
  """Texts in rows.

  A row is an eighth longer than the longest text it is made for, which leaves room for a good fit. Texts that exceed
  `LONGEST_IN_SHORT_ROWS` get longer rows, whose gaps shorter texts fill: attention costs a token the length of its row.

  Args:
    max_length: tokens of a text at most.
    on_cpu: whether rows are for a CPU.
    most_texts: in a row; default: as many as there is room for.

  Attributes:
    batch_rows: (length of rows, number of rows that a group has in a whole batch), the longest first.
  """

  def __init__(self, max_length: int, on_cpu: bool, most_texts: int | None = None):
    self._multiple = _multiple(on_cpu)
    self._made_for = texts_of_rows(max_length)
    self._lengths = np.asarray([row_length(longest, on_cpu) for longest in self._made_for])
    self._least_room = int(self._lengths[0]) // TOKENS_OF_TEXT + 1
    self._most_texts = min(self._least_room, most_texts) if most_texts else self._least_room
    tokens = tokens_of_batch(on_cpu)
    self.batch_rows = [(length, max(tokens // length, 1)) for length in sorted(set(self._lengths.tolist()))[::-1]]
    # Of each row its texts: number, begin, tokens.
    self._rows: dict[int, deque[list[tuple[int, int, np.ndarray]]]] = {length: deque() for length, _ in self.batch_rows}

  def add(self, tokens: Sequence[np.ndarray], numbers: Sequence[int]) -> None:
    """Packs these texts, int32 `[<= max_length]` each, into rows of their own."""
    lengths = np.asarray([len(of_text) for of_text in tokens], np.int64)
    opens = self._lengths[np.searchsorted(self._made_for, lengths)]
    row, start, num_rows = best_fit(lengths, opens, self._most_texts)
    length_of_row = np.zeros(num_rows, np.int64)
    np.maximum.at(length_of_row, row, opens)  # The text that opens a row is its longest.
    rows: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in range(num_rows)]
    for text, (of_text, begin) in enumerate(zip(row.tolist(), start.tolist(), strict=True)):
      rows[of_text].append((numbers[text], begin, tokens[text]))
    for length, texts in zip(length_of_row.tolist(), rows, strict=True):
      self._rows[length].append(texts)

  def rows(self, length: int) -> int:
    """How many rows of this length wait."""
    return len(self._rows[length])

  def rows_with(self, length: int, texts: int) -> int:
    """The first so many rows of this length have at most so many texts; at least one."""
    found = np.cumsum([len(row) for row in self._rows[length]])
    return max(int(np.searchsorted(found, texts, "right")), 1)

  def _room(self, length):
    """For so many texts in a row of this length."""
    return self._least_room if length in self._lengths else length // TOKENS_OF_TEXT + 1

  def lengths_of_last(self, length: int) -> list[int]:
    """Lengths that rows of this one may have instead, in the last batch."""
    return [length + i * self._multiple for i in range(_LENGTHS_TRIED)]

  def rows_of_last(self, length: int, groups: int) -> list[int]:
    """How many rows each group would have of each of these lengths, of the texts that wait in rows of `length`."""
    lengths = np.asarray([len(tokens) for row in self._rows[length] for *_, tokens in row], np.int64)
    return [-(-best_fit(lengths, tried, self._room(tried))[2] // groups) for tried in self.lengths_of_last(length)]

  def repack(self, length: int, other: int) -> None:
    """Packs the texts that wait in rows of one length into rows of another."""
    texts = [(number, tokens) for row in self._rows.pop(length) for number, _, tokens in row]
    self._rows[length] = deque()
    row, start, num_rows = best_fit(np.asarray([len(tokens) for _, tokens in texts], np.int64), other,
                                    self._room(other))
    rows: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in range(num_rows)]
    for (number, tokens), of_text, begin in zip(texts, row.tolist(), start.tolist(), strict=True):
      rows[of_text].append((number, begin, tokens))
    self._rows[other] = deque(rows)

  def take(self, length: int, rows: int, groups: int, most: int | None = None) -> PackedTexts:
    """The next rows of this length, as many of them as there are and as fit.

    Args:
      length: of the rows: of `batch_rows`, or that were `repacked`.
      rows: of each group.
      groups: of the batch.
      most: no more than so many rows.
    """
    waiting, room = self._rows[length], self._room(length)
    packed = np.zeros((2, groups * rows, length), np.int32)
    numbers, places = [], []
    for r in range(min(len(waiting), groups * rows, groups * rows if most is None else most)):
      for in_row, (number, begin, tokens) in enumerate(waiting.popleft()):
        at = slice(begin, begin + len(tokens))
        packed[0, r, at] = tokens
        packed[1, r, at] = 1 + r % rows * room + in_row
        numbers.append(number)
        places.append(r * room + in_row)
    return PackedTexts(Texts(*packed.reshape(2, groups, rows, length)), rows * room,
                       np.asarray(numbers, np.int64), np.asarray(places, np.int64))
