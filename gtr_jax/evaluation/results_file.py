"""results.json: what `gtr-jax evaluate` has measured in a folder, earlier calls included; and its tables."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages, significance
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.tables import aligned
from gtr_jax.io import lock
from gtr_jax.io.atomic import write_json
from gtr_jax.io.json_file import check_json, read_json
from gtr_jax.io.paths import is_remote, location
from gtr_jax.values.ranges import NonNegative, Positive, Share

RESULTS_FILE = "results.json"
DEPTH = 1000  # documents ranked per query, as is the custom with trec_eval
PROTOCOL = ("query_length", "document_length", "exclude_own_id")
"""What a collection's entry says of how it was evaluated. Lengths of None are each model's own."""

_OURS = {"runs", "embeddings"}
_PARTS = ("results", "per query", "weights")
"""What a system's entry has of each collection, the last where it is fused."""
_Collection = TypedDict("_Collection", {
    "documents": NonNegative, "queries": NonNegative, "median words": float, "hash": NotRequired[str | None],
    "beir": NotRequired[bool], "warnings": NotRequired[Sequence[str]], "query_length": NotRequired[Positive | None],
    "document_length": NotRequired[Positive | None], "exclude_own_id": NotRequired[bool]})
_Values = TypedDict("_Values", {"nDCG@10": float})


class Weight(TypedDict):
  """Of a system beside BM25 on a collection: the weight, the split of the queries that it was chosen on, or "agreement"
  where none are judged, and how many there were."""

  weight: Share
  by: str
  queries: NonNegative


_System = TypedDict("_System", {
    "weights_hash": str | None, "results": Mapping[str, _Values], "per query": NotRequired[significance.PerQuery],
    "weights": NotRequired[Mapping[str, Weight]],
    "similarity": NotRequired[str | None], "model": NotRequired[str | None], "dtype": NotRequired[str | None]})


class _Results(TypedDict):
  collections: Mapping[str, _Collection]
  systems: Mapping[str, _System]
  significance: NotRequired[significance.Certainties]


def read(path: epath.PathLike) -> dict[str, Any]:
  """The results in an evaluation's folder, or in a file. Raises InputError where they are not what they should be."""
  path = location(path)
  place = path / RESULTS_FILE if path.is_dir() else path
  advice = "give the --output of gtr-jax evaluate, or run that again"
  try:
    found = read_json(place, _Results, advice)
  except FileNotFoundError as e:
    raise InputError(f"{place}: no such file; give the --output of gtr-jax evaluate") from e
  for name, system in found["systems"].items():
    if unknown := system["results"].keys() - found["collections"].keys():
      raise InputError(f"{place}: damaged, {name} has results on {sorted(unknown)[0]!r}, of which nothing is said; "
                       f"{advice}")
    check_json(place, system["results"], Mapping[str, Mapping[str, float]], advice)
    for collection, of in system.get("per query", {}).items():
      for measure, values in of.items():
        if collection not in system["results"] or not _is_of(values, found["collections"][collection]["queries"]):
          raise InputError(f"{place}: damaged, {measure} of {name} is not a value for each query of {collection}; "
                           f"{advice}")
  return found


def _is_of(values: str, num_queries: int) -> bool:
  try:
    return len(significance.read_stored(values)) == num_queries > 0
  except ValueError:
    return False


def read_earlier(output: epath.Path) -> dict[str, Any]:
  """What the folder holds already, to be added to; {} of a new one. Raises InputError where it holds something else."""
  path = output / RESULTS_FILE
  if not path.exists():
    if output.exists() and {p.name for p in output.iterdir() if not p.name.startswith(".")} - _OURS:
      raise InputError(f"{output}: exists and holds no evaluation; choose another folder")
    return {}
  try:
    earlier = read(path)
  except InputError as e:
    raise InputError(f"{path}: damaged; remove it") from e
  if earlier.get("depth") != DEPTH:
    raise InputError(f"{path}: results to depth {earlier.get('depth')}; choose another folder")
  return earlier


