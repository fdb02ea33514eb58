"""The report: its numbers, its plots, sweeps, and one line for what cannot be read."""

import csv
import json
import xml.etree.ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from gtr_jax.collections.beir import SUITES, parts
from gtr_jax.errors import InputError
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.report import write_report
from gtr_jax.evaluation.studies import comparisons, read_study


def write_results(folder, systems, collections=("alpha", "beta_gamma"), documents=10, is_beir=False):
  """`systems`: name -> (hash, nDCG@10 of each collection)."""
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps({
      "depth": 1000,
      "collections": {name: {"split": "test", "documents": documents, "queries": 3, "median words": 40.5,
                             "beir": is_beir} for name in collections},
      "systems": {system: {"model": None, "weights_hash": digest, "results": {
          name: {**dict.fromkeys(MEASURES, 0.5), "nDCG@10": value, "median words of top 10": 55.0}
          for name, value in zip(collections, values, strict=False)}}
                  for system, (digest, values) in systems.items()}}))
  return folder


def write_metrics(folder, validation=True):
  folder.mkdir(parents=True)
  lines = [{"step": step, "train/loss": 5 - step / 10, "train/accuracy": 0.25, "train/pairs_per_second": 611.7}
           for step in range(1, 21)]
  lines.insert(3, {"step": 4, "train/loss": float("nan")})
  if validation:
    lines.append({"step": 20, "validation/loss": 3.5, "alpha/nDCG@10": 0.125})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def rows(text, heading):
  """The table under a heading: first cell -> other cells."""
  body = text.split(heading)[1].split("\n\n")
  table = next(part for part in body if part.startswith("|"))
  return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")]
                                            for line in table.splitlines())}


def has_a_picture(path):
  """Not tiny, and of more colours than an empty frame has; and the same as SVG."""
  assert xml.etree.ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
  pixels = imread(path)
  colours = np.unique((pixels[..., :3] * 8).astype(int) @ [81, 9, 1])
  return pixels.shape[0] > 200 and pixels.shape[1] > 400 and len(colours) > 9


def test_a_whole_report(tmp_path):
  results = write_results(tmp_path / "results", {"BM25": (None, (0.75, 0.5)), "GTR": ("a", (0.25, 0.625))})
  runs = [write_metrics(tmp_path / "pt"), write_metrics(tmp_path / "ft", validation=False)]
  place = write_report(tmp_path / "report", [results], runs)
  text = place.read_text()
  table = rows(text, "### nDCG@10")
  assert table["system"] == ["alpha", "beta_gamma", "average"]
  assert table["BM25"] == ["**0.7500**", "0.5000", "**0.6250**"]
  assert table["GTR"] == ["0.2500", "**0.6250**", "0.4375"]
  assert rows(text, "### Collections")["alpha"] == ["10", "3", "40.5"]
  assert rows(text, "## Lengths")["whole collection"] == ["40.5", "40.5"]
  assert rows(text, "## Lengths")["GTR"] == ["55", "55"]
  runs = rows(text, "## Training")
  assert runs["run"][:2] == ["steps", "train loss"]
  assert runs["pt"][:2] == ["20", "3"]
  assert runs["ft"][runs["run"].index("validation loss")] == "–"
  assert runs["pt"][runs["run"].index("pairs/s")] == "612"
  pictures = {"ndcg_at_10", "recall_at_100", "lengths", "loss", "ndcg_in_training"}
  tables = {"ndcg_at_10", "mrr_at_10", "recall_at_100", "capped_recall_at_100", "map", "collections", "lengths",
            "training"}
  files = {f"{name}.{kind}" for name in pictures for kind in ("png", "svg")} | {f"{name}.csv" for name in tables}
  assert {p.name for p in place.parent.iterdir()} == files | {"report.md"}
  assert all(f"]({name})" in text for name in files)
  for name in pictures:
    assert has_a_picture(place.parent / f"{name}.png"), name
  with (place.parent / "ndcg_at_10.csv").open() as f:
    assert list(csv.reader(f)) == [["system", "alpha", "beta_gamma", "average"], ["BM25", "0.75", "0.5", "0.625"],
                                   ["GTR", "0.25", "0.625", "0.4375"]]


def test_results_alone_and_runs_alone(tmp_path):
  results = write_results(tmp_path / "results", {"BM25": (None, (0.75,))}, collections=("alpha",))
  text = write_report(tmp_path / "a", [results / "results.json"]).read_text()
  assert "## Training" not in text
  assert "average" not in text
  text = write_report(tmp_path / "b", [], [write_metrics(tmp_path / "run", validation=False)]).read_text()
  assert "## Retrieval quality" not in text
  assert "ndcg_in_training" not in text


