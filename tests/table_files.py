"""The same rows as JSON lines and as every kind of table."""

import csv
import json
from pathlib import Path

import pyarrow
from pyarrow import feather, ipc, parquet


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
  parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) // 3))


def write_stream(path, rows):
  table = pyarrow.Table.from_pylist(rows)
  with pyarrow.OSFile(str(path), "wb") as sink, ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=max(1, len(rows) // 3))


def write_feather(path, rows):
  feather.write_feather(pyarrow.Table.from_pylist(rows), str(path))


def write_text(path, rows):
  """As others write it: lists as JSON, what is missing as nothing."""
  with path.open("w", newline="") as f:
    writer = csv.DictWriter(f, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows({name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                     for row in rows)


def write_dataset(path, rows):
  """As datasets.Dataset.save_to_disk does."""
  path.mkdir()
  names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
  for name, some in zip(names, (rows[:len(rows) // 2], rows[len(rows) // 2:]), strict=True):
    write_stream(path / name, some)
  (path / "dataset_info.json").write_text("{}")
  (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def write_shards(path, rows):
  path.mkdir()
  for i in range(2):
    write_parquet(path / f"train-{i:05d}-of-00002.parquet", rows[i * len(rows) // 2:(i + 1) * len(rows) // 2])


FORMS = {"x.parquet": write_parquet, "x.arrow": write_stream, "x.feather": write_feather, "x.csv": write_text,
         "x.tsv": write_text, "dataset": write_dataset, "shards": write_shards}


def write(folder: Path, form: str, rows: list[dict]) -> str:
  """The path of the file or folder of that form."""
  path = folder / form
  (FORMS.get(form) or write_jsonl)(path, rows)
  return str(path)
