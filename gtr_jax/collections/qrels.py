"""Judgements: BEIR's qrels/SPLIT.tsv and TREC's (MS MARCO's qrels.train.tsv), plain or compressed, or tables."""

import os
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import jsonl, lines, tables
from gtr_jax.io.lines import OnBroken, Part
from gtr_jax.io.paths import location

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade."""

_GRADE = re.compile(r"([+-]?\d+)(\.0*)?")  # Tables write 1.0.
_HEADERS = {"queryid", "qid", "query", "topic", "topicid"}
_COLUMNS = (_HEADERS, {"corpusid", "docid", "did", "documentid", "passageid", "pid"},
            {"score", "grade", "relevance", "label", "rel"})  # Of a table.


class Judgement(NamedTuple):
  """A grade of a document for a query, as it was read; 0 and below is not relevant."""

  place: str
  query_id: str
  doc_id: str
  grade: int


def judgements_in(part: Part, on_broken: OnBroken | None = None) -> Iterator[Judgement]:
  """The judgements of a part of a file.

  With tabs or spaces between them: query, document and grade, under BEIR's header or none; query, 0, document and
  grade, as TREC has it; or query and document alone, which are grade 1. Of a table: columns of such names.

  Args:
    part: of a file.
    on_broken: is told of lines that are none of these; None: they are an InputError.
  """
  rest, width = lines.read_text(part, on_broken) if tables.has_lines(part.path) else _of_table(part), 0
  for number, (place, line) in enumerate(rest, 1):
    fields = [field.strip() for field in line.split("\t")] if "\t" in line else lines.columns(line)
    if not any(fields):
      continue
    if len(fields) > 3 and not fields[-1]:
      fields.pop()  # A tab behind the grade.
    grade = "1" if len(fields) == 2 else fields[-1]
    matched = _GRADE.fullmatch(grade)
    if number == 1 and not part.start and (not matched or len(fields) == 2) and _is_header(fields[0]):
      width = len(fields)
      continue
    if width and len(fields) != width and 2 <= len(fields) <= 4:
      wrong = f"{len(fields)} columns, where there are {width} above; give all lines the same"
    elif not 2 <= len(fields) <= 4 or not all(fields):
      commas = ", not commas" if len(fields) == 1 and "," in line else ""
      wrong = (f"{len(fields)} columns, or an empty one; write query-id, corpus-id and score with tabs between "
               f"them{commas}, or query, 0, document and grade, as TREC has it")
    elif not matched:
      header = "; if this is the header, write query-id, corpus-id and score" if number == 1 else ""
      wrong = f"the grade {grade!r} is not a whole number; write 0, 1, 2, ...{header}"
    else:
      width = len(fields)
      yield Judgement(place, fields[0], fields[2 if len(fields) == 4 else 1], int(matched[1]))
      continue
    if on_broken is None:
      lines.check_rest(part.path, rest)
      raise InputError(f"{place}: {wrong}")
    on_broken(place, wrong)


def _of_table(part: Part) -> Iterator[tuple[str, str]]:
  """(place, line) of the rows of a table."""
  for place, row in tables.read_objects(part.path):
    known = {_bare(name): name for name in row}
    found = [next((known[name] for name in known if name in of), None) for of in _COLUMNS]
    if None in found[:2]:
      raise InputError(f"{place}: columns {', '.join(row)}; call those of query, document and grade query-id, "
                       "corpus-id and score")
    try:
      ids = [jsonl.id_of(row, name) for name in found[:2] if name is not None]
    except ValueError as e:
      raise InputError(f"{place}: {e}") from e
    yield place, "\t".join([*ids, *([str(row[found[2]])] if found[2] is not None else [])])


def _is_header(name: str) -> bool:
  return _bare(name) in _HEADERS


def _bare(name: str) -> str:
  return re.sub(r"[\W_]", "", name).lower()


def _as_number(name: str) -> str:
  """What to say of an id that a table has turned into a number."""
  whole = re.fullmatch(r"(\d+)\.0+", name)
  return f" (is it {whole[1]!r} there? a table writes ids as numbers with .0: write them as they are)" if whole else ""


def read_qrels(path: epath.PathLike, query_ids: Container[str], doc_ids: Container[str],
               allow_unknown: float = 0.0) -> tuple[Qrels, int]:
  """A whole file of judgements, checked against the queries and documents that are there.

  Args:
    path: of the file.
    query_ids: of the queries.
    doc_ids: of the corpus.
    allow_unknown: this share of the judgements may be of documents that are not in the corpus.

  Returns:
    The judgements, and how many of them are of documents that are not in the corpus.

  Raises:
    InputError: names file and line of what is wrong.
  """
  qrels: Qrels = {}
  unknown, unknown_queries = [], []
  for place, query_id, doc_id, grade in judgements_in(Part(os.fspath(location(path)))):
    if query_id not in query_ids:
      unknown_queries.append(f"{place}: unknown query {query_id!r}; it is not in the queries file"
                             f"{_as_number(query_id)}")
    if doc_id not in doc_ids:
      unknown.append(f"{place}: unknown document {doc_id!r}; it is not in the corpus{_as_number(doc_id)}")
    if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
      raise InputError(f"{place}: query {query_id!r}, document {doc_id!r} was judged {qrels[query_id][doc_id]} above "
                       f"and {grade} here; keep one")
  if not qrels:
    raise InputError(f"{path}: no judgements")
  if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
    raise InputError(f"{path}: no document is judged relevant, every grade is 0 or below; nothing could be measured")
  judgements = sum(map(len, qrels.values()))
  for wrong, allowed in ((unknown_queries, 0), (unknown, allow_unknown * judgements)):
    if len(wrong) > judgements / 2:
      raise InputError(f"{wrong[0]}, as for {len(wrong):,} of {judgements:,} judgements; give those of this collection")
    if len(wrong) > allowed:
      others = f" and {len(wrong) - 1:,} more like it" if len(wrong) > 1 else ""
      raise InputError(f"{wrong[0]}: remove the line{others}, or add what is missing")
  return qrels, len(unknown)


def without_relevant(qrels: Qrels) -> int:
  """How many queries have no relevant document: they count as 0 in every mean, as trec_eval does it."""
  return sum(not any(grade > 0 for grade in grades.values()) for grades in qrels.values())
