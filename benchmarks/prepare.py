"""How fast `gtr-jax prepare` is and how much memory it takes: python benchmarks/prepare.py --megabytes 1000

Writes JSONL of pairs of some 600 bytes, of which one in twenty is there twice, and prepares it with the command itself.
With --posts FILE, a Posts.xml of Stack Exchange, it prepares that dump's posts instead, repeated under new ids.
The peak is the sum over all processes of the most memory that each has had (VmHWM).
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--megabytes", type=int, default=1000, help="of the input (default: 1000)")
  parser.add_argument("--posts", metavar="FILE", help="a Posts.xml to repeat (default: generated JSONL)")
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(default: one for each core)")
  parser.add_argument("--keep", metavar="DIR", help="keep input and output there (default: a temporary folder)")
  parser.add_argument("--quick", action="store_true", help="100 MB")
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    folder = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory()))
    folder.mkdir(parents=True, exist_ok=True)
    size = (100 if args.quick else args.megabytes) * 10**6
    if args.posts:
      path = folder / "Posts.xml"
      repeat_posts(path, args.posts, size)
      measure(folder, "stack_exchange", path, args.workers)
    else:
      path = folder / "pairs.jsonl"
      generate(path, size)
      measure(folder, "pairs", path, args.workers)


def generate(path, size):
  """Words as frequent as in a language."""
  rng = random.Random(0)
  vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(50_000)]
  weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
  phrases = [" ".join(rng.choices(vocabulary, weights, k=8)) for _ in range(100_000)]
  line = b""
  with open(path, "wb") as f:
    while f.tell() < size:
      if rng.random() < 0.05:
        f.write(line)
        continue
      row = {"query": rng.choice(phrases) + f" {rng.randrange(10**9)}", "pos": [". ".join(rng.choices(phrases, k=10))]}
      line = json.dumps(row).encode() + b"\n"
      f.write(line)


def repeat_posts(path, source, size):
  """All posts of a dump again and again, each time under ids that are larger by ten million."""
  rows = [line for line in Path(source).read_text("utf-8-sig").splitlines(True) if line.lstrip().startswith("<row")]
  numbers = re.compile(r' (Id|ParentId|AcceptedAnswerId)="(\d+)"')
  with open(path, "w", encoding="utf-8") as f:
    f.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
    for i in range(0, sys.maxsize, 10**7):
      f.writelines(numbers.sub(lambda found, i=i: f' {found[1]}="{int(found[2]) + i}"', row) for row in rows)
      if f.tell() >= size:
        break
    f.write("</posts>\n")


def measure(folder, source, path, workers):
  size = path.stat().st_size
  command = [sys.executable, "-m", "gtr_jax", "prepare", source, str(path), "--data_dir", str(folder / "data"),
             "--workers", str(workers)]
  begin, process, peaks = time.monotonic(), subprocess.Popen(command), {}
  while process.poll() is None:
    for pid in tree(process.pid):
      peaks[pid] = max(peaks.get(pid, 0), peak_memory(pid))
    time.sleep(0.1)
  wall = time.monotonic() - begin
  if process.returncode:
    sys.exit(process.returncode)
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = usage.ru_utime + usage.ru_stime
  # Every stage has its own workers: at any time there are no more than these.
  largest = sorted(peaks.values(), reverse=True)[:workers + 1]
  print(f"{size / 1e6:,.0f} MB, {workers} workers: {wall:.1f} s, {size / 1e6 / wall:.1f} MB/s; {cpu:.1f} s of CPU, "
        f"{size / 1e6 / cpu:.1f} MB per second of CPU; at most {sum(largest) / 1e6:,.0f} MB of memory in "
        f"{len(largest)} processes")


def tree(pid):
  """A process and what descends from it."""
  yield pid
  with contextlib.suppress(OSError):
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
      yield from tree(int(child))


def peak_memory(pid):
  """In bytes."""
  with contextlib.suppress(OSError):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) * 1024
  return 0


if __name__ == "__main__":
  main()
