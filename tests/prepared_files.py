"""Runs the engine on rows of JSON lines, in a data folder of their own."""

import json
from pathlib import Path

from gtr_jax.prepare import engine, records
from gtr_jax.prepare.manifests import Settings
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl


def prepare_rows(folder, *files, source=None, **settings):
  """Prepares the rows of some files below the data root, which `folder` holds; gives (split, example) of each pair, in
  their order, and the counts."""
  paths = []
  for number, rows in enumerate(files):
    paths.append(folder / f"{number}.jsonl")
    paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
  name = f"p{len(list(folder.glob('data/p*')))}"
  read = PairsJsonl(tuple(map(str, paths)), **{"max_pairs": 99} | (source or {}))
  made = Path(engine.prepare(read, Settings(name, **settings), processes=1, say=lambda line: None))
  found = []
  for path in sorted(made.glob("*.tfrecord")):
    with path.open("rb") as f:
      found += [(path.name.partition("-")[0], records.example_in(r)) for r in records.read_records(f, str(path))]
  return found, json.loads((made / "manifest.json").read_text())["counts"]