def other_protocols(earlier: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
  """In words, which earlier results on collections that are evaluated otherwise now are dropped."""
  others = _evaluated_otherwise(earlier, results)
  for name, system in earlier.get("systems", {}).items():
    if dropped := [of for of in system["results"] if of in others]:
      yield (f"{name}: the results here on {', '.join(dropped)} are of other lengths, or with or without queries' own "
             "documents, and are dropped")


def _evaluated_otherwise(earlier: Mapping[str, Any], results: Mapping[str, Any]) -> set[str]:
  there = earlier.get("collections", {})
  return {name for name, of in results["collections"].items()
          if name in there and any(there[name].get(key, of[key]) != of[key] for key in PROTOCOL)}


def merged(earlier: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
  """`results`, and of the earlier ones those of other systems, and of the same weights on other collections."""
  others = _evaluated_otherwise(earlier, results)
  systems = {name: {**system, **{part: {of: values for of, values in system.get(part, {}).items() if of not in others}
                                 for part in _PARTS if part in system or part != "weights"}}
             for name, system in earlier.get("systems", {}).items()}
  systems = {name: system for name, system in systems.items() if system["results"]}
  for name, new in results["systems"].items():
    same = name in systems and all(systems[name].get(key) == new[key] for key in ("weights_hash", "similarity"))
    there = systems[name] if same else {}
    parts = {part: {**there.get(part, {}), **new.get(part, {})} for part in _PARTS if part in there or part in new}
    systems[name] = {**new, **parts, "results": averages.with_means(parts["results"])}
  collections = {**earlier.get("collections", {}), **results["collections"]}
  return {**results, "systems": systems, "collections": averages.with_forums(collections)}


def finish(output: epath.Path, results: Mapping[str, Any]) -> dict[str, Any]:
  """As `write`, once more when all is measured, with what is significant; returns `results` with the same of them."""
  added = _with_significance(merged({}, results))
  write(output, results, lambda whole: added if {**whole, "significance": added["significance"]} == added
        else _with_significance(whole))
  return added


def _with_significance(results: Mapping[str, Any]) -> dict[str, Any]:
  systems = results["systems"]
  return {**results, "significance": significance.certainties(
      {name: of["results"] for name, of in systems.items()},
      {name: of["per query"] for name, of in systems.items()}, results["collections"])}


def write(output: epath.Path, results: Mapping[str, Any], finished: Callable[[dict[str, Any]], Any] = dict) -> None:
  """Adds results to what the folder holds now: another call may have written into it, or be writing.

  Calls on one machine, or on a file system that has locks, wait for each other. A bucket has none: of two calls that
  end at the same moment, the last one's results are kept, and the other has to be run again.
  """
  if not is_remote(output):
    output.mkdir(parents=True, exist_ok=True)
  # Results that took hours are not lost for a file system without locks.
  with contextlib.nullcontext() if is_remote(output) else lock.locked(output / f".{RESULTS_FILE}.lock", wait=True):
    write_json(output / RESULTS_FILE, finished(merged(read_earlier(output), results)), indent=2)


def without_queries(results: Mapping[str, Any]) -> dict[str, Any]:
  """The results without the values of single queries, for people and programs that read them printed."""
  return {**results, "systems": {name: {key: of for key, of in system.items() if key != "per query"}
                                 for name, system in results["systems"].items()}}


def tables(results: Mapping[str, Any]) -> str:
  """The results as text: for each measure, systems by collections, their plain mean, and the means of BEIR's papers.

  Intervals, and what is marked, are of `significance`, and explained below.
  """
  collections = averages.shown(results["collections"])
  certain = results.get("significance", {})
  blocks = []
  for name in MEASURES:
    means = {system: averages.row(of["results"], collections, name, results["collections"])
             for system, of in results["systems"].items()}
    columns = list(dict.fromkeys(column for row in means.values() for column in row))
    cells = {system: [certain.get(name, {}).get(column, {}).get(system) for column in columns] for system in means}
    marks = {system: [significance.mark(cell) for cell in of] for system, of in cells.items()}
    width = max((len(mark) for of in marks.values() for mark in of), default=0)
    values = {system: [row.get(column) for column in columns] for system, row in means.items()}
    blocks.append(aligned([[name, *(column + " " * width for column in columns)], *(
        [system, *("-" + " " * width if value is None else f"{value:.4f}{mark.ljust(width)}"
                   for value, mark in zip(values[system], marks[system], strict=True))] for system in means)]))
    if any(any(of) for of in cells.values()):
      blocks.append(aligned([[f"{name}, 95 %", *columns], *(
          [system, *(significance.interval(cell) if cell else "-" for cell in of)] for system, of in cells.items())]))
  blocks += filter(None, [significance.legend(certain)])
  if weights := {name: of["weights"] for name, of in results["systems"].items() if "weights" in of}:
    blocks.append(aligned([["weight of the system beside BM25", *collections], *(
        [name, *(f"{of[column]['weight']:.2f} ({of[column]['by']})" if column in of else "-" for column in collections)]
        for name, of in weights.items())]))
  if any("bytes a document" in of for of in results["systems"].values()):
    rows = [["ms a query", *collections, "bytes a document"]]
    for system, of in results["systems"].items():
      times = [of.get("ms a query", {}).get(name) for name in collections]
      rows.append([system, *("-" if time is None else f"{time:.2f}" for time in times),
                   str(of.get("bytes a document", "-"))])
    blocks.append(aligned(rows))
  return "\n\n".join(blocks)
