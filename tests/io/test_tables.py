"""Tables in every form and folder give the rows that were written, in parts and whole; what is wrong is one line."""

import bz2
import datetime
import decimal
import gzip
import json
import lzma
from functools import partial

import pyarrow
import pytest
import zstandard
from pyarrow import csv, feather, ipc, parquet

from gtr_jax.errors import InputError
from gtr_jax.io import lines, tables
from gtr_jax.prepare.interface import Counts

ROWS = [{"query": f"query {i}", "positive": f'passage "{i}",\nits second line',
         "negatives": [f"n {i}", "ñ\t"] * (i % 3), "label": i % 2, "score": None if i % 5 == 0 else i / 4,
         "passage": {"title": None if i % 7 == 0 else "t", "text": "x"}} for i in range(2500)]


def write_stream(table, path):
  with pyarrow.OSFile(str(path), "wb") as sink, ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=300)


def write_file(table, path):
  with pyarrow.OSFile(str(path), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=300)


BINARY = {
    "x.parquet": lambda table, path: parquet.write_table(table, path, row_group_size=300),
    "plain.parquet": lambda table, path: parquet.write_table(table, path, row_group_size=300, compression="none",
                                                             use_dictionary=False),
    "stream.arrow": write_stream,
    "file.arrow": write_file,
    "x.feather": lambda table, path: feather.write_feather(table, str(path), compression="lz4"),
    "named.otherwise": lambda table, path: parquet.write_table(table, path),
}


def read(path, **more):
  return list(tables.read_objects(path, **more))


def error(call, *args):
  with pytest.raises(InputError) as e:
    call(*args)
  assert "\n" not in str(e.value)
  return str(e.value)


@pytest.mark.parametrize("name", BINARY)
def test_rows_are_those_written_whole_and_in_parts(tmp_path, monkeypatch, name):
  path = tmp_path / name
  BINARY[name](pyarrow.Table.from_pylist(ROWS), path)
  assert read(path) == [(f"{path}:row {i}", row) for i, row in enumerate(ROWS, 1)]
  monkeypatch.setattr(tables, "PART_BYTES", 1)
  parts = tables.parts(path)
  assert len(parts) == {"named.otherwise": 1, "x.feather": 1}.get(name, 9)
  apart = [list(tables.read_values(part)) for part in reversed(parts)]
  assert [found for of_part in reversed(apart) for found in of_part] == read(path)
  assert parts[0].start == 0 and parts[-1].stop is None
  assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
  assert tables.number_of_rows(path) == len(ROWS)


def test_only_what_is_wanted_is_read(tmp_path):
  """The others are there, so that what they mean is known, but may hold anything."""
  table = pyarrow.table({"query": ["a"], "image": pyarrow.array([b"\xff\xd8"], pyarrow.binary()), "positive": ["b"]})
  for name, write in BINARY.items():
    write(table, tmp_path / name)
    part, = tables.parts(tmp_path / name)
    wanted = lambda names: [name for name in names if name != "image"]  # noqa: E731
    assert [row for _, row in tables.read_values(part, wanted=wanted)] == [
        {"query": "a", "image": None, "positive": "b"}]
    assert list(tables.read_values(part, wanted=lambda names: ())) == [
        (f"{tmp_path / name}:row 1", {"query": None, "image": None, "positive": None})]
    assert error(read, tmp_path / name) == (f"{tmp_path / name}:row 1: column 'image': 2 bytes that are no text in "
                                            "UTF-8; correct or remove the row, or the column")


