"""One training run, put together: what `gtr-jax train` calls with everything that the gin files bind."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from gtr_jax.checkpoints.checkpointer import Checkpointer, check_place
from gtr_jax.checkpoints.steps import list_steps
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.errors import InputError, TrainingError, first_line
from gtr_jax.formats.model_dir import write_model_json
from gtr_jax.io import atomic, bars, failures
from gtr_jax.io.config_gin import bindings_of
from gtr_jax.io.paths import expanded, location
from gtr_jax.losses.teacher import of_teacher
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import parameter_table
from gtr_jax.parallel import partitioning, processes
from gtr_jax.parallel.progress import EVALUATION, doing, seconds
from gtr_jax.text.tokenizer import Tokenizer
from gtr_jax.training import banner, begun
from gtr_jax.training.candidates import Candidates
from gtr_jax.training.initial_params import with_initial_params
from gtr_jax.training.kernel_check import check_kernel
from gtr_jax.training.loop import GIVEN_UP, FitResult, Periods, fit, resume
from gtr_jax.training.mfu import most_tokens_per_second
from gtr_jax.training.optimizers import Optimizer
from gtr_jax.training.profiler import Profiler
from gtr_jax.training.programs import Programs, Wanted, compile_ahead
from gtr_jax.training.row_counts import same_row_counts
from gtr_jax.training.state import Loss, create_state
from gtr_jax.training.step import COUNTS, compile_step, make_eval_step, make_train_step
from gtr_jax.training.wandb_writer import WandbWriter, installed
from gtr_jax.training.writers import InBackground, JsonlWriter, TensorboardWriter, Writer
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Length, NonNegative, Positive, Seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
  """All that decides a training run, as the gin files bind it.

  Attributes:
    model_dir: folder of the run: checkpoints/, model.json, the vocabulary, metrics.jsonl, tensorboard/, config.gin,
      parameters.txt, versions.json.
    model: what to train.
    loss: for instance an `InBatchLoss`.
    optimizer: with its learning rate schedule.
    train_data: called with `groups` (data shards), `seed`, and this process's index and their count.
    train_steps: steps in all.
    mesh: the devices.
    validation_data: called with `groups` and the processes; gives "validation/loss" and the like. None: not measured.
    evaluators: each called with `model`, `tokenizer`, `mesh`, the two lengths and prompts; gives what `fit` takes.
    best_metric: "name/key" of the result that decides which checkpoint is kept as the best: the highest, or the lowest
      of a loss.
    early_stopping: end after so many evaluations without a better one; None: never.
    measure_start: evaluate the parameters that a new run starts from, as step 0.
    eval_period: steps between evaluations.
    checkpoint_period: steps between checkpoints.
    log_period: steps between lines of metrics, each the mean over them.
    keep_checkpoints: how many of the last ones; the best is kept besides.
    initial_checkpoint_path: a model whose parameters to start from, in any form that `load_model` reads; step and
      optimizer start fresh.
    random_seed: of the initial parameters, the order of the data and dropout.
    query_length: most tokens of a query when encoding, for model.json; None: as long as in training.
    document_length: likewise.
    query_prompt: text before every query when encoding: the prefix that the task puts there.
    document_prompt: likewise.
    trained_on: what the model card says of the training data, as `from_pairs` says it.
    wandb_project: of Weights & Biases, where metrics are written too; None: they are not.
    skip_non_finite: so many steps in a row whose loss, gradient or parameters are not finite leave everything as it was
      and are gone past; one more, or the first where it is 0, ends the run.
    deterministic: on GPUs, a run that is repeated, or goes on from a checkpoint, has the same bits, at the price of
      slower kernels; on CPUs and TPUs it has without.
    profile_start: step from which `profile_steps` are traced into MODEL_DIR/profile; None: only those after a SIGUSR1.
    profile_steps: how many steps are traced at once.

  Raises:
    InputError: a value is not of its type or range.
  """

  model_dir: epath.PathLike
  model: DualEncoder
  loss: Loss
  optimizer: Optimizer
  train_data: Callable[..., TrainingBatches]
  train_steps: NonNegative
  mesh: jax.sharding.Mesh
  validation_data: Callable[..., ValidationBatches] | None = None
  evaluators: Sequence[Callable] = ()
  best_metric: str | None = None
  early_stopping: Positive | None = None
  measure_start: bool = False
  eval_period: NonNegative = 1000
  checkpoint_period: NonNegative = 1000
  log_period: NonNegative = 100
  keep_checkpoints: Positive = 2
  initial_checkpoint_path: str | None = None
  random_seed: Seed = 0
  query_length: Length | None = None
  document_length: Length | None = None
  query_prompt: str = ""
  document_prompt: str = ""
  trained_on: Mapping[str, Any] | None = None
  wandb_project: str | None = None
  skip_non_finite: NonNegative = 0
  deterministic: bool = False
  profile_start: Positive | None = None
  profile_steps: Positive = 3

  def __post_init__(self):
    check_fields(self)
    if self.wandb_project == "":
      raise InputError("run.TrainingRun.wandb_project is empty: give a project's name, or None")
    if self.initial_checkpoint_path == "":
      raise InputError("INITIAL_CHECKPOINT_PATH is empty: give a model's path, or None to train from random parameters")
    if self.early_stopping and not (self.best_metric and self.eval_period):
      raise InputError("early stopping (EARLY_STOPPING) needs a measure that can get better: set BEST_METRIC, and an "
                       "EVAL_PERIOD above 0")

  def lengths_and_prompts(self, trained: Mapping[str, int]) -> dict[str, Any]:
    """How the model is to read texts when it encodes; `trained` are the lengths of "inputs" and "targets"."""
    return {"query_length": self.query_length or trained["inputs"],
            "document_length": self.document_length or trained["targets"],
            "query_prompt": self.query_prompt, "document_prompt": self.document_prompt}


@contextlib.contextmanager
def _memory_in_words() -> Iterator[None]:
  """Makes one line of what XLA says where the memory of a device is too small."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise TrainingError(f"out of memory ({first_line(e)}); set a smaller MICROBATCH_SIZE or BATCH_SIZE, or divide the "
                        "parameters among several devices (--gin_file=meshes/fsdp.gin)") from e


