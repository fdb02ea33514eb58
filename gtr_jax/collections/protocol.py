"""How a collection is evaluated: the one way from what a user names to its documents, queries, judgements and rules."""

import dataclasses
from typing import NamedTuple

from etils import epath

from gtr_jax.collections import beir
from gtr_jax.collections.beir import BeirSet
from gtr_jax.collections.collection import Collection, files_of, read_collection
from gtr_jax.collections.find import Found, find_collections
from gtr_jax.collections.qrels import without_relevant
from gtr_jax.errors import InputError
from gtr_jax.io.data_root import data_dir

UNKNOWN_JUDGEMENTS = 0.05
"""The share of a BEIR set's judgements that may be of documents that are not to be had any more."""


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How systems are evaluated. What is None is, on a set of BEIR, as BEIR and GTR do it.

  Attributes:
    split: which judgements (else: "test"; of MS MARCO "dev").
    exclude_own_id: never rank the document whose id is the query's own (else: on ArguAna and Quora).
    query_length: most tokens of a query (else: the model's own; on BEIR 64, on ArguAna 512).
    document_length: most tokens of a document (else: the model's own; on BEIR 512, on TREC-NEWS and Robust04 768).
    similarities: "cosine" normalises a model's vectors, "dot" does not; each makes a system (else: as the model was
      trained).
    allow_empty_documents: keep documents with neither title nor text; those of BEIR are kept anyway.
  """

  split: str | None = None
  exclude_own_id: bool | None = None
  query_length: int | None = None
  document_length: int | None = None
  similarities: tuple[str, ...] = ()
  allow_empty_documents: bool = False

  def of(self, found: Found) -> "Settled":
    """What holds for one collection."""
    of_set = ("split", "exclude_own_id", "query_length", "document_length")
    usual = {} if found.beir is None else {name: getattr(found.beir, name) for name in of_set}
    given = {name: value for name, value in vars(self).items() if value is not None}
    given["allow_empty_documents"] |= found.beir is not None
    return Settled(**usual | given)


@dataclasses.dataclass(frozen=True)
class Settled(Protocol):
  """What holds for one collection: a length that is None is the model's own."""

  split: str = "test"
  exclude_own_id: bool = False


class Task(NamedTuple):
  """A collection and how it is evaluated.

  Attributes:
    collection: what was read.
    protocol: what holds for it.
    beir: which set of BEIR it is, if it is one.
  """

  collection: Collection
  protocol: Settled
  beir: BeirSet | None

  def warnings(self) -> list[str]:
    """What a reader of the results has to know, in words."""
    collection, found = self.collection, []
    if self.beir:
      found = beir.warnings(self.beir, len(collection.documents.ids), len(collection.queries), collection.unknown)
    elif collection.name in beir.SETS:
      found = [f"evaluated as any folder, not by BEIR's protocol; for that, name it beir/{collection.name}"]
    if number := without_relevant(collection.qrels):
      found.append(f"{number:,} of {len(collection.queries):,} queries have no relevant document (every grade is 0 or "
                   "below), and count as 0 in every mean, as in trec_eval")
    return found


def read_task(found: Found, protocol: Protocol) -> Task:
  """Reads and checks a collection. Raises InputError with file and line at the first thing that is wrong."""
  settled = protocol.of(found)
  collection = read_collection(
      found.folder, settled.split, name=found.name, allow_empty_documents=settled.allow_empty_documents,
      allow_unknown=UNKNOWN_JUDGEMENTS if found.beir else 0.0)
  return Task(collection, settled, found.beir)


def check_task(found: Found, protocol: Protocol) -> None:
  """Raises InputError where a file that `read_task` would read is not there; nothing is read."""
  files_of(found.folder, protocol.of(found).split)


def find_one(reference: epath.PathLike) -> Found:
  """The collection of one name: a folder, "beir/NAME" or "nano-beir/NAME", which is downloaded where it is not there.

  Sets are looked for here, then in the data root, and downloaded to it.

  Raises:
    InputError: it is not there, or stands for several.
  """
  found = find_collections([reference], None, data_dir())
  if len(found) > 1:
    raise InputError(f"{reference}: stands for {len(found)} collections; name one, such as beir/{found[0].name}")
  return found[0]