def test_values_are_those_of_json(tmp_path):
  stamp = datetime.datetime(2020, 1, 2, 3, 4, 5)
  columns = {
      "large": (pyarrow.large_string(), ["é", None], ["é", None]),
      "binary": (pyarrow.binary(), ["é".encode(), b""], ["é", ""]),
      "dictionary": (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["a", "a"], ["a", "a"]),
      "number": (pyarrow.float32(), [0.5, float("nan")], [0.5, None]),
      "half": (pyarrow.float16(), [0.5, 2.0], [0.5, 2.0]),
      "whole": (pyarrow.uint8(), [7, None], [7, None]),
      "truth": (pyarrow.bool_(), [True, False], [True, False]),
      "list": (pyarrow.list_(pyarrow.float64()), [[1.0, float("nan")], []], [[1.0, None], []]),
      "large_list": (pyarrow.large_list(pyarrow.large_string()), [["a"], None], [["a"], None]),
      "structs": (pyarrow.list_(pyarrow.struct({"t": pyarrow.binary()})), [[{"t": b"x"}], []], [[{"t": "x"}], []]),
      "map": (pyarrow.map_(pyarrow.string(), pyarrow.int8()), [[("k", 1)], []], [[["k", 1]], []]),
      "time": (pyarrow.timestamp("ns"), [stamp, None], ["2020-01-02 03:04:05.000000000", None]),
      "date": (pyarrow.date32(), [stamp.date(), None], ["2020-01-02", None]),
      "decimal": (pyarrow.decimal128(5, 2), [decimal.Decimal("1.50"), None], ["1.50", None]),
      "nothing": (pyarrow.null(), [None, None], [None, None]),
  }
  table = pyarrow.table({name: pyarrow.array(given, of) for name, (of, given, _) in columns.items()})
  for name in ("x.parquet", "stream.arrow", "file.arrow"):
    BINARY[name](table, tmp_path / name)
    found = [row for _, row in read(tmp_path / name)]
    assert json.loads(json.dumps(found)) == [
        {column: expected[i] for column, (_, _, expected) in columns.items()} for i in range(2)]
    assert all(type(found[0][column]) is type(expected[0]) for column, (_, _, expected) in columns.items())


def test_broken_rows_are_counted(tmp_path):
  table = pyarrow.table({"query": ["a", "b", "c"], "text": pyarrow.array([b"x", b"\xff", b"y"], pyarrow.binary())})
  parquet.write_table(table, tmp_path / "x.parquet")
  counts, (part,) = Counts(), tables.parts(tmp_path / "x.parquet")
  assert [row["query"] for _, row in tables.read_values(part, counts.broken)] == ["a", "c"]
  assert counts.places == [f"{tmp_path}/x.parquet:row 2: column 'text': 1 bytes that are no text in UTF-8"]
  invalid = pyarrow.table({"text": pyarrow.array([b"x", b"\xff"], pyarrow.binary()).view(pyarrow.string())})
  parquet.write_table(invalid, tmp_path / "y.parquet")
  assert f"{tmp_path}/y.parquet:row 2: column 'text': 'utf-8' codec can't" in error(read, tmp_path / "y.parquet")


PACK = {"": bytes, ".gz": partial(gzip.compress, mtime=0), ".bz2": bz2.compress, ".xz": lzma.compress,
        ".zst": zstandard.compress}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name, separator", [("x.csv", ","), ("x.tsv", "\t"), ("x.csv", ";"), ("x.csv", "\t")])
def test_csv_as_arrow_writes_it(tmp_path, name, separator, ending):
  rows = [{"query": '"a", b;\t', "positive": "2019", "": "1"}, {"query": "l\nm", "positive": '""', "": "2"},
          {"query": "1e5", "positive": "", "": "3"}, {"query": "é", "positive": " x ", "": "4"}]
  written = tmp_path / "written"
  csv.write_csv(pyarrow.Table.from_pylist(rows), written, csv.WriteOptions(delimiter=separator))
  path = tmp_path / f"{name}{ending}"
  path.write_bytes(PACK[ending](b"\xef\xbb\xbf" + written.read_bytes()))
  before = lines.progress.lines
  part, = tables.parts(path)
  assert list(tables.read_values(part)) == [
      (f"{path}:{line}", {"query": row["query"], "positive": row["positive"]})
      for line, row in zip((2, 3, 5, 6), rows, strict=True)]
  assert lines.progress.lines - before == 4  # Neither the names nor the second line of a row.


