"""Hard negatives: passages that rank high for a query and do not answer it."""

import gzip
import hashlib
import json
import random
from collections import defaultdict
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.retrieval.bm25 import BM25Index
from gtr_jax.retrieval.documents import read_jsonl, string_field


def mine_bm25(pairs_path: epath.PathLike, output: epath.PathLike, *, query_field: str = "query",
              passage_field: str = "positive", query_id_field: str | None = None, passage_id_field: str | None = None,
              num_negatives: int = 1, first_rank: int = 1, last_rank: int = 100, seed: int = 0,
              progress: bool = True) -> int:
  """Gives each training pair hard negatives that BM25 finds among the passages of all pairs.

  For each query, `num_negatives` are drawn at random from the passages ranked `first_rank` to `last_rank`, less those
  that are known to answer it: the passages of all pairs with the same query (id or normalised text), by passage id and
  by normalised text. The draw depends on `seed` and the query alone.

  Args:
    pairs_path: JSONL(.gz) of pairs.
    output: the JSONL(.gz) to write: each pair as it was, with "negatives" (a list of passages, best ranked first; short
      or empty where BM25 finds too few), and "negative_ids" if `passage_id_field` is given. Appears when whole.
    query_field: where a pair has its query.
    passage_field: where it has its passage.
    query_id_field: where it has its query's id, if it has.
    passage_id_field: where it has its passage's id, if it has; passages with the same id are one.
    num_negatives: per pair.
    first_rank: the best rank that a negative may have, from 1.
    last_rank: the worst.
    seed: of the draw.
    progress: show progress bars on stderr.

  Returns:
    How many pairs got fewer than `num_negatives`.

  Raises:
    InputError: a line is malformed, or has no query or no passage.
  """
  if not 1 <= first_rank <= last_rank:
    raise InputError(f"ranks {first_rank} to {last_rank}: the first must be at least 1, and not above the last")
  output = epath.Path(output)
  records, queries, query_keys = [], [], []
  passages, passage_ids, passage_keys = [], [], []  # the different ones
  row_of, answers = {}, defaultdict(set)            # passage key -> row; query key -> keys of its passages
  for place, record in read_jsonl(pairs_path):
    query, passage = string_field(place, record, query_field), string_field(place, record, passage_field)
    if not query.strip() or not passage.strip():
      empty = passage_field if query.strip() else query_field
      raise InputError(f'{place}: "{empty}" is empty; remove the pair')
    of_query, of_passage = _keys(query, record, query_id_field), _keys(passage, record, passage_id_field)
    if row_of.setdefault(of_passage[-1], len(passages)) == len(passages):
      passages.append(passage)
      passage_ids.append(record.get(passage_id_field))
      passage_keys.append(of_passage)
    for key in of_query:
      answers[key].update(of_passage)
    records.append(record)
    queries.append(query)
    query_keys.append(of_query)
  if not records:
    raise InputError(f"{pairs_path}: no pairs")

  different = list(dict.fromkeys(queries))
  index = BM25Index(passages, progress=progress)
  found = (rows[first_rank - 1:] for rows, _ in index.search(different, last_rank))
  ranked = dict(zip(different, found, strict=True))
  short = 0
  output.parent.mkdir(parents=True, exist_ok=True)
  temporary = output.parent / f".{output.name}.tmp"
  with temporary.open("wb") as raw:
    stream = gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) if output.name.endswith(".gz") else raw
    for record, query, keys in zip(records, queries, query_keys, strict=True):
      known = set().union(*(answers[key] for key in keys))
      rows = [row for row in ranked[query].tolist() if known.isdisjoint(passage_keys[row])]
      if len(rows) > num_negatives:
        drawn = random.Random(f"{seed} {query}").sample(range(len(rows)), num_negatives)
        rows = [rows[i] for i in sorted(drawn)]
      short += len(rows) < num_negatives
      record = {**record, "negatives": [passages[row] for row in rows]}
      if passage_id_field is not None:
        record["negative_ids"] = [passage_ids[row] for row in rows]
      stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    if stream is not raw:
      stream.close()
  temporary.replace(output)
  return short


def _keys(text: str, record: dict[str, Any], id_field: str | None) -> list[bytes]:
  """What a text is the same by: its normalised form, and its id if it has one; hashes, to be small."""
  keys = ["text " + " ".join(text.casefold().split())]
  if id_field is not None and record.get(id_field) is not None:
    keys.append(f"id {record[id_field]}")
  return [hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys]
