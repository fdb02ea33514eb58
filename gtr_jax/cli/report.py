"""`gtr-jax report`: tables and plots of evaluations, trainings and sweeps."""

import argparse

from gtr_jax.io import flags

HELP = "a markdown report with tables and plots"
DESCRIPTION = """\
Tables (markdown and CSV) and plots (PNG and SVG): nDCG and recall of each system on each collection beside published
figures, the lengths of what is retrieved, loss curves, and what each axis of a sweep does.

  gtr-jax report --results results --model_dir runs/a --model_dir runs/b --output report
  gtr-jax report --sweep sweeps/sizes --output report"""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  for name, what in (("results", "an evaluation's --output"), ("model_dir", "a training run"),
                     ("sweep", "a sweep's folder")):
    p.add_argument(f"--{name}", action="append", default=[], type=flags.path, metavar="DIR", help=f"{what}; repeatable")
  p.add_argument("--output", required=True, type=flags.path, help="folder for report.md, its tables and plots")


def run(args: argparse.Namespace) -> None:
  """Writes the report. Raises InputError."""
  from gtr_jax.evaluation.report import write_report
  print(write_report(args.output, results=args.results, model_dirs=args.model_dir, sweeps=args.sweep))
