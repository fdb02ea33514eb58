"""A source of training pairs for the tests of what prepares any source: JSONL, of which one may ask for trouble."""

import dataclasses
import json
import os
import random
import time
from pathlib import Path
from typing import ClassVar

from gtr_jax.io.jsonl import read_values
from gtr_jax.io.lines import line_parts
from gtr_jax.prepare.interface import Example


@dataclasses.dataclass(frozen=True)
class ToySource:
  """Lines {"query", "passage", …}. With `joins`, lines of the same "key" are joined: the first's query, their passages.

  `log`: a file that gets a line for each part that is read; while there is a file `log`.wait, the parts after the third
  wait for its end.
  """

  licence: ClassVar[str] = ""
  listed: ClassVar[tuple[str, ...]] = ("paths",)
  paths: tuple[str, ...]
  joins: bool = False
  part_bytes: int = 5_000
  log: str = ""
  name: str = "toy"

  def parts(self):
    return line_parts(self.paths, self.part_bytes)

  def read(self, part, counts):
    if self.log:
      with open(self.log, "a") as f:
        f.write(f"{part.start} {os.getpid()}\n")
      while part.start > 3 * self.part_bytes and os.path.exists(f"{self.log}.wait"):
        time.sleep(0.02)
    for _, row in read_values(part, counts.broken):
      if "error" in row:
        raise KeyError(row["error"])
      if row.get("length") == 0:
        counts.drop("too_short", query=row["query"], passage=row["passage"])
      elif self.joins:
        yield row["key"], row
      else:
        yield "", example(row)

  def join(self, key, values, counts):
    for row in values:
      yield example(values[0] | {"passage": row["passage"]})


def words(number, seed):
  """A text of made-up words. Not `tiny_text.words`, whose module imports TensorFlow, in every worker."""
  return " ".join(f"{random.Random(f'{seed} {i}').randrange(10**6):x}" for i in range(number))


def example(row):
  names = set(row) & set(Example._fields)
  return Example(**{n: tuple(row[n]) if isinstance(row[n], list) else row[n] for n in names})


def rows(number, seed=0):
  """All pairs different; a key has two or three of them."""
  rng = random.Random(seed)
  return [{"query": f"query {seed} {i // 2} " + words(3, i // 2), "passage": f"passage {seed} {i} " + words(8, i),
           "key": f"key {rng.randrange(number // 2)}", "query_id": f"q{i // 2}"} for i in range(number)]


def write(path: Path, rows) -> str:
  """JSONL; a row that is bytes is written as it is."""
  path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
  return str(path)


def main():
  """`toy_source.py DATA_DIR JSONL LOG JOINS`: prepares with three workers; exit code 130 on ctrl-C."""
  import signal
  import sys

  from gtr_jax.io import data_root
  from gtr_jax.prepare import engine, manifests
  signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored where the tests run in the background.
  data_dir, path, log, joins = sys.argv[1:]
  data_root.set_data_dir(data_dir)
  try:
    engine.prepare(ToySource((path,), joins == "True", log=log), manifests.Settings(), processes=3)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == "__main__":
  from toy_source import main as importable  # Workers find its class under that name.
  importable()
