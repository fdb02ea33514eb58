"""Training pairs of a data set of ir_datasets, which knows where hundreds are and how each is read.

    gtr-jax prepare ir_datasets msmarco-passage/train --validation msmarco-passage/dev/small
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io import atomic, flags
from gtr_jax.io.bars import Bar
from gtr_jax.prepare.passages import cache_folder
from gtr_jax.prepare.sources import msmarco
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs

_FORMAT = 1  # Of what is written into the cache.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare ir_datasets`."""
  parser.epilog = __doc__
  parser.add_argument("dataset", metavar="NAME", help="of a data set with documents, queries and judgements, such as "
                      "msmarco-passage/train (https://ir-datasets.com lists them; pip install ir_datasets). It "
                      "downloads what is missing; what is read of it is kept in the data folder, in cache/. What is "
                      "judged with grade 0 becomes a negative")
  parser.add_argument("--validation", metavar="NAME", help="of the same documents, with the judgements of the "
                      "validation split")
  parser.add_argument("--min_grade", type=flags.positive, default=JudgedPairs.min_grade, metavar="N",
                      help="from which grade on a passage is relevant (default: %(default)s)")
  msmarco.add_negatives(parser)


def source(args: argparse.Namespace) -> JudgedPairs:
  """The source that the flags describe. Raises InputError where ir_datasets or a data set is not there."""
  train, validation = args.dataset, args.validation
  names = [train, *([validation] if validation else [])]
  found = [_load(name) for name in names]
  of_documents = [parent for _, parent in found]
  if of_documents[0] != of_documents[-1]:
    raise InputError(f"--validation {validation}: its documents are those of {of_documents[-1]}, and not of "
                     f"{of_documents[0]}; name a part of that, or prepare it by itself")
  files = [_written(name, dataset) for name, (dataset, _) in zip(names, found, strict=True)]
  return JudgedPairs(
      name=f"ir_datasets_{_file_name(train)}", passages=_documents(of_documents[0], found[0][0]),
      queries=tuple(queries for queries, _ in files), qrels=files[0][1],
      validation_qrels=files[1][1] if validation else "", cache=cache_folder(), min_grade=args.min_grade,
      **msmarco.negatives(args))


def _load(name: str) -> tuple[Any, str]:
  """The data set, and the name of that whose documents it has."""
  try:
    import ir_datasets
  except ModuleNotFoundError as e:
    raise InputError("prepare ir_datasets needs that package: pip install ir_datasets") from e
  try:
    dataset = ir_datasets.load(name)
  except KeyError as e:
    raise InputError(f"{name}: ir_datasets has no data set of this name; https://ir-datasets.com lists them") from e
  missing = [what for what in ("docs", "queries", "qrels") if not getattr(dataset, f"has_{what}")()]
  if missing:
    names = {"docs": "documents", "queries": "queries", "qrels": "judgements"}
    raise InputError(f"{name}: has no {' and no '.join(names[what] for what in missing)}; name a part of it that has, "
                     "such as one that ends in /train")
  return dataset, ir_datasets.docs_parent_id(name)


def _documents(name: str, dataset: Any) -> str:
  rows = ({"_id": doc.doc_id, "title": title, "text": text}
          for doc in dataset.docs_iter() for title, text in [_text(doc)])
  return _kept(name, "documents", "corpus.jsonl", rows, dataset.docs_count)


def _written(name: str, dataset: Any) -> tuple[str, str]:
  """The files of its queries and judgements."""
  queries = ({"_id": query.query_id, "text": " ".join(_text(query)).strip()} for query in dataset.queries_iter())
  judged = ("\t".join((qrel.query_id, "0", qrel.doc_id, str(qrel.relevance))) for qrel in dataset.qrels_iter())
  return _kept(name, "queries", "queries.jsonl", queries), _kept(name, "judgements", "qrels.tsv", judged)


def _text(of: Any) -> tuple[str, str]:
  """(title, text) of a document, which has such fields or knows its text, or of a query."""
  if isinstance(text := getattr(of, "text", None), str):
    return getattr(of, "title", None) or "", text
  return "", of.default_text()


def _file_name(name: str) -> str:
  return re.sub(r"[^\w.-]", "_", name)


def _kept(name: str, what: str, file: str, rows: Iterable[Any], count: Callable[[], int | None] = lambda: None) -> str:
  """The file in the cache with the rows, which are written once."""
  path = epath.Path(cache_folder()) / f"ir_datasets-{_FORMAT}-{_file_name(name)}-{file}"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      atomic.write_parts(path, _lines(rows, f"{name}: {what}", count()))
    except InputError:
      raise
    except Exception as e:  # Of the many downloads and formats behind it, each with errors of its own.
      if isinstance(e, OSError) and e.errno is not None:  # The disk; of the network there is none.
        raise
      raise InputError(f"{name}: ir_datasets cannot give its {what} ({type(e).__name__}: {first_line(e):.200}); follow "
                       "what it says, and start again") from e
  return str(path)


def _lines(rows: Iterable[Any], what: str, count: int | None) -> Iterator[bytes]:
  with Bar(count, what, " rows", leave=False, delay=1) as bar:
    for row in rows:
      line = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
      yield line.encode(errors="surrogatepass") + b"\n"
      bar.update()
