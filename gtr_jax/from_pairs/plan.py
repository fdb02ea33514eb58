"""From a file of pairs and a model to a training run: every setting that the user does not give, and all as gin."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gtr_jax import config
from gtr_jax.collections.protocol import Protocol, check_task, find_one
from gtr_jax.data.pipeline import TrainingBatches
from gtr_jax.errors import InputError
from gtr_jax.formats.model_dir import MODEL_JSON, check_free
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.from_pairs import data, start
from gtr_jax.from_pairs.options import BATCH_SIZE, EPOCHS, LEARNING_RATE, LOSSES, RANDOM_LEARNING_RATE, Options
from gtr_jax.io import atomic, data_root
from gtr_jax.io.paths import location
from gtr_jax.parallel import partitioning, processes
from gtr_jax.training import banner, memory
from gtr_jax.training.run import TrainingRun
from gtr_jax.training.state import state_initializer

EVALUATIONS, MOST_NEGATIVES = 10, 4
_SHARE_OF_MEMORY = 0.6  # that a step may take by our estimate
_DEEP = 7  # Layers from which on one is compiled and looped over.
_FILL = 0.9  # of packed rows
_IMPORTS = """from __gin__ import dynamic_registration
from gtr_jax.evaluation import evaluate
from gtr_jax.losses import in_batch
from gtr_jax.losses import ring
from gtr_jax.models import dual_encoder
from gtr_jax.models import t5
from gtr_jax.training import run
"""
_RUN = "include 'runs/train.gin'"  # After the model.


def gin_text(options: Options, gin_files: Sequence[str] = (), bindings: Sequence[str] = (),
             search_paths: Sequence[str] = (), say: Callable[[str], None] = banner.say) -> str:
  """Prepares the pairs, and gives the run as the text of a gin file: `first` of `config.load`.

  Args:
    options: of the user.
    gin_files: what else is to hold; they come after what is decided here.
    bindings: likewise, and after the files.
    search_paths: for the files.
    say: gets lines for the user.

  Raises:
    InputError: pairs, model, files or bindings are wrong.
  """
  config.parse(gin_files, bindings, search_paths, first=_IMPORTS + _RUN)  # As far as it can be read without the pairs.
  check_free(options.output)
  if not (location(options.output) / MODEL_JSON).exists():  # One at its end may only be read.
    processes.first_before_others(lambda: atomic.check_writable(options.output))
  for collection in options.collections:
    found = processes.first_before_others(functools.partial(find_one, collection))
    check_task(found, Protocol())
  tokenization = Tokenization(options.vocabulary, options.extra_ids, options.query_length, options.document_length)
  of_model = functools.partial(start.of_model, options.init, tokenization)
  # What needs no pairs comes before them: it may be wrong.
  begin = None
  if not start.is_size(options.init):
    begin = processes.first_before_others(of_model)
  elif options.vocabulary is not None or options.extra_ids is not None:
    begin = processes.first_before_others(lambda: start.of_size(options.init, tokenization, ()))
  pairs = processes.first_before_others(lambda: data.prepare(options.pairs, options.validation_share))
  if begin is None:
    begin = processes.first_before_others(lambda: start.of_size(options.init, tokenization, data.texts(pairs.name)))
  lengths = data.measure(pairs, begin.tokenizer, begin.lengths, begin.prompts)
  text = _gin(options, pairs, begin, lengths)
  _check_alone(options, pairs)
  for more in (_for_devices, _for_memory):
    config.load(TrainingRun, gin_files, bindings, search_paths, first=text)
    run, batches = config.bindings(TrainingRun), config.bindings(TrainingBatches)
    text += processes.from_first(functools.partial(more, run, batches, lengths))  # Hosts may differ in memory.
  _check_together(options, run, batches)
  for line in _described(options, pairs, begin, lengths):
    say(line)
  return text


def _check_alone(options: Options, pairs: data.Pairs) -> None:
  """Raises InputError where there is one pair, and nothing that it could be told apart from."""
  if pairs.train > 1 or pairs.negatives:
    return
  counts = pairs.manifest["counts"]
  left_out = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in counts.items()
                       if reason not in ("read", "written") and n)
  held_out = f", {pairs.validation:,} held out" if pairs.validation else ""
  raise InputError(f"{', '.join(options.pairs.paths)}: one pair to train on ({counts['read']:,} read"
                   f"{', left out: ' * bool(left_out)}{left_out}{held_out}), which has no other to be told apart from; "
                   "give more pairs, or hard negatives")


def _check_together(options: Options, run: Mapping[str, Any], batches: Mapping[str, Any]) -> None:
  """Raises InputError where what the flags and the bindings on top come to does not go together."""
  if batches["batch_size"] == 1 and not batches["negatives_per_example"]:
    raise InputError("a batch of one pair (--batch_size, BATCH_SIZE) has no other that it could be told apart from; "
                     "make it 2 or more, or give hard negatives")
  if options.early_stopping and run["early_stopping"] and not run["best_metric"]:
    raise InputError(f"--early_stopping {options.early_stopping}: nothing is held out to measure; give --eval "
                     "COLLECTION, or a larger --validation_share, or more pairs")


def _gin(options: Options, pairs: data.Pairs, begin: start.Start, lengths: Mapping[str, data.Lengths]) -> str:
  """The run as the text of a gin file, but for the microbatch."""
  groups = jax.device_count()
  if options.batch_size is not None and options.batch_size > pairs.train:
    most = pairs.train // groups * groups
    raise InputError(f"--batch_size {options.batch_size}: there are only {pairs.train:,} pairs to train on; " +
                     (f"give at most {most:,}, or leave it out" if most else "leave it out"))
  batch_size = options.batch_size or max(groups, min(BATCH_SIZE, pairs.train) // groups * groups)
  steps = options.steps or max(1, round((options.epochs or EPOCHS) * pairs.train / batch_size))
  period = math.ceil(steps / EVALUATIONS)
  lines = [_IMPORTS, begin.gin, _RUN]
  evaluators = [("held_out", os.fspath(pairs.collection))] if pairs.collection is not None else []
  evaluators = [*_named(options.collections), *evaluators]
  lines += [f"{name}/evaluate.RetrievalEvaluator.{field} = {value!r}" for name, collection in evaluators
            for field, value in (("name", name), ("collection", collection))]
  macros: dict[str, Any] = {
      "MODEL_DIR": os.fspath(options.output), "INITIAL_CHECKPOINT_PATH": begin.initial,
      "MIXTURE_OR_TASK_MODULE": None, "MIXTURE_OR_TASK_NAME": pairs.name,
      "VOCABULARY": begin.vocabulary, "EXTRA_IDS": begin.tokenizer.extra_ids,
      "TASK_FEATURE_LENGTHS": {"inputs": lengths["query"].limit, "targets": lengths["document"].limit},
      "ROW_LENGTHS": {"inputs": lengths["query"].row, "targets": lengths["document"].row},
      "QUERY_LENGTH": begin.lengths["query"], "DOCUMENT_LENGTH": begin.lengths["document"],
      "QUERY_PROMPT": begin.prompts["query"], "DOCUMENT_PROMPT": begin.prompts["document"],
      "NEGATIVES_PER_EXAMPLE": min(pairs.negatives, MOST_NEGATIVES),
      "BATCH_SIZE": batch_size, "TRAIN_STEPS": steps, "WARMUP_STEPS": steps // 10,
      "LEARNING_RATE": options.learning_rate or (RANDOM_LEARNING_RATE if begin.initial is None else LEARNING_RATE),
      "EVAL_PERIOD": period, "CHECKPOINT_PERIOD": period, "LOG_PERIOD": max(1, min(100, period // 2)),
      "BEST_METRIC": f"{evaluators[0][0]}/nDCG@10" if evaluators else None,
      "EARLY_STOPPING": options.early_stopping, "MEASURE_START": begin.initial is not None and bool(evaluators)}
  lines += [f"{name} = {value!r}" for name, value in macros.items()]
  lines += [f"EVALUATORS = [{', '.join(f'@{name}/evaluate.RetrievalEvaluator' for name, _ in evaluators)}]",
            f"LOSS = {LOSSES[options.loss]}", f"run.TrainingRun.trained_on = {_trained_on(options, pairs)!r}"]
  if pairs.collection is None:
    lines.append("VALIDATION = None")
  return "\n".join([*lines, ""])


def _trained_on(options: Options, pairs: data.Pairs) -> dict[str, Any]:
  """For the model card, which is published: no folders."""
  files = ["pairs in memory" if os.path.basename(os.path.dirname(path)) == data.IN_MEMORY else
           os.path.basename(os.path.normpath(path)) for path in options.pairs.paths]
  return {"task": pairs.name, "files": files, "pairs": pairs.train,
          "fields": [fields.partition("; not read: ")[0] for fields in pairs.fields], "held_out": dict(pairs.sizes)}


def _named(collections: Sequence[str]) -> list[tuple[str, str]]:
  """(name for gin and the metrics, collection)."""
  named: dict[str, str] = {}
  for collection in collections:
    base = "".join(c if c.isalnum() else "_" for c in os.path.basename(os.path.normpath(collection))) or "collection"
    name = base if base[0].isalpha() else f"c_{base}"
    number = 2
    while name in ("held_out", "validation", "train", *named):
      name, number = f"{base}_{number}", number + 1
    named[name] = collection
  return list(named.items())


def _for_devices(run: Mapping[str, Any], batches: Mapping[str, Any], lengths: Mapping[str, data.Lengths]) -> str:
  """Layers as a loop where there are many, which compiles sooner; parameters divided where a device cannot hold all."""
  del batches, lengths
  lines = ["from gtr_jax.models import t5"]
  if jax.default_backend() != "cpu":
    lines.append("t5.T5Config.remat = 'layer'")
  if run["model"].config.num_layers >= _DEEP or jax.default_backend() != "cpu":
    lines.append("t5.T5Config.scan_layers = True")
  there = memory.available_bytes()
  if there is not None and jax.device_count() > 1 and jax.default_backend() != "cpu":
    state = jax.eval_shape(state_initializer(run["model"], run["loss"], run["optimizer"], run["mesh"], 0)[0])
    if memory.estimated_bytes(run["model"], state.params, state.opt_state, run["mesh"], {}, 1, 1, 2) > there / 2:
      lines.append("include 'meshes/fsdp.gin'")
  return "\n".join([*lines, ""])


def _for_memory(run: Mapping[str, Any], batches: Mapping[str, Any], lengths: Mapping[str, data.Lengths]) -> str:
  """The largest microbatch whose step fits the memory, by our estimate; the whole batch where that fits."""
  mesh, batch_size, there = run["mesh"], batches["batch_size"], memory.available_bytes()
  groups = partitioning.num_groups(mesh)
  if there is None or batch_size % groups or not batches["row_lengths"]:
    return "MICROBATCH_SIZE = None\n"
  if mesh.devices.flat[0].platform == "cpu":  # They share it.
    there //= jax.local_device_count()
  state = jax.eval_shape(state_initializer(run["model"], run["loss"], run["optimizer"], mesh, 0)[0])
  texts = {"queries": ("query", 1), "passages": ("document", 1 + batches["negatives_per_example"])}
  possible = [size for size in range(batch_size, 0, -groups) if batch_size % size == 0]
  for size in possible:
    shapes = {}
    for name, (side, each) in texts.items():
      of = lengths[side]
      shapes[name] = math.ceil(size // groups * each * of.read / of.row / _FILL), of.row
    needed = memory.estimated_bytes(run["model"], state.params, state.opt_state, mesh, shapes, batch_size,
                                    batch_size * texts["passages"][1], batch_size // size)
    if needed <= _SHARE_OF_MEMORY * there:
      break
  return f"MICROBATCH_SIZE = {None if size == batch_size else size}\n"


def _described(options: Options, pairs: data.Pairs, begin: start.Start,
               lengths: Mapping[str, data.Lengths]) -> list[str]:
  """What was found, and what follows from it."""
  held_out = f"{pairs.validation:,} held out (a hash of the query decides)" if pairs.validation else "none held out"
  if pairs.validation and pairs.collection is None:
    held_out += ", too few to measure anything"
  elif not pairs.validation and options.validation_share != 0:
    held_out += " (too few)"
  lines = [f"pairs     {', '.join(options.pairs.paths)}: {pairs.train:,} to train on, {held_out}; prepared in "
           f"{_short(data_root.resolve(pairs.name))}"]
  counts = {reason: n for reason, n in pairs.manifest["counts"].items() if reason not in ("read", "written") and n}
  if counts:
    lines.append(f"          {pairs.manifest['counts']['read']:,} lines read; left out: " +
                 ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in counts.items()))
  lines += [f"{'' if i else 'fields':10}{fields}" for i, fields in enumerate(pairs.fields)]
  for side, of in lengths.items():
    cut = f"{of.cut:.1%} are cut at {of.limit}" if of.cut else f"cut at {of.limit} if one is longer"
    more = f" (--{side}_length reads more)" if of.cut > 0.1 else ""
    asked = getattr(options, f"{side}_length")
    if asked is not None and of.limit < asked:
      more = f" (--{side}_length {asked:,} is more than any of these texts needs)"
    lines.append(f"{'lengths' if side == 'query' else '':10}{side}: {of.mean:.0f} tokens on average, the longest of a "
                 f"sample {of.longest}; {cut}{more}; rows of {of.row}")
  lines.append(f"start     {begin.said}")
  return lines


def _short(path: os.PathLike[str]) -> str:
  """As one would type it."""
  home, text = os.path.expanduser("~"), os.fspath(path)
  return f"~{text.removeprefix(home)}" if text.startswith(f"{home}/") else text
