"""How sure the means over queries are: bootstrap intervals, and randomisation tests between systems.

Both by 10,000 draws over the queries, with a fixed seed: the same every time, whatever other systems there are. A mean
over several collections is drawn within each of them (stratified), and the draws are averaged as the means are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from gtr_jax.evaluation import averages
from gtr_jax.evaluation.measures import CAPPED

MEASURES = ("nDCG@10", "Recall@100")
"""Those that have intervals and p values."""
LEVEL = 0.05
MARK = "†"

_STORED = (*MEASURES, CAPPED)  # Papers' averages of Recall@100 take it of one set.
_DRAWS = 10_000
_NUMBERS_AT_ONCE = 2**22  # 32 MB each of a few arrays
_ROUNDING = 1e-9  # of sums of floats; values have four digits


class Certainty(TypedDict):
  """Of one mean: the ends of its 95 % interval, and, but for the best system, the p value beside that one."""

  low: float
  high: float
  p: NotRequired[float]


PerQuery = Mapping[str, Mapping[str, str]]
"""collection -> measure -> as `stored`."""
Certainties = Mapping[str, Mapping[str, Mapping[str, Certainty]]]
"""measure -> column of its table -> system -> how sure."""


def stored(values: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
  """What results.json keeps of a measure's values: four digits each, in the order of the query ids.

  Args:
    values: measure -> query id -> value.

  Returns:
    measure -> "0.6309 1 0": short, and one line of a file in which every element of a list would have its own.
  """
  return {name: " ".join(f"{values[name][query_id]:.4f}".rstrip("0").rstrip(".") for query_id in sorted(values[name]))
          for name in _STORED}


def read_stored(text: str) -> np.ndarray:
  """float64 [queries] of what `stored` has made. Raises ValueError where it is something else."""
  values = np.array(text.split(), np.float64)
  if not np.isfinite(values).all():
    raise ValueError("not finite")
  return values


def certainties(scores: Mapping[str, Mapping[str, Mapping[str, float]]], per_query: Mapping[str, PerQuery],
                collections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Certainty]]]:
  """Intervals and p values for every column of a table of systems.

  The interval is that of the percentile bootstrap over queries (Sakai 2006, "Evaluating evaluation metrics based on the
  bootstrap"). p is of the two-sided paired randomisation test (Smucker, Allan and Carterette 2007, "A comparison of
  statistical significance tests for information retrieval evaluation") between a system and the best of the column,
  corrected for the number of systems that are held against the best (Holm 1979).

  Args:
    scores: system -> collection -> measure -> mean, which decides what is the best.
    per_query: system -> collection -> measure -> values of all queries. Where a system has none, as in results written
      by earlier versions, it has no interval; where the best has none, nothing is tested.
    collections: what is said about them, of which all systems have the same.

  Returns:
    measure -> column ("average" and papers' averages included) -> system -> certainty; what is empty is left out.
  """
  parsed = {system: {collection: {name: read_stored(text) for name, text in of.items()}
                     for collection, of in of_system.items() if collection in collections}
            for system, of_system in per_query.items()}
  bootstrapped, flipped = _drawn(parsed, collections)
  means = {system: {collection: {name: float(values.mean()) for name, values in of.items()}
                    for collection, of in of_system.items()} for system, of_system in parsed.items()}
  found: dict[str, dict[str, dict[str, Certainty]]] = {}
  for measure in MEASURES:
    of_scores, of_means, of_bootstrap, of_flips = (
        {system: averages.row(averages.with_means(of), averages.shown(collections), measure, collections)
         for system, of in some.items()} for some in (scores, means, bootstrapped, flipped))
    for column in dict.fromkeys(column for row in of_scores.values() for column in row):
      drawn = [system for system in scores if of_bootstrap.get(system, {}).get(column) is not None]
      for system in drawn:
        low, high = np.percentile(of_bootstrap[system][column], [2.5, 97.5])
        found.setdefault(measure, {}).setdefault(column, {})[system] = {
            "low": round(float(low), 6), "high": round(float(high), 6)}
      ranked = [system for system in scores if of_scores[system].get(column) is not None]
      best = max(ranked, key=lambda system: of_scores[system][column], default=None)
      if best in drawn:
        others = [system for system in drawn if system != best]
        ps = [p_value(of_means[best][column] - of_means[system][column],
                      of_flips[best][column] - of_flips[system][column]) for system in others]
        for system, p in zip(others, holm(ps), strict=True):
          found[measure][column][system]["p"] = round(p, 6)
  return found


def _drawn(values, collections):
  """(bootstrapped, flipped): system -> collection -> measure -> means [draws]."""
  both: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
  for collection in collections:
    keys = [(system, name) for system, of in values.items() for name in of.get(collection, {})]
    if keys:
      stacked = np.stack([values[system][collection][name] for system, name in keys], axis=1)
      for into, drawn in zip(both, (bootstrap(stacked, collection), flips(stacked, collection)), strict=True):
        for column, (system, name) in enumerate(keys):
          into.setdefault(system, {}).setdefault(collection, {})[name] = drawn[:, column]
  return both


def bootstrap(values: np.ndarray, name: str) -> np.ndarray:
  """Means of resamples of the queries.

  Args:
    values: float64 [queries, columns]; all columns have the same resamples.
    name: of the collection, which decides, with the number of queries, on the resamples.

  Returns:
    float64 [draws, columns].
  """
  num = len(values)
  rng = _rng(name, 0)

  def times(draws):
    """How often each draw has each query."""
    drawn = rng.integers(0, num, (draws, num)) + num * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * num).reshape(draws, num)

  return _means(values, times)


def flips(values: np.ndarray, name: str) -> np.ndarray:
  """Means of values that have kept or changed their sign, each query by the toss of a coin.

  The difference of two columns is what the mean difference of two systems would be, had either of them brought forth
  either ranking of each query. Arguments and result as of `bootstrap`.
  """
  num = len(values)
  rng = _rng(name, 1)

  def signs(draws):
    coins = np.unpackbits(rng.integers(0, 256, (draws, -(-num // 8)), np.uint8), axis=1, count=num)
    return 2.0 * coins - 1

  return _means(values, signs)


def _means(values, weights):
  block = max(1, _NUMBERS_AT_ONCE // len(values))
  drawn = (weights(min(block, _DRAWS - start)) for start in range(0, _DRAWS, block))
  return np.concatenate([of.astype(np.float64, copy=False) @ values for of in drawn]) / len(values)


def _rng(name, number):
  """Collections are drawn independently of each other."""
  return np.random.default_rng([number, *name.encode()])


def p_value(difference: float, flipped: np.ndarray) -> float:
  """Two-sided: the share of draws as far from 0 as the difference, itself among them (Phipson and Smyth 2010).

  Args:
    difference: of two systems' means.
    flipped: [draws], the same under exchange of the systems.
  """
  return float((1 + (np.abs(flipped) >= abs(difference) - _ROUNDING).sum()) / (1 + len(flipped)))


def holm(ps: Sequence[float]) -> list[float]:
  """p values, corrected for their number (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
  corrected = [0.0] * len(ps)
  largest = 0.0
  for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
    largest = max(largest, min(1.0, (len(ps) - rank) * ps[at]))
    corrected[at] = largest
  return corrected


def mark(certainty: Certainty | None) -> str:
  """What stands behind a mean that is below the best; else nothing."""
  return MARK if certainty and certainty.get("p", 1.0) < LEVEL else ""


def interval(certainty: Certainty) -> str:
  """In three digits."""
  return f"{certainty['low']:.3f}–{certainty['high']:.3f}"


def legend(found: Certainties) -> str:
  """What explains intervals and marks; nothing where there are none."""
  cells = [of for columns in found.values() for systems in columns.values() for of in systems.values()]
  tests = (f"\n{MARK} below the best of its column, p < {LEVEL}: paired randomisation test over queries, "
           "Holm's correction.")
  return bool(cells) * "95 % intervals: percentile bootstrap over queries." + any("p" in of for of in cells) * tests
