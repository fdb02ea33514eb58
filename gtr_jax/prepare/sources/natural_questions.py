"""Natural Questions as Google publishes it: questions, and the part of a page of Wikipedia that answers each.

    gtr-jax prepare natural_questions v1.0-simplified_simplified-nq-train.jsonl.gz --name natural_questions_long

Of its 307,373 training questions 49 % have such a long answer (Kwiatkowski et al. 2019, section 5). Annotators chose it
among the paragraphs, lists and tables of one page; DPR's file (`gtr-jax prepare dpr`) has 58,880 of the questions, with
passages of 100 words.
"""

import argparse
import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from gtr_jax.io import flags, jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example, what_is_wrong
from gtr_jax.prepare.passages import titled
from gtr_jax.values.check import check_fields

_TAG = re.compile(r"</?[A-Za-z][^>]*>")
_KINDS = {"p": "paragraphs", "ul": "lists", "ol": "lists", "dl": "lists", "table": "tables"}
KINDS = ("paragraphs", "lists", "tables")


@dataclasses.dataclass(frozen=True)
class NaturalQuestions:
  """A pair for each long answer; the passage is the page's title, a space, and the answer's text.

  Attributes:
    paths: JSONL, the simplified form (`document_text`) or the original one (`document_tokens`). Where several have
      annotated a question, as in the dev set, an answer is what at least two of them chose.
    kinds: which long answers: of `KINDS`.
  """

  licence: ClassVar[str] = "Natural Questions, CC BY-SA 3.0 (https://ai.google.com/research/NaturalQuestions)"
  listed: ClassVar[tuple[str, ...]] = ("paths",)
  paths: tuple[str, ...]
  kinds: tuple[str, ...] = KINDS
  name: str = "natural_questions"

  def __post_init__(self):
    check_fields(self)

  def parts(self) -> list[Part]:
    return lines.line_parts(self.paths)

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    for place, row in jsonl.read_values(part, counts.broken):
      try:
        question, tokens = row["question_text"].strip(), _tokens(row)
        chosen = collections.Counter((of["long_answer"]["start_token"], of["long_answer"]["end_token"])
                                     for of in row["annotations"])
        answers = [span for span, count in chosen.items()
                   if 0 <= span[0] < span[1] <= len(tokens) and count >= min(2, len(row["annotations"]))]
        found = [(_KINDS.get(tokens[start].strip("</>").lower().split("_")[0], ""), _text(tokens[start:end]))
                 for start, end in answers]
        query_id, title = str(row["example_id"]), _title(tokens)
      except (KeyError, TypeError, AttributeError, ValueError) as e:
        counts.broken(place, f"not an example of Natural Questions ({what_is_wrong(e)})")
        continue
      if not found:
        counts.drop("no_long_answer", place, query=question, query_id=query_id)
      for kind, text in found:
        if kind not in self.kinds:
          counts.drop("another_kind_of_answer", place, query=question, passage=text)
        elif not text:
          counts.drop("empty_answer", place, query=question, query_id=query_id)
        else:
          yield "", Example(question, titled(title, text), query_id)


def _tokens(row: dict[str, Any]) -> list[str]:
  if "document_text" in row:
    return row["document_text"].split(" ")
  return [token["token"] for token in row["document_tokens"]]


def _title(tokens: list[str]) -> str:
  """The page's heading."""
  if "<H1>" not in tokens:
    return ""
  start = tokens.index("<H1>")
  return _text(tokens[start:tokens.index("</H1>", start)] if "</H1>" in tokens[start:] else [])


def _text(tokens: list[str]) -> str:
  """Words as they are written: tokens stand apart from punctuation, and quotes are those of the Penn Treebank."""
  text = " ".join(token for token in tokens if not _TAG.fullmatch(token))
  text = text.replace("``", '"').replace("''", '"')
  return re.sub(r"\s+([.,;:!?%)\]])", r"\1", re.sub(r"([(\[])\s+", r"\1", text)).strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare natural_questions`."""
  parser.epilog = __doc__
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="FILE",
                      help="v1.0-simplified_simplified-nq-train.jsonl.gz, or nq-train-*.jsonl.gz and nq-dev-*.jsonl.gz "
                      "(https://ai.google.com/research/NaturalQuestions/download)")
  parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
                      help=f"which long answers are taken: {', '.join(KINDS)} (default: all)")


def source(args: argparse.Namespace) -> NaturalQuestions:
  """The source that the flags describe."""
  return NaturalQuestions(tuple(args.paths), tuple(args.kinds))
