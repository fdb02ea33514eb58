"""Examples of JSON lines, by the fields that a task declares."""

import functools
from collections.abc import Generator
from typing import NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.io import jsonl
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Example
from gtr_jax.prepare.sources.field_names import check_meaning
from gtr_jax.prepare.sources.pair_fields import Named, meaning, texts_of
from gtr_jax.text.same_text import folded


class Fields(NamedTuple):
  """Which fields of a source hold what; several names are joined with a space. None: the source has no such field."""

  query: tuple[str, ...]
  passage: tuple[str, ...]
  negatives: str | None = None
  negative_queries: str | None = None
  query_id: str | None = None
  passage_id: str | None = None
  negative_ids: str | None = None


OWN_FIELDS = Fields(("query",), ("passage",), "negatives", "negative_queries", "query_id", "passage_id", "negative_ids")
"""Of the records that are written."""


def read_examples(part: Part, fields: Fields) -> Generator[tuple[str, Example], None, list[str]]:
  """(place, example) of a file of JSON lines, plain or compressed, or of a part of one.

  Returns:
    Those of the declared id fields that no line has.

  Raises:
    InputError: a line is not a JSON object, lacks a field, has an empty query or passage, or a field that may change
      what it means and is not declared; names file and line.
  """
  without = {name for name in (fields.query_id, fields.passage_id) if name is not None}  # of all lines so far
  for place, row, _ in jsonl.read_objects(part):
    try:
      example = example_of(row, fields)
      _check_names(tuple(row), fields)
      yield place, example
    except ValueError as e:
      raise InputError(f"{place}: {e}; correct or remove the line") from e
    without -= row.keys()
  return sorted(without)


@functools.lru_cache(maxsize=1024)
def _check_names(names: tuple[str, ...], fields: Fields) -> None:
  """Raises ValueError where a field that is not declared may say that a line means something else."""
  ids = (fields.negative_queries, fields.query_id, fields.passage_id, fields.negative_ids)
  why = ""
  try:
    label = meaning(dict.fromkeys(names), Named(fields.query, fields.passage, fields.negatives or "",
                                                tuple(filter(None, ids)))).label
  except ValueError as e:
    label, why = "", str(e).partition(";")[0]
  if label:
    why = f"a field {label!r}, which says whether the passage answers the query"
  if why:
    raise _not_declared(why)


@functools.lru_cache(maxsize=1024)
def _check_names_of_negative(names: tuple[str, ...], fields: Fields) -> None:
  """The same of a negative that is an object."""
  try:
    check_meaning([name for name in names if name not in (*fields.passage, fields.passage_id)], ())
  except ValueError as e:
    raise _not_declared(f"a negative has {str(e).partition(';')[0]}") from e


def _not_declared(why: str) -> ValueError:
  return ValueError(f"{why}, and the task does not declare it; let gtr-jax prepare pairs read the file, or leave the "
                    "field out (--ignore), and train on what it writes")


def example_of(row: dict, fields: Fields) -> Example:
  """Of a row with values of JSON. Raises ValueError, in words."""

  def there(name):
    if name not in row:
      raise ValueError(f"no field {name!r}, which the task declares, only {', '.join(map(repr, row)) or 'nothing'}")
    return row[name]

  def text(values, what, names):
    if len(values) > 1:  # A title may be null where there is none.
      values = ["" if value is None else value for value in values]
    for value, name in zip(values, names, strict=True):
      if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {jsonl.kind_of(value)}, not a string")
    joined = " ".join(v.strip() for v in (value.replace("\0", "") for value in values) if v.strip())
    try:
      joined.encode()
    except UnicodeEncodeError as e:
      raise ValueError(f"the {what} is not valid Unicode ({e.reason})") from e
    if not joined or not joined.isascii() and not folded(joined):
      raise ValueError(f"the {what} (field {' + '.join(names)}) is empty")
    return joined

  def identifier(value, name):
    try:
      return jsonl.identifier(value)
    except ValueError as e:
      raise ValueError(f"field {name!r}: {e}") from e

  def listed(name):
    """The value of a field that may hold none, one or many."""
    return texts_of(row, name) if name in row else []

  given, given_ids = listed(fields.negatives), listed(fields.negative_ids)
  if None in given:  # Is none, as for `prepare`.
    if len(given_ids) == len(given):
      given_ids = [i for i, negative in zip(given_ids, given, strict=True) if negative is not None]
    given = [negative for negative in given if negative is not None]
  negatives, negative_ids = [], [identifier(i, fields.negative_ids) for i in given_ids]
  for negative in given:
    if isinstance(negative, dict):  # A passage like the positive one, with its own title, text and id.
      missing = [name for name in fields.passage if name not in negative]
      if missing:
        raise ValueError(f"a negative has no field {missing[0]!r}")
      _check_names_of_negative(tuple(negative), fields)
      negatives.append(text([negative[name] for name in fields.passage], "negative", fields.passage))
      if fields.passage_id in negative:
        negative_ids.append(identifier(negative[fields.passage_id], fields.passage_id))
    else:
      negatives.append(text([negative], "negative", [fields.negatives]))
  if negative_ids and len(negative_ids) != len(negatives):
    raise ValueError(f"{len(negative_ids)} ids for {len(negatives)} negatives")
  return Example(
      query=text([there(name) for name in fields.query], "query", fields.query),
      passage=text([there(name) for name in fields.passage], "passage", fields.passage),
      query_id=identifier(row.get(fields.query_id), fields.query_id),
      passage_id=identifier(row.get(fields.passage_id), fields.passage_id),
      negatives=tuple(negatives),
      negative_ids=tuple(negative_ids),
      negative_queries=tuple(text([q], "negative query", [fields.negative_queries])
                             for q in listed(fields.negative_queries)))
