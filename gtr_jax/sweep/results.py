"""What a sweep came to: sweep.json, and a table of the runs."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtr_jax.evaluation import averages, results_file
from gtr_jax.evaluation.studies import SWEEP_FILE
from gtr_jax.evaluation.tables import aligned
from gtr_jax.io.atomic import write_json
from gtr_jax.sweep.plan import BM25, Plan, Sweep
from gtr_jax.sweep.run import done_jobs, last_error, log_of

MEASURE = "nDCG@10"


def collect(plan: Plan, sweep: Sweep, output: str, failed: Mapping[str, str]) -> dict[str, Any]:
  """Writes sweep.json and returns what is in it.

  "runs": for each "name", "axes" (axis -> value), "results" (path of a results.json, from this folder; null where there
  is none), "model_dir", "failed" (what is missing and why, or null); "bm25": the path of BM25's results.json, or null;
  "axes": axis -> its values in order, numbers where all are.

  Args:
    plan: of the sweep.
    sweep: its configuration.
    output: its folder.
    failed: job -> why, of those that failed now.
  """
  why: dict[str, str] = {}
  done = done_jobs(output, plan.jobs)
  for job in plan.jobs.values():  # Each after those that it needs.
    if job.name in done:
      continue
    before = next((name for name in job.after if name in why), None)
    log = log_of(output, job)
    why[job.name] = failed.get(job.name) or (f"not started, for {before} is not done" if before else "not run yet")
    if job.name not in failed and not before and log.exists():
      why[job.name] = last_error(log) or "not finished"
    if log.exists():
      why[job.name] += f" (log: {log})"
  values = {axis: dict(zip(map(str, of), _numbers(of), strict=True)) for axis, of in sweep.axes.items()}
  runs = []
  for run in plan.runs:
    missing = next((f"{name}: {why[name]}" for name in run.jobs if name in why), None)
    runs.append({"name": run.name, "axes": {axis: values[axis][value] for axis, value in run.axes.items()},
                 "results": os.path.relpath(run.results, output) if run.results and missing is None else None,
                 "model_dir": run.model_dir, "failed": missing})
  bm25 = os.path.relpath(plan.bm25_results, output) if plan.bm25_results and BM25 not in why else None
  whole = {"runs": runs, "bm25": bm25, "axes": {axis: list(of.values()) for axis, of in values.items()}}
  write_json(Path(output, SWEEP_FILE), whole)
  return whole


def _numbers(values: Iterable[Any]) -> list[Any]:
  """Values of an axis as numbers, where all of them are."""
  try:
    return [int(value) if str(value).isdecimal() else float(value) for value in values]
  except ValueError:
    return [str(value) for value in values]


def table(whole: Mapping[str, Any], output: str) -> str:
  """nDCG@10 of each run on each collection, with each similarity; what failed, and why, below."""
  scores: dict[str, Mapping[str, Any]] = {}
  of_collections: dict[str, Mapping[str, Any]] = {}
  for name, path in [(BM25, whole["bm25"]), *((run["name"], run["results"]) for run in whole["runs"])]:
    if path is not None:
      found = results_file.read(Path(output, path))
      systems = found["systems"].values()
      of_collections |= found["collections"]
      scores |= {f"{name} ({of.get('similarity')})" if len(systems) > 1 else name: of["results"] for of in systems}
    elif name != BM25:
      scores[name] = {}
  collections = averages.shown(dict.fromkeys(collection for of in scores.values() for collection in of))
  of_runs = {name: averages.averages(of, MEASURE, of_collections) for name, of in scores.items()}
  of_papers = list(dict.fromkeys(average for of in of_runs.values() for average in of))
  rows = [[MEASURE, *collections, *["average"] * (len(collections) > 1), *of_papers]]
  for name, of in scores.items():
    values = [of.get(collection, {}).get(MEASURE) for collection in collections]
    values += [None if None in values or not values else sum(values) / len(values)] * (len(collections) > 1)
    values += [of_runs[name].get(average) for average in of_papers]
    rows.append([name, *("-" if value is None else f"{value:.4f}" for value in values)])
  return "\n".join([aligned(rows), *(f"{run['name']}: {run['failed']}" for run in whole["runs"] if run["failed"])])
