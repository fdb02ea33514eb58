"""The training loop. It is handed its batches, evaluators, writers and checkpoints."""

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.errors import InputError, TrainingError
from gtr_jax.io import atomic, bars
from gtr_jax.parallel.partitioning import global_batch
from gtr_jax.parallel.progress import COMPILATION, EVALUATION, READING, RESTORE, SAVE, STEP, doing
from gtr_jax.parallel.stopping import Stop, Stopped
from gtr_jax.text.batch import Batch
from gtr_jax.training.goodput import STEPS, Goodput
from gtr_jax.training.metrics import PeriodMeans, shown
from gtr_jax.training.profiler import Profiler
from gtr_jax.training.programs import in_words, known, shape_of
from gtr_jax.training.row_counts import same_row_counts
from gtr_jax.training.state import TrainState, abstract_state, free
from gtr_jax.training.step import FINITE
from gtr_jax.training.writers import Writer

GIVEN_UP = "given up"  # An evaluation, on a signal.


class Evaluator(Protocol):
  """Measures parameters. `name` comes before the names of its results: "validation/loss"; `content` is a hash of what
  it measures on."""

  name: str
  content: str

  def __call__(self, params: Any) -> dict[str, float]: ...


class Batches(Protocol):
  """What is trained on: see `fit`."""

  made_from: Mapping[str, Any]

  def __iter__(self) -> Iterator[Any]: ...

  def close(self) -> None: ...


@dataclass(frozen=True)
class Periods:
  """When things happen, in steps; 0 means never. Everything but logging also happens after the last step.

  Attributes:
    train_steps: the step to stop at, counted from the start of the run (not of this process).
    log: write the mean metrics of so many steps.
    evaluate: run the evaluators.
    checkpoint: save.
    early_stopping: evaluations without a better one after which training ends.
  """

  train_steps: int
  log: int = 100
  evaluate: int = 0
  checkpoint: int = 1000
  early_stopping: int = 0

  def logs(self, step: int) -> bool:
    """Whether metrics are written after this step."""
    return bool(self.log) and step % self.log == 0

  def evaluates(self, step: int) -> bool:
    """Whether the evaluators run after this step."""
    return bool(self.evaluate) and (step % self.evaluate == 0 or step == self.train_steps)

  def saves(self, step: int) -> bool:
    """Whether this step is saved in any case."""
    return step == self.train_steps or bool(self.checkpoint) and step % self.checkpoint == 0

  def gives_up(self, step: int, best_step: int | None) -> bool:
    """Whether training ends after this step, as the best one is that long ago."""
    return bool(self.early_stopping) and best_step is not None and (
        step - best_step >= self.early_stopping * self.evaluate)


class FitResult(NamedTuple):
  """How training ended: the state, the signal that stopped it before the last step, or None, whether it ended early
  because it got no better, and the metric of what it started from, where that was measured."""

  state: TrainState
  stopped_by: signal.Signals | None
  gave_up: bool = False
  start: float | None = None


def resume(checkpointer: Checkpointer, state: TrainState, shardings: TrainState,
           batches: Any, evaluators: Sequence[Evaluator] = ()) -> tuple[TrainState, dict[str, Any]]:
  """The state of the last checkpoint, and the batches set to go on after it; without a checkpoint, all as it was.

  Args:
    checkpointer: of this run.
    state: as created; its memory is freed if there is a checkpoint.
    shardings: of the state.
    batches: with `go_on_after(step, made_from)`.
    evaluators: that `fit` will take.

  Returns:
    The state, and the `progress` that `fit` takes.

  Raises:
    InputError: the checkpoint is of another model, loss or optimizer, or damaged, or data have changed.
  """
  if checkpointer.latest_step() is None:
    return state, {}
  wanted = abstract_state(state, shardings)
  free(state)
  with doing(RESTORE):
    checkpoint = checkpointer.restore(wanted)
    if "batches" not in checkpoint.progress:
      folder = checkpointer.directory / str(checkpoint.step)
      raise InputError(f"{folder}: saved by an earlier version of gtr_jax, which drew other batches; start a run in "
                       "another MODEL_DIR with this as INITIAL_CHECKPOINT_PATH")
    batches.go_on_after(checkpoint.step, checkpoint.progress["batches"])
    before = checkpoint.progress.get("measured_on", {})
    changed = [of.name for of in evaluators if of.content != before.get(of.name, of.content)]
    if changed:
      raise InputError(f"what {', '.join(changed)} is measured on has changed since the checkpoint, and its figures "
                       "could not be compared; measure on the same, or start in another MODEL_DIR (--output) with "
                       "this one as INITIAL_CHECKPOINT_PATH")
  return checkpoint.state, checkpoint.progress


