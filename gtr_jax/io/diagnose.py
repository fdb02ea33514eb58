"""What a file is by its first bytes, in words: so that what is whole is not called damaged, and advice fits."""

import codecs
import json
import os
import re
import shlex

ARCHIVES = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh91AY&SY": ".bz2", b"\xfd7zXZ\0": ".xz",
            b"7z\xbc\xaf\x27\x1c": ".7z"}
"""First bytes -> the ending of the compressed files that gtr_jax reads."""

_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")  # a block, or the end of an empty file
_ENCODINGS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
              codecs.BOM_UTF16_BE: "UTF-16"}  # In this order: one begins as another does.
_UNPACK = {b"PK\3\4": "zip", b"PK\5\6": "zip", b"Rar!\x1a\x07": "rar", b"\x04\"M\x18": "lz4", b"\x1f\x9d": "Z",
           b"\xff\x06\0\0sNaPpY": "snappy"}
_OTHERS = {
    b"\xff\xff\xff\xff": ("an Arrow stream", "write it as JSON lines: datasets.Dataset.to_json"),
    b"Obj\1": ("an Avro file", "write it as JSON lines"),
    b"SQLite format 3\0": ("an SQLite database", "write it as JSON lines: pandas.read_sql(…).to_json(…, orient="
                           "'records', lines=True)"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", "write it as JSON lines"),
    b"\x93NUMPY": ("a NumPy array", "write it as JSON lines"),
    b"%PDF-": ("a PDF", "extract its text first"),
    b"\x89PNG": ("a picture", "give the file of text"),
    b"\xff\xd8\xff": ("a picture", "give the file of text"),
    b"\x7fELF": ("a program", "give the file of text"),
    b"\xd0\xcf\x11\xe0": ("an old Office file", "save it as text, or as JSON lines"),
}
_TABLES = {b"PAR1": ("a Parquet file", "read_parquet"), b"ARROW1": ("an Arrow file", "read_feather"),
           b"FEA1": ("a Feather file", "read_feather")}
_EXCEL = (".xlsx", ".xlsm", ".xls")
_PICKLE = re.compile(rb"\x80[\2-\5]")
_LFS_POINTER = b"version https://git-lfs"
_POINTERS = {
    _LFS_POINTER: "a pointer of git-lfs, not the file itself; run git lfs pull where it comes from",
    b"# xet version": "a pointer of git-xet, not the file itself; download the file",
    b"/annex/objects/": "a pointer of git-annex, not the file itself; run git annex get where it comes from",
}
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml[^<]*<error)\b", re.IGNORECASE)
_TAR = slice(257, 262), b"ustar"
BYTES = 512
"""How many of them are looked at."""


def archive(begin: bytes) -> str:
  """The ending that belongs to a compressed file (".gz"), or "" where it is none that gtr_jax reads."""
  if _BZIP2.match(begin):
    return ".bz2"
  return next((ending for mark, ending in ARCHIVES.items() if begin.startswith(mark)), "")


def stand_in(begin: bytes) -> str:
  """What lies in the place of a file of whatever kind, and what to do, or "" where it seems to be the file itself."""
  if _WEB_PAGE.match(begin):
    return "a web page, such as a server shows instead of a file; fetch the file itself"
  return next((text for mark, text in _POINTERS.items() if begin.startswith(mark)), "")


def name_of_lines(path: str) -> str:
  """What to call the JSON lines that a file is written as."""
  name, ending = os.path.splitext(path)
  if ending in ARCHIVES.values():
    name, _ = os.path.splitext(name)
  return f"{name}.{'lines.' * path.endswith('.jsonl')}jsonl"


def as_json_lines(path: str, reader: str, more: str = "") -> str:
  """The command that writes a table as JSON lines, whole: `reader` is pandas' function, `more` arguments of it."""
  old, new = (json.dumps(name, ensure_ascii=False) for name in (path, name_of_lines(path)))
  code = f'import pandas; pandas.{reader}({old}{more}).to_json({new}, orient="records", lines=True)'
  return f"write it as JSON lines: python -c {shlex.quote(code)}"


def not_text(begin: bytes, path: str) -> str:
  """What a file of lines is instead, and what to do, or "" where nothing speaks against text in UTF-8."""
  for mark, name in _ENCODINGS.items():
    if begin.startswith(mark):
      return f"{name}; convert it to UTF-8: iconv -f {name} -t UTF-8"
  if text := stand_in(begin):
    return text
  place, mark = _TAR
  if begin[place] == mark:
    return "a tar archive of files; unpack it (tar -xf) and name the file in it"
  for mark, (what, reader) in _TABLES.items():
    if begin.startswith(mark):
      return f"{what}, where lines of text are expected; {as_json_lines(path, reader)}"
  if path.endswith(_EXCEL) and begin.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
    return f"an Excel file, where lines of text are expected; {as_json_lines(path, 'read_excel')}"
  for mark, name in _UNPACK.items():
    if begin.startswith(mark):
      return f"holds a .{name} archive, which is not read; unpack it"
  for mark, (what, advice) in _OTHERS.items():
    if begin.startswith(mark):
      return f"{what}, where lines of text are expected; {advice}"
  if _PICKLE.match(begin):
    return "a pickle of Python, where lines of text are expected; write it as JSON lines"
  if begin and not begin.strip(b"\0"):
    return "nothing but zero bytes, as of a download or a write that was not finished; fetch it again"
  for order, half in (("LE", begin[1::2]), ("BE", begin[::2])):
    if half and not half.strip(b"\0"):
      return f"UTF-16 without a mark; convert it to UTF-8: iconv -f UTF-16{order} -t UTF-8"
  if b"\0" in begin[:64]:
    return "binary data, where lines of text in UTF-8 are expected; name another file"
  return ""