def test_several_evaluations_are_put_together(tmp_path):
  one = write_results(tmp_path / "one", {"BM25": (None, (0.5,)), "GTR": ("a", (0.25,))}, collections=("alpha",))
  two = write_results(tmp_path / "two", {"BM25": (None, (0.75,)), "GTR": ("b", (0.375,))}, collections=("beta",))
  table = rows(write_report(tmp_path / "report", [one, two]).read_text(), "### nDCG@10")
  assert table == {"system": ["alpha", "beta", "average"], "---": ["---:"] * 3,
                   "BM25": ["**0.5000**", "**0.7500**", "**0.6250**"], "GTR": ["0.2500", "–", "–"],
                   "GTR (two)": ["–", "0.3750", "–"]}


def test_bad_input_writes_nothing(tmp_path):
  results = write_results(tmp_path / "results", {"BM25": (None, (0.75, 0.5))})
  other = write_results(tmp_path / "other", {"BM25": (None, (0.75, 0.5))}, documents=11)
  hashed = {}
  for digest in ("1", "2"):
    hashed[digest] = write_results(tmp_path / digest, {"BM25": (None, (0.75, 0.5))}) / "results.json"
    hashed[digest].write_text(hashed[digest].read_text().replace('"split"', f'"hash": "{digest}", "split"'))
  bad = tmp_path / "bad"
  bad.mkdir()
  (bad / "results.json").write_text('{"systems": {}}')
  (bad / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2}\n{"step": 2, "train/loss": "low"}\n')
  for given, runs, message in [
      ([], [], "nothing to report"), ([tmp_path], [], "results.json: no such file; give the --output of gtr-jax"),
      ([bad], [], r"bad/results.json: damaged, \['collections'\] is missing, and should be a dictionary"),
      ([results, other], [], "another collection 'alpha'"),
      ([hashed["1"], results, hashed["2"]], [], "another collection 'alpha'"),
      ([], [tmp_path], "metrics.jsonl: no such file; give the MODEL_DIR"),
      ([], [bad], "metrics.jsonl:2: not a line of metrics"),
  ]:
    with pytest.raises(InputError, match=message):
      write_report(tmp_path / "report", given, runs)
    assert not (tmp_path / "report").exists()


def test_names_are_no_formulas(tmp_path):
  results = write_results(tmp_path / "results", {"$A_{$": ("a", (0.5, 0.25))}, ("c$x^", "d|$\\frac$"))
  run = write_metrics(tmp_path / "$run_{$")
  write_report(tmp_path / "report", [results], [run])
  assert "$A_{$" in (tmp_path / "report" / "ndcg_at_10.svg").read_text()
  assert "$run_{$" in (tmp_path / "report" / "loss.svg").read_text()


def test_published_rows_stand_beside_sets_of_beir_alone(tmp_path):
  systems = {"BM25": (None, (0.25, 0.75)), "mine": ("a", (0.375, 0.5))}
  results = write_results(tmp_path / "one", systems, ("scifact", "trec-covid"), is_beir=True)
  other = write_results(tmp_path / "two", {"mine": ("a", (0.5,))}, ("nfcorpus",))  # Own data of that name.
  place = write_report(tmp_path / "report", [results, other])
  table = rows(place.read_text(), "### nDCG@10, published rows below")
  assert table["system"] == ["SciFact", "TREC-COVID"]
  assert table["mine"] == ["0.375", "0.500"]
  assert table["BM25 (published)"] == ["0.665", "0.656"]
  assert table["GTR XXL (published)"] == ["0.662", "0.501"]
  recall = rows(place.read_text(), "### Recall@100, published rows below")
  assert recall["GTR base (published)"] == ["0.872", "0.411"] and "ANCE (published)" not in recall
  assert "arXiv 2104.08663" in place.read_text()
  assert has_a_picture(place.parent / "ndcg_at_10_published.png")
  assert "published" not in write_report(tmp_path / "without", [other]).read_text()


def test_averages_of_papers_are_in_the_tables(tmp_path):
  names = [part for name in SUITES["beir-public"] for part in parts(name)]
  results = write_results(tmp_path / "results", {"mine": ("a", [0.5] * len(names)), "BM25": (None, [0.25] * 3)}, names,
                          is_beir=True)
  text = write_report(tmp_path / "report", [results]).read_text()
  table = rows(text, "### nDCG@10")
  assert table["system"] == [name for name in SUITES["beir-public"] if name != "cqadupstack"] + [
      "cqadupstack", "average", "BEIR-14"]
  assert table["mine"][-2:] == ["**0.5000**"] * 2 and table["BM25"][-3:] == ["–"] * 3
  published = rows(text, "### nDCG@10, published rows below")
  assert published["system"][-2:] == ["CQADupStack", "BEIR-14"]
  assert published["GTR base (published)"][-2:] == ["0.357", "0.441"]
  assert rows(text, "### MRR@10, published rows below")["GTR XXL (published)"] == ["0.388"]


