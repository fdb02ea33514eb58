"""Open questions with answers alone, as NQ-open's: what a search has found becomes positive where it has an answer.

    gtr-jax prepare nq_open NQ-open.train.jsonl --run bm25.trec --passages psgs_w100.tsv

That is how DPR (arXiv 2004.04906) made its training data of TriviaQA, WebQuestions and CuratedTREC: the best passage of
BM25 that contains an answer is the positive, and the best ones that do not are the negatives.
"""

import argparse
import ast
import csv
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from gtr_jax.errors import InputError
from gtr_jax.io import flags, jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example, what_is_wrong
from gtr_jax.prepare.passages import COLUMNS, cache_folder, open_table, titled
from gtr_jax.text.answers import contains_answer_as_dpr
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative, Positive


@dataclasses.dataclass(frozen=True)
class NqOpen:
  """A pair for each of the first `num_positives` passages found that contain an answer.

  Attributes:
    questions: JSONL with `question` and `answer` (NQ-open; also `answers`), or TSV of question and a Python list of
      answers (DPR's `*.qa.csv`). Questions are numbered from 0.
    run: TREC run (query, Q0, passage, rank, score, system) whose query ids are these numbers.
    passages, columns, cache: as `passages.open_table` takes them.
    depth: how far down to look.
    num_positives: at most, for each question.
    num_negatives: the same; 0: all within the depth.
  """

  licence: ClassVar[str] = "Natural Questions, CC BY-SA 3.0 (https://ai.google.com/research/NaturalQuestions)"
  listed: ClassVar[tuple[str, ...]] = ("questions", "run")
  questions: str
  run: str
  passages: str
  cache: str
  columns: str = ""
  name: str = "nq_open"
  depth: Positive = 100
  num_positives: Positive = 1
  num_negatives: NonNegative = 30

  def __post_init__(self):
    check_fields(self)

  def parts(self) -> list[Part]:
    open_table(self.passages, self.cache, self.columns)
    lines.size_of(self.questions)
    return [Part(self.questions, kind="questions"), Part(self.passages, kind="passages"),
            *lines.line_parts([self.run], kind="run")]

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    if part.kind == "passages":  # An input, though nothing is read of it here.
      table = open_table(self.passages, self.cache, self.columns)
      counts.update({"broken": table.broken} if table.broken else {}, table.broken_places)
    elif part.kind == "questions":
      yield from _read_questions(part, counts)
    else:
      for place, line in lines.read_text(part, counts.broken):
        fields = line.split()
        if len(fields) != 6 or not fields[3].isdecimal():
          counts.broken(place, f"{len(fields)} fields; a run has query, Q0, passage, rank, score and system")
        elif int(fields[3]) <= self.depth:
          yield fields[0], [int(fields[3]), fields[2]]

  def join(self, key: str, values: list[Any], counts: Counts) -> Iterator[Example]:
    questions = [value for value in values if isinstance(value[0], str)]
    found = sorted(value for value in values if not isinstance(value[0], str))
    if not questions or not found:
      counts.drop("unknown_question" if found else "question_without_passages", id=key,
                  query=questions[0][0] if questions else "")
      return
    question, answers = questions[0]
    table = open_table(self.passages, self.cache, self.columns)
    positives: list[tuple[str, str]] = []
    negatives: list[tuple[str, str]] = []
    for _, passage_id in found:
      if (row := table.get(passage_id)) is None:
        counts.drop("unknown_passage", id=passage_id, query=question)
      else:
        found_in = positives if contains_answer_as_dpr(row.text, answers) else negatives
        found_in.append((passage_id, titled(row.title, row.text)))
    if not positives:
      counts.drop("question_without_positive", query=question, id=key)
    ids, texts = zip(*negatives[:self.num_negatives or None], strict=True) if negatives else ((), ())
    for passage_id, text in positives[:self.num_positives]:
      yield Example(question, text, key, passage_id, texts, ids)
    for passage_id, text in positives[self.num_positives:]:
      counts.answer(Example(question, text, key, passage_id))


def _read_questions(part: Part, counts: Counts) -> Iterator[tuple[str, list]]:
  with lines.open_file(part.path) as f:
    in_json = f.peek(64).lstrip()[:1] == b"{"
  read = jsonl.read_values if in_json else lines.read_text
  for number, (place, line) in enumerate(read(part, counts.broken)):
    try:
      if in_json:
        question, answers = line["question"], line["answer"] if "answer" in line else line["answers"]
      else:
        question, answers = next(csv.reader([line], delimiter="\t"))
        answers = ast.literal_eval(answers)
      question, answers = question.strip(), [*answers] if isinstance(answers, list) else [answers]
      if not question or not all(isinstance(a, str) for a in answers):
        raise ValueError("no question, or an answer that is not a text")
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as e:
      raise InputError(f"{place}: not a question with answers ({what_is_wrong(e)}); correct the line: its number "
                       "is the id in the run") from e
    yield str(number), [question, answers]
  if counts.reasons["broken"]:
    raise InputError(f"{counts.places[0]}; correct the line: the number of a question is its id in the run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare nq_open`."""
  parser.epilog = __doc__
  parser.add_argument("questions", type=flags.path, metavar="FILE",
                      help="NQ-open.train.jsonl (https://github.com/google-research-datasets/natural-questions) or "
                      "nq-train.qa.csv of DPR: questions and answers, without passages; answers are words, not "
                      "patterns as CuratedTREC's. DPR's biencoder-nq-train.json has passages already: gtr-jax prepare "
                      "dpr")
  parser.add_argument("--run", required=True, type=flags.path, metavar="FILE",
                      help="what a search has found for these questions in these passages: a TREC run, query ids being "
                      "the questions' numbers in the file, from 0")
  parser.add_argument("--passages", required=True, type=flags.path, metavar="FILE",
                      help="psgs_w100.tsv of DPR (data.wikipedia_split.psgs_w100), or another TSV or corpus.jsonl")
  parser.add_argument("--passage_columns", default="", choices=COLUMNS, metavar="COLUMNS",
                      help=f"of a TSV with three columns and no header: {' or '.join(COLUMNS[1:])}")
  for name, kind, what in (("depth", flags.positive, "look at so many passages of a question"),
                           ("num_positives", flags.positive, "pairs of a question at most"),
                           ("num_negatives", flags.non_negative, "for each question at most, 0 for all")):
    parser.add_argument(f"--{name}", type=kind, default=getattr(NqOpen, name), metavar="N",
                        help=f"{what} (default: %(default)s)")


def source(args: argparse.Namespace) -> NqOpen:
  """The source that the flags describe."""
  return NqOpen(args.questions, args.run, args.passages, cache_folder(), args.passage_columns, depth=args.depth,
                num_positives=args.num_positives, num_negatives=args.num_negatives)
