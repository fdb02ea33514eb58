"""The examples of anything that can be trained on: files of pairs, prepared data, tasks and mixtures of seqio."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import data_root, tables, tensorflow_log
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.of_queries import right_negatives
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.text.same_text import folded


class Found(NamedTuple):
  """What some sources have.

  Attributes:
    name: of them, for people.
    read: yields (place, example), from the first one each time.
    notes: lines on what they are.
    counts: of what is left out of files while they are read, filled by it.
    has_files: whether there are files of pairs among them.
  """

  name: str
  read: Callable[[], Iterator[tuple[str, Example]]]
  notes: list[str]
  counts: Counts
  has_files: bool = False


def find(sources: Sequence[str], module: str | None, split: str, pairs: PairsJsonl) -> Found:
  """Looks sources up; they come one behind the other.

  Args:
    sources: each a file of pairs (or what else `io.tables` reads: a pattern, a folder of tables), the name or folder of
      prepared data, or the name of a task or mixture.
    module: that registers the tasks.
    split: of prepared data and tasks.
    pairs: how files are read.

  Raises:
    InputError: there is none of the name, or it is none that can be read this way.
  """
  counts, found = Counts(), list[Found]()
  for of_files, some in itertools.groupby(sources, lambda source: module is None and _is_file(source)):
    if of_files:
      found.append(_of_files(dataclasses.replace(pairs, paths=tuple(some)), counts))
      continue
    for source in some:
      is_prepared = module is None and _is_prepared(source)
      found.append(_of_prepared(source, split, counts) if is_prepared else _of_task(source, module, split, counts))
  if len(found) == 1:
    return found[0]
  notes = [line for of in found for line in (of.name, *(f"  {note}" for note in of.notes))]

  def read():
    for of in found:
      yield from of.read()

  return Found(f"{len(sources)} sources", read, notes, counts, any(of.has_files for of in found))


def _is_prepared(source):
  return (data_root.resolve(source) / "manifest.json").exists()


def _is_file(source):
  """Raises InputError where it looks like one and is not there."""
  if _is_prepared(source):
    return False
  if epath.Path(source).exists() or tables.is_pattern(source):
    return True
  if tables.looks_like_a_file(source):
    raise InputError(f"{source}: no such file, nor prepared data in a folder of that name; correct the path")
  return False


def _of_files(pairs, counts):
  parts = pairs.parts()

  def read():
    for part in parts:
      for number, (_, example) in enumerate(pairs.read(part, counts), start=1):
        example = right_negatives(example, folded(example.query), folded(example.passage), counts)
        yield f"{os.path.basename(part.path)}, {number:,}", example

  return Found(", ".join(pairs.paths), read, [f"fields: {line}" for line in pairs.fields()], counts, has_files=True)


def _of_prepared(name, split, nothing):
  manifest = manifests.read(name)
  if split not in manifest["splits"]:
    raise InputError(f"{name}: no split {split!r}, only {', '.join(manifest['splits'])}; give one with --split")
  folder = data_root.resolve(name)
  said = ", ".join(f"{what} {count:,}" for what, count in manifest["counts"].items())
  return Found(name, lambda: _records([os.fspath(folder / file) for file in manifest["splits"][split]]),
               [f"prepared from {', '.join(of['name'] for of in manifest['inputs'])}", f"counts: {said}"], nothing)


def _of_task(name, module, split, nothing):
  tensorflow_log.quiet()
  from gtr_jax.data import registered  # TensorFlow takes seconds to import.
  from gtr_jax.data.pair_task import PairTask
  provider = registered.provider_of(name, module, split)
  tasks = registered.tasks_of(provider, split)
  if others := [task.name for task in tasks if not isinstance(task, PairTask)]:
    raise InputError(f"{', '.join(others)}: declared by seqio alone, so only its features are known and not its texts; "
                     "add_pair_task declares a task whose examples can be shown")
  rates = registered.rates_of(provider, tasks)
  files = {task.name: registered.files_of(task, split, False) for task in tasks}
  notes = [f"task {task.name}: {task.num_input_examples(split):,} examples, rate {rate:g}"
           for task, rate in zip(tasks, rates, strict=True)]

  def read():
    yield from itertools.chain.from_iterable(map(_records, files.values()))

  return Found(name, read, notes, nothing)


def _records(files: Sequence[str]) -> Iterator[tuple[str, Example]]:
  for path in files:
    for record in records.records_in(epath.Path(path)):
      yield records.id_in(record), records.example_in(record)
