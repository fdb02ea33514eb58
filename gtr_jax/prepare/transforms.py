"""What is done with each part, key and pair, whether the engine of this machine does it or Apache Beam."""

import collections
import dataclasses
import itertools
import marshal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from gtr_jax.io import lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare import decontaminate, near_pairs, records
from gtr_jax.prepare.interface import Counts, Example, Source
from gtr_jax.prepare.of_queries import (
    Negative,
    by_query,
    joined,
    negatives_of,
    on_one_side,
    right_negatives,
    told_of_id,
    with_negatives,
)
from gtr_jax.prepare.records import Pair
from gtr_jax.text import language
from gtr_jax.text.same_text import distinct, folded

KEPT_EXAMPLES = 20  # Of a reason, in a task and in dropped.jsonl.
OF_ID = "\0query id "  # Begins the key under which pairs of one query id meet, whatever their query's words.
_OF_SET = OF_ID + "\0"  # And of one set.
_SHOWN = 300  # Characters of a text that it shows.


class Shard(NamedTuple):
  """A file of data prepared earlier, whose pairs are not wanted again."""

  name: str
  path: str


class Value(NamedTuple):
  """What a source has read and joins with the other values of its key."""

  key: str
  value: bytes  # marshal


@dataclasses.dataclass(frozen=True)
class Plan:
  """What decides the examples, beside the files."""

  source: Source
  validation_share: float = 0.0
  tested: decontaminate.File | None = None
  near_duplicates: bool = False
  language: str = language.ANY


class Tally(Counts):
  """Also the first examples of each reason for which something was dropped: what dropped.jsonl shows."""

  def __init__(self):
    super().__init__()
    self.dropped: list[dict[str, str]] = []
    self._answers: list[Pair | Value] = []
    self._kept = collections.Counter[str]()

  def drop(self, reason: str, place: str = "", n: int = 1, **texts: str) -> None:
    super().drop(reason, place, n)
    if self.wants(reason):
      shown = {name: _beginning(text) for name, text in texts.items() if text}
      self.keep([{"reason": reason, "place": place or self.place} | shown])

  def answer(self, example: Example) -> None:
    query, passage = (folded(text).encode(errors="surrogatepass") for text in (example.query, example.passage))
    if query and passage:
      digest = records.digest_of(query, passage)
      self._answers += [Pair(digest, records.ANSWER, records.known_of(example.passage, example.passage_id)),
                        *_told(example, digest)]

  def answers(self) -> list[Pair | Value]:
    """What `answer` was told since the last time."""
    answers, self._answers = self._answers, []
    return answers

  def broken(self, place: str, why: str) -> None:
    super().broken(place, why)
    if self.wants("broken"):
      self.keep([{"reason": "broken", "place": place, "why": _beginning(why)}])

  def wants(self, reason: str) -> bool:
    return self._kept[reason.partition(" ")[0]] < KEPT_EXAMPLES

  def keep(self, dropped: Iterable[dict[str, str]]) -> None:
    """Takes in examples, of this task or of the next one, as long as those of a reason are few."""
    for example in dropped:
      if self.wants(example["reason"]):
        self._kept[example["reason"].partition(" ")[0]] += 1
        self.dropped.append(example)


def _beginning(text: str) -> str:
  """The beginning, as it can be written: half characters by their numbers."""
  return text[:_SHOWN].encode(errors="backslashreplace").decode()


def place_of(part: Part | Shard) -> str:
  """For messages."""
  if isinstance(part, Shard) or part.stop is None and not part.start:
    return part.path
  return f"{part.path}, from byte {part.start}"


def size_of(part: Part | Shard) -> int:
  """Bytes that are read of its file."""
  if isinstance(part, Part) and part.stop is not None:
    return part.stop - part.start
  return lines.size_of(part.path) - (part.start if isinstance(part, Part) else 0)


def read(plan: Plan, part: Part | Shard, tally: Tally) -> Generator[Pair | Value]:
  """All that is in a part."""
  if isinstance(part, Shard):
    for record in records.records_in(epath.Path(part.path)):
      lines.progress.on_bytes(len(record) + 16)
      texts = records.texts_of(record)
      yield Pair(bytes.fromhex(texts["example_id"][0]), "", f"in_{part.name} {texts['passage_key'][0]}".encode())
    return
  lines.progress.lines, yielded, tally.place = 0, 0, place_of(part)
  for key, value in plan.source.read(part, tally):
    yielded += 1
    if not isinstance(value, Example):
      yield Value(key, marshal.dumps(value))
    elif (pair := pair_of(plan, value, tally)) is not None:
      yield pair
      if pair.is_trained_on:
        yield from _told(value, pair.digest)
    yield from tally.answers()
  yield from tally.answers()
  tally.add("read", lines.progress.lines or yielded + tally.reasons["broken"])


