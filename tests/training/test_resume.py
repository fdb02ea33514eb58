"""`gtr-jax train` itself, killed and stopped again and again, against a run that nobody disturbed: the same losses, bit
for bit, through the real mixture, converter, prefetch and checkpoints."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tiny_gin import tiny_model
from tiny_model_dir import sentence, write_vocabulary

STEPS = 80

TASKS = """
import os
import time
import seqio
from gtr_jax.data.examples import add_pair_task, jsonl
from gtr_jax.training.writers import InBackground
for name in ("questions", "titles"):
  add_pair_task("resume_" + name, jsonl(train=name + ".jsonl"), query="query", passage="passage", negatives="negatives",
                vocabulary="spiece.model", shuffle_buffer_size=64)
seqio.MixtureRegistry.add("resume_both", [("resume_questions", 3.0), ("resume_titles", 1.0)])

# A process that is to be killed does not come to its end before, however late this machine lets the test do it.
slow_after, write = int(os.environ.get("SLOW_AFTER", 1_000_000)), InBackground.write
def write_slowly(self, step, scalars):
  write(self, step, scalars)
  time.sleep(0.5 * (step > slow_after))
InBackground.write = write_slowly
"""

GIN = tiny_model(160, 32) + f"""
from gtr_jax.training import run
from gtr_jax.losses import in_batch
include 'runs/train.gin'
dual_encoder.DualEncoder.projection_dim = 16
in_batch.InBatchLoss.temperature = 0.05
DROPOUT_RATE = 0.1
TRAIN_STEPS = {STEPS}
WARMUP_STEPS = 5
LEARNING_RATE = 0.01
BATCH_SIZE = 16
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 12}}
NEGATIVES_PER_EXAMPLE = 1
MIXTURE_OR_TASK_MODULE = 'resume_tasks'
MIXTURE_OR_TASK_NAME = 'resume_both'
VALIDATION = None
EVAL_PERIOD = 0
LOG_PERIOD = 1
CHECKPOINT_PERIOD = 8
"""


class Run:
  """Training processes of one MODEL_DIR."""

  def __init__(self, folder, model_dir):
    self.model_dir = folder / model_dir
    self.command = [sys.executable, "-m", "gtr_jax", "train", f"--gin_file={folder / 'run.gin'}",
                    f"--gin.MODEL_DIR='{self.model_dir}'", f"--data_dir={folder}"]
    # The compilation cache makes restarts quick: what it holds must compute the same bits as what was compiled.
    self.environment = {
        **os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2",
        "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}

  def start(self, slow_after=STEPS):
    self._file_before = self._file()
    return subprocess.Popen(self.command, env={**self.environment, "SLOW_AFTER": str(slow_after)},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

  def finish(self):
    """Runs to the end and returns what it printed."""
    process = self.start()
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output

  def wait_until(self, process, condition):
    """Polls quickly until the condition holds, which it must before the process ends."""
    while not condition():
      assert process.poll() is None, process.communicate()[0]
      time.sleep(0.001)

  def _file(self):
    path = self.model_dir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None

  def last_step(self):
    """The last step that the running process has written, 0 before it has opened the file of metrics."""
    if self._file() in (None, self._file_before):
      return 0
    lines = (self.model_dir / "metrics.jsonl").read_text().split("\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0

  def losses(self):
    lines = [json.loads(line) for line in (self.model_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"], line["train/grad_norm"]) for line in lines]

  def checkpoints(self):
    return sorted(int(path.name) for path in (self.model_dir / "checkpoints").iterdir() if path.name.isdecimal())

  def being_saved(self):
    """Temporary folders of steps that are being written."""
    return [path.name for path in (self.model_dir / "checkpoints").glob("*orbax-checkpoint-tmp*")]


def write_data(folder):
  write_vocabulary(folder / "spiece.model")
  (folder / "resume_tasks.py").write_text(TASKS)
  for name, count in (("questions", 400), ("titles", 200)):
    examples = [{"query": sentence(i, 1 + i % 5), "passage": sentence(i, 4 + i % 9),
                 "negatives": [sentence(i + j, 6) for j in range(i % 3)]} for i in range(count)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("resume")
  write_data(folder)
  (folder / "run.gin").write_text(GIN)
  return folder


@pytest.fixture(scope="module")
def undisturbed_output(folder):
  return Run(folder, "undisturbed").finish()


def test_nothing_else_on_the_screen(undisturbed_output):
  """No library speaks, though stderr is a pipe."""
  lines = [line for line in undisturbed_output.splitlines() if not line.startswith(" ")]
  trained = [line for line in lines if line.startswith("train: ")]
  assert trained[-1].startswith(f"train: {STEPS}/{STEPS} (100%)")
  assert "compiling: 1 of 1 (training: queries 2 x 8 x 8, passages 2 x 16 x 12)" in lines
  assert [line.split()[0] for line in lines if line not in trained] == [
      "gtr_jax", "model", "mesh", "batch", "steps", "texts", "memory", "output", "compiling:", "done", "where", "next"]


@pytest.fixture(scope="module")
def undisturbed(folder, undisturbed_output):
  losses = Run(folder, "undisturbed").losses()
  assert [step for step, *_ in losses] == list(range(1, STEPS + 1))
  assert len({loss for _, loss, _ in losses}) > STEPS / 2
  return losses


def test_killed_and_stopped_at_random_moments(folder, undisturbed):
  rng = random.Random(20)
  run = Run(folder, "disturbed")

  # SIGKILL in the middle of a save: the process is halted when a temporary folder appears, so that it is still there.
  first = rng.randrange(10, 25)
  process = run.start(slow_after=first + 20)  # There is a save every 8 steps.
  while True:
    run.wait_until(process, lambda: run.last_step() >= first and run.being_saved())
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.02)
    if run.being_saved():
      break
    process.send_signal(signal.SIGCONT)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL and run.being_saved()
  whole = run.checkpoints()[-1]

  # SIGKILL at any moment.
  second = whole + rng.randrange(3, 20)
  process = run.start(slow_after=second + 8)
  run.wait_until(process, lambda: run.last_step() >= second)
  time.sleep(rng.random() * 0.05)
  process.kill()
  output = process.communicate()[0]
  assert f"going on at step {whole} of {STEPS}" in output
  assert process.returncode == -signal.SIGKILL

  # SIGTERM: saves where it is, and the next process goes on from there.
  process = run.start(slow_after=run.checkpoints()[-1] + 12)
  run.wait_until(process, lambda: run.last_step() >= run.checkpoints()[-1] + 2)
  process.terminate()
  output = process.communicate()[0]
  last = run.checkpoints()[-1]
  assert process.returncode == 128 + signal.SIGTERM, output
  assert f"stopped by SIGTERM after step {last}" in output and not run.being_saved()

  output = run.finish()
  assert f"going on at step {last} of {STEPS}" in output
  assert run.losses() == undisturbed
  assert run.checkpoints()[-1] == STEPS