@pytest.mark.parametrize("text, rows", [
    ('a\tb\n"Hello" she said\tx\n', [('"Hello" she said', "x")]),
    ('a\tb\n"Hello, she said\tx\ny\tz\n', [('"Hello, she said', "x"), ("y", "z")]),
    ('a\tb\n5" disk\t"\n', [('5" disk', '"')]),
    ('a\tb\n"say ""x"""\t"y"\n', [('say "x"', "y")]),
    ('a\tb\r\n"l\r\nm"\tx\r\n\r\n"\t"\tz', [("l\nm", "x"), ("\t", "z")]),
])
def test_quotes_in_tsv(tmp_path, text, rows):
  """Most writers of TSV quote nothing, pandas does."""
  (tmp_path / "x.tsv").write_bytes(text.encode())
  assert [tuple(row.values()) for _, row in read(tmp_path / "x.tsv")] == rows


@pytest.mark.parametrize("text, message", [
    ("how do I undo a commit,git reset --soft HEAD~1 moves the branch back and keeps what was changed\n",
     "x.csv:1: the first line of CSV or TSV names its columns, and this one ('how do I"),
    ("query,0.5\n", "looks like a row"),
    ("1,2019\n", "looks like a row"),
    ('query,"a\nb"\n', "looks like a row"),
    (",\n", "looks like a row"),
    ("a,b,a\n1,2,3\n", "two columns of the name 'a'; rename one"),
    ("a,b\n1\n", "x.csv:2: 1 cells, where the first line names 2 columns; quote a cell that holds ','"),
    ("a,b\n1,2\n1,2,3\n", "x.csv:3: 3 cells"),
    ('a,b\n"x"y,2\n', "x.csv:2: quotes that are not CSV"),
    ('a,b\n1,2\n"x,2\n3,4\n', "x.csv:3: quotes that are not CSV (unexpected end of data)"),
    ("a,b\rc,d\r", "carriage return alone"),
    ("\n\n", "x.csv: no row in it"),
    ("", "x.csv: is empty"),
    ("a,b\n\xe9,2\n".encode("latin-1"), "x.csv:2: not UTF-8"),
    ("a,b\n1,2\n".encode("utf-16"), "UTF-16; convert it to UTF-8: iconv"),
    (b"PAR1" + bytes(8), "x.csv: a Parquet file"),
])
def test_what_is_no_csv(tmp_path, text, message):
  (tmp_path / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
  assert message in error(read, tmp_path / "x.csv")


def test_lines_that_an_open_quote_takes_are_all_broken(tmp_path):
  (tmp_path / "x.csv").write_text('a,b\n1,2\n"x,2\n' + "3,4\n" * 5 + '"y",5\n6,7\n')
  counts, (part,) = Counts(), tables.parts(tmp_path / "x.csv")
  assert [tuple(row.values()) for _, row in tables.read_values(part, counts.broken)] == [("1", "2"), ("6", "7")]
  assert counts.reasons["broken"] == 7


def test_folders_of_datasets(tmp_path):
  """As datasets.Dataset.save_to_disk and DatasetDict.save_to_disk write them."""
  table = pyarrow.Table.from_pylist(ROWS[:700])
  for split, part in (("train", table), ("test", table.slice(0, 9))):
    folder = tmp_path / "all" / split
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for i, name in enumerate(names):
      write_stream(part.slice(i * 400, 400) if split == "train" else part.slice(i * 5, 5), folder / name)
    (folder / "cache-1234.arrow").write_bytes(b"what datasets.map has left")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names],
                                                   "_format_columns": None, "_split": split}))
  (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  assert [row for _, row in read(tmp_path / "all")] == ROWS[:700]
  assert [row for _, row in read(tmp_path / "all" / "test")] == ROWS[:9]
  (tmp_path / "all" / "train").rename(tmp_path / "elsewhere")  # A test set is not trained on unasked.
  assert "without a split 'train'; name the folder of one of its splits (test)" in error(read, tmp_path / "all")
  (tmp_path / "all" / "test" / "state.json").write_text('{"_data_files": ["x.arrow"]}')
  assert "state.json: not as datasets writes it" in error(read, tmp_path / "all" / "test")
  (tmp_path / "all" / "test" / "state.json").write_text("[")
  assert "state.json: not JSON" in error(read, tmp_path / "all" / "test")
  (tmp_path / "all" / "test" / "state.json").write_text('{"_indices_data_files": [{"filename": "i.arrow"}]}')
  assert "flatten_indices()" in error(read, tmp_path / "all" / "test")


def test_folders_and_patterns(tmp_path, monkeypatch):
  folder = tmp_path / "data [1]"
  folder.mkdir()
  (folder / "README.md").write_text("# A dataset\n")
  for i in range(3):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[i * 10:i * 10 + 10]), folder / f"train-0000{i}-of-00003.parquet")
  assert [row for _, row in read(folder)] == ROWS[:30]
  assert [row for _, row in read(tmp_path / "*/train-*.parquet")] == ROWS[:30]
  monkeypatch.chdir(tmp_path)
  assert tables.files("data*/train-0000[01]*") == [f"data [1]/train-0000{i}-of-00003.parquet" for i in range(2)]
  assert "a**b: no such file" in error(tables.files, "a**b")
  assert error(tables.files, "data*/nothing*") == ("data*/nothing*: no such file, nor one of such a name; correct the "
                                                   "path")
  (folder / "test-00000-of-00001.parquet").write_bytes(b"")
  assert error(read, folder) == (f"{folder}: files of several splits (test, train); name those of one, such as "
                                 f"'{folder}/*train*'")
  for file in folder.glob("train*"):
    file.unlink()
  assert error(read, folder) == (f"{folder}: files of the split 'test' alone; if they are meant, name them: "
                                 f"'{folder}/*test*'")
  (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
  assert tables.files("x.jsonl") == ["x.jsonl"] and tables.kind("x.jsonl") == ""
  assert read("x.jsonl") == [("x.jsonl:1", {"a": 1})]
  assert tables.parts("x.jsonl") == [lines.Part("x.jsonl")]
  (tmp_path / "none").mkdir()
  assert error(read, tmp_path / "none").startswith(f"{tmp_path}/none: a folder, where a file was expected")
  (tmp_path / "none" / "data").mkdir()
  (tmp_path / "none" / "data" / "train.csv").write_text("a\n1\n")
  assert error(read, tmp_path / "none").endswith("in it; name its folder data/, or files in it")


def test_a_folder_of_tables_and_json_lines_is_read_whole(tmp_path):
  parquet.write_table(pyarrow.Table.from_pylist([{"a": 1}]), tmp_path / "a.parquet")
  (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
  (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"a": 3}\n', mtime=0))
  assert [row for _, row in read(tmp_path)] == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_page_with_another_checksum(tmp_path):
  path = tmp_path / "x.parquet"
  parquet.write_table(pyarrow.table({"a": ["some text"] * 3 + ["other text"]}), path, compression="none",
                      use_dictionary=False, write_page_checksum=True, write_statistics=False)
  path.write_bytes(path.read_bytes().replace(b"other text", b"Other text", 1))
  assert "Parquet that cannot be read (" in error(read, path) and "fetch it again" in error(read, path)


def cut(share):
  return lambda data: data[:int(len(data) * share)]


@pytest.mark.parametrize("name", ["x.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("damage, message", [
    (cut(0.5), "cannot be read .*: cut off, damaged or of an unknown form; fetch it again"),
    (lambda data: b"", "is empty"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    (lambda data: b"<!DOCTYPE html><html>", "a web page"),
    (partial(gzip.compress, mtime=0), "holds a .gz archive; unpack it"),
    (lambda data: b'{"query": "a"}\n', "no Parquet or Arrow file, as its name says"),
    (lambda data: b"FEA1" + data, "Feather of version 1, which is not read; write it anew"),
])
def test_what_is_damaged(tmp_path, name, damage, message):
  path = tmp_path / name
  BINARY[name](pyarrow.Table.from_pylist(ROWS), path)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(InputError, match=message) as e:
    tables.parts(path)
  assert "\n" not in str(e.value) and str(e.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow"])
@pytest.mark.parametrize("encoded", [False, True])
def test_cut_off_between_two_batches(tmp_path, name, encoded):
  path = tmp_path / name
  columns = {"a": [f"text {i}" for i in range(900)]}
  if encoded:
    columns["a"] = pyarrow.array(columns["a"]).dictionary_encode()
  BINARY[name](pyarrow.table(columns), path)
  assert tables.number_of_rows(path) == len(read(path)) == 900
  with tables._opened(path, "arrow") as f:
    *_, (last, _) = tables._messages(f)
  path.write_bytes(path.read_bytes()[:last])
  for call in (tables.parts, read):
    assert "Arrow that cannot be read (no mark of its end)" in error(call, path)


def test_damage_in_the_middle_is_found_when_it_is_read(tmp_path):
  path = tmp_path / "x.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=300, compression="gzip")
  data = bytearray(path.read_bytes())
  for at in range(len(data) // 3, len(data) // 2):
    data[at] ^= 0xFF
  path.write_bytes(data)
  assert f"{path}: Parquet that cannot be read (" in error(read, path)


def test_tables_without_anything(tmp_path):
  parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), tmp_path / "rows.parquet")
  assert "rows.parquet: a table of no rows; leave it out" in error(tables.parts, tmp_path / "rows.parquet")
  (tmp_path / "shards").mkdir()
  (tmp_path / "rows.parquet").rename(tmp_path / "shards/a.parquet")
  parquet.write_table(pyarrow.table({"a": ["x"]}), tmp_path / "shards/b.parquet")
  assert [row for _, row in read(tmp_path / "shards")] == [{"a": "x"}] and len(tables.parts(tmp_path / "shards")) == 1
  parquet.write_table(pyarrow.table([["x"], ["y"]], ["a", "a"]), tmp_path / "twice.parquet")
  assert "twice.parquet: two columns of the name 'a'; rename one" in error(read, tmp_path / "twice.parquet")
  write_stream(pyarrow.table({}), tmp_path / "x.arrow")
  assert "x.arrow: a table of no rows" in error(tables.parts, tmp_path / "x.arrow")


def test_encrypted(tmp_path):
  (tmp_path / "x.parquet").write_bytes(b"PARE" + bytes(40) + (20).to_bytes(4, "little") + b"PARE")
  assert "encrypted Parquet, which is not read" in error(tables.parts, tmp_path / "x.parquet")


def test_memory_does_not_grow_with_the_file(tmp_path):
  """Neither does it hold a row group of 60 MB at once."""
  text = "x" * 10_000
  with parquet.ParquetWriter(tmp_path / "x.parquet", pyarrow.schema({"text": pyarrow.string()}), compression="none",
                             use_dictionary=False) as writer:
    writer.write_table(pyarrow.table({"text": [f"{i}{text}" for i in range(6_000)]}), row_group_size=6_000)
  part, = tables.parts(tmp_path / "x.parquet")
  most = 0
  for _ in tables.read_values(part):
    most = max(most, pyarrow.total_allocated_bytes())
  assert most < 40 << 20


@pytest.mark.parametrize("name", BINARY)
def test_in_a_bucket(tmp_path, monkeypatch, name):
  """As a stream of bytes, which no memory is mapped to."""
  path = tmp_path / name
  BINARY[name](pyarrow.Table.from_pylist(ROWS), path)
  monkeypatch.setattr(pyarrow, "memory_map", None)
  monkeypatch.setattr(tables, "is_remote", lambda path: True)
  monkeypatch.setattr(tables, "PART_BYTES", 1)
  assert [row for part in tables.parts(path) for _, row in tables.read_values(part)] == ROWS
