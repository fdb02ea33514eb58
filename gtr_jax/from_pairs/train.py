"""`gtr_jax.train`: from pairs in files or in memory to a trained model, from Python."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gtr_jax import config
from gtr_jax.errors import InputError
from gtr_jax.from_pairs import data, plan
from gtr_jax.from_pairs.options import Options
from gtr_jax.inference.embedder import Embedder, load
from gtr_jax.io import atomic, bars, data_root
from gtr_jax.io.paths import expanded, is_remote
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl, field_names
from gtr_jax.training import run as training_run
from gtr_jax.values.check import check, shortened

_EXPECTED = ("the path of a file of JSON lines or of a table, or a list of paths, of tuples (query, passage, …) or "
             'of dicts such as {"query": …, "positive": …}')


def train(pairs: str | os.PathLike[str] | Iterable[Any], *, init: str | os.PathLike[str],
          output: str | os.PathLike[str], query: str | Sequence[str] = (), passage: str | Sequence[str] = (),
          negatives: str = "", ignore: str | Sequence[str] = (), epochs: float | None = None,
          steps: int | None = None, batch_size: int | None = None, learning_rate: float | None = None,
          loss: str = "in_batch", eval: str | Sequence[str] = (), early_stopping: int | None = None,
          validation_share: float | None = None, vocabulary: str | None = None, extra_ids: int | None = None,
          query_length: int | None = None, document_length: int | None = None,
          bindings: Sequence[str] = (), quiet: bool = False) -> Embedder:
  """Fine-tunes a model on pairs of a query and a passage, and returns it; what `gtr-jax train --pairs` does.

  Called again with the same arguments it goes on where it stopped, or finds that all is done.

  >>> model = gtr_jax.train("my.jsonl", init="sentence-transformers/gtr-t5-base", output="runs/mine")
  >>> model = gtr_jax.train([("a question", "its answer"), …], init="runs/mine", output="runs/more", epochs=1)

  Args:
    pairs: a file or files of JSON lines, or tables, as `gtr-jax prepare pairs` reads them; or the pairs themselves:
      sequences (query, passage, hard negatives …) or mappings with such fields as "query", "positive" and "negatives".
    init: the model to start from, as for `gtr_jax.load`; or a size such as "t5_small", with random weights.
    output: the folder of the run.
    query: the field or fields of the query, where their names are not known; `passage` and `negatives` likewise.
    passage: see `query`.
    negatives: see `query`.
    ignore: fields that mean nothing, whatever their names say, such as a label of the topic.
    epochs: passes over the pairs (3), or
    steps: batches.
    batch_size: pairs in a batch, all of them negatives of each other (128).
    learning_rate: the highest, of Adafactor, relative to the weights (.001; .01 from random weights).
    loss: "in_batch" or "ring".
    eval: collections to measure retrieval on while it trains; the first decides which checkpoint is kept as the best.
      Without one, retrieval among the held-out pairs decides.
    early_stopping: end after so many evaluations (of ten) without a better one.
    validation_share: of the queries, to hold out (about 1,000 pairs, at most a tenth).
    vocabulary: the SentencePiece model, where the model carries none, or for random weights.
    extra_ids: sentinels after its pieces.
    query_length: most tokens of a query.
    document_length: most tokens of a document.
    bindings: of gin, "NAME=VALUE", on top.
    quiet: no progress: only what came of it, warnings and errors.

  Raises:
    InputError: something given is wrong.
    TrainingError: the loss is not finite.
    KeyboardInterrupt: training was stopped; it is saved.
  """
  init = _path("init", init, "the name or the path of a model")
  output = _path("output", output, "the path of a folder")
  options = Options(
      pairs=PairsJsonl(paths=_paths(pairs), query=_names("query", query), passage=_names("passage", passage),
                       negatives=negatives, ignore=_names("ignore", ignore)),
      init=init, output=output, epochs=epochs, steps=steps, batch_size=batch_size, learning_rate=learning_rate,
      loss=loss, collections=_collections(eval), early_stopping=early_stopping, validation_share=validation_share,
      vocabulary=vocabulary, extra_ids=extra_ids, query_length=query_length, document_length=document_length)
  before = bars.shown()
  bars.show(before and not quiet)
  try:
    config_text = config.load(training_run.TrainingRun, (), bindings, first=plan.gin_text(options, bindings=bindings))
    if training_run.train(config.bound(training_run.TrainingRun)(), config_text) is not None:
      raise KeyboardInterrupt
    return load(output)
  finally:
    bars.show(before)


def _path(name: str, given: Any, expected: str) -> str:
  if not isinstance(given, str | os.PathLike):
    raise InputError(f"{name} is {shortened(given)}: give {expected}")
  return os.fspath(given)


def _names(name: str, field: Any) -> tuple[str, ...]:
  if isinstance(field, str):
    return field_names(field)
  return tuple(check(field, Sequence[str], name))


def _collections(given: Any) -> tuple[str, ...]:
  several = (given,) if isinstance(given, str | os.PathLike) else given
  if not isinstance(several, list | tuple):
    raise InputError(f"eval is {shortened(given)}: give the path or name of a collection, or a list of them")
  return tuple(_path("eval", one, "the path or name of a collection, or a list of them") for one in several)


def _file(path: str | os.PathLike[str]) -> str:
  place = expanded(path)
  if not (is_remote(place) or os.path.exists(place) or glob.glob(place)):  # Or the texts of pairs that are none.
    raise InputError(f"pairs: {shortened(os.fspath(path))}: no such file; give {_EXPECTED}")
  return place


def _paths(pairs: Any) -> tuple[str, ...]:
  """Of files; pairs in memory become one in the data folder, named by what is in it."""
  if isinstance(pairs, str | os.PathLike):
    return (_file(pairs),)
  if isinstance(pairs, Mapping):
    raise InputError(f"pairs is a mapping of {', '.join(map(repr, pairs)):.80}: give {_EXPECTED}; of columns, "
                     "list(zip(queries, passages))")
  if not isinstance(pairs, Iterable):
    raise InputError(f"pairs is {shortened(pairs)}: give {_EXPECTED}")
  given = list(pairs)
  if not given:
    raise InputError(f"pairs is empty: give {_EXPECTED}")
  if all(isinstance(path, str | os.PathLike) for path in given):
    return tuple(_file(path) for path in given)
  lines = []
  for number, pair in enumerate(given):
    try:
      if isinstance(pair, str):
        raise TypeError("a text alone is no pair")
      lines.append(json.dumps(dict(pair) if isinstance(pair, Mapping) else list(pair), ensure_ascii=False))
    except TypeError as e:
      raise InputError(f"pairs[{number}] is {shortened(pair)} ({e}): give {_EXPECTED}") from e
  written = "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")
  path = data_root.data_dir() / data.IN_MEMORY / f"{hashlib.sha256(written).hexdigest()[:16]}.jsonl"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, written)
  return (os.fspath(path),)
