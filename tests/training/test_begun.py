"""What a MODEL_DIR says of the run that was begun in it."""

import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest
from etils import epath

from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.errors import InputError, TrainingError
from gtr_jax.io.config_gin import bindings_of
from gtr_jax.training import banner, begun, run

CONFIG = """from __gin__ import dynamic_registration
import gtr_jax.training.run

MODEL_DIR = 'runs/a'
dev/gtr_jax.evaluation.evaluate.RetrievalEvaluator.collection = 'my = collection'
gtr_jax.data.pipeline.TrainingBatches.microbatch_size = None
gtr_jax.data.pipeline.TrainingBatches.vocabulary = 'a/spiece.model'
gtr_jax.models.t5.T5Config.dropout_rate = 0.0
gtr_jax.models.t5.T5Config.dtype = 'float32'
gtr_jax.training.optimizers.linear_decay.peak = 0.001
gtr_jax.training.optimizers.linear_decay.total_steps = 3
gtr_jax.training.run.TrainingRun.evaluators = [@dev/gtr_jax.evaluation.evaluate.RetrievalEvaluator]
gtr_jax.training.run.TrainingRun.log_period = 1
gtr_jax.training.run.TrainingRun.optimizer = @gtr_jax.training.optimizers.adafactor()
gtr_jax.training.run.TrainingRun.train_steps = 3
"""


def replaced(*pairs):
  text = CONFIG
  for old, new in pairs:
    assert old in text
    text = text.replace(old, new)
  return text


def test_bindings():
  found = bindings_of(CONFIG)
  assert len(found) == 12 and found["MODEL_DIR"] == "'runs/a'"
  assert found["dev/gtr_jax.evaluation.evaluate.RetrievalEvaluator.collection"] == "'my = collection'"
  assert begun.first_collection(CONFIG) == "my = collection" and begun.first_collection("") is None


def test_what_decides_is_named():
  assert begun.changed(CONFIG, CONFIG) == []
  other = replaced(("runs/a", "b"), ("my = ", "your "), ("microbatch_size = None", "microbatch_size = 8"),
                   ("a/spiece", "b/spiece"), ("log_period = 1", "log_period = 2"), (" [@dev", " [@test"))
  assert begun.changed(CONFIG, other) == []
  assert begun.changed(CONFIG, replaced(("peak = 0.001", "peak = 0.01"))) == ["LEARNING_RATE = 0.001 (now 0.01)"]
  assert begun.changed(CONFIG, replaced(("_steps = 3", "_steps = 4"))) == ["TRAIN_STEPS = 3 (now 4)"]
  assert begun.changed(CONFIG, replaced(("total_steps = 3", "total_steps = 9"))) == [
      "linear_decay.total_steps = 3 (now 9)"]
  assert begun.changed(CONFIG, replaced(("optimizers.adafactor()", "optimizers.adamw()"), (
      "gtr_jax.models.t5.T5Config.dtype = 'float32'\n", ""))) == [
          "OPTIMIZER = adafactor (now adamw)", "T5Config.dtype = 'float32' (now its default)"]


def test_one_line_of_all_that_changed(tmp_path):
  now = replaced(("peak = 0.001", "peak = 0.01"), ("_steps = 3", "_steps = 4"), ("'float32'", "'bfloat16'"),
                 ("dropout_rate = 0.0", "dropout_rate = 0.1"), ("adafactor", "adamw"))
  line = begun.changes_line(tmp_path, CONFIG, now, 3, True)
  assert line.count(" (now ") == 3 and " and 2 more; from step 3 on the new ones hold, with another schedule" in line
  assert line.endswith("config.gin as it was becomes config-3.gin")
  line = begun.changes_line(tmp_path, CONFIG, replaced(("dropout_rate = 0.0", "dropout_rate = 0.1")), 3, True)
  assert "begun with DROPOUT_RATE = 0.0 (now 0.1); from step 3" in line and "schedule" not in line
  assert begun.changes_line(tmp_path, CONFIG, CONFIG, 3, True) is None


