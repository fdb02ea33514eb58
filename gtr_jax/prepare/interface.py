"""What a source of training pairs is to the engine that prepares it: parts to read, a key to join by, examples.

A source is a frozen dataclass of plain values, so that it can be sent to a worker; its fields are the settings that the
manifest records, and an interrupted run goes on only where they are the same.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from gtr_jax.errors import InputError
from gtr_jax.io.lines import Part

KEPT_PLACES = 20  # Of broken lines, in a part and in the manifest.
ALWAYS_MAY_BE_BROKEN = 9  # Lines, however few there are.


class Example(NamedTuple):
  """A pair to train on. Empty ids: the source has none. `negative_ids` is empty or as long as `negatives`.

  All pairs of a `group`, such as a thread, fall into one split where a share is drawn; if it is empty, all of a query.
  Of a pair that `is_mutual`, as of a set, either text may be the query: where a share is drawn, the one that is drawn.
  `scores`, a teacher's, is empty, or the passage's and those of the negatives behind it, NaN where there is none. Of a
  pair that `is_negative` the passage does not answer the query: it is a negative of the query's other pairs.
  `positives` are `text_key`s of other passages that answer the query, in decimal; the engine finds them.
  `vectors`, a teacher's, is empty, or the query's, the passage's and those of the negatives behind them, each as
  `vectors.packed` writes it, "" where there is none.
  """

  query: str
  passage: str
  query_id: str = ""
  passage_id: str = ""
  negatives: tuple[str, ...] = ()
  negative_ids: tuple[str, ...] = ()
  negative_queries: tuple[str, ...] = ()
  split: str = "train"  # Or "validation".
  group: str = ""
  scores: tuple[float, ...] = ()
  is_negative: bool = False
  positives: tuple[str, ...] = ()
  vectors: tuple[str, ...] = ()
  is_mutual: bool = False


class Source(Protocol):
  """Turns raw files into examples. `read` and `join` run in other processes, in no order that can be relied on."""

  __dataclass_fields__: ClassVar[dict[str, Any]]
  name: str  # The default of --name.
  licence: str  # Of the raw files, as the data card says it; "": not known.
  listed: ClassVar[tuple[str, ...]]  # Fields that list files, and decide which parts there are, but nothing in `read`.

  def parts(self) -> list[Part]:
    """The same list for the same files. Raises InputError that says what is missing, and where to get it."""

  def read(self, part: Part, counts: "Counts") -> Iterator[tuple[str, Any]]:
    """Yields (key, value). An `Example` as the value is done, its key is not looked at; any other value is plain
    (None, bool, int, float, str, lists, tuples and dicts of them) and meets in `join` all others of its key."""

  def join(self, key: str, values: list[Any], counts: "Counts") -> Iterator[Example]:
    """The examples of all values of one key, which come in the order of parts and of positions in them. A source whose
    `read` yields only Examples needs no `join`."""


class RetryableError(InputError):
  """The same files and settings may do better next time; what is done of them is kept."""


class Counts:
  """How many of what, and the first places of broken lines."""

  def __init__(self):
    self.reasons: collections.Counter[str] = collections.Counter()
    self.places: list[str] = []
    self.place = ""  # What is read or joined, for what is dropped there.

  def add(self, reason: str, n: int = 1) -> None:
    """`reason` in snake_case, such as "too_short"; it goes into the manifest. What is left out is for `drop`."""
    self.reasons[reason] += n

  def drop(self, reason: str, place: str = "", n: int = 1, **texts: str) -> None:
    """Counts what is left out. The engine also keeps the first examples of each reason (`transforms.Tally`).

    Args:
      reason: as in `add`; what comes behind a space is not part of what is counted ("contaminated by a query").
      place: where it is, if that is known.
      n: how many are left out, of which this is one.
      texts: what shows it, under names of fields such as query, passage, negative, text, title and id.
    """
    self.add(reason.partition(" ")[0], n)

  def answer(self, example: Example) -> None:
    """Says that a passage answers a query of which no pair is made with it: it is no negative of the query's pairs, by
    its text or its id, and they know of it. The engine keeps that (`transforms.Tally`)."""

  def wants(self, reason: str) -> bool:
    """Whether the texts of one more example are worth finding."""
    return False

  def broken(self, place: str, why: str) -> None:
    """A line or record that is not as its format says. The engine stops the run where there are too many of them."""
    self.reasons["broken"] += 1
    if len(self.places) < KEPT_PLACES:
      self.places.append(f"{place}: {why}")

  def update(self, reasons: dict[str, int], places: Iterable[str]) -> None:
    """Takes in the counts of another part."""
    self.reasons.update(reasons)
    self.places = [*self.places, *places][:KEPT_PLACES]


def what_is_wrong(e: Exception) -> str:
  """In words, what a record of another form has raised."""
  if isinstance(e, KeyError):
    return f"no field {e.args[0]!r}"
  return "a value of another type" if isinstance(e, TypeError | AttributeError) else str(e)


def newest(values: Iterable[list[Any]], counts: Counts) -> dict[tuple[str, str], list[Any]]:
  """Of values [kind, id, when, text, ...], such as a post in several dumps, the newest for each (kind, id); of equals
  one without a text, which was dropped, else the first."""
  found: dict[tuple[str, str], list[Any]] = {}
  for value in values:
    at = value[0], value[1]
    if at in found:
      counts.drop("copy_of_another_dump", text=found[at][3] or "", id=value[1])
    if at not in found or (value[2], value[3] is None) > (found[at][2], found[at][3] is None):
      found[at] = value
  return found