@_memory_in_words()
def train(run: TrainingRun, config_text: str = "", says_next: bool = True) -> signal.Signals | None:
  """Trains a dual encoder, from step 0 or from where a run in `run.model_dir` stopped.

  Args:
    run: what to do.
    config_text: the resolved configuration, saved as config.gin.
    says_next: end with commands that use the model.

  Returns:
    The signal that stopped the run early, or None.

  Raises:
    InputError: something given does not fit; nothing has been written yet, or nothing is lost.
    TrainingError: not finite, out of data or out of memory.
  """
  began_at = seconds()
  directory, mesh, loss = location(run.model_dir), run.mesh, run.loss.on_mesh(run.mesh)
  if hasattr(loss, "check_width"):
    loss.check_width(run.model.dim)
  if run.wandb_project is not None:
    installed()
  best_metric = run.best_metric
  periods = Periods(run.train_steps, log=run.log_period, evaluate=run.eval_period, checkpoint=run.checkpoint_period,
                    early_stopping=run.early_stopping or 0)
  _check_same_run(config_text)
  check_place(directory)
  lower_is_better = banner.lower_is_better(best_metric)
  with _told_where_it_goes_on(directory):
    ended = processes.from_first(lambda: begun.at_its_end(directory, run.train_steps, lower_is_better, config_text))
  if ended is not None:  # Before the data are read.
    banner.say(f"already trained to step {ended['step']}; nothing to do")
    processes.print_once("\n".join(banner.closing(run, **ended)))
    if says_next:
      banner.say(*banner.following(run, begun.first_collection(config_text)))
    return None
  shard: dict[str, Any] = {"groups": partitioning.num_groups(mesh), "own_groups": partitioning.own_groups(mesh)}
  if any(teacher := of_teacher(loss, run.model.dim)):
    shard["teacher"] = teacher
  batches = processes.first_before_others(  # What is made of the data files is made once.
      lambda: run.train_data(seed=run.random_seed, **shard))
  candidates = Candidates(loss)
  first_batch = batches.check_first_batch()
  candidates.check_first(first_batch)
  processes.check_same(batches.made_from)
  tokenizer = Tokenizer(*batches.vocabulary_file)
  tokenizer.check_fits(run.model.config.vocab_size)
  reads = run.lengths_and_prompts(batches.feature_lengths)
  state, shardings = create_state(run.model, loss, run.optimizer, mesh, run.random_seed)
  with jax.set_mesh(mesh):
    measured = [make(model=run.model, tokenizer=tokenizer, mesh=mesh, **reads)
                for make in run.evaluators]
    if (validation_data := run.validation_data) is not None:
      eval_step = Programs(jax.jit(make_eval_step(run.model, loss)))
      validation = processes.first_before_others(lambda: validation_data(**shard))
      measured.insert(0, ValidationLoss(validation, eval_step, mesh, candidates,
                                        (best_metric or "").partition("/")[0] == ValidationLoss.name))

  processes.check_same({f"what {of.name} is measured on": of.content for of in measured})
  names = [evaluator.name for evaluator in measured]
  if best_metric is not None and best_metric.partition("/")[0] not in names:
    raise InputError(f"best_metric {best_metric!r} belongs to no evaluator; there are: {', '.join(names) or 'none'}")
  if run.initial_checkpoint_path and not processes.from_first(lambda: list_steps(directory / "checkpoints")):
    state = state.beginning_from(with_initial_params(
        state.params, shardings.params, expanded(run.initial_checkpoint_path), tokenizer))

  check_kernel(run.model, state.params, first_batch, mesh)

  # All is checked that can be; only now is anything written.
  with _told_where_it_goes_on(directory), begun.alone(directory), contextlib.ExitStack() as closing:
    if processes.is_first():
      write_model_json(directory, run.model, tokenizer, **reads, trained_lengths={
          "query": batches.feature_lengths["inputs"], "document": batches.feature_lengths["targets"]},
                       dimensions=getattr(loss, "weight_of", None))
    processes.check_shared(directory)
    checkpointer = Checkpointer(directory / "checkpoints", keep=run.keep_checkpoints,
                                mode="min" if lower_is_better else "max")
    closing.callback(checkpointer.close)
    processes.check_same({"the last checkpoint": checkpointer.latest_step()})
    processes.advise(lambda: "start all processes again; " + _goes_on(directory))
    state, progress = resume(checkpointer, state, shardings, batches, measured)
    step = int(state.step)
    gave_up = bool(progress) and periods.gives_up(step, checkpointer.best_step())
    trains = step < run.train_steps and not gave_up
    before = begun.earlier_config(directory) if progress and processes.is_first() else None
    if before is not None and (line := begun.changes_line(directory, before, config_text, step, trains)):
      bars.say(line)
    if progress and not trains and progress.get("evaluation") != GIVEN_UP:
      batches.close()
      banner.say(f"already trained to step {step}; nothing to do")
      return _finish(run, checkpointer, FitResult(state, None, gave_up, progress.get("start")), measured, says_next)
    banner.say(*banner.banner(run, batches.num_pairs, batches.feature_lengths, first_batch, state,
                              [_with_size(evaluator) for evaluator in measured], step))
    if step:
      banner.say(f"going on at step {step} of {run.train_steps} from {checkpointer.directory / str(step)}")
    else:
      banner.warn(run, batches.num_pairs, batches.batch_size, state.opt_state)
    writers: Sequence[Writer] = ()
    if processes.is_first():
      if trains or not progress:
        begun.write_config(directory, config_text, step if progress else None)
      abstract = jax.eval_shape(run.model.init, jax.random.key(0))
      atomic.write_text(directory / "parameters.txt", parameter_table(abstract))
      atomic.write_json(directory / "versions.json", versions())
      of_run: list[Writer] = [
          JsonlWriter(directory / "metrics.jsonl", step), TensorboardWriter(directory / "tensorboard")]
      if (project := run.wandb_project) is not None:
        of_run.append(WandbWriter(project, directory, config_text))
      writers = [InBackground(of_run)]
      closing.callback(writers[0].close)
    train_step = make_train_step(run.model, loss, run.optimizer, run.random_seed, bool(run.skip_non_finite))
    step_fn = Programs(compile_step(train_step, shardings,
                                    run.deterministic and mesh.devices.flat[0].platform == "gpu"))
    if step < run.train_steps and jax.process_count() == 1:  # Several agree on their shapes first: at the first step.
      wanted = [Wanted("training", step_fn, state, first_batch)]
      wanted += [Wanted("validation", of.eval_step, state.params, of.first) for of in measured
                 if isinstance(of, ValidationLoss) and of.first is not None and run.eval_period]
      compile_ahead(mesh, wanted)
    profiler = Profiler(directory, run.profile_start, run.profile_steps)
    result = fit(state, step_fn, batches, checkpointer, periods=periods, mesh=mesh, evaluators=measured,
                 best_metric=best_metric, writers=writers, progress=progress, look_at=candidates.look_at,
                 measure_start=run.measure_start, began=began_at, profiler=profiler,
                 skip_non_finite=run.skip_non_finite,
                 most_tokens_per_second=most_tokens_per_second(run.model, mesh))
    return _finish(run, checkpointer, result, measured, says_next)