def test_the_earlier_config_is_kept(tmp_path):
  folder = epath.Path(tmp_path)
  begun.write_config(folder, "a.b = 1\n", None)
  begun.write_config(folder, "a.b = 1\n", 2)
  assert [path.name for path in tmp_path.iterdir()] == ["config.gin"]
  begun.write_config(folder, "a.b = 2\n", 4)
  begun.write_config(folder, "a.b = 3\n", 4)  # With 2 no step was trained that is kept.
  assert (tmp_path / "config-4.gin").read_text() == "a.b = 1\n" and begun.earlier_config(folder) == "a.b = 3\n"


def test_at_its_end(tmp_path):
  folder = epath.Path(tmp_path)

  def at_its_end(steps=4, lower=False, text=CONFIG):
    return begun.at_its_end(folder, steps, lower, text)

  assert at_its_end() is None
  begun.write_config(folder, CONFIG, None)
  checkpointer = Checkpointer(folder / "checkpoints")
  assert at_its_end() is None
  for step, metric in ((2, 0.5), (4, 0.25)):
    checkpointer.save(step, {"w": jnp.zeros(2)}, {"batches": {}, "start": 0.75}, metric)
  checkpointer.wait()
  ended = {"best_step": 2, "score": 0.5, "step": 4, "stopped_early": False, "before": 0.75}
  assert at_its_end() == ended and at_its_end(text=replaced(("log_period = 1", "log_period = 2"))) == ended
  assert at_its_end(steps=5) is None and at_its_end(text=replaced(("peak = 0.001", "peak = 0.01"))) is None
  checkpointer.set_progress(4, {"batches": {}, "evaluation": "given up"}, None)
  assert at_its_end() is None
  checkpointer.set_progress(4, {"batches": {}}, 0.25)
  assert at_its_end() == ended | {"before": None}
  (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
  assert at_its_end() is None
  checkpointer.close()


def test_one_process_at_a_time(tmp_path):
  """A process that is killed leaves no lock, and no lock leaves a file."""
  folder = epath.Path(tmp_path) / "run"
  holds = ("import sys; from etils import epath; from gtr_jax.training import begun\n"
           "with begun.alone(epath.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()")
  process = subprocess.Popen([sys.executable, "-c", holds, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
  assert process.stdout.readline() == "in\n"
  taken = "run: another process is training there; wait for it, or give another --output"
  with pytest.raises(InputError, match=taken), begun.alone(folder):
    pass
  process.send_signal(signal.SIGKILL)
  process.communicate()
  for _ in range(2):
    with begun.alone(folder):
      assert list(folder.iterdir()) == []


@pytest.mark.parametrize("metric, score, before, said", [
    ("dev/nDCG@10", 0.5506, 0.5249, "0.5506 (0.5249 before training)"),
    ("dev/nDCG@10", 0.2391, 0.7854, "0.2391, WORSE than before training (0.7854): lower the learning rate"),
    ("dev/nDCG@10", 0.50001, 0.5, "0.5000, no better than before training (0.5000)"),
    ("dev/nDCG@10", 0.5, None, "0.5000"),
    ("validation/loss", 0.5, 0.75, "0.5000 (0.7500 before training)"),
    ("validation/loss", 0.75, 0.5, "0.7500, WORSE than before training (0.5000)"),
])
def test_worse_is_called_worse(metric, score, before, said):
  of = types.SimpleNamespace(best_metric=metric, model_dir="runs/a", initial_checkpoint_path="small")
  line = banner.closing(of, 2, score, 4, False, before)[1]
  assert f"{metric} {said}" in line and ("WORSE" in line) == ("WORSE" in said) and ("stay with small" in line) == (
      "than before" in said)


def test_out_of_memory_in_a_line():
  @run._memory_in_words()
  def too_large():
    jnp.zeros((1 << 50,), jnp.float32).block_until_ready()

  with pytest.raises(TrainingError, match="^out of memory .*MICROBATCH_SIZE or BATCH_SIZE.*meshes/fsdp.gin") as e:
    too_large()
  assert "\n" not in str(e.value)