def fit(state: TrainState, train_step: Callable, batches: Batches, checkpointer: Checkpointer, *, periods: Periods,
        mesh: jax.sharding.Mesh, evaluators: Sequence[Evaluator] = (), best_metric: str | None = None,
        writers: Sequence[Writer] = (), progress: Mapping[str, Any] | None = None,
        look_at: Callable[[int, Any], None] = lambda step, batch: None, measure_start: bool = False,
        began: Mapping[str | None, float] | None = None, profiler: Profiler | None = None,
        skip_non_finite: int = 0, most_tokens_per_second: float | None = None) -> FitResult:
  """Trains until `periods.train_steps`, or until SIGTERM or ctrl-C, and saves.

  The loss of every step is looked at while the next one runs. If it, the gradient or the new parameters are not finite,
  training stops there, unless so many may be skipped; such a state is never saved. On a signal to any process the step
  that is running ends and is saved; an evaluation that is running is given up, and made up for when training goes on.

  Args:
    state: fresh, or from `resume`; donated.
    train_step: compiled, `(state, batch) -> (state, metrics)`.
    batches: yields `batch` (this process's numpy arrays) and `ids` (of its examples); `made_from` is saved; `close()`
      is called at the end.
    checkpointer: where to save.
    periods: when to log, evaluate and save.
    mesh: the one that the state lies on.
    evaluators: run with the parameters.
    best_metric: a result of an evaluator, "name/key": the best checkpoint by it is kept, and saved when it comes up.
    writers: get the metrics, in process 0.
    progress: from `resume`.
    look_at: called with each step and this process's part of its batch.
    measure_start: run the evaluators before step 1.
    began: `parallel.progress.seconds()` when the run began; None: when Python did.
    profiler: of the steps; None: nothing is traced.
    skip_non_finite: steps in a row that may not be finite, of a `train_step` that skips them.
    most_tokens_per_second: of `mfu`; None: it is not known.

  Raises:
    TrainingError: something is not finite, or the batches ended.
  """
  progress, profiler = progress or {}, profiler or Profiler(None)
  stop = Stop("the step that is running ends and is saved")
  loop = _Loop(periods, checkpointer, evaluators, best_metric, writers, profiler, batches.made_from, progress,
               Goodput(began or {}, progress.get("goodput")), skip_non_finite, most_tokens_per_second, stop)
  step, saved = int(state.step), checkpointer.latest_step()
  queue, shapes, gave_up = same_row_counts(_read(batches), mesh), set(), False
  with jax.set_mesh(mesh), stop, loop.progress_bar(step), profiler, doing(STEP, step):
    try:
      with contextlib.suppress(Stopped):
        with stop.given_up():
          if measure_start and step == 0:
            loop.start = loop.evaluate(0, state.params_to_use)
          if progress.get("evaluation") == GIVEN_UP:
            loop.make_up_for_evaluation(step, state)
        gave_up = periods.gives_up(step, checkpointer.best_step())
      while step < periods.train_steps and not gave_up:
        doing(STEP, step + 1)
        if stop.asked() or (following := next(queue, None)) is None:
          break
        item, batch = following
        shape = shape_of(batch)
        compiled = shape in shapes or known(train_step, batch)
        if not compiled:
          loop.before_compiling(batch)
        profiler.before(step + 1)
        with (doing(STEP if compiled else COMPILATION, step + 1),
              jax.profiler.StepTraceAnnotation("train", step_num=step + 1)):
          state, metrics = train_step(state, global_batch(mesh, batch))
        loop.dispatched(compiled)
        shapes.add(shape)
        step += 1
        look_at(step, batch)
        loop.pending.append((step, item.ids, metrics))
        loop.settle(keep=1)
        if loop.evaluate_and_save(step, state):
          saved = step
        gave_up = saved == step and periods.gives_up(step, checkpointer.best_step())
      loop.settle(keep=0)
      if step < periods.train_steps and not stop.asked() and not gave_up:
        raise TrainingError(f"the training data ended after step {step} of {periods.train_steps}; repeat the data, or "
                            "set TRAIN_STEPS")
      if saved != step:
        loop.save(step, state, None)
      elif stop.asked() and not loop.gave_evaluation_up:  # Whether that was meant is not said there yet.
        checkpointer.set_progress(step, loop.progress(step), checkpointer.metric_of(step))
    finally:
      batches.close()
      with doing(SAVE, step):
        checkpointer.wait()
  if not loop.gave_evaluation_up and (step >= periods.train_steps or gave_up):
    with doing(SAVE, step):
      checkpointer.finish()
    return FitResult(state, None, gave_up, loop.start)
  stopped_by = stop.received or signal.SIGTERM  # of another process
  if jax.process_index() == 0:
    bars.say(f"stopped by {stopped_by.name} after step {step}, which is saved in {checkpointer.directory}; start again "
             "to go on")
  return FitResult(state, stopped_by)


