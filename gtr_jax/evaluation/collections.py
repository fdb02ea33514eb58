"""Test collections in BEIR layout: corpus.jsonl, queries.jsonl (each also as .gz) and qrels/<split>.tsv."""

import dataclasses

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.retrieval.documents import Documents, id_field, read_jsonl, string_field

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade."""


@dataclasses.dataclass(frozen=True)
class Collection:
  """A corpus, the queries that have judgements in one split, and these judgements.

  Attributes:
    name: the folder's name.
    documents: the corpus in file order.
    query_ids: in file order.
    queries: their texts.
    qrels: grades by query and document id; grades of 0 and below are judged not relevant.
  """

  name: str
  documents: Documents
  query_ids: list[str]
  queries: list[str]
  qrels: Qrels


def read_collection(folder: epath.PathLike, split: str = "test", *, allow_empty_documents: bool = False) -> Collection:
  """Reads and checks a whole collection. Raises InputError with file and line at the first thing that is wrong."""
  folder = epath.Path(folder)
  documents = read_corpus(folder, allow_empty_documents=allow_empty_documents)
  query_ids, queries = read_queries(_jsonl_file(folder, "queries"))
  qrels = read_qrels(folder / "qrels" / f"{split}.tsv", query_ids=set(query_ids), doc_ids=set(documents.ids))
  judged = [i for i, query_id in enumerate(query_ids) if query_id in qrels]
  return Collection(name=folder.resolve().name, documents=documents, query_ids=[query_ids[i] for i in judged],
                    queries=[queries[i] for i in judged], qrels=qrels)


def read_corpus(folder: epath.PathLike, *, allow_empty_documents: bool = False) -> Documents:
  """The corpus of a collection; nothing else of the folder is read.

  Args:
    folder: the collection.
    allow_empty_documents: keep documents with neither title nor text, for published collections that have some
      (Cranfield: two); otherwise they are an error.
  """
  path = _jsonl_file(epath.Path(folder), "corpus")
  documents, seen = Documents([], [], []), {}
  for place, record in read_jsonl(path):
    documents.ids.append(id_field(place, record, seen))
    title, text = string_field(place, record, "title", ""), string_field(place, record, "text", "")
    if not allow_empty_documents and not title.strip() and not text.strip():
      raise InputError(f"{place}: document {documents.ids[-1]!r} has neither title nor text; remove it, or keep it "
                       "with --allow_empty_documents")
    documents.titles.append(title)
    documents.texts.append(text)
  if not documents.ids:
    raise InputError(f"{path}: no documents")
  return documents


def read_queries(path: epath.PathLike) -> tuple[list[str], list[str]]:
  """(ids, texts) of a queries file: JSONL with `_id` and `text`."""
  ids, texts, seen = [], [], {}
  for place, record in read_jsonl(path):
    ids.append(id_field(place, record, seen))
    texts.append(string_field(place, record, "text"))
    if not texts[-1].strip():
      raise InputError(f"{place}: query {ids[-1]!r} is empty; remove it, and its judgements")
  if not ids:
    raise InputError(f"{path}: no queries")
  return ids, texts


def read_qrels(path: epath.PathLike, query_ids: set[str], doc_ids: set[str]) -> Qrels:
  """Judgements: tab-separated query-id, corpus-id, score under a header line of these names."""
  path = epath.Path(path)
  if not path.exists():
    there = sorted(p.name.removesuffix(".tsv") for p in path.parent.glob("*.tsv")) if path.parent.exists() else []
    raise InputError(f"{path}: no such file; " + (f"splits here: {', '.join(there)}" if there else
                                                  "a collection needs qrels/<split>.tsv"))
  qrels: Qrels = {}
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    place = f"{path}:{number}"
    try:
      fields = line.decode("utf-8-sig").split("\t")
    except UnicodeDecodeError as e:
      raise InputError(f"{place}: not UTF-8 ({e.reason}); convert the file to UTF-8") from e
    if not line.strip() or (number == 1 and fields[0] == "query-id"):
      continue
    if len(fields) != 3:
      raise InputError(f"{place}: {len(fields)} tab-separated columns; write query-id, corpus-id and score with a "
                       "tab between them")
    query_id, doc_id, grade = (field.strip() for field in fields)
    try:
      grade = int(grade)
    except ValueError as e:
      raise InputError(f"{place}: the grade {grade!r} is not an integer; write 0, 1, 2, ...") from e
    if query_id not in query_ids:
      raise InputError(f"{place}: unknown query {query_id!r}; it is not in the queries file: remove the line, "
                       "or add the query")
    if doc_id not in doc_ids:
      raise InputError(f"{place}: unknown document {doc_id!r}; it is not in the corpus: remove the line, or add "
                       "the document")
    if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
      raise InputError(f"{place}: query {query_id!r}, document {doc_id!r} was judged {qrels[query_id][doc_id]} above "
                       f"and {grade} here; keep one")
  if not qrels:
    raise InputError(f"{path}: no judgements")
  return qrels


def _jsonl_file(folder: epath.Path, name: str) -> epath.Path:
  """The file `name`.jsonl or `name`.jsonl.gz of a folder."""
  for candidate in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
    if candidate.exists():
      return candidate
  raise InputError(f"{folder}: no {name}.jsonl or {name}.jsonl.gz; give a folder in BEIR layout (corpus.jsonl, "
                   "queries.jsonl, qrels/<split>.tsv)" if folder.exists() else f"{folder}: no such folder")
