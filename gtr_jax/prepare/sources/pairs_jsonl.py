"""Pairs that others have made already, one JSON value a line, or one row of a table.

The kinds are those of sentence-transformers/embedding-training-data (its card, "Data Format") and of
flax-sentence-embeddings/stackexchange_* on the Hugging Face hub; any other names of fields can be given.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.io import flags, jsonl, tables
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.of_queries import Negative, with_negatives
from gtr_jax.prepare.passages import passage_text
from gtr_jax.prepare.sources.field_names import is_verdict, nowhere
from gtr_jax.prepare.sources.html_text import html_to_text
from gtr_jax.prepare.sources.pair_fields import (
    NUMBER,
    Meaning,
    Named,
    check_shape,
    identifier_in,
    identifiers,
    in_objects,
    label_of,
    meaning,
    scores,
    texts_of,
    vectors,
)
from gtr_jax.prepare.sources.pairs_described import described
from gtr_jax.text.same_text import folded
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative, Positive

_SET = "set:"
_LOOKED_AT = 1000  # Lines of a file, for the names of its fields.
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # Half characters: a line was cut in the middle of one.
_KINDS = ('{"query": ..., "positive": ..., "negatives": [...]}, {"question": ..., "answer": ...}, '
          '{"anchor": ..., "positive": ...}, [query, passage], [query, passage, negative], '
          '{"query": ..., "pos": [...], "neg": [...]}, {"set": [...]}, {"texts": [query, passage]} or '
          '{"title": ..., "body": ...}')
_SHOWN_LINES = 100
_OF_LISTS = Meaning(("query",), ("positive",), ("negatives",))  # As an object.


def is_of_set(query_id: str, passage_id: str) -> bool:
  """Whether a pair with these ids is one of a "set", whose texts all answer each other: both are its mark."""
  return query_id == passage_id and query_id.startswith(_SET)


class RawPair(NamedTuple):
  """A pair as a line has it: its texts may be of any kind yet."""

  query: Any
  passage: Any
  negatives: Sequence[Any] = ()
  query_id: str = ""
  passage_id: str = ""
  group: str = ""  # Of a set: pairs of one share their texts.
  scores: Sequence[float] = ()  # Of the passage and of all negatives, or none.
  is_negative: bool = False
  negative_ids: Sequence[str] = ()  # Of all negatives, or none.
  vectors: Sequence[str] = ()  # Of the query, the passage and all negatives, or none.


@dataclasses.dataclass(frozen=True)
class PairsJsonl:
  """JSON lines of pairs, each of which may be of another kind, or tables, whose rows are as objects.

  | line | pairs |
  |---|---|
  | `[a, b]`, `[a, b, n, ...]` | a -> b, with negatives n |
  | `{"query": a, "pos": [b, ...], "neg": [n, ...]}` | a -> each b |
  | `{"set": [a, b, c, ...]}` | a -> b, b -> c, ...; none is a negative of another |
  | `{"texts": [a, b]}` | a -> b |
  | `{"query": a, "positive": b}` and other pairs of names | a -> b, with `negative`, `negatives`, `negative_1`, ... |
  | .. with `"label": 0` | none: b is a negative of all pairs of a |
  | .. with `"pos_scores"`, `"neg_scores"` or `"scores"` | a -> b, with a teacher's scores of b and of the negatives |

  `pair_fields` knows the names. A passage may be an object with `title` and `text`.

  Attributes:
    paths: .jsonl, plain (read on all cores) or .gz, .zst, .bz2, .xz; tables and folders of them, as `io.tables` reads.
    query: fields of the query, if they are none of these; several are joined with a space.
    passage: fields of the passage. The two go together.
    negatives: field of the negatives: a text or a list of them.
    query_id: field of the query's id. Pairs with the same id, or without one the same text, are never each other's
      negatives. The same for `passage_id`.
    passage_id: field of the passage's id.
    ignore: fields that mean nothing, whatever their names say.
    html: the texts are HTML.
    max_pairs: of one line; the first ones.
    min_words: pairs with a shorter query or passage are dropped.
    max_characters: pairs with a longer query or passage are dropped.
  """

  name: ClassVar[str] = "pairs"
  licence: ClassVar[str] = ""
  listed: ClassVar[tuple[str, ...]] = ("paths",)
  paths: tuple[str, ...]
  query: tuple[str, ...] = ()
  passage: tuple[str, ...] = ()
  negatives: str = ""
  query_id: str = ""
  passage_id: str = ""
  ignore: tuple[str, ...] = ()
  html: bool = False
  max_pairs: Positive = 8
  min_words: NonNegative = 1
  max_characters: Positive = 20_000

  def __post_init__(self):
    check_fields(self)
    if bool(self.query) != bool(self.passage):
      raise InputError("--query and --passage go together; name the fields of both, or of neither")
    for name in ("negatives", "query_id", "passage_id"):
      if getattr(self, name) and not self.query:
        raise InputError(f"--{name} goes with --query and --passage; name those fields too")

  def parts(self) -> list[Part]:
    """As `tables.parts`. Raises InputError where a file begins with another kind of line."""
    if not self.paths:
      raise InputError("no file is named; give .jsonl files or tables of pairs")
    parts = [part for path in self.paths for part in tables.parts(path)]
    kinds: dict[Meaning | str, dict[str, None]] = {}  # With all fields that lines of the kind have.
    missing = {*filter(None, (self.negatives, *self.ignore))}  # Not every line, nor every file, needs these.
    for part in parts:
      if part.start:
        continue
      counts = Counts()
      with contextlib.closing(self._rows(part._replace(stop=None), counts)) as rows:
        first = list(itertools.islice(rows, _LOOKED_AT)) or [(part.path, None)]
      place, row = first[0]
      if row is None and counts.places:
        raise InputError(f"{counts.places[0]}, and no other line is better; expected {_KINDS}")
      try:
        self.pairs_of(row)
      except ValueError as e:
        of_table = "the first line of CSV and TSV names their columns; " * (part.kind in (tables.CSV, tables.TSV))
        raise InputError(f"{place}: {e}; {of_table}expected {_KINDS}, "
                         "or name the fields with --query and --passage") from e
      for name in filter(None, (self.query_id, self.passage_id)):
        if not any(isinstance(row, dict) and name in row for _, row in first):
          raise InputError(f"{place}: no field {name!r}, nor in the lines behind it, only "
                           f"{', '.join(map(repr, row))}; name the field of the ids, or leave it out")
      missing = nowhere(missing, self.ignore, first)
      for _, row in first[:_SHOWN_LINES]:
        with contextlib.suppress(ValueError):  # A broken line, which is counted elsewhere.
          self.pairs_of(row)
          kinds.setdefault(self.kind_of(row), {}).update(dict.fromkeys(row if isinstance(row, dict) else ()))
    if missing and "_said" not in vars(self):  # They may be anywhere behind; the second time they have been found.
      for part in parts:
        with contextlib.closing(self._rows(part, Counts())) as rows:
          missing = nowhere(missing, self.ignore, rows)
      if missing:
        name = min(missing)
        flag = "--negatives" if name == self.negatives else "--ignore"
        raise InputError(f"{', '.join(self.paths):.200}: no line has a field {name!r} ({flag}); correct the name, or "
                         "leave it out")
    vars(self)["_said"] = described(kinds, (self.query_id, self.passage_id))
    return parts

  def fields(self) -> list[str]:
    """What is taken for what in the first lines of each file, for the user: a text for every kind of line.

    What `parts` has read is not read again.

    Raises:
      InputError: as `parts`.
    """
    if "_said" not in vars(self):
      self.parts()
    return list(vars(self)["_said"])

  def _rows(self, part: Part, counts: Counts) -> Generator[tuple[str, Any]]:
    """(place, value); what is broken is counted."""
    return tables.read_values(part, counts.broken, self._wanted)

  def _wanted(self, names: Sequence[str]) -> Collection[str]:
    """Which of the columns of a table are read."""
    read = ["set", "texts", self.query_id, self.passage_id]
    with contextlib.suppress(ValueError):  # What is wrong is said of each row.
      read += meaning(dict.fromkeys(names), self._named).fields
    return read

  @property
  def _named(self) -> Named:
    return Named(self.query, self.passage, self.negatives, self.ignore)

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Example]]:
    """Yields ("", example)."""
    for place, row in self._rows(part, counts):
      try:
        pairs = self.pairs_of(row)
        examples = self._examples(pairs, place, counts)
      except ValueError as e:
        counts.broken(place, str(e))
        continue
      if not pairs:
        counts.drop("no_passage", place, text=json.dumps(row, ensure_ascii=False))
      if len(pairs) > len(examples):
        more = pairs[len(examples)]
        counts.drop("more_pairs_in_a_line", place, len(pairs) - len(examples), query=str(more.query), passage=str(
            passage_text(more.passage)))
        for pair in pairs[len(examples):]:
          if not pair.is_negative:
            counts.answer(self._example(pair))
      for example in examples:
        if reason := self._reason(example):
          counts.drop(reason, place, query=example.query, passage=example.passage)
          if not example.is_negative:
            counts.answer(example)
        else:
          yield "", example

  def kind_of(self, row: Any) -> Meaning | str:
    """What a line is: "list", "set" or "texts", or what its fields mean. Raises ValueError, in words."""
    if isinstance(row, list):
      return "list"
    if not isinstance(row, dict):
      raise ValueError("neither a list nor an object of JSON" if row is not None else "no pair in it")
    if not self.query:
      for shape, is_one in (("set", isinstance(row.get("set"), list)),
                            ("texts", isinstance(row.get("texts"), list) and len(row["texts"]) == 2)):
        if is_one:
          check_shape(shape, row, self.ignore)
          return shape
    return meaning(row, self._named)

  def pairs_of(self, row: Any) -> list[RawPair]:
    """Of one line, with all that the line says is none. Raises ValueError, in words."""
    kind = self.kind_of(row)
    if kind == "list":
      if len(row) < 2:
        raise ValueError(f"a list of {len(row)}, where a pair has 2")
      for text in filter(lambda text: isinstance(text, str), row[2:]):
        if NUMBER.fullmatch(text.strip()) or is_verdict(text) and not is_verdict(row[1]):
          raise ValueError(f"a list with {text!r} behind its pair, which looks like a score or a label and not like a "
                           "negative; write objects, with names for what is in them")
    if kind == "set":
      texts = row["set"]
      in_objects(texts, self.ignore, is_passage=False)
      mark = _SET + hashlib.sha256(repr(texts).encode(errors="replace")).hexdigest()[:16]
      return [RawPair(a, b, (), mark, mark, mark) for a, b in zip(texts, texts[1:], strict=False)]
    if isinstance(kind, str):
      query, passage, *negatives = row if kind == "list" else row["texts"]
      if all(isinstance(text, str) for text in (query, passage, *negatives)):
        return [RawPair(query, passage, negatives)]
      row, kind = {"query": query, "positive": passage, "negatives": negatives}, _OF_LISTS
    return self._of_fields(row, kind)

  def _of_fields(self, row: dict[str, Any], kind: Meaning) -> list[RawPair]:
    query = _joined(row, kind.query)
    passages = ([passage for name in kind.passage for passage in texts_of(row, name)] if kind.several else
                [_joined(row, kind.passage)])
    if len(kind.passage) > 1 and kind.several:  # Of positive_1, positive_2, … not all have to be there.
      passages = [passage for passage in passages if passage != ""]
    negatives = ["" if text is None else text for name in kind.negatives for text in texts_of(row, name)]
    of_passages, of_negatives = scores(row, kind, len(passages), len(negatives))
    is_negative = bool(kind.label) and not label_of(row[kind.label], kind.label)
    query_id = identifier_in(row, self.query_id or kind.query_id)
    ids = identifiers(row, self.passage_id or kind.passage_id, len(passages), "passages")
    negative_ids = identifiers(row, kind.negative_ids, len(negatives), "negatives")
    if isinstance(query, dict):
      (query_id,), _ = _filled([query_id], [], (in_objects([query], self.ignore, is_passage=False)[0], []))
    ids, of_passages = _filled(ids, of_passages, in_objects(passages, self.ignore))
    negative_ids, of_negatives = _filled(negative_ids, of_negatives, in_objects(negatives, self.ignore))
    of_query, passage_vectors, negative_vectors = vectors(row, kind, len(passages), len(negatives))
    pairs = [RawPair(query, passage, negatives, query_id, passage_id,
                     query_id if is_of_set(query_id, passage_id) else "", scores=(of_passage, *of_negatives),
                     is_negative=is_negative, negative_ids=negative_ids, vectors=(of_query, vector, *negative_vectors))
             for passage, passage_id, of_passage, vector in zip(passages, ids, of_passages, passage_vectors,
                                                                strict=True)]
    if is_negative:  # And what else the line calls a negative is one as well.
      pairs += [RawPair(query, negative, (), query_id, negative_id, scores=(score,), is_negative=True,
                      vectors=(of_query, vector)) for negative, score, negative_id, vector in zip(
                          negatives, of_negatives, negative_ids, negative_vectors, strict=True)]
      pairs = [pair._replace(negatives=(), negative_ids=(), scores=pair.scores[:1], vectors=pair.vectors[:2])
               for pair in pairs]
    return pairs

  def _examples(self, pairs, place, counts):
    """The first ones of a line; what is a positive of any of the line's pairs is no negative."""
    several = any(pair.negatives for pair in pairs) or len(pairs) > self.max_pairs
    answers = [pair for pair in pairs if several and not pair.is_negative]
    positives, positive_ids = {folded(self.text_of(pair.passage)) for pair in answers}, {
        pair.passage_id for pair in answers if pair.passage_id}
    examples: list[Example] = []
    for pair in pairs[:self.max_pairs]:
      example, found = self._example(pair), list(map(self.text_of, pair.negatives))
      scores = pair.scores[1:] or (math.nan,) * len(found)
      ids = pair.negative_ids or ("",) * len(found)
      vectors = pair.vectors[2:] or ("",) * len(found)
      there = [Negative(*negative) for negative in zip(found, ids, scores, vectors, strict=True) if negative[0]]
      right = [negative for negative in there
               if folded(negative.text) not in positives and negative.id not in positive_ids]
      if (dropped := len(there) - len(right)) and not examples:  # They are the same for all pairs.
        counts.drop("negative_is_positive", place, dropped, query=example.query, passage=example.passage, negative=next(
            negative.text for negative in there if negative not in right))
      examples.append(with_negatives(example, right))
    return examples

  def _example(self, pair: RawPair) -> Example:
    """Without its negatives. Raises ValueError, in words."""
    return Example(self.text_of(pair.query), self.text_of(pair.passage), pair.query_id, pair.passage_id,
                   scores=tuple(pair.scores[:1]), is_negative=pair.is_negative, vectors=tuple(pair.vectors[:2]),
                   is_mutual=bool(pair.group))

  def text_of(self, value: Any) -> str:
    """Of a query or passage as a line has it, without what is no text. Raises ValueError, in words."""
    value = passage_text(value)
    if not isinstance(value, str):
      raise ValueError(f"{jsonl.kind_of(value)} ({json.dumps(value)[:40]}), where a text is expected")
    if not (value.isascii() and value.isprintable()):
      value = _NOT_TEXT.sub("", value)
    return html_to_text(value) if self.html else value.strip()

  def _reason(self, example):
    """Why an example is dropped, if it is."""
    texts = example.query, example.passage
    if not all(texts):
      return "empty"
    if self.min_words > 1 and any(len(t.split(None, self.min_words)) < self.min_words for t in texts):
      return "too_short"
    return "too_long" if any(len(t) > self.max_characters for t in texts) else None


