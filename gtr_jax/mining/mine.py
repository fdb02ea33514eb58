"""Hard negatives: passages that rank high for a query and do not answer it."""

import contextlib
import functools
import gzip
import itertools
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from gtr_jax.collections.corpus import full_text
from gtr_jax.errors import InputError
from gtr_jax.io import atomic
from gtr_jax.io.bars import Bar
from gtr_jax.mining.on_disk import Gathered, IdRows, PassagesOfPairs
from gtr_jax.mining.pairs import Pair, id_key
from gtr_jax.mining.rankers import Query, Ranked, Ranker
from gtr_jax.mining.rescore import Rescorer
from gtr_jax.parallel import processes
from gtr_jax.prepare.decontaminate import Tested
from gtr_jax.text.answers import answer_forms, contains_answer
from gtr_jax.text.near_text import are_near
from gtr_jax.text.same_text import text_key

_DRAWN_AT_ONCE = 256  # Pairs that are in memory with their negatives, where nothing is rescored.


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
  def compares_scores(self) -> bool:
    return self.margin is not None or self.max_score_ratio is not None

  def most(self, positive_score: float) -> float:
    """The highest score of a negative; NaN, which no score is below, where the positive's is not known."""
    most = math.inf
    if self.margin is not None:
      most = positive_score - self.margin
    if self.max_score_ratio is not None:
      most = np.minimum(most, positive_score - (1 - self.max_score_ratio) * abs(positive_score))
    return most


class Mined(NamedTuple):
  """How many pairs were written, how many of them got fewer negatives than were asked for, and how many were left out
  because they have what is tested."""

  pairs: int
  short: int
  left_out: int = 0


class _Negative(NamedTuple):
  rank: int  # From 1.
  score: float  # The ranker's.
  doc_id: str
  text: str


@dataclass
class _Draw:
  """A pair, and what is drawn for it."""

  pair: Pair
  found: Ranked
  candidates: Iterator[_Negative]
  negatives: list[_Negative] = field(default_factory=list)
  scores: dict[int, float] = field(default_factory=dict)  # The rescorer's: 0 is the pair's own passage, else by rank.


def mine(gathered: Gathered, ranker: Ranker, output: epath.PathLike, choice: Choice, *, tested: Tested | None = None,
         rescorer: Rescorer | None = None, progress: bool = True) -> Mined:
  """Gives each training pair hard negatives.

  For each query, negatives are drawn at random from the passages whose rank and score `choice` allows, less those that
  are known to answer it (the passages of all pairs with the same query, by id or equal text; passages too, by id and by
  equal text, whatever their title), those that are near to one of these (`text.near_text`), those that are the query
  itself (by its id or an equal text, as where queries are documents; where the pair's passage is named as a part of it,
  d7#3 of d7, all that are named so), and those that contain one of its answers. The draw depends on the
  seed and the query alone.

  Args:
    gathered: the pairs; with passages, these are what the ranker ranks, else it is a corpus, whose documents
      `Pair.passage_id` names.
    ranker: of the passages.
    output: the JSONL(.gz) to write: the record of each pair, with "negatives" (a list of passages, best ranked first;
      short or empty where there are too few), "negative_ids" where passages have ids, "scores" (the rescorer's, of the
      passage and of the negatives) where there is one, and "mined": "ranks" and "scores" of the negatives in the
      ranking, and "positive_score" (None: not known). Appears when whole.
    choice: which, and how many; with a rescorer, scores are compared with its own.
    tested: what evaluation collections test: pairs that have it are left out, and passages that have it not drawn.
    rescorer: scores what is drawn, and draws on for what its scores do not allow.
    progress: show progress bars on stderr.
  """
  ids = _Ids(gathered.passages)
  short = left_out = 0
  ahead, behind = gathered.pairs(), gathered.pairs()
  draws = processes.is_first() or rescorer is not None and rescorer.takes_all_processes
  at_once = rescorer.pairs_at_once if rescorer else _DRAWN_AT_ONCE
  with (_written(output) as write,
        Bar(gathered.num_pairs, "mining", " pairs", shown=progress and processes.is_first()) as bar):
    while queries := [ids.query_of(pair) for pair in itertools.islice(ahead, ranker.pairs_at_once)]:
      ranked = ranker.rank(queries, choice.last_rank, choice.compares_scores and rescorer is None)
      block = zip(itertools.islice(behind, len(queries)), ranked, strict=True)
      while part := list(itertools.islice(block, at_once)):
        drawn = []
        for pair, found in part:
          if tested is not None and tested.find(pair.query, pair.passage):
            left_out += 1
          elif draws:
            drawn.append(_Draw(pair, found, _candidates(pair, found, gathered, ranker, ids, choice, tested,
                                                        rescorer is not None)))
        if rescorer is None:
          for draw in drawn:
            draw.negatives = list(itertools.islice(draw.candidates, choice.num_negatives))
        else:
          _rescore(drawn, rescorer, choice)
        for draw in drawn:
          short += len(draw.negatives) < choice.num_negatives
          write(_record(draw, ids, rescorer is not None))
        bar.update(len(part))
  return Mined(gathered.num_pairs - left_out, processes.from_first(lambda: short), left_out)


