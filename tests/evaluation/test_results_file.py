"""results.json, manifests and other JSON that gtr_jax has written: of another shape, and written by several at once."""

import copy
import errno
import json
import re
import threading

import pytest
from test_report import write_metrics, write_results

from gtr_jax.errors import InputError
from gtr_jax.evaluation import report, results_file
from gtr_jax.evaluation.studies import read_study
from gtr_jax.io import atomic, lock
from gtr_jax.io.json_file import read_json
from gtr_jax.prepare import manifests
from gtr_jax.sweep import results as of_sweep

GOOD = {"depth": 1000,
        "collections": {"c": {"documents": 3, "queries": 2, "median words": 5.0, "hash": "h", "beir": False,
                              "warnings": ["one"], "query_length": None, "document_length": 8,
                              "exclude_own_id": False}},
        "systems": {"A": {"model": "a", "weights_hash": "x", "similarity": "cosine",
                          "results": {"c": {"nDCG@10": 0.5, "MAP": 0.25}},
                          "per query": {"c": {"nDCG@10": "0.25 0.75"}}}},
        "significance": {"nDCG@10": {"c": {"A": {"low": 0.25, "high": 0.75, "p": 0.5}}}}}
SWEEP = {"runs": [{"name": "r", "axes": {"size": 1}, "results": "results.json", "model_dir": "a", "failed": None}],
         "bm25": None, "axes": {"size": [1, 2]}}
MANIFEST = {"format": manifests.FORMAT, "gtr_jax": "0.1.0", "inputs": [{"name": "a", "sha256": "0"}],
            "fingerprint": "f", "counts": {"read": 1, "broken": 0, "written": 1}, "broken_places": [],
            "examples": {"train": 1}, "splits": {"train": {}}, "filters": {}}
OTHERS = [None, 3, -1, 1.5, True, "x", [], ["x"], {}, {"x": 1}, float("nan")]


def places(value, path=()):
  """The path to every value inside."""
  yield path
  if isinstance(value, dict | list):
    for key, of in value.items() if isinstance(value, dict) else enumerate(value):
      yield from places(of, (*path, key))


def changed(value, path, other):
  """A copy with something else at a place; `...` takes it away."""
  whole = [copy.deepcopy(value)]
  inside, key = whole, 0
  for step in path:
    inside, key = inside[key], step
  if other is ...:
    del inside[key]
  else:
    inside[key] = other
  return whole[0] if whole else None


def outcome(read):
  """What was raised, which must be one line of an InputError, or None."""
  try:
    read()
  except InputError as e:
    assert "\n" not in str(e)
    return str(e)
  return None


@pytest.mark.parametrize("path", list(places(GOOD)), ids=str)
def test_results_of_another_shape(tmp_path, path):
  """Whatever stands at whatever place: every reader takes it or says in one line what it is."""
  place = tmp_path / "results.json"
  for other in [*OTHERS, ...]:
    place.write_text(json.dumps(changed(GOOD, path, other)))
    said = outcome(lambda: results_file.tables(results_file.read(tmp_path)))
    assert said is None or "results.json: damaged, " in said, said
    again = outcome(lambda: of_sweep.table({"bm25": None, "runs": SWEEP["runs"]}, str(tmp_path)))
    assert (said is None) == (again is None)


@pytest.mark.parametrize("path", list(places(SWEEP)), ids=str)
def test_sweeps_of_another_shape(tmp_path, path):
  (tmp_path / "results.json").write_text(json.dumps(GOOD))
  for other in [*OTHERS, ...]:
    (tmp_path / "sweep.json").write_text(json.dumps(changed(SWEEP, path, other)))
    said = outcome(lambda: read_study(tmp_path))
    assert said is None or re.search(r"sweep.json: damaged|no such file|path is empty", said), said


@pytest.mark.parametrize("path", list(places(MANIFEST)), ids=str)
def test_manifests_of_another_shape(tmp_path, path):
  for number, other in enumerate([*OTHERS, ...]):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(changed(MANIFEST, path, other)))
    for read in (lambda at=folder: manifests.read(str(at)), lambda at=folder: manifests.is_there(at, MANIFEST, 0.1)):
      said = outcome(read)
      assert said is None or str(folder) in said


