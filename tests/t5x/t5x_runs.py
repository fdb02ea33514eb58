"""T5X's programs, started as a user starts them, on a small task; and what they have written."""

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

import tensorflow as tf
from tiny_text import pairs, words, write_jsonl

from gtr_jax.data.vocabulary import train_vocabulary

ROOT = Path(__file__).parent.parent.parent
BATCH, LENGTHS, SEED, TEMPERATURE = 16, {"inputs": 16, "targets": 24}, 7, 0.05
# Of T5 1.1: a ReLU's gradient jumps where rounding decides about a sign, and later losses differ by more than rounding.
# One input of 6e-8 among a million made 20 losses differ by up to 2.6e-5; ours, compiled in other ways, by 1.4e-6.
SIZES = {"vocab_size": 384, "emb_dim": 128, "num_heads": 2, "head_dim": 64, "mlp_dim": 256, "num_layers": 1,
         "mlp_activations": ("gelu", "linear")}
_TASKS = """
from gtr_jax.data.examples import add_pair_task, jsonl
add_pair_task("t5x_pairs", jsonl(train="train.jsonl", validation="dev.jsonl"), query="query", passage="passage",
              negatives="negatives", vocabulary="spiece.model")
"""


def write_task(folder: Path) -> None:
  """A task module, `t5x_tasks`, and its data."""
  data = folder / "data"
  data.mkdir()
  (folder / "t5x_tasks.py").write_text(_TASKS)
  train_vocabulary([words(12, i) + f" q{i} p{i}" for i in range(400)], data / "spiece.model", size=300)
  rows = [row | {"negatives": [words(9, f"n{i}"), words(5, f"m{i}")][i % 2:]} for i, row in enumerate(pairs(250))]
  write_jsonl(data / "train.jsonl", rows[:200])
  write_jsonl(data / "dev.jsonl", rows[200:])


def t5x_program(name: str, folder: Path, run: str, *bindings: str, devices: int = 1) -> str:
  """Runs `python -m t5x.<name>` with `gin/t5x/<run>.gin` and these lines of gin; returns what it printed.

  Raises:
    RuntimeError: with the end of the output, where it fails.
  """
  script = {"train": "train_script", "eval": "eval_script", "infer": "infer_script"}[name]
  lines = ["from __gin__ import dynamic_registration", f"import __main__ as {script}",
           "from gtr_jax.losses import ring", "from gtr_jax.models import t5",
           "from gtr_jax.training import optimizers", "from t5x import utils",
           "from t5x import trainer", "from t5x import optimizers as t5x_optimizers",
           "include 'models/t5_tiny.gin'", f"include 't5x/{run}.gin'",
           *(f"t5.T5Config.{size} = {value}" for size, value in SIZES.items()),
           "MIXTURE_OR_TASK_MODULE = 't5x_tasks'", "MIXTURE_OR_TASK_NAME = 't5x_pairs'", f"BATCH_SIZE = {BATCH}",
           f"TASK_FEATURE_LENGTHS = {LENGTHS}", f"TEMPERATURE = {TEMPERATURE}", "EVAL_STEPS = 2", *bindings]
  gin_file = folder / f"{name}.gin"
  gin_file.write_text("\n".join(lines) + "\n")
  env = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "GTR_DATA_DIR": str(folder / "data"), "JAX_PLATFORMS": "cpu",
         "JAX_NUM_CPU_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "2"}
  result = subprocess.run(
      [sys.executable, "-m", f"t5x.{name}", f"--gin_search_paths={ROOT / 'gin'}", f"--gin_file={gin_file}"],
      env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)
  if result.returncode:
    raise RuntimeError(result.stdout[-6000:])
  return result.stdout


def logged(model_dir: Path, name: str, collection: str = "train") -> dict[int, float]:
  """A metric of each step, from the files for TensorBoard."""
  values = {}
  for file in glob.glob(f"{model_dir}/{collection}/events*"):
    for event in tf.compat.v1.train.summary_iterator(file):
      for value in event.summary.value:
        if value.tag == name:
          values[event.step] = float(tf.make_ndarray(value.tensor))
  return values


def json_lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]
