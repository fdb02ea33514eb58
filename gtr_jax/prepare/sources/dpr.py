"""Questions with passages that answer them and such that do not: DPR's NQ, TriviaQA, SQuAD, and what looks like them.

    gtr-jax prepare dpr biencoder-nq-train.json.gz --validation biencoder-nq-dev.json.gz --name natural_questions
"""

import argparse
import codecs
import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from gtr_jax.errors import InputError
from gtr_jax.io import flags, jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example, what_is_wrong
from gtr_jax.prepare.passages import titled
from gtr_jax.text.same_text import folded
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative

_CHUNK = 4 << 20
_LONGEST = 256 << 20  # Characters of a record.
_NEGATIVES = {"hard": ("hard_negative_ctxs", "negative_passages"), "random": ("negative_ctxs",)}
_IDS = ("passage_id", "psg_id", "docid", "id")


@dataclasses.dataclass(frozen=True)
class Dpr:
  """Pairs of question and positive passage with the question's negatives; a passage is its title, space, its text.

  The fields are DPR's (`question`, `positive_ctxs`, `negative_ctxs`, `hard_negative_ctxs` with `title`, `text`,
  `passage_id`) or Tevatron's (`query_id`, `query`, `positive_passages`, `negative_passages` with `docid`).

  Attributes:
    paths: JSON arrays or JSON lines, also compressed.
    validation: the same, for the validation split.
    num_positives: of a question, the first so many; 0: all. DPR trains on the first.
    negatives: kinds of negatives, "hard" or "random", in the order in which they are taken.
    num_negatives: of a question at most; 0: all.
  """

  licence: ClassVar[str] = (
      "that of the questions: Natural Questions, CC BY-SA 3.0; of TriviaQA, SQuAD and others their own")
  listed: ClassVar[tuple[str, ...]] = ("paths", "validation")
  paths: tuple[str, ...]
  validation: tuple[str, ...] = ()
  name: str = "dpr"
  num_positives: NonNegative = 1
  negatives: tuple[str, ...] = ("hard",)
  num_negatives: NonNegative = 30

  def __post_init__(self):
    check_fields(self)

  def parts(self) -> list[Part]:
    parts = []
    for split, paths in (("train", self.paths), ("validation", self.validation)):
      for path in paths:
        lines.size_of(path)
        parts += [Part(path, kind=f"{split} array")] if _is_array(path) else lines.line_parts([path], kind=split)
    return parts

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    split, _, array = part.kind.partition(" ")
    for place, record in array_records(part.path) if array else jsonl.read_values(part, counts.broken):
      try:
        examples = list(self._examples(record, split, place, counts))
        "".join(text for e in examples for text in (e.query, e.passage, *e.negatives)).encode()
      except UnicodeEncodeError:
        counts.broken(place, "not UTF-8, or not valid Unicode")
      except (KeyError, TypeError, AttributeError, ValueError) as e:
        counts.broken(place, "not a question with positive_ctxs, or a query with positive_passages: "
                      f"{what_is_wrong(e)}")
      else:
        yield from (("", example) for example in examples)

  def _examples(self, record, split, place, counts):
    query = (record["question"] if "question" in record else record["query"]).strip()
    positives = _passages(record["positive_ctxs"] if "positive_ctxs" in record else record["positive_passages"])
    known = {value for passage in positives for value in _same(passage) if value}
    positives = _distinct(p for p in positives if p[1])
    if not query or not positives:
      counts.drop("empty_question" if not query else "without_positive", place, query=query, passage=next(
          (p[1] for p in positives), ""))
      return
    negatives = [p for kind in self.negatives for name in _NEGATIVES[kind] for p in _passages(record.get(name) or [])]
    same = [p for p in negatives if not known.isdisjoint(_same(p))]
    kept = _distinct(p for p in negatives if p[1] and p not in same)
    if same:
      counts.drop("negative_is_positive", place, len(same), query=query, negative=same[0][1])
    if self.negatives and not kept:
      counts.add("question_without_negatives")
    kept = kept[:self.num_negatives or None]
    ids, texts = tuple(p[0] for p in kept), tuple(p[1] for p in kept)
    query_id = _id(record, ("query_id", "id"))
    for passage_id, text in positives[:self.num_positives or None]:
      yield Example(query, text, query_id, passage_id, texts, ids if all(ids) else (), split=split)
    for passage_id, text in positives[self.num_positives:] if self.num_positives else ():
      counts.answer(Example(query, text, query_id, passage_id))


def _passages(found: list) -> list[tuple[str, str]]:
  """(id or "", title and text) of passages, which are objects or, as DPR's description has it, texts."""
  return [("", p.strip()) if isinstance(p, str) else (
      _id(p, _IDS), titled(p.get("title"), p["text"]) if p["text"].strip() else "") for p in found]


