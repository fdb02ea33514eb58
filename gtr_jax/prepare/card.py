"""README.md of prepared data: a data card, as the Hugging Face hub reads it. The same for the same data."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gtr_jax.prepare import records
from gtr_jax.text import language

EXAMPLES = 3
_WIDTH = 400  # Characters of a text.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))
_LARGEST = "n>1B"
_NO_SETTINGS = ("source", "name", "cache")
# What is counted, in words; anything else by its name.
_REASONS = {
    "answer_of_dropped_question": "answers whose question was left out",
    "answer_score": "answers with too low a score",
    "answer_without_question": "answers whose question is not there",
    "bot": "posts and comments of bots",
    "broken": "lines that are not as their format says",
    "contaminated": "pairs that have what a test collection tests",
    "contaminated_negative": "hard negatives that have what a test collection tests, taken out",
    "copy_of_another_dump": "posts that another dump has too; the newest counts",
    "deleted": "posts and comments that were deleted or removed",
    "duplicate": "pairs whose texts were there already; their negatives were put together",
    "equal_negative": "hard negatives that are there twice in a pair; the first counts",
    "empty": "pairs with an empty query or passage",
    "language": "pairs with a text in another language",
    "more_pairs_in_a_line": "pairs of a line beyond the most that are taken",
    "more_positives": "other answers beyond the most that a pair knows of",
    "no_passage": "lines that have no passage, or sets of fewer than two texts",
    "near_duplicate": "pairs that are nearly the same as another",
    "negative_is_query": "hard negatives that are the query itself, taken out",
    "negative_is_positive": "hard negatives that answer the query elsewhere, taken out",
    "negative_of_duplicate": "hard negatives that pairs have got from their copies",
    "negative_scores_too_high": "hard negatives that a teacher takes for answers",
    "negative_without_positive": "judged negatives of queries without an answer",
    "not_unicode": "pairs with half a character",
    "query_is_passage": "pairs whose query is its own passage",
    "question_closed": "closed questions",
    "question_score": "questions with too low a score",
    "question_without_answer": "questions without an answer that is taken",
    "score": "posts and comments with too low a score",
    "too_long": "pairs with too long a text",
    "too_short": "pairs with too short a text",
    "with_up_to_4_other_answers": "pairs whose query has up to 4 other answers, which they know of",
    "with_up_to_16_other_answers": "pairs whose query has more, of which they know up to 16",
}


def text(manifest: Mapping[str, Any], sample: Sequence[bytes]) -> str:
  """The card.

  Args:
    manifest: of the folder, as it is written.
    sample: some records of its first shard.
  """
  return "\n".join([*_header(manifest), "", *_body(manifest, sample)]) + "\n"


def _header(manifest):
  whole = sum(manifest["examples"].values())
  yield from ("---", "size_categories:", f"- {next((size for most, size in _SIZES if whole < most), _LARGEST)}")
  if (named := manifest["filters"]["language"]) != language.ANY:
    yield from ("language:", f"- {named}")
  yield "---"


def _body(manifest: Mapping[str, Any], sample: Sequence[bytes]) -> Iterator[str]:
  filters, counts = manifest["filters"], manifest["counts"]
  yield from (f"# {filters['name']}", "",
              f"Pairs of a query and a passage that answers it, prepared by gtr_jax {manifest['gtr_jax']} as shuffled "
              "TFRecord. `manifest.json` has all of this for programs, `dropped.jsonl` examples of what was left out.")
  yield from ("", "| split | pairs | files | bytes |", "|---|---|---|---|")
  for split, number in manifest["examples"].items():
    files = manifest["splits"][split]
    yield f"| {split} | {number:,} | {len(files):,} | {sum(files.values()):,} |"

  yield from ("", "## Made from", "", "| file | bytes | sha256 |", "|---|---|---|")
  yield from (f"| {_cell(of['name'])} | {of['bytes']:,} | `{of['sha256']}` |" for of in manifest["inputs"])
  yield from ("", f"Licence: {manifest['licence'] or 'not known'}.")

  yield from ("", "## Settings", "", f"Source: {filters['source']}.", "", "| setting | value |", "|---|---|")
  names = {of["name"] for of in manifest["inputs"]}
  for name, value in filters.items():
    if name not in _NO_SETTINGS and (shown := _shown(value, names)):
      yield f"| {name} | {_cell(shown)} |"

  yield from ("", "## What was read, and what was left out", "",
              f"{counts['read']:,} lines or records were read, {counts['written']:,} pairs are here.", "")
  for reason, number in counts.items():
    if number and reason not in ("read", "written"):
      words = f"pairs that {reason[3:]} has already" if reason.startswith("in_") else _REASONS.get(reason)
      yield f"- {number:,} {words or reason.replace('_', ' ')} (`{reason}`)"

  yield from ("", f"## {len(sample)} of the pairs")
  for record in sample:
    texts = records.texts_of(record)
    yield ""
    yield from (f"> **{name}** {_cut(texts[name][0])}  " for name in ("query", "passage"))
    if texts["negatives"]:
      yield f"> **negative** (of {len(texts['negatives'])}) {_cut(texts['negatives'][0])}  "
  yield from ("", "## Training on it", "",
              "With this folder in the data folder (`--data_dir`) under its name, and a vocabulary below that, such as "
              "T5's `spiece.model`:", "", "```", *_command(manifest, sample), "```")


def _command(manifest: Mapping[str, Any], sample: Sequence[bytes]) -> Iterator[str]:
  name, pairs = manifest["filters"]["name"], manifest["examples"]["train"]
  batch = min(256, 1 << pairs.bit_length() - 1)
  more = " --gin.NEGATIVES_PER_EXAMPLE=1" * any(records.texts_of(record)["negatives"] for record in sample)
  more += " --gin.VALIDATION=None" * ("validation" not in manifest["examples"])
  yield "gtr-jax train --gin_file=models/t5_small.gin --gin_file=runs/train.gin --gin.MIXTURE_OR_TASK_MODULE=None \\"
  yield f"""    --gin.MIXTURE_OR_TASK_NAME="'{name}'" --gin.MODEL_DIR="'runs/{name}'" \\"""
  yield """    --gin.VOCABULARY="'t5_vocab/spiece.model'" --gin.EXTRA_IDS=100 \\"""
  yield f"    --gin.BATCH_SIZE={batch} --gin.TRAIN_STEPS=1000{more}"


def _shown(value: Any, files: set[str]) -> str:
  """Of a setting; "" where it is empty, or names an input, which is listed above."""
  values = [of for of in (value if isinstance(value, list) else [value])
            if of not in (None, "") and not (isinstance(of, str) and (os.path.basename(of) in files or "://" in of))]
  return ", ".join(os.path.basename(of.rstrip("/")) if isinstance(of, str) else str(of) for of in values)


def _cell(of: str) -> str:
  return " ".join(of.split()).replace("|", "\\|")


def _cut(of: str) -> str:
  """One line that Markdown leaves as it is."""
  line = " ".join(of.split())
  line = line[:_WIDTH] + "…" * (len(line) > _WIDTH)
  return "".join(f"\\{c}" if c in "\\`*_<>[]|#" else c for c in line)
