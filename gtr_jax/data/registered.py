"""What seqio knows of a task or mixture by its name: its tasks, rates, files, cache and vocabulary."""

import hashlib
import importlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from gtr_jax.data import run_vocabulary
from gtr_jax.data.examples import RunVocabulary, add_pair_task, prepared
from gtr_jax.data.sources import RecordSource
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.prepare import manifests


def provider_of(name: str, module: str | None, split: str) -> Any:
  """The task or mixture of that name, which the module declares; or prepared data of that name. Raises InputError."""
  if module:
    try:
      importlib.import_module(module)
    except ModuleNotFoundError as e:
      if e.name and (module == e.name or module.startswith(e.name + ".")):
        raise InputError(f"no module {module!r} to import tasks from; correct MIXTURE_OR_TASK_MODULE, or start where "
                         "Python finds it: in its folder, or with PYTHONPATH") from e
      raise
  names = sorted([*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
  if name not in names and not _is_prepared(name):
    raise InputError(f"no task or mixture {name!r}, nor prepared data of that name in {data_root.data_dir()}; "
                     f"registered are: {', '.join(names) or 'none'}")
  provider = seqio.get_mixture_or_task(name if name in names else _task_of_prepared(name))
  if split not in provider.splits:
    hint = "; to train without, bind VALIDATION = None" if split == "validation" else ""
    raise InputError(f"{name}: no split {split!r}, only {', '.join(sorted(provider.splits))}{hint}")
  return provider


def _is_prepared(name: str) -> bool:
  return bool(name) and (data_root.resolve(name) / "manifest.json").exists()


def _task_of_prepared(name: str) -> str:
  """The name of the task of data that `gtr-jax prepare` has written, as it is: the run says the vocabulary."""
  splits = tuple(manifests.read(name)["examples"])
  place = hashlib.sha256(" ".join([os.fspath(data_root.resolve(name)), *splits]).encode()).hexdigest()[:8]
  task = f"prepared_{re.sub(r'[^a-zA-Z0-9_]', '_', os.path.basename(name))}_{place}"
  if task not in seqio.TaskRegistry.names():
    add_pair_task(task, prepared(name, *splits), vocabulary="")
  return task


def tasks_of(provider: Any, split: str) -> list[Any]:
  """Its tasks that have the split."""
  return [task for task in seqio.get_subtasks(provider) if split in task.splits]


def rates_of(provider: Any, tasks: Sequence[Any]) -> list[float]:
  """Of a mixture, the rate of each task; some may be counted from the data. Raises InputError where they are none."""
  if not isinstance(provider, seqio.Mixture):
    return [1.0] * len(tasks)
  try:
    rates = [float(provider.get_rate(task)) for task in tasks]
  except InputError:
    raise
  except (TypeError, ValueError) as e:
    raise InputError(f"{provider.name}: its rates cannot be told ({' '.join(str(e).split())}); give them as numbers in "
                     "seqio.MixtureRegistry.add") from e
  if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or not sum(rates):
    named = ", ".join(f"{task.name} {rate:g}" for task, rate in zip(tasks, rates, strict=True))
    raise InputError(f"{provider.name}: of rates {named} none can be drawn; give numbers above 0")
  return rates


def find_cached(tasks: Sequence[Any]) -> None:
  """Looks for what `seqio_cache_tasks` has written of these tasks: in the data root, and where seqio is told."""
  folder = os.fspath(data_root.data_dir() / "seqio_cache")
  if folder not in seqio.get_global_cache_dirs():
    seqio.add_global_cache_dirs([folder])
  for task in tasks:
    if task.supports_caching and not task.cache_dir:
      raise InputError(f"{task.name}: not cached in {folder}; run seqio_cache_tasks --tasks={task.name} "
                       f"--module_import=MODULE --output_cache_dir={folder}, or bind USE_CACHED_TASKS = False")


def files_of(task: Any, split: str, use_cached: bool) -> list[str]:
  """The TFRecord files that a task of `add_pair_task` reads; with `use_cached` those of any cached task, whose sources
  need not be there."""
  if use_cached:
    return sorted(tf.io.gfile.glob(f"{seqio.utils.get_cached_tfrecord_prefix(task.cache_dir, split)}-*-of-*"))
  return list(map(os.fspath, task.source.list_shards(split)))


def made_of(task: Any, split: str, use_cached: bool) -> list[str]:
  """The files that decide what is in a split of a task, without making anything of them. Raises InputError where one is
  not there."""
  if isinstance(task.source, RecordSource) and not (use_cached and task.supports_caching):
    return list(map(os.fspath, task.source.made_of(split)))
  return there(files_of(task, split, use_cached and task.supports_caching))


def there(files: Sequence[str]) -> list[str]:
  """Those that are files: what stands for one where a function makes the examples has an empty name."""
  return [file for file in files if file and epath.Path(file).is_file()]


def vocabulary_file_of(provider: Any) -> run_vocabulary.VocabularyFile:
  """What the texts of a task or mixture are read with. Raises InputError where it is no SentencePiece model."""
  vocabulary = provider.output_features["inputs"].vocabulary
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):  # Of a task that was not declared by add_pair_task.
    return run_vocabulary.VocabularyFile(vocabulary.sentencepiece_model_file, vocabulary.extra_ids)
  if not isinstance(vocabulary, RunVocabulary):
    raise InputError(f"{provider.name}: its vocabulary is no SentencePiece model, which a T5 encoder needs")
  return vocabulary.opened_file
