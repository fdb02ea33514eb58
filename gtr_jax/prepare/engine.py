"""Prepares a source on this machine: `<data root>/<NAME>/` with shuffled TFRecord shards and a manifest.

Every part is read into a file of buckets, keys are joined bucket by bucket, and the pairs of a bucket of their digests
become a shard. What is done lies in `<NAME>.tmp` under its final name, so that an interrupted run goes on behind it.
What was read of a part lies there under a key of its content (`manifests.part_keys`), and serves whatever the other
parts are; all else is of the whole, and goes where that changes.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root, tables
from gtr_jax.io.bars import Bar
from gtr_jax.io.json_file import read_json
from gtr_jax.io.lines import Part, is_compressed
from gtr_jax.prepare import buckets, decontaminate, manifests, near_pairs, records, transforms, work_folder, workers
from gtr_jax.prepare.interface import RetryableError, Source
from gtr_jax.prepare.records import Pair

_HERE = "\0"  # In the places of what was read: the part's file.
_STAGES = ("read", "join", "near", "match", "earlier", "write", "shards")
_BUCKET_BYTES = 64 << 20  # Of the input, for each bucket, at most.
_MIN_BUCKETS = 64
COMPRESSION = 6  # How much larger a compressed input is than its file, about.


@dataclasses.dataclass(frozen=True)
class Job:
  """What a worker knows."""

  plan: transforms.Plan
  parts: tuple[transforms.Shard | Part, ...]
  data_dir: str
  work: str
  buckets: int
  keys: tuple[str, ...] = ()  # Of the parts.

  def path(self, stage: str, number: int, ending: str) -> str:
    return f"{self.work}/{stage}/{self.keys[number] if stage == 'read' else f'{number:06d}'}.{ending}"

  def all_near(self, stage: str) -> list[str]:
    return [self.path(stage, i, "near") for i in range(self.buckets)]

  def different_parts(self) -> list[int]:
    """The first part of each key."""
    return sorted({key: number for number, key in reversed(list(enumerate(self.keys)))}.values())

  def all_pairs(self) -> list[str]:
    """In the order in which the first of several equal pairs is kept."""
    return [*(self.path("read", i, "pairs") for i in range(len(self.parts))),
            *(self.path("join", i, "pairs") for i in range(self.buckets))]

  def all_values(self) -> list[str]:
    return [self.path("read", i, "values") for i in range(len(self.parts))]

  def commit(self, stage: str, number: int, tally: transforms.Tally) -> None:
    """Says that all of a task is there; its counts. Those of a part say nothing of where its file lies."""
    counts = {"reasons": tally.reasons, "places": tally.places, "dropped": tally.dropped}
    if stage == "read":
      counts = _with_places(counts, self.parts[number].path, _HERE)
    atomic.write_json(self.path(stage, number, "json"), counts, indent=None)

  def is_done(self, stage: str, number: int) -> bool:
    return os.path.exists(self.path(stage, number, "json"))

  def tallies(self, stage: str, count: int) -> Iterator[dict]:
    for i in range(count):
      counts = read_json(self.path(stage, i, "json"), dict, f"remove {self.work}, and run it again")
      yield _with_places(counts, _HERE, self.parts[i].path) if stage == "read" else counts


def _with_places(counts: dict, path: str, other: str) -> dict:
  """With another path where places begin with this one."""
  place = lambda text: other + text[len(path):] if text.startswith(path) else text  # noqa: E731
  return counts | {"places": list(map(place, counts["places"])),
                   "dropped": [row | {"place": place(row.get("place", ""))} for row in counts["dropped"]]}


def prepare(source: Source, settings: manifests.Settings, *, processes: int | None = None, max_broken: float = 0.001,
            keep_parts: bool | None = None, say: Callable[[str], None] = print) -> epath.Path:
  """Prepares a source below the data root, or goes on where an interrupted run has stopped.

  Args:
    source: what to prepare.
    settings: what decides the result beside the source.
    processes: workers (default: one for each core).
    max_broken: the share of lines that may be broken; fewer than 10 always may.
    keep_parts: whether what was read of the parts stays in `<NAME>.tmp/read`, where the next preparation of this name
      finds it; None: until one ends well; False: not even where one fails.
    say: gets the lines for the user.

  Returns:
    The folder.

  Raises:
    InputError: files are missing or damaged, too many lines are broken, nothing is left, there is another preparation
      of this name, or a worker has failed.
  """
  name = settings.name or source.name
  final = data_root.data_dir() / name
  description = manifests.describe(source, settings)
  if manifests.is_there(final, description, max_broken):
    say(f"{final} is up to date")
    return final
  work = work_folder.path_of(name)
  with work_folder.locked(work):
    parts = parts_of(source, settings)
    keys = tuple(manifests.part_keys(source, settings, parts))
    _begin(work, description, keys, say)
    try:
      job = dataclasses.replace(make_job(source, settings, parts, work), keys=keys)
      _run_all(job, processes or os.cpu_count() or 1, max_broken)
      _finish(job, description, final)
    except InputError as e:
      if not isinstance(e, RetryableError):  # The next run has other files or settings.
        _leave(work, keep_parts is not False, say)
      raise
    finally:
      _remove_unfinished(work)
    _leave(work, bool(keep_parts), say)
  say(f"wrote {final}")
  return final


def _begin(work: pathlib.Path, description: dict, keys: Sequence[str], say: Callable[[str], None]) -> None:
  """Empties the work folder but for what was read of these parts, unless it is of the very same preparation."""
  mark, of_parts = work / work_folder.MARK, set(keys)
  if work_folder.fingerprint(work) == description["fingerprint"]:
    say(f"going on in {work}")
  else:
    _remove(work, but=(work_folder.MARK, "lock", "read"))
    atomic.write_json(mark, description)  # Before anything else: by it the next run knows that the folder is ours.
    for path in _files(work / "read"):
      if path.name.partition(".")[0] not in of_parts:
        path.unlink()
    if there := sum((work / f"read/{key}.json").exists() for key in of_parts):
      say(f"going on with {there:,} of {len(of_parts):,} parts, which were read before: {work}")
  for stage in _STAGES:
    (work / stage).mkdir(exist_ok=True)
  _remove_unfinished(work)


def _leave(work: pathlib.Path, keep: bool, say: Callable[[str], None]) -> None:
  """Removes all, or all but what was read of the parts, where it is of any use."""
  for path in _files(work / "read") if keep else ():
    if path.suffix == ".json":
      reasons = read_json(path, dict, f"remove {work}")["reasons"]
      pairs, values = path.with_suffix(".pairs"), path.with_suffix(".values")
      if reasons.get("broken", 0) * 2 >= reasons.get("read", 1) or not (pairs.exists() or values.exists()):
        for of_part in (path, pairs, values):  # Of another kind of file, or nothing.
          of_part.unlink(missing_ok=True)
  if left := _files(work / "read") if keep else []:
    _remove(work, but=(work_folder.MARK, "lock", "read"))
    size = sum(path.stat().st_size for path in left) / 1e6
    say(f"kept what was read of the files: {size:,.1f} MB in {work / 'read'}")
  else:
    _remove(work)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """What is in it and not half written."""
  return sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".") if folder.is_dir() else []


def _remove(work: pathlib.Path, but: tuple[str, ...] = ()) -> None:
  """Removes what a preparation makes there, the mark last, and the folder if nothing else is in it."""
  for name in (*_STAGES, "new", "tested.npz", "traceback.txt", work_folder.MARK, "lock"):
    path = work / name
    if name not in but:
      shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
  if not but and not any(work.iterdir()):
    work.rmdir()


def _remove_unfinished(work: pathlib.Path) -> None:
  """Removes what killed workers were writing. What is finished has no such name."""
  for path in itertools.chain(*((work / stage).glob(".*.tmp") for stage in _STAGES)):
    path.unlink(missing_ok=True)


def parts_of(source: Source, settings: manifests.Settings) -> tuple[transforms.Shard | Part, ...]:
  """All that is read: other prepared data, then the source's parts."""
  without = itertools.chain(*(manifests.shards(name) for name in settings.without))
  return (*without, *source.parts())