def _read(batches: Iterable[Any]) -> Iterator[Any]:
  """The batches; what waits for one of them says so."""
  batches = iter(batches)
  while True:
    with doing(READING), jax.profiler.TraceAnnotation(READING):
      item = next(batches, None)
    if item is None:
      return
    yield item


class _Loop:
  """What a step leaves behind: metrics to look at and write, evaluations, checkpoints."""

  def __init__(self, periods, checkpointer, evaluators, best_metric, writers, profiler, made_from, progress, goodput,
               skip_non_finite, most_tokens_per_second, stop):
    # (step, ids, metrics on the device) of steps that nobody has looked at
    self.pending: deque[tuple[int, list[str], Any]] = deque()
    self._periods, self._checkpointer, self._evaluators = periods, checkpointer, evaluators
    self._best_metric, self._made_from, self._profiler = best_metric, dict(made_from), profiler
    self._means, self._goodput = PeriodMeans(progress.get("means")), goodput
    self._may_skip, self._skipped = skip_non_finite, progress.get("skipped", 0)  # in a row
    self._most_tokens_per_second, self._stop = most_tokens_per_second, stop
    self._writers = writers if jax.process_index() == 0 else ()
    self.gave_evaluation_up, self._owed = False, progress.get("evaluation")
    self.start = progress.get("start")  # what the run started from was measured to; None: it was not
    # Until when time has been counted as that of steps; evaluations, saves and compilations are left out.
    self._clock: float | None = None
    self._begun = time.perf_counter()  # what comes before the first step, or a compilation

  def progress_bar(self, step: int) -> bars.Bar:
    self._bar = bars.Bar(self._periods.train_steps, "train", "step", done=step, shown=jax.process_index() == 0)
    return self._bar

  def before_compiling(self, batch: Batch) -> None:
    """The next step has to be compiled."""
    self.settle(keep=0)
    if self._clock is not None:
      self._begun = time.perf_counter()
    self._bar.now(f"compiling ({in_words(batch)})")

  def dispatched(self, was_compiled: bool) -> None:
    """A step is on its way. Steps are timed from here on where it is the first, or compiling took its time."""
    if self._clock is None or not was_compiled:
      self._clock = time.perf_counter()
      self._bar.uncounted(self._clock - self._begun)

  def settle(self, keep: int) -> None:
    """Looks at all steps but the last `keep`: are they finite? Then into the means, the bar and the writers."""
    while len(self.pending) > keep:
      step, ids, metrics = self.pending.popleft()
      with jax.profiler.TraceAnnotation("waiting for the devices"):
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      self._profiler.after(step)
      now = time.perf_counter()
      assert self._clock is not None  # Since the first step was dispatched.
      if self._is_finite(step, ids, metrics):
        self._means.add(metrics, now - self._clock)
      self._clock = now
      scalars, shares = self._means.scalars(), self._goodput.shares()
      if self._most_tokens_per_second and "tokens_per_second" in scalars:
        scalars["mfu"] = scalars["tokens_per_second"] / self._most_tokens_per_second
      self._bar.update(1, f"{shown(scalars)}, goodput {shares[STEPS]:.0%}")
      if self._periods.logs(step):
        self._write(step, {f"train/{name}": value for name, value in scalars.items()} |
                    {f"time/{name}": share for name, share in shares.items()})
        self._means.clear()

  def evaluate_and_save(self, step: int, state: TrainState) -> bool:
    """Evaluates and saves where this is due, and returns whether it saved."""
    if not (self._periods.evaluates(step) or self._periods.saves(step)):
      return False
    self.settle(keep=0)
    saves = self._evaluate_and_save(step, state)
    self._clock = time.perf_counter()
    return saves

  def _evaluate_and_save(self, step: int, state: TrainState) -> bool:
    metric = None
    if self._periods.evaluates(step):
      try:
        with self._stop.given_up():
          metric = self.evaluate(step, state.params_to_use)
      except Stopped:
        self.gave_evaluation_up, self._owed = True, GIVEN_UP
        self.save(step, state, None)
        return True
    best = metric is not None and self._checkpointer.is_best(metric)
    saves = best or self._periods.saves(step) or self._periods.gives_up(step, self._checkpointer.best_step())
    if saves:
      self.save(step, state, metric)
    return saves

  def make_up_for_evaluation(self, step: int, state: TrainState) -> None:
    """Evaluates the checkpoint that training goes on from, as this was given up when it was saved."""
    metric = self.evaluate(step, state.params_to_use)
    self._owed = None
    self._checkpointer.set_progress(step, self.progress(step), metric)

  def save(self, step: int, state: TrainState, metric: float | None) -> None:
    with doing(SAVE, step), jax.profiler.TraceAnnotation(SAVE):
      for writer in self._writers:
        writer.flush()  # What the checkpoint has behind it: a run that resumes does not write it again.
      self._checkpointer.save(step, state, self.progress(step), metric)

  def progress(self, step: int) -> dict[str, Any]:
    """What is saved with a step."""
    ends = (step >= self._periods.train_steps or self._periods.gives_up(step, self._checkpointer.best_step())
            or self._stop.received == signal.SIGINT)
    return {"means": self._means.to_json(), "batches": self._made_from, "start": self.start,
            "measured_on": {evaluator.name: evaluator.content for evaluator in self._evaluators},
            "evaluation": self._owed, "goodput": self._goodput.to_json(ends), "skipped": self._skipped}

  def evaluate(self, step: int, params: Any) -> float | None:
    """Writes all results and returns the one that decides which checkpoint is the best."""
    with doing(EVALUATION, step), jax.profiler.TraceAnnotation(EVALUATION):
      results = {f"{evaluator.name}/{name}": float(value)
                 for evaluator in self._evaluators for name, value in evaluator(params).items()}
    if results:
      self._write(step, results)
      if jax.process_index() == 0:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
        bars.note(f"step {step}: {shown}")
    if self._best_metric is None:
      return None
    if self._best_metric not in results:
      raise InputError(f"best_metric {self._best_metric!r} is no result of the evaluators; there are: "
                       f"{', '.join(results) or 'none'}")
    return results[self._best_metric]

  def _write(self, step: int, scalars: Mapping[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, scalars)

  def _is_finite(self, step: int, ids: Sequence[str], metrics: Mapping[str, float]) -> bool:
    """False of a step that was skipped. Raises TrainingError where none may be skipped, or too many were in a row."""
    if all(math.isfinite(metrics[name]) for name in FINITE):
      self._skipped = 0
      return True
    self._skipped += 1
    values = ", ".join(f"{name} {metrics[name]:g}" for name in FINITE)
    what = f"step {step} is not finite ({values}) on the batch of examples {self._shown(step, ids)}"
    if self._skipped <= self._may_skip:
      bars.say(f"{what}; it is skipped, {self._skipped} of at most {self._may_skip} in a row")
      return False
    self._checkpointer.wait()
    last = self._checkpointer.latest_step()
    good = (f"the last good checkpoint is {self._checkpointer.directory / str(last)}" if last is not None
            else "no checkpoint has been saved yet")
    raise TrainingError(f"{what}; {good}; look at these examples, lower the learning rate or clip the gradient")

  def _shown(self, step: int, ids: Sequence[str]) -> str:
    """Some ids, and where all of them are written to."""
    shown = ", ".join(ids[:8])
    if len(ids) > 8:
      path = self._checkpointer.directory.parent / f"non_finite_step_{step}_process_{jax.process_index()}.json"
      shown += f", ... ({len(ids)} in all"
      with contextlib.suppress(OSError):  # What has gone wrong is more than that the disk is full too.
        atomic.write_json(path, list(ids))
        shown = shown.replace(f"({len(ids)} in all", f"(all {len(ids)}: {path}")
      shown += ")"
    return shown
