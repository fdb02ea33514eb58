"""The same faults of files, handed to everything that reads lines: one line each, with the file and what to do."""

import bz2
import gzip
import json
import os
import re
import shlex
import zlib
from functools import partial

import numpy as np
import pyarrow
import pytest
from etils import epath
from pyarrow import parquet

from gtr_jax.collections.corpus import read_corpus
from gtr_jax.collections.qrels import read_qrels
from gtr_jax.collections.queries import read_queries
from gtr_jax.data.json_examples import Fields, read_examples
from gtr_jax.errors import InputError
from gtr_jax.io import jsonl
from gtr_jax.io.lines import Part
from gtr_jax.mining import pairs
from gtr_jax.prepare.interface import Counts
from gtr_jax.prepare.passages import open_table
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.retrieval.runs import read_run
from gtr_jax.training.writers import JsonlWriter

ROW = {"_id": "1", "title": "t", "text": "a b", "query": "q", "positive": "p", "step": 1}
LINE = json.dumps(ROW).encode() + b"\n"


def prepared(path):
  source = PairsJsonl((str(path),), ("query",), ("positive",))
  counts = Counts()
  rows = [row for part in source.parts() for row in source.read(part, counts)]
  if counts.places:
    raise InputError(counts.places[0])
  return rows


def training_examples(path):
  return list(read_examples(Part(str(path)), Fields(("query",), ("positive",))))


READERS = {
    "corpus": lambda path: read_corpus(path).documents.full_texts()[:],
    "queries": read_queries,
    "train": training_examples,
    "mine": lambda path: list(pairs.read_pairs(path, pairs.Fields(("query",), ("positive",)))),
    "prepare": prepared,
    "passages": lambda path: open_table(str(path), f"{path}-cache").get("1"),
    "objects": lambda path: list(jsonl.read_objects(path)),
}


def damaged(data):
  """Two bytes flipped in the deflate stream, at the first place from the middle on that breaks its code."""
  whole = gzip.compress(data, mtime=0)
  for at in range(len(whole) // 2, len(whole) - 9):
    packed = bytearray(whole)
    packed[at:at + 2] = packed[at] ^ 0xFF, packed[at + 1] ^ 0xFF
    try:
      gzip.decompress(bytes(packed))
    except zlib.error:
      return bytes(packed)
    except gzip.BadGzipFile:
      continue
  raise AssertionError("no such place")


def table():
  sink = pyarrow.BufferOutputStream()
  parquet.write_table(pyarrow.table({"query": ["a"]}), sink)
  return sink.getvalue().to_pybytes()


MANY = b"".join(json.dumps(ROW | {"_id": str(i), "text": f"{i * i * 7919} text"}).encode() + b"\n" for i in range(400))
FAULTS = {
    "flipped-bytes": ("x.jsonl.gz", damaged(MANY), "the archive is damaged .*; fetch it again"),
    "cut-off-gzip": ("x.jsonl.gz", gzip.compress(MANY, mtime=0)[:-300], "the archive is cut off .*; fetch it again"),
    "nested": ("x.jsonl", b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "nested too deeply"),
    "nested-list": ("x.jsonl", b"[" * 200_000 + b"\n", "nested too deeply"),
    "digits": ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "a number of more than 4,300 digits"),
    "not-utf8": ("x.jsonl", LINE + "é".encode("latin-1") + b"\n", r"(x.jsonl:2: )?.*not UTF-8 .*iconv"),
    "utf-16": ("x.jsonl", LINE.decode().encode("utf-16"), "UTF-16; convert it to UTF-8: iconv"),
    "zeros": ("x.jsonl", bytes(600), "nothing but zero bytes, .*; fetch it again"),
    "twice": ("x.jsonl", LINE[:-2] + b', "text": "c"}\n', 'an object that has "text" twice'),
    "utf-16-without-mark": ("x.jsonl", LINE.decode().encode("utf-16-le"), "UTF-16 without a mark"),
    "gzip-without-gz": ("x.jsonl", gzip.compress(LINE, mtime=0), "holds a .gz archive.*; rename it to x.jsonl.gz"),
    "text-named-gz": ("x.jsonl.gz", LINE, "is plain text, not compressed as its name says; rename it to x.jsonl"),
    "bz2-named-gz": ("x.jsonl.gz", bz2.compress(LINE), "holds a .bz2 archive.*; rename it to x.jsonl.bz2"),
    "gzip-in-gzip": ("x.jsonl.gz", gzip.compress(gzip.compress(LINE, mtime=0), mtime=0), "unpack it once"),
    "parquet": ("x.jsonl", table(), "a Parquet file, where lines of text are expected; write it as JSON lines: python"),
    "sqlite": ("x.jsonl", b"SQLite format 3\0" + bytes(84), "an SQLite database"),
    "zip": ("x.jsonl", b"PK\3\4" + bytes(60), "holds a .zip archive, which is not read; unpack it"),
    "binary": ("x.jsonl", bytes(range(1, 64)) + b"\0\1", "binary data"),
    "web-page": ("x.jsonl", b"<!DOCTYPE html>\n<html></html>\n", "a web page"),
    "lfs-pointer": ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
    "array": ("x.jsonl", b"[\n" + LINE.strip() + b"\n]\n", "a JSON array; write one object a line: jq -c"),
    "array-on-a-line": ("x.jsonl", b"[" + LINE.strip() + b"]\n", "a JSON array; write one object a line: jq -c"),
    "old-mac": ("x.jsonl", LINE.replace(b"\n", b"\r") * 2, "carriage return alone"),
    "over-lines": ("x.jsonl", json.dumps(ROW, indent=1).encode() + b"\n", "JSON over several lines.*jq -c"),
    "csv": ("x.jsonl", b"query,positive\na,b\n", "CSV.*read_csv"),
    "null": ("x.jsonl", b'{"_id": null, "query": null, "positive": null, "text": null}\n', "null"),
    "empty": ("x.jsonl", b"", "is empty"),
    "cut-off": ("x.jsonl", LINE + LINE[:-9].replace(b'"1"', b'"2"'), "x.jsonl:2: .*cut off"),
}


