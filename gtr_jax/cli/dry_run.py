"""`gtr-jax train --dry_run`: from the flags and gin files of a training run to the plan of its step."""

import argparse
from typing import Annotated, Any

from gtr_jax.cli import pairs_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import bars, flags
from gtr_jax.values.ranges import Range

MOST_DEVICES = 10_000  # jax makes an object of each
_DEEP = 12  # layers: those of base
NOT_NEEDED = {"MODEL_DIR": "", "MIXTURE_OR_TASK_NAME": "", "MIXTURE_OR_TASK_MODULE": None, "TRAIN_STEPS": 1,
              "INITIAL_CHECKPOINT_PATH": None, "T5_CHECKPOINT": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of a dry run."""
  group = parser.add_argument_group(
      "dry run", "Compile the training step of this configuration without running it, print what it needs on each "
      "device and what it takes at least, and stop. Nothing is allocated, and no data is read or written but those "
      "of --pairs, which are made ready; a model, a run and a mesh are enough of a configuration.")
  group.add_argument("--dry_run", action="store_true", help="do that")
  group.add_argument("--described_devices", type=flags.of(Annotated[int, Range(1, MOST_DEVICES)]), metavar="N",
                     help="for a mesh of N devices that need not be here (default: those of this machine)")
  group.add_argument("--chip", metavar="NAME",
                     help="only for v4, v5e, v5p, v6e (TPUs), h100 or h200 (default: a row for each); where its "
                     "compiler is installed (gtr_jax[aot], gtr_jax[cuda]), that is asked what memory it needs")
  group.add_argument("--slices", type=flags.positive, metavar="N",
                     help="the described TPUs are in N slices, which a data-centre network connects (default: 1; with "
                     "--chip, whose compiler lays them out)")
  group.add_argument("--tune", action="store_true", default=None,
                     help="try t5.T5Config.remat and MICROBATCH_SIZE, and say which are the fastest that fit, by what "
                     "the compiler of --chip, a TPU, expects: some compilations of minutes each")
  group.add_argument("--mean_tokens", type=flags.above_0, nargs=2, metavar=("QUERY", "PASSAGE"),
                     help="for the number of rows where ROW_LENGTHS packs several texts into a row: tokens of a text "
                     "on average (default: half of the longest)")


def _check_mean_tokens(sizes: Any) -> None:
  if sizes.mean_tokens is None:
    return
  if sizes.row_lengths is None:
    raise InputError("--mean_tokens says how full packed rows are; set ROW_LENGTHS to pack texts, or leave it out")
  for mean, side in zip(sizes.mean_tokens, ("inputs", "targets"), strict=True):
    if mean > sizes.feature_lengths[side]:
      raise InputError(f"--mean_tokens {mean:g} of {side}: TASK_FEATURE_LENGTHS allows {sizes.feature_lengths[side]}")


def _check_slices(args: argparse.Namespace, chip: Any, slices: int) -> None:
  from gtr_jax.dry_run import described
  if chip.topology:
    described.tpu_slices(chip, args.described_devices, slices)
  if slices > 1 and not chip.topology:
    raise InputError(f"--slices {slices}: those are of TPUs; GPUs are in nodes of {chip.domain} each, leave it out")
  if slices > 1 and not described.has_compiler(chip):
    raise InputError(f"--slices {slices}: the compiler for {args.chip} has to lay them out, and is not installed: "
                     "pip install 'gtr_jax[aot]'")


def asked(args: argparse.Namespace) -> bool:
  """Whether the flags ask for a dry run. Raises InputError where they do not fit together."""
  for name in ("described_devices", "chip", "slices", "tune", "mean_tokens"):
    if getattr(args, name) is not None and not args.dry_run:
      raise InputError(f"--{name} belongs to --dry_run; add that, or leave it out")
  if args.tune and not args.chip:
    raise InputError("--tune: say for which TPU, with --chip")
  if args.slices and not (args.chip and args.described_devices):
    raise InputError(f"--slices {args.slices}: say of how many chips and which, with --described_devices and --chip")
  return args.dry_run


def run(args: argparse.Namespace, options: Any = None) -> None:
  """Prints the plan. `args` are those of `gtr-jax train`, `options` of its run from pairs."""
  from gtr_jax.dry_run import step_plan
  from gtr_jax.parallel import chips
  if args.tune:
    _tune(args, options)
    return
  print(step_plan.report(make_plan(args, options), [args.chip] if args.chip else list(chips.CHIPS)))


def _tune(args: argparse.Namespace, options: Any) -> None:
  """Prints what was tried, as it is known, and what is the fastest."""
  from gtr_jax.dry_run import described, tuning
  from gtr_jax.parallel import chips, partitioning
  chip = chips.find(args.chip)
  if not chip.topology:
    raise InputError(f"--tune: only the compiler of TPUs says how long a step takes, and {args.chip} is none; give "
                     "--chip v4, v5e, v5p or v6e")
  if not described.has_compiler(chip):
    raise InputError("--tune asks the compiler of a TPU, which is not installed: pip install 'gtr_jax[aot]'")
  of_run, sizes = _configured(args, options)
  batch, groups = sizes.batch_size, partitioning.num_groups(of_run["mesh"])
  print(f"{'remat':10}{'MICROBATCH_SIZE':>16}{'memory':>10}{'a step':>13}{'MFU':>5}", flush=True)

  def bound(remat, microbatch):
    return [f"t5.T5Config.remat='{remat}'", f"MICROBATCH_SIZE={None if microbatch == batch else microbatch}"]

  def plan_of(remat, microbatch):
    bindings = [*args.gin_bindings, *bound(remat, microbatch)]
    plan = make_plan(argparse.Namespace(**{**vars(args), "gin_bindings": bindings}), options)
    if plan.unknown:
      raise InputError(f"--tune: {plan.unknown}")
    return plan

  def say(choice):
    seconds = "?" if choice.seconds is None else f"{1e3 * choice.seconds:.1f} ms"
    expected = seconds if choice.fits else "does not fit"
    print(f"{choice.remat:10}{choice.microbatch if choice.microbatch < batch else 'None':>16}"
          f"{choice.bytes / chip.memory:>10.0%}{expected:>13}" + f"{choice.mfu:>5.0%}" * choice.fits, flush=True)

  best = tuning.fastest(tuning.choices(plan_of, chip.memory, batch, groups, say))
  if best is None:
    print("none fits: more devices, or a mesh that divides the parameters (meshes/fsdp.gin)")
  else:
    print("the fastest that fits:", *(f'--gin.{binding.replace("=", "=" + chr(34), 1)}"'
                                      for binding in bound(best.remat, best.microbatch)))


def _configured(args: argparse.Namespace, options: Any) -> tuple[Any, Any]:
  """What is bound of a `TrainingRun`, and the sizes of its batch."""
  from gtr_jax.dry_run import step_plan
  from gtr_jax.parallel import chips
  chip = chips.find(args.chip) if args.chip else None
  if chip and args.described_devices:
    _check_slices(args, chip, args.slices or 1)
  if args.described_devices:
    step_plan.describe_devices(args.described_devices)
  from gtr_jax import config
  from gtr_jax.data import batch_sizes, pipeline
  from gtr_jax.parallel import partitioning
  from gtr_jax.training import run
  config.load(run.TrainingRun, args.gin_file, args.gin_bindings, shared_flags.search_paths(args), NOT_NEEDED,
              first=pairs_flags.gin_text(options, args))
  of_run, of_data = config.bindings(run.TrainingRun), config.bindings(pipeline.TrainingBatches)
  fields = step_plan.BatchSizes.__dataclass_fields__.keys()
  sizes = step_plan.BatchSizes(**{name: of_data[name] for name in fields & of_data.keys()},
                               mean_tokens=args.mean_tokens)
  lengths = batch_sizes.all_lengths(sizes.feature_lengths, sizes.negatives_per_example,
                                    sizes.negative_queries_per_example)
  batch_sizes.batch_maker(sizes.batch_size, sizes.microbatch_size, partitioning.num_groups(of_run["mesh"]), 1,
                          sizes.row_lengths, lengths)
  _check_mean_tokens(sizes)
  return of_run, sizes


def make_plan(args: argparse.Namespace, options: Any = None) -> Any:
  """The `step_plan.Plan` of a configuration; what a dry run does not need may be missing in it.

  Args:
    args: the flags.
    options: of a run from pairs.
  """
  of_run, sizes = _configured(args, options)
  from gtr_jax import config
  from gtr_jax.dry_run import described, step_plan
  from gtr_jax.parallel import chips, partitioning
  chip = chips.find(args.chip) if args.chip else None
  devices, of_model = of_run["mesh"].size, of_run["model"].config
  deep = of_model.num_layers >= _DEEP and not of_model.scan_layers
  if chip and chip.topology and described.has_compiler(chip) and deep:
    bars.note(f"the TPU's compiler takes its time over each of {of_model.num_layers} layers, over ten minutes in all "
              "for the largest models; t5.T5Config.scan_layers = True makes them a loop, which is compiled once")
  bars.note(f"compiling the training step for {devices} device{'s' * (devices > 1)} ...")
  across = config.bindings(partitioning.make_mesh).get("across_slices", "data")
  return step_plan.plan(of_run["model"], of_run["loss"], of_run["optimizer"], of_run["mesh"], sizes, chip,
                        args.slices or 1, across)
