"""Hard negatives: passages that rank high for a query and do not answer it."""

import contextlib
import gzip
import itertools
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.collections.corpus import Documents, full_text
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, jsonl, tables
from gtr_jax.io.bars import Bar
from gtr_jax.mining.rankers import Query, Ranked, Ranker
from gtr_jax.parallel import processes
from gtr_jax.prepare.decontaminate import Tested
from gtr_jax.prepare.sources.pair_fields import texts_of
from gtr_jax.text.answers import answer_forms, contains_answer
from gtr_jax.text.near_text import are_near
from gtr_jax.text.same_text import hash_key, text_key

PAIRS_AT_ONCE = 1 << 17  # ranked together: a model's search reads the whole corpus for each such block


@dataclass(frozen=True)
class Fields:
  """Where a pair has what: its query, its passage, and if it has them their ids and the strings that answer it."""

  query: str = "query"
  passage: str = "positive"
  query_id: str | None = None
  passage_id: str | None = None
  answers: str | None = None


class Pair(NamedTuple):
  """A training pair: as it was read, and what it is compared by; `query_id` is "" where it has none."""

  record: dict[str, Any]
  query: Query
  query_id: str
  answers: tuple[str, ...] = ()

  @property
  def query_keys(self) -> tuple[int, ...]:
    """What the same queries share: their text, and their id."""
    by_id = (hash_key(f"id {self.query_id}"),) if self.query_id else ()
    return text_key(self.query.text), *by_id


@dataclass(frozen=True)
class Choice:
  """Which passages are negatives of a query, and how many are drawn.

  Attributes:
    num_negatives: per pair.
    first_rank: the best rank that a negative may have, from 1.
    last_rank: the worst.
    margin: a negative's score is at most its pair's passage's less this.
    max_score_ratio: .. and at most this times it (below 0, as far below it as above: s - (1 - ratio) |s|).
    seed: of the draw.

  Raises:
    InputError: the numbers do not fit together.
  """

  num_negatives: int = 1
  first_rank: int = 1
  last_rank: int = 100
  margin: float | None = None
  max_score_ratio: float | None = None
  seed: int = 0

  def __post_init__(self):
    if self.num_negatives < 1:
      raise InputError(f"{self.num_negatives} negatives for each pair: give 1 or more")
    if not 1 <= self.first_rank <= self.last_rank:
      raise InputError(f"ranks {self.first_rank} to {self.last_rank}: the first must be at least 1, and not above the "
                       "last")
    if self.num_negatives > self.last_rank - self.first_rank + 1:
      raise InputError(f"{self.num_negatives} negatives: ranks {self.first_rank} to {self.last_rank} have fewer")
    if self.margin is not None and math.isnan(self.margin):
      raise InputError("a margin of nan: give a number")
    if self.max_score_ratio is not None and not self.max_score_ratio > 0:
      raise InputError(f"a score ratio of {self.max_score_ratio:g}: give a number above 0, such as 0.95")

  @property
  def scores_positives(self) -> bool:
    return self.margin is not None or self.max_score_ratio is not None

  def rows(self, ranked: Ranked) -> np.ndarray:
    """Of a ranking, the rows whose rank and score allow them, best first."""
    window = slice(self.first_rank - 1, self.last_rank)
    rows, scores = ranked.rows[window], ranked.scores[window]
    most = np.inf
    if self.margin is not None:
      most = ranked.positive_score - self.margin
    if self.max_score_ratio is not None:
      most = np.minimum(most, ranked.positive_score - (1 - self.max_score_ratio) * abs(ranked.positive_score))
    return rows[scores <= most]  # None where the positive's score is not known.


class Mined(NamedTuple):
  """How many pairs were written, how many of them got fewer negatives than were asked for, and how many were left out
  because they have what is tested."""

  pairs: int
  short: int
  left_out: int = 0


