"""`gtr-jax mine` in tests."""

import json

from gtr_jax.cli.main import main


def write(path, pairs):
  path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
  return path


def mine(folder, **flags):
  """`gtr-jax mine` with its output in `folder`; returns its exit code, and what it wrote."""
  output = folder / flags.pop("output", "out.jsonl")
  words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
  code = main(["mine", f"--output={output}", *words])
  return code, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else None


def mined_from(folder, pairs, **flags):
  """What `gtr-jax mine` writes of these pairs."""
  code, records = mine(folder, pairs=write(folder / "pairs.jsonl", pairs), **flags)
  assert code == 0
  return records
