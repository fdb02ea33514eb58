"""Examples as text, or as the pieces that a model reads."""

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.of_queries import negatives_of
from gtr_jax.prepare.vectors import unpacked
from gtr_jax.text.tokenizer import Tokenizer

_WIDTH, _NAME = 120, 12
_SHOWN_DROPPED = 3  # Of each reason.
_SHOWN_BROKEN = 5
_LONGEST = 400  # Characters of a text that are shown, and as many pieces behind the cut as fit about as many.


def as_text(place: str, example: Example, tokenizer: Tokenizer | None, lengths: Mapping[str, int],
            whole: bool = False) -> list[str]:
  """The lines that show an example.

  Args:
    place: where it is.
    example: all of it.
    tokenizer: texts are shown as its pieces; None: as they are.
    lengths: of "query" and "document", in tokens with EOS: what is behind is cut.
    whole: show all of long texts.
  """
  lines, most = [f"--- {place}"], 10**9 if whole else _LONGEST

  def line(name, text, of="", side="document"):
    text = " ".join(text.split("\n"))
    shown = _pieces(text, tokenizer, lengths[side], most) if tokenizer else _shortened(text, most)
    lines.extend(_wrapped(name, shown + (f"   [{of}]" if of else "")))

  score = example.scores[0] if example.scores else math.nan
  line("query", example.query, _of(example.query_id), "query")
  line("no answer" if example.is_negative else "passage", example.passage, _of(example.passage_id, score))
  for negative in negatives_of(example):
    line("negative", negative.text, _of(negative.id, negative.score))
  for text in example.negative_queries:
    line("not asked", text, side="query")
  if any(example.vectors):
    there = [vector for vector in example.vectors if vector]
    lines.append(f"{'vectors':{_NAME}}{len(there)}, of {len(unpacked(there[0])):,} numbers")
  if example.positives:
    lines.append(f"{'known':{_NAME}}{len(example.positives)} other passages that answer it")
  return lines


def as_json(place: str, example: Example) -> str:
  """An example as one line of JSON, of the fields that it has."""
  row: dict[str, Any] = {"place": place} | {name: value for name, value in example._asdict().items() if value not in (
      "", (), False)}
  if example.vectors:
    row["vectors"] = [unpacked(vector).tolist() for vector in example.vectors]
  return json.dumps(row, ensure_ascii=False)


def dropped(rows: Iterable[Mapping[str, Any]], counts: Mapping[str, int]) -> Iterator[str]:
  """What dropped.jsonl shows of each reason, the first ones, and how many there are in all by the manifest's counts."""
  by_reason: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    by_reason.setdefault(row["reason"].partition(" ")[0], []).append(row)
  for reason, examples in sorted(by_reason.items()):
    yield f"=== {reason}: {counts.get(reason, 0):,}"
    for row in examples[:_SHOWN_DROPPED]:
      yield f"--- {row['reason']}{', ' * bool(row['place'])}{row['place']}"
      for name, text in row.items():
        text = " ".join(text.split())
        if name == "why":  # A sentence, which is short.
          yield from _wrapped(name, text)
        elif name not in ("reason", "place"):
          yield f"{name:{_NAME}}{text[:_WIDTH]}{'…' * (len(text) > _WIDTH)}"


def left_out(counts: Counts) -> list[str]:
  """Lines that say how many broken lines there were, where and why the first ones are, and what else is left out."""
  others = {reason: count for reason, count in counts.reasons.items() if reason != "broken" and count}
  lines = ["left out: " + ", ".join(f"{reason} {count:,}" for reason, count in others.items())] * bool(others)
  if number := counts.reasons["broken"]:
    lines.append(f"broken: {number:,} of the lines that were looked at" + (
        f", of which the first {_SHOWN_BROKEN}" if number > _SHOWN_BROKEN else ""))
    lines += [f"  {place}" for place in counts.places[:_SHOWN_BROKEN]]
  return lines


def _wrapped(name, text):
  return textwrap.wrap(text, _WIDTH, initial_indent=f"{name:{_NAME}}", subsequent_indent=" " * _NAME,
                       break_on_hyphens=False) or [name]


def _of(identifier, score=math.nan):
  parts = [f"id {identifier}"] * bool(identifier) + ([] if math.isnan(score) else [f"score {score:g}"])
  return ", ".join(parts)


def _shortened(text, most):
  return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _pieces(text, tokenizer, length, most):
  pieces = tokenizer.pieces_of(text)
  read, cut = pieces[:length - 1], pieces[length - 1:]
  shown = _shortened(" ".join(read), most)
  return f"{shown}  CUT OFF ({len(cut):,} pieces): {_shortened(' '.join(cut), most // 4)}" if cut else shown
