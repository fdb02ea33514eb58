"""From token ids to the two arrays that the encoder reads: `tokens` and `segment_ids`, one text a row or several.

A part is what is encoded at once by one data shard: a group, or one of its microbatches. In every part, `segment_ids`
is 0 on padding and `1 + i` on the tokens of the part's text `i`, so that attention and pooling never need to know which
row holds what. Everything here is numpy on the host.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from gtr_jax.errors import InputError

Array = np.ndarray | Any
"""Of numpy; under jit one of jax, which is not imported here."""


class Texts(NamedTuple):
  """Texts of one side. Both arrays are int32 `[groups, rows, length]` (`[groups, microbatches, rows, length]`)."""

  tokens: Array
  segment_ids: Array


class UsualRows(NamedTuple):
  """Whatever needs from `least` to `most` rows gets `most` of them, so that nearly all batches have one shape."""

  least: int
  most: int


def pad_texts(tokens: Array, parts: int, xp: Any = np) -> Texts:
  """One text a row. `tokens` is int32 `[parts * texts, length]`, padded with 0; `xp` is numpy or jax.numpy."""
  tokens = tokens.reshape(parts, -1, tokens.shape[-1])
  owner = 1 + xp.arange(tokens.shape[1], dtype=np.int32)
  return Texts(tokens, xp.where(tokens != 0, owner[None, :, None], 0).astype(np.int32))


def pack_texts(tokens: np.ndarray, row_length: int, spread: float, usual: UsualRows | None = None) -> Texts:
  """Several texts a row, by best fit; all parts get as many rows as the fullest one needs, rounded.

  Args:
    tokens: int32 `[parts, texts, length]`, padded with 0 at the end; a text of zeros takes no place.
    row_length: of the rows.
    spread: of `round_rows`.
    usual: how many rows batches like this one have; what needs another number gets one of `round_rows`.

  Returns:
    int32 `[parts, rows, row_length]`.

  Raises:
    InputError: a text is longer than a row.
  """
  parts, texts, _ = tokens.shape
  lengths = np.count_nonzero(tokens, axis=-1)
  placed = [best_fit(of_part, row_length) for of_part in lengths]
  needed = max(num_rows for _, _, num_rows in placed)
  rows = usual.most if usual and usual.least <= needed <= usual.most else round_rows(needed, texts, spread)
  first = np.stack([row * row_length + start for row, start, _ in placed])
  first = (first + rows * row_length * np.arange(parts)[:, None]).reshape(-1)
  counts = lengths.reshape(-1)
  # Token j of a text goes to first + j: in the flat list of all tokens, its index less where the text begins there.
  place = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
  packed = np.zeros((2, parts * rows * row_length), np.int32)
  packed[0, place] = tokens[tokens != 0]
  packed[1, place] = np.repeat(np.tile(1 + np.arange(texts, dtype=np.int32), parts), counts)
  return Texts(*packed.reshape(2, parts, rows, row_length))


def best_fit(lengths: np.ndarray, row_length: int | np.ndarray,
             max_texts: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
  """Best fit decreasing: each text, the longest first, goes into the row that it fills best; else it opens one.

  Args:
    lengths: int `[texts]`; a text of length 0 takes no place.
    row_length: of all rows; or int `[texts]`, the length of the row that a text opens.
    max_texts: a row gets no more than so many; None: any number.

  Returns:
    The row of each text, where it begins in it (both int64 `[texts]`), and the number of rows.

  Raises:
    InputError: a text is longer than its row.
  """
  row_lengths = np.broadcast_to(row_length, lengths.shape)
  if too_long := (lengths > row_lengths).nonzero()[0].tolist():
    raise InputError(f"a text of {lengths[too_long[0]]} tokens does not fit a row of {row_lengths[too_long[0]]}: make "
                     "the rows at least as long as the longest text")
  row, start = [0] * len(lengths), [0] * len(lengths)
  ends: list[int] = []
  texts_of_row: list[int] = []
  open_rows: list[list[int]] = [[] for _ in range(row_lengths.max(initial=0) + 1)]  # by the room that is left
  room = 0  # bit n is set where open_rows[n] is not empty; a shift and the lowest bit find the best fit
  lengths, row_lengths = lengths.tolist(), row_lengths.tolist()
  for text in np.argsort(np.negative(lengths), kind="stable").tolist():
    length = lengths[text]
    if not length:
      break
    if fitting := room >> length:
      left = length + (fitting & -fitting).bit_length() - 1
      chosen = open_rows[left].pop()
      if not open_rows[left]:
        room ^= 1 << left
    else:
      left, chosen = row_lengths[text], len(ends)
      ends.append(left)
      texts_of_row.append(0)
    row[text], start[text] = chosen, ends[chosen] - left
    left -= length
    texts_of_row[chosen] += 1
    if left and texts_of_row[chosen] != max_texts:
      open_rows[left].append(chosen)
      room |= 1 << left
  return np.asarray(row, np.int64), np.asarray(start, np.int64), len(ends)


def round_rows(rows: int, texts: int, spread: float) -> int:
  """The next of a small set of row counts, so that few programs are compiled whatever the texts.

  The total length of n texts varies by about 1 / sqrt(n) of itself. Counts between two powers of two are multiples of
  `spread / sqrt(texts)` of the lower one: fine steps for large batches, and a handful of them in use.
  """
  step = _step(rows, texts, spread)
  return max(1, -(-rows // step)) * step


def _step(rows, texts, spread):
  return max(1, round(spread / math.sqrt(max(texts, 1)) * (1 << max(rows, 1).bit_length() - 1)))


def usual_rows(texts: Texts, texts_of_part: int, spread: float, variation: float) -> UsualRows:
  """Row counts of batches like a given one: its own, and by how much those of others differ by chance.

  The total length of n texts has a standard deviation of `sqrt(n)` times that of one text. There is room for
  `variation` of them, at most a step of `round_rows`: no more padding than rounding would bring at worst.

  Args:
    texts: of the batch, packed: of all its parts.
    texts_of_part: how many texts a part has.
    spread: of `round_rows`.
    variation: how far the rows of two batches may differ, in standard deviations.
  """
  ids = texts.segment_ids.reshape(-1, *texts.segment_ids.shape[-2:])
  rows = int((ids > 0).any(-1).sum(-1).max())
  of_part = (ids + np.arange(len(ids))[:, None, None] * (texts_of_part + 1))[ids > 0]
  lengths = np.unique(of_part, return_counts=True)[1]
  if not len(lengths):
    return UsualRows(0, 0)
  varies = variation * rows * lengths.std() / lengths.mean() / math.sqrt(len(lengths))
  varies = math.ceil(min(varies, _step(rows, texts_of_part, spread)))
  return UsualRows(rows - 2 * varies, rows + varies)


def balance(queries: np.ndarray, passages: np.ndarray, parts: int) -> np.ndarray:
  """An order of the pairs in which consecutive equal parts hold about as many tokens of each side.

  Pairs are dealt in rounds, those with the longest passages first, one to each part: in the first half of the rounds
  the longest passage to the part with the fewest passage tokens, in the second, where passages hardly differ within a
  round, the longest query to the part with the fewest query tokens.

  Args:
    queries: int `[pairs]`, tokens of each pair on the query side.
    passages: int `[pairs]`, likewise.
    parts: divides the number of pairs.

  Returns:
    int64 `[pairs]`, the pairs of the first part, then of the second, ..
  """
  order = np.argsort(-passages, kind="stable").reshape(-1, parts)
  query_tokens, passage_tokens = np.zeros((2, parts), np.int64)
  dealt = np.empty_like(order)
  for number, pairs in enumerate(order):
    if 2 * number < len(order):
      to = np.argsort(passage_tokens, kind="stable")
    else:
      pairs = pairs[np.argsort(-queries[pairs], kind="stable")]
      to = np.argsort(query_tokens, kind="stable")
    dealt[number, to] = pairs
    query_tokens[to] += queries[pairs]
    passage_tokens[to] += passages[pairs]
  return np.sort(dealt.T, axis=1).reshape(-1)