def _told(example: Example, digest: bytes) -> Iterator[Value]:
  """What the other wordings of the query's id, or the other texts of a set, are told by `told_of_id`."""
  if not example.query_id or example.group:
    return
  if example.is_mutual:  # Each text of a set is a query, and answers all.
    of_texts = [(records.query_digest(folded(text).encode(errors="surrogatepass")),
                 records.known_of(text, example.passage_id)) for text in (example.query, example.passage)]
    yield Value(_OF_SET + example.query_id, marshal.dumps(of_texts))
  else:
    known_passage = records.known_of(example.passage, example.passage_id)
    yield Value(OF_ID + example.query_id, marshal.dumps([(digest[:8], known_passage)]))


def join(plan: Plan, key: str, values: Iterable[bytes], tally: Tally) -> Iterator[Pair]:
  """All that comes of the values of a key."""
  if key.startswith(OF_ID):
    split = ""
    if plan.validation_share and not key.startswith(_OF_SET):
      split = "validation" if _is_held_out(plan, key) else "train"
    yield from told_of_id(itertools.chain.from_iterable(map(marshal.loads, values)), split)
    return
  tally.place = f"key {key}"
  for example in plan.source.join(key, [marshal.loads(value) for value in values], tally):
    if (pair := pair_of(plan, example, tally)) is not None:
      yield pair
  yield from (answer for answer in tally.answers() if isinstance(answer, Pair))  # A source's keys are its query ids.


def pair_of(plan: Plan, example: Example, tally: Tally) -> Pair | None:
  """None, and dropped for a reason, where the example is not to train on: what gives a test away by
  `prepare.decontaminate`, what is in another language by `text.language`, and equal texts by `text.same_text`. What
  answers the query stays known (`Tally.answers`)."""
  if example.is_mutual:
    first, second = (_is_held_out(plan, folded(text)) for text in (example.query, example.passage))
    if second and not first:  # A text that is held out is trained on in no set.
      example = example._replace(query=example.passage, passage=example.query)
  if len(example.negative_ids) not in (0, len(example.negatives)):
    raise ValueError(f"{len(example.negative_ids)} ids for {len(example.negatives)} negatives")
  if len(example.scores) not in (0, 1 + len(example.negatives)):
    raise ValueError(f"{len(example.scores)} scores for a passage and {len(example.negatives)} negatives")
  if len(example.vectors) not in (0, 2 + len(example.negatives)):
    raise ValueError(f"{len(example.vectors)} vectors for a query, a passage and {len(example.negatives)} negatives")
  folded_query, folded_passage = folded(example.query), folded(example.passage)
  query, passage = (text.encode(errors="surrogatepass") for text in (folded_query, folded_passage))
  shown: dict[str, Any] = {"query": example.query, "passage": example.passage, "query_id": example.query_id,
                           "passage_id": example.passage_id}
  if not query or not passage:
    tally.drop("empty", **shown)
    return None
  if query == passage:
    _left_out("query_is_passage", example, shown, tally)
    return None
  digest = records.digest_of(query, passage)
  example = right_negatives(example, folded_query, folded_passage, tally)
  split = example.split
  if plan.tested and split == "train":
    find = decontaminate.load(plan.tested).find
    if what := find(example.query, example.passage):
      _left_out(f"contaminated by {what}", example, shown, tally)
      return None
    example = _clean_negatives(example, find, tally)
  if not language.pair_is_in(plan.language, example.query, example.passage):
    _left_out("language", example, shown, tally)
    return None
  if split == "train" and _is_held_out(plan, example.group or folded_query):
    split = "validation" if example.group or example.is_mutual else records.DRAWN
  try:
    return Pair(digest, records.NEGATIVE if example.is_negative else split, records.serialize(example, digest.hex()))
  except UnicodeEncodeError:
    _left_out("not_unicode", example, shown, tally)
    return None


def _is_held_out(plan: Plan, text: str) -> bool:
  """Whether pairs of this group, or of this folded query, are, where a share is drawn."""
  return bool(plan.validation_share) and records.share_of(
      text.encode(errors="surrogatepass")) < plan.validation_share


def _left_out(reason: str, example: Example, shown: dict[str, Any], tally: Tally) -> None:
  """Counts it; its passage answers the query all the same."""
  tally.drop(reason, **shown)
  if not example.is_negative:
    tally.answer(example)