def _joined(row, names):
  missing = [name for name in names if name not in row]
  if missing:
    raise ValueError(f"no field {missing[0]!r}, only {', '.join(map(repr, row)) or 'an empty object'}")
  if len(names) > 1 and all(isinstance(row[name], str | None) for name in names):  # A title may be null.
    return " ".join(row[name].strip() for name in names if row[name] and row[name].strip())
  return next((row[name] for name in names if not isinstance(row[name], str)), row[names[0]])


def _filled(ids: Sequence[str], scores: Sequence[float], within: tuple[list[str], list[float]]) -> tuple[
    list[str], list[float]]:
  """Ids and scores from the fields of a line, or from within its passages. Raises ValueError where both have others."""
  for of_line, of_text in (*zip(ids, within[0], strict=True), *zip(scores, within[1], strict=True)):
    if of_line and of_text and of_line == of_line and of_text == of_text and of_line != of_text:  # NaN equals nothing.
      raise ValueError(f"{of_line!r} in the line and {of_text!r} within a passage; take one of them away")
  return ([one or other for one, other in zip(ids, within[0], strict=True)],
          [other if math.isnan(one) else one for one, other in zip(scores, within[1], strict=True)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare pairs`."""
  parser.epilog = """\
examples:
  gtr-jax prepare pairs gooaq_pairs.jsonl.gz --name gooaq
  gtr-jax prepare pairs docs.jsonl --query headline --passage intro,text --passage_id url --name docs
  gtr-jax prepare pairs 'data/train-*.parquet' --name published"""
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="FILE",
                      help=f".jsonl (plain, .gz, .zst, .bz2 or .xz) of {_KINDS}; or of other fields, named below; or a "
                      "table with such columns: .parquet, .arrow, .csv or .tsv (whose first line names the columns), a "
                      "folder of them, or one that datasets' save_to_disk wrote (its split train)")
  parser.add_argument("--query", default="", metavar="FIELD,...",
                      help="fields of the query, such as title; several are joined with a space")
  parser.add_argument("--passage", default="", metavar="FIELD,...", help="fields of the passage, such as title,body")
  parser.add_argument("--negatives", default="", metavar="FIELD", help="field of the negatives, a text or a list")
  parser.add_argument("--query_id", default="", metavar="FIELD",
                      help="field of the query's id; pairs with the same are not each other's negatives (default: "
                      "those with the same text)")
  parser.add_argument("--passage_id", default="", metavar="FIELD", help="field of the passage's id")
  parser.add_argument("--ignore", default="", metavar="FIELD,...",
                      help="fields that mean nothing here, whatever their names say, such as a label of the topic")
  parser.add_argument("--html", action="store_true", help="turn HTML into text, as for Stack Exchange")
  default = PairsJsonl(("",))
  parser.add_argument("--max_pairs", type=flags.positive, default=default.max_pairs, metavar="N",
                      help="of a line with several passages (default: %(default)s)")
  parser.add_argument("--min_words", type=flags.non_negative, default=default.min_words, metavar="N",
                      help="drop pairs with a shorter query or passage (default: %(default)s)")
  parser.add_argument("--max_characters", type=flags.positive, default=default.max_characters, metavar="N",
                      help="drop pairs with a longer one; 512 tokens are about 2,500 (default: %(default)s)")


def field_names(text: str) -> tuple[str, ...]:
  """Of "title,body"."""
  return tuple(name for name in text.split(",") if name)


def source(args: argparse.Namespace) -> PairsJsonl:
  """The source that the flags describe. Raises InputError where they are wrong."""
  given = {f.name: getattr(args, f.name) for f in dataclasses.fields(PairsJsonl)}
  given["paths"] = tuple(args.paths)
  for name in ("query", "passage", "ignore"):
    given[name] = field_names(given[name])
  return PairsJsonl(**given)
