"""What the commands of a sweep read and none of them makes, by its content: with other data a command is another."""

import ast
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import data_root, tensorflow_log
from gtr_jax.io.config_gin import bindings_of
from gtr_jax.io.contents import content_hash
from gtr_jax.io.paths import location

_BATCHES = "gtr_jax.data.pipeline."
_DATA = (".jsonl", ".json", ".tsv", ".csv", ".parquet", ".arrow", ".feather", ".gz", ".zst", ".bz2", ".xz", ".txt")
_KNOWN_BY_NAME = ("beir/", "nano-beir/")


def of_paths(paths: Iterable[str | None]) -> str:
  """A hash of what is in these files, and in the data files of these folders; "" where none of them is there.

  Published collections ("beir/NAME") are what their name says, whether they have been downloaded or not.
  """
  return _joined(hashed for path in paths if path and not path.startswith(_KNOWN_BY_NAME)
                 for hashed in _contents(path))


def of_training(config_text: str) -> str:
  """The same of the data that a training reads: its tasks, vocabulary and collections; of what is not there yet, as
  another command makes it, nothing.

  Args:
    config_text: resolved.
  """
  values = {name: _literal(value) for name, value in bindings_of(config_text).items()}
  found = [of_paths(value for name, value in values.items()
                    if name.endswith(".collection") and isinstance(value, str))]
  for batches, split in (("TrainingBatches", "train"), ("ValidationBatches", "validation")):
    of = {name: values.get(f"{_BATCHES}{batches}.{name}") for name in (
        "mixture_or_task_name", "mixture_or_task_module", "vocabulary", "use_cached", "split")}
    if name := of["mixture_or_task_name"]:
      found.append(_of_tasks(name, of["mixture_or_task_module"], of["split"] or split, of["vocabulary"],
                             bool(of["use_cached"])))
  return _joined(filter(None, found))


@functools.cache
def _of_tasks(name: str, module: str | None, split: str, vocabulary: str | None, use_cached: bool) -> str:
  tensorflow_log.quiet()
  from gtr_jax.data import run_vocabulary
  from gtr_jax.data.registered import find_cached, made_of, provider_of, tasks_of, vocabulary_file_of
  try:
    provider = provider_of(name, module, split)
    tasks = tasks_of(provider, split)
    if use_cached:
      find_cached(tasks)
    with run_vocabulary.use_vocabulary(vocabulary, 0):
      files = [vocabulary_file_of(provider).path]
    files += [path for task in tasks for path in made_of(task, split, use_cached)]
    return _joined(content_hash(epath.Path(path)) for path in files)
  except (InputError, OSError):
    return ""  # The training says it, unless it is there by then.


def _contents(path: str) -> Iterator[str]:
  place = location(path)
  place = place if place.exists() else data_root.resolve(path)
  if not place.is_dir():
    yield from [content_hash(place)] if place.exists() else []
    return
  for folder in (place, place / "qrels"):
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
      if file.name.endswith(_DATA) and file.is_file():
        yield f"{os.fspath(file.relative_to(place))} {content_hash(file)}"


def _joined(hashes: Iterable[str]) -> str:
  text = "\n".join(hashes)
  return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def _literal(value: str) -> Any:
  """None of a reference."""
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return None
