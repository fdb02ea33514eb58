"""Kills training processes at any moment of their lives, again and again, against a run that nobody disturbs.

    python tests/campaigns/kills.py --kills 300 --seed 0

A run is started on 1, 2 or 4 processes; after a time that is drawn from the whole life of such a run, one of them gets
SIGKILL, or SIGTERM; it is started again on a number of processes that is drawn anew, until it is done. Then:

- every group of every batch that any of the processes trained on is, byte for byte, that of the undisturbed run;
- the losses are: bit for bit while a run has always had one number of processes and the undisturbed run has it too,
  else to 1e-6 of the loss for each step, as sums are made in another order;
- what is evaluated is evaluated at the same steps;
- nothing lies in the folders but what the undisturbed run has there too, and no process is left. Of checkpoints there
  are as many, and the same last one: before it may be one that was saved on SIGTERM.

Most processes are forked from this one, which has imported all that they import: of a life that would take half; every
eighth time they are started as a user does. One line for each kill; at the end, figures.
"""

import argparse
import collections
import contextlib
import functools
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from forked import Forked  # noqa: E402
from metrics_lines import without_times  # noqa: E402
from ports import free_port  # noqa: E402
from tiny_gin import tiny_model  # noqa: E402
from tiny_model_dir import corpus, sentence, write_collection, write_vocabulary  # noqa: E402

DEVICES, STEPS, PROCESSES = 4, 24, (1, 2, 4)
END_SECONDS = 120  # In which all processes of a run have to end when one of them is killed.
LIFE_SECONDS, MEET_SECONDS = 600, 30
FRESH = 1 / 8  # Of the starts.
_IMPORTED_FROM = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
_MANY = 20  # Kills, for which the length of a life is worth a run of its own.

GIN = tiny_model(160, 32) + f"""
from gtr_jax.evaluation import evaluate
include 'runs/train.gin'
dual_encoder.DualEncoder.projection_dim = 16
DROPOUT_RATE = 0.1
TEMPERATURE = 0.1
TRAIN_STEPS = {STEPS}
WARMUP_STEPS = 4
LEARNING_RATE = 0.01
BATCH_SIZE = 32
MICROBATCH_SIZE = 16
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 12}}
ROW_LENGTHS = {{'inputs': 16, 'targets': 24}}
NEGATIVES_PER_EXAMPLE = 1
MIXTURE_OR_TASK_MODULE = 'watched_tasks'
MIXTURE_OR_TASK_NAME = 'killed_both'
EVAL_PERIOD = 6
LOG_PERIOD = 1
CHECKPOINT_PERIOD = 4
EVALUATORS = [@evaluate.RetrievalEvaluator]
evaluate.RetrievalEvaluator.collection = %COLLECTION
evaluate.RetrievalEvaluator.name = 'tiny'
BEST_METRIC = 'tiny/nDCG@10'
"""


Process = subprocess.Popen | Forked


class Wrong(Exception):
  """What must not be."""


def write_data(folder: Path) -> None:
  """The data of a run, with nothing made of it yet."""
  folder.mkdir(parents=True)
  write_vocabulary(folder / "spiece.model")
  for name, count in (("questions", 400), ("titles", 150), ("validation", 40)):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({
        "query": f"{sentence(i, 1 + i % 5)} {i}", "passage": f"{sentence(i, 4 + i % 9)} {i}",
        "negatives": [sentence(i + j, 6) for j in range(i % 4)]}) + "\n" for i in range(count)))
  write_collection(folder / "collection", corpus(40))