def _clean_negatives(example: Example, find: Callable[[str, str], str | None], tally: Tally) -> Example:
  """The example without the negatives that have what is tested."""
  clean, clean_queries = list[Negative](), list[str]()
  for negative in negatives_of(example):
    if what := find("", negative.text):
      tally.drop(f"contaminated_negative by {what}", query=example.query, negative=negative.text)
    else:
      clean.append(negative)
  for text in example.negative_queries:
    if what := find(text, ""):
      tally.drop(f"contaminated_negative by {what}", passage=example.passage, negative_query=text)
    else:
      clean_queries.append(text)
  if len(clean) == len(example.negatives) and len(clean_queries) == len(example.negative_queries):
    return example
  return with_negatives(example, clean)._replace(negative_queries=tuple(clean_queries))


def kept(pairs: Iterable[tuple], tally: Counts,
         may_be_near: Iterable[tuple[bytes, near_pairs.Earlier]] = ()) -> list[Pair]:
  """What is written of the pairs of some queries: no two with one digest, and each knows what the others of its query
  know (`of_queries`), also those that are left out because they are near to another pair.

  Args:
    pairs: in order of their digests; of one digest, marks come first.
    tally: of what is dropped.
    may_be_near: with the digests of some of the pairs, others that these may be near to.

  Returns:
    In an order in which neighbours have nothing to do with each other.
  """
  found: list[Pair] = []
  others: dict[bytes, list[near_pairs.Earlier]] = {}
  for digest, earlier in may_be_near:
    others.setdefault(digest, []).append(earlier)
  for of_query in by_query(map(Pair._make, pairs)):
    for pair in joined(list(_unique(of_query, tally)), tally):
      if pair.digest in others and (other := near_pairs.near_to(pair.record, others[pair.digest])):
        tally.drop("near_duplicate", **_texts(pair.record, "near_duplicate", tally), near_id=other.rank[1:].hex(),
                   near_query=other.query, near_passage=other.passage)
        continue
      tally.add(f"written_{pair.split}")
      found.append(pair)
  return sorted(found, key=lambda pair: pair.digest[8:])


def different(pairs: Iterable[tuple]) -> Iterator[Pair]:
  """Of pairs in order of their digests those that `kept` writes, where none is near to another."""
  for of_query in by_query(map(Pair._make, pairs)):
    yield from (pair for pair in _unique(of_query, Counts()) if pair.is_trained_on)


def _texts(record: bytes, reason: str, tally: Counts) -> dict[str, Any]:
  """What dropped.jsonl shows of a pair, where it still shows some."""
  texts = records.texts_of(record) if tally.wants(reason) else {}
  return {name: texts[name][0] for name in ("query", "passage", "query_id", "passage_id") if name in texts}


def _unique(pairs: Sequence[Pair], tally: Counts) -> Iterator[Pair]:
  """Of each digest the first pair for validation, else the first, and where there is a mark an `ANSWER` alone. It gets
  the negatives of the others of its split: some publish a line for each negative. Pairs that are `NEGATIVE` stay, and
  of the others what they say of the passage's id."""
  pairs = on_one_side(pairs)
  if len(pairs) == 1 and pairs[0].split:
    yield pairs[0]
    return
  for _, group in itertools.groupby(pairs, key=lambda pair: pair.digest):
    mark, first, others = None, None, []
    for pair in group:
      if not pair.split:
        mark = mark or pair
      elif pair.split in (records.ANSWER, records.NEGATIVE):
        yield pair
      elif mark or first and not (pair.split == "validation" != first.split):
        others.append(pair)
      else:
        others += [first] if first else []
        first = pair
    if first:
      if copies := [pair for pair in others if pair.split == first.split]:
        first = _with_negatives_of(first, copies, tally)
      yield first
    reason, _, key = mark.record.decode().partition(" ") if mark else ("duplicate", "", "")
    if mark:
      yield mark._replace(split=records.ANSWER, record=key.encode())
    for pair in others:
      tally.drop(reason, **_texts(pair.record, reason, tally))
      copy = records.example_in(pair.record)
      if copy.passage_id:
        yield pair._replace(split=records.ANSWER, record=records.known_of(copy.passage, copy.passage_id))


def _with_negatives_of(first: Pair, copies: Iterable[Pair], tally: Counts) -> Pair:
  """A pair with the negatives that its copies have beside its own."""
  whole = records.example_in(first.record)
  every = [whole, *(records.example_in(copy.record) for copy in copies)]
  negatives = distinct(itertools.chain.from_iterable(map(negatives_of, every)), lambda negative: negative.text)
  queries = distinct(itertools.chain.from_iterable(example.negative_queries for example in every), str)
  more = len(negatives) + len(queries) - len(whole.negatives) - len(whole.negative_queries)
  if more <= 0:
    return first
  tally.add("negative_of_duplicate", more)
  example = with_negatives(whole, list(negatives.values()))._replace(negative_queries=tuple(queries.values()))
  return first._replace(record=records.serialize(example, records.id_in(first.record)))
