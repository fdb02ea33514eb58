"""results.json: what `gtr-jax evaluate` has measured in a folder, earlier calls included; and its tables."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.tables import aligned
from gtr_jax.io import lock
from gtr_jax.io.atomic import write_json
from gtr_jax.io.json_file import check_json, read_json
from gtr_jax.io.paths import is_remote, location
from gtr_jax.values.ranges import NonNegative, Positive

RESULTS_FILE = "results.json"
DEPTH = 1000  # documents ranked per query, as is the custom with trec_eval
PROTOCOL = ("query_length", "document_length", "exclude_own_id")
"""What a collection's entry says of how it was evaluated. Lengths of None are each model's own."""

_OURS = {"runs", "embeddings"}
_Collection = TypedDict("_Collection", {
    "documents": NonNegative, "queries": NonNegative, "median words": float, "hash": NotRequired[str | None],
    "beir": NotRequired[bool], "warnings": NotRequired[Sequence[str]], "query_length": NotRequired[Positive | None],
    "document_length": NotRequired[Positive | None], "exclude_own_id": NotRequired[bool]})
_Values = TypedDict("_Values", {"nDCG@10": float})


class _System(TypedDict):
  weights_hash: str | None
  results: Mapping[str, _Values]
  similarity: NotRequired[str | None]
  model: NotRequired[str | None]
  dtype: NotRequired[str | None]


class _Results(TypedDict):
  collections: Mapping[str, _Collection]
  systems: Mapping[str, _System]


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
  return found


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
  systems = {name: {**system, "results": {of: values for of, values in system["results"].items() if of not in others}}
             for name, system in earlier.get("systems", {}).items()}
  systems = {name: system for name, system in systems.items() if system["results"]}
  for name, new in results["systems"].items():
    same = name in systems and all(systems[name].get(key) == new[key] for key in ("weights_hash", "similarity"))
    systems[name] = {**new, "results": averages.with_means({**(systems[name]["results"] if same else {}),
                                                        **new["results"]})}
  collections = {**earlier.get("collections", {}), **results["collections"]}
  return {**results, "systems": systems, "collections": averages.with_forums(collections)}


def write(output: epath.Path, results: Mapping[str, Any]) -> None:
  """Adds results to what the folder holds now: another call may have written into it, or be writing.

  Calls on one machine, or on a file system that has locks, wait for each other. A bucket has none: of two calls that
  end at the same moment, the last one's results are kept, and the other has to be run again.
  """
  if not is_remote(output):
    output.mkdir(parents=True, exist_ok=True)
  # Results that took hours are not lost for a file system without locks.
  with contextlib.nullcontext() if is_remote(output) else lock.locked(output / f".{RESULTS_FILE}.lock", wait=True):
    write_json(output / RESULTS_FILE, merged(read_earlier(output), results), indent=2)


def tables(results: Mapping[str, Any]) -> str:
  """The results as text: for each measure, systems by collections, their plain mean, and the means of BEIR's papers."""
  collections = averages.shown(results["collections"])
  blocks = []
  for name in MEASURES:
    means = {system: averages.averages(of["results"], name, results["collections"])
             for system, of in results["systems"].items()}
    of_papers = list(dict.fromkeys(mean for found in means.values() for mean in found))
    rows = [[name, *collections, *["average"] * (len(collections) > 1), *of_papers]]
    for system, of_system in results["systems"].items():
      values = [of_system["results"].get(collection, {}).get(name) for collection in collections]
      values += [None if None in values else float(np.mean(values))] * (len(collections) > 1)
      values += [means[system].get(mean) for mean in of_papers]
      rows.append([system, *("-" if value is None else f"{value:.4f}" for value in values)])
    blocks.append(aligned(rows))
  if any("bytes a document" in of for of in results["systems"].values()):
    rows = [["ms a query", *collections, "bytes a document"]]
    for system, of in results["systems"].items():
      times = [of.get("ms a query", {}).get(name) for name in collections]
      rows.append([system, *("-" if time is None else f"{time:.2f}" for time in times),
                   str(of.get("bytes a document", "-"))])
    blocks.append(aligned(rows))
  return "\n\n".join(blocks)
