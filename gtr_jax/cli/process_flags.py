"""The flags of several processes, and joining them."""

import argparse
import re

from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.parallel import processes

_ADVICE = {"train": "; training goes on from its last whole checkpoint",
           "encode": "; encoding goes on at the first chunk that is missing",
           "evaluate": "; what is measured is kept, and encoding goes on at the first chunk that is missing"}


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  group = p.add_argument_group("several processes", "Start the same command in each: with --distributed where Slurm, "
                               "Open MPI, Cloud TPU or GKE says who is who, else with the other three. Where others "
                               "reach the port too, set GTR_RUN_SECRET to the same text in the environment of each.")
  group.add_argument("--distributed", action="store_true", help="one of several processes of a cluster")
  group.add_argument("--coordinator_address", metavar="HOST:PORT", help="process 0's host, and a free port there")
  group.add_argument("--num_processes", type=flags.positive, metavar="N", help="how many there are")
  group.add_argument("--process_id", type=flags.non_negative, metavar="I", help="which one this is, from 0")


def join(args: argparse.Namespace) -> None:
  """Joins the other processes, if the flags say that there are any. Raises InputError."""
  by_hand = [getattr(args, name, None) for name in ("coordinator_address", "num_processes", "process_id")]
  given = [value is not None for value in by_hand]
  if not any(given) and not getattr(args, "distributed", False):
    return
  if getattr(args, "dry_run", False):
    raise InputError("--dry_run runs in one process, whatever the run: leave --distributed, --coordinator_address, "
                     "--num_processes and --process_id out, and describe all devices with --described_devices")
  if args.distributed and any(given):
    raise InputError("give --distributed, or --coordinator_address, --num_processes and --process_id, not both")
  if args.distributed:
    cluster = processes.find_cluster()
  else:
    address, count, index = by_hand
    if address is None or count is None or index is None:
      raise InputError("--coordinator_address, --num_processes and --process_id go together: give all three, or "
                       "--distributed where the cluster says them")
    if not re.fullmatch(r".+:\d+", address) or int(address.rpartition(":")[2]) not in range(1, 65536):
      raise InputError(f"--coordinator_address {address}: give HOST:PORT, such as 10.0.0.1:9876")
    if not 0 <= index < count:
      raise InputError(f"--process_id {index}: of --num_processes {count} the first is 0, the last {count - 1}")
    cluster = processes.Cluster(address, count, index)
  advice = "start all processes again" + _ADVICE.get(args.command, "")
  processes.join(f"gtr-jax {args.command}", cluster, advice)
  if args.command != "train":  # It compares what its flags and gin files come to.
    own = ("process_id", "coordinator_address", "quiet")
    processes.check_same({f"--{name}": value for name, value in vars(args).items() if name not in own})