def write_sweep(folder, runs, **more):
  """`runs`: name -> (axes, systems), the systems as in `write_results`, or None for a run that failed."""
  listed = []
  for name, (axes, systems) in runs.items():
    results = write_results(folder / "results" / name, systems) / "results.json" if systems else None
    listed.append({"name": name, "axes": axes, "results": results and str(results), "model_dir": f"/runs/{name}",
                   "failed": None if systems else "train: out of memory"})
  (folder / "sweep.json").write_text(json.dumps({"runs": listed, **more}))
  return folder


def test_each_axis_of_a_sweep_with_the_others_fixed(tmp_path):
  runs = {f"{size}_{share}": ({"size": size, "share": share}, {"x": (f"{size}{share}", (value, value / 2))})
          for size, share, value in (("small", 1.0, 0.25), ("small", 0.1, 0.125), ("small", 0.01, 0.0625),
                                     ("base", 0.1, 0.5), ("base", 1.0, 0.75))}
  sweep = write_sweep(tmp_path / "data", {**runs, "large": ({"size": "large", "share": 1.0}, None)},
                      bm25=str(write_results(tmp_path / "bm25", {"BM25": (None, (0.375, 0.5))}) / "results.json"),
                      axes={"size": ["small", "base", "large"], "share": [1.0, 0.1, 0.01]})
  place = write_report(tmp_path / "report", [], [], [sweep])
  text = place.read_text()
  assert "- large: train: out of memory" in text
  table = rows(text.split("### size")[1], "nDCG@10:")
  assert table == {"size": ["alpha", "beta_gamma", "average"], "---": ["---:"] * 3,
                   "BM25": ["0.3750", "**0.5000**", "0.4375"],
                   "small; share 0.1": ["0.1250", "0.0625", "0.0938"],
                   "base; share 0.1": ["0.5000", "0.2500", "0.3750"],
                   "small; share 1.0": ["0.2500", "0.1250", "0.1875"],
                   "base; share 1.0": ["**0.7500**", "0.3750", "**0.5625**"]}
  table = rows(text.split("### share")[1], "nDCG@10:")
  assert list(table)[2:] == ["BM25", "0.01; size small", "0.1; size small", "1.0; size small", "0.1; size base",
                             "1.0; size base"]
  assert rows(text.split("### share")[1], "Median number")["0.01; size small"] == ["55", "55"]
  for name in (f"data_{axis}_{number}{kind}" for axis in ("size", "share") for number in (1, 2) for kind in (
      "", "_lengths")):
    assert f"]({name}.png)" in text and has_a_picture(place.parent / f"{name}.png"), name
  assert (place.parent / "data_share_ndcg_at_10.csv").read_text().startswith("share,alpha,beta_gamma,average\n")


def test_runs_evaluated_by_cosine_and_dot_differ_in_an_axis(tmp_path):
  sweep = write_sweep(tmp_path, {name: ({"size": name}, {name: (name, (0.5, 0.5)), f"{name} (dot)": (f"{name}d", (
      0.25, 0.25))}) for name in ("small", "base")})
  for name in ("small", "base"):
    path = tmp_path / "results" / name / "results.json"
    read = json.loads(path.read_text())
    for system, of in read["systems"].items():
      of["similarity"] = "dot" if "dot" in system else "cosine"
    path.write_text(json.dumps(read))
  study = read_study(sweep)
  assert study.axes == {"size": ["small", "base"], "similarity": ["cosine", "dot"]}
  assert {fixed: [(value, scores["alpha"]["nDCG@10"]) for value, scores in points] for fixed, points in comparisons(
      study, "similarity").items()} == {"size small": [("cosine", 0.5), ("dot", 0.25)],
                                        "size base": [("cosine", 0.5), ("dot", 0.25)]}


def test_axes_that_differ_only_together_are_not_compared(tmp_path):
  sweep = write_sweep(tmp_path, {"a": ({"size": 1, "batch": 8}, {"a": ("a", (0.5, 0.5))}),
                                 "b": ({"size": 2, "batch": 16}, {"b": ("b", (0.25, 0.5))})})
  text = write_report(tmp_path / "report", [], [], [sweep]).read_text()
  assert "size: no two runs differ in it alone" in text and "| batch |" not in text


def test_a_bad_sweep_is_one_line(tmp_path):
  with pytest.raises(InputError, match="sweep.json: no such file; give the --output of gtr-jax sweep"):
    read_study(tmp_path)
  (tmp_path / "sweep.json").write_text('{"runs": [{"name": "a"}]}')
  with pytest.raises(InputError, match=r"sweep.json: damaged, \['runs'\]\[0\]\['axes'\] is missing"):
    read_study(tmp_path)
  (tmp_path / "sweep.json").write_text(json.dumps({"runs": [
      {"name": "a", "axes": {}, "results": "gone.json", "model_dir": "a", "failed": None}]}))
  with pytest.raises(InputError, match="gone.json: no such file"):
    read_study(tmp_path)