def _with_size(evaluator: Any) -> str:
  """Its name, and how much it measures on where it says so."""
  return f"{evaluator.name} ({evaluator.size})" if hasattr(evaluator, "size") else evaluator.name


def _finish(run: TrainingRun, checkpointer: Checkpointer, result: FitResult, measured: Sequence[Any],
            says_next: bool) -> signal.Signals | None:
  """Says what has become of a run that was not stopped; the signal of one that was."""
  if result.stopped_by is None:
    best = checkpointer.best_step()
    lines = banner.closing(run, best, None if best is None else checkpointer.metric_of(best), int(result.state.step),
                           result.gave_up, result.start)
    processes.print_once("\n".join(lines))  # Results: also of a quiet command.
    if says_next:
      banner.say(*banner.following(run, next((of.collection for of in measured if hasattr(of, "collection")), None)))
  return result.stopped_by


def _check_same_run(config_text: str) -> None:
  """Of all processes."""
  packages = {f"the version of {package}": version for package, version in versions().items() if package != "python"}
  processes.check_same(bindings_of(config_text) | packages)


@contextlib.contextmanager
def _told_where_it_goes_on(directory: epath.Path) -> Iterator[None]:
  """Makes one line of what the disk refuses in the block, in whatever library's type: what, why and what is kept."""
  try:
    yield
  except (InputError, TrainingError):
    raise
  except Exception as e:
    if (line := failures.reason(e, directory)) is None:
      raise
    raise InputError(f"{line}; {_goes_on(directory)} when it is started again") from e


