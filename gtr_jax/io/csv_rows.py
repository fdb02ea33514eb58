"""Rows of CSV and TSV whose first line names the columns. All cells are texts: "2019" may be a query."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator

from gtr_jax.errors import InputError
from gtr_jax.io import lines
from gtr_jax.io.lines import Line, OnBroken, Part

_LONGEST_CELL = 16 << 20  # Characters: a quote that nothing closes takes no more.
_LONGEST_NAME = 64
_LOOKED_AT = 1000  # Lines of a TSV, for how it is quoted.


def read(part: Part, separator: str = "", on_broken: OnBroken | None = None) -> Iterator[tuple[str, dict[str, str]]]:
  """(place, row) of a whole file; the place is that of the row's first line.

  Quoted cells may hold line ends. Where tabs part the columns, most writers quote nothing, so that a line with as many
  cells as there are columns is a row, and a quote in it that does not enclose a whole cell is text; unless the first
  thousand lines are what a writer of CSV makes, with a line end in a cell.

  Args:
    part: a file.
    separator: of cells; empty: a comma, or where the first line has none, a semicolon or a tab.
    on_broken: is told of each line of a broken row; None: it is an InputError.

  Raises:
    InputError: also where the first line names no columns.
  """
  rest = lines.read_lines(part)
  names: list[str] = []
  is_empty, is_quoted = True, False
  while (line := next(rest, None)) is not None:
    if not line.data.strip():
      continue
    taken = [line]
    try:
      if not names:
        separator = separator or next((mark for mark in ",;\t" if mark.encode() in line.data), ",")
        names = _names(_cells(taken, rest, separator, 0), line)
        lines.progress.lines -= len(taken)
        if separator == "\t":
          first = list(itertools.islice(rest, _LOOKED_AT))
          is_quoted = _is_quoted(first, len(names))
          rest = itertools.chain(first, rest)
        continue
      is_empty = False
      cells = _cells(taken, rest, separator, 0 if is_quoted else len(names))
      if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells, where the first line names {len(names)} columns; quote a cell that "
                         f"holds {separator!r} or a line end")
    except ValueError as e:
      if on_broken is None or not names:
        lines.check_rest(part.path, rest)
        raise InputError(f"{line.place}: {e}" + ("; correct or remove the row" if names else "")) from e
      for broken in taken:  # A quote that is not closed takes others with it.
        on_broken(broken.place, str(e))
      continue
    lines.progress.lines -= len(taken) - 1
    yield line.place, {name: cell for name, cell in zip(names, cells, strict=True) if name}
  if is_empty:
    raise InputError(f"{part.path}: no row in it; fetch it again, or leave it out")


def _cells(taken: list[Line], rest: Iterator[Line], separator: str, width: int) -> list[str]:
  """Of the row that begins with the line; what else it takes is added. Raises ValueError that says what is wrong."""
  first = _text(taken[0])
  if '"' not in first:
    return first.split(separator)
  if separator == "\t" and first.count("\t") + 1 == width:
    return [_unquoted(cell) for cell in first.split("\t")]

  def more():
    for line in rest:
      taken.append(line)
      yield "\n"  # Of the line before.
      yield _text(line)

  # Python's reader takes what it is given for lines, and a line end may be one by itself.
  before = csv.field_size_limit(_LONGEST_CELL)  # Of the process.
  try:
    return next(csv.reader(itertools.chain([first], more()), delimiter=separator, strict=True))
  except csv.Error as e:
    raise ValueError(f"quotes that are not CSV ({e}): a cell with a quote in it is to be enclosed in quotes, and the "
                     "quote doubled") from e
  finally:
    csv.field_size_limit(before)


def _is_quoted(first: list[Line], width: int) -> bool:
  """Whether these lines of a TSV hold cells with line ends, in quotes: written anew from what a reader of CSV takes
  them for, they are the same, which they are not where a quote stands in a cell that has none around it."""
  texts = [line.data.decode(errors="replace") for line in first if line.data.strip()]
  rows: list[list[str]] = []
  with contextlib.suppress(csv.Error):  # The last row may be longer than what was looked at.
    rows.extend(csv.reader((text + "\n" for text in texts), delimiter="\t", strict=True))
  for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
    anew = io.StringIO()
    csv.writer(anew, delimiter="\t", lineterminator="\n", quoting=quoting).writerows(rows)
    if ("\n".join(texts).startswith(anew.getvalue().rstrip("\n")) and {len(row) for row in rows} == {width}
        and any("\n" in cell for row in rows for cell in row)):
      return True
  return False


def _text(line: Line) -> str:
  if wrong := lines.not_utf8(line.data):
    raise ValueError(wrong)
  return line.data.decode()


def _unquoted(cell: str) -> str:
  inner = cell[1:-1].replace('""', "")
  return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner else cell


def _names(cells: list[str], line: Line) -> list[str]:
  """Raises ValueError where they name no columns."""
  if b"\r" in line.data:
    raise ValueError("its lines end with a carriage return alone, as on old Macs: tr '\\r' '\\n' < FILE")
  names = [cell.strip() for cell in cells]
  given = [name for name in names if name]  # A column of pandas' row numbers has none.
  like_data = [name for name in given if len(name) > _LONGEST_NAME or "\n" in name or name.replace(".", "").isdigit()]
  if like_data or not given:
    shown = ", ".join(map(repr, given))
    raise ValueError(f"the first line of CSV or TSV names its columns, and this one ({shown:.60}) looks like a row; "
                     "write one of names before it, such as query,positive, or those that --query and --passage say")
  if twice := [name for name in given if given.count(name) > 1]:
    raise ValueError(f"two columns of the name {twice[0]!r}; rename one")
  return names
