"""results.json: what `gtr-jax evaluate` has measured in a folder, earlier calls included; and its tables."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.evaluation import beir
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.tables import aligned

RESULTS_FILE = "results.json"
DEPTH = 1000  # documents ranked per query, as is the custom with trec_eval
PROTOCOL = ("query_length", "document_length", "exclude_own_id")
"""What a collection's entry says of how it was evaluated. Lengths of None are each model's own."""

_OURS = {"runs", "embeddings"}


def read(path: epath.PathLike) -> dict[str, Any]:
  """The results in an evaluation's folder, or in a file. Raises InputError where they are not what they should be."""
  path = epath.Path(path)
  place = path / RESULTS_FILE if path.is_dir() else path
  try:
    found = json.loads(place.read_text())
    for of in found["collections"].values():
      _ = of["documents"], of["queries"], of["median words"]
    for system in found["systems"].values():
      _ = system["weights_hash"], [values["nDCG@10"] for values in system["results"].values()]
  except FileNotFoundError as e:
    raise InputError(f"{place}: no such file; give the --output of gtr-jax evaluate") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise InputError(f"{place}: not the results of an evaluation ({type(e).__name__}: {e}); run gtr-jax evaluate "
                     "again") from e
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


def _evaluated_otherwise(earlier, results) -> set[str]:
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
    systems[name] = {**new, "results": beir.with_means({**(systems[name]["results"] if same else {}),
                                                        **new["results"]})}
  collections = {**earlier.get("collections", {}), **results["collections"]}
  return {**results, "systems": systems, "collections": beir.with_forums(collections)}


def write(output: epath.Path, results: Mapping[str, Any]) -> None:
  """Adds results to what the folder holds now: another call may have written into it."""
  whole = merged(read_earlier(output), results)
  temporary = output / f".{RESULTS_FILE}.tmp"
  temporary.write_text(json.dumps(whole, indent=2) + "\n")
  temporary.replace(output / RESULTS_FILE)


def tables(results: Mapping[str, Any]) -> str:
  """The results as text: for each measure, systems by collections, their plain mean, and the means of BEIR's papers."""
  collections = beir.shown(results["collections"])
  blocks = []
  for name in MEASURES:
    means = {system: beir.averages(of["results"], name, results["collections"])
             for system, of in results["systems"].items()}
    of_papers = list(dict.fromkeys(mean for found in means.values() for mean in found))
    rows = [[name, *collections, *["average"] * (len(collections) > 1), *of_papers]]
    for system, of_system in results["systems"].items():
      values = [of_system["results"][collection][name] for collection in collections]
      values += [float(np.mean(values))] * (len(collections) > 1)
      rows.append([system, *(f"{value:.4f}" for value in (*values, *(means[system][mean] for mean in of_papers)))])
    blocks.append(aligned(rows))
  return "\n\n".join(blocks)