@pytest.mark.parametrize("data, message", [
    (b"", "damaged, not JSON"), (b"\xff\xfe", "damaged, not UTF-8"), (b"[" * 100_000, "nested too deeply"),
    (b"9" * 5000, "more than 4,300 digits"), (b"[]", "what it holds is [], and should be a dictionary"),
    (b"null", "what it holds is None"), (b"{", "damaged, not JSON"), (b"{}x", "damaged, not JSON"),
])
def test_files_that_are_no_json(tmp_path, data, message):
  (tmp_path / "a.json").write_bytes(data)
  with pytest.raises(InputError, match=re.escape(message)) as e:
    read_json(tmp_path / "a.json", dict, "make it again")
  assert str(e.value).startswith(f"{tmp_path}/a.json: damaged, ") and str(e.value).endswith("; make it again")
  for name, read in (("results.json", results_file.read), ("sweep.json", read_study)):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=re.escape(message)):
      read(tmp_path)
  with pytest.raises(FileNotFoundError):
    read_json(tmp_path / "gone.json", dict, "")


def test_what_several_write_at_once_is_all_kept(tmp_path):
  """Threads with descriptors of their own, which lock each other out as processes do."""
  names = [[f"system {number}.{of}" for of in range(8)] for number in range(8)]

  def evaluate(of_thread):
    for name in of_thread:
      results_file.write(tmp_path, {**GOOD, "systems": {name: GOOD["systems"]["A"]}})

  threads = [threading.Thread(target=evaluate, args=(of_thread,)) for of_thread in names]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert set(results_file.read(tmp_path)["systems"]) == {name for of_thread in names for name in of_thread}
  assert {p.name for p in tmp_path.iterdir()} == {"results.json", ".results.json.lock"}
  assert results_file.read_earlier(tmp_path)  # The lock is no file of something else.


@pytest.mark.parametrize("code, kept", [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code, kept):
  def flock(descriptor, operation):
    raise OSError(code, "as told")

  monkeypatch.setattr(lock.fcntl, "flock", flock)
  if kept:
    results_file.write(tmp_path, GOOD)
  else:
    with pytest.raises(OSError, match="as told"):
      results_file.write(tmp_path, GOOD)
  assert (tmp_path / "results.json").exists() == kept


@pytest.mark.parametrize("name", ["ndcg_at_10.png", "loss.svg", "training.csv", "report.md"])
def test_a_report_that_fails_leaves_the_old_one(tmp_path, monkeypatch, name):
  output = tmp_path / "report"
  one = write_results(tmp_path / "one", {"A": ("a", (0.5, 0.25))})
  metrics = [write_metrics(tmp_path / "run")]
  report.write_report(output, [one], metrics)
  before = {path.name: path.read_bytes() for path in output.iterdir()}
  two = write_results(tmp_path / "two", {"B": ("b", (0.75, 0.125))})
  fsync = atomic.os.fsync
  written = []

  def full_disk(descriptor):
    place = atomic.os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2]
    written.append(place)
    if place.startswith(f".{name}."):
      raise OSError(errno.ENOSPC, "No space left on device")
    fsync(descriptor)

  monkeypatch.setattr(atomic.os, "fsync", full_disk)
  with pytest.raises(OSError, match="No space left"):
    report.write_report(output, [two], metrics)
  assert {path.name for path in output.iterdir()} == set(before)
  assert (output / "report.md").read_bytes() == before["report.md"] and (output / name).read_bytes() == before[name]
  assert name == "report.md" or not any(place.startswith(".report.md.") for place in written)  # It comes last.


@pytest.mark.parametrize("line", ['{"step": true}', '{"step": "1"}', '{"train/loss": 1}', '{"step": 1, "x": [1]}',
                                  "[1]", '{"step": 1, "x": null}', '{"step": 1, "x": ' + "9" * 400 + "}"])
def test_metrics_of_another_shape(tmp_path, line):
  (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "train/loss": 2.5}}\n{line}\n')
  with pytest.raises(InputError, match=r"metrics.jsonl:2: ") as e:
    report.write_report(tmp_path / "report", [], [tmp_path])
  assert "\n" not in str(e.value) and not (tmp_path / "report").exists()
