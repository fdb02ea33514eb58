"""Files of lines: whole, in byte ranges, compressed, cut off, and such as are something else."""

import bz2
import gzip
import json
import lzma
import os
from functools import partial

import pytest
import toy_source
import zstandard

from gtr_jax.errors import InputError
from gtr_jax.io import jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts


def read(path):
  """(values of the JSON lines, counts)."""
  counts = Counts()
  return [value for _, value in jsonl.read_values(Part(str(path)), counts.broken)], counts


LONG = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True, write_checksum=True)
FORMS = {".gz": partial(gzip.compress, mtime=0), ".bz2": bz2.compress, ".xz": lzma.compress,
         ".zst": lambda data: zstandard.ZstdCompressor(compression_params=LONG).compress(data)}


@pytest.mark.parametrize("ending", FORMS)
def test_archives_whole_cut_off_and_damaged(tmp_path, ending):
  path = tmp_path / f"a.jsonl{ending}"
  rows = toy_source.rows(300)
  plain = b"".join(json.dumps(r).encode() + b"\n" for r in rows)
  packed = FORMS[ending](plain[:5000]) + FORMS[ending](plain[5000:])  # As pzstd, pigz and others write: one after one.
  path.write_bytes(packed)
  assert len(read(path)[0]) == 300
  for cut in (3, len(packed) // 3):
    path.write_bytes(packed[:-cut])
    with pytest.raises(InputError, match=rf"a.jsonl{ending}: the archive is cut off \(.*; fetch it again"):
      read(path)
  for place in (len(packed) // 4, len(FORMS[ending](plain[:5000]))):  # In a frame, or at the beginning of the second.
    path.write_bytes(packed[:place] + b"\xff" * 20 + packed[place + 20:])
    with pytest.raises(InputError, match=rf"a.jsonl{ending}: the archive is damaged \(.*; fetch it again"):
      read(path)
  path.write_bytes(plain)
  with pytest.raises(InputError, match=rf"a.jsonl{ending}: is plain text, not compressed .*; rename it to a.jsonl$"):
    read(path)


@pytest.mark.parametrize("ending", [".zst", ".gz", ""])
def test_cut_off_where_the_archive_does_not_show_it(tmp_path, ending):
  """Between the frames of an archive that was packed in several, or in a plain file."""
  path, plain = tmp_path / f"a.jsonl{ending}", b'{"a": 1}\n{"a": 2}\n'
  pack = FORMS.get(ending, bytes)
  path.write_bytes(pack(plain[:9]) + pack(plain[9:13]))
  with pytest.raises(InputError, match=r"a.jsonl\S*:2: not JSON .*no line end: the file is cut off"):
    read(path)
  path.write_bytes(pack(plain[:9]) + pack(plain[9:-1]))
  assert read(path)[0] == [{"a": 1}, {"a": 2}]
  path.write_bytes(pack(plain[:13] + b"\n" + plain[:8]))
  assert read(path)[0] == [{"a": 1}, {"a": 1}] and read(path)[1].reasons["broken"] == 1


def test_a_pipe_is_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe.jsonl")
  with pytest.raises(InputError, match="pipe.jsonl: a pipe or a device, which can be read only once"):
    lines.line_parts([tmp_path / "pipe.jsonl"])


def test_lines_of_byte_ranges(tmp_path):
  for text in (b"\n", b"a\nbb\n\nccc\r\n" * 20 + b"no end", b"\xef\xbb\xbfone\ntwo\n"):
    path = tmp_path / "lines"
    path.write_bytes(text)
    expected = text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    expected = expected if expected[-1] else expected[:-1]
    for size in (1, 2, 3, 7, 1000):
      parts = lines.line_parts([path], size)
      got = [line[:2] for part in parts for line in lines.read_lines(part)]
      assert [line for _, line in got] == expected
      assert len({place for place, _ in got}) == len(got)
  assert [line.place for line in lines.read_lines(Part(str(path)))] == [f"{path}:1", f"{path}:2"]
  counts = Counts()
  path.write_bytes(b"good\n\xff\n\nlast")
  assert [text for _, text in lines.read_text(Part(str(path)), counts.broken)] == ["good", "last"]
  assert counts.places == [f"{path}:2: not UTF-8 (invalid start byte); convert the file, of Latin-1: iconv -f LATIN1 "
                           "-t UTF-8"]


@pytest.mark.parametrize("content, message", [
    (b"", "is empty; fetch it again"), (json.dumps(["a", "b"]).encode("utf-16"), "UTF-16; convert it to UTF-8: iconv"),
    (json.dumps(["a", "b"]).encode("utf-32"), "UTF-32; convert it to UTF-8: iconv -f UTF-32 -t UTF-8"),
    (b"\xfe\xff\0[", "UTF-16; convert"),
    (gzip.compress(b"x", mtime=0), "holds a .gz archive, which its name does not say; rename"),
    (zstandard.compress(b"x"), "holds a .zst archive, .*; rename"),
    (lzma.compress(b"x"), "holds a .xz archive"), (b"PK\3\4", "holds a .zip archive, .*; unpack it"),
    (b'[\n["a", "b"]\n]\n', "a JSON array; write one object a line: "),
    (b'\n[{"a": "b"}, {"a": "c"}]\n', "a JSON array; write one object a line")],
    ids=["empty", "utf16", "utf32", "utf16-big-endian", "gz", "zst", "xz", "zip", "array", "array-in-a-line"])
def test_files_that_are_not_what_they_seem(tmp_path, content, message):
  for path, packed in ((tmp_path / "a.jsonl", content), (tmp_path / "b.jsonl.bz2", bz2.compress(content))):
    path.write_bytes(packed)
    inside = message.replace("rename", "unpack it once") if path.suffix == ".bz2" else message
    with pytest.raises(InputError, match=rf"{path.name}(:\d+)?: {inside}"):
      read(path)


def test_the_whole_of_an_archive_may_be_nothing_too(tmp_path):
  for ending, compress in FORMS.items():
    (tmp_path / f"a{ending}").write_bytes(compress(b""))
    with pytest.raises(InputError, match=f"a{ending}: is empty"):
      read(tmp_path / f"a{ending}")


def test_what_is_not_utf8_is_said_of_its_line(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes('["a", "b"]\n["é", "c"]\n["d", "f"]'.encode("latin-1"))
  values, counts = read(path)
  assert values == [["a", "b"], ["d", "f"]]
  assert counts.places == [f"{path}:2: not UTF-8 (invalid continuation byte); convert the file, of Latin-1: iconv -f "
                           "LATIN1 -t UTF-8"]
