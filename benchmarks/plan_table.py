"""The table of docs/scaling.md: dry runs of GTR's four sizes, each in a process of its own.

  python benchmarks/plan_table.py                  all of it, in about 20 minutes on two cores
  python benchmarks/plan_table.py xxl 2048 64      one row, with the command that it stands for
  python benchmarks/plan_table.py xxl 2048 64 v5e  memory by the TPU's compiler, where libtpu is installed
"""

import argparse
import dataclasses
import itertools
import json
import shlex
import subprocess
import sys

from gtr_jax.dry_run import chips, command, step_plan
from gtr_jax.dry_run.hlo import Collective, Work

SIZES, BATCHES, DEVICES = ("base", "large", "xl", "xxl"), (2048, 65536), (8, 64, 256)
AT_ONCE = 32  # pairs that a device encodes at once
SHOWN = ("v5e", "v6e", "v5p", "h100")


def flags(size: str, batch: int, devices: int) -> list[str]:
  """Of `gtr-jax train`: small models on `data`, large ones on `fsdp`."""
  mesh = "data_parallel" if size in ("base", "large") else "fsdp"
  out = [f"--described_devices={devices}", f"--gin_file=models/t5_{size}.gin", "--gin_file=runs/pretrain.gin",
         f"--gin_file=meshes/{mesh}.gin", f"--gin.BATCH_SIZE={batch}", "--gin.t5.T5Config.dtype='bfloat16'",
         "--gin.t5.T5Config.remat='layer'", "--gin.t5.T5Config.scan_layers=True"]
  if batch > AT_ONCE * devices:
    out.append(f"--gin.MICROBATCH_SIZE={AT_ONCE * devices}")
  if batch > 2048:
    out.append("--gin.LOSS=@ring.RingLoss()")
  return out


def row(size: str, batch: int, devices: int, plan: step_plan.Plan) -> str:
  """A line of the table."""
  state = plan.params_bytes + plan.optimizer_bytes
  floors = {name: chips.floor(chip, plan.work, state).seconds for name, chip in chips.CHIPS.items()}
  fits = [name for name, chip in chips.CHIPS.items() if plan.total_bytes <= chip.memory and not plan.out_of_memory]
  mesh = " x ".join(f"{name} {count}" for name, count in plan.mesh.items() if count > 1)
  at_once = min(batch, AT_ONCE * devices)
  sent = sum(collective.bytes for collective in plan.work.collectives)
  cells = [size, f"{batch:,}", f"{at_once:,}", mesh, f"{state / 1e9:.2f}", f"{plan.temporary_bytes / 1e9:.1f}",
           f"{plan.work.flops / 1e12:,.0f}", f"{sent / 1e9:.1f}",
           *[f"{float(f'{floors[name]:.2g}'):g}" for name in SHOWN],
           "all" if len(fits) == len(chips.CHIPS) else ", ".join(fits) or "none"]
  return f"| {' | '.join(cells)} |"


def dry_run_of(arguments: list[str]) -> None:
  """In a process of its own: prints the plan as JSON."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--gin_file", action="append")
  parser.add_argument("--gin", action="append", dest="gin_bindings")
  parser.add_argument("--gin_search_paths", default="")
  command.add_arguments(parser)
  plan = command.make_plan(parser.parse_args(["--dry_run", *(a.replace("--gin.", "--gin=", 1) for a in arguments)]))
  print(json.dumps(dataclasses.asdict(plan)))


def main(arguments: list[str]) -> None:
  if arguments and arguments[0].startswith("--"):
    dry_run_of(arguments)
    return
  chosen = [(arguments[0], int(arguments[1]), int(arguments[2]))] if arguments else itertools.product(
      SIZES, BATCHES, DEVICES)
  chip = [f"--chip={arguments[3]}"] if len(arguments) > 3 else []
  print("| model | batch | at once | mesh | state, GB | temporaries, GB | TFLOPs | sends, GB | " +
        " | ".join(f"{name}, s" for name in SHOWN) + " | fits |\n|" + "---|" * (9 + len(SHOWN)))
  for size, batch, devices in chosen:
    options = [*flags(size, batch, devices), *chip]
    if arguments:
      print(shlex.join(["gtr-jax", "train", "--dry_run", *options]), file=sys.stderr)
    run = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
    if run.returncode:
      sys.exit(f"{size} {batch} {devices}: {run.stderr[-2000:]}")
    fields = json.loads(run.stdout.splitlines()[-1])
    work = fields["work"]
    work["collectives"] = [Collective(*collective) for collective in work["collectives"]]
    print(row(size, batch, devices, step_plan.Plan(**{**fields, "work": Work(**work)})), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
