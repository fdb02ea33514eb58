"""Pairs that others have made already, one JSON value a line.

The kinds are those of sentence-transformers/embedding-training-data (its card, "Data Format") and of
flax-sentence-embeddings/stackexchange_* on the Hugging Face hub; any other names of fields can be given.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.io import flags, jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.sources.html_text import html_to_text
from gtr_jax.text.same_text import folded
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative, Positive

# Query, passage: where an object has both, in this order.
_NAMES = (("title", "body"), ("query", "positive"), ("anchor", "positive"), ("query", "answer"), ("question", "answer"),
          ("query", "passage"), ("title_body", "upvoted_answer"), ("title", "abstract"))
# Likewise, where an object has both of one of these only: "text" beside "query" and "title" may be either's.
_LOOSER = (("question", "passage"), ("question", "context"), ("query", "document"), ("query", "text"),
           ("query", "context"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"),
           ("title", "text"))
# Beside looser names: how alike two texts are. Those that are not would be trained on as if they were.
_JUDGED = ("label", "labels", "gold_label", "score", "similarity", "similarity_score", "is_duplicate")
_NEGATIVES = re.compile(r"negatives?(_\d+)?|downvoted_answer")
_LOOKED_AT = 1000  # Lines of a file, for the names of its fields.
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # Half characters: a line was cut in the middle of one.
_KINDS = ('{"query": ..., "positive": ..., "negatives": [...]}, {"question": ..., "answer": ...}, '
          '{"anchor": ..., "positive": ...}, [query, passage], [query, passage, negative], '
          '{"query": ..., "pos": [...], "neg": [...]}, {"set": [...]}, {"texts": [query, passage]} or '
          '{"title": ..., "body": ...}')
_SHOWN_LINES, _SHOWN_KINDS, _SHOWN_FIELDS = 100, 3, 8


class _Fields(NamedTuple):
  """What of an object of JSON is taken for what."""

  query: tuple[str, ...]
  passage: tuple[str, ...]
  negatives: tuple[str, ...]

  def described(self, rows: list[dict[str, Any]]) -> str:
    """With those that are not read and might have been meant: texts, but no ids."""
    there = {name: None for row in rows for name, value in row.items()
             if isinstance(value, str | list) and not re.fullmatch("_?id|.*_id", name)}
    taken = {*self.query, *self.passage, *self.negatives}
    unread = [name for name in there if name not in taken]
    more = f" and {len(unread) - _SHOWN_FIELDS} more" if len(unread) > _SHOWN_FIELDS else ""
    parts = [f"{what}: {' + '.join(map(json.dumps, names))}" for what, names in self._asdict().items() if names]
    return "; ".join(parts + [f"not read: {', '.join(unread[:_SHOWN_FIELDS])}{more}"] * bool(unread))


class _Pair(NamedTuple):
  query: str
  passage: str
  negatives: list
  query_id: str = ""
  passage_id: str = ""
  group: str = ""


@dataclasses.dataclass(frozen=True)
class PairsJsonl:
  """JSON lines of pairs; each line may be of another kind.

  | line | pairs |
  |---|---|
  | `[a, b]`, `[a, b, n, ...]` | a -> b, with negatives n |
  | `{"query": a, "pos": [b, ...], "neg": [n, ...]}` | a -> each b |
  | `{"set": [a, b, c, ...]}` | a -> b, b -> c, ...; none is a negative of another |
  | `{"texts": [a, b]}` | a -> b |
  | `{"query": a, "positive": b}` and other pairs of names | a -> b, with `negative`, `negatives`, `negative_1`, ... |

  Attributes:
    paths: .jsonl, plain (read on all cores) or .gz, .zst, .bz2, .xz.
    query: fields of the query, if they are none of these; several are joined with a space.
    passage: fields of the passage. The two go together.
    negatives: field of the negatives: a text or a list of them.
    query_id: field of the query's id. Pairs with the same id, or without one the same text, are never each other's
      negatives. The same for `passage_id`.
    passage_id: field of the passage's id.
    html: the texts are HTML.
    max_pairs: of one line; the first ones.
    min_words: pairs with a shorter query or passage are dropped.
    max_characters: pairs with a longer query or passage are dropped.
  """

  name: ClassVar[str] = "pairs"
  paths: tuple[str, ...]
  query: tuple[str, ...] = ()
  passage: tuple[str, ...] = ()
  negatives: str = ""
  query_id: str = ""
  passage_id: str = ""
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
    """Byte ranges of plain files, archives whole. Raises InputError where a file begins with another kind of line."""
    if not self.paths:
      raise InputError("no file is named; give .jsonl files of pairs")
    parts = []
    for path in self.paths:
      file_parts = lines.line_parts([path])
      counts = Counts()
      with contextlib.closing(jsonl.read_values(file_parts[0]._replace(stop=None), counts.broken)) as rows:
        first = list(itertools.islice(rows, _LOOKED_AT)) or [(path, None)]
      place, row = first[0]
      if row is None and counts.places:
        raise InputError(f"{counts.places[0]}, and no other line is better; expected {_KINDS}")
      try:
        self._pairs(row)
      except ValueError as e:
        raise InputError(f"{place}: {e}; expected {_KINDS}, "
                         "or name the fields with --query and --passage") from e
      for name in filter(None, (self.query_id, self.passage_id)):
        if not any(isinstance(row, dict) and name in row for _, row in first):
          raise InputError(f"{place}: no field {name!r}, nor in the lines behind it, only "
                           f"{', '.join(map(repr, row))}; name the field of the ids, or leave it out")
      parts += file_parts
    return parts

  def fields(self) -> list[str]:
    """What is taken for what in the first lines of each file, for the user: a text for every kind of line.

    Raises:
      InputError: a file is missing or damaged.
    """
    kinds: dict[_Fields | str, list[Any]] = {}
    for part in lines.line_parts(self.paths):
      if part.start:
        continue
      with contextlib.closing(jsonl.read_values(part._replace(stop=None), Counts().broken)) as rows:
        for _, row in itertools.islice(rows, _SHOWN_LINES):
          with contextlib.suppress(ValueError):  # A broken line, which is counted elsewhere.
            kinds.setdefault(self._kind(row), []).append(row)
    alike: dict[_Fields | str, tuple[_Fields | str, list[Any]]] = {}  # All but the negatives, which some have not.
    for kind, of_kind in kinds.items():
      key = kind if isinstance(kind, str) else kind._replace(negatives=())
      known, before = alike.get(key, (kind, []))
      if isinstance(kind, _Fields) and isinstance(known, _Fields):
        known = kind._replace(negatives=tuple(dict.fromkeys(known.negatives + kind.negatives)))
      alike[key] = known, before + of_kind
    found = [kind if isinstance(kind, str) else kind.described(of_kind) for kind, of_kind in alike.values()]
    more = len(found) - _SHOWN_KINDS
    return found[:_SHOWN_KINDS] + [f"and {more} other kind{'s' * (more > 1)} of lines"] * (more > 0)

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Example]]:
    """Yields ("", example)."""
    for place, row in jsonl.read_values(part, counts.broken):
      try:
        pairs = self._pairs(row)
        examples = self._examples(pairs, counts)
      except ValueError as e:
        counts.broken(place, str(e))
        continue
      if len(pairs) > len(examples):
        counts.add("more_pairs_in_a_line", len(pairs) - len(examples))
      for example in examples:
        if reason := self._reason(example):
          counts.add(reason)
        else:
          yield "", example

  def _pairs(self, row: Any) -> list[_Pair]:
    """Of one line. Raises ValueError that says what is wrong with it."""
    if isinstance(row, list):
      if len(row) < 2:
        raise ValueError(f"a list of {len(row)}, where a pair has 2")
      return [_Pair(row[0], row[1], row[2:])]
    if not isinstance(row, dict):
      raise ValueError("neither a list nor an object of JSON" if row is not None else "no pair in it")
    if self.query:
      return [_Pair(_joined(row, self.query), _joined(row, self.passage), _listed(row.get(self.negatives)),
                    _identifier(row, self.query_id), _identifier(row, self.passage_id))]
    if isinstance(row.get("set"), list):
      texts = row["set"]
      mark = "set:" + hashlib.sha256(repr(texts).encode(errors="replace")).hexdigest()[:16]
      return [_Pair(a, b, [], mark, mark, mark) for a, b in zip(texts, texts[1:], strict=False)]
    if isinstance(row.get("texts"), list) and len(row["texts"]) == 2:
      query, passage = row["texts"]
      return [_Pair(query, passage, [])]
    if "query" in row and "pos" in row:
      return [_Pair(row["query"], passage, _listed(row.get("neg"))) for passage in _listed(row["pos"])]
    query, passage = _guessed(row)
    negatives = [n for name, value in row.items() if _NEGATIVES.fullmatch(name) for n in _listed(value)]
    return [_Pair(row[query], row[passage], negatives)]

  def _kind(self, row: Any) -> _Fields | str:
    """Of one line, as `_pairs` reads it. Raises ValueError where that does."""
    self._pairs(row)
    if isinstance(row, list):
      return "lists: the first text is the query, the second the passage, any others hard negatives"
    if self.query:
      return _Fields(self.query, self.passage, (self.negatives,) if self.negatives in row else ())
    if isinstance(row.get("set"), list):
      return 'of each "set", a text is the query and the next its passage'
    if isinstance(row.get("texts"), list) and len(row["texts"]) == 2:
      return 'of "texts", the first is the query, the second the passage'
    if "query" in row and "pos" in row:
      return _Fields(("query",), ("pos",), ("neg",) if "neg" in row else ())
    query, passage = _guessed(row)
    return _Fields((query,), (passage,), tuple(name for name in row if _NEGATIVES.fullmatch(name)))

  def _examples(self, pairs, counts):
    """The first ones of a line; what is a positive of any of the line's pairs is no negative."""
    positives = {folded(self._text(pair.passage)) for pair in pairs} if any(pair.negatives for pair in pairs) else ()
    examples: list[Example] = []
    for pair in pairs[:self.max_pairs]:
      query, passage, *found = (self._text(t) for t in (pair.query, pair.passage, *pair.negatives))
      negatives = tuple(text for text in found if text and folded(text) not in positives)
      if (dropped := sum(map(bool, found)) - len(negatives)) and not examples:  # They are the same for all pairs.
        counts.add("negative_is_positive", dropped)
      examples.append(Example(query, passage, pair.query_id, pair.passage_id, negatives, group=pair.group))
    return examples

  def _text(self, value):
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


