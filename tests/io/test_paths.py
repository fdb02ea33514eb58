"""Paths as users give them."""

import os

import pytest

from gtr_jax.errors import InputError
from gtr_jax.io import atomic
from gtr_jax.io.paths import absolute, location


def test_home_folders(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert os.fspath(location("~/a b")) == f"{tmp_path}/a b" and os.fspath(location("~")) == str(tmp_path)
  assert os.fspath(location("a/~/b")) == "a/~/b" and os.fspath(absolute("~/x")) == f"{tmp_path}/x"
  monkeypatch.chdir(tmp_path)
  (tmp_path / "~copy_of_mine").touch()
  assert os.fspath(location("~copy_of_mine")) == "~copy_of_mine"  # It is there.
  assert location("./~new").name == "~new"
  with pytest.raises(InputError, match="~nobody_of_this_name/x: there is no user .*write ./~nobody_of_this_name/x"):
    location("~nobody_of_this_name/x")


@pytest.mark.parametrize("path, message", [
    ("", "the path is empty"), (" ", "the path is empty"), ("a\0b", "NUL"), ("s3://a/b", "copy it to this machine"),
    ("file:///a", "without file://"), ("GS://a", "small letters"), ("gs:/a", "two slashes")],
    ids=["empty", "blank", "nul", "s3", "file", "upper", "one-slash"])
def test_what_is_no_path(path, message):
  with pytest.raises(InputError, match=message):
    location(path)


def test_what_is_no_place_for_a_file(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for place, message in ((tmp_path, "a folder; name the file"), (tmp_path / "pipe", "a pipe or a device"),
                         ("/dev/null", "a pipe or a device")):
    with pytest.raises(InputError, match=message):
      atomic.write_text(place, "x")
  assert not os.path.isfile("/dev/null") and [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
  atomic.write_text(tmp_path / "new/folder/file", "old")
  (tmp_path / "link").symlink_to(tmp_path / "new/folder/file")
  with pytest.raises(RuntimeError), atomic.replacing(tmp_path / "link") as file:
    file.write(b"half")
    raise RuntimeError
  assert (tmp_path / "link").read_text() == "old" and len(list((tmp_path / "new/folder").iterdir())) == 1
  atomic.write_text(tmp_path / "link", "new")
  assert (tmp_path / "link").is_symlink() and (tmp_path / "new/folder/file").read_text() == "new"
  atomic.write_json(tmp_path / "a.json", {"path": "\udcff", "é": 1})
  assert atomic.json.loads((tmp_path / "a.json").read_text()) == {"path": "\udcff", "é": 1}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
  kept = [".x.tmp", ".x.1.tmp", f".x.{atomic.HOST}-{os.getpid()}-0.tmp", f".y.{atomic.HOST}-999999999-0.tmp", "x.tmp",
          ".x.other_host-999999999-0.tmp", f".x.{atomic.HOST}-999999999-0.tmp.old"]
  for name in (*kept, f".x.{atomic.HOST}-999999999-0.tmp"):
    (tmp_path / name).touch()
  atomic.write_text(tmp_path / "x", "x")
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "x"])


def test_a_new_folder(tmp_path):
  with atomic.new_folder(tmp_path / "a/b") as new:
    (new / "file").write_text("x")
    assert not (tmp_path / "a/b").exists()
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
  with pytest.raises(InputError, match="b: exists; choose another folder"), atomic.new_folder(tmp_path / "a/b") as new:
    (new / "file").write_text("y")
  with atomic.new_folder(tmp_path / "a/b", same=lambda: True) as new:
    (new / "file").write_text("y")
  with pytest.raises(RuntimeError), atomic.new_folder(tmp_path / "a/c"):
    raise RuntimeError
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"] and (tmp_path / "a/b/file").read_text() == "x"