def _goes_on(directory: epath.Path) -> str:
  """From which checkpoint training will go on."""
  try:
    steps = list_steps(directory / "checkpoints")
  except (InputError, OSError):  # Of a disk that cannot be read either.
    return "training goes on from the last whole checkpoint"
  return f"training goes on from checkpoint {steps[-1]}" if steps else "training begins anew"


class ValidationLoss:
  """The loss and in-batch metrics on validation batches, weighted by their pairs."""

  name = "validation"

  def __init__(self, batches: ValidationBatches, eval_step: Programs, mesh: jax.sharding.Mesh, candidates: Candidates,
               decides: bool):
    self._batches, self.eval_step, self._mesh, self.content = batches, eval_step, mesh, batches.content
    self.first = next(iter(batches), None)
    if self.first is not None:
      candidates.check_validation(self.first, decides)

  def __call__(self, params: Any) -> dict[str, float]:
    """The loss's metrics, such as `loss`, `accuracy` and `mrr`, of these parameters."""
    totals: dict[str, float] = {}
    pairs = 0.0
    for _, batch in same_row_counts(self._batches, self._mesh, batch_of=lambda batch: batch):
      doing(EVALUATION)
      metrics = jax.device_get(self.eval_step(params, partitioning.global_batch(self._mesh, batch)))
      pairs += float(metrics["pairs"])
      for name in metrics.keys() - COUNTS:
        totals[name] = totals.get(name, 0.0) + float(metrics[name]) * float(metrics["pairs"])
    return {name: total / pairs for name, total in totals.items()}


def versions() -> dict[str, str]:
  """Versions of what a result depends on."""
  packages = ("gtr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "tensorflow-text",
              "numpy", "sentencepiece")
  out = {"python": platform.python_version()}
  for package in packages:
    try:
      out[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return out
