"""The benchmarks of the encoder run; what they measure is for those who read it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script, *flags):
  """Lines of what a benchmark prints."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
                 "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
  process = subprocess.run([sys.executable, ROOT / "benchmarks" / f"{script}.py", "--quick", "--repeats", "1", *flags],
                           env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  return process.stdout.splitlines()


@pytest.mark.parametrize(("script", "flags", "rows"), [
    ("attention", ["--interpret"], []), ("encoding", ["--texts", "40"], ["gtr_jax"]),
    ("training_step", ["--batch", "4", "--grad_cache"], ["padded", "packed"])])
def test_runs(script, flags, rows):
  lines = run(script, *flags)
  for name in rows:
    assert [line for line in lines if line.startswith(f"{name}: ") and line.endswith("s in round 1 of 1")]
    assert [line for line in lines if line.split()[:1] == [name] and "%" in line]
  last = "matmul rate" if rows else r"^interpreted, .*; _BLOCK_OF: 'cpu': (128|256|512)  # [01]\.\d\d of the time"
  assert re.search(last, lines[-1])


def test_the_server_is_measured(tmp_path):
  pytest.importorskip("fastapi")
  lines = run("serving", "--seconds", "1", "--queries", "5", "--rows", "500", "--overload", "2", "--abuse", "--json",
              tmp_path / "serving.json")
  for what, of in (("throughput", "gtr-jax serve"), ("query", "bare"), ("search", "encode, in process")):
    assert [line for line in lines if line.startswith(what) and of in line]
  goals = {goal["goal"]: goal["is"] for goal in json.loads((tmp_path / "serving.json").read_text())["goals"]}
  assert goals["requests neither answered nor refused in time"] == 0
  assert goals["the well-behaved client's errors under abuse"] == 0
  assert goals["answers of 500 and more, or with a traceback"] == goals["tracebacks in the log"] == 0
