"""The hash of a file's content: made once for a file that stays, kept where the next process finds it."""

import hashlib
import json
import os

import pytest

from gtr_jax.io import contents, data_root

SIZE = contents._MOST_UNKEPT + 1


@pytest.fixture
def hashed(tmp_path, monkeypatch):
  """`content_hash` as a new process has it; and the paths that were hashed."""
  data_root.set_data_dir(str(tmp_path / "data"))
  computed, paths = contents._computed, []
  monkeypatch.setattr(contents, "_computed", lambda path: paths.append(path) or computed(path))

  def of(path):
    contents._of_file.cache_clear()
    return contents.content_hash(path)

  yield of, paths
  data_root.set_data_dir(None)
  contents._of_file.cache_clear()


def test_a_file_that_stays_is_hashed_once(hashed, tmp_path):
  of, paths = hashed
  path = tmp_path / "large"
  path.write_bytes(b"a" * SIZE)
  os.utime(path, (1, 1))
  expected = hashlib.sha256(b"a" * SIZE).hexdigest()
  assert [of(path), of(path)] == [expected] * 2 and paths == [str(path)]
  path.write_bytes(b"b" * SIZE)  # Of another time.
  os.utime(path, (2, 2))
  assert of(path) == hashlib.sha256(b"b" * SIZE).hexdigest()
  other = tmp_path / "other"
  other.write_bytes(b"c" * SIZE)
  os.utime(other, (2, 2))
  other.replace(path)  # Of the same time and size, and another file.
  assert of(path) == hashlib.sha256(b"c" * SIZE).hexdigest() and len(paths) == 3
  assert len(list((tmp_path / "data/cache/hashes").iterdir())) == 1


def test_what_has_just_changed_and_what_is_small_is_not_kept(hashed, tmp_path):
  of, paths = hashed
  new, small = tmp_path / "new", tmp_path / "small"
  new.write_bytes(b"a" * SIZE)
  small.write_bytes(b"a")
  os.utime(small, (1, 1))
  for _ in range(2):
    of(new), of(small)
  assert paths == [str(new), str(small)] * 2 and not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", [
    lambda file: file.write_text("{"), lambda file: file.write_text(json.dumps({"sha256": "00"})),
    lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"path": "/another", "sha256": "00"}))])
def test_a_damaged_entry_is_made_anew(hashed, tmp_path, damage):
  of, paths = hashed
  path = tmp_path / "large"
  path.write_bytes(b"a" * SIZE)
  os.utime(path, (1, 1))
  expected = of(path)
  damage(next((tmp_path / "data/cache/hashes").iterdir()))
  assert [of(path), of(path)] == [expected] * 2 and len(paths) == 2


def test_where_nothing_can_be_kept_it_is_hashed_all_the_same(hashed, tmp_path):
  of, paths = hashed
  path = tmp_path / "large"
  path.write_bytes(b"a" * SIZE)
  os.utime(path, (1, 1))
  (tmp_path / "data").write_text("a file in the place of the data root")
  assert of(path) == of(path) and len(paths) == 2
