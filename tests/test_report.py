"""The report: its numbers, its plots, and one line for what cannot be read."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from gtr_jax.errors import InputError
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.report import write_report


def write_results(folder, systems, collections=("alpha", "beta_gamma"), documents=10):
  """`systems`: name -> (hash, nDCG@10 of each collection)."""
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps({
      "split": "test", "depth": 1000,
      "collections": {name: {"documents": documents, "queries": 3, "median words": 40.5} for name in collections},
      "systems": {system: {"model": None, "weights_hash": digest, "results": {
          name: {**dict.fromkeys(MEASURES, 0.5), "nDCG@10": value, "median words of top 10": 55.0}
          for name, value in zip(collections, values, strict=True)}} for system, (digest, values) in systems.items()}}))
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
  """Not tiny, and of more colours than an empty frame has."""
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
  pictures = {"ndcg.png", "lengths.png", "loss.png", "ndcg_in_training.png"}
  assert {p.name for p in place.parent.iterdir()} == pictures | {"report.md"}
  for name in pictures:
    assert f"]({name})" in text
    assert has_a_picture(place.parent / name), name


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
  bad = tmp_path / "bad"
  bad.mkdir()
  (bad / "results.json").write_text('{"systems": {}}')
  (bad / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2}\n{"step": 2, "train/loss": "low"}\n')
  for given, runs, message in [
      ([], [], "nothing to report"), ([tmp_path], [], "results.json: no such file; give the --output of gtr-jax"),
      ([bad], [], "results.json: not the results of an evaluation .KeyError: 'collections'"),
      ([results, other], [], "another collection 'alpha'"),
      ([], [tmp_path], "metrics.jsonl: no such file; give the MODEL_DIR"),
      ([], [bad], "metrics.jsonl:2: not a line of metrics"),
  ]:
    with pytest.raises(InputError, match=message):
      write_report(tmp_path / "report", given, runs)
    assert not (tmp_path / "report").exists()
