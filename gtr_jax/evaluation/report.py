"""A markdown report of training runs and evaluations: tables, and the plots of `plots.py` beside them."""

import json
import math
from collections.abc import Mapping, Sequence

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.evaluation import plots
from gtr_jax.evaluation.evaluate import MEDIAN_WORDS_TOP_10, RESULTS_FILE
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.retrieval.documents import read_jsonl

METRICS_FILE = "metrics.jsonl"
AVERAGE = "average"


def write_report(output: epath.PathLike, results: Sequence[epath.PathLike] = (),
                 model_dirs: Sequence[epath.PathLike] = ()) -> epath.Path:
  """Writes report.md and its plots (PNG) into a folder.

  Args:
    output: the folder; what it holds under these names is replaced.
    results: outputs of `evaluate` (folders, or their results.json). Systems and collections are put together.
    model_dirs: training runs.

  Returns:
    The path of report.md.

  Raises:
    InputError: nothing given, or a file is missing or malformed.
  """
  if not results and not model_dirs:
    raise InputError("nothing to report: give an evaluation's output, a training run, or both")
  scores, collections = _read_results(results)
  runs = {name: _read_metrics(path) for name, path in _named(model_dirs).items()}
  output = epath.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  parts = ["# Report"]
  if scores:
    parts += _quality(output, scores, collections)
  if runs:
    parts += _training(output, runs)
  if scores:
    parts += _lengths(output, scores, collections)
  place = output / "report.md"
  temporary = output / ".report.md.tmp"
  temporary.write_text("\n\n".join(parts) + "\n")
  temporary.replace(place)
  return place


def _quality(output: epath.Path, scores: Mapping, collections: Mapping) -> list[str]:
  plots.bars(output / "ndcg.png", "nDCG@10", _with_average(scores, collections, "nDCG@10"))
  parts = ["## Retrieval quality", "![nDCG@10 of each system on each collection](ndcg.png)"]
  for measure in MEASURES:
    parts += [f"### {measure}", _table(_with_average(scores, collections, measure), "system", 4, best=True)]
  rows = {name: {"documents": of["documents"], "queries": of["queries"], "median words": of["median words"]}
          for name, of in collections.items()}
  return [*parts, "### Collections", _table(rows, "collection", 1)]


def _with_average(scores: Mapping, collections: Mapping, measure: str) -> dict[str, dict[str, float | None]]:
  """system -> collection -> value, and the plain mean for systems that ran on all of several collections."""
  out = {}
  for system, of_system in scores.items():
    out[system] = {name: of_system.get(name, {}).get(measure) for name in collections}
    if len(collections) > 1:
      values = list(out[system].values())
      out[system][AVERAGE] = None if None in values else sum(values) / len(values)
  return out


def _training(output: epath.Path, runs: Mapping[str, list[dict[str, float]]]) -> list[str]:
  plots.losses(output / "loss.png", {name: {key: _curve(lines, f"{key}/loss") for key in ("train", "validation")}
                                     for name, lines in runs.items()})
  parts = ["## Training", "![Training and validation loss](loss.png)"]
  measured = {name: {key.removesuffix("/nDCG@10"): _curve(lines, key) for line in lines for key in line
                     if key.endswith("/nDCG@10")} for name, lines in runs.items()}
  if any(measured.values()):
    plots.curves(output / "ndcg_in_training.png", "nDCG@10", measured)
    parts.append("![nDCG@10 during training](ndcg_in_training.png)")
  columns = {"train loss": "train/loss", "in-batch accuracy": "train/accuracy", "in-batch MRR": "train/mrr",
             "validation loss": "validation/loss", "pairs/s": "train/pairs_per_second",
             "tokens/s": "train/tokens_per_second", "fill": "train/fill"}
  rows = {name: {"steps": max((line["step"] for line in lines), default=0),
                 **{column: next((line[key] for line in reversed(lines) if key in line), None)
                    for column, key in columns.items()}} for name, lines in runs.items()}
  return [*parts, "The last values of each run:", _table(rows, "run", 3)]


