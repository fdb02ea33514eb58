"""What pairs of one query know of each other, whatever lines and sources they come from.

What answers the query in one pair is no negative in another, and the loss is told of it (`Example.positives`); what a
source calls no answer is a negative of all of them.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gtr_jax.prepare import records
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.records import Pair
from gtr_jax.text.same_text import distinct, folded, key_of_folded

MOST_POSITIVES = 16  # That a pair knows of beside its own; the loss compares all passages of a batch with each.


class Negative(NamedTuple):
  """A hard negative; "" and NaN where it has no id or score."""

  text: str
  id: str = ""
  score: float = math.nan


def negatives_of(example: Example) -> list[Negative]:
  """With what is known of each."""
  count = len(example.negatives)
  return list(map(Negative, example.negatives, example.negative_ids or ("",) * count,
                  example.scores[1:] or (math.nan,) * count))


def with_negatives(example: Example, negatives: Sequence[Negative]) -> Example:
  """The example with these in the place of its own."""
  texts, ids, scores = zip(*negatives, strict=True) if negatives else ((), (), ())
  scores = (example.scores[0] if example.scores else math.nan, *scores)
  return example._replace(negatives=texts, negative_ids=ids if any(ids) else (),
                          scores=() if all(map(math.isnan, scores)) else scores)


def by_query(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
  """The pairs of each query, of pairs in order of their digests."""
  for _, of_query in itertools.groupby(pairs, key=lambda pair: pair.digest[:8]):
    yield list(of_query)


def joined(pairs: Sequence[Pair], counts: Counts) -> Iterator[Pair]:
  """The pairs of a query, each knowing of the others: its negatives are none of their passages, but those of pairs that
  are `NEGATIVE`, which are not among the result."""
  positives = [pair for pair in pairs if pair.split != records.NEGATIVE]
  if len(pairs) == len(positives) < 2:
    yield from positives
    return
  if not positives:
    counts.add("negative_without_positive", len(pairs))
    return
  examples = [records.example_in(pair.record) for pair in positives]
  others = [Negative(example.passage, example.passage_id, *example.scores[:1]) for example in (
      records.example_in(pair.record) for pair in pairs if pair.split == records.NEGATIVE)]
  answers = dict.fromkeys(folded(example.passage) for example in examples)
  keys = {text: str(_signed(key_of_folded(text))) for text in answers} if len(answers) > 1 else {}
  for pair, example in zip(positives, examples, strict=True):
    found = negatives_of(example)
    kept = distinct((*found, *others), lambda negative: negative.text)
    right = [negative for text, negative in kept.items() if text not in answers]
    if dropped := len(kept) - len(right):
      counts.add("negative_is_positive", dropped)
    own = folded(example.passage)
    known = [key for text, key in keys.items() if text != own]
    if len(known) > MOST_POSITIVES:
      counts.add("more_positives", len(known) - MOST_POSITIVES)
    if right != found or known:
      example = with_negatives(example, right)._replace(positives=tuple(known[:MOST_POSITIVES]))
      example_id = records.texts_of(pair.record)["example_id"][0]
      pair = pair._replace(record=records.serialize(example, example_id))
    yield pair


def _signed(key: int) -> int:
  """As the int64 that a batch holds."""
  return (key + 2**63) % 2**64 - 2**63
