"""Tables of numbers: as markdown, as CSV, and as text for a terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from gtr_jax.evaluation.significance import Certainty, interval, mark


class Table(NamedTuple):
  """Numbers by row and column.

  Attributes:
    corner: what the rows are.
    rows: row -> column -> number, None where there is none; every row has every column.
    digits: after the point.
    best: set the largest number of each column in bold.
    certain: column -> row -> how sure its number is.
  """

  corner: str
  rows: Mapping[str, Mapping[str, float | None]]
  digits: int
  best: bool = False
  certain: Mapping[str, Mapping[str, Certainty]] = MappingProxyType({})


def markdown(table: Table) -> str:
  """As markdown; counts, and what is 100 or more, without digits after the point where nothing is compared."""
  columns = list(next(iter(table.rows.values())))

  def cell(row, column):
    value = row[column]
    if value is None:
      return "–"
    whole = not table.best and (float(value).is_integer() or abs(value) >= 100)
    text = f"{value:,.{0 if whole else table.digits}f}"
    largest = max(there for other in table.rows.values() if (there := other[column]) is not None)
    return f"**{text}**" if table.best and len(table.rows) > 1 and value == largest else text

  def certainty(name, column):
    of = table.certain.get(column, {}).get(name)
    return f"{mark(of)} [{interval(of)}]" if of else ""

  lines = [[table.corner, *columns], ["---", *(["---:"] * len(columns))]]
  lines += [[name.replace("|", "\\|"), *(cell(row, column) + certainty(name, column) for column in columns)]
            for name, row in table.rows.items()]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(table: Table) -> str:
  """As CSV, numbers in full, empty where there is none; of columns with intervals also their ends, and p values."""
  columns = list(next(iter(table.rows.values())))
  more = {column: ("low", "high", "p") for column in columns if column in table.certain}
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow([table.corner, *(cell for column in columns for cell in (
      column, *(f"{column} {key}" for key in more.get(column, ()))))])
  for name, row in table.rows.items():
    numbers: list[float | None] = []
    for column in columns:
      of: Mapping[str, Any] = table.certain.get(column, {}).get(name, {})
      numbers += [row[column], *(of.get(key) for key in more.get(column, ()))]
    writer.writerow([name, *("" if number is None else repr(number) for number in numbers)])
  return stream.getvalue()


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns two spaces apart: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