class _Ids:
  """What documents are called: those of a corpus by their ids, those of pairs by the pairs' ids, if they have some."""

  def __init__(self, passages: PassagesOfPairs | None):
    self._passages = passages
    self._rows = IdRows(passages.documents.ids) if passages is not None and passages.have_ids else None
    self.are_written = passages is None or passages.have_ids

  def query_of(self, pair: Pair) -> Query:
    """For the ranker."""
    if self._passages is None:
      return Query(pair.query, pair.passage, pair.document_id or None)
    return Query(pair.query, "", f"{pair.passage_key:016x}")

  def key_of(self, doc_id: str) -> int:
    """The `passage_key` of a document that has an id; of one that has none, that of its text."""
    return id_key(doc_id) if self._passages is None else int(doc_id, 16)

  def given(self, doc_id: str) -> str | None:
    """The id that the user knows."""
    if self._passages is None:
      return doc_id
    row = None if self._rows is None else self._rows.get(doc_id)
    return None if row is None else self._passages.given_ids[row]


def _candidates(pair: Pair, found: Ranked, gathered: Gathered, ranker: Ranker, ids: _Ids, choice: Choice,
                tested: Tested | None, any_score: bool) -> Iterator[_Negative]:
  """All possible negatives, in the order of the draw; the text of one is read when it is asked for.

  Args:
    any_score: scores are not compared.
  """
  places = np.arange(choice.first_rank - 1, min(choice.last_rank, len(found.rows)))
  if not any_score:
    places = places[found.scores[places] <= choice.most(found.positive_score)]
  known = gathered.known
  query_keys = tuple(sorted({*pair.query_keys, *known.ids(text_key(pair.query))}))
  wrong = {text_key(pair.query), *pair.others}.union(*map(known.of, query_keys))
  near: list[Callable[[str], bool]] = [functools.partial(are_near, pair.passage)]
  if (to_others := known.near(query_keys)) is not None:
    near.append(to_others)
  forms = answer_forms(pair.answers)
  texts = set[int]()
  for i in random.Random(f"{choice.seed} {pair.query}").sample(range(len(places)), len(places)):
    place = int(places[i])
    doc_id, title, text = ranker.passage(int(found.rows[place]))
    if ids.key_of(doc_id) in wrong or _is_of_query(pair, ids.given(doc_id)):
      continue
    whole = full_text(title, text)
    keys = set(map(text_key, filter(None, (whole, text))))  # A pair may have its passage without the title.
    if (wrong.isdisjoint(keys) and texts.isdisjoint(keys) and not contains_answer(whole, forms)
        and not any(is_near(whole) for is_near in near) and not (tested is not None and tested.find("", whole))):
      texts |= keys
      yield _Negative(place + 1, float(found.scores[place]), doc_id, whole)


def _is_of_query(pair: Pair, doc_id: str | None) -> bool:
  """Whether a document is the query itself, by its id; or a part of it, where the pair's passage is named as one."""
  if not pair.query_id or not doc_id:
    return False
  part = pair.passage_id.removeprefix(pair.query_id)
  is_part = 0 < len(part) < len(pair.passage_id) and not part[0].isalnum()
  return doc_id == pair.query_id or is_part and doc_id.startswith(pair.query_id + part[0])


def _rescore(draws: Sequence[_Draw], rescorer: Rescorer, choice: Choice) -> None:
  """Draws until each has its negatives: first as many as it needs, for what need not be is not scored; then ever more
  at once, so that pairs that have few take no more than some rounds."""
  own = rescorer.score([(draw.pair.query, draw.pair.passage) for draw in draws])
  for draw, score in zip(draws, own.tolist(), strict=True):
    draw.scores[0] = score
  waiting, number = list(draws), choice.num_negatives
  while waiting:
    coming = [(draw, negative) for draw in waiting for negative in itertools.islice(draw.candidates, number)]
    number *= 2
    scores = rescorer.score([(draw.pair.query, negative.text) for draw, negative in coming])
    for (draw, negative), score in zip(coming, scores.tolist(), strict=True):
      if len(draw.negatives) < choice.num_negatives and score <= choice.most(draw.scores[0]):
        draw.negatives.append(negative)
        draw.scores[negative.rank] = score
    asked = {id(draw) for draw, _ in coming}
    waiting = [draw for draw in waiting if id(draw) in asked and len(draw.negatives) < choice.num_negatives]


def _record(draw: _Draw, ids: _Ids, rescored: bool) -> dict[str, Any]:
  negatives = sorted(draw.negatives)  # By rank.
  record = {**draw.pair.record, "negatives": [negative.text for negative in negatives]}
  if ids.are_written:
    record["negative_ids"] = [ids.given(negative.doc_id) for negative in negatives]
  if rescored:
    record["scores"] = [_rounded(draw.scores[rank]) for rank in (0, *(negative.rank for negative in negatives))]
  positive = draw.found.positive_score
  return record | {"mined": {
      "ranks": [negative.rank for negative in negatives], "scores": [_rounded(n.score) for n in negatives],
      "positive_score": None if math.isnan(positive) else _rounded(positive)}}


def _rounded(score: float) -> float:
  """To the digits that a float32 has."""
  return float(f"{score:.7g}")


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
