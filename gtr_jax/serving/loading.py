"""Models and stores from disk, ready to be served."""

import concurrent.futures
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from gtr_jax.errors import InputError
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import for_several, load_model
from gtr_jax.io.bars import Bar
from gtr_jax.retrieval.store import Store
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.metrics import Metrics
from gtr_jax.serving.model import ServedModel
from gtr_jax.serving.service import Served
from gtr_jax.serving.stores import ServedStore


def load_all(models: Mapping[str, str], stores: Mapping[str, str], *, make_mesh: Callable[[], Mesh],
             tokenization: Tokenization, dtype: str | None, attention: str, hybrid: bool, rescore: int, limits: Limits,
             metrics: Metrics, tokenizing: concurrent.futures.Executor) -> Served:
  """Loads all, and compiles all programs that it will run.

  Args:
    models: paths by name.
    stores: likewise, each of one of the models.
    make_mesh: gives the devices.
    tokenization, dtype, attention: as of `load_model`.
    hybrid, rescore: as of `ServedStore`.
    limits, metrics, tokenizing: as of `ServedModel`.

  Raises:
    InputError: one cannot be taken, or a store is of none of the models.
  """
  if jax.process_count() > 1:
    raise InputError("gtr-jax serve runs in one process: start one on each machine, and balance between them")
  mesh, served = make_mesh(), {}
  tokenization = tokenization if len(models) == 1 else for_several(tokenization, models.values())
  for name, path in models.items():
    model = load_model(path, mesh, tokenization, dtype, attention)
    if attention == "kernel":
      embed(model, ["a text"], "passage", progress=False)  # Holds the kernel against the reference.
    served[name] = ServedModel(name, model, limits, metrics, tokenizing)
  searched = {name: _store(name, path, served, metrics, hybrid, rescore, limits.top_k)
              for name, path in stores.items()}
  for name, of_model in served.items():
    with Bar(None, f"compiling {name}", " programs", leave=False) as bar:
      def compiled(done, total, bar=bar):
        bar.total = total
        bar.update(1)

      of_model.start(compiled)
  for of_store in searched.values():
    of_store.start()
  return Served(served, searched)


def _store(name: str, path: str, models: Mapping[str, ServedModel], metrics: Metrics, hybrid: bool, rescore: int,
           top_k: int) -> ServedStore:
  """A store with whichever of the models it is of."""
  store, refusals = Store(path), []
  for model in models.values():
    try:
      store.check_model(model.model)
    except InputError as e:
      refusals.append(e)
      continue
    return ServedStore(name, store, model, metrics, hybrid=hybrid, rescore=rescore, max_top_k=top_k)
  raise refusals[0]
