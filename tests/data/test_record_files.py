"""Records of TFRecord files by their number: TensorFlow's own files, an index that is made once, and damage."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gtr_jax.data import record_files
from gtr_jax.data.record_files import RecordFiles
from gtr_jax.errors import InputError

pytest_plugins = "data_fixtures"


def write(path, records):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)


@pytest.fixture
def files(data_dir):
  rng = np.random.default_rng(0)
  written = [[rng.bytes(int(size)) for size in rng.integers(0, 300, count)] for count in (70, 0, 16, 1)]
  paths = [str(data_dir / f"part-{i}.tfrecord") for i in range(len(written))]
  for path, records in zip(paths, written, strict=True):
    write(path, records)
  return paths, written


def test_any_records_can_be_read(files):
  paths, written = files
  found = RecordFiles(paths, "write it again")
  assert len(found) == 87 and found.block_sizes.tolist() == [16] * 4 + [6, 16, 1]
  everything = sum(written, [])
  assert sum((found.read(block, 0, size) for block, size in enumerate(found.block_sizes)), []) == everything
  assert found.read(1, 3, 7) == everything[19:23] and found.read(4, 5, 6) == everything[69:70]
  name, numbers = found.place(5, 2, 5)
  assert name == "part-2.tfrecord" and numbers.tolist() == [3, 4, 5]
  assert found.num_bytes == sum(map(len, everything)) + 16 * 87


def test_many_records_make_larger_blocks(files, monkeypatch):
  paths, written = files
  monkeypatch.setattr(record_files, "_MOST_BLOCKS", 2)
  found = RecordFiles(paths, "")
  assert found.block_sizes.tolist() == [32, 32, 6, 16, 1]
  assert found.read(1, 17, 31) == written[0][49:63]


def test_the_index_is_made_once_for_the_same_files(files, data_dir, monkeypatch):
  paths, _ = files
  first, scan = RecordFiles(paths, ""), record_files._scan
  monkeypatch.setattr(record_files, "_scan", lambda *_: pytest.fail("made again"))
  again = RecordFiles(paths, "")
  assert again.content == first.content and again.block_sizes.tolist() == first.block_sizes.tolist()
  monkeypatch.setattr(record_files, "_scan", scan)
  index, = (data_dir / "cache" / "indices").iterdir()
  index.write_bytes(index.read_bytes()[:100])
  assert RecordFiles(paths, "").content == first.content
  (data_dir / "moved").mkdir()
  moved = [data_dir / "moved" / f"other-{i}" for i in range(4)]
  for path, place in zip(paths, moved, strict=True):
    shutil.copy(path, place)
  assert RecordFiles(list(map(str, moved)), "").content == first.content
  write(moved[3], [b"another"])
  assert RecordFiles(list(map(str, moved)), "").content != first.content


def test_large_files_are_scanned_in_parts(files, monkeypatch):
  paths, written = files
  monkeypatch.setattr(record_files, "_READ_BYTES", 37)
  found = RecordFiles(paths, "")
  assert found.read(2, 0, 16) == written[0][32:48]


@pytest.mark.parametrize("spoil, message", [
    (lambda data: data[:-1], "part-0.tfrecord: cut off, or no TFRecord file; write it again"),
    (lambda data: b"{" * 100, "part-0.tfrecord: cut off, or no TFRecord file; write it again"),
    (lambda data: data[:-30] + b"?" + data[-29:], "part-0.tfrecord: record 70 is damaged or cut off; write it again"),
])
def test_damage_is_named(files, spoil, message):
  path = Path(files[0][0])
  write(path, files[1][0][:-1] + [b"x" * 50])
  path.write_bytes(spoil(path.read_bytes()))
  with pytest.raises(InputError, match=message):
    RecordFiles([str(path)], "write it again").read(4, 0, 6)


def test_a_damaged_length_is_found(files):
  """By the checksum of what it takes for the record, though the index was made of what was right."""
  path = Path(files[0][0])
  found, data = RecordFiles([str(path)], "write it again"), bytearray(path.read_bytes())
  second = len(files[1][0][0]) + 16
  for byte, value in ((0, data[second] ^ 1), (5, 255)):
    path.write_bytes(data[:second + byte] + bytes([value]) + data[second + byte + 1:])
    with pytest.raises(InputError, match="part-0.tfrecord: record 2 is damaged or cut off; write it again"):
      found.read(0, 0, 3)
