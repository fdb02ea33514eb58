"""Queries: JSON lines (BEIR's queries.jsonl), TSV (MS MARCO's queries.train.tsv), plain or compressed, or tables."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from gtr_jax.collections.corpus import FIELDS, broken, check_id, document_of
from gtr_jax.errors import InputError
from gtr_jax.io import tables
from gtr_jax.io.lines import OnBroken, Part
from gtr_jax.io.paths import location


class Query(NamedTuple):
  """A query, as it was read."""

  place: str
  id: str
  text: str


def queries_in(part: Part, on_broken: OnBroken | None = None) -> Iterator[Query]:
  """The queries of a part of a file: JSON objects or rows of a table with `_id` and `text`, or id and text with a tab
  between them.

  Args:
    part: of a file.
    on_broken: is told of lines that are neither; None: they are an InputError.
  """
  rest = tables.read_lines(part, FIELDS)
  for line in rest:
    if not line.data.strip():
      continue
    try:
      query_id, _, text = document_of(line.data, no_text=None)
      yield Query(line.place, query_id, text)
    except ValueError as e:
      if on_broken is None:
        raise broken(part.path, line, rest, e) from e
      on_broken(line.place, f"not a query with _id and text ({e})")


def read_queries(path: epath.PathLike) -> tuple[list[str], list[str]]:
  """(ids, texts) of a whole file of queries. Raises InputError with file and line at the first that is wrong."""
  texts: dict[str, str] = {}
  for place, query_id, text in queries_in(Part(os.fspath(location(path)))):
    try:
      check_id(query_id)
    except ValueError as e:
      raise InputError(f"{place}: {e}; correct or remove the line") from e
    if not text.strip():
      raise InputError(f"{place}: query {query_id!r} is empty; remove it, and its judgements")
    if query_id in texts:
      raise InputError(f"{place}: duplicate _id {query_id!r}; ids must be unique")
    texts[query_id] = text
  if not texts:
    raise InputError(f"{path}: no queries")
  return list(texts), list(texts.values())
