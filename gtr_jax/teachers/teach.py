"""Prepared data again, with a teacher's vectors and scores: the same records in the same order in as many shards.

Shards that are done lie in `<NAME>.tmp` under their final names, so that an interrupted run goes on behind them.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from gtr_jax import __version__
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root
from gtr_jax.io.bars import Bar
from gtr_jax.io.contents import content_hash
from gtr_jax.prepare import manifests, records, work_folder
from gtr_jax.prepare.interface import Example
from gtr_jax.prepare.vectors import packed
from gtr_jax.teachers.answers import Answers
from gtr_jax.teachers.teacher import Described, Scorer, Teacher

_TOGETHER = 8192  # Questions: small shards are taken together until they have so many.


def teach(pairs: str | os.PathLike[str], name: str, *, teacher: Teacher | None = None, scorer: Scorer | None = None,
          say: Callable[[str], None] = print) -> epath.Path:
  """Writes prepared data with a teacher's answers below the data root, or goes on where an interrupted run has stopped.

  Args:
    pairs: the name of prepared data below the data root, or their folder.
    name: of what is written.
    teacher: its vectors become those of every query, passage and negative; None: vectors stay as they are.
    scorer: its scores become those of every passage and negative; None: scores stay as they are.
    say: gets the lines for the user.

  Returns:
    The folder.

  Raises:
    InputError: there are no such data; they are of another version or damaged; something else has the name; or what a
      teacher gives is no vector or score.
  """
  if teacher is None and scorer is None:
    raise InputError("nothing to teach: give a teacher of vectors, one of scores, or both")
  manifests.check_name(name)
  source, final = data_root.resolve(os.fspath(pairs)), data_root.data_dir() / name
  if os.path.realpath(source) == os.path.realpath(final):
    raise InputError(f"--name {name}: that is what the pairs are read from; give another --name")
  manifest = manifests.read(os.fspath(source))
  dimensions = teacher.dimensions() if teacher else 0
  description = _describe(source, manifest, name, teacher, dimensions, scorer)
  if manifests.is_there(final, description, max_broken=1.0):
    say(f"{final} is up to date")
    return final
  work = work_folder.path_of(name)
  with work_folder.locked(work):
    _begin(work, description, say)
    new = work / "new"
    new.mkdir(exist_ok=True)
    files = [file for of_split in manifest["splits"].values() for file in of_split]
    _write_shards(source, new, files, sum(manifest["examples"].values()),
                  functools.partial(_Lesson, teacher, dimensions, scorer))
    _finish(source, manifest, description, new)
    work_folder.publish(new, final)
    _remove(work)
  say(f"wrote {final}")
  return final


def _describe(source: epath.Path, manifest: dict[str, Any], name: str, teacher: Teacher | None,
              dimensions: int, scorer: Scorer | None) -> dict[str, Any]:
  """All that decides the result, as `manifests.describe`; what the pairs were prepared with stays in it."""
  path = source / "manifest.json"
  filters = manifest["filters"] | {"name": name, "taught_from": manifest["filters"].get("name", source.name)}
  decides: list[Any] = [manifests.FORMAT, __version__, manifest["fingerprint"]]
  if teacher:
    filters = _without(filters, "teacher") | _settings("teacher", teacher.described) | {
        "teacher_dimensions": dimensions}
    decides.append(["vectors", dimensions, *teacher.described.decides()])
  if scorer:
    filters = _without(filters, "cross_encoder") | _settings("cross_encoder", scorer.described)
    decides.append(["scores", *scorer.described.decides()])
  inputs = [{"name": f"{source.name}/{path.name}", "bytes": path.stat().length, "sha256": content_hash(path)}]
  digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
  return {"format": manifests.FORMAT, "gtr_jax": __version__, "filters": filters, "inputs": inputs,
          "licence": manifest.get("licence", ""), "fingerprint": digest}


def _settings(what: str, described: Described) -> dict[str, Any]:
  return {what: described.name, f"{what}_content": described.content} | {
      f"{what}_{name}": value for name, value in described.settings.items()}


def _without(filters: dict[str, Any], what: str) -> dict[str, Any]:
  """Those that say nothing of another teacher, whose answers are replaced."""
  return {name: value for name, value in filters.items() if name != what and not name.startswith(f"{what}_")}


def _begin(work: pathlib.Path, description: dict[str, Any], say: Callable[[str], None]) -> None:
  """Raises InputError where something else was begun there: it may have taken days."""
  found = work_folder.fingerprint(work)
  if found == description["fingerprint"]:
    say(f"going on in {work}")
  elif found is not None:
    raise InputError(f"{work}: of a run that was interrupted, with other pairs, another teacher or other settings; "
                     "give the same command as then, or remove it, or give another --name")
  else:
    atomic.write_json(work / work_folder.MARK, description)


def _write_shards(source: epath.Path, new: pathlib.Path, files: Sequence[str], pairs: int,
                  begin: Callable[[], "_Lesson"]) -> None:
  """Writes the shards that are not there yet."""
  missing = [file for file in files if not (new / file).exists()]
  done = sum(_count(new / file) for file in files if file not in missing) if len(missing) < len(files) else 0
  with Bar(pairs, "teaching", " pairs", done=done) as bar:
    lesson, waiting = begin(), list[str]()
    for file in missing:
      waiting.append(file)
      for record in records.records_in(source / file):
        lesson.want(records.example_in(record))
      if lesson.size() >= _TOGETHER or file == missing[-1]:
        lesson.find(bar)
        for one in waiting:
          _write_shard(source / one, new / one, lesson)
        lesson, waiting = begin(), []


def _write_shard(old: epath.Path, new: pathlib.Path, lesson: "_Lesson") -> None:
  with atomic.replacing(new) as file:
    for record in records.records_in(old):
      taught = lesson.taught(records.example_in(record))
      records.write_record(file, records.serialize(taught, records.id_in(record)))


def _count(path: pathlib.Path) -> int:
  return sum(1 for _ in records.records_in(epath.Path(path)))


class _Lesson:
  """All that the teachers are asked of some shards, and what they answer."""

  def __init__(self, teacher: Teacher | None, dimensions: int, scorer: Scorer | None):
    self._queries = self._passages = self._scores = None
    self._pairs = 0
    if teacher:
      name = teacher.described.name
      self._queries = self._passages = Answers(teacher.encode_query, (dimensions,), name)
      if teacher.encode_passage is not teacher.encode_query:
        self._passages = Answers(teacher.encode_passage, (dimensions,), name)
    if scorer:
      self._scores = Answers(scorer.score, (), scorer.described.name)

  def _all(self) -> list[Answers]:
    different = self._passages if self._passages is not self._queries else None
    return [answers for answers in (self._queries, different, self._scores) if answers is not None]

  def size(self) -> int:
    """How many questions there are."""
    return sum(map(len, self._all()))

  def want(self, example: Example) -> None:
    """Asks for all of an example."""
    self._pairs += 1
    passages = (example.passage, *example.negatives)
    if self._queries is not None and self._passages is not None:
      self._queries.want([example.query])
      self._passages.want(passages)
    if self._scores is not None:
      self._scores.want(zip(itertools.repeat(example.query), passages))

  def find(self, bar: Bar) -> None:
    """Asks the teachers; the bar goes on by the share of the pairs that the characters done are of all."""
    whole, characters, questions, shown = sum(answers.size() for answers in self._all()), 0, 0, 0
    start = time.monotonic()

    def advance(number: int, length: int) -> None:
      nonlocal characters, questions, shown
      characters, questions = characters + length, questions + number
      pairs = self._pairs * characters // max(whole, 1)
      bar.update(pairs - shown, f"{questions / (time.monotonic() - start):,.0f} texts/s")
      shown = pairs

    for answers in self._all():
      answers.find(advance)
    bar.update(self._pairs - shown)

  def taught(self, example: Example) -> Example:
    """An example with the answers to it."""
    passages = (example.passage, *example.negatives)
    if self._queries is not None and self._passages is not None:
      vectors = (self._queries[example.query], *(self._passages[passage] for passage in passages))
      example = example._replace(vectors=tuple(map(packed, vectors)))
    if self._scores is not None:
      example = example._replace(scores=tuple(float(self._scores[example.query, passage]) for passage in passages))
    return example


def _finish(source: epath.Path, manifest: dict[str, Any], description: dict[str, Any], new: pathlib.Path) -> None:
  """All that prepared data have beside the shards."""
  dropped = source / "dropped.jsonl"
  if dropped.exists():
    atomic.write_bytes(new / dropped.name, dropped.read_bytes())
  counts = {name: manifest[name] for name in ("counts", "broken_places", "examples")}
  manifests.write_whole(epath.Path(new), description | counts | {"splits": {
      split: {file: (new / file).stat().st_size for file in files} for split, files in manifest["splits"].items()}})


def _remove(work: pathlib.Path) -> None:
  """Removes what a run makes there, and the folder if nothing else is in it."""
  shutil.rmtree(work / "new", ignore_errors=True)  # Where it was copied to a bucket.
  for name in (work_folder.MARK, "lock"):
    (work / name).unlink(missing_ok=True)
  with contextlib.suppress(OSError):
    work.rmdir()
