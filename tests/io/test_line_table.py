"""Lines of a file by their numbers."""

import concurrent.futures
import gc
import os

import numpy as np
import pytest

from gtr_jax.io import line_table, lines
from gtr_jax.io.line_table import LineTable
from gtr_jax.io.lines import Part

CONTENT = b"\xef\xbb\xbffirst\r\n\nsecond \xe2\x80\xa8 one\n\r\n  \nthird\r\r\n\xef\xbb\xbffourth\nlast, without an end"


def table_of(path):
  """A table of the lines that are not empty, and these."""
  starts, there, position = [], [], 0
  for line in lines.read_lines(Part(str(path))):
    if line.data.strip():
      starts.append(position)
      there.append(line.data)
    position = line.stop
  return LineTable(path, np.asarray([*starts, position])), there


@pytest.fixture(params=["local", "remote"])
def path(request, tmp_path, monkeypatch):
  if request.param == "remote":  # Read as from a bucket.
    monkeypatch.setattr(line_table, "is_remote", lambda path: True)
  (tmp_path / "lines").write_bytes(CONTENT)
  return tmp_path / "lines"


def test_lines_are_those_that_a_reader_gives(path):
  table, there = table_of(path)
  assert len(table) == len(there) == 5
  assert [table[i] for i in range(5)] == there
  assert table[np.int64(2)] == there[2]
  with pytest.raises(IndexError):
    table[5]


def test_a_file_that_has_become_shorter(path):
  table, there = table_of(path)
  with path.open("r+b") as f:
    f.truncate(len(CONTENT) - 3)
  assert table[3] == there[3]
  with pytest.raises(ValueError, match="shorter than it was"):
    table[4]


def test_starts_may_be_mapped_and_threads_share_a_table(tmp_path):
  path, expected = tmp_path / "lines", [b"%d " % i * (i % 50) + b"." for i in range(5000)]
  path.write_bytes(b"".join(line + b"\n" for line in expected))
  np.save(tmp_path / "starts.npy", np.cumsum([0, *(len(line) + 1 for line in expected)]))
  table = LineTable(path, np.load(tmp_path / "starts.npy", mmap_mode="r"))
  order = np.random.default_rng(0).permutation(5000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    assert list(threads.map(table.__getitem__, order)) == [expected[i] for i in order]


def test_another_file_under_the_name_makes_no_difference_and_the_file_is_closed(tmp_path):
  path = tmp_path / "lines"
  path.write_bytes(CONTENT)
  table, there = table_of(path)
  (tmp_path / "other").write_bytes(b"x" * len(CONTENT))
  os.replace(tmp_path / "other", path)
  assert table[1] == there[1]

  def opened():
    return sum(os.path.realpath(f"/proc/self/fd/{n}").startswith(str(tmp_path)) for n in os.listdir("/proc/self/fd"))

  assert opened() == 1
  del table
  gc.collect()
  assert opened() == 0


def test_a_bucket_is_asked_for_some_lines_and_then_for_all(tmp_path, monkeypatch):
  """A request for each line would take days for a corpus; nothing is left of the copy."""
  monkeypatch.setattr(line_table, "is_remote", lambda path: True)
  monkeypatch.setattr(line_table.tempfile, "tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  path = tmp_path / "lines"
  path.write_bytes(b"".join(b"%03d\n" % i for i in range(1000)))
  table = LineTable(path, np.arange(0, 4001, 4))
  asked = list(range(0, 1000, 10))
  assert [int(table[i]) for i in asked] == asked
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda i: int(table[i]), range(1000))) == list(range(1000))
  path.unlink()
  assert table[999] == b"999" and not os.listdir(tmp_path / "temporary")
