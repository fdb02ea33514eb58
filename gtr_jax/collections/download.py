"""Sets of BEIR and NanoBEIR from where they are published, into folders in BEIR layout."""

import hashlib
import json
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from etils import epath

from gtr_jax.collections.beir import BeirSet
from gtr_jax.errors import InputError
from gtr_jax.io.atomic import new_folder
from gtr_jax.io.bars import Bar

ZIP_FILE = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
HUB = "https://huggingface.co/datasets"
NO_NETWORK = (urllib.error.URLError, TimeoutError, ConnectionError)
"""What `download` raises where an address cannot be reached."""

_CHUNK = 1 << 20
_MARK = "made_by_gtr_jax"  # In the folder of a download that goes on.
_SECONDS = 30  # without an answer
# Of each data set of NanoBEIR, as its card on the hub declares them: folder -> columns.
_TABLES = {"corpus": ("_id", "text"), "queries": ("_id", "text"), "qrels": ("query-id", "corpus-id")}


def is_public(of: BeirSet) -> bool:
  """Whether anyone may download the set."""
  return bool(of.md5 or of.hub_name)


def address(of: BeirSet) -> str:
  """Where it is published."""
  return f"{HUB}/{of.hub_name}" if of.hub_name else ZIP_FILE.format(name=of.name)


def download(of: BeirSet, folder: epath.PathLike) -> None:
  """Writes the folder, at once when all of it is there; a download that was cut off goes on.

  Raises:
    InputError: what came is damaged or something else, the connection ended early, or the folder is no local one.
    OSError: of `NO_NETWORK`.
  """
  if "://" in os.fspath(folder):
    raise InputError(f"{folder}: not there; download {address(of)} to a folder of this machine and copy it there")
  folder = Path(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  (_download_tables if of.hub_name else _download_zip)(of, folder)


def _download_zip(of: BeirSet, folder: Path) -> None:
  archive = folder.parent / f"{of.name}.zip"
  if not archive.exists():
    part = folder.parent / f"{of.name}.zip.part"
    _fetch(address(of), part)
    _check(part, of)
    part.replace(archive)
  else:
    _check(archive, of)
  with new_folder(folder) as new, zipfile.ZipFile(archive) as unpacked:
    for member in unpacked.infolist():
      inside = member.filename.removeprefix(f"{of.name}/")
      if inside not in ("", member.filename):  # Not what some system has left beside it.
        member.filename = inside
        unpacked.extract(member, new)
  archive.unlink()


def _download_tables(of: BeirSet, folder: Path) -> None:
  """NanoBEIR: three tables in Parquet, which become the files of the layout. All that is judged is relevant."""
  from pyarrow import ArrowException, parquet
  temporary = folder.parent / f".{folder.name}.tmp"
  if os.path.lexists(temporary) and not (temporary / _MARK).exists():
    raise InputError(f"{temporary}: downloads go into a folder of this name, and this one is not theirs; move it")
  temporary.mkdir(exist_ok=True)
  (temporary / _MARK).touch()
  tables = {}
  for name, columns in _TABLES.items():
    path = temporary / f"{name}.parquet"
    if not path.exists():
      part = temporary / f"{name}.parquet.part"
      _fetch(f"{address(of)}/resolve/main/{name}/train-00000-of-00001.parquet", part)
      part.replace(path)
    try:
      table = parquet.read_table(path)
      tables[name] = [table[column].to_pylist() for column in columns]
    except (ArrowException, KeyError, OSError) as e:
      if isinstance(e, OSError) and e.errno is not None:  # The disk, not the file.
        raise
      path.unlink()
      raise InputError(f"{path}: not the {name} of NanoBEIR ({' '.join(str(e).split()):.100}; expected columns "
                       f"{', '.join(columns)}), and is removed; start again") from e
  with new_folder(folder) as new:
    (new / "qrels").mkdir()
    for name in ("corpus", "queries"):
      with (new / f"{name}.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps({"_id": i, "text": text}) + "\n" for i, text in zip(*tables[name], strict=True))
    with (new / "qrels/test.tsv").open("w", encoding="utf-8") as f:
      f.write("query-id\tcorpus-id\tscore\n")
      f.writelines(f"{query}\t{document}\t1\n" for query, document in zip(*tables["qrels"], strict=True))
  for name in (*(f"{table}.parquet" for table in _TABLES), _MARK):
    (temporary / name).unlink()
  if not any(temporary.iterdir()):
    temporary.rmdir()


def _fetch(address: str, part: Path) -> None:
  have = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
  try:
    answer = urllib.request.urlopen(request, timeout=_SECONDS)
  except urllib.error.HTTPError as e:
    if have and e.code == 416:  # It is all there.
      return
    raise
  with answer:
    goes_on = answer.status == 206
    length = answer.headers.get("Content-Length")
    with (part.open("ab" if goes_on else "wb") as f,
          Bar(int(length) + have * goes_on if length else None, f"downloading {address.rpartition('/')[2]}", "B",
              done=have * goes_on) as bar):
      while data := answer.read(_CHUNK):
        f.write(data)
        bar.update(len(data))
    if bar.total and part.stat().st_size < bar.total:
      raise InputError(f"{part}: the connection ended at {part.stat().st_size:,} of {bar.total:,} bytes; start again, "
                       "and it goes on there")


def _check(path: Path, of: BeirSet) -> None:
  """Raises InputError unless the file has the checksum that BEIR publishes."""
  with path.open("rb") as f:
    md5 = hashlib.file_digest(f, "md5").hexdigest()
  if md5 == of.md5:
    return
  if path.suffix == ".part":
    path.unlink()
    raise InputError(f"{path}: was not whole, or another file than BEIR's (md5 {md5}, not {of.md5}), and is removed; "
                     "start again")
  raise InputError(f"{path}: cut off, or another file than BEIR's (md5 {md5}, not {of.md5}); remove it, or put the "
                   "whole file there")
