"""What was read of a part of the input is known by its content: it serves whatever becomes of the other parts."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import pytest
import toy_source
from test_prepare_engine import collection, contents, data, manifest, prepare, shards  # noqa: F401
from toy_source import ToySource, write

from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.prepare import engine
from gtr_jax.prepare.manifests import Settings


@pytest.fixture(autouse=True)
def few_shards(monkeypatch):
  """Each is a task, and several files."""
  monkeypatch.setattr(engine, "_MIN_BUCKETS", 8)


@pytest.fixture
def archives(tmp_path):
  """Paths of four archives, and a source of them that logs each part that it reads."""
  paths = []
  for name in "abcd":
    path = tmp_path / f"{name}.jsonl.gz"
    rows = toy_source.rows(100, seed=name)
    path.write_bytes(gzip.compress(Path(write(tmp_path / "rows", rows)).read_bytes(), mtime=0))
    paths.append(path)
  return paths, ToySource(tuple(map(str, paths)), log=str(tmp_path / "log"))


def number_read(source):
  """Parts, since it was asked last."""
  log = Path(source.log)
  number = len(log.read_text().splitlines()) if log.exists() else 0
  log.unlink(missing_ok=True)
  return number


def fresh(source, **settings):
  """What is prepared in an empty data folder."""
  here = str(data_root.data_dir())
  data_root.set_data_dir(f"{here}-fresh")
  try:
    return contents(prepare(source, **settings))
  finally:
    shutil.rmtree(f"{here}-fresh")
    data_root.set_data_dir(here)
    number_read(source)


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("cut, read_before", [(3, 3), (0, 0)])
def test_one_cut_archive_costs_no_other(data, archives, cut, read_before, joins):  # noqa: F811
  paths, source = archives
  source = dataclasses.replace(source, joins=joins)
  reference = fresh(source)
  whole = paths[cut].read_bytes()
  paths[cut].write_bytes(whole[:-20])
  with pytest.raises(InputError, match=f"{paths[cut].name}: .*cut off"):
    prepare(source)
  assert number_read(source) == read_before + 1 and not (data / "toy").exists()
  assert (data / "toy.tmp").exists() == bool(read_before)
  paths[cut].write_bytes(whole)
  assert contents(prepare(source)) == reference and number_read(source) == 4 - read_before
  assert not (data / "toy.tmp").exists()


def test_kept_parts_are_read_no_more(data, archives, tmp_path, monkeypatch):  # noqa: F811
  paths, source = archives
  # Three files make 8 buckets, and one more 16.
  monkeypatch.setattr(engine, "_BUCKET_BYTES", int(0.45 * engine.COMPRESSION * paths[0].stat().st_size))
  said = []

  def kept(source, **settings):
    shutil.rmtree(data / "toy", ignore_errors=True)
    return Path(engine.prepare(source, Settings(**settings), processes=1, keep_parts=True, say=said.append))

  three = dataclasses.replace(source, paths=source.paths[:3])
  few = manifest(kept(three))
  assert number_read(source) == 3 and len(list((data / "toy.tmp/read").glob("*.pairs"))) == 3
  assert said[0].startswith("kept what was read of the files: ") and said[0].endswith(f" MB in {data}/toy.tmp/read")
  whole = kept(source)
  assert number_read(source) == 1 and contents(whole) == fresh(source)
  assert len(manifest(whole)["splits"]["train"]) > len(few["splits"]["train"])
  assert any(line.startswith("going on with 3 of 4 parts") for line in said)
  # Neither time, place, name nor order.
  (tmp_path / "moved").mkdir()
  moved = [str(path.rename(tmp_path / "moved" / f"{9 - i}.jsonl.gz")) for i, path in enumerate(paths)]
  backwards = dataclasses.replace(source, paths=tuple(moved[::-1]))
  assert shards(kept(backwards)) == shards_in(fresh(backwards)) and number_read(source) == 0
  # What nobody names any more goes; what decides what is read makes other parts, what is done with them does not.
  two = dataclasses.replace(source, paths=tuple(moved[:2]))
  assert contents(kept(two)) == fresh(two) and number_read(source) == 0
  assert len(list((data / "toy.tmp/read").glob("*.pairs"))) == 2
  prepare(ToySource((write(tmp_path / "other.jsonl", toy_source.rows(5)),)), name="other")
  kept(two, without=("other",))
  assert number_read(source) == 0
  kept(two, validation_share=0.5)
  assert number_read(source) == 2
  collection(data / "tested")
  kept(two, decontaminate=("tested",))
  assert number_read(source) == 2
  with (data / "tested/queries.jsonl").open("a") as f:
    f.write('{"_id": "q9", "text": "One more?"}\n')
  kept(two, decontaminate=("tested",))
  assert number_read(source) == 2
  # Without the flag they are used once more, and go.
  shutil.rmtree(data / "toy")
  prepare(two, decontaminate=("tested",))
  assert number_read(source) == 0 and not (data / "toy.tmp").exists()


def shards_in(found):
  return {name: content for name, content in found.items() if name.endswith(".tfrecord")}


def test_a_file_that_is_named_twice_is_read_once_and_counted_twice(data, archives, tmp_path):  # noqa: F811
  paths, source = archives
  shutil.copy(paths[0], tmp_path / "copy.jsonl.gz")
  twice = dataclasses.replace(source, paths=(*source.paths, str(tmp_path / "copy.jsonl.gz")))
  counts = manifest(prepare(twice))["counts"]
  assert number_read(source) == 4 and counts["read"] == 500 and counts["duplicate"] == 100
  assert {n: len(d) for n, d in shards(data / "toy").items()} == {
      n: len(d) for n, d in shards_in(fresh(source)).items()}


def test_places_are_those_of_the_file_that_is_named_now(data, tmp_path):  # noqa: F811
  rows = [*toy_source.rows(20), b"broken", {"query": "What is tested?", "passage": "x"}]
  collection(data / "tested")
  before = Path(write(tmp_path / "before.jsonl", rows))
  settings = Settings(decontaminate=("tested",))
  engine.prepare(ToySource((str(before),)), settings, processes=1, keep_parts=True, say=lambda line: None)
  shutil.rmtree(data / "toy")
  now = before.rename(tmp_path / "now.jsonl")
  source = ToySource((str(now),), log=str(tmp_path / "log"))
  folder = Path(engine.prepare(dataclasses.replace(source, log=""), settings, processes=1, say=lambda line: None))
  assert [place.split(":")[0] for place in manifest(folder)["broken_places"]] == [str(now)]
  rows = map(json.loads, (folder / "dropped.jsonl").read_text().splitlines())
  (dropped,) = (row for row in rows if row["reason"].startswith("contaminated"))
  assert dropped["place"] == str(now) and number_read(source) == 0


def test_an_archive_of_another_kind_is_not_kept_and_a_caller_may_want_nothing_kept(data, archives, tmp_path):  # noqa: F811
  paths, source = archives
  wrong = write(tmp_path / "wrong.jsonl", [b"broken"] * 1000)
  said = []
  with pytest.raises(InputError, match="1,000 of 1,400 lines are broken"):
    engine.prepare(dataclasses.replace(source, paths=(*source.paths, wrong)), Settings(), processes=1, say=said.append)
  assert number_read(source) == 6 and len(list((data / "toy.tmp/read").glob("*.json"))) == 4
  assert said[-1].startswith("kept what was read")
  with pytest.raises(InputError, match="1,000 of 1,400 lines are broken"):
    engine.prepare(dataclasses.replace(source, paths=(*source.paths, wrong)), Settings(), processes=1, keep_parts=False,
                   say=said.append)
  assert not (data / "toy.tmp").exists()
