"""A markdown report of training runs, evaluations and sweeps: tables, also as CSV, and the plots of `plots.py`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from gtr_jax.collections.beir import SETS
from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages, plots, results_file, significance, studies
from gtr_jax.evaluation.evaluate import MEDIAN_WORDS_TOP_10
from gtr_jax.evaluation.fused import BM25
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.published import published
from gtr_jax.evaluation.tables import Table, as_csv, markdown
from gtr_jax.io.atomic import write_text
from gtr_jax.io.jsonl import read_objects
from gtr_jax.io.paths import location

_TITLE = "# Report"
METRICS_FILE = "metrics.jsonl"
_HEADLINES = ("nDCG@10", "Recall@100")
_LENGTHS = "Median number of words of the ten documents that rank first, over all queries."


def write_report(output: epath.PathLike, results: Sequence[epath.PathLike] = (),
                 model_dirs: Sequence[epath.PathLike] = (), sweeps: Sequence[epath.PathLike] = ()) -> epath.Path:
  """Writes report.md, its tables (CSV) and its plots (PNG and SVG) into a folder.

  Args:
    output: the folder: a new or empty one, or that of an earlier report, which is replaced.
    results: outputs of `evaluate` (folders, or their results.json). Systems and collections are put together.
    model_dirs: training runs.
    sweeps: outputs of `gtr-jax sweep`.

  Returns:
    The path of report.md.

  Raises:
    InputError: nothing given, or a file is missing or malformed.
  """
  if not results and not model_dirs and not sweeps:
    raise InputError("nothing to report: give an evaluation's output, a training run, a sweep, or several of them")
  scores, collections, per_query = _read_results(results)
  runs = {name: _read_metrics(path) for name, path in _named(model_dirs).items()}
  of_sweeps = [studies.read_study(path) for path in sweeps]
  output = location(output)
  if output.exists() and any(output.iterdir()) and not _is_ours(output):
    raise InputError(f"{output}: not empty, and no report of gtr-jax is in it; give another --output")
  output.mkdir(parents=True, exist_ok=True)
  report = _Report(output)
  report.parts.append(_TITLE)
  if scores:
    _quality(report, scores, collections, significance.certainties(scores, per_query, collections))
    _beside_published(report, scores, collections)
  for study in of_sweeps:
    _sweep(report, study)
  if runs:
    _training(report, runs)
  if scores:
    _lengths(report, scores, collections)
  write_text(output / "report.md", "\n\n".join(report.parts) + "\n")  # The last, when what it shows is there.
  return output / "report.md"


def _is_ours(folder: epath.Path) -> bool:
  path = folder / "report.md"
  return path.is_file() and path.read_bytes()[:len(_TITLE) + 2].decode(errors="replace") == _TITLE + "\n\n"


class _Report:
  """The paragraphs of a report, and the folder of its tables and plots."""

  def __init__(self, output: epath.Path):
    self.output = output
    self.parts: list[str] = []

  def table(self, heading: str, name: str, table: Table) -> None:
    """Adds a table, and writes it as NAME.csv."""
    write_text(self.output / f"{name}.csv", as_csv(table))
    self.parts += [heading, markdown(table), f"[{name}.csv]({name}.csv)"]

  def plot(self, text: str, name: str, draw: Callable[..., None], *args: Any) -> None:
    """Draws NAME.png and NAME.svg, and adds it."""
    draw(self.output / name, *args)
    self.parts += [f"![{text}]({name}.png)", f"[{name}.svg]({name}.svg)"]


def _quality(report: _Report, scores: Mapping, collections: Mapping, certain: significance.Certainties) -> None:
  report.parts.append("## Retrieval quality")
  for measure in _HEADLINES:
    report.plot(f"{measure} of each system on each collection", _file(measure), plots.bars, measure,
                _with_average(scores, averages.shown(collections), measure))
  for measure in MEASURES:
    with_average = _with_average(scores, averages.shown(collections), measure, collections)
    report.table(f"### {measure}", _file(measure),
                 Table("system", with_average, 4, best=True, certain=certain.get(measure, {})))
    if measure in certain:
      report.parts.append(significance.legend({measure: certain[measure]}))
  rows = {name: {"documents": of["documents"], "queries": of["queries"], "median words": of["median words"]}
          for name, of in collections.items()}
  report.table("### Collections", "collections", Table("collection", rows, 1))
  report.parts += [f"{name}: {warning}." for name, of in collections.items() for warning in of.get("warnings", ())]


def _with_average(scores: Mapping, names: Sequence[str], measure: str,
                  collections: Mapping | None = None) -> dict[str, dict[str, float | None]]:
  """system -> collection -> value, and the plain mean for systems that ran on all of several collections.

  `collections`, what is said about them, adds the averages of papers on BEIR that a system has all sets of.
  """
  found = {system: averages.row(of, names, measure, collections or {}) for system, of in scores.items()}
  columns = dict.fromkeys(column for row in found.values() for column in row)
  return {system: {column: row.get(column) for column in columns} for system, row in found.items()}


def _beside_published(report: _Report, scores: Mapping, collections: Mapping) -> None:
  """Sets of BEIR, with published rows below; nothing where there is no such set."""
  sets = [name for name in averages.shown(collections) if collections[name].get("beir") and
          any(name in row.values for row in published())]
  if not sets:
    return
  report.parts += ["## Beside published figures", "Below BM25 and the systems evaluated here, rows as others published "
                   f"them; – where no source could be read. Recall is capped on {SETS['trec-covid'].title}, as "
                   "they do."]
  notes: dict[str, list[str]] = {}
  for measure in ("nDCG@10", "Recall@100", "MRR@10"):
    own = {system: {**{SETS[name].title: of.get(name, {}).get(_of_papers(name, measure)) for name in sets},
                    **averages.averages(of, measure, collections)} for system, of in scores.items()}
    columns = list(dict.fromkeys(column for row in own.values() for column in row))
    theirs = {}
    for row in published():
      values = {SETS[name].title if name in SETS else name: value for name, value in row.values.items()}
      if row.measure == measure and any(values.get(column) is not None for column in columns):
        theirs[row.name] = {column: values.get(column) for column in columns}
        notes.setdefault(row.source, []).append(f"{row.name} ({measure})")
    if not theirs:
      continue
    if measure == "MRR@10":  # Published for MS MARCO alone.
      columns = [column for column in columns if any(row[column] is not None for row in theirs.values())]
    own = {system: {column: row.get(column) for column in columns} for system, row in own.items()}
    theirs = {f"{name} (published)": {column: row[column] for column in columns} for name, row in theirs.items()}
    if measure in _HEADLINES:
      report.plot(f"{measure} here and as published", f"{_file(measure)}_published", plots.dots, measure, own, theirs)
    report.table(f"### {measure}, published rows below", f"{_file(measure)}_published",
                 Table("system", {**own, **theirs}, 3))
  report.parts.append("Published rows: " + "; ".join(f"{', '.join(names)}: {source}"
                                                     for source, names in notes.items()) + ".")


def _of_papers(name: str, measure: str) -> str:
  return averages.recall_of(name) if measure == "Recall@100" else measure


def _sweep(report: _Report, study: studies.Study) -> None:
  """For each axis tables of its values by collections, and plots for each choice of the other axes."""
  report.parts.append(f"## Sweep {study.name}")
  names = averages.shown(study.collections)
  if study.failed:
    report.parts.append("\n".join(["Without results:", "", *(f"- {name}: {why}" for name, why in
                                                              study.failed.items())]))
  if not study.points:
    return
  if study.common:
    report.parts.append("All runs: " + ", ".join(f"{axis} {value}" for axis, value in study.common.items()) + ".")
  bm25 = {BM25: study.bm25} if study.bm25 else {}
  for axis in study.axes:
    compared = studies.comparisons(study, axis)
    if not compared:
      report.parts.append(f"{axis}: no two runs differ in it alone.")
      continue
    report.parts.append(f"### {axis}")
    slug = f"{_file(study.name)}_{_file(axis)}"
    rows = {**bm25}
    for number, (fixed, points) in enumerate(compared.items(), start=1):
      values = [value for value, _ in points]
      texts = dict(zip(studies.labels(values), (scores for _, scores in points), strict=True))
      rows |= {f"{text}; {fixed}" if fixed else text: scores for text, scores in texts.items()}
      scale = studies.is_numeric(values) and len(values) > 2
      draw = (plots.over_axis, "nDCG@10", axis, dict(zip(values, _with_average(texts, names, "nDCG@10").values(),
                                                         strict=True))) if scale else (
          plots.bars, "nDCG@10", _with_average({**bm25, **texts}, names, "nDCG@10"))
      of_fixed, place = f", {fixed}" if fixed else "", f"{slug}_{number}" if len(compared) > 1 else slug
      report.plot(f"nDCG@10 by {axis}{of_fixed}", place, *draw)
      report.plot(f"Median words of the top 10 by {axis}{of_fixed}", f"{place}_lengths", plots.bars, "median words",
                  _length_rows(texts, study.collections))
    for measure in _HEADLINES:
      report.table(f"{measure}:", f"{slug}_{_file(measure)}",
                   Table(axis, _with_average(rows, names, measure, study.collections), 4, best=True))
    report.table(_LENGTHS, f"{slug}_lengths", Table(axis, _length_rows(rows, study.collections), 1))


def _training(report: _Report, runs: Mapping[str, list[dict[str, float]]]) -> None:
  report.parts.append("## Training")
  report.plot("Training and validation loss", "loss", plots.losses, {
      name: {key: _curve(lines, f"{key}/loss") for key in ("train", "validation")} for name, lines in runs.items()})
  measured = {name: {key.removesuffix("/nDCG@10"): _curve(lines, key) for line in lines for key in line
                     if key.endswith("/nDCG@10")} for name, lines in runs.items()}
  if any(measured.values()):
    report.plot("nDCG@10 during training", "ndcg_in_training", plots.curves, "nDCG@10", measured)
  columns = {"train loss": "train/loss", "in-batch accuracy": "train/accuracy", "in-batch MRR": "train/mrr",
             "validation loss": "validation/loss", "pairs/s": "train/pairs_per_second",
             "tokens/s": "train/tokens_per_second", "fill": "train/fill", "MFU": "train/mfu", "goodput": "time/steps"}
  rows = {name: {"steps": max((line["step"] for line in lines), default=0),
                 **{column: next((line[key] for line in reversed(lines) if key in line), None)
                    for column, key in columns.items()}} for name, lines in runs.items()}
  report.table("The last values of each run:", "training", Table("run", rows, 3))


def _lengths(report: _Report, scores: Mapping, collections: Mapping) -> None:
  rows = _length_rows(scores, collections)
  report.parts += ["## Lengths of what is retrieved", _LENGTHS]
  report.plot("Median words of the top 10 by system and collection", "lengths", plots.bars, "median words", rows)
  report.table("Median words:", "lengths", Table("system", rows, 1))


def _length_rows(scores: Mapping, collections: Mapping) -> dict[str, dict[str, float | None]]:
  names = averages.shown(collections)
  return {plots.WHOLE: {name: collections[name]["median words"] for name in names},
          **{system: {name: of.get(name, {}).get(MEDIAN_WORDS_TOP_10) for name in names}
             for system, of in scores.items()}}


def _curve(lines: Sequence[Mapping[str, float]], key: str) -> tuple[list[int], list[float]]:
  """(steps, finite values) of a metric."""
  points = [(int(line["step"]), line[key]) for line in lines if key in line and math.isfinite(line[key])]
  return [step for step, _ in points], [value for _, value in points]


def _file(name: str) -> str:
  return re.sub(r"\W+", "_", name.replace("@", "_at_")).strip("_").lower()


def _read_results(paths: Sequence[epath.PathLike]) -> tuple[
    dict[str, dict[str, Mapping[str, float]]], dict[str, Mapping[str, Any]], dict[str, dict[str, Mapping[str, str]]]]:
  """(system -> collection -> measure -> value, what is said about each collection, system -> collection -> measure ->
  values of single queries) of all evaluations together.

  A system that two evaluations call the same and that is not the same is told apart by the evaluation's folder.
  """
  scores: dict[str, dict[str, dict[str, float]]] = {}
  collections: dict[str, dict[str, Any]] = {}
  hashes: dict[str, str | None] = {}
  per_query: dict[str, dict[str, Mapping[str, str]]] = {}
  for name, path in _named(paths).items():
    read = results_file.read(path)
    for collection, of in read["collections"].items():
      there = collections.setdefault(collection, of)
      if any(there.get(key, of.get(key)) != of.get(key, there.get(key))
             for key in ("documents", "queries", "median words", "hash")):
        raise InputError(f"{path}: another collection {collection!r} than in the evaluations before; rename its folder "
                         "and evaluate again")
      if any(there.get(key, of.get(key)) != of.get(key, there.get(key)) for key in results_file.PROTOCOL):
        raise InputError(f"{path}: {collection} was evaluated otherwise than in the evaluations before (lengths, or "
                         "queries' own documents); report on them apart")
    for system, of_system in read["systems"].items():
      if hashes.setdefault(system, of_system["weights_hash"]) != of_system["weights_hash"]:
        system = f"{system} ({name})"
      scores.setdefault(system, {}).update(of_system["results"])
      per_query.setdefault(system, {}).update({
          collection: of_system.get("per query", {}).get(collection, {}) for collection in of_system["results"]})
  return ({system: averages.with_means(of) for system, of in scores.items()}, averages.with_forums(collections),
          per_query)


def _read_metrics(model_dir: epath.Path) -> list[dict[str, float]]:
  """The lines of a run's metrics file."""
  if not (model_dir / METRICS_FILE).exists():
    raise InputError(f"{model_dir / METRICS_FILE}: no such file; give the MODEL_DIR of a training run")
  lines = []
  for place, record, _ in read_objects(model_dir / METRICS_FILE):
    if not _is_number(record.get("step")) or not all(map(_is_number, record.values())):
      raise InputError(f'{place}: not a line of metrics, {{"step": ..., name: number, ...}}')
    lines.append(record)
  return lines


def _is_number(value: Any) -> bool:
  """Also NaN and infinity, which a loss may be."""
  return isinstance(value, float) or isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _named(paths: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """Paths by the shortest end of each that tells them apart."""
  paths = list(dict.fromkeys(location(path).resolve() for path in paths))
  parts = 1
  while len({path.parts[-parts:] for path in paths}) < len(paths):
    parts += 1
  return {"/".join(path.parts[-parts:]): path for path in paths}
