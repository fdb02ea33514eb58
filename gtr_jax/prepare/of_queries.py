"""What pairs of one query know of each other, whatever lines and sources they come from.

What answers the query in one pair is no negative in another, and the loss is told of it (`Example.positives`); what a
source calls no answer is a negative of all of them.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gtr_jax.prepare import records
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.records import Pair
from gtr_jax.text.same_text import bytes_key, distinct

MOST_POSITIVES = 16  # That a pair knows of beside its own; the loss compares all passages of a batch with each.
_FEW_POSITIVES = 4
_FEW, _MANY = f"with_up_to_{_FEW_POSITIVES}_other_answers", f"with_up_to_{MOST_POSITIVES}_other_answers"


class Negative(NamedTuple):
  """A hard negative; "" and NaN where it has no id, score or vector."""

  text: str
  id: str = ""
  score: float = math.nan
  vector: str = ""


def negatives_of(example: Example) -> list[Negative]:
  """With what is known of each."""
  count = len(example.negatives)
  return list(map(Negative, example.negatives, example.negative_ids or ("",) * count,
                  example.scores[1:] or (math.nan,) * count, example.vectors[2:] or ("",) * count))


def with_negatives(example: Example, negatives: Sequence[Negative]) -> Example:
  """The example with these in the place of its own."""
  texts, ids, scores, vectors = zip(*negatives, strict=True) if negatives else ((), (), (), ())
  scores = (example.scores[0] if example.scores else math.nan, *scores)
  vectors = (*(example.vectors[:2] or ("", "")), *vectors)
  return example._replace(negatives=texts, negative_ids=ids if any(ids) else (),
                          scores=() if all(map(math.isnan, scores)) else scores,
                          vectors=vectors if any(vectors) else ())


def right_negatives(example: Example, query: str, passage: str, counts: Counts) -> Example:
  """The example without negatives of which nothing can be seen, or that are its query or its passage, this also by its
  id; and with the first of equal ones.

  Args:
    example: any.
    query: folded.
    passage: likewise.
    counts: of what is taken out.
  """
  if not example.negatives:
    return example
  found = distinct(negatives_of(example), lambda negative: negative.text)
  if copies := len(example.negatives) - len(found):
    counts.add("equal_negative", copies)
  found.pop("", None)
  if own := found.pop(query, None):
    counts.drop("negative_is_query", query=example.query, negative=own.text)
  right = [negative for text, negative in found.items()
           if text != passage and not (negative.id and negative.id == example.passage_id)]
  if dropped := len(found) - len(right):
    counts.drop("negative_is_positive", n=dropped, query=example.query, passage=example.passage, negative=next(
        negative.text for negative in found.values() if negative not in right))
  return example if len(right) == len(example.negatives) else with_negatives(example, right)


def by_query(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
  """The pairs of each query, of pairs in order of their digests."""
  for _, of_query in itertools.groupby(pairs, key=lambda pair: pair.digest[:8]):
    yield list(of_query)


def on_one_side(pairs: Sequence[Pair]) -> Sequence[Pair]:
  """The pairs of a query, in one split where a share is drawn: that of its words, or of its ids where one has several
  wordings. Of several the query is held out by any, as by a set that it is held out of."""
  sides = {pair.record for pair in pairs if pair.split == records.SIDE}
  if not sides:
    return [pair._replace(split="validation") if pair.split == records.DRAWN else pair for pair in pairs]
  split = "validation" if b"validation" in sides or any(pair.split == "validation" for pair in pairs) else "train"
  return [pair._replace(split=split) if pair.split in ("train", records.DRAWN) else pair
          for pair in pairs if pair.split != records.SIDE]


def told_of_id(pairs: Iterable[tuple[bytes, bytes]], split: str) -> Iterator[Pair]:
  """What each wording of a query is told by the id that they share: the answers to the others, and where it belongs.

  Args:
    pairs: 8 bytes of the digest that a wording's pairs share, and `records.known_of` the passage. An id with more than
      16 wordings is taken for none of a query.
    split: that the id is drawn for; "": none is drawn by ids.
  """
  of_wordings: dict[bytes, dict[bytes, None]] = {}
  for query, known in pairs:
    of_wordings.setdefault(query, {})[known] = None
  if not 1 < len(of_wordings) <= MOST_POSITIVES:
    return
  every = dict.fromkeys(itertools.chain.from_iterable(of_wordings.values()))
  for query, own in of_wordings.items():
    if split:
      yield Pair(query + bytes(8), records.SIDE, split.encode())
    for known in every:
      if known not in own:
        yield Pair(query + bytes_key(known).to_bytes(8), records.ANSWER, known)


def joined(pairs: Sequence[Pair], counts: Counts) -> Iterator[Pair]:
  """The pairs of a query, each knowing of the others: its negatives are none of their passages, by text or id, nor what
  an `ANSWER` is of, but the passages of pairs that are `NEGATIVE`. Neither of these are among the result."""
  positives = [pair for pair in pairs if pair.is_trained_on]
  if len(pairs) == len(positives) < 2:
    yield from positives
    return
  negatives = [pair for pair in pairs if pair.split == records.NEGATIVE]
  if not positives:
    if negatives:
      counts.drop("negative_without_positive", n=len(negatives), **_shown(negatives[0]) if counts.wants(
          "negative_without_positive") else {})
    return
  examples = [records.example_in(pair.record) for pair in positives]
  others = [Negative(example.passage, example.passage_id, (*example.scores, math.nan)[0], (*example.vectors, "", "")[1])
            for example in (records.example_in(pair.record) for pair in negatives)]
  answers = {records.key_of(example.passage): None for example in examples}
  ids = {example.passage_id for example in examples}
  for pair in pairs:
    if pair.split == records.ANSWER:
      key, _, passage_id = pair.record.decode(errors="surrogatepass").partition(" ")
      answers[key] = None
      ids.add(passage_id)
  ids.discard("")
  query = records.key_of(examples[0].query)
  for pair, example in zip(positives, examples, strict=True):
    found = negatives_of(example)
    kept = distinct((*found, *others), lambda negative: negative.text)
    keys = dict(zip(kept, map(records.key_of, kept), strict=True))
    right = [negative for text, negative in kept.items() if keys[text] not in answers and negative.id not in ids]
    if dropped := len(kept) - len(right):
      counts.drop("negative_is_positive", n=dropped, query=example.query, passage=example.passage, negative=next(
          negative.text for negative in kept.values() if negative not in right))
    own = records.key_of(example.passage)
    known = [key for key in answers if key not in (own, query)]
    if known:
      counts.add(_FEW if len(known) <= _FEW_POSITIVES else _MANY)
    if len(known) > MOST_POSITIVES:
      counts.add("more_positives", len(known) - MOST_POSITIVES)
    if right != found or known:
      example = with_negatives(example, right)._replace(positives=tuple(known[:MOST_POSITIVES]))
      pair = pair._replace(record=records.serialize(example, records.id_in(pair.record)))
    yield pair


def _shown(pair: Pair) -> dict[str, str]:
  example = records.example_in(pair.record)
  return {"query": example.query, "negative": example.passage}


def most_positives(counts: Mapping[str, int]) -> int:
  """How many `positives` a pair has at most, or some more, by the counts of `joined`."""
  return MOST_POSITIVES if counts.get(_MANY) else _FEW_POSITIVES if counts.get(_FEW) else 0
