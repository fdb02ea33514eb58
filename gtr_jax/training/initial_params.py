"""The parameters that training starts from: those of another model, in whatever form it lies on disk."""

from typing import Any

import jax
from etils import epath
from flax import traverse_util

from gtr_jax.checkpoints.checkpointer import restore_params
from gtr_jax.errors import InputError
from gtr_jax.formats.any_form import open_foreign
from gtr_jax.formats.locate import locate
from gtr_jax.formats.model_dir import find_model_dir
from gtr_jax.formats.tokenization import tokenizer_of
from gtr_jax.losses import own_params
from gtr_jax.parallel.partitioning import place
from gtr_jax.text.tokenizer import Tokenizer

_OTHER_SIZES = "gtr-jax train --init reads the sizes of such a model; or set MODEL to them:"


def with_initial_params(params: Any, shardings: Any, path: epath.PathLike, tokenizer: Tokenizer) -> dict[str, Any]:
  """Parameters to start training from: those of another model, and of `params` what that one has not.

  Args:
    params: of the new run, float32; both of two towers start from a model of one.
    shardings: likewise.
    path: as for `load_model`; a bare T5 has no projection, and a model of another program no learned temperature.
    tokenizer: of the new run.

  Raises:
    InputError: there is no such model, or it is damaged, of other sizes or of another vocabulary.
  """
  abstract = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params,
                          shardings)
  if find_model_dir(path) is not None:
    return {**params, **restore_params(locate(path), abstract, advice=f"{_OTHER_SIZES} model.json has them")}
  source = open_foreign(path)
  if source.vocabulary is not None and (theirs := tokenizer_of(source)).pieces() != tokenizer.pieces():
    raise InputError(f"{theirs.path}: the vocabulary of INITIAL_CHECKPOINT_PATH, and not {tokenizer.path}, which this "
                     "run reads with; set VOCABULARY to it (and EXTRA_IDS)")
  found = traverse_util.flatten_dict(dict(params), sep="/")
  of_tower = {name: name.removeprefix("query/").removeprefix("passage/") for name in found}
  for name, leaf in traverse_util.flatten_dict(dict(abstract), sep="/").items():
    array = source.arrays.get(of_tower[name])
    drawn = [*own_params.NAMES] + ["projection_layer/kernel"] * (source.encoder.projection_dim is None)
    if array is None and of_tower[name] in drawn:
      continue
    if array is None or array.shape != leaf.shape:
      there = "not there" if array is None else f"{list(array.shape)} there"
      raise InputError(f"{source.path}: {of_tower[name]} is {list(leaf.shape)} in this run's model and {there}; "
                       f"{_OTHER_SIZES} {source.encoder.config}")
    found[name] = place(array.read().astype(leaf.dtype, copy=False), leaf.sharding)
  if unused := source.arrays.keys() - of_tower.values():
    raise InputError(f"{source.path}: has {sorted(unused)[0]}, and this run's model has not; {_OTHER_SIZES} "
                     f"{source.encoder}")
  return traverse_util.unflatten_dict(found, sep="/")