def make_job(source: Source, settings: manifests.Settings, parts: tuple[transforms.Shard | Part, ...],
             work: epath.PathLike) -> Job:
  """The number of buckets, whoever does it; writes into the work folder what is tested."""
  tested = os.path.join(work, "tested.npz")
  if settings.decontaminate and not epath.Path(tested).exists():
    decontaminate.write_tested(settings.decontaminate, tested)
  plan = transforms.Plan(
      source, settings.validation_share, decontaminate.File.at(tested) if settings.decontaminate else None,
      settings.near_duplicates, settings.language)
  size = sum(transforms.size_of(part) * (COMPRESSION if _is_packed(part) else 1) for part in parts)
  number = 1 << (max(0, size - 1) // _BUCKET_BYTES).bit_length()
  return Job(plan, parts, os.fspath(data_root.data_dir()), os.fspath(work),
             min(buckets.MOST, max(_MIN_BUCKETS, number)))


def _is_packed(part: transforms.Shard | Part) -> bool:
  return is_compressed(part.path) or isinstance(part, Part) and part.kind == tables.PARQUET


def _run_all(job: Job, number: int, max_broken: float) -> None:
  try:
    _stage(job, "read", [workers.Task(i, transforms.place_of(job.parts[i])) for i in job.different_parts()], number,
           [transforms.size_of(part) for part in job.parts])
    _check_broken(job, max_broken)
    numbered = [workers.Task(i, f"bucket {i}") for i in range(job.buckets)]
    if any(map(os.path.exists, job.all_values())):
      _stage(job, "join", numbered, number, _shares(job.all_values(), job.buckets))
    pairs = _shares(job.all_pairs(), job.buckets)
    if job.plan.near_duplicates:
      _stage(job, "near", numbered, number, pairs)
      _stage(job, "match", numbered, number, _shares(job.all_near("near"), job.buckets))
      _stage(job, "earlier", numbered, number, pairs)
    _stage(job, "write", numbered, number, pairs)
  except workers.TaskError as e:
    path = f"{job.work}/traceback.txt"
    atomic.write_text(path, e.traceback)
    raise RetryableError(f"{e}; the traceback is in {path}") from e


def _shares(paths: Sequence[str], number: int) -> list[float]:
  return [sum(os.path.getsize(path) for path in filter(os.path.exists, paths)) / number] * number


def _stage(job: Job, stage: str, tasks: Sequence[workers.Task], number: int, sizes: Sequence[float]) -> None:
  """Does the tasks that are not done yet."""
  waiting = [task for task in tasks if not job.is_done(stage, task.number)]
  whole = sum(sizes[task.number] for task in tasks)
  finished = whole - sum(sizes[task.number] for task in waiting)
  with Bar(round(whole), stage, "B", done=round(finished), delay=1, leave=False) as bar, \
      contextlib.closing(workers.run(functools.partial(_do, job, stage), waiting, number, bar.update)) as results:
    for task in results:
      finished += sizes[task.number]
      bar.update(max(0, round(finished) - bar.n))


def _do(job: Job, stage: str, task: workers.Task) -> None:
  """In a worker."""
  data_root.set_data_dir(job.data_dir)  # Sources keep indices there.
  {"read": _read, "join": _join, "near": _near, "match": _match, "earlier": _earlier, "write": _write}[stage](job, task)


def _read(job: Job, task: workers.Task) -> None:
  tally = transforms.Tally()
  with buckets.Writer(job.path("read", task.number, "values"), buckets.MOST) as values, \
      buckets.Writer(job.path("read", task.number, "pairs"), buckets.MOST) as pairs:
    for item in transforms.read(job.plan, job.parts[task.number], tally):
      if isinstance(item, Pair):
        pairs.add(*item)
      else:
        values.add(buckets.hash_of(item.key), *item)
  job.commit("read", task.number, tally)


def _join(job: Job, task: workers.Task) -> None:
  tally = transforms.Tally()
  with buckets.Writer(job.path("join", task.number, "pairs"), job.buckets) as pairs:
    for read in buckets.read(job.all_values(), task.number, job.buckets):
      for _, group in itertools.groupby(read, key=lambda value: value[0]):
        values = list(group)
        for pair in transforms.join(job.plan, values[0][1], [value for *_, value in values], tally):
          pairs.add(*pair)
  job.commit("join", task.number, tally)


def _near(job: Job, task: workers.Task) -> None:
  with buckets.Writer(job.path("near", task.number, "near"), job.buckets) as bands:
    for read in buckets.read(job.all_pairs(), task.number, job.buckets):
      for band, rank in near_pairs.bands_of(transforms.different(read)):
        bands.add(band, rank)
  job.commit("near", task.number, transforms.Tally())


def _match(job: Job, task: workers.Task) -> None:
  with buckets.Writer(job.path("match", task.number, "near"), job.buckets) as candidates:
    for read in buckets.read(job.all_near("near"), task.number, job.buckets):
      for _, of_band in itertools.groupby(read, key=lambda of: of[0]):
        for first, later in near_pairs.candidates(rank for _, rank in of_band):
          candidates.add(first, later)
  job.commit("match", task.number, transforms.Tally())


def _earlier(job: Job, task: workers.Task) -> None:
  with buckets.Writer(job.path("earlier", task.number, "near"), job.buckets) as texts:
    read = (buckets.read(paths, task.number, job.buckets) for paths in (job.all_pairs(), job.all_near("match")))
    for pairs, later in buckets.beside(*read):
      for digest, first in near_pairs.earlier(transforms.different(pairs), later):
        texts.add(digest, *first)
  job.commit("earlier", task.number, transforms.Tally())


def _write(job: Job, task: workers.Task) -> None:
  tally = transforms.Tally()
  with contextlib.ExitStack() as stack:
    files = {}
    pairs, others = (buckets.read(paths, task.number, job.buckets) for paths in (
        job.all_pairs(), job.all_near("earlier") if job.plan.near_duplicates else ()))
    for read, near in buckets.beside(pairs, others):
      for pair in transforms.kept(read, tally, [(digest, near_pairs.Earlier(*other)) for digest, *other in near]):
        if pair.split not in files:
          files[pair.split] = stack.enter_context(atomic.replacing(job.path("shards", task.number, pair.split)))
        records.write_record(files[pair.split], pair.record)
  job.commit("write", task.number, tally)


def _check_broken(job: Job, max_broken: float) -> None:
  tally = transforms.Tally()
  for part in job.tallies("read", len(job.parts)):
    tally.update(part["reasons"], part["places"])
  manifests.check_broken(tally, max_broken)


def _finish(job: Job, description: dict, final: epath.Path) -> None:
  """Names the shards, writes the manifest, and gives the folder its name."""
  tally, filled = transforms.Tally(), {split: list[int]() for split in manifests.SPLITS}
  joined = [("join", job.buckets)] if job.is_done("join", 0) else []
  stages = [("read", len(job.parts)), *joined, ("write", job.buckets)]
  for stage, count in stages:
    for i, task in enumerate(job.tallies(stage, count)):
      tally.update(task["reasons"], task["places"])
      tally.keep(task["dropped"])
      for split, shards in filled.items():
        shards += [i] * (f"written_{split}" in task["reasons"])
  new = pathlib.Path(job.work) / "new"
  new.mkdir(exist_ok=True)
  splits: dict[str, dict[str, int]] = {}
  for split, shards in filled.items():
    for n, i in enumerate(shards):
      shard, path = pathlib.Path(job.path("shards", i, split)), new / manifests.shard_name(split, n, len(shards))
      if shard.exists():  # Or else it has been renamed before an interruption.
        shard.replace(path)
      splits.setdefault(split, {})[path.name] = path.stat().st_size
  manifests.write(new, description, tally, splits)
  work_folder.publish(new, final)
