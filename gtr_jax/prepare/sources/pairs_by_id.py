"""Queries, judgements and hard negatives by id -> pairs with negatives; the passages are looked up in a `PassageTable`.

MS MARCO and the collections in BEIR layout differ in the form of their files alone, which the files themselves show.
"""

import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from gtr_jax.collections.qrels import judgements_in
from gtr_jax.collections.queries import queries_in
from gtr_jax.errors import InputError
from gtr_jax.io import jsonl, lines, tables
from gtr_jax.io.lines import Part
from gtr_jax.prepare import pickles
from gtr_jax.prepare.interface import Counts, Example, what_is_wrong
from gtr_jax.prepare.passages import open_table, titled
from gtr_jax.prepare.sources import collection_files
from gtr_jax.prepare.sources.collection_files import identifier
from gtr_jax.text.same_text import folded
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative, Positive

_SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class JudgedPairs:
  """A pair for each judged-relevant passage of a query; all pairs of a query in the train split have its negatives.

  Attributes:
    name: of what is prepared.
    passages: file of passages, as `passages.open_table` takes it.
    queries: files of queries: TSV (id, text) or JSONL (`_id`, `text`).
    qrels: judgements to train on: with white space between them query, passage; or query, passage, grade under BEIR's
      header; or query, 0, passage, grade, as TREC has it.
    validation_qrels: the same for the validation split; empty: none.
    negatives: files of hard negatives: JSONL as sentence-transformers publishes it (`qid`, `pos`, `neg`: system -> ids
      from the best on, or objects with `pid` and `ce-score`), or TSV of triples (query, positive, negative).
    scores: a cross-encoder's, to tell false negatives by: a pickle of {query: {passage: score}}, or JSONL with `qid`
      and `scores`.
    titles: a TSV (id, title), where the passages have none.
    columns: of a TSV of passages, as `passages.open_table` takes them.
    cache: folder for the index of the passages.
    min_grade: from which grade on a judged passage is a positive; one of grade 0 or below is a negative.
    systems: take the negatives of these alone; empty: of all.
    margin: where there are scores, a negative must score this much below the worst positive.
    num_negatives: at most, for each query; 0: all.
  """

  listed: ClassVar[tuple[str, ...]] = ("queries", "qrels", "validation_qrels", "negatives")
  name: str
  passages: str
  queries: tuple[str, ...]
  qrels: str
  cache: str
  validation_qrels: str = ""
  negatives: tuple[str, ...] = ()
  scores: str = ""
  titles: str = ""
  columns: str = ""
  min_grade: Positive = 1
  systems: tuple[str, ...] = ()
  margin: float = 3.0
  num_negatives: NonNegative = 30

  def __post_init__(self):
    check_fields(self)

  @property
  def licence(self) -> str:
    """MS MARCO's terms, where it is MS MARCO by its name."""
    return ("MS MARCO's terms, for non-commercial research alone (https://microsoft.github.io/msmarco)"
            if "msmarco" in self.name else "")

  def parts(self) -> list[Part]:
    if self.scores and not self.negatives:
      raise InputError(f"{self.scores}: scores of negatives, and no negatives; give --negatives FILE too")
    parts = _parts([self.qrels], "train")
    if self.validation_qrels:
      parts += _parts([self.validation_qrels], "validation")
    parts += _parts(self.queries, "queries") + lines.line_parts(self.negatives, kind="negatives")
    if self.scores:
      pickled = ".pkl" in os.path.basename(self.scores)
      lines.size_of(self.scores)
      parts += [Part(self.scores, kind="scores")] if pickled else lines.line_parts([self.scores], kind="scores")
    table, _ = self._tables()
    collection_files.check_ids(self.qrels, self.queries, table)
    collection_files.check_negatives(self.negatives, self.qrels, table)
    if self.systems:
      collection_files.check_systems(self.negatives, self.systems)
    # Nothing is read of these, but they are inputs too.
    for kind, path in (("passages", self.passages), ("titles", self.titles)):
      if path:
        first, *others = tables.files(path)
        parts += [Part(first, kind=kind), *(Part(other, kind="more passages") for other in others)]
    return parts

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    if part.kind == "queries":
      yield from ((query_id, ["query", text.strip()]) for _, query_id, text in queries_in(part, counts.broken))
    elif part.kind == "negatives" and ".jsonl" in os.path.basename(part.path):
      yield from self._ranked(part, counts)
    elif part.kind == "negatives":
      yield from self._triples(part, counts)
    elif part.kind == "scores":
      yield from _read_scores(part, counts)
    elif part.kind in ("passages", "titles"):
      table = self._tables()[part.kind == "titles"]
      counts.update({"broken": table.broken} if table.broken else {}, table.broken_places)
    elif part.kind != "more passages":
      for _, query_id, passage_id, grade in judgements_in(part, counts.broken):
        yield query_id, ["judged", part.kind, passage_id, grade]

  def join(self, key: str, values: list[Any], counts: Counts) -> Iterator[Example]:
    query: str | None = None
    judged: dict[str, dict[str, int]] = {}
    scores: dict[str, float] = {}
    ranked, sampled, known = [], [], set()
    for what, *rest in values:
      if what == "query":
        if query not in (None, rest[0]):
          raise InputError(f"{', '.join(self.queries)}: the query id {key!r} is there twice, of {query[:60]!r} and of "
                           f"{rest[0][:60]!r}; ids must be unique: remove one")
        query = rest[0]
      elif what == "judged":
        of_split = judged.setdefault(rest[0], {})
        if of_split.setdefault(rest[1], rest[2]) != rest[2]:
          raise InputError(f"{self.qrels if rest[0] == 'train' else self.validation_qrels}: query {key!r}, passage "
                           f"{rest[1]!r} is judged {of_split[rest[1]]} in one line and {rest[2]} in another; keep one")
      elif what == "ranked":
        ranked += rest[0]
        known.update(rest[1])
        scores |= rest[2]
      elif what == "triples":
        sampled += rest[0]
      else:
        scores |= zip(*rest, strict=True)
    if not judged:
      counts.drop("query_without_judgement" if query is not None else "negatives_of_unknown_query", query=query or "",
                  id=key)
      return
    if not query:
      counts.drop("unknown_query" if query is None else "empty_query", n=sum(map(len, judged.values())), id=key)
      return
    known.update(p for grades in judged.values() for p, grade in grades.items() if grade > 0)
    for split in _SPLITS:
      grades = judged.get(split, {})
      relevant = [p for p, grade in grades.items() if grade >= self.min_grade]
      if low := [p for p, grade in grades.items() if 0 < grade < self.min_grade]:
        counts.drop("grade_too_low", n=len(low), query=query, passage_id=low[0])
        for passage_id, text in self._texts(low, "passage", query, Counts()):
          counts.answer(Example(query, text, key, passage_id))
      positives, negatives = list(self._texts(relevant, "passage", query, counts)), list[tuple[str, str]]()
      if split == "train" and positives:
        irrelevant = [p for p, grade in grades.items() if grade <= 0]
        ranks = itertools.chain(*itertools.zip_longest(*ranked))  # The best of each system, the second ones, ...
        hard = self._hard(_once([*ranks, *_sample(key, sampled)]), known | set(irrelevant), scores, query, counts)
        texts = {folded(text) for _, text in positives}
        found = ((p, text) for p, text in self._texts(itertools.chain(irrelevant, hard), "negative", query, counts)
                 if folded(text) not in texts)
        negatives = list(itertools.islice(found, self.num_negatives or None))
        if self.negatives and not negatives:
          counts.add("query_without_negatives")
      for passage_id, text in positives:
        yield Example(query, text, key, passage_id, tuple(t for _, t in negatives), tuple(p for p, _ in negatives),
                      split=split)

  def _tables(self):
    titles = open_table(self.titles, self.cache, "id,text") if self.titles else None
    return open_table(self.passages, self.cache, self.columns), titles

  def _texts(self, passage_ids: Iterable[str], what: str, query: str, counts: Counts) -> Iterator[tuple[str, str]]:
    """(id, text with title) of those that are in the table and not empty."""
    table, titles = self._tables()
    for passage_id in passage_ids:
      row = table.get(passage_id)
      if row is not None and titles is not None and (title := titles.get(passage_id)):
        row = row._replace(title=title.text)
      if row is None or not row.text.strip():
        counts.drop(f"unknown_{what}" if row is None else f"empty_{what}", query=query, id=passage_id)
      else:
        yield passage_id, titled(row.title, row.text)

  def _hard(self, candidates: Iterable[str | None], known: set[str], scores: Mapping[str, float],
            query: str, counts: Counts) -> Iterator[str]:
    """The candidates that are not known to be positive, and that the scores do not tell to be likely so."""
    worst = min((scores[p] for p in known if p in scores), default=None)
    for passage_id in candidates:
      if passage_id is None:  # A shorter list's place.
        continue
      if passage_id in known:
        counts.drop("negative_is_positive", query=query, negative_id=passage_id)
      elif not self.scores and not scores:
        yield passage_id
      elif worst is None or passage_id not in scores:
        counts.drop("negative_without_score", query=query, negative_id=passage_id)
      elif not scores[passage_id] <= worst - self.margin:
        counts.drop("negative_scores_too_high", query=query, negative_id=passage_id, scores=(
            f"{scores[passage_id]:g} of {worst:g}"))
      else:
        yield passage_id

  def _ranked(self, part, counts):
    for place, record in jsonl.read_values(part, counts.broken):
      try:
        systems = record["neg"]
        systems = systems.items() if isinstance(systems, dict) else [("", systems)]
        ranked = [found for name, found in systems if not self.systems or name in self.systems]
        scores = {identifier(p): _score(p["ce-score"]) for found in [record["pos"], *ranked] for p in found
                  if isinstance(p, dict)}
        ranked = [[identifier(p) for p in found] for found in ranked]
        value = ["ranked", ranked, [identifier(p) for p in record["pos"]], scores]
        query_id = identifier(record["qid"])
      except (KeyError, TypeError, ValueError, AttributeError) as e:
        counts.broken(place, f"not {{qid, pos: [pid], neg: {{system: [pid]}}}} ({what_is_wrong(e)})")
        continue
      if not ranked:
        counts.drop("query_of_other_systems", place, id=query_id)
      yield query_id, value

  def _triples(self, part, counts):
    """Triples come by query: one value for each run of them."""
    query_id, negatives = "", list[str]()
    for place, line in lines.read_text(part, counts.broken):
      fields = line.split("\t")
      if len(fields) != 3 or any(" " in field or not field for field in fields):
        counts.broken(place, "not three ids with tabs between them: query, positive, negative")
        continue
      if fields[0] != query_id:
        if negatives:
          yield query_id, ["triples", _sample(query_id, negatives)[:self._candidates()]]
        query_id, negatives = fields[0], []
      negatives.append(fields[2])
    if negatives:
      yield query_id, ["triples", _sample(query_id, negatives)[:self._candidates()]]

  def _candidates(self):
    """How many triples of a query to keep: more than are needed where scores will drop some."""
    return (self.num_negatives * (10 if self.scores else 2)) or None