def _guessed(row: dict[str, Any]) -> tuple[str, str]:
  """Names of query and passage. Raises ValueError where none are known, or several may be meant."""
  for query, passage in _NAMES:
    if query in row and passage in row:
      return query, passage
  possible = [names for names in _LOOSER if row.keys() >= set(names)]
  if not possible:
    raise ValueError(f"fields {', '.join(map(repr, row)) or 'none'} are of no kind that is known")
  if len(possible) > 1:
    raise ValueError("fields that may be meant as " + " or as ".join(f"{a!r} and {b!r}" for a, b in possible))
  if possible[0] != ("title", "text") and (judged := [name for name in _JUDGED if name in row]):
    raise ValueError(f"a pair with a {judged[0]!r}, which may say that its texts do not belong together; keep the "
                     "pairs whose texts do, without that field")
  return possible[0]


def _joined(row, names):
  missing = [name for name in names if name not in row]
  if missing:
    raise ValueError(f"no field {missing[0]!r}, only {', '.join(map(repr, row)) or 'an empty object'}")
  if len(names) > 1 and all(isinstance(row[name], str | None) for name in names):  # A title may be null.
    return " ".join(row[name].strip() for name in names if row[name] and row[name].strip())
  return next((row[name] for name in names if not isinstance(row[name], str)), row[names[0]])


