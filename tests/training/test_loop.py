"""The training loop on a state of one number: logging, evaluation, saving, resuming, stopping, what is not finite."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metrics_lines import without_times
from tiny_training import PAIRS, TinyBatches

from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.checkpoints.steps import read_progress
from gtr_jax.errors import InputError, TrainingError
from gtr_jax.parallel import partitioning
from gtr_jax.parallel.progress import EVALUATION, doing
from gtr_jax.training.loop import Periods, fit, resume
from gtr_jax.training.metrics import PeriodMeans
from gtr_jax.training.state import TrainState
from gtr_jax.training.writers import JsonlWriter

MESH = partitioning.make_mesh(devices=jax.devices()[:1])
BAD = {"loss": None, "grad_norm": None, "param_norm": None}


def new_state():
  state = TrainState(jnp.int32(0), {"w": jnp.float32(1.0)}, ())
  sharding = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec())
  return jax.device_put(state, sharding), jax.tree.map(lambda _: sharding, state)


def make_step(bad_metric=None, bad_step=None):
  """Moves `w` to the mean token of each batch; from `bad_step` on, one metric is not a number."""

  @jax.jit
  def train_step(state, batch):
    target = jnp.mean(batch.queries.tokens.astype(jnp.float32))
    loss = jnp.square(state.params["w"] - target)
    w = state.params["w"] + 0.1 * (target - state.params["w"])
    metrics = {"loss": loss, "accuracy": 1 / (1 + loss), "mrr": 1 / (1 + loss), "grad_norm": jnp.sqrt(loss),
               "param_norm": w, "learning_rate": 0.5 ** state.step, "pairs": jnp.sum(batch.valid),
               "tokens": jnp.sum(batch.queries.tokens > 0), "token_slots": 1.0 * batch.queries.tokens.size}
    if bad_metric:
      metrics[bad_metric] = jnp.where(state.step + 1 >= bad_step, jnp.nan, metrics[bad_metric])
    return TrainState(state.step + 1, {"w": w}, ()), metrics

  return train_step


STEP = make_step()


class Evaluation:
  """Yields the given results in turn; runs `hook` first."""

  name = "dev"

  def __init__(self, *results, hook=lambda: None, content="a hash"):
    self.results, self.seen, self.hook, self.content = list(results), [], hook, content

  def __call__(self, params):
    self.hook()
    self.seen.append(float(params["w"]))
    return {"ndcg": self.results.pop(0)}


def run(folder, periods, *, batches=None, train_step=STEP, evaluators=(), best_metric=None, keep=2,
        measure_start=False):
  """Starts or resumes a run in `folder`, as a training command would."""
  folder.mkdir(exist_ok=True)
  state, shardings = new_state()
  checkpointer = Checkpointer(folder / "checkpoints", keep=keep)
  batches = batches or TinyBatches()
  state, progress = resume(checkpointer, state, shardings, batches, evaluators)
  writer = JsonlWriter(folder / "metrics.jsonl", int(state.step))
  try:
    return fit(state, train_step, batches, checkpointer, periods=periods, mesh=MESH, evaluators=evaluators,
               best_metric=best_metric, writers=[writer], progress=progress, measure_start=measure_start)
  finally:
    writer.close()
    checkpointer.close()


def lines(folder, without_throughput=True):
  found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [without_times(line) for line in found] if without_throughput else found


def saved_steps(folder):
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_whole_run(tmp_path):
  batches, evaluation = TinyBatches(), Evaluation(0.1, 0.2, 0.3)
  result = run(tmp_path, Periods(25, log=4, evaluate=10, checkpoint=10), batches=batches, evaluators=[evaluation])
  assert int(result.state.step) == 25 and result.stopped_by is None and batches.closed
  assert batches.yielded == list(range(1, 26))
  found = lines(tmp_path)
  assert [line["step"] for line in found if "train/loss" in line] == [4, 8, 12, 16, 20, 24]
  assert [(line["step"], line["dev/ndcg"]) for line in found if "dev/ndcg" in line] == [(10, 0.1), (20, 0.2), (25, 0.3)]
  assert evaluation.seen[-1] == float(result.state.params["w"])
  assert saved_steps(tmp_path) == [20, 25]


def test_logs_are_means_of_the_period(tmp_path):
  each, mean = tmp_path / "each", tmp_path / "mean"
  run(each, Periods(8, log=1))
  run(mean, Periods(8, log=4))
  each, mean = lines(each), lines(mean)
  assert len(each) == 8 and len(mean) == 2
  for row, rows in zip(mean, (each[:4], each[4:]), strict=True):
    assert row["train/loss"] == np.mean([r["train/loss"] for r in rows])
    assert row["train/mrr"] == np.mean([r["train/mrr"] for r in rows])
    assert row["train/learning_rate"] == rows[-1]["train/learning_rate"]
    assert row["train/fill"] == 1.0


def test_resumes_as_if_nothing_had_happened(tmp_path):
  """Also between two log points, and where the file of metrics is ahead of the checkpoint."""
  periods = Periods(30, log=7, evaluate=11, checkpoint=5)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  run(whole, periods, evaluators=[Evaluation(0.1, 0.2, 0.3)])

  def crash():
    raise OSError("no more disk")

  with pytest.raises(OSError):
    run(broken, periods, evaluators=[Evaluation(0.1, hook=crash)])
  assert lines(broken)[-1]["step"] == 7 and saved_steps(broken) == [5, 10]
  crashes = iter([lambda: None, crash])
  with pytest.raises(OSError):
    run(broken, periods, evaluators=[Evaluation(0.1, 0.2, hook=lambda: next(crashes)())])
  assert lines(broken)[-1]["step"] == 21 and saved_steps(broken) == [15, 20]
  batches = TinyBatches()
  result = run(broken, periods, batches=batches, evaluators=[Evaluation(0.2, 0.3)])
  assert batches.yielded == list(range(21, 31))
  assert lines(broken) == lines(whole)
  assert int(result.state.step) == 30


def test_nothing_to_do_after_the_last_step(tmp_path):
  run(tmp_path, Periods(5, log=1))
  before = (tmp_path / "metrics.jsonl").read_text()
  batches = TinyBatches()
  result = run(tmp_path, Periods(5, log=1), batches=batches)
  assert int(result.state.step) == 5 and batches.yielded == [] and batches.closed
  assert (tmp_path / "metrics.jsonl").read_text() == before
  assert int(run(tmp_path, Periods(8, log=1)).state.step) == 8  # more steps are
  fewer = run(tmp_path, Periods(3, log=1))
  assert int(fewer.state.step) == 8 and fewer.stopped_by is None


def test_no_steps_save_the_initial_state(tmp_path):
  """An untrained model is a checkpoint like any other."""
  batches = TinyBatches()
  result = run(tmp_path, Periods(0), batches=batches)
  assert result.stopped_by is None and saved_steps(tmp_path) == [0] and batches.yielded == []
  assert run(tmp_path, Periods(0)).state.params["w"] == 1.0  # again: nothing to do
  run(tmp_path, Periods(3))
  assert saved_steps(tmp_path) == [0, 3]


class Signalling(TinyBatches):
  """Sends signals to this process while the batches with these numbers are fetched."""

  def __init__(self, **signals):
    super().__init__()
    self.signals = {int(number[1:]): name for number, name in signals.items()}

  def __iter__(self):
    for item in super().__iter__():
      if self.number in self.signals:
        os.kill(os.getpid(), self.signals[self.number])
      yield item


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number, capfd):
  periods = Periods(20, log=3, checkpoint=8)
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  run(whole, periods)
  before = signal.getsignal(number)
  batches = Signalling(_10=number)
  result = run(stopped, periods, batches=batches)
  assert signal.getsignal(number) is before
  assert result.stopped_by is number
  assert int(result.state.step) == 10  # whose batch was being read
  assert saved_steps(stopped) == [8, 10]
  error = capfd.readouterr().err
  assert f"{number.name}: the step that is running ends and is saved" in error
  assert "after step 10, which is saved in" in error
  batches = TinyBatches()
  assert run(stopped, periods, batches=batches).stopped_by is None
  assert batches.yielded == list(range(11, 21))
  assert lines(stopped) == lines(whole)


@pytest.mark.parametrize(("number", "is_meant"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_pause_after_a_step_that_is_saved_already(tmp_path, number, is_meant, monkeypatch):
  """The signal comes while it is being saved, or in the next process before it has trained anything."""
  def at():
    return read_progress(tmp_path / "checkpoints" / str(saved_steps(tmp_path)[-1]))["goodput"]["at"]

  save = Checkpointer.save

  def interrupted(self, *args):
    save(self, *args)
    os.kill(os.getpid(), number)

  monkeypatch.setattr(Checkpointer, "save", interrupted)
  run(tmp_path, Periods(20, log=3, checkpoint=8))
  assert saved_steps(tmp_path) == [8] and (at() is None) == is_meant
  monkeypatch.undo()
  run(tmp_path, Periods(20, log=3, checkpoint=8), batches=Signalling(_9=signal.SIGINT))
  assert saved_steps(tmp_path)[-1] in (8, 9) and at() is None
  run(tmp_path, Periods(20, log=3, checkpoint=8))
  assert at() is None  # At its end.


def test_a_signal_before_a_saved_step_saves_once(tmp_path):
  result = run(tmp_path, Periods(20, checkpoint=8), batches=Signalling(_8=signal.SIGTERM))
  assert result.stopped_by is signal.SIGTERM and saved_steps(tmp_path) == [8]


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_signal_gives_an_evaluation_up(tmp_path, at):
  """It is made up for when training goes on, before the first step too: all is as if nothing had happened."""
  how = {"periods": Periods(8, log=1, evaluate=4, checkpoint=100), "best_metric": "dev/ndcg", "measure_start": True}
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  results = [0.1, 0.5, 0.3]
  run(whole, evaluators=[Evaluation(*results)], **how)

  def signalled():
    if len(evaluation.seen) == at // 4:
      os.kill(os.getpid(), signal.SIGTERM)
      doing(EVALUATION)
      raise AssertionError("went on")

  evaluation = Evaluation(*results, hook=signalled)
  result = run(stopped, evaluators=[evaluation], **how)
  assert result.stopped_by is signal.SIGTERM and int(result.state.step) == at and saved_steps(stopped)[-1] == at
  result = run(stopped, evaluators=[Evaluation(*results[at // 4:])], **how)
  assert result.stopped_by is None and lines(stopped) == lines(whole)
  checkpointer = Checkpointer(stopped / "checkpoints")
  assert checkpointer.best_step() == 4 and checkpointer.metric_of(8) == 0.3
  checkpointer.close()


def test_a_signal_at_the_end_is_no_stop(tmp_path):
  result = run(tmp_path, Periods(10, checkpoint=0), batches=Signalling(_10=signal.SIGTERM))
  assert result.stopped_by is None and saved_steps(tmp_path) == [10]


def test_the_second_ctrl_c_aborts(tmp_path):
  before = signal.getsignal(signal.SIGINT)

  class TwiceInAStep(TinyBatches):
    def __iter__(self):
      for item in super().__iter__():
        if self.number == 3:
          os.kill(os.getpid(), signal.SIGINT)
          os.kill(os.getpid(), signal.SIGINT)
        yield item

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, Periods(20, checkpoint=8), batches=TwiceInAStep())
  assert saved_steps(tmp_path) == []
  assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("metric", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("step", [13, 15, 16])
def test_what_is_not_finite_stops_and_is_not_saved(tmp_path, metric, step):
  """Step 15 is due to be saved, 16 comes right after."""
  with pytest.raises(TrainingError) as error:
    run(tmp_path, Periods(40, log=1, checkpoint=5), train_step=make_step(metric, step))
  message = str(error.value)
  last = 15 if step == 16 else 10
  assert message.startswith(f"step {step} is not finite") and f"{metric} nan" in message and "\n" not in message
  assert f"checkpoints/{last};" in message
  assert f"train.jsonl:{step}.0, train.jsonl:{step}.1" in message
  assert saved_steps(tmp_path)[-1] == last
  assert lines(tmp_path)[-1]["step"] == step - 1
  ids = json.loads((tmp_path / f"non_finite_step_{step}_process_0.json").read_text())
  assert ids == [f"train.jsonl:{step}.{i}" for i in range(PAIRS)]


def test_not_finite_at_the_first_and_at_the_last_step(tmp_path):
  with pytest.raises(TrainingError, match="step 1 is not finite.*no checkpoint has been saved"):
    run(tmp_path, Periods(3), train_step=make_step("loss", 1))
  with pytest.raises(TrainingError, match="step 3 is not finite"):
    run(tmp_path, Periods(3), train_step=make_step("loss", 3))
  assert saved_steps(tmp_path) == []


def test_the_best_is_saved_when_it_comes(tmp_path):
  evaluation = Evaluation(0.1, 0.5, 0.5, 0.3, 0.4)
  run(tmp_path, Periods(10, evaluate=2, checkpoint=100), evaluators=[evaluation], best_metric="dev/ndcg", keep=1)
  assert saved_steps(tmp_path) == [4, 10]
  with pytest.raises(InputError, match="best_metric 'dev/mrr' is no result of the evaluators; there are: dev/ndcg"):
    run(tmp_path, Periods(12, evaluate=2), evaluators=[Evaluation(0.1)], best_metric="dev/mrr")


def test_what_is_measured_on_must_stay(tmp_path):
  run(tmp_path, Periods(4, evaluate=2), evaluators=[Evaluation(0.1, 0.2)])
  with pytest.raises(InputError, match="what dev is measured on has changed since the checkpoint"):
    run(tmp_path, Periods(6, evaluate=2), evaluators=[Evaluation(0.3, content="another hash")])
  run(tmp_path, Periods(6, evaluate=2), evaluators=[Evaluation(0.3)])
  assert saved_steps(tmp_path) == [4, 6]


def test_data_that_ends_is_an_error(tmp_path):
  with pytest.raises(TrainingError, match="ended after step 7 of 10"):
    run(tmp_path, Periods(10), batches=TinyBatches(end=7))


def test_the_bar_shows_what_matters(tmp_path, capfd):
  run(tmp_path, Periods(5, log=2))
  bar = capfd.readouterr().err
  for part in ("5/5", "loss ", "acc ", "mrr ", "pairs/s", "tokens/s", "fill 1.00"):
    assert part in bar, part


def test_steps_run_ahead_of_the_metrics(tmp_path):
  """A step is dispatched before the metrics of the one before are fetched, and no step needs more than that."""
  events = []

  class Metric:
    """Notes when it is looked at."""

    def __init__(self, value, step):
      self.value, self.step = value, step

    def __array__(self, *args, **kwargs):
      events.append(("fetched", self.step))
      return np.asarray(self.value)

  def train_step(state, batch):
    state, metrics = STEP(state, batch)
    events.append(("dispatched", int(state.step)))
    return state, {**metrics, "loss": Metric(metrics["loss"], int(state.step))}

  run(tmp_path, Periods(5, log=2, checkpoint=0), train_step=train_step)
  for step in range(1, 5):
    assert events.index(("dispatched", step + 1)) < events.index(("fetched", step))
  for step in range(1, 4):
    assert events.index(("fetched", step)) < events.index(("dispatched", step + 2))


def metrics_of(tokens):
  return {"loss": 1.0, "accuracy": 0.5, "mrr": 0.5, "grad_norm": 2.0, "param_norm": 3.0, "learning_rate": 0.1,
          "pairs": 8, "tokens": tokens, "token_slots": 100}


def test_throughput_and_fill():
  means = PeriodMeans()
  assert means.scalars() == {}
  means.add(metrics_of(50), 0.5)
  means.add(metrics_of(30), 1.5)
  found = means.scalars()
  assert (found["pairs_per_second"], found["tokens_per_second"], found["fill"]) == (8.0, 40.0, 0.4)
  again = PeriodMeans(json.loads(json.dumps(means.to_json())))
  assert again.scalars() == found
  again.add(metrics_of(10), 1.0)
  assert means.scalars() == found  # not shared


def test_the_loop_imports_no_tensorflow():
  code = "import sys, gtr_jax.training.loop, gtr_jax.training.step; print(*{m.split('.')[0] for m in sys.modules})"
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
  assert not {"tensorflow", "seqio", "clu", "gin"} & set(found)


def test_early_stopping(tmp_path):
  """Two evaluations without a better one; started again, it has ended."""
  evaluation = Evaluation(0.1, 0.3, 0.2, 0.3, 0.4)
  result = run(tmp_path, Periods(20, evaluate=2, checkpoint=100, early_stopping=2), evaluators=[evaluation],
                  best_metric="dev/ndcg", keep=1)
  assert result.gave_up and result.stopped_by is None and int(result.state.step) == 8
  assert saved_steps(tmp_path) == [4, 8]
  again = run(tmp_path, Periods(20, evaluate=2, checkpoint=100, early_stopping=2), evaluators=[evaluation],
              best_metric="dev/ndcg", keep=1)
  assert again.gave_up and int(again.state.step) == 8


def test_what_it_started_from_is_known_after_it_went_on(tmp_path):
  evaluation = Evaluation(0.5, 0.4, 0.6)
  for steps in (2, 4):
    result = run(tmp_path, Periods(steps, evaluate=2), evaluators=[evaluation], best_metric="dev/ndcg",
                 measure_start=True)
    assert result.start == 0.5
  assert not evaluation.results
