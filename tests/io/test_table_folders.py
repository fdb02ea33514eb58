"""Which files of a folder, or of a pattern, are one table; and what is said of names and lines that are none."""

import json

import pyarrow
import pytest
from pyarrow import ipc

from gtr_jax.errors import InputError
from gtr_jax.io import jsonl, tables


def error(call, *args):
  with pytest.raises(InputError) as e:
    call(*args)
  assert "\n" not in str(e.value)
  return str(e.value)


def shard(folder, number, count=3, name="train-{:05}-of-{:05}.jsonl"):
  folder.mkdir(exist_ok=True)
  path = folder / name.format(number, count)
  path.write_text(json.dumps({"a": number}) + "\n")
  return str(path)


def test_a_shard_that_is_missing(tmp_path):
  folder = tmp_path / "data"
  first = shard(folder, 0)
  message = (f"{folder}/train-00001-of-00003.jsonl: no such file, but train-00000-of-00003.jsonl says that there are "
             "3; fetch it, or name the files that are meant")
  assert error(tables.files, folder) == error(tables.files, f"{folder}/*") == message
  assert error(tables.files, f"{folder}/train-*.jsonl") == message
  assert tables.files(f"{folder}/train-00000-*") == tables.files(first) == [first]  # Those are meant.
  every = [first, *(shard(folder, number) for number in (1, 2))]
  other = shard(folder, 0, 1, "more-{:05}-of-{:05}.jsonl")
  assert tables.files(folder) == sorted([*every, other])
  second = tmp_path / "data2"
  shard(second, 1)
  assert error(tables.files, f"{tmp_path}/data*/train*").startswith(f"{second}/train-00000-of-00003.jsonl: no such")


@pytest.mark.parametrize("name", ["train_{:05}_of_{:05}.jsonl", "{:05}-of-{:05}.jsonl", "train.{:05}-of-{:05}.jsonl"])
def test_other_ways_to_number_shards(tmp_path, name):
  folder = tmp_path / "data"
  every = [shard(folder, number, name=name) for number in (0, 2)]
  assert f"{folder}/{name.format(1, 3)}: no such file" in error(tables.files, folder)
  every.append(shard(folder, 1, name=name))
  assert tables.files(folder) == sorted(every)


def test_a_number_of_something_else(tmp_path):
  (tmp_path / "week-1-of-2019.jsonl").write_text('{"a": 1}\n')
  assert tables.files(tmp_path) == [str(tmp_path / "week-1-of-2019.jsonl")]


def test_shards_that_are_numbered_from_one(tmp_path):
  folder = tmp_path / "data"
  every = [shard(folder, number, 2) for number in (1, 2)]
  assert tables.files(folder) == every
  shard(folder, 3, 3, "more-{:05}-of-{:05}.jsonl")
  assert "more-00001-of-00003.jsonl: no such file" in error(tables.files, folder)


def test_shards_with_a_hash_of_their_own(tmp_path):
  """As the hub had them before 2024."""
  folder = tmp_path / "data"
  every = [shard(folder, i, 2, f"train-{{:05}}-of-{{:05}}-{of}.jsonl") for i, of in enumerate(("1b3da2d0dc0e0a07",
                                                                                            "9f8e7d6c5b4a3210"))]
  assert tables.files(folder) == tables.files(f"{folder}/train-*") == every
  shard(folder, 1, 2, "test-{:05}-of-{:05}-00ff00ff00ff00ff.jsonl")
  assert f"{folder}/test-00000-of-00002-….jsonl: no such file" in error(tables.files, f"{folder}/*")


def test_what_datasets_wrote_without_its_state(tmp_path):
  table = pyarrow.table({"a": [1]})
  with ipc.new_stream(tmp_path / "data-00000-of-00002.arrow", table.schema) as writer:
    writer.write_table(table)
  assert "data-00001-of-00002.arrow: no such file" in error(tables.parts, tmp_path)


def test_endings_in_capitals(tmp_path):
  for name, of in (("x.CSV", "csv"), ("y.Tsv", "tsv")):
    (tmp_path / name).write_text("a\tb\n1\t2\n")
    assert tables.kind(tmp_path / name) == of
  assert [row for path in tables.files(tmp_path) for part in tables.parts(path) for _, row in tables.read_values(part)
          ] == [{"a": "1", "b": "2"}] * 2
  assert tables.looks_like_a_file("X.JSONL")
  (tmp_path / "z.PARQUET").write_text("{}")
  assert "no Parquet or Arrow file, as its name says" in error(tables.kind, tmp_path / "z.PARQUET")


def test_folders_of_splits(tmp_path):
  for split in ("test", "train", "validation"):
    shard(tmp_path / split, 0, 1)
  assert error(tables.files, tmp_path).endswith(
      "in it; name one of its folders, train/, test/, validation/, or files in it")


@pytest.mark.parametrize("text, message", [
    ("hi", ":1: not JSON (Expecting value at column 1); each line must be one JSON object: correct or remove the line"),
    ('{"a": "b', ':1: not JSON (Unterminated string starting at column 7), and no line end: the file is cut off; fetch '
     "it again, or remove the line"),
    ('{"a": "b\n', ":1: not JSON (Unterminated string starting at column 7); each line must be one JSON object: "
     "correct or remove the line"),
    ('{"a": "\t"}\n', ":1: not JSON (Invalid control character at column 8); each line must be one JSON object: "
     "correct or remove the line"),
    ('{"a": 1, "a": 2}', ':1: an object that has "a" twice; each line must be one JSON object: correct or remove the '
     "line"),
    ('{"a": {"b": 1, "b": 1}}\n', ':1: an object that has "b" twice; each line must be one JSON object: correct or '
     "remove the line")])
def test_lines_that_are_none(tmp_path, text, message):
  (tmp_path / "x.jsonl").write_text(text)
  assert error(list, jsonl.read_objects(tmp_path / "x.jsonl")) == f"{tmp_path}/x.jsonl{message}"