def error(call, path):
  with pytest.raises(InputError) as e:
    call(path)
  assert "\n" not in str(e.value) and path.name in str(e.value)
  return str(e.value)


@pytest.mark.parametrize("name, command", [
    ("my pairs.json", "jq -c '.[]' '{0}/my pairs.json' > '{0}/my pairs.jsonl'"),
    ("x.jsonl", "jq -c '.[]' {0}/x.jsonl > {0}/x.lines.jsonl"),
    ("x.json.gz", "gzip -dc {0}/x.json.gz | jq -c '.[]' > {0}/x.jsonl")])
def test_the_command_for_an_array_is_whole(tmp_path, name, command):
  data = b"[" + LINE.strip() + b"]\n"
  (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
  with pytest.raises(InputError) as e:
    list(jsonl.read_objects(tmp_path / name))
  assert str(e.value) == (f"{tmp_path / name}:1: a JSON array; write one object a line: " + command.format(tmp_path))


@pytest.mark.parametrize("name, data, what, call", [
    ("my pairs.csv", b'question,answer\n"a, b",c\n', "this is CSV: ", "read_csv(\"{0}/my pairs.csv\")"),
    ("it's.csv.gz", b"question,answer\na,b\n", "this is CSV: ", "read_csv(\"{0}/it's.csv.gz\")"),
    ("x.jsonl", b"question,answer\na,b\n", "if this is CSV, ", 'read_csv("{0}/x.jsonl")'),
    ("x.tsv", b"question\tanswer\na, b\tc\n", "this is TSV: ", 'read_csv("{0}/x.tsv", sep="\\t")'),
    ("x.txt", b"question\tanswer\na, b\tc\n", "if this is TSV, ", 'read_csv("{0}/x.txt", sep="\\t")'),
    ("x.parquet", table(), "a Parquet file, where lines of text are expected; ", 'read_parquet("{0}/x.parquet")'),
    ("x.xlsx", b"PK\3\4" + bytes(60), "an Excel file, where lines of text are expected; ", 'read_excel("{0}/x.xlsx")')])
def test_the_command_for_a_table_is_whole(tmp_path, name, data, what, call):
  """It is Python that a shell hands on as it is."""
  (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
  said = error(READERS["train"], tmp_path / name)  # Others read most tables.
  assert f"{what}write it as JSON lines: python -c " in said
  _, _, command = said.partition("JSON lines: ")
  program, flag, code = shlex.split(command.partition(" (with header=None where no line of names ")[0])
  new = tmp_path / ("x.lines.jsonl" if name == "x.jsonl" else name.partition(".")[0] + ".jsonl")
  assert (program, flag, code) == ("python", "-c", f'import pandas; pandas.{call.format(tmp_path)}.to_json("{new}", '
                                                   'orient="records", lines=True)')
  compile(code, "code", "exec")


def test_prose_is_no_table(tmp_path):
  (tmp_path / "x.txt").write_text("Once, long ago,\nthere was\n")
  assert "CSV" not in error(READERS["prepare"], tmp_path / "x.txt")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_one_line_for_each_fault(tmp_path, reader, fault):
  name, content, message = FAULTS[fault]
  if fault == "null" and reader == "objects":
    return  # It asks for no field.
  if reader == "passages":
    if fault == "not-utf8":
      return  # It takes up to nine broken lines.
    if "array" in fault or fault == "nested-list":
      message = "broken"  # It takes anything but JSON objects for TSV.
  if fault == "parquet" and reader not in ("train", "objects"):  # They read it, whatever its name.
    message = "x.jsonl:row 1: .*no .*(positive|_id|kind that is known)"
  path = tmp_path / name
  path.write_bytes(content)
  said = error(READERS[reader], path)
  assert re.search(message, said), said


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"passages", "prepare"}))  # Those count broken lines.
def test_a_damaged_archive_is_not_blamed_on_a_line(tmp_path, reader):
  """What is damaged far behind has lines of garbage before."""
  path = tmp_path / "x.jsonl.gz"
  path.write_bytes(gzip.compress(b"\xff\n" + (b" " * 99 + b"\n") * 30_000, mtime=0) + damaged(MANY))
  assert "the archive is damaged" in error(READERS[reader], path)


