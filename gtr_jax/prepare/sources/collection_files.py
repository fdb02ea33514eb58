"""The small files of a collection: queries and judgements, and whether they, the passages and the negatives match."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

from gtr_jax.collections.qrels import judgements_in
from gtr_jax.collections.queries import queries_in
from gtr_jax.errors import InputError
from gtr_jax.io import jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts
from gtr_jax.prepare.passages import PassageTable

_CHECKED = 5000  # Lines that are looked at before anything else is done.


def identifier(value: Any) -> str:
  """An id, or that of an object with `pid`. Raises ValueError or KeyError where it is none."""
  if not (found := jsonl.identifier(value["pid"] if isinstance(value, dict) else value)):
    raise ValueError(f"{value!r} is no id")
  return found


def check_ids(qrels: str, queries: tuple[str, ...], table: PassageTable) -> None:
  """Raises InputError where most judgements are of passages or queries that are not there: of another collection."""
  ignored = Counts()
  head = list(itertools.islice(judgements_in(Part(qrels), ignored.broken), _CHECKED))
  if not head:
    place = f"; {ignored.places[0]}" if ignored.places else ""
    raise InputError(f"{qrels}: no judgements in it{place}; give query, 0, passage and grade with tabs between them")
  unknown = [passage_id for _, _, passage_id, _ in head if passage_id not in table]
  if len(unknown) > len(head) / 2:
    raise InputError(f"{qrels} and {table.path} do not belong together: {len(unknown):,} of the first {len(head):,} "
                     f"judged passages, such as {unknown[0]!r}, are not in {table.path}; one of the two is another "
                     "collection's, or a file of queries: give the right one")
  wanted = {query_id for _, query_id, _, _ in head}
  missing = set(wanted)
  for path in queries:
    for _, query_id, _ in queries_in(Part(path), ignored.broken):
      missing.discard(query_id)
      if not missing:
        return
  if len(missing) > len(wanted) / 2:
    raise InputError(f"{qrels}: {len(missing):,} of the first {len(wanted):,} judged queries, such as "
                     f"{min(missing)!r}, are not in {', '.join(queries)}; give the queries of these judgements")


def check_negatives(negatives: Sequence[str], qrels: str, table: PassageTable) -> None:
  """Raises InputError where negatives are of none of the judged queries, or mostly of passages that are not there."""
  ignored, judged = Counts(), None
  for path in negatives:
    queries, passages = set(), []
    if ".jsonl" in os.path.basename(path):
      for _, record in itertools.islice(jsonl.read_values(Part(path), ignored.broken), _CHECKED):
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # Counted when it is read.
          systems = record["neg"].values() if isinstance(record["neg"], dict) else [record["neg"]]
          passages += [identifier(p) for found in systems for p in found[:3]]
          queries.add(identifier(record["qid"]))
    else:
      for _, line in itertools.islice(lines.read_text(Part(path), ignored.broken), _CHECKED):
        if len(fields := line.split()) == 3:  # Or else counted when it is read.
          queries.add(fields[0])
          passages.append(fields[2])
    unknown = [passage_id for passage_id in passages if passage_id not in table]
    if len(unknown) > len(passages) / 2:
      raise InputError(f"{path} and {table.path} do not belong together: {len(unknown):,} of the first "
                       f"{len(passages):,} negatives, such as {unknown[0]!r}, are not there; give the passages of "
                       "these negatives")
    judged = judged or {query_id for _, query_id, *_ in judgements_in(Part(qrels), ignored.broken)}
    if queries and not queries & judged:
      raise InputError(f"{path}: none of its first {len(queries):,} queries, such as {min(queries)!r}, is judged in "
                       f"{qrels}; give the negatives of these judgements")


def check_systems(negatives: Sequence[str], systems: Sequence[str]) -> None:
  """Raises InputError where the first lines of the negatives name a system nowhere."""
  named = set()
  for path in (path for path in negatives if ".jsonl" in os.path.basename(path)):
    for _, record in itertools.islice(jsonl.read_values(Part(path), Counts().broken), _CHECKED):
      if isinstance(record, dict) and isinstance(record.get("neg"), dict):
        named.update(record["neg"])
  if unknown := [name for name in systems if name not in named]:
    raise InputError(f"--systems {' '.join(unknown)}: no such system in the first {_CHECKED:,} lines of "
                     f"{', '.join(negatives) or 'negatives, of which no file is given'}; systems there: "
                     f"{', '.join(sorted(named)) or 'none'}")
