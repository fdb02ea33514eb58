"""Preparing where the disk refuses, and in folders that others have made: nothing is lost, and one line says why."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import toy_source
from test_prepare_engine import contents, data, prepare  # noqa: F401
from toy_source import ToySource, write

from gtr_jax.collections import beir, download
from gtr_jax.demo import run
from gtr_jax.errors import InputError
from gtr_jax.prepare import buckets, engine, records, seven_zip, workers
from gtr_jax.prepare.interface import RetryableError


@pytest.fixture
def source(tmp_path):
  return ToySource((write(tmp_path / "a.jsonl", toy_source.rows(300)),), joins=True)


@pytest.mark.parametrize("name", ["notes.txt", "read/notes.txt", "description.json", ".hidden", "new/train.jsonl"])
def test_a_work_folder_that_is_another_s_is_left_alone(data, source, name):  # noqa: F811
  path = data / "toy.tmp" / name
  path.parent.mkdir(parents=True)
  path.write_text('{"mine": 1}')
  with pytest.raises(InputError, match=r"toy.tmp: gtr-jax prepare works in a folder of this name, and this one is not"):
    prepare(source)
  assert path.read_text() == '{"mine": 1}' and not (data / "toy").exists()
  assert sum(path.is_file() for path in data.rglob("*")) == 1


def test_a_file_in_its_place_is_left_alone(data, source):  # noqa: F811
  data.mkdir()
  (data / "toy.tmp").write_text("mine")
  with pytest.raises(InputError, match="toy.tmp: a file, where work in progress goes"):
    prepare(source)
  assert (data / "toy.tmp").read_text() == "mine"


def test_what_others_have_put_into_its_work_folder_stays(data, source, monkeypatch):  # noqa: F811
  with monkeypatch.context() as patch:
    patch.setattr(engine, "_finish", refuse)
    with pytest.raises(OSError):
      prepare(source)
  (data / "toy.tmp/notes.txt").write_text("mine")
  other = prepare(ToySource(source.paths))  # Of other settings: it begins anew.
  assert contents(other) and [path.name for path in (data / "toy.tmp").iterdir()] == ["notes.txt"]


def refuse(*args, **kwargs):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("owner, name", [(buckets.Writer, "_write"), (buckets.Writer, "close"), (engine.Job, "commit"),
                                         (records, "write_record"), (engine.manifests, "write")])
def test_on_a_full_disk_what_is_done_is_kept_and_nothing_half_written(data, source, monkeypatch, owner, name):  # noqa: F811
  reference = contents(prepare(source))
  shutil.rmtree(data / "toy")
  function, calls = getattr(owner, name), []

  def full(*args, **kwargs):
    calls.append(1)
    if len(calls) > (2 if owner is not engine.manifests else 0):
      refuse()
    return function(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(buckets, "_MEMORY", 1000)
    patch.setattr(owner, name, full)
    with pytest.raises(OSError if owner is engine.manifests else RetryableError) as e:
      prepare(source)
  if owner is not engine.manifests:
    assert "No space left on device; check the room" in str(e.value) and "\n" not in str(e.value)
    assert str(e.value).endswith("then run it again, and it goes on")
  assert not [path for path in data.rglob("*.tmp") if path != data / "toy.tmp"] and not (data / "toy").exists()
  assert contents(prepare(source)) == reference


def test_a_real_full_disk(data, source):  # noqa: F811
  """A limit of the size of files, in the workers too."""
  import resource
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
  try:
    with pytest.raises(RetryableError,
                       match=r"toy.tmp/read/[0-9a-f]{32}.(values|pairs): File too large; raise the limit of a"):
      prepare(source, processes=2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not [path for path in data.rglob("*.tmp") if path != data / "toy.tmp"]
  assert contents(prepare(source))


@pytest.mark.parametrize("number", [1, 2])
def test_workers_say_what_was_refused(number):
  tasks = [workers.Task(i, f"task {i}") for i in range(2)]
  with pytest.raises(RetryableError, match="No space left on device; check the room .*, and it goes on"):
    list(workers.run(refuse, tasks, number, lambda n: None))


def test_the_demo_moves_aside_what_a_demo_has_made(tmp_path):
  folder = tmp_path / "demo"
  run._begin(folder)
  for name in ("gtr_pt/checkpoints", "results", "longer/checkpoints", "data/mine", "data/pydoc"):
    (folder / name).mkdir(parents=True)
    (folder / name / "file").write_text("x")
  (folder / "data/pydoc/finetune_hard_negatives.jsonl").write_text("x")
  run._begin(folder)
  assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
      "made_by_gtr_jax_demo", "longer/checkpoints/file", "data/mine/file", "data/pydoc/file",
      "earlier-1/gtr_pt/checkpoints/file", "earlier-1/results/file",
      "earlier-1/data/pydoc/finetune_hard_negatives.jsonl"}


@pytest.mark.parametrize("make, message", [
    (lambda folder: folder.write_text("mine"), "is no folder"),
    (lambda folder: folder.symlink_to("nowhere"), "is no folder"),
    (lambda folder: (folder / "gtr").mkdir(parents=True), "not empty, and no demo made it"),
    (lambda folder: (folder / "made_by_gtr_jax_demo").mkdir(parents=True), "not empty, and no demo made it"),
    (lambda folder: (run._begin(folder), (folder / "gtr").symlink_to(folder.parent)), "gtr: a link, where the demo"),
])
def test_the_demo_refuses_what_is_not_its_own(tmp_path, make, message):
  folder = tmp_path / "demo"
  make(folder)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(InputError, match=message):
    run._begin(folder)
  assert sorted(tmp_path.rglob("*")) == before


def test_the_demo_takes_an_empty_folder_and_a_link_to_one(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "link").symlink_to("empty")
  run._begin(tmp_path / "link")
  assert (tmp_path / "link").is_symlink() and len(list((tmp_path / "empty").iterdir())) == 1


def test_a_download_leaves_folders_of_others_alone(tmp_path):
  path = tmp_path / ".scifact.tmp" / "notes.txt"
  path.parent.mkdir()
  path.write_text("mine")
  with pytest.raises(InputError, match=r"\.scifact\.tmp: downloads go into a folder of this name, and this one is not"):
    download.download(beir.SETS["nano-beir/scifact"], tmp_path / "scifact")
  assert path.read_text() == "mine"


def test_a_mark_of_an_earlier_version_is_one(data, source):  # noqa: F811
  (data / "toy.tmp/read").mkdir(parents=True)
  (data / "toy.tmp/description.json").write_text(json.dumps({"format": 2, "fingerprint": "x"}))
  (data / "toy.tmp/read/000000.pairs.123.tmp").write_text("half")
  assert Path(prepare(source)) == data / "toy" and not (data / "toy.tmp").exists()


@pytest.mark.parametrize("number, error, message", [
    (errno.EIO, RetryableError, "Input/output error; check the disk"),
    (errno.EINVAL, InputError, "is cut off or damaged"),
    (None, InputError, "is cut off or damaged")])
def test_an_archive_on_a_disk_that_fails_is_not_called_damaged(tmp_path, monkeypatch, number, error, message):
  py7zr = pytest.importorskip("py7zr")
  with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
    archive.writestr("line\n", "Posts.xml")

  def fail(self, *args, **kwargs):
    raise OSError(number, "x") if number is None else OSError(number, os.strerror(number))

  monkeypatch.setattr(py7zr.SevenZipFile, "extract", fail)
  with pytest.raises(error, match=message) as e:
    list(seven_zip.read_lines(str(tmp_path / "a.7z"), "Posts.xml"))
  assert str(tmp_path / "a.7z") in str(e.value) and isinstance(e.value, RetryableError) == (error is RetryableError)
