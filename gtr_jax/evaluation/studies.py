"""What the axes of a sweep do: for each of them a table of its values by collections, the other axes held fixed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.evaluation import results_file
from gtr_jax.evaluation.fused import BM25
from gtr_jax.io.json_file import read_json
from gtr_jax.io.paths import location

SWEEP_FILE = "sweep.json"
SIMILARITY = "similarity"  # An axis of its own where runs are evaluated with both.


class _Run(TypedDict):
  name: str
  axes: Mapping[str, Any]
  results: str | None
  model_dir: str | None
  failed: str | None


class _SweepFile(TypedDict):
  runs: Sequence[_Run]
  axes: NotRequired[Mapping[str, Sequence[Any]]]
  bm25: NotRequired[str | None]


Scores = Mapping[str, Mapping[str, float]]
"""collection -> measure -> value."""


class Point(NamedTuple):
  """A run: its value on each axis, and its results."""

  axes: Mapping[str, Any]
  scores: Scores


class Study(NamedTuple):
  """A sweep.

  Attributes:
    name: its folder's.
    axes: axis -> its values, in order; those on which runs differ.
    common: axis -> the one value of all runs that have results.
    points: the runs that have results.
    bm25: its results; empty if it was not evaluated.
    collections: what the evaluations say about them.
    failed: run -> why it has no results.
  """

  name: str
  axes: Mapping[str, Sequence[Any]]
  common: Mapping[str, Any]
  points: Sequence[Point]
  bm25: Scores
  collections: Mapping[str, Mapping[str, Any]]
  failed: Mapping[str, str]


def read_study(folder: epath.PathLike) -> Study:
  """Reads sweep.json and the results that it names. Raises InputError where one is missing or malformed."""
  folder = location(folder)
  path = folder / SWEEP_FILE if folder.is_dir() else folder
  if not path.exists():
    raise InputError(f"{path}: no such file; give the --output of gtr-jax sweep")
  whole = read_json(path, _SweepFile, "give the --output of gtr-jax sweep, or run that with --collect")
  runs = [(run["name"], run["axes"], run["results"], run["model_dir"], run["failed"]) for run in whole["runs"]]
  order = whole.get("axes", {})
  points, failed, collections, bm25 = [], {}, {}, {}

  def read(results):
    found = results_file.read(path.parent / results)
    collections.update(found["collections"])
    bm25.update(found["systems"].get(BM25, {}).get("results", {}))
    return {name: of for name, of in found["systems"].items() if name != BM25}

  if whole.get("bm25"):
    read(whole["bm25"])
  for name, axes, results, model_dir, why in runs:
    if results is None:
      failed[name] = why or "not evaluated"
      continue
    by_similarity: dict[str | None, Mapping[str, Any]] = {}
    for system in _of_run(read(results), model_dir):
      if by_similarity.setdefault(system.get("similarity"), system) is not system:
        raise InputError(f"{path.parent / results}: several systems, and none of them is {model_dir}; evaluate each "
                         "run of a sweep into a folder of its own")
    points += [Point(axes | ({SIMILARITY: similarity} if len(by_similarity) > 1 else {}), system["results"])
               for similarity, system in by_similarity.items()]
  found = {axis: _in_order([point.axes.get(axis) for point in points], order.get(axis, ()))
           for axis in dict.fromkeys(axis for point in points for axis in point.axes)}
  return Study(path.parent.resolve().name, {axis: values for axis, values in found.items() if len(values) > 1},
               {axis: values[0] for axis, values in found.items() if len(values) == 1}, points, bm25, collections,
               failed)


def _of_run(systems: Mapping[str, Mapping[str, Any]], model_dir: str | None) -> list[Mapping[str, Any]]:
  """Those that are the run's own, where others were evaluated beside it."""
  own = [system for system in systems.values() if model_dir and str(system.get("model", "")).startswith(model_dir)]
  return own if own and len(systems) > 1 else list(systems.values())


def _in_order(values: Sequence[Any], first: Sequence[Any]) -> list[Any]:
  """The different ones: numbers by size, others as `first` has them, or else as they come."""
  different = []
  for value in [*(value for value in first if value in values), *values]:
    if value not in different:  # They may be lists.
      different.append(value)
  return sorted(different) if is_numeric(different) else different


def is_numeric(values: Sequence[Any]) -> bool:
  """Whether an axis is a scale."""
  return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def comparisons(study: Study, axis: str) -> dict[str, list[tuple[Any, Scores]]]:
  """What an axis does: the values of the other axes, in words -> (value, results) in the order of the axis's values.

  Only where at least two values can be compared.
  """
  others = [name for name in study.axes if name != axis]
  of_axis = {name: labels(values) for name, values in study.axes.items()}
  groups: dict[str, list[tuple[Any, Scores]]] = {}
  for point in study.points:
    fixed = ", ".join(f"{name} {of_axis[name][study.axes[name].index(point.axes.get(name))]}" for name in others)
    groups.setdefault(fixed, []).append((point.axes.get(axis), point.scores))
  order = list(study.axes[axis])
  return {fixed: sorted(found, key=lambda one: order.index(one[0])) for fixed, found in groups.items()
          if len(found) > 1}


def labels(values: Sequence[Any]) -> list[str]:
  """The values of an axis, for tables and legends: of long ones, such as paths, their end, where that tells them apart.
  """
  texts = ["none" if value is None else str(value).strip("'\"") for value in values]
  short = ["…" + text[-29:] if len(text) > 30 else text for text in texts]
  return short if len(set(short)) == len(set(texts)) else texts