def _lengths(output: epath.Path, scores: Mapping, collections: Mapping) -> list[str]:
  rows = {plots.WHOLE: {name: of["median words"] for name, of in collections.items()}}
  for system, of_system in scores.items():
    rows[system] = {name: of_system.get(name, {}).get(MEDIAN_WORDS_TOP_10) for name in collections}
  plots.bars(output / "lengths.png", "median words", rows)
  return ["## Lengths of what is retrieved",
          "Median number of words of the ten documents that rank first, over all queries.",
          "![Median words of the top 10 by system and collection](lengths.png)",
          _table(rows, "system", 1)]


def _curve(lines: Sequence[Mapping[str, float]], key: str) -> tuple[list[int], list[float]]:
  """(steps, finite values) of a metric."""
  points = [(line["step"], line[key]) for line in lines if key in line and math.isfinite(line[key])]
  return [step for step, _ in points], [value for _, value in points]


def _table(rows: Mapping[str, Mapping[str, float | None]], corner: str, digits: int, best: bool = False) -> str:
  """Markdown; `best` sets the largest value of each column in bold."""
  columns = list(next(iter(rows.values())))

  def cell(row, column):
    value = row[column]
    if value is None:
      return "–"
    text = f"{value:,.{0 if not best and (float(value).is_integer() or abs(value) >= 100) else digits}f}"
    largest = max(other[column] for other in rows.values() if other[column] is not None)
    return f"**{text}**" if best and len(rows) > 1 and value == largest else text

  lines = [[corner, *columns], ["---", *(["---:"] * len(columns))]]
  lines += [[name.replace("|", "\\|"), *(cell(row, column) for column in columns)] for name, row in rows.items()]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _read_results(paths: Sequence[epath.PathLike]) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict]]:
  """(system -> collection -> measure -> value, collection -> sizes) of all evaluations together.

  A system that two evaluations call the same and that is not the same is told apart by the evaluation's folder.
  """
  scores, collections, hashes = {}, {}, {}
  for name, path in _named(paths).items():
    place = path / RESULTS_FILE if path.is_dir() else path
    try:
      read = json.loads(place.read_text())
      for collection, sizes in read["collections"].items():
        of = {key: sizes[key] for key in ("documents", "queries", "median words")}
        if collections.setdefault(collection, of) != of:
          raise InputError(f"{place}: another collection {collection!r} than in the evaluations before; rename its "
                           "folder and evaluate again")
      for system, of_system in read["systems"].items():
        if hashes.setdefault(system, of_system["weights_hash"]) != of_system["weights_hash"]:
          system = f"{system} ({name})"
        for collection, values in of_system["results"].items():
          scores.setdefault(system, {})[collection] = {key: values[key] for key in (*MEASURES, MEDIAN_WORDS_TOP_10)}
    except FileNotFoundError as e:
      raise InputError(f"{place}: no such file; give the --output of gtr-jax evaluate") from e
    except InputError:
      raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise InputError(f"{place}: not the results of an evaluation ({type(e).__name__}: {e}); run gtr-jax evaluate "
                       "again") from e
  return scores, collections


def _read_metrics(model_dir: epath.Path) -> list[dict[str, float]]:
  """The lines of a run's metrics file."""
  if not (model_dir / METRICS_FILE).exists():
    raise InputError(f"{model_dir / METRICS_FILE}: no such file; give the MODEL_DIR of a training run")
  lines = []
  for place, record in read_jsonl(model_dir / METRICS_FILE):
    if not isinstance(record.get("step"), int) or not all(isinstance(v, int | float) for v in record.values()):
      raise InputError(f'{place}: not a line of metrics, {{"step": ..., name: number, ...}}')
    lines.append(record)
  return lines


def _named(paths: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """Paths by the shortest end of each that tells them apart."""
  paths = list(dict.fromkeys(epath.Path(path).resolve() for path in paths))
  parts = 1
  while len({path.parts[-parts:] for path in paths}) < len(paths):
    parts += 1
  return {"/".join(path.parts[-parts:]): path for path in paths}
