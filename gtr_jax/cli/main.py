"""The command line. Every command imports what it needs when it runs, so that `--help` is quick."""

import argparse
import os
import select
import sys
from collections.abc import Sequence

from gtr_jax import __version__
from gtr_jax.cli import (
  convert,
  data,
  demo,
  encode,
  evaluate,
  index,
  merge,
  mine,
  prepare,
  process_flags,
  report,
  search,
  serve,
  shared_flags,
  student,
  sweep,
  teach,
  train,
)
from gtr_jax.errors import InputError, TrainingError
from gtr_jax.io import bars, failures, flags
from gtr_jax.parallel import compilation_cache, processes

COMMANDS = {"prepare": prepare, "data": data, "train": train, "encode": encode, "index": index, "search": search,
            "serve": serve, "evaluate": evaluate, "convert": convert, "merge": merge, "mine": mine, "teach": teach,
            "student": student, "sweep": sweep, "report": report, "demo": demo}
_EPILOG = """\
A first run (no data needed):
  gtr-jax demo --output demo

With your own pairs, from a published model:
  gtr-jax train --pairs my.jsonl --init sentence-transformers/gtr-t5-base --output runs/mine
  gtr-jax encode --model runs/mine --collection my_collection --output embeddings
  gtr-jax search --model runs/mine --embeddings embeddings
  gtr-jax serve --model runs/mine --embeddings embeddings
  gtr-jax evaluate --model runs/mine --collection my_collection --bm25 --output results

`gtr-jax COMMAND --help` explains each. Every wrong input ends in one line and exit code 2.
"""


def main(argv: Sequence[str] | None = None, says_next: bool = True) -> int:
  """Runs one command and returns its exit code: 0 done, 1 training cannot go on, 2 wrong input, 130 interrupted.

  Args:
    argv: its words; default: those of this process.
    says_next: whether it may end with what one could do next; not where another command runs it as one of its steps.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  args = parser().parse_args(_join_gin_flags(argv))
  args.says_next = says_next
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's too, so before jax is imported.
  before = bars.shown()
  if args.quiet:
    bars.show(False)
    os.environ.setdefault("WANDB_SILENT", "true")
  try:
    return _run(args)
  except Exception as e:
    processes.fail_unexpectedly(e)
    raise
  finally:
    bars.show(before)


def parser() -> argparse.ArgumentParser:
  """Of all commands; the parsed `command` says which one."""
  whole = flags.Parser("gtr-jax", description="T5 dual encoders for dense retrieval in JAX.", epilog=_EPILOG,
                       formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  whole.add_argument("--version", action="version", version=f"gtr_jax {__version__}")
  commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, command in COMMANDS.items():
    of_command = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(of_command)
    shared_flags.add_quiet(of_command)
    of_command.add_argument("--no_compilation_cache", action="store_true",
                            help="compile all anew, and keep nothing of it in ~/.cache/gtr_jax/compiled")
  return whole


def _run(args: argparse.Namespace) -> int:
  try:
    if args.no_compilation_cache:
      compilation_cache.turn_off()
    process_flags.join(args)
    if not getattr(args, "dry_run", False):  # Which wants to see what the compiler does.
      compilation_cache.keep_programs(processes.joined())
    command = COMMANDS[args.command]
    code = (command.run(args, _as_a_step) if command is demo else command.run(args)) or 0
    sys.stdout.flush()
    processes.leave()
    return code
  except InputError as e:
    return _failed(args, _message(e), 2)
  except TrainingError as e:
    return _failed(args, _message(e), 1)
  except KeyboardInterrupt:
    return _failed(args, "interrupted", 130)
  except Exception as e:  # A full disk, no permission, a folder where a file belongs: also in the types of libraries.
    if isinstance(e, BrokenPipeError) and _output_is_closed():  # `| head` has read enough.
      return 141
    if (line := failures.reason(e)) is None:
      raise
    return _failed(args, line, 2)


def _output_is_closed() -> bool:
  """Whether nobody reads stdout any more; then nothing is written to it from now on."""
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)
  if closed := bool(poll.poll(0)):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return closed


def _as_a_step(argv: Sequence[str]) -> int:
  """Runs a command for another one."""
  return main(argv, says_next=False)


def _failed(args: argparse.Namespace, message: str, code: int) -> int:
  """Prints the line that says why, and returns the exit code; where there are several processes, all end here."""
  processes.fail(message, code)
  print(f"gtr-jax {args.command}: {message}", file=sys.stderr)
  return code


def _message(error: Exception) -> str:
  """Without the lines that gin adds to an error that comes through what it has configured."""
  return str(error).partition("\n  In call to configurable")[0]


def _join_gin_flags(argv: list[str]) -> list[str]:
  """`--gin.NAME=VALUE` -> `--gin NAME=VALUE`, which argparse can collect."""
  out = []
  for arg in argv:
    out += ["--gin", arg.removeprefix("--gin.")] if arg.startswith("--gin.") else [arg]
  return out
