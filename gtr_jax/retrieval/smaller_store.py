"""A store in fewer bytes, made of one of float32 vectors: nothing is embedded again."""

from typing import Any

import numpy as np

from gtr_jax.collections.corpus import Documents, View
from gtr_jax.errors import InputError
from gtr_jax.retrieval.quantization import are_normalized, check, shortened
from gtr_jax.retrieval.store import CHUNK_ROWS, Store, StoreWriter


def smaller_store(whole: Store, output: Any, precision: str = "float32", dimensions: int | None = None,
                  progress: bool = True) -> Store:
  """Makes of a store one that keeps its vectors otherwise. Started again, goes on with the chunks that are missing.

  It is the store that `encode_corpus` makes of the same model and documents, but for what vectors differ by with the
  texts that they are embedded beside.

  Args:
    whole: of float32 vectors; where all of them have length 1, they are normalised again after they are cut.
    output: folder of the other store.
    precision: how that keeps vectors, as of `Quantizer`.
    dimensions: keep so many of a vector's numbers, the first (Matryoshka); default: all.
    progress: show a progress bar on stderr.

  Returns:
    The store, complete.

  Raises:
    InputError: `whole` does not hold float32 vectors, the folder holds something else, or vectors cannot be kept so.
  """
  count = whole.shape[0]
  if (kept := whole.quantizer.precision) != "float32":
    raise InputError(f"{whole.path}: holds {kept} vectors, of which no others can be made; give a store of float32")
  dim = check(precision, dimensions, whole.shape[1])
  if (precision, dim) == ("float32", whole.shape[1]):
    raise InputError(f"{whole.path}: holds float32 vectors of {dim} numbers already; say with --precision or "
                     "--dimensions how they are to be kept")
  texts = (View(count, lambda row, field=field: whole.document(row)[field]) for field in (1, 2))
  writer = StoreWriter(output, Documents(whole.ids, *texts), dim, whole.settings, precision)
  normalize = all(are_normalized(np.linalg.norm(whole[start:start + CHUNK_ROWS], axis=1))
                  for start in range(0, count, CHUNK_ROWS))
  if writer.not_fitted:
    writer.fit(shortened(whole.take(writer.sample_rows()), dim, normalize))

  def made(rows):
    vectors = whole[rows]
    norms = np.linalg.norm(vectors[:, :dim], axis=1) * (whole.norms(rows) if normalize else 1)
    return shortened(vectors, dim, normalize), norms

  return writer.write_all(made, progress)