def read_pairs(path: epath.PathLike, fields: Fields, own_passages: bool) -> Iterator[Pair]:
  """Yields the pairs of a file of JSON lines or of tables.

  Args:
    path: of the file, or of a folder of tables.
    fields: of an object.
    own_passages: the passages of the pairs are what is searched (see `passages_of`), and not a corpus of which
      `fields.passage_id` names the documents.

  Raises:
    InputError: a line is malformed, or has no query or no passage; or there is none, or none has the ids asked for.
  """
  number, without = 0, {name for name in (fields.query_id, fields.passage_id) if name is not None}
  for number, (place, record) in enumerate(tables.read_objects(path), start=1):  # noqa: B007  (read below)
    try:
      query, passage = jsonl.text_of(record, fields.query), jsonl.text_of(record, fields.passage)
      if not query.strip() or not passage.strip():
        raise ValueError(f'"{fields.passage if query.strip() else fields.query}" is empty')
      query_id, passage_id = ("" if name is None else jsonl.id_of(record, name)
                              for name in (fields.query_id, fields.passage_id))
      answers = _answers(record, fields.answers)
    except ValueError as e:
      raise InputError(f"{place}: {e}; correct or remove the line") from e
    without -= record.keys()
    document_id = passage_id or None
    if own_passages:
      document_id = f"{hash_key(f'id {passage_id}') if passage_id else text_key(passage):016x}"
    yield Pair(record, Query(query, passage, document_id), query_id, answers)
  if not number:
    raise InputError(f"{path}: no pairs")
  if without:
    raise InputError(f"{path}: no pair has a {min(without)!r}; name the field of their ids, or leave it out")


def _answers(record: Mapping[str, Any], name: str | None) -> tuple[str, ...]:
  value = [] if name is None else record.get(name)
  if isinstance(value, str) and name is not None:
    value = texts_of(record, name)
  if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
    raise ValueError(f'"{name}" is {json.dumps(value)[:40]}; give a string or a list of strings, [] for none')
  return tuple(value)


def judged_pairs(ranker: Ranker, query_ids: list[str], queries: list[str],
                 qrels: Mapping[str, Mapping[str, int]], min_grade: int = 1) -> list[Pair]:
  """Pairs of each query and each document that is judged relevant to it, with the texts of the corpus."""
  relevant = {query_id: [doc_id for doc_id, grade in grades.items() if grade >= min_grade]
              for query_id, grades in qrels.items()}
  texts = ranker.passages(list(dict.fromkeys(itertools.chain(*relevant.values()))))
  pairs = []
  for query_id, query in zip(query_ids, queries, strict=True):
    for doc_id in relevant.get(query_id, ()):
      record = {"query_id": query_id, "query": query, "passage_id": doc_id, "positive": texts[doc_id]}
      pairs.append(Pair(record, Query(query, texts[doc_id], doc_id), query_id))
  return pairs


def passages_of(pairs: Iterable[Pair], passage_id_field: str | None) -> tuple[Documents, dict[str, str | None]]:
  """The different passages of pairs as a corpus, and the id of each document in the pairs (None where it has none)."""
  texts: dict[str, str] = {}
  ids: dict[str, str | None] = {}
  for pair in pairs:
    document_id = pair.query.passage_id
    if document_id is not None and document_id not in texts:
      texts[document_id] = pair.query.passage
      ids[document_id] = (passage_id_field and jsonl.id_of(pair.record, passage_id_field)) or None
  return Documents(list(texts), [""] * len(texts), list(texts.values())), ids


