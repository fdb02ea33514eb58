"""The examples of anything that can be trained on: files of pairs, prepared data, tasks and mixtures of seqio."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import data_root, tensorflow_log
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl


class Found(NamedTuple):
  """What a source has.

  Attributes:
    name: of it, for people.
    read: yields (place, example), from the first one each time.
    notes: lines on what it is.
    counts: of what is left out while reading, filled by it; None where nothing is.
  """

  name: str
  read: Callable[[], Iterator[tuple[str, Example]]]
  notes: list[str]
  counts: Counts | None = None


def find(source: str, module: str | None, split: str, pairs: PairsJsonl | None) -> Found:
  """Looks a source up.

  Args:
    source: a file of pairs, the name or folder of prepared data, or the name of a task or mixture.
    module: that registers the task.
    split: of prepared data and tasks.
    pairs: how files are read.

  Raises:
    InputError: there is none of the name, or it is none that can be read this way.
  """
  if module is None and (data_root.resolve(source) / "manifest.json").exists():
    return _of_prepared(source, split)
  if module is None and epath.Path(source).exists():
    return _of_file(source, pairs)
  return _of_task(source, module, split)


def _of_file(path, pairs):
  assert pairs is not None
  parts, counts = pairs.parts(), Counts()

  def read():
    counts.reasons.clear()
    counts.places.clear()
    for part in parts:
      for number, (_, example) in enumerate(pairs.read(part, counts), start=1):
        yield f"{os.path.basename(part.path)}, {number:,}", example

  return Found(path, read, [f"fields: {line}" for line in pairs.fields()], counts)


def _of_prepared(name, split):
  manifest = manifests.read(name)
  if split not in manifest["splits"]:
    raise InputError(f"{name}: no split {split!r}, only {', '.join(manifest['splits'])}; give one with --split")
  folder = data_root.resolve(name)
  counts = ", ".join(f"{what} {count:,}" for what, count in manifest["counts"].items())
  return Found(name, lambda: _records([os.fspath(folder / file) for file in manifest["splits"][split]]),
               [f"prepared from {', '.join(of['name'] for of in manifest['inputs'])}", f"counts: {counts}"])


def _of_task(name, module, split):
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

  return Found(name, read, notes)


def _records(files: Sequence[str]) -> Iterator[tuple[str, Example]]:
  for path in files:
    with epath.Path(path).open("rb") as file:
      for record in records.read_records(file, path):
        yield records.id_in(record), records.example_in(record)