def _identifier(row, name):
  try:
    return jsonl.identifier(row.get(name))
  except ValueError as e:
    raise ValueError(f"field {name!r}: {e}") from e


def _listed(value):
  return [] if value is None else value if isinstance(value, list) else [value]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare pairs`."""
  parser.epilog = """\
examples:
  gtr-jax prepare pairs gooaq_pairs.jsonl.gz --name gooaq
  gtr-jax prepare pairs docs.jsonl --query headline --passage intro,text --passage_id url --name docs"""
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="FILE",
                      help=f".jsonl (plain, .gz, .zst, .bz2 or .xz) of {_KINDS}; or of other fields, named below")
  parser.add_argument("--query", default="", metavar="FIELD,...",
                      help="fields of the query, such as title; several are joined with a space")
  parser.add_argument("--passage", default="", metavar="FIELD,...", help="fields of the passage, such as title,body")
  parser.add_argument("--negatives", default="", metavar="FIELD", help="field of the negatives, a text or a list")
  parser.add_argument("--query_id", default="", metavar="FIELD",
                      help="field of the query's id; pairs with the same are not each other's negatives (default: "
                      "those with the same text)")
  parser.add_argument("--passage_id", default="", metavar="FIELD", help="field of the passage's id")
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
  for name in ("query", "passage"):
    given[name] = field_names(given[name])
  return PairsJsonl(**given)
