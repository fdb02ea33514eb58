"""Files in a bucket, where nothing can be renamed and what is written cannot seek; here folders stand for it."""

import errno
import os

import numpy as np
import pytest

from gtr_jax.io import atomic


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(atomic, "is_remote", lambda path: True)
  monkeypatch.setattr(atomic.tempfile, "tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  (tmp_path / "bucket").mkdir()
  return tmp_path / "bucket"


def test_arrays(bucket):
  """Their archives seek."""
  with atomic.replacing(bucket / "arrays.npz") as file:
    np.savez(file, a=np.arange(3), b=np.ones(2))
    assert not os.listdir(bucket)
  with np.load(bucket / "arrays.npz") as arrays:
    assert arrays["a"].tolist() == [0, 1, 2]
  assert not os.listdir(bucket.parent / "temporary")


def test_text(bucket):
  for text in ("früher\n", "später\n"):
    with atomic.replacing(bucket / "text", "w") as file:
      file.write(text)
  assert (bucket / "text").read_text(encoding="utf-8") == "später\n"


def test_nothing_comes_of_what_fails(bucket):
  """An object that is closed early would look whole."""
  (bucket / "file").write_bytes(b"before")
  with pytest.raises(KeyboardInterrupt), atomic.replacing(bucket / "file") as file:
    file.write(b"half of")
    raise KeyboardInterrupt
  assert (bucket / "file").read_bytes() == b"before" and os.listdir(bucket) == ["file"]
  assert not os.listdir(bucket.parent / "temporary")


def test_the_disk_that_is_full_is_named(bucket):
  """It is this machine's."""
  with pytest.raises(OSError, match="temporary") as error, atomic.replacing(bucket / "file"):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert error.value.filename == str(bucket.parent / "temporary") and not os.listdir(bucket)
