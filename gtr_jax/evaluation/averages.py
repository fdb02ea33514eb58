"""What papers report of results on BEIR: means of its sets, and of CQADupStack's forums."""

from collections.abc import Mapping, Sequence
from typing import Any

from gtr_jax.collections.beir import CQADUPSTACK, FORUMS, SUITES
from gtr_jax.evaluation.measures import CAPPED

AVERAGES = {"BEIR-18": tuple(name for name in SUITES["beir"] if name != "msmarco"),
            "BEIR-14": tuple(name for name in SUITES["beir-public"] if name != "msmarco"),
            "NanoBEIR-13": SUITES["nano-beir"]}
"""The plain means that papers report: of the 18 sets without MS MARCO, of the 14 public ones, of NanoBEIR's 13."""


AVERAGE = "average"
"""The column of the plain mean of all collections."""


def recall_of(name: str) -> str:
  """The recall that papers report of a set: TREC-COVID has hundreds of relevant documents for a query, so it is capped.
  """
  return CAPPED if name == "trec-covid" else "Recall@100"


def with_means(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
  """collection -> measure -> value, with CQADupStack as the plain mean of its forums where all of them are there.

  Values, here and below, are numbers, or arrays of one shape.
  """
  found = dict(results)
  if all(forum in found for forum in FORUMS):
    of_forums = [found[forum] for forum in FORUMS]
    found[CQADUPSTACK] = {name: sum(of[name] for of in of_forums) / len(of_forums) for name in of_forums[0]
                           if all(of.get(name) is not None for of in of_forums)}
  return found


def with_forums(collections: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
  """What results say about collections, with CQADupStack where all of its forums are there."""
  found = dict(collections)
  if all(forum in found for forum in FORUMS):
    of_forums = [found[forum] for forum in FORUMS]
    found[CQADUPSTACK] = {**{name: value for name, value in of_forums[0].items() if name != "hash"},
                           **{name: sum(of[name] for of in of_forums) for name in ("documents", "queries")},
                           "median words": sum(of["median words"] for of in of_forums) / len(of_forums)}
  return found


def shown(collections: Mapping[str, object]) -> list[str]:
  """The collections that a table has: not the forums, where their mean is there."""
  return [name for name in collections if not (name in FORUMS and CQADUPSTACK in collections)]


def row(results: Mapping[str, Mapping[str, Any]], names: Sequence[str], measure: str,
        collections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """A system's row of a table: collection -> value, or None; of several their plain mean; and `averages`.

  Args:
    results: collection -> measure -> value.
    names: of the collections.
    measure: which.
    collections: as of `averages`.
  """
  found: dict[str, Any] = {name: results.get(name, {}).get(measure) for name in names}
  if len(names) > 1:
    values = list(found.values())
    found[AVERAGE] = None if any(value is None for value in values) else sum(values) / len(values)
  return found | averages(results, measure, collections)


def of_systems(systems: Mapping[str, Mapping[str, Any]], measure: str) -> dict[str, float]:
  """system -> plain mean of all its collections, of the `systems` of results."""
  return {name: sum(of[measure] for of in values["results"].values()) / len(values["results"])
          for name, values in systems.items()}


def averages(results: Mapping[str, Mapping[str, Any]], measure: str,
             collections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The averages of `AVERAGES` whose sets are all there; recall as the papers take it, capped for TREC-COVID.

  Args:
    results: collection -> measure -> value.
    measure: which.
    collections: what is said about them; only those that are "beir" count.
  """
  found = {}
  for name, of_suite in AVERAGES.items():
    if not all(collections.get(one, {}).get("beir") for one in of_suite):
      continue
    measures = [recall_of(one) if measure == "Recall@100" else measure for one in of_suite]
    values = [value for one, of_set in zip(of_suite, measures, strict=True)
              if (value := results.get(one, {}).get(of_set)) is not None]
    if len(values) == len(of_suite):
      found[name] = sum(values) / len(values)
  return found
