"""Apache Beam: prepares the same bytes as the engine, and seqio's own command caches a task of prepared data."""

import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import seqio
import toy_source
from tiny_text import task_name, words
from toy_source import ToySource, write

from gtr_jax.data.examples import add_pair_task, prepared
from gtr_jax.data.pipeline import TrainingBatches
from gtr_jax.errors import InputError
from gtr_jax.prepare import engine
from gtr_jax.prepare.manifests import Settings

beam = pytest.importorskip("apache_beam", reason="make test-beam installs it")
from gtr_jax.prepare import beam as on_beam  # noqa: E402

pytest_plugins = "data_fixtures"


def quiet(line):
  pass


@pytest.mark.parametrize("joins, near_duplicates", [(False, False), (True, False), (False, True), (True, True)])
def test_the_same_bytes_as_the_engine(data_dir, tmp_path, joins, near_duplicates):
  rows = toy_source.rows(800)
  other = write(tmp_path / "b.jsonl", rows[:100])
  near = [row | {"passage": row["passage"] + ", "} for row in rows[100:120]]
  near += [row | {"passage": " ".join([row["passage"]] * 20) + end} for row in rows[200:210] for end in ("", " more")]
  path = write(tmp_path / "a.jsonl", [*rows, b"broken", *rows[50:150], *(r | {"length": 0} for r in rows[:50]), *near,
                                      *({"query": "self", "passage": "self", "key": f"k{i}"} for i in range(30))])
  engine.prepare(ToySource((other,)), Settings("other"), processes=1, say=quiet)
  source = ToySource((path,), joins)
  settings = Settings(validation_share=0.2, without=("other",), near_duplicates=near_duplicates)
  folder = Path(on_beam.prepare(source, settings, "direct", say=quiet))
  assert sorted(p.name for p in data_dir.iterdir()) == ["other", "toy"]
  folder.rename(data_dir / "beam")
  Path(engine.prepare(source, settings, processes=1, say=quiet))
  ours, beams = ({p.name: p.read_bytes() for p in (data_dir / name).iterdir()} for name in ("toy", "beam"))
  assert len(beams) > 100 and beams == ours
  assert (b'"near_duplicate"' in ours["manifest.json"]) == near_duplicates
  reasons = [json.loads(line)["reason"] for line in ours["dropped.jsonl"].splitlines()]
  counts = json.loads(ours["manifest.json"])["counts"]
  assert {"broken", "too_short", "query_is_passage", "duplicate", "in_other"} <= set(reasons)
  assert {reason: reasons.count(reason) for reason in reasons} == {
      reason: min(counts[reason], 20) for reason in reasons}


def test_errors_of_one_line(data_dir, tmp_path):
  source = ToySource((write(tmp_path / "a.jsonl", [*toy_source.rows(20), *[b"broken"] * 10]),))
  with pytest.raises(InputError, match="10 of 30 lines are broken, more than a share of 0.001; "):
    on_beam.prepare(source, Settings(), "direct", say=quiet)
  source = ToySource((write(tmp_path / "a.jsonl", [{"error": "the reason"}]),))
  with pytest.raises(InputError, match="the pipeline failed: .*the reason") as e:
    on_beam.prepare(source, Settings(), "direct", say=quiet)
  assert "\n" not in str(e.value) and os.listdir(data_dir) == []


def test_seqio_caches_a_task_of_prepared_data(data_dir, tmp_path, vocabulary, monkeypatch):
  from seqio.scripts import cache_tasks_main
  rows = [{"query": words(4, i), "passage": words(9, 50 + i), "negatives": [words(3, i)] * (i % 3)} for i in range(200)]
  engine.prepare(ToySource((write(tmp_path / "a.jsonl", rows),)), Settings(), processes=1, say=quiet)
  name = task_name()
  add_pair_task(name, prepared("toy"), vocabulary=vocabulary, shuffle_buffer_size=200)
  cache = str(data_dir / "seqio_cache")
  cache_tasks_main.FLAGS(["seqio_cache_tasks", f"--output_cache_dir={cache}"])
  with beam.Pipeline(runner="DirectRunner") as pipeline:
    cache_tasks_main.run_pipeline(pipeline, [name], cache)
  monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [cache])
  lengths = {"inputs": 8, "targets": 12, "negative_targets": (2, 12)}

  def read(use_cached):
    dataset = seqio.get_mixture_or_task(name).get_dataset(lengths, split="train", shuffle=False, use_cached=use_cached)
    return {ex["example_id"]: ex for ex in dataset.as_numpy_iterator()}

  live, cached = read(False), read(True)
  assert len(live) == 200 and live.keys() == cached.keys()
  for example_id, ex in live.items():
    jax.tree.map(np.testing.assert_array_equal, ex, {key: cached[example_id][key] for key in ex})
  batches = TrainingBatches(name, None, {"inputs": 8, "targets": 12}, 8, negatives_per_example=2, use_cached=True)
  assert {i for x in itertools.islice(batches, 25) for i in x.ids} <= {i.decode() for i in live}
  batches.close()
