"""What is done with each part, key and pair, whether the engine of this machine does it or Apache Beam."""

import dataclasses
import itertools
import marshal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from gtr_jax.io import lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare import decontaminate, near_pairs, records
from gtr_jax.prepare.interface import Counts, Example, Source
from gtr_jax.prepare.of_queries import by_query, joined, negatives_of, with_negatives
from gtr_jax.prepare.records import Pair
from gtr_jax.text.same_text import distinct, folded

MOST_DROPPED = 1000  # That dropped.jsonl shows.
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
  tested: str | None = None  # A file of `decontaminate.write_tested`.
  near_duplicates: bool = False


class Tally(Counts):
  """Also the first examples that were dropped because they are somewhere else."""

  def __init__(self):
    super().__init__()
    self.dropped = []

  def drop(self, reason: str, place: str, **texts: str) -> None:
    """Counts an example and keeps it for dropped.jsonl."""
    self.add(reason.split(" ")[0])
    if len(self.dropped) < MOST_DROPPED:
      shown = {name: text[:_SHOWN] for name, text in texts.items() if text}
      self.dropped.append({"reason": reason, "place": place} | shown)


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
    with epath.Path(part.path).open("rb") as f:
      for record in records.read_records(f, part.path):
        lines.progress.on_bytes(len(record) + 16)
        yield Pair(bytes.fromhex(records.id_in(record)), "", f"in_{part.name}".encode())
    return
  lines.progress.lines, yielded, place = 0, 0, place_of(part)
  for key, value in plan.source.read(part, tally):
    yielded += 1
    if not isinstance(value, Example):
      yield Value(key, marshal.dumps(value))
    elif (pair := pair_of(plan, value, place, tally)) is not None:
      yield pair
  tally.add("read", lines.progress.lines or yielded + tally.reasons["broken"])


def join(plan: Plan, key: str, values: Iterable[bytes], tally: Tally) -> Iterator[Pair]:
  """All that comes of the values of a key."""
  for example in plan.source.join(key, [marshal.loads(value) for value in values], tally):
    if (pair := pair_of(plan, example, f"key {key}", tally)) is not None:
      yield pair


def pair_of(plan: Plan, example: Example, place: str, tally: Tally) -> Pair | None:
  """None, and a reason counted, where the example is not to train on."""
  if len(example.negative_ids) not in (0, len(example.negatives)):
    raise ValueError(f"{len(example.negative_ids)} ids for {len(example.negatives)} negatives")
  if len(example.scores) not in (0, 1 + len(example.negatives)):
    raise ValueError(f"{len(example.scores)} scores for a passage and {len(example.negatives)} negatives")
  query, passage = (folded(text).encode(errors="surrogatepass") for text in (example.query, example.passage))
  if not query or not passage:
    tally.add("empty")
    return None
  if query == passage:
    tally.add("query_is_passage")
    return None
  digest = records.digest_of(query, passage)
  split = example.split
  if plan.tested and split == "train":
    find = decontaminate.load(plan.tested).find
    if what := find(example.query, example.passage):
      tally.drop(f"contaminated by {what}", place, query=example.query, passage=example.passage,
                 query_id=example.query_id, passage_id=example.passage_id)
      return None
    example = _clean_negatives(example, find, tally)
  group = example.group.encode(errors="surrogatepass") or query
  if split == "train" and plan.validation_share and records.share_of(group) < plan.validation_share:
    split = "validation"
  try:
    return Pair(digest, records.NEGATIVE if example.is_negative else split, records.serialize(example, digest.hex()))
  except UnicodeEncodeError:
    tally.add("not_unicode")
    return None


def _clean_negatives(example: Example, find: Callable[[str, str], str | None], tally: Tally) -> Example:
  """The example without the negatives that have what is tested."""
  negatives = negatives_of(example)
  clean = [negative for negative in negatives if not find("", negative.text)]
  clean_queries = tuple(text for text in example.negative_queries if not find(text, ""))
  dropped = len(negatives) - len(clean) + len(example.negative_queries) - len(clean_queries)
  if not dropped:
    return example
  tally.add("contaminated_negative", dropped)
  return with_negatives(example, clean)._replace(negative_queries=clean_queries)


def kept(pairs: Iterable[tuple], tally: Tally,
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
        tally.drop("near_duplicate", "", **_shown(pair.record, tally), near_id=other.rank[1:].hex(),
                   near_query=other.query, near_passage=other.passage)
        continue
      tally.add(f"written_{pair.split}")
      found.append(pair)
  return sorted(found, key=lambda pair: pair.digest[8:])


def different(pairs: Iterable[tuple]) -> Iterator[Pair]:
  """Of pairs in order of their digests those that `kept` writes, where none is near to another."""
  for _, group in itertools.groupby(map(Pair._make, pairs), key=lambda pair: pair.digest):
    yield from (pair for pair in _unique(list(group), Tally()) if pair.split != records.NEGATIVE)


def _shown(record: bytes, tally: Tally) -> dict[str, str]:
  """What dropped.jsonl shows of a pair, where it still shows some."""
  texts = records.texts_of(record) if len(tally.dropped) < MOST_DROPPED else {}
  return {name: texts[name][0] for name in ("query", "passage", "query_id", "passage_id") if name in texts}


def _unique(pairs: Sequence[Pair], tally: Tally) -> Iterator[Pair]:
  """Of each digest the first pair for validation, else the first, and none where there is a mark. It gets the negatives
  of the others of its split: some publish a line for each negative. Pairs that are `NEGATIVE` stay."""
  if len(pairs) == 1 and pairs[0].split:
    yield pairs[0]
    return
  for _, group in itertools.groupby(pairs, key=lambda pair: pair.digest):
    mark, first, others = None, None, []
    for pair in group:
      if not pair.split:
        mark = mark or pair
      elif pair.split == records.NEGATIVE:
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
    for pair in others:
      tally.drop(mark.record.decode() if mark else "duplicate", "", **_shown(pair.record, tally))


def _with_negatives_of(first: Pair, copies: Iterable[Pair], tally: Tally) -> Pair:
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
  return first._replace(record=records.serialize(example, first.digest.hex()))
