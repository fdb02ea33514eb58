"""Intervals and p values are SciPy's; the tables that have them; results without the values of single queries."""

import json

import numpy as np
import pytest
import scipy.stats

from gtr_jax.collections.beir import FORUMS, SUITES, parts
from gtr_jax.errors import InputError
from gtr_jax.evaluation import results_file, significance
from gtr_jax.evaluation.averages import with_forums
from gtr_jax.evaluation.report import write_report
from gtr_jax.evaluation.significance import bootstrap, certainties, flips, holm, p_value, read_stored, stored


def values(number, num_queries=60):
  """Much as nDCG is: with many of 0 and 1."""
  rng = np.random.default_rng(number)
  return np.clip(rng.normal(0.4 + 0.03 * number, 0.4, num_queries), 0, 1).round(4)


def as_text(of):
  return " ".join(map(str, of))


def table_of(per_query, collections=("c",)):
  """`certainties` of system -> collection -> values of one measure, nDCG@10."""
  texts = {system: {name: {"nDCG@10": as_text(found)} for name, found in of.items()}
           for system, of in per_query.items()}
  means = {system: {name: {"nDCG@10": float(np.mean(found))} for name, found in of.items()}
           for system, of in per_query.items()}
  return certainties(means, texts, {name: {} for name in collections}).get("nDCG@10", {})


@pytest.mark.parametrize("num_queries", [5, 60, 1500])
def test_intervals_are_scipys(num_queries):
  of = values(1, num_queries)
  found = table_of({"A": {"c": of}})["c"]["A"]
  expected = scipy.stats.bootstrap((of,), np.mean, method="percentile", n_resamples=50_000, batch=1000, rng=0)
  assert [found["low"], found["high"]] == pytest.approx(list(expected.confidence_interval),
                                                        abs=0.1 * expected.standard_error)
  assert "p" not in found


def test_a_mean_over_collections_is_resampled_within_each():
  """Its variance is that of a stratified sample: the mean of the collections' variances over their number."""
  several = {name: values(number, 40 + 10 * number) for number, name in enumerate("abc")}
  low_high = table_of({"A": several}, "abc")["average"]["A"]
  error = np.sqrt(sum(of.var() / len(of) for of in several.values())) / 3
  mean = np.mean([of.mean() for of in several.values()])
  assert [low_high["low"], low_high["high"]] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error],
                                                              abs=0.1 * error)
  # Collections of one length are drawn independently: twice the same values have half the variance.
  twice = table_of({"A": {"a": several["a"], "b": several["a"]}}, "ab")
  widths = [np.ptp(list(twice[column]["A"].values())) for column in ("a", "average")]
  assert widths[1] == pytest.approx(widths[0] / np.sqrt(2), rel=0.06)


def test_the_forums_are_one_set_in_the_average():
  several = {name: values(number, 30) for number, name in enumerate(("mine", *FORUMS))}
  texts = {name: {"nDCG@10": as_text(of)} for name, of in several.items()}
  means = {name: {"nDCG@10": float(of.mean())} for name, of in several.items()}
  said = with_forums({name: {"documents": 1, "queries": 30, "median words": 1.0} for name in several})
  found = certainties({"A": means}, {"A": texts}, said)["nDCG@10"]
  assert list(found) == ["mine", "cqadupstack", "average"]
  errors = [several["mine"].std() / np.sqrt(30), np.sqrt(sum(several[name].var() / 30 for name in FORUMS)) / 12]
  width = 2 * 1.96 * np.hypot(*errors) / 2
  assert found["average"]["A"]["high"] - found["average"]["A"]["low"] == pytest.approx(width, rel=0.06)


def test_averages_of_papers_take_capped_recall_of_one_set():
  names = [part for name in SUITES["beir-public"] for part in parts(name)]
  recall = {name: {"Recall@100": 0.5, "Capped recall@100": 0.75} for name in names}
  texts = {name: {measure: as_text([value] * 4) for measure, value in of.items()} for name, of in recall.items()}
  said = with_forums({name: {"documents": 1, "queries": 4, "median words": 1.0, "beir": True} for name in names})
  found = certainties({"A": recall}, {"A": texts}, said)["Recall@100"]
  assert found["BEIR-14"]["A"] == {"low": round((13 * 0.5 + 0.75) / 14, 6), "high": round((13 * 0.5 + 0.75) / 14, 6)}
  assert found["average"]["A"] == found["trec-covid"]["A"] == {"low": 0.5, "high": 0.5}