def _id(record, names):
  return next(filter(None, (jsonl.identifier(record.get(name)) for name in names)), "")


def _distinct(passages: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
  """DPR's files name the gold passage again where BM25 has found it too."""
  return list({p[0] or folded(p[1]): p for p in reversed(list(passages))}.values())[::-1]


def _same(passage: tuple[str, str]) -> tuple[str, str]:
  """What equal passages have in common, one or the other: the id, or the text."""
  return passage[0], folded(passage[1])


def _is_array(path: str) -> bool:
  """Raises InputError where it is an empty one."""
  with lines.open_file(path) as f:
    head = f.read(4096).removeprefix(codecs.BOM_UTF8).split()
  if b"".join(head[:2]) == b"[]":
    raise InputError(f"{path}: an empty array of JSON; give a file with questions in it")
  return bool(head) and head[0].startswith(b"[")


def array_records(path: str) -> Iterator[tuple[str, Any]]:
  """(place, element) of a JSON array of any size, some megabytes at a time. What is not UTF-8 becomes surrogates.

  Raises:
    InputError: it is not JSON, or cut off: what follows a broken element cannot be told.
  """
  with lines.open_file(path) as f:
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    raw_decode, text, at, number = json.JSONDecoder().raw_decode, "", 0, 0
    data = b"\0"

    def more() -> bool:
      """Reads on; drops what is done with."""
      nonlocal text, at, data
      data = f.read(max(_CHUNK, len(text) - at))
      text, at = text[at:] + decode(data, final=not data), 0
      return bool(data)

    def next_character() -> str:
      nonlocal at
      while True:
        while at < len(text) and text[at] in " \t\r\n":
          at += 1
        if at < len(text) or not more():
          return text[at:at + 1]

    def element() -> Any:
      nonlocal at
      while True:
        try:
          value, at = raw_decode(text, at)
          return value
        except json.JSONDecodeError as e:
          at_end = e.msg.startswith("Unterminated string") or e.pos > len(text) - 16
          if not at_end or len(text) - at > _LONGEST or not more():
            cut = not data and not text.rstrip().endswith("]")
            raise _damaged(path, "it is cut off; fetch it again" if cut else f"{e.msg} in record {number:,}") from e
        except (RecursionError, ValueError) as e:  # Python reads no longer whole numbers.
          what = "is nested too deeply" if isinstance(e, RecursionError) else "has a number of thousands of digits"
          raise _damaged(path, f"record {number:,} {what}") from e

    if next_character() != "[":
      raise _damaged(path, "it does not begin with [; give an array or JSON lines")
    at += 1
    if next_character() == "]":
      return
    while True:
      number += 1
      value = element()
      lines.progress.lines += 1
      yield f"{path}, record {number}", value
      if (separator := next_character()) == "]":
        return
      if separator != ",":
        raise _damaged(path, f"no comma after record {number:,}" if separator else "it is cut off; fetch it again")
      at += 1
      next_character()


def _damaged(path: str, what: object) -> InputError:
  return InputError(f"{path}: not a whole JSON array of records: {what}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare dpr`."""
  parser.epilog = __doc__
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="FILE",
                      help="biencoder-nq-train.json.gz, -trivia-, -squad1-, -webquestions-, -curatedtrec- or "
                      "nq-adv-hn-train of DPR (data.retriever.* of its download_data.py), or JSON lines with the same "
                      "fields or with Tevatron's (query_id, query, positive_passages, negative_passages)")
  parser.add_argument("--validation", nargs="+", action="extend", default=[], type=flags.path, metavar="FILE",
                      help="the same for the validation split: biencoder-nq-dev.json.gz")
  parser.add_argument("--num_positives", type=flags.non_negative, default=Dpr.num_positives, metavar="N",
                      help="pairs of a question: its first N positives, 0 for all (default: %(default)s, as DPR)")
  parser.add_argument("--negative_kinds", nargs="*", default=list(Dpr.negatives), choices=list(_NEGATIVES),
                      metavar="KIND",
                      help="hard, random or both, in this order (default: hard)")
  parser.add_argument("--num_negatives", type=flags.non_negative, default=Dpr.num_negatives, metavar="N",
                      help="for each question at most, 0 for all (default: %(default)s)")


def source(args: argparse.Namespace) -> Dpr:
  """The source that the flags describe."""
  return Dpr(tuple(args.paths), tuple(args.validation), num_positives=args.num_positives,
             negatives=tuple(args.negative_kinds), num_negatives=args.num_negatives)
