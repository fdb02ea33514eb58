"""The parameters that training starts from: those of another model, in whatever form it lies on disk."""

from typing import Any

import jax
from etils import epath
from flax import traverse_util

from gtr_jax.checkpoints.checkpointer import restore_params
from gtr_jax.errors import InputError
from gtr_jax.formats.any_form import open_foreign
from gtr_jax.formats.locate import locate
from gtr_jax.formats.merged import merged_params
from gtr_jax.formats.model_dir import MODEL_JSON, find_model_dir, read_model_json
from gtr_jax.formats.tokenization import tokenizer_of
from gtr_jax.losses import own_params
from gtr_jax.models.lora import is_factor
from gtr_jax.models.parameters import abstract_parameters, chosen, overlaid
from gtr_jax.parallel.partitioning import place
from gtr_jax.text.tokenizer import Tokenizer

_OTHER_SIZES = "gtr-jax train --init reads the sizes of such a model; or set MODEL to them:"


def with_initial_params(params: Any, shardings: Any, path: epath.PathLike, tokenizer: Tokenizer) -> dict[str, Any]:
  """Parameters to start training from: those of another model, and of `params` what that one has not.

  Args:
    params: of the new run, float32; both of two towers start from a model of one. Factors of LoRA stay as they are
      here; those of the other model are merged into its kernels.
    shardings: likewise.
    path: as for `load_model`; a bare T5 has no projection, and a model of another program no learned temperature.
    tokenizer: of the new run.

  Raises:
    InputError: there is no such model, or it is damaged, of other sizes or of another vocabulary; or a projection
      would stay as it was drawn.
  """
  abstract = chosen(jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params,
                                 shardings), lambda name: not is_factor(name))
  if (model_dir := find_model_dir(path)) is not None:
    return overlaid(params, _of_run(path, model_dir, abstract))
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
      if any(map(is_factor, found)) and of_tower[name] not in own_params.NAMES:
        raise InputError(f"{source.path}: has no projection, and with LoRA this run's would stay as it is drawn, at "
                         "random; set dual_encoder.DualEncoder.projection_dim = None, or take a model that has one")
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


def _of_run(path: epath.PathLike, model_dir: epath.Path, abstract: Any) -> dict[str, Any]:
  """The parameters of a training run, whose factors of LoRA are merged."""
  theirs = read_model_json(model_dir / MODEL_JSON)[0]
  if theirs.lora is not None:
    factors = chosen(abstract_parameters(theirs, jax.tree.leaves(abstract)[0].sharding.mesh), is_factor)
    abstract = traverse_util.unflatten_dict(
        traverse_util.flatten_dict(abstract) | traverse_util.flatten_dict(factors))
  return merged_params(restore_params(locate(path), abstract, advice=f"{_OTHER_SIZES} model.json has them"),
                       theirs.lora)