@pytest.mark.parametrize("first, second, num_queries", [(0, 1, 12), (0, 5, 12), (2, 12, 9), (3, 3, 8), (0, 7, 3)])
def test_p_is_that_of_all_exchanges(first, second, num_queries):
  """SciPy takes each of the 2 ** num_queries."""
  one, two = values(first, num_queries), values(second, num_queries)
  expected = scipy.stats.permutation_test((one, two), lambda x, y, axis: (x - y).mean(axis), vectorized=True,
                                          permutation_type="samples", n_resamples=np.inf).pvalue
  flipped = flips(np.stack([one, two], axis=1), "c")
  found = p_value(one.mean() - two.mean(), flipped[:, 0] - flipped[:, 1])
  assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 10_000) + 1e-4)
  assert p_value(two.mean() - one.mean(), flipped[:, 1] - flipped[:, 0]) == found


def test_p_of_many_queries_is_that_of_the_t_test():
  one, two = values(0, 1000), values(1, 1000)
  found = table_of({"A": {"c": one}, "B": {"c": two}})["c"]["A"]["p"]
  expected = scipy.stats.ttest_rel(one, two).pvalue
  assert 0.01 < expected < 0.5 and found == pytest.approx(expected, abs=0.02)


def test_p_of_an_average_is_of_the_exchanges_in_each_collection():
  """A difference that one collection alone has, and less certain than there."""
  base, noise = values(0, 50), np.random.default_rng(3).normal(0, 0.1, (2, 50))
  found = table_of({"A": {"a": base, "b": base}, "B": {"a": base + 0.03 + noise[0], "b": base + noise[1]}}, "ab")
  differences = [0.03 + noise[0], noise[1]]
  z = sum(of.mean() for of in differences) / np.sqrt(sum((of ** 2).mean() / 50 for of in differences))
  assert found["average"]["A"]["p"] == pytest.approx(2 * scipy.stats.norm.sf(z), abs=0.02)


def test_holm_by_hand():
  """Holm 1979: the smallest times 4, the next times 3, …, none below the one before it."""
  assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert holm([0.5, 0.9]) == [1, 1] and holm([0.25]) == [0.25] and holm([]) == []


def test_others_change_nothing_but_the_correction():
  one, two, three = ({"c": values(number)} for number in range(3))
  pair, all_three = table_of({"A": one, "C": three})["c"], table_of({"B": two, "A": one, "C": three})["c"]
  assert (pair["A"]["low"], pair["A"]["high"], pair["C"]) == (
      all_three["A"]["low"], all_three["A"]["high"], all_three["C"])
  assert pair["A"]["p"] <= all_three["A"]["p"] <= 2 * pair["A"]["p"] and "p" not in pair["C"]
  assert table_of({"A": one, "C": three})["c"] == pair


def test_blocks_of_draws_are_the_same_draws(monkeypatch):
  of = np.stack([values(0, 33), values(1, 33)], axis=1)
  whole = bootstrap(of, "c"), flips(of, "c")
  assert whole[0].shape == whole[1].shape == (10_000, 2)
  monkeypatch.setattr(significance, "_NUMBERS_AT_ONCE", 33 * 4096)
  np.testing.assert_allclose((bootstrap(of, "c"), flips(of, "c")), whole, atol=1e-12)


def test_one_query_and_equal_systems():
  found = table_of({"A": {"c": [0.25]}, "B": {"c": [0.5]}, "C": {"c": [0.5]}})["c"]
  assert found == {"A": {"low": 0.25, "high": 0.25, "p": 1.0}, "B": {"low": 0.5, "high": 0.5},
                   "C": {"low": 0.5, "high": 0.5, "p": 1.0}}


def test_what_is_kept_is_in_the_order_of_the_ids():
  of = {"q2": 0.63093, "q10": 1.0, "q1": 0.0, "q3": 0.00001}
  kept = stored(dict.fromkeys(("MAP", "nDCG@10", "Recall@100", "Capped recall@100"), of))
  assert kept == dict.fromkeys(["nDCG@10", "Recall@100", "Capped recall@100"], "0 1 0.6309 0")
  np.testing.assert_array_equal(read_stored(kept["nDCG@10"]), [0, 1, 0.6309, 0])


def results(per_query=True):
  """Two collections; "old" is of a version that kept no values of single queries."""
  several = {"BM25": {"alpha": values(0), "beta": values(1)}, "mine": {"alpha": values(11), "beta": values(2)},
             "old": {"alpha": values(0), "beta": values(1)}}
  systems = {}
  for name, of in several.items():
    systems[name] = {"weights_hash": name, "similarity": None, "results": {
        c: {"nDCG@10": float(found.mean()), "Recall@100": 0.75} for c, found in of.items()}, "per query": {}}
    if per_query and name != "old":
      systems[name]["per query"] = {c: {"nDCG@10": as_text(found)} for c, found in of.items()}
  said = {"split": "test", "documents": 9, "queries": 60, "median words": 5.0, "hash": "h", "beir": False,
          "query_length": None, "document_length": None, "exclude_own_id": False}
  return {"depth": 1000, "collections": {"alpha": said, "beta": said}, "systems": systems}


