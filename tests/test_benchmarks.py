"""The benchmarks of the encoder run; what they measure is for those who read it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("script", "flags", "rows"), [
    ("attention", ["--interpret"], []), ("encoding", ["--texts", "40"], ["gtr_jax"]),
    ("training_step", ["--batch", "4", "--grad_cache"], ["padded", "packed"])])
def test_runs(script, flags, rows):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
                 "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
  process = subprocess.run([sys.executable, ROOT / "benchmarks" / f"{script}.py", "--quick", "--repeats", "1", *flags],
                           env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  lines = process.stdout.splitlines()
  for name in rows:
    assert [line for line in lines if line.startswith(f"{name}: ") and line.endswith("s in round 1 of 1")]
    assert [line for line in lines if line.split()[:1] == [name] and "%" in line]
  last = "matmul rate" if rows else r"^interpreted, .*; _BLOCK_OF: 'cpu': (128|256|512)  # [01]\.\d\d of the time"
  assert re.search(last, lines[-1])
