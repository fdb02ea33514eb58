"""Figures of training pairs: how many, how long, how much is cut, how often there, how full rows will be."""

import collections
import heapq
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gtr_jax.prepare.interface import Example
from gtr_jax.text import language
from gtr_jax.text.packing import best_fit
from gtr_jax.text.same_text import text_key
from gtr_jax.text.tokenizer import MOST_TOKENS, Tokenizer

_AT_ONCE = 1000  # Examples that are tokenised together.
BINS = 20
_SHOWN_LANGUAGES = 6
_QUANTILES = (0.5, 0.9, 0.99)
_LOOKED_AT = 2000  # Passages, whose languages are guessed.
_PACKED = 128  # Pairs of a part, whose rows are filled.


class Side(NamedTuple):
  """Of the queries, or of the passages and negatives.

  Attributes:
    texts: how many.
    mean: length on average.
    quantiles: lengths that a half, nine tenths and all but a hundredth do not exceed.
    longest: of all.
    limit: where a run cuts; None: not asked.
    cut: share of the texts that are longer; None: not asked.
    histogram: (least length, texts) of each of 20 equal parts up to the 99th percentile, and what is above it.
  """

  texts: int
  mean: float
  quantiles: tuple[int, ...]
  longest: int
  limit: int | None
  cut: float | None
  histogram: list[tuple[int, int]]


class Stats(NamedTuple):
  """Of some pairs.

  Attributes:
    pairs: how many.
    no_answers: rows beside them whose passage does not answer the query: `prepare` makes negatives of it, and its
      length is among those of `documents`.
    query_is_passage: pairs whose two texts are equal, which `prepare` drops.
    unit: of lengths: "tokens" or "words".
    queries: of `Side`; `documents` likewise.
    documents: see `queries`.
    distinct_queries: as texts are equal.
    distinct_passages: likewise.
    same_pairs: pairs that are there already.
    pairs_of_query: how many queries have so many pairs: "1", "2", .., "10 or more".
    negatives_of_pair: how many pairs have so many hard negatives.
    scored: pairs with a teacher's score.
    languages: of 2,000 of the passages, drawn by a hash, how many are in which most likely, by its code.
    fill: share of the slots of packed rows that hold tokens, of queries and passages; None without tokens and lengths.
  """

  pairs: int
  no_answers: int
  query_is_passage: int
  unit: str
  queries: Side
  documents: Side
  distinct_queries: int
  distinct_passages: int
  same_pairs: int
  pairs_of_query: dict[str, int]
  negatives_of_pair: dict[str, int]
  scored: int
  languages: dict[str, int]
  fill: float | None


def measure(examples: Iterable[Example], tokenizer: Tokenizer | None, limits: Mapping[str, int | None],
            row_lengths: Mapping[str, int] | None = None) -> Stats:
  """Reads all examples once. Memory: some 100 bytes for each.

  Args:
    examples: to measure.
    tokenizer: lengths are in its tokens, EOS included; None: in words.
    limits: where "query" and "document" are cut.
    row_lengths: of packed rows; None: the limits, or without them the longest.
  """
  lengths: dict[str, list[np.ndarray]] = {"query": [], "passage": [], "negative": []}
  queries: collections.Counter[int] = collections.Counter()
  passages, pairs = set[int](), set[int]()
  negatives: collections.Counter[int] = collections.Counter()
  count = same = scored = no_answers = of_itself = 0
  waiting: dict[str, list[str]] = {name: [] for name in lengths}
  drawn: list[tuple[int, str]] = []

  def measured():
    for name, texts in waiting.items():
      found = [len(ids) for ids in tokenizer.encode(texts, MOST_TOKENS)] if tokenizer else [
          len(text.split()) for text in texts]
      lengths[name].append(np.array(found, np.int32))
      texts.clear()

  for example in examples:
    if example.is_negative:
      no_answers += 1
      waiting["negative"] += [example.passage, *example.negatives]
      if len(waiting["negative"]) >= _AT_ONCE:
        measured()
      continue
    count += 1
    query, passage = text_key(example.query), text_key(example.passage)
    of_itself += query == passage
    queries[query] += 1
    passages.add(passage)
    same += (pair := hash((query, passage))) in pairs
    pairs.add(pair)
    negatives[len(example.negatives)] += 1
    scored += bool(example.scores)
    (heapq.heappush if len(drawn) < _LOOKED_AT else heapq.heappushpop)(drawn, (passage, example.passage))
    waiting["query"].append(example.query)
    waiting["passage"].append(example.passage)
    waiting["negative"] += example.negatives
    if len(waiting["query"]) >= _AT_ONCE:
      measured()
  measured()
  of_query, of_passage, of_negative = (np.concatenate(parts) for parts in lengths.values())
  return Stats(
      count, no_answers, of_itself, "tokens" if tokenizer else "words", _side(of_query, limits["query"]),
      _side(np.concatenate([of_passage, of_negative]), limits["document"]), len(queries), len(passages), same,
      _counted(collections.Counter(queries.values())), _counted(negatives), scored,
      dict(collections.Counter(language.most_likely(text) for _, text in drawn).most_common()),
      _fill(of_query, of_passage, limits, row_lengths) if tokenizer and count else None)