TABLE = """\
nDCG@10   alpha     beta   average
BM25     0.4443†  0.4258    0.4351†
mine     0.6769   0.4989    0.5879
old      0.4443   0.4258    0.4351

nDCG@10, 95 %        alpha         beta      average
BM25           0.363–0.524  0.355–0.497  0.382–0.488
mine           0.596–0.755  0.418–0.579  0.530–0.645
old                      -            -            -
"""
LEGEND = """\
95 % intervals: percentile bootstrap over queries.
† below the best of its column, p < 0.05: paired randomisation test over queries, Holm's correction."""


def test_the_table_of_evaluate(tmp_path):
  shown = results_file.finish(tmp_path, results())
  blocks = results_file.tables(shown).split("\n\n")
  assert "".join(f"{line.rstrip()}\n" for line in "\n\n".join(blocks[:2]).splitlines()) == TABLE
  assert blocks[-1] == LEGEND
  assert results_file.read(tmp_path) == shown
  assert shown["significance"]["nDCG@10"]["beta"]["BM25"]["p"] > 0.05 > shown["significance"]["nDCG@10"]["alpha"][
      "BM25"]["p"] > 0
  # What is measured later drops them, until all of it is.
  results_file.write(tmp_path, results())
  assert "significance" not in results_file.read(tmp_path)
  # A call that adds a system shows those of its own, and keeps those of all.
  alone = {**results(), "systems": {"new": results()["systems"]["BM25"]}}
  assert "p" not in results_file.finish(tmp_path, alone)["significance"]["nDCG@10"]["alpha"]["new"]
  kept = results_file.read(tmp_path)["significance"]["nDCG@10"]["alpha"]
  assert {name for name, of in kept.items() if of.get("p", 1) < 0.05} == {"BM25", "new"}


def test_the_table_of_the_report(tmp_path):
  """Of evaluations into two folders, which have never seen each other."""
  for name, of in results()["systems"].items():
    results_file.finish(tmp_path / name, {**results(), "systems": {name: of}})
  place = write_report(tmp_path / "report", [tmp_path / name for name in results()["systems"]])
  text = place.read_text()
  assert "| BM25 | 0.4443† [0.363–0.524] | 0.4258 [0.355–0.497] | 0.4351† [0.382–0.488] |" in text
  assert "| mine | **0.6769** [0.596–0.755] |" in text and "| old | 0.4443 | 0.4258 | 0.4351 |" in text
  assert text.count(LEGEND) == 1
  header, bm25, _, old = (line.split(",") for line in (place.parent / "ndcg_at_10.csv").read_text().splitlines())
  assert header == ["system", *(f"{name}{of}" for name in ("alpha", "beta", "average") for of in (
      "", " low", " high", " p"))]
  expected = results_file.finish(tmp_path / "all", results())["significance"]["nDCG@10"]["alpha"]["BM25"]
  assert [float(cell) for cell in bm25[2:5]] == list(expected.values())
  assert old[2:5] == ["", "", ""]


def test_results_without_values_of_queries(tmp_path):
  old = results(per_query=False)
  for of in old["systems"].values():
    del of["per query"]
  (tmp_path / "results.json").write_text(json.dumps(old))
  assert results_file.read(tmp_path) == old
  text = write_report(tmp_path / "report", [tmp_path]).read_text()
  assert "| BM25 | 0.4443 |" in text and "95 %" not in text and "†" not in text
  assert "95 %" not in results_file.tables(old)
  # Where the best has none, nothing is tested.
  new = {**results(), "systems": {"BM25": results()["systems"]["BM25"]}}
  results_file.finish(tmp_path, new)
  assert results_file.read(tmp_path)["significance"]["nDCG@10"]["alpha"].keys() == {"BM25"}
  assert "p" not in results_file.read(tmp_path)["significance"]["nDCG@10"]["alpha"]["BM25"]


@pytest.mark.parametrize("text", ["", "0.5", "0.5 " * 61, "nan " * 60, "x " * 60])
def test_damaged_values(tmp_path, text):
  whole = results()
  whole["systems"]["mine"]["per query"]["alpha"]["nDCG@10"] = text
  (tmp_path / "results.json").write_text(json.dumps(whole))
  with pytest.raises(InputError, match="results.json: damaged, nDCG@10 of mine is not a value for each query of alpha"):
    results_file.read(tmp_path)
