"""What a preparation would make of its files, by the first thousand lines of each: `gtr-jax prepare … --dry_run`."""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.io import data_root, lines, tables
from gtr_jax.io.lines import Part
from gtr_jax.io.paths import is_remote
from gtr_jax.prepare import engine, manifests, near_pairs, records, transforms
from gtr_jax.prepare.interface import Source
from gtr_jax.prepare.records import Pair

LOOKED_AT = 1000  # Lines of a file, and what is left of a block behind them where all are dropped.
_COUNTED = 4 << 20  # Bytes of a file in which its lines are counted.
_BLOCK = 1 << 16
_EXAMPLES, _WIDTH = 3, 200


class _Enough(BaseException):
  """Ends the reading of a file within it."""


class _Sample(NamedTuple):
  """Of a file.

  Attributes:
    part: its beginning.
    items: what was read.
    read: lines or records.
    whole: how many of them there are in it, about.
    seconds: that reading took.
  """

  part: Part
  items: list[Pair | transforms.Value]
  read: int
  whole: float
  seconds: float

  @property
  def factor(self) -> float:
    return self.whole / self.read if self.read else 1.0


@contextlib.contextmanager
def nothing_written() -> Iterator[None]:
  """Inside, the data root is a folder of links to what is in it: what is made there, such as an index of passages, goes
  with it."""
  root = os.fspath(data_root.data_dir())
  if is_remote(root):
    yield
    return
  with tempfile.TemporaryDirectory(prefix="gtr-jax-dry-run-") as links:
    for below in ("", "cache"):
      os.makedirs(os.path.join(links, below), exist_ok=True)
      there = Path(root, below)
      for path in there.iterdir() if there.is_dir() else ():
        if path != Path(root, "cache"):
          os.symlink(path, os.path.join(links, below, path.name))
    data_root.set_data_dir(links)
    try:
      yield
    except InputError as e:
      raise InputError(str(e).replace(links, root)) from e
    finally:
      data_root.set_data_dir(root)


def show(source: Source, settings: manifests.Settings, processes: int | None = None,
         say: Callable[[str], None] = print) -> None:
  """Says what is read of the first lines of each file, what is dropped and why, and about how much will come of all.

  Within `nothing_written`. Raises InputError where a file is missing or of another kind.
  """
  workers = processes or os.cpu_count() or 1
  tally = transforms.Tally()
  with tempfile.TemporaryDirectory(prefix="gtr-jax-dry-run-") as folder:
    plan = engine.make_job(source, settings, (), folder).plan
    samples = []
    for part in source.parts():
      if not part.start:
        samples.append(sample := _sample(plan, part, tally))
        say(_looked_at(sample))
    began = time.perf_counter()
    pairs = [item for sample in samples for item in sample.items if isinstance(item, Pair)]
    of_keys = _by_key(samples)
    joined = [pair for key, values in of_keys.items() for pair in transforms.join(plan, key, values, tally)]
    of_keys = {key: values for key, values in of_keys.items() if not key.startswith(transforms.OF_ID)}
    kept = _kept(plan, sorted([*pairs, *joined], key=lambda pair: pair.digest), tally)
    after = time.perf_counter() - began
  counts = {"read": 0} | {reason: n for reason, n in sorted(tally.reasons.items()) if reason[:8] != "written_"}
  say("counts: " + ", ".join(f"{reason} {n:,}" for reason, n in (counts | {"written": len(kept)}).items()))
  for place in tally.places[:_EXAMPLES]:
    say(f"broken: {place}")
  for pair in kept[:_EXAMPLES]:
    for line in _example(pair):
      say(line)
  if settings.without:
    say(f"what {', '.join(settings.without)} has already was not looked up")
  if of_keys:
    say(f"of {len(of_keys):,} keys in these lines, {len(joined):,} pairs could be joined; in whole files more meet "
        "what belongs to them")
  factor = _mean_factor(samples)
  count = factor * len(kept)
  seconds = [sample.factor * sample.seconds for sample in samples]
  undivided = [time for sample, time in zip(samples, seconds, strict=True) if sample.part.stop is None]
  whole = max(sum(seconds) / workers, *undivided, 0.0) + factor * after / workers
  size = count * sum(len(pair.record) + 16 for pair in kept) / max(1, len(kept))
  at_least = "at least " * bool(of_keys)
  if factor > 1:
    say("pairs that are the same as one further on are counted below as different ones")
  say(f"in all {at_least}about {_rounded(count)} pairs, {_rounded(size / 1e6)} MB, {_rounded(whole / 60)} minutes with "
      f"{workers} workers; nothing was written")


