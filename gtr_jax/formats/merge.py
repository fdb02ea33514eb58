"""`gtr-jax merge`: the average of the parameters of several models, as one model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats.any_form import open_model
from gtr_jax.formats.convert import new_place, write_as
from gtr_jax.formats.model_dir import deciding_fields
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.formats.tokenization import LENGTHS, Tokenization
from gtr_jax.io import bars
from gtr_jax.io.paths import reached
from gtr_jax.text.tokenizer import Tokenizer

_FORM = "sentence-transformers"
_SHOWN = 3  # differences in a line


def merge(models: Sequence[epath.PathLike], output: epath.PathLike, weights: Sequence[float] | None = None, *,
          tokenization: Tokenization | None = None) -> None:
  """Writes the average of the parameters of several models as a sentence-transformers folder, all of it or nothing.

    X = sum of w_i X_i / sum of w_i

  for each array X, summed in float64 and written in float32. With equal weights it is the uniform soup of Wortsman et
  al. 2022 (arXiv 2203.05482); of a model and what was trained from it, WiSE-FT (Wortsman et al. 2021, arXiv
  2109.01903). Of each model one array is in memory at a time.

  Args:
    models: anything that `load_model` loads, of one shape, vocabulary, way to make embeddings, prompts, and of the
      same longest text, which is the one length that such a folder has.
    output: a folder that is not there yet.
    weights: one for each model, 0 or more and not all 0; None: all equal. Divided by their sum, which a line says
      where that is not 1.
    tokenization: the vocabulary of the models that do not say theirs; lengths that all of them, and the folder, get.

  Raises:
    InputError: a model cannot be read, or is not like the first; wrong weights; the output is there.
  """
  shares = _shares(models, weights)
  output = new_place(output, _FORM)
  opened = _open(models, dataclasses.replace(tokenization or Tokenization(), only_unsaid=True))
  first, tokenizer = opened[0]
  for other in opened[1:]:
    _check_alike(opened[0], other)
  parts = [(model, share) for (model, _), share in zip(opened, shares, strict=True)]
  arrays = {name: _average(name, parts) for name in first.arrays}
  write_as(_FORM, output, dataclasses.replace(first, arrays=arrays), tokenizer, averaged=parts)


def _shares(models: Sequence[epath.PathLike], weights: Sequence[float] | None) -> list[float]:
  """The weights, divided by their sum."""
  if not models:
    raise InputError("nothing to merge: give models")
  if weights is None:
    return [1 / len(models)] * len(models)
  if len(weights) != len(models):
    raise InputError(f"--weights: {len(weights)} for {len(models)} models; give one for each, in their order")
  for weight in weights:
    if not (weight >= 0 and math.isfinite(weight)):
      raise InputError(f"--weights: {weight:g} is no weight; give numbers of 0 or more")
  total = sum(weights)
  if not (total > 0 and math.isfinite(total)):
    raise InputError(f"--weights: they sum to {total:g}; give some that are above 0, such as 1 for each")
  shares = [weight / total for weight in weights]
  if not math.isclose(total, 1):
    bars.note(f"weights that sum to {total:g} are divided by it: {', '.join(f'{share:.4g}' for share in shares)}")
  return shares


def _open(models: Sequence[epath.PathLike], tokenization: Tokenization) -> list[tuple[ModelOnDisk, Tokenizer]]:
  """All of them, with the lengths that are given."""
  given = {side: length for side, name in LENGTHS.items() if (length := getattr(tokenization, name)) is not None}
  opened = []
  for path in models:
    with reached(path):
      model, tokenizer = open_model(path, tokenization)
    opened.append((dataclasses.replace(model, lengths={**model.lengths, **given}), tokenizer))
  return opened


def _check_alike(one: tuple[ModelOnDisk, Tokenizer], other: tuple[ModelOnDisk, Tokenizer]) -> None:
  """Raises InputError where their average would be no model, or it is not clear how it would read texts."""
  mine, theirs = _description(*one), _description(*other)
  differ = [f"{name} {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
  if not differ:
    return
  more = f", and in {len(differ) - _SHOWN} things more" if len(differ) > _SHOWN else ""
  advice = ("say with --query_length and --document_length what it is to be" if differ[0].startswith("longest text")
            else "give steps of one run, or runs from one start")
  raise InputError(f"{one[0].path} and {other[0].path} cannot be merged: they differ in {', '.join(differ[:_SHOWN])}"
                   f"{more}; {advice}")


def _description(model: ModelOnDisk, tokenizer: Tokenizer) -> dict[str, Any]:
  """All that has to be the same, by what a user knows it as."""
  fields = deciding_fields(model.encoder)
  return {**fields.pop("config"), **fields, "vocabulary": tokenizer.sha256[:12], "extra_ids": tokenizer.extra_ids,
          **{f"prompt of a {side}": text for side, text in model.prompts.items()},
          "longest text": max(model.lengths.values())}


def _average(name: str, parts: Sequence[tuple[ModelOnDisk, float]]) -> Array:
  """Of an array of all models, each read when its turn comes."""
  shape = parts[0][0].arrays[name].shape

  def read() -> np.ndarray:
    total = np.zeros(shape, np.float64)
    for model, share in parts:
      with reached(model.path):
        total += share * model.arrays[name].read().astype(np.float64)
    return total.astype(np.float32)

  return Array(shape, np.dtype(np.float32), read)