def _side(lengths, limit):
  if not len(lengths):
    return Side(0, 0.0, (0,) * len(_QUANTILES), 0, limit, None, [])
  quantiles = [int(np.quantile(lengths, q, method="higher")) for q in _QUANTILES]
  width = max(1, math.ceil((quantiles[-1] + 1) / BINS))
  of_bin = np.bincount(np.minimum(lengths // width, BINS))
  return Side(len(lengths), float(lengths.mean()), tuple(quantiles), int(lengths.max()), limit,
              None if limit is None else float(np.mean(lengths > limit)),
              [(number * width, int(texts)) for number, texts in enumerate(of_bin)])


def _counted(counts):
  found: dict[str, int] = {}
  for number, times in sorted(counts.items()):
    name = str(number) if number < 10 else "10 or more"
    found[name] = found.get(name, 0) + times
  return found


def _fill(queries, passages, limits, row_lengths):
  """Of the first pairs, as they are packed in parts of 128."""
  tokens = slots = 0
  for side, lengths in (("query", queries), ("document", passages)):
    limit = limits[side] or int(lengths.max())
    row = (row_lengths or {}).get(side) or limit
    for start in range(0, min(len(lengths), 20 * _PACKED), _PACKED):
      part = np.minimum(lengths[start:start + _PACKED], min(limit, row))
      tokens += int(part.sum())
      slots += best_fit(part, row)[2] * row
  return tokens / slots


def as_lines(stats: Stats) -> list[str]:
  """For people."""
  lines = [f"pairs       {stats.pairs:,}; {stats.distinct_queries:,} different queries, "
           f"{stats.distinct_passages:,} different passages" + (
               f"; {stats.same_pairs:,} pairs are there already" if stats.same_pairs else "")]
  if stats.no_answers:
    lines.append(f"no answers  {stats.no_answers:,} rows more, whose passage does not answer the query: gtr-jax "
                 "prepare makes negatives of them")
  if stats.query_is_passage:
    lines.append(f"dropped     of {stats.query_is_passage:,} pairs the query is the passage: gtr-jax prepare drops "
                 "them")
  for name, side in (("queries", stats.queries), ("documents", stats.documents)):
    if not side.texts:
      continue
    cut = "" if side.cut is None else f"; {side.cut:.1%} are cut at {side.limit}"
    half, most, nearly_all = side.quantiles
    lines.append(f"{name:12}{side.texts:,}: {side.mean:.1f} {stats.unit} on average, half up to {half}, 90 % up to "
                 f"{most}, 99 % up to {nearly_all}, the longest {side.longest:,}{cut}")
  for name, counts in (("pairs of a query", stats.pairs_of_query), ("negatives of a pair", stats.negatives_of_pair)):
    lines.append(f"{name}: " + ", ".join(f"{number}: {times:,}" for number, times in counts.items()))
  if stats.scored:
    lines.append(f"{stats.scored:,} pairs have scores of a teacher")
  if total := sum(stats.languages.values()):
    most_first = [f"{code} {times / total:.1%}" for code, times in [*stats.languages.items()][:_SHOWN_LANGUAGES]]
    others = len(stats.languages) - len(most_first)
    lines.append(f"languages   of {total:,} passages: {', '.join(most_first)}{f' and {others} more' if others else ''}")
  if stats.fill is not None:
    lines.append(f"packed      rows are filled to {stats.fill:.1%} where parts have {_PACKED} pairs")
  for name, side in (("queries", stats.queries), ("documents", stats.documents)):
    most = max((texts for _, texts in side.histogram), default=0)
    lines += [f"{name}, {stats.unit}:"] * bool(most)
    for number, (least, texts) in enumerate(side.histogram):
      to = f" to {side.longest:,}" if number == BINS else ""
      lines.append(f"  {f'{least}{to}':>14} {texts:>12,} {'#' * math.ceil(40 * texts / most)}")
  return lines


def as_json(stats: Stats) -> dict[str, Any]:
  """For machines."""
  return {name: value._asdict() if isinstance(value, Side) else value for name, value in stats._asdict().items()}