def _sample(plan: transforms.Plan, part: Part, tally: transforms.Tally) -> _Sample:
  items: list[Pair | transforms.Value] = []
  told = before = until_then = 0  # Bytes of the file; those that had been read when the last block was asked for.

  def on_bytes(number: int) -> None:
    nonlocal told, before, until_then
    if (found := lines.progress.lines or len(items)) > until_then:
      before, until_then = told, found
    told += number
    if lines.progress.lines >= LOOKED_AT:
      raise _Enough

  ended, began = False, time.perf_counter()
  with lines.on_bytes(on_bytes), contextlib.closing(transforms.read(plan, part, own := transforms.Tally())) as read:
    try:
      for item in read:
        items.append(item)
        if max(lines.progress.lines, len(items)) >= LOOKED_AT:
          break
      else:
        ended = part.stop is None
    except _Enough:
      pass
  seconds = time.perf_counter() - began
  number = lines.progress.lines or len(items) + own.reasons["broken"]
  own.reasons["read"] = number
  tally.update(own.reasons, own.places)
  tally.keep(own.dropped)
  size = lines.size_of(part.path)
  if ended:
    whole: float = number
  elif part.kind in (tables.PARQUET, tables.ARROW):
    whole = tables.number_of_rows(part.path) or number
  elif part.path.endswith(".7z") or part.kind.endswith(" array"):  # By what was read until the last block.
    whole = size * until_then / before if before else size * number / max(1, told)
  else:
    whole = _number_of_lines(part.path, size)
  return _Sample(part, items, number, max(whole, number), seconds)


def _number_of_lines(path: str, size: int) -> float:
  """Of a file, by its first megabytes."""
  told = found = 0
  share = (0, 0)  # Bytes of the file, and the lines in them.

  def on_bytes(number: int) -> None:
    nonlocal told, share
    if told <= _COUNTED:
      share = told, found  # What was read until then has been unpacked.
    told += number

  with lines.on_bytes(on_bytes), lines.open_file(path) as f:
    while told <= _COUNTED:
      if not (block := f.read(_BLOCK)):
        return found
      found += block.count(b"\n")
  return share[1] * size / max(1, share[0])


def _looked_at(sample: _Sample) -> str:
  kind = f" ({sample.part.kind})" * bool(sample.part.kind)
  if not sample.read:
    return f"{sample.part.path}{kind}: looked up by id"
  of = f"all {sample.read:,}" if sample.whole <= sample.read else (
      f"the first {sample.read:,} of about {_rounded(sample.whole)}")
  return f"{sample.part.path}{kind}: {of} lines or records"


def _by_key(samples: list[_Sample]) -> dict[str, list[bytes]]:
  of_keys: dict[str, list[bytes]] = {}
  for item in itertools.chain.from_iterable(sample.items for sample in samples):
    if isinstance(item, transforms.Value):
      of_keys.setdefault(item.key, []).append(item.value)
  return of_keys


def _kept(plan: transforms.Plan, pairs: list[Pair], tally: transforms.Tally) -> list[Pair]:
  others: list[tuple[bytes, near_pairs.Earlier]] = []
  if plan.near_duplicates:
    different, of_bands = list(transforms.different(pairs)), dict[bytes, list[bytes]]()
    for band, rank in near_pairs.bands_of(different):
      of_bands.setdefault(band, []).append(rank)
    candidates = itertools.chain.from_iterable(map(near_pairs.candidates, of_bands.values()))
    others = list(near_pairs.earlier(different, candidates))
  return transforms.kept(pairs, tally, others)


def _mean_factor(samples: list[_Sample]) -> float:
  """By how much more is in the files than was read of them, of what gives pairs."""
  giving = [sample for sample in samples if sample.items]
  return sum(sample.whole for sample in giving) / max(1, sum(sample.read for sample in giving))


def _example(pair: Pair) -> Iterator[str]:
  texts = records.texts_of(pair.record)
  negatives = f", {len(texts['negatives'])} negatives" * bool(texts["negatives"])
  yield f"--- {pair.split}{negatives}"
  for name in ("query", "passage"):
    text = " ".join(texts[name][0].split())
    yield f"{name:10}{text[:_WIDTH]}{'…' * (len(text) > _WIDTH)}"
  for text in texts["negatives"][:1]:
    yield f"{'negative':10}{' '.join(text.split())[:_WIDTH]}"


def _rounded(number: float) -> str:
  """Two digits of it."""
  return f"{float(f'{number:.2g}'):,.{0 if number >= 10 else 1}f}"