def import_all(cache: Path) -> None:
  """Of a training process, for the forked ones; no device and no thread comes of it."""
  os.environ.update({
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
      "XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "TF_CPP_MIN_LOG_LEVEL": "3"})
  for name in ("cli.train", "config.parsing", "data.examples", "data.task_records", "evaluation.evaluate",
               "training.run"):
    importlib.import_module(f"gtr_jax.{name}")
  importlib.import_module("clu.metric_writers")


def train(arguments: list[str], devices: int) -> None:
  """What a forked process does."""
  import jax

  from gtr_jax.cli.main import main
  jax.config.update("jax_num_cpu_devices", devices)
  sys.exit(main(arguments))


class Run:
  """Training in a folder of its own."""

  def __init__(self, folder: Path):
    self.folder, self._starts = folder, 0
    write_data(folder / "data")
    (folder / "run.gin").write_text(GIN)
    (folder / "watched").mkdir()

  @property
  def model_dir(self) -> Path:
    return self.folder / "run"

  def start(self, count: int, fresh: bool) -> list[Process]:
    """So many processes of it, forked unless they are to be `fresh`."""
    self._starts += 1
    arguments = ["train", "--gin_file=run.gin", f"--gin.MODEL_DIR={str(self.model_dir)!r}",
                 f"--gin.COLLECTION={str(self.folder / 'data' / 'collection')!r}", f"--data_dir={self.folder / 'data'}"]
    if count > 1:
      arguments += ["--coordinator_address", f"localhost:{free_port()}", "--num_processes", str(count), "--process_id"]
    started: list[Process] = []
    for index in range(count):
      watched = self.folder / "watched" / f"{self._starts:03d}-{index}"
      Path(f"{watched}-place").write_bytes(b"the start".ljust(64))
      environment = {"WATCHED_BATCHES": f"{watched}-batches", "WATCHED_PLACE": f"{watched}-place"}
      own, output = arguments + [str(index)] * (count > 1), Path(f"{watched}-output")
      if not fresh:
        run = functools.partial(train, own, DEVICES // count)
        started.append(Forked(run, environment, output, self.folder))
        continue
      environment |= {"PYTHONPATH": _IMPORTED_FROM, "JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
      with output.open("w") as file:
        started.append(subprocess.Popen([sys.executable, "-m", "gtr_jax", *own], env=os.environ | environment,
                                        stdout=file, stderr=subprocess.STDOUT, cwd=self.folder,
                                        start_new_session=True))
    return started

  def place(self, index: int) -> str:
    """What the last started process of this index was at."""
    return (self.folder / "watched" / f"{self._starts:03d}-{index}-place").read_bytes().decode().strip()

  def outputs(self) -> str:
    """Of the last started processes."""
    paths = sorted((self.folder / "watched").glob(f"{self._starts:03d}-*-output"))
    return "\n".join(path.read_text() for path in paths)

  def batches(self) -> dict[tuple[int, int], set[str]]:
    """(step, group) -> hashes of what any process has trained on there."""
    found = collections.defaultdict(set)
    for path in (self.folder / "watched").glob("*-batches"):
      for line in path.read_text().split("\n")[:-1]:
        step, group, digest = line.split()
        found[int(step), int(group)].add(digest)
    return found

  def metrics(self) -> list[dict[str, Any]]:
    """Without times: the first step of a process is not timed."""
    return [without_times(json.loads(line))
            for line in (self.model_dir / "metrics.jsonl").read_text().splitlines()]

  def left(self) -> set[str]:
    """What lies there, without what every run names in its own way."""
    names = set()
    for path in self.folder.rglob("*"):
      name = str(path.relative_to(self.folder))
      if not name.startswith(("watched", "run/tensorboard/")) and not re.search("/array_metadatas|/ocdbt", name):
        names.add(re.sub(r"/[0-9a-f]{32}(\.npz)?$|/_sharding.*|process_\d+", "", name))
    steps = sorted(int(name.name) for name in (self.model_dir / "checkpoints").iterdir() if name.name.isdigit())
    before = {str(step): f"before_{len(steps) - number}" for number, step in enumerate(steps[:-1])}
    return {re.sub(r"(?<=^run/checkpoints/)\d+", lambda step: before.get(step[0], step[0]), name) for name in names}


def wait(processes: list[Process], seconds: float) -> bool:
  """Whether all end in that time."""
  deadline = time.monotonic() + seconds
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(0.0, deadline - time.monotonic()))
  return all(process.poll() is not None for process in processes)


def left_alive(processes: list[Process]) -> list[int]:
  """Sessions of which a process is left; it is killed."""
  found = []
  for process in processes:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
      found.append(process.pid)
  return found


def undisturbed(run: Run, count: int, fresh: bool) -> float:
  """Runs it to its end; seconds."""
  start = time.monotonic()
  processes = run.start(count, fresh)
  if not wait(processes, LIFE_SECONDS) or any(process.returncode for process in processes):
    raise Wrong(f"the undisturbed run on {count} processes failed:\n{run.outputs()}")
  return time.monotonic() - start


def check(run: Run, expected: Run, counts: set[int], expected_count: int) -> float:
  """Raises Wrong where the finished run differs from the undisturbed one; the largest difference of losses, a step."""
  of_batches = expected.batches()
  for place, digests in run.batches().items():
    if digests != of_batches[place]:
      raise Wrong(f"step {place[0]}, group {place[1]}: other batches {digests}, expected {of_batches[place]}")
  ours, theirs = run.metrics(), expected.metrics()
  if [sorted(line) for line in ours] != [sorted(line) for line in theirs]:
    raise Wrong(f"other lines of metrics: {[line['step'] for line in ours]}")
  worst = 0.0
  for ours_line, theirs_line in zip(ours, theirs, strict=True):
    if "train/loss" in ours_line:
      a, b = ours_line["train/loss"], theirs_line["train/loss"]
      difference = abs(a - b) / abs(b) / ours_line["step"]
      worst = max(worst, difference)
      if (counts == {expected_count} and a != b) or difference > 1e-6:
        raise Wrong(f"step {ours_line['step']}: loss {a!r}, expected {b!r} (processes: {sorted(counts)})")
  if run.left() != expected.left():
    raise Wrong(f"other files: {sorted(run.left() ^ expected.left())}")
  return worst


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=300, help="how many (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
  parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES,
                      help="numbers to draw from, given twice is drawn twice as often (default: 1 2 4)")
  parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no kill after so many")
  parser.add_argument("--keep", action="store_true", help="keep the folder, also where all is well")
  args = parser.parse_args()
  rng, begin = random.Random(args.seed), time.monotonic()
  folder = Path(tempfile.mkdtemp(prefix="kills-"))
  print(f"in {folder}", flush=True)
  import_all(folder / "cache")
  expected, lives = {}, {}
  for count in sorted(set(args.processes)):
    expected[count] = Run(folder / f"undisturbed_{count}")
    lives[count] = undisturbed(expected[count], count, fresh=True)
    if args.kills >= _MANY:  # Again, forked and with compiled programs, as the others will be.
      again = Run(folder / f"life_{count}")
      lives[count] = undisturbed(again, count, fresh=False)
      check(again, expected[count], {count}, count)
    print(f"undisturbed on {count} processes: {lives[count]:.1f} s", flush=True)
  first = min(expected)
  for count in expected:
    check(expected[count], expected[first], {count}, first)

  kills, places, signals, runs, worst = 0, collections.Counter(), collections.Counter(), 0, 0.0
  while kills < args.kills and time.monotonic() - begin < args.seconds:
    run, counts, done = Run(folder / f"run_{runs}"), set(), False
    while not done:
      count = rng.choice(args.processes)
      counts.add(count)
      processes = run.start(count, fresh=rng.random() < FRESH)
      last = kills >= args.kills or time.monotonic() - begin >= args.seconds
      moment = LIFE_SECONDS if last else rng.uniform(0, lives[count])
      victim, number = rng.randrange(count), rng.choices([signal.SIGKILL, signal.SIGTERM], [3, 1])[0]
      if wait(processes, moment):
        done = not any(process.returncode for process in processes)
        if not done:
          raise Wrong(f"a run that nobody has killed failed:\n{run.outputs()}")
        break
      place = run.place(victim)
      processes[victim].send_signal(number)
      kills += 1
      places[place] += 1
      signals[number.name] += 1
      # Whom the others have not met yet they wait for, as long as it may take to come: what starts them ends them.
      if place == "the start" and not wait(processes, MEET_SECONDS):
        for process in processes:
          process.terminate()
      if not wait(processes, END_SECONDS):
        raise Wrong(f"{number.name} to process {victim} of {count} in {place}: the others did not end in "
                    f"{END_SECONDS} s:\n{run.outputs()}")
      codes = [process.returncode for process in processes]
      print(f"{kills:4} {number.name} to {victim} of {count} after {moment:5.1f} s, in {place}: {codes}", flush=True)
      if number is signal.SIGTERM and place != "the start" and not set(codes) <= {143, 0, -15, 1}:
        raise Wrong(f"exit codes {codes}:\n{run.outputs()}")
      done = not any(codes)  # It came too late.
      if left := left_alive(processes):
        raise Wrong(f"processes are left: {left}")
    count = next(iter(counts)) if len(counts) == 1 else first
    worst = max(worst, check(run, expected[count], counts, count))
    runs += 1
    shutil.rmtree(run.folder)
  minutes = (time.monotonic() - begin) / 60
  print(f"{kills} kills ({dict(signals)}) in {runs} runs, {minutes:.0f} minutes; nothing was lost")
  print("in " + ", ".join(f"{place} {n}" for place, n in places.most_common()))
  print(f"largest difference of losses: {worst:.1e} of the loss, a step")
  if not args.keep:
    shutil.rmtree(folder)


if __name__ == "__main__":
  main()
