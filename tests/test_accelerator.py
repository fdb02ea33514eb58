"""`benchmarks/accelerator.sh` works, as far as a CPU can show, with nothing but what it says that it needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_NEEDED = ["tensorflow", "tensorflow_text", "seqio", "tensorflow_datasets", "clu", "pyarrow", "ir_measures",
              "py3langid", "zstandard", "google_crc32c", "huggingface_hub", "matplotlib", "bm25s", "torch",
              "transformers"]


def test_all_parts(tmp_path):
  (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_NEEDED}))\n")
  process = subprocess.run(
      ["bash", ROOT / "benchmarks" / "accelerator.sh", "results.json", "--tiny", "--repeats", "1"], cwd=tmp_path,
      capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu",
                                           "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": "", "PYTHONPATH": str(tmp_path)})
  assert process.returncode == 0, process.stdout + process.stderr
  found = json.loads((tmp_path / "results.json").read_text())
  assert [row["path"] for row in found["attention"]] == ["reference", "jax.nn, XLA"]
  assert all(row["farthest from float32"] < 0.02 for row in found["attention"])
  assert [row["queries"] for row in found["search"]] == [4]
  assert [row["encoder"] for row in found["encoding"]] == ["gtr_jax, tiny"]
  (training,) = found["training"]
  assert (training["pairs"], training["attention"]) == (16, "reference") and 0.5 < training["fill"] < 1
  assert all(row["TFLOP/s"] > 0 for part in ("attention", "encoding", "training") for row in found[part])
  assert (tmp_path / "results.json.txt").read_text() == process.stdout
