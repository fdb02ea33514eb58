"""What the fields of a published pair mean: which are query, passage and negatives, which judge them, and which are
nothing to a pair.

A field that says whether two texts belong together is read, or it is an error: without it a pair would be trained on
as what it is not.
"""

import functools
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gtr_jax.io import jsonl
from gtr_jax.prepare.sources.field_names import check_meaning, folded_name, leave_out, not_known, without_number
from gtr_jax.prepare.vectors import packed

# Query, passage: where an object has both of one of these.
_NAMES = (("title", "body"), ("query", "positive"), ("anchor", "positive"), ("question", "positive"),
          ("query", "answer"), ("question", "answer"), ("query", "passage"), ("title_body", "upvoted_answer"),
          ("title", "abstract"))
# Likewise, where it has none of those: "text" beside "query" and "title" may be either's.
_LOOSER = (("question", "passage"), ("question", "context"), ("query", "document"), ("question", "document"),
           ("query", "text"), ("query", "context"), ("question1", "question2"), ("text", "text_pair"),
           ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"), ("title", "text"))
_BACKGROUND = {"text", "context"}  # What may go with a query and its answer.
_QUERIES = ("query", "question", "anchor")
_POSITIVES = ("pos", "positives", "positive_passages", "positive_ctxs")  # Several, with one of those.
_POSITIVE_N = re.compile(r"(positive|pos)_?\d+")  # One of several, with one of those, and with `positive` or without.
_NEGATIVES = re.compile(r"((hard_?)?(neg|negative)s?(_?(passage|ctx|document|doc|text)s?)?|downvoted_answers?)(_?\d+)?")
_LABELS = ("label", "labels", "gold_label", "is_duplicate", "relevant", "is_relevant")
_SCORES = ("scores", "score", "pos_scores", "pos_score", "positive_scores", "positive_score")
_NEGATIVE_SCORES = ("neg_scores", "neg_score", "negative_scores", "negative_score")
QUERY_IDS = ("query_id", "qid")
PASSAGE_IDS = ("passage_id", "positive_id", "docid", "doc_id", "pid", "corpus_id")
"""Names of the fields of ids, which are found by themselves."""
_POSITIVE_IDS = ("pos_id", "pos_ids", "positive_ids")  # As many as there are passages.
_NEGATIVE_IDS = ("negative_ids", "negative_id", "neg_id", "neg_ids", "hard_negative_ids")
_OBJECT_IDS = ("_id", "id", "docid", "doc_id", "passage_id", "psg_id", "pid", "corpus_id")  # Within a passage.
_OBJECT_FIELDS = {"title", "text", "score", "title_score"}  # The last of these DPR has of its search, and others none.
_IN_QUERIES = ("_id", "id", *QUERY_IDS), {"title", "text"}  # Ids and other fields within a query.
_VECTORS = (re.compile(r"(query|question|anchor)_(vector|embedding)"),
            re.compile(r"(positive|passage|document|answer|pos)_(vector|embedding)s?"),
            re.compile(r"((hard_)?negative|neg)_(vector|embedding)s"))
# Whose score is that of a teacher; a score of two sentences says how alike they are, one of a post what its readers
# think of it.
_SCORED = {"positive", "passage", "document", *_POSITIVES}
_POSTS = (("title", "body"), ("title", "text"), ("title", "abstract"), ("title_body", "upvoted_answer"))
_OF_READERS = re.compile("score|((star|user|avg|average|mean|overall)_)?ratings?|stars|(is_)?(helpful|useful)")
_ENTAILED = ("premise", "hypothesis")
_OF_ENTAILMENT = ("fields 'premise' and 'hypothesis', of whose labels 0 often says that the one follows from the other "
                  "(keep such pairs, and name the fields: --query premise --passage hypothesis --ignore label), are of "
                  "no kind that is known")
_SEVERAL = re.compile(r"(hard_?)?neg|.*s")  # Names of what may be a list, also where all cells are texts.
_NAME_THEM = "name those that are (--query, --passage)"
_LIST_BEGINS = re.compile(r"""\s*\[\s*(["'\]{]|$)""")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Named(NamedTuple):
  """Names that the user gives, or none.

  Attributes:
    query: fields that make the query; several are joined with a space.
    passage: likewise.
    negatives: field of a text or a list of them.
    ignored: fields that mean nothing.
  """

  query: tuple[str, ...] = ()
  passage: tuple[str, ...] = ()
  negatives: str = ""
  ignored: tuple[str, ...] = ()


class Meaning(NamedTuple):
  """What of an object is taken for what.

  Attributes:
    query: its fields; several are joined with a space.
    passage: likewise; where `several`, fields with a passage or a list of them.
    negatives: each a text, a passage with its own fields, or a list of them.
    label: of the pair: 1 where the passage answers the query, 0 where it does not.
    scores: of the passage, or of all passages, or of the passage and the negatives behind it.
    negative_scores: of the negatives.
    several: whether there may be several passages.
    query_id: of the query.
    passage_id: of the passage, or of all passages.
    negative_ids: of the negatives, where one field has them all.
    vectors: a teacher's: fields of the query's, of the passage's (or of all passages') and of all negatives'.
  """

  query: tuple[str, ...]
  passage: tuple[str, ...]
  negatives: tuple[str, ...] = ()
  label: str = ""
  scores: str = ""
  negative_scores: str = ""
  several: bool = False
  query_id: str = ""
  passage_id: str = ""
  negative_ids: str = ""
  vectors: tuple[str, str, str] = ("", "", "")

  @property
  def fields(self) -> list[str]:
    """All that are read."""
    return list(filter(None, (*self.query, *self.passage, *self.negatives, self.label, self.scores,
                              self.negative_scores, self.query_id, self.passage_id, self.negative_ids,
                              *self.vectors)))

  def __str__(self) -> str:
    of_each = {"query": self.query, "passage": self.passage, "negatives": self.negatives,
               "label (1: a pair, 0: a negative)": (self.label,), "scores": (self.scores, self.negative_scores),
               "ids": (self.query_id, self.passage_id, self.negative_ids), "vectors": self.vectors}
    return "; ".join(f"{what}: {' + '.join(f'{chr(34)}{name}{chr(34)}' for name in names if name)}"
                     for what, names in of_each.items() if any(names))


def meaning(row: Mapping[str, Any], named: Named) -> Meaning:
  """Of an object by the names of its fields.

  Raises:
    ValueError: they are of no kind that is known, or of several; or one that is not known may change what is meant.
  """
  return _meaning(tuple(row), named)


@functools.lru_cache(maxsize=1024)
def _meaning(names: tuple[str, ...], named: Named) -> Meaning:
  written = {folded_name(name): name for name in names}
  if len(written) < len(names):  # Two that differ in their spelling alone: each is what it is.
    written = {name: name for name in names}
  folded = {name: fold for fold, name in written.items()}
  ignored = {folded.get(name, name) for name in named.ignored} | set(map(folded_name, named.ignored)) & {*written}
  query, passage, negatives = (tuple(folded.get(name, name) for name in given) for given in (
      named.query, named.passage, filter(None, [named.negatives])))
  found = _of_folded(written, Named(query, passage, "".join(negatives), tuple(ignored)))
  back: dict[str, Any] = {}
  for name, value in found._asdict().items():
    several = isinstance(value, tuple)
    fields = tuple(written.get(field, field) for field in (value if several else (value,)))
    back[name] = fields if several else fields[0]
  return found._replace(**back)


def _of_folded(written: Mapping[str, str], named: Named) -> Meaning:
  """By folded names, which are those of `Named` too; `written` has them as the fields are called."""
  there = [name for name in written if name not in named.ignored]
  if named.query:
    found = Meaning(named.query, named.passage, (named.negatives,) if named.negatives in there else ())
  else:
    found = _guessed(there, written)
    found = found._replace(negatives=tuple(
        name for name in there if _NEGATIVES.fullmatch(name) and name not in found.query + found.passage))
  labels = [name for name in _LABELS if name in there and name not in found.fields]
  scores = [name for name in _SCORES if name in there and name not in found.fields]
  negative_scores = [name for name in _NEGATIVE_SCORES if name in there and name not in found.fields]
  if labels and {*_ENTAILED} <= {*there}:
    raise ValueError(_OF_ENTAILMENT)
  if (found.query + found.passage) in _POSTS:  # What readers think of a post, and what it is about.
    scores = [name for name in scores if name != "score"]
    there = [name for name in there if not _OF_READERS.fullmatch(name)]
    if labels and not named.query:
      label, query, passage = (written[name] for name in (labels[0], *found.query, *found.passage))
      raise ValueError(f"a {label!r} beside {query!r} and {passage!r}, which may say what they are about; if 0 says "
                       f"that they do not belong together, name them (--query, --passage), or {leave_out(label)}")
  if scores and _SCORED.isdisjoint(map(without_number, found.passage)) and (
      "score" in scores or not found.negatives and not negative_scores):
    name = written[scores[0]]
    raise ValueError(f"a pair with a {name!r}, which may say how alike its texts are, or what somebody thinks of them; "
                     f"keep the pairs whose texts belong together, and {leave_out(name)}")
  if "score" in scores and found.negatives and not found.several:
    raise ValueError("a 'score' beside a passage and its negatives, which may be the passage's or the margin between "
                     "them; name it positive_score, or give the scores of both as 'scores', or "
                     + leave_out(written["score"]))
  for several in (labels, scores, negative_scores):
    if len(several) > 1:
      first, second = (written[name] for name in several[:2])
      raise ValueError(f"fields {first!r} and {second!r}, which may be meant alike; " + leave_out(second))
  label, of_passages, of_negatives = ((*several, "")[0] for several in (labels, scores, negative_scores))
  query_id, passage_id, negative_ids = (
      next((name for name in known if name in there and name not in found.fields), "")
      for known in (QUERY_IDS, _POSITIVE_IDS + PASSAGE_IDS if found.several else PASSAGE_IDS + _POSITIVE_IDS,
                    _NEGATIVE_IDS))
  of_query, of_passage, of_negative = (
      next((name for name in there if known.fullmatch(name) and name not in found.fields), "") for known in _VECTORS)
  found = found._replace(vectors=(of_query, of_passage, of_negative if found.negatives else ""))
  found = found._replace(label=label, scores=of_passages, negative_scores=of_negatives, query_id=query_id,
                         passage_id=passage_id, negative_ids=negative_ids if len(found.negatives) == 1 else "")
  if not {*found.query, *found.passage} <= {*written}:  # Which is said where they are read.
    return found
  unread = [name for name in there if name not in found.fields]
  check_meaning([written[name] for name in unread], (), named.query != ())
  for name in unread:  # answer, answer_2, answers
    if any(without_number(name).removesuffix("s") == without_number(one).removesuffix("s") for one in found.passage):
      raise ValueError(not_known(written[name], "write all that answers the query as a list in 'pos', or "))
  return found


def check_shape(shape: str, names: Iterable[str], ignored: Collection[str]) -> None:
  """Raises ValueError where `set` or `texts` is beside a field that may be of a pair, or may change what is meant."""
  unread = [name for name in names if name != shape and name not in ignored]
  if beside := next((name for name in unread if _is_of_pair(folded_name(name))), ""):
    raise ValueError(_beside(repr(shape), beside))
  check_meaning(unread, ())


def _is_of_pair(name):
  """Whether it can be nothing but a query or a passage that answers one."""
  return name in (*_QUERIES, "positive", *_POSITIVES) or _POSITIVE_N.fullmatch(name) is not None


def _beside(found, other):
  return f"fields that may be meant as {found} or as {other!r}; {_NAME_THEM}, or {leave_out(other)}"


def _guessed(there: Sequence[str], written: Mapping[str, str]) -> Meaning:
  """Query and passage."""
  one_by_one = tuple(name for name in there if name == "positive" or _POSITIVE_N.fullmatch(name))
  several: list[tuple[str, ...]] = [(name,) for name in _POSITIVES if name in there]
  pairs: Sequence[tuple[str, str]] = _NAMES
  if one_by_one not in ((), ("positive",)):
    several.append(one_by_one)
    pairs = tuple(pair for pair in pairs if pair[1] != "positive")
  lists = [Meaning((query,), passages, several=True) for query in _QUERIES for passages in several if query in there]
  strict = [Meaning((query,), (passage,)) for query, passage in pairs if query in there and passage in there]
  looser = [Meaning((query,), (passage,)) for query, passage in _LOOSER if query in there and passage in there]
  possible = lists + strict or looser
  if not possible and {*_ENTAILED} <= {*there}:
    raise ValueError(_OF_ENTAILMENT)
  if not possible:
    names = ", ".join(repr(written[name]) for name in there) or "none"
    raise ValueError(f"fields {names} are of no kind that is known")
  if len(possible) > 1:
    raise ValueError("fields that may be meant as " + " or as ".join(
        f"{written[found.query[0]]!r} and {written[found.passage[0]]!r}" for found in possible)
        + f"; {_NAME_THEM}")
  found = possible[0]
  others = [pair for pair in _LOOSER if {*pair} <= {*there} and (
      pair[1] not in _BACKGROUND or {*pair}.isdisjoint(found.fields))]
  beside = [*filter(_is_of_pair, there), *itertools.chain.from_iterable(others)]
  if unread := [name for name in beside if name not in found.fields]:
    raise ValueError(_beside(f"{written[found.query[0]]!r} and {written[found.passage[0]]!r}", written[unread[0]]))
  return found


def label_of(value: Any, name: str) -> bool:
  """Whether the passage answers the query. Raises ValueError where the value does not say it."""
  if isinstance(value, list) and len(value) == 1:
    value, = value
  if _is_none(value):
    raise ValueError(f"{name} is null, NaN or empty: give 0 or 1, or leave it out with --ignore {name}")
  if isinstance(value, bool | int | float | str):
    text = str(value).strip().lower()
    number = float(text) if NUMBER.fullmatch(text) else {"true": 1, "false": 0}.get(text)
    if number in (0, 1):
      return number == 1
  raise ValueError(f"field {name!r} is {jsonl.kind_of(value)} ({value!r:.40}), where 1 says that the texts belong "
                   f"together and 0 that they do not; keep the pairs that do, or {leave_out(name)}")


def scores(row: Mapping[str, Any], kind: Meaning, passages: int, negatives: int) -> tuple[list[float], list[float]]:
  """Of each passage and of each negative, NaN where there is none.

  Raises:
    ValueError: there are as many as of neither, or what is none.
  """
  of_passages, of_negatives = (_scores_in(row.get(name), name) for name in (kind.scores, kind.negative_scores))
  if not of_negatives and negatives and len(of_passages) == passages + negatives:
    of_passages, of_negatives = of_passages[:passages], of_passages[passages:]
  for name, values, count in ((kind.scores, of_passages, passages), (kind.negative_scores, of_negatives, negatives)):
    if len(values) not in (0, count):
      raise ValueError(f"field {name!r} has {len(values)} scores for {passages} passages and {negatives} negatives; "
                       f"correct it, or {leave_out(name)}")
  return of_passages or [math.nan] * passages, of_negatives or [math.nan] * negatives


def _scores_in(value: Any, name: str) -> list[float]:
  """NaN where there is none: null, NaN or an empty text."""
  if isinstance(value, str) and value.strip().startswith("["):
    value = _parsed(value.strip(), name)
  if isinstance(value, list):
    return [math.nan if _is_none(one) else _numbers([one], name)[0] for one in value]
  return [] if _is_none(value) else _numbers(value, name)


def _is_none(value: Any) -> bool:
  """Whether it is no label and no score."""
  if isinstance(value, str):
    return value.strip().lower() in ("", "nan")
  return value is None or isinstance(value, float) and math.isnan(value)


def in_objects(texts: Sequence[Any], ignored: Collection[str], is_passage: bool = True) -> tuple[
    list[str], list[float]]:
  """The ids and scores within passages, or queries, that are objects; "" and NaN where there is none.

  Raises:
    ValueError: one is no id or no number, or a field that is not known may change what is meant.
  """
  ids, found = [""] * len(texts), [math.nan] * len(texts)
  known_ids, known = (_OBJECT_IDS, _OBJECT_FIELDS) if is_passage else _IN_QUERIES
  for i, value in enumerate(texts):
    if isinstance(value, dict) and isinstance(value.get("text"), str):
      check_meaning([name for name in value if name not in known], ignored)
      names = {folded_name(name): name for name in reversed(value) if name not in ignored}
      there = [names[name] for name in known_ids if name in names]
      ids[i] = next(filter(None, (identifier_in(value, name) for name in there)), "")
      if "score" not in ignored and not isinstance(value.get("score"), list):
        found[i] = (*_scores_in(value.get("score"), "score"), math.nan)[0]
  return ids, found


def identifier_in(row: Mapping[str, Any], name: str) -> str:
  """The id in a field, "" where it is null or not there. Raises ValueError where it is none."""
  try:
    return jsonl.identifier(row.get(name))
  except ValueError as e:
    raise ValueError(f"field {name!r}: {e}") from e


def identifiers(row: Mapping[str, Any], name: str, count: int, what: str) -> list[str]:
  """As many ids as texts, of a field with all of them; "" where it is null or not there. Raises ValueError."""
  if not name or row.get(name) is None:
    return [""] * count
  found = texts_of(row, name)
  if count != 1 and folded_name(name) in PASSAGE_IDS and not isinstance(row[name], list):
    return [""] * count  # One id is that of none of several passages.
  if len(found) != count:
    raise ValueError(f"field {name!r} has {len(found)} ids for {count} {what}; correct it, or if it means nothing "
                     f"here, say so (--ignore {name})")
  return [identifier_in({name: value}, name) for value in found]


def vectors(row: Mapping[str, Any], kind: Meaning, passages: int, negatives: int) -> tuple[str, list[str], list[str]]:
  """A teacher's vectors of the query, of each passage and of each negative, packed; "" where there is none.

  Raises:
    ValueError: there are as many as of neither, or what is none, or they have different lengths.
  """
  of_query, of_passage, of_negatives = kind.vectors
  found = [[row.get(of_query)], row.get(of_passage) if kind.several else [row.get(of_passage)], row.get(of_negatives)]
  every: list[list[str]] = []
  lengths = set()
  for name, values, count in zip(kind.vectors, found, (1, passages, negatives), strict=True):
    values = _parsed(values, name) if isinstance(values, str) else values
    if values is not None and (not isinstance(values, list) or len(values) != count):
      raise ValueError(f"field {name!r} is no list of {count} vectors, as there are texts; correct it, or "
                       + leave_out(name))
    numbers = [_numbers(value, name) for value in values or [None] * count]
    lengths |= {len(vector) for vector in numbers if vector}
    every.append(list(map(packed, numbers)))
  if len(lengths) > 1:
    raise ValueError(f"vectors of {' and '.join(map(str, sorted(lengths)))} numbers; correct them, or "
                     + leave_out(next(filter(None, kind.vectors))))
  return every[0][0], every[1], every[2]


def _numbers(value: Any, name: str) -> list[float]:
  if isinstance(value, str):  # Of a table whose cells are all texts.
    value = value.strip()
    value = _parsed(value, name) if value.startswith("[") else value or None
  values = value if isinstance(value, list) else [] if value is None else [value]
  for one in values:
    is_number = NUMBER.fullmatch(one) if isinstance(one, str) else isinstance(one, int | float)
    if isinstance(one, bool) or not is_number:
      raise ValueError(f"field {name!r} has {jsonl.kind_of(one)} ({one!r:.40}), where a number is expected; correct "
                       f"it, or {leave_out(name)}")
  numbers = list(map(float, values))
  if infinite := [one for one in numbers if math.isinf(one)]:
    raise ValueError(f"field {name!r} has {infinite[0]}, which is not finite; correct it, or {leave_out(name)}")
  return numbers


def texts_of(row: Mapping[str, Any], name: str) -> list[Any]:
  """The texts of a field that has one or a list of them, or none.

  A text that is itself a list of JSON, in a field whose name is of several, is that list: tables whose cells are all
  texts hold lists so.

  Raises:
    ValueError: it begins as such a list, and is none.
  """
  value = row[name]
  if (isinstance(value, str) and _SEVERAL.fullmatch(folded_name(name)) and _LIST_BEGINS.match(value)
      and value.rstrip().endswith("]")):
    value = _parsed(value, name)
  return [] if value is None else value if isinstance(value, list) else [value]


def _parsed(text: str, name: str) -> list[Any]:
  try:
    value = jsonl.parse(text.encode(errors="surrogatepass"))
  except ValueError as e:
    raise ValueError(f"field {name!r} begins as a list, and is {e}; write it as JSON: json.dumps([…])") from e
  if not isinstance(value, list):
    raise ValueError(f"field {name!r} is {jsonl.kind_of(value)}, where a list is expected")
  return value
