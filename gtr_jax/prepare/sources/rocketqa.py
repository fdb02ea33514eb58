"""RocketQA's training files: a query with a positive and a negative passage, denoised by a cross-encoder, as texts.

    gtr-jax prepare rocketqa marco_de1_denoise.tsv
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from gtr_jax.io import flags, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.passages import titled
from gtr_jax.text.same_text import distinct
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative


@dataclasses.dataclass(frozen=True)
class RocketQA:
  """A pair for each positive passage of a query, with all of the query's negatives; a passage is title, space, text.

  Attributes:
    paths: TSV without header: query, title and text of a positive, title and text of a negative, label (of no meaning);
      or, for a cross-encoder, query, title, text, label (1: positive, 0: negative).
    num_negatives: for each query at most, in file order; 0: all.
  """

  licence: ClassVar[str] = (
      "that of the questions: MS MARCO's terms, for non-commercial research alone "
      "(https://microsoft.github.io/msmarco); Natural Questions, CC BY-SA 3.0")
  listed: ClassVar[tuple[str, ...]] = ("paths",)
  paths: tuple[str, ...]
  name: str = "rocketqa"
  num_negatives: NonNegative = 30

  def __post_init__(self):
    check_fields(self)

  def parts(self) -> list[Part]:
    return lines.line_parts(self.paths)

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    for place, line in lines.read_text(part, counts.broken):
      fields = line.split("\t")
      if len(fields) == 6:
        yield fields[0].strip(), [_text(*fields[1:3]), _text(*fields[3:5])]
      elif len(fields) == 4 and fields[3].strip() in ("0", "1"):
        text = _text(*fields[1:3])
        yield fields[0].strip(), [text, ""] if fields[3].strip() == "1" else ["", text]
      else:
        counts.broken(place, f"{len(fields)} columns; give query, title, text, title, text, label or query, title, "
                      "text, label")

  def join(self, key: str, values: list[Any], counts: Counts) -> Iterator[Example]:
    positives, negatives = (distinct(filter(None, texts), str) for texts in zip(*values, strict=True))
    kept = [text for same, text in negatives.items() if same not in positives]
    if len(kept) < len(negatives):
      counts.drop("negative_is_positive", n=len(negatives) - len(kept), query=key, negative=next(
          text for same, text in negatives.items() if same in positives))
    if not key or not positives:
      counts.drop("query_without_positive" if key else "empty_query", query=key, passage=next(
          iter(positives.values()), ""), negative=next(iter(negatives.values()), ""))
    elif not kept:
      counts.add("query_without_negatives")
    for text in positives.values() if key else ():
      yield Example(key, text, negatives=tuple(kept[:self.num_negatives or None]))


def _text(title: str, text: str) -> str:
  return titled(title, text) if text.strip() else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare rocketqa`."""
  parser.epilog = __doc__
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="FILE",
                      help="marco_de1_denoise.tsv, nq_de1_denoise.tsv or another file of data_train (wget_data.sh in "
                      "https://github.com/PaddlePaddle/RocketQA): query, title, text, title, text, label; or query, "
                      "title, text, label. They have no ids: what is the same passage is told by its text")
  parser.add_argument("--num_negatives", type=flags.non_negative, default=RocketQA.num_negatives, metavar="N",
                      help="for each query at most, 0 for all (default: %(default)s)")


def source(args: argparse.Namespace) -> RocketQA:
  """The source that the flags describe."""
  return RocketQA(tuple(args.paths), num_negatives=args.num_negatives)
