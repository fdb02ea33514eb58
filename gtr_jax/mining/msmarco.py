"""MS MARCO's passage files as they are distributed: collection.tsv, queries.SPLIT.tsv and qrels.SPLIT.tsv."""

import array
import os
from collections.abc import Iterator, Sequence

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.retrieval.documents import Documents, View

COLLECTION = "collection.tsv"


def _texts(path: epath.Path, ends: Sequence[int]) -> Sequence[str]:
  """The second column of a file, read when asked for: only where lines end is in memory."""
  file = open(path, "rb")  # noqa: SIM115  (as long as its texts are in use)

  def text(row):
    start = ends[row - 1] if row else 0
    line = os.pread(file.fileno(), ends[row] - start, start).decode("utf-8")
    return line.rstrip("\r\n").partition("\t")[2]

  return View(len(ends), text)


def read_passages(folder: epath.PathLike) -> Documents:
  """The passages: "pid TAB text" a line. Raises InputError with file and line at the first that is wrong.

  Their texts stay on disk; the folder has to be on a local one.
  """
  path = epath.Path(folder) / COLLECTION
  ids, ends = [], array.array("q")
  for place, (doc_id, text), end in _columns(path, 2):
    if not doc_id.strip() or not text.strip():
      raise InputError(f"{place}: an empty id or passage; remove the line")
    ids.append(doc_id)
    ends.append(end)
  if not ids:
    raise InputError(f"{path}: no passages")
  if len(set(ids)) < len(ids):
    raise InputError(f"{path}: a passage id occurs twice; ids must be unique")
  return Documents(ids, [""] * len(ids), _texts(path, ends))


def read_judged(folder: epath.PathLike, split: str, doc_ids: list[str]) -> tuple[list[str], list[str], dict]:
  """(query ids, queries, query id -> passage id -> grade) of the queries that have judgements."""
  folder = epath.Path(folder)
  texts = dict(columns for _, columns, _ in _columns(folder / f"queries.{split}.tsv", 2))
  qrels, judged = {}, {}
  for place, (query_id, _, doc_id, grade), _ in _columns(folder / f"qrels.{split}.tsv", 4):
    if query_id not in texts:
      raise InputError(f"{place}: unknown query {query_id!r}; it is not in queries.{split}.tsv")
    if not grade.strip().isdecimal():
      raise InputError(f"{place}: the grade {grade!r} is not a number; write 0 or 1")
    qrels.setdefault(query_id, {})[doc_id] = int(grade)
    judged.setdefault(doc_id, place)
  for doc_id in judged.keys() - set(doc_ids):
    raise InputError(f"{judged[doc_id]}: unknown passage {doc_id!r}; it is not in {COLLECTION}")
  return list(qrels), [texts[query_id] for query_id in qrels], qrels


def _columns(path: epath.Path, number: int) -> Iterator[tuple[str, list[str], int]]:
  """(place, columns, the byte behind the line) of each line."""
  if not path.exists():
    there = sorted(p.name for p in path.parent.glob("*.tsv")) if path.parent.exists() else []
    raise InputError(f"{path}: no such file" + (f"; there are {', '.join(there)}" if there else ""))
  end = 0
  with path.open("rb") as f:
    for line_number, line in enumerate(f, start=1):
      end += len(line)
      if not line.strip():
        continue
      place = f"{path}:{line_number}"
      try:
        columns = line.decode("utf-8").rstrip("\r\n").split("\t")
      except UnicodeDecodeError as e:
        raise InputError(f"{place}: not UTF-8 ({e.reason}); convert the file to UTF-8") from e
      if len(columns) != number:
        raise InputError(f"{place}: {len(columns)} columns between tabs instead of {number}")
      yield place, columns, end