def _parts(paths: Iterable[str], kind: str) -> list[Part]:
  """Of lines, or each whole file of a table."""
  return [part for path in paths for part in (
      lines.line_parts([path], kind=kind) if tables.has_lines(path) else
      [Part(file, kind=kind) for file in tables.files(path)])]


def _score(value: Any) -> float:
  """Raises ValueError where a score is no number: a comparison with NaN would keep every negative."""
  if not math.isfinite(score := float(value)):
    raise ValueError(f"the score {value!r} is not a number")
  return score


def _sample(query_id: str, passage_ids: list[str]) -> list[str]:
  """In an order drawn by hash: the same, whichever came first; the best of the parts are the best of the whole."""
  return sorted(_once(passage_ids), key=lambda p: hashlib.blake2b(f"{query_id} {p}".encode(), digest_size=8).digest())


def _once(values):
  return list(dict.fromkeys(values))


def _read_scores(part: Part, counts: Counts) -> Iterator[tuple[str, list]]:
  if ".pkl" in os.path.basename(part.path):
    for query_id, scores in pickles.read_nested(part.path):
      yield query_id, ["scores", list(scores), list(scores.values())]
    return
  for place, record in jsonl.read_values(part, counts.broken):
    try:
      scores = {str(p): _score(score) for p, score in record["scores"].items()}
      yield identifier(record["qid"]), ["scores", list(scores), list(scores.values())]
    except (KeyError, TypeError, ValueError, AttributeError):
      counts.broken(place, 'not {"qid": ..., "scores": {"pid": ...}}')
