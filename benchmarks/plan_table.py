"""The table of docs/scaling.md: dry runs of GTR's four sizes, by the CPU's compiler and by the TPU's.

  python benchmarks/plan_table.py plans.jsonl                  all of it: hours on two cores
  python benchmarks/plan_table.py plans.jsonl xxl 2048 64      one row, with the command that it stands for

Each dry run has a process of its own and is a line of the file; those that are there are not made again. Prints the
table of all that the file holds. The TPU's compiler, libtpu, is `pip install 'gtr_jax[aot]'`.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from gtr_jax.cli import dry_run
from gtr_jax.dry_run.floor import floor
from gtr_jax.parallel import chips

SIZES, BATCHES, DEVICES = ("base", "large", "xl", "xxl"), (2048, 65536), (8, 64, 256)
AT_ONCE = 32  # pairs that a device encodes at once
SHOWN = ("v5e", "v6e", "v5p", "h100")
COMPILERS = ("cpu", "v5e")
KEY = ("size", "batch", "devices", "compiler")


def settings(size: str, batch: int, devices: int) -> tuple[list[str], list[str]]:
  """Gin files and bindings: small models on `data`, large ones on `fsdp`."""
  mesh = "data_parallel" if size in ("base", "large") else "fsdp"
  bindings = [f"BATCH_SIZE={batch}", "t5.T5Config.remat='layer'", "t5.T5Config.scan_layers=True"]
  if batch > AT_ONCE * devices:
    bindings.append(f"MICROBATCH_SIZE={AT_ONCE * devices}")
  if batch > 2048:
    bindings.append("LOSS=@ring.RingLoss()")
  return [f"models/t5_{size}.gin", "runs/pretrain.gin", f"meshes/{mesh}.gin"], bindings


def command(size: str, batch: int, devices: int) -> str:
  """What a row stands for."""
  files, bindings = settings(size, batch, devices)
  return shlex.join(["gtr-jax", "train", "--dry_run", f"--described_devices={devices}", "--chip=v5e",
                     *(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in bindings)])


def measured(size: str, batch: int, devices: int, compiler: str) -> dict[str, Any]:
  """A line of the file."""
  files, bindings = settings(size, batch, devices)
  plan = dry_run.make_plan(argparse.Namespace(
      gin_file=files, gin_bindings=bindings, gin_search_paths="", described_devices=devices,
      chip=None if compiler == "cpu" else compiler, slices=None, mean_tokens=None))
  if plan.compiler.endswith("cpu") != (compiler == "cpu"):
    sys.exit("libtpu is not installed: pip install 'gtr_jax[aot]'")
  packages = ["jax", *(["libtpu"] if compiler != "cpu" else [])]
  state = plan.params_bytes + plan.optimizer_bytes
  return {"size": size, "batch": batch, "devices": devices, "compiler": compiler, "said": plan.compiler,
          "date": datetime.date.today().isoformat(),
          "versions": {package: importlib.metadata.version(package) for package in packages},
          "mesh": plan.mesh, "state": state, "batch_bytes": plan.batch_bytes, "temporaries": plan.temporary_bytes,
          "fits_by_compiler": not plan.out_of_memory, "flops": plan.work.flops,
          "sends": sum(collective.bytes for collective in plan.work.collectives), "seconds": round(plan.seconds),
          "floors": {name: floor(chip, plan.work, state).seconds for name, chip in chips.CHIPS.items()}}


def row(size: str, batch: int, devices: int, by: dict[str, dict[str, Any]]) -> str:
  """A line of the table: `by` has what each compiler said; the TPU's where it was asked."""
  best = by.get("v5e", by.get("cpu"))
  assert best is not None
  needs = best["state"] + best["batch_bytes"] + best["temporaries"]
  fits = [name for name, chip in chips.CHIPS.items() if needs <= chip.memory and (
      best["fits_by_compiler"] or name != best["compiler"])]
  mesh = " x ".join(f"{name} {count}" for name, count in best["mesh"].items() if count > 1)
  temporaries = [f"{by[compiler]['temporaries'] / 1e9:.1f}" if compiler in by else "" for compiler in COMPILERS]
  cells = [size, f"{batch:,}", f"{min(batch, AT_ONCE * devices):,}", mesh, f"{best['state'] / 1e9:.2f}", *temporaries,
           f"{best['flops'] / 1e12:,.0f}", f"{best['sends'] / 1e9:.1f}",
           *[f"{float('{:.2g}'.format(best['floors'][name])):g}" for name in SHOWN],
           "all" if len(fits) == len(chips.CHIPS) else ", ".join(fits) or "none"]
  return f"| {' | '.join(cells)} |"


def read(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
  """The lines of the file."""
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return {tuple(line[name] for name in KEY): line for line in lines}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("file", type=Path, help="a line for each dry run: added to")
  parser.add_argument("row", nargs="*", metavar="SIZE BATCH DEVICES", help="one row (default: all)")
  parser.add_argument("--of_process", choices=COMPILERS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if len(args.row) not in (0, 3):
    parser.error("give a row as SIZE BATCH DEVICES, such as xxl 2048 64")
  chosen = [(args.row[0], *map(int, args.row[1:]))] if args.row else [*itertools.product(SIZES, BATCHES, DEVICES)]
  if args.of_process:
    with args.file.open("a") as f:
      f.write(json.dumps(measured(*chosen[0], args.of_process)) + "\n")
    return
  if args.row:
    print(command(*chosen[0]), file=sys.stderr)
  for number, (one, compiler) in enumerate(itertools.product(chosen, COMPILERS), 1):
    if (*one, compiler) not in read(args.file):
      print(f"{number} of {len(chosen) * len(COMPILERS)}: {one}, by {compiler}", file=sys.stderr, flush=True)
      subprocess.run([sys.executable, __file__, str(args.file), *map(str, one), "--of_process", compiler], check=True,
                     stdout=sys.stderr)
  found = read(args.file)
  titles = ["model", "batch", "at once", "mesh", "state, GB", "temporaries, GB: CPU's compiler", "v5e's", "TFLOPs",
            "sends, GB", *(f"{name}, s" for name in SHOWN), "fits"]
  print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
  for one in itertools.product(SIZES, BATCHES, DEVICES):
    if by := {compiler: found[*one, compiler] for compiler in COMPILERS if (*one, compiler) in found}:
      print(row(*one, by))
  said = {(line["date"], line["said"].rpartition(":")[0] or line["said"], *sorted(line["versions"].items()))
          for line in found.values()}
  for date, compiler, *versions in sorted(said):
    print(f"{date}, {compiler}: {', '.join(' '.join(version) for version in versions)}")


if __name__ == "__main__":
  main()