def mine(pairs: Callable[[], Iterable[Pair]], ranker: Ranker, output: epath.PathLike, choice: Choice, *,
         id_of: Callable[[str], Any] | None = None, tested: Tested | None = None, progress: bool = True) -> Mined:
  """Gives each training pair hard negatives.

  For each query, negatives are drawn at random from the passages whose rank and score `choice` allows, less those that
  are known to answer it (the passages of all pairs with the same query, by id or equal text; passages too, by id and by
  equal text), those that are nearly the pair's own passage (`text.near_text`), those that are the query itself (by its
  id or an equal text, as where queries are documents), and those that contain one of its answers. The draw depends on
  the seed and the query alone.

  Args:
    pairs: called twice; gives the same pairs in the same order.
    ranker: of the passages.
    output: the JSONL(.gz) to write: each pair as it was, with "negatives" (a list of passages, best ranked first; short
      or empty where there are too few), and "negative_ids" if `id_of` is given. Appears when whole.
    choice: which, and how many.
    id_of: from a document's id to the one that is written, or None where it has none.
    tested: what evaluation collections test: pairs that have it are left out, and passages that have it not drawn.
    progress: show progress bars on stderr.
  """
  known: dict[int, set[int | str | None]] = defaultdict(set)  # a query's key -> ids and text keys of its passages
  count = left_out = 0
  for pair in pairs():
    for key in pair.query_keys:
      known[key] |= {text_key(pair.query.passage), pair.query.passage_id}
    count += 1
  short, remaining = 0, iter(pairs())
  with (_written(output) as write,
        Bar(count, "mining", " pairs", shown=progress and processes.is_first()) as bar):
    while block := list(itertools.islice(remaining, PAIRS_AT_ONCE)):
      ranked = ranker.rank([pair.query for pair in block], choice.last_rank, choice.scores_positives)
      for pair, found in zip(block, ranked, strict=True):
        if tested is not None and tested.find(pair.query.text, pair.query.passage):
          left_out += 1
        elif processes.is_first():
          wrong = set().union(*(known[key] for key in pair.query_keys))
          wrong.add(text_key(pair.query.text))
          drawn = _draw(pair, choice.rows(found), ranker, wrong, choice, id_of or str,
                        lambda text: tested is not None and tested.find("", text) is not None)
          short += len(drawn) < choice.num_negatives
          ids = {} if id_of is None else {"negative_ids": [id_of(doc_id) for doc_id, _ in drawn]}
          write({**pair.record, "negatives": [text for _, text in drawn], **ids})
        bar.update()
  return Mined(count - left_out, processes.from_first(lambda: short), left_out)


def _draw(pair: Pair, rows: np.ndarray, ranker: Ranker, wrong: set, choice: Choice,
          id_of: Callable[[str], str | None], is_tested: Callable[[str], bool]) -> list[tuple[str, str]]:
  """(id, text) of the negatives, best ranked first. Texts are read until there are enough, and no more.

  `wrong` holds ids and text keys of passages that must not be drawn.
  """
  forms = answer_forms(pair.answers)
  rng = random.Random(f"{choice.seed} {pair.query.text}")
  drawn, texts = {}, set[int]()
  for place in rng.sample(range(len(rows)), len(rows)):
    doc_id, title, text = ranker.passage(int(rows[place]))
    whole = full_text(title, text)
    keys = {text_key(whole), text_key(text)}  # A pair may have its passage without the title.
    if doc_id in wrong or (pair.query_id and id_of(doc_id) == pair.query_id):
      continue
    if (wrong.isdisjoint(keys) and texts.isdisjoint(keys) and not contains_answer(whole, forms)
        and not are_near(whole, pair.query.passage) and not is_tested(whole)):
      drawn[place] = doc_id, whole
      texts.add(text_key(whole))
      if len(drawn) == choice.num_negatives:
        break
  return [drawn[place] for place in sorted(drawn)]


@contextlib.contextmanager
def _written(path: epath.PathLike) -> Iterator[Callable[[Mapping[str, Any]], object]]:
  """Gives what writes a record, in the first process; the JSONL(.gz) appears when whole."""
  if not processes.is_first():
    yield lambda record: None
    return
  with contextlib.ExitStack() as stack:
    stream = stack.enter_context(atomic.replacing(path))
    write: Callable[[bytes], object] = stream.write
    if os.fspath(path).endswith(".gz"):
      write = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="wb", filename="", mtime=0)).write
    yield lambda record: write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
