"""`gtr_jax.train`: from pairs in files or in memory to a trained model, from Python."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gtr_jax import config
from gtr_jax.errors import InputError
from gtr_jax.from_pairs import plan
from gtr_jax.from_pairs.options import Options
from gtr_jax.inference.embedder import Embedder, load
from gtr_jax.io import atomic, data_root
from gtr_jax.io.paths import expanded
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl, field_names
from gtr_jax.training import run as training_run


def train(pairs: str | os.PathLike[str] | Iterable[Any], *, init: str | os.PathLike[str],
          output: str | os.PathLike[str], query: str | Sequence[str] = (), passage: str | Sequence[str] = (),
          negatives: str = "", epochs: float | None = None, steps: int | None = None, batch_size: int | None = None,
          learning_rate: float | None = None, loss: str = "in_batch", eval: str | Sequence[str] = (),
          early_stopping: int | None = None, validation_share: float | None = None, vocabulary: str | None = None,
          extra_ids: int | None = None, query_length: int | None = None, document_length: int | None = None,
          bindings: Sequence[str] = ()) -> Embedder:
  """Fine-tunes a model on pairs of a query and a passage, and returns it; what `gtr-jax train --pairs` does.

  Called again with the same arguments it goes on where it stopped, or finds that all is done.

  >>> model = gtr_jax.train("my.jsonl", init="sentence-transformers/gtr-t5-base", output="runs/mine")
  >>> model = gtr_jax.train([("a question", "its answer"), …], init="runs/mine", output="runs/more", epochs=1)

  Args:
    pairs: a file or files of JSON lines, as `gtr-jax prepare pairs` reads them; or the pairs themselves: sequences
      (query, passage, hard negatives …) or mappings with such fields as "query", "positive" and "negatives".
    init: the model to start from, as for `gtr_jax.load`; or a size such as "t5_small", with random weights.
    output: the folder of the run.
    query: the field or fields of the query, where their names are not known; `passage` and `negatives` likewise.
    passage: see `query`.
    negatives: see `query`.
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

  Raises:
    InputError: something given is wrong.
    TrainingError: the loss is not finite.
    KeyboardInterrupt: training was stopped; it is saved.
  """
  options = Options(
      pairs=PairsJsonl(paths=_paths(pairs), query=_names(query), passage=_names(passage), negatives=negatives),
      init=os.fspath(init), output=os.fspath(output), epochs=epochs, steps=steps, batch_size=batch_size,
      learning_rate=learning_rate, loss=loss, collections=(eval,) if isinstance(eval, str) else tuple(eval),
      early_stopping=early_stopping, validation_share=validation_share, vocabulary=vocabulary, extra_ids=extra_ids,
      query_length=query_length, document_length=document_length)
  config_text = config.load(training_run.TrainingRun, (), bindings, first=plan.gin_text(options, bindings=bindings))
  if training_run.train(config.bound(training_run.TrainingRun)(), config_text) is not None:
    raise KeyboardInterrupt
  return load(output)


def _names(field: str | Sequence[str]) -> tuple[str, ...]:
  return field_names(field) if isinstance(field, str) else tuple(field)


def _paths(pairs: Any) -> tuple[str, ...]:
  """Of files; pairs in memory become one in the data folder, named by what is in it."""
  if isinstance(pairs, str | os.PathLike):
    return (expanded(pairs),)
  given = list(pairs)
  if not given:
    raise InputError("pairs is empty: give a file of them, or the pairs")
  if all(isinstance(path, str | os.PathLike) for path in given):
    return tuple(expanded(path) for path in given)
  try:
    lines = [json.dumps(pair if isinstance(pair, Mapping) else list(pair), ensure_ascii=False) for pair in given]
  except TypeError as e:
    raise InputError(f"pairs: give sequences (query, passage, …) or mappings of texts ({e})") from e
  data = "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")
  path = data_root.data_dir() / "pairs_in_memory" / f"{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, data)
  return (os.fspath(path),)