def test_a_broken_line_with_a_carriage_return_is_one_of_many(tmp_path):
  """`prepare` counts it, and does not take the file for one of an old Mac."""
  (tmp_path / "x.jsonl").write_bytes(LINE + b'{"query": "a\rb"\n' + LINE)
  counts = Counts()
  found = list(jsonl.read_values(jsonl.Part(str(tmp_path / "x.jsonl")), counts.broken))
  assert len(found) == 2 and counts.reasons["broken"] == 1


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(tmp_path, reader):
  (tmp_path / "folder").mkdir()
  os.mkfifo(tmp_path / "pipe")
  for name, message in (("nothing", "no such file"), ("folder", "a folder"), ("pipe", "a pipe or a device")):
    assert message in error(READERS[reader], tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("ending, pack", [
    ("", bytes), (".gz", partial(gzip.compress, mtime=0)), (".bz2", bz2.compress)], ids=["plain", "gz", "bz2"])
def test_what_is_whole_is_read(tmp_path, reader, ending, pack, monkeypatch):
  """Also with a byte order mark, with empty lines, with the line ends of Windows, and by a path below ~."""
  content = b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") + b"\r\n" + LINE.replace(b'"1"', b'"2"').rstrip()
  (tmp_path / f"x.jsonl{ending}").write_bytes(pack(content))
  found = READERS[reader](tmp_path / f"x.jsonl{ending}")
  assert found is not None and len(found) >= 2
  monkeypatch.setenv("HOME", str(tmp_path))
  assert READERS[reader](epath.Path(f"~/x.jsonl{ending}")) is not None


@pytest.mark.parametrize("fault", ["flipped-bytes", "text-named-gz", "parquet", "not-utf8", "lfs-pointer"])
def test_judgements_and_runs(tmp_path, fault):
  name, content, message = FAULTS[fault]
  path = tmp_path / name
  path.write_bytes(content)
  for call in (lambda path: read_qrels(path, {"q"}, {"d"}), read_run):
    said = error(call, path)
    if fault == "parquet" and call is not read_run:
      assert "x.jsonl:row 1: columns query; call those of" in said
    elif fault != "not-utf8":
      assert re.search(message, said), said


@pytest.mark.parametrize("content, kept", [
    (b"", 0), (b'{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2), (b'{"step": 1}\n{"step": 2', 1), (b'{"st', 0)],
    ids=["empty", "later-steps", "cut-off", "cut-off-at-once"])
def test_metrics_go_on(tmp_path, content, kept):
  (tmp_path / "metrics.jsonl").write_bytes(content)
  writer = JsonlWriter(tmp_path / "metrics.jsonl", step=2)
  writer.write(3, {"loss": 1.0})
  writer.close()
  assert len(list(jsonl.read_objects(tmp_path / "metrics.jsonl"))) == kept + 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("line", [b'{"step": "1"}', b'["step"]', b'{"step": true}', b'{"step": null}', b'{"step": 1',
                                  b"[" * 200_000, b'{"step": ' + b"9" * 5000 + b"}", b"\xff"],
                         ids=["text", "list", "true", "null", "cut", "nested", "digits", "latin-1"])
def test_lines_that_are_no_metrics(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
  before = path.read_bytes()
  assert "metrics.jsonl:2: not a line of metrics" in error(lambda path: JsonlWriter(path, step=9), path)
  assert path.read_bytes() == before


@pytest.mark.parametrize("value, text", [
    (" ", ""), ("\t", ""), (2.0**52, str(2**52)), ("a", "a"), ("1", "1"),
    (1, "1"), (1.0, "1"), (-3.0, "-3"), (0, "0"), (10**20, "1" + "0" * 20), (None, ""),
    ("", "")], ids=repr)
def test_ids(value, text):
  assert jsonl.identifier(value) == text


@pytest.mark.parametrize("value", [
    2.0**53, -2.0**60, True, False, 1.5, [], ["a"], {}, {"a": 1}, float("nan"), float("inf")], ids=repr)
def test_what_is_no_id(value):
  with pytest.raises(ValueError, match="is no id"):
    jsonl.identifier(value)


def test_ids_that_numpy_wrote_as_numbers(tmp_path):
  """1.0 beside 1, as a table with an empty cell writes it."""
  rows = [{"_id": float(i) if i % 2 else i, "text": f"text {i}"} for i in range(4)]
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert read_corpus(tmp_path / "x.jsonl").documents.ids == ["0", "1", "2", "3"]
  assert read_queries(tmp_path / "x.jsonl")[0] == [str(i) for i in np.arange(4)]
