"""The folder of a training run, MODEL_DIR, as a model: model.json, the vocabulary beside it, and checkpoints.

Neither gin nor the training data are needed to read it.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from gtr_jax.checkpoints.steps import find_checkpoint
from gtr_jax.errors import InputError
from gtr_jax.formats.foreign_json import Fields, read_fields
from gtr_jax.formats.locate import locate
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.formats.tokenization import Tokenization, refuse_given, tokenizer_of
from gtr_jax.io.atomic import write_bytes, write_json
from gtr_jax.io.paths import location, reached
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.lora import Lora
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import processes
from gtr_jax.text.tokenizer import Tokenizer

MODEL_JSON = "model.json"
VOCABULARY_FILE = "spiece.model"
_SIDES = ("query", "document")
_NOT_DECIDING = ("dropout_rate", "attention")  # fields of the T5 configuration


def find_model_dir(path: epath.PathLike) -> epath.Path | None:
  """The folder with model.json, or None if the path is of no training run."""
  path = locate(path)
  with reached(path):
    for folder in (path, path.parent, path.parent.parent):
      if (folder / MODEL_JSON).exists() and (folder == path or path.name == "checkpoints" or
                                             path.parent.name == "checkpoints"):
        return folder
  return None


def open_run(path: epath.Path, model_dir: epath.Path, tokenization: Tokenization | None) -> tuple[ModelOnDisk, str]:
  """A training run, without its arrays, and the folder of the checkpoint that has them."""
  refuse_given(tokenization, path)
  encoder, vocabulary, lengths, prompts, dimensions = read_model_json(model_dir / MODEL_JSON)
  source = ModelOnDisk(path, encoder, {}, model_dir / vocabulary["file"], vocabulary["extra_ids"], lengths, prompts,
                       dimensions=dimensions)
  sha256 = tokenizer_of(source).sha256
  if sha256 != vocabulary["sha256"]:
    raise InputError(f"{source.vocabulary}: not the vocabulary that {model_dir / MODEL_JSON} names (sha256 "
                     f"{sha256[:12]} instead of {vocabulary['sha256'][:12]}); put the training run's vocabulary back")
  return source, processes.from_first(lambda: os.fspath(find_checkpoint(path)))


def write_model_json(model_dir: epath.PathLike, encoder: DualEncoder, tokenizer: Tokenizer, *, query_length: int,
                     document_length: int, query_prompt: str = "", document_prompt: str = "",
                     trained_lengths: Mapping[str, int] | None = None,
                     dimensions: Mapping[int, float] | None = None) -> None:
  """Writes what `load_model` needs beside the checkpoints: a copy of the vocabulary, then model.json.

  Args:
    model_dir: made if it is not there.
    encoder: of the run.
    tokenizer: of the run.
    query_length: most tokens of a query.
    document_length: most tokens of a document.
    query_prompt: text to put before every query.
    document_prompt: text to put before every document.
    trained_lengths: most tokens of a "query" and of a "document" in training, for whoever asks.
    dimensions: to how many of their first numbers embeddings were cut in training, each with its weight.

  Raises:
    InputError: the folder already holds another model, or a run with other LoRA; nothing is changed.
  """
  model_dir = location(model_dir)
  place = model_dir / MODEL_JSON
  if place.exists():
    there, vocabulary, *_ = read_model_json(place)
    if (deciding_fields(there.merged) != deciding_fields(encoder.merged) or
        vocabulary["sha256"] != tokenizer.sha256 or vocabulary["extra_ids"] != tokenizer.extra_ids):
      raise InputError(f"{model_dir}: already holds another model or vocabulary; choose another folder "
                       "(--output, MODEL_DIR), or remove this one")
    if there.lora != encoder.lora:
      raise InputError(f"{model_dir}: was begun with {_said(there.lora)}, and not with {_said(encoder.lora)}; give the "
                       "same (LORA), or another folder (--output, MODEL_DIR)")
  else:
    check_free(model_dir, tokenizer)
  if not (model_dir / VOCABULARY_FILE).exists() or tokenizer.path != model_dir / VOCABULARY_FILE:
    write_bytes(model_dir / VOCABULARY_FILE, tokenizer.model)
  fields = {"model": encoder.to_json(),
            "vocabulary": {"file": VOCABULARY_FILE, "sha256": tokenizer.sha256, "extra_ids": tokenizer.extra_ids},
            "lengths": {"query": query_length, "document": document_length},
            "prompts": {"query": query_prompt, "document": document_prompt}}
  if trained_lengths is not None:
    fields["trained_lengths"] = dict(trained_lengths)
  if dimensions:
    fields["dimensions"] = {str(number): weight for number, weight in dimensions.items()}
  write_json(place, fields, indent=2)


def check_free(model_dir: epath.PathLike, tokenizer: Tokenizer | None = None) -> None:
  """Raises InputError where something else lies there than a training run, or the beginning of one (with this
  tokenizer)."""
  model_dir = location(model_dir)
  if not model_dir.exists() or model_dir.is_dir() and (
      (model_dir / MODEL_JSON).exists() or all(_was_begun(path, tokenizer) for path in model_dir.iterdir())):
    return
  raise InputError(f"{model_dir}: exists and is no training run's folder; choose another (--output, MODEL_DIR)")


def _said(lora: Lora | None) -> str:
  return "no LoRA" if lora is None else f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, of {', '.join(lora.kernels)}"


def _was_begun(path: epath.Path, tokenizer: Tokenizer | None) -> bool:
  """Whether a start that was cut off, by a full disk for instance, has left this in a new MODEL_DIR."""
  if path.name == VOCABULARY_FILE:
    return path.is_file() and (tokenizer is None or path.read_bytes() == tokenizer.model)
  return path.name.endswith(".tmp") and path.name.startswith((f".{VOCABULARY_FILE}.", f".{MODEL_JSON}."))


def deciding_fields(encoder: DualEncoder) -> dict[str, Any]:
  """The configuration without what only training sees, and how attention is computed."""
  fields = encoder.to_json()
  return {**fields, "config": {k: v for k, v in fields["config"].items() if k not in _NOT_DECIDING}}


def read_model_json(place: epath.Path) -> tuple[DualEncoder, dict[str, Any], dict[str, int], dict[str, str],
                                                tuple[int, ...]]:
  """(encoder, vocabulary, lengths, prompts, dimensions)."""
  fields = read_fields(place)
  if not fields.contents.keys() >= {"model", "vocabulary", "lengths", "prompts"}:
    raise InputError(f"{place}: is of no training run of gtr_jax, or damaged (it lacks model, vocabulary, lengths or "
                     "prompts); take the run's own, or give the folder of another model without it")
  of_vocabulary, of_lengths, of_prompts = (fields.inner(name) for name in ("vocabulary", "lengths", "prompts"))
  vocabulary = {"file": of_vocabulary.file("file"), "sha256": of_vocabulary.get("sha256", str),
                "extra_ids": of_vocabulary.get("extra_ids", int, least=0)}
  lengths = {side: of_lengths.get(side, int, least=1) for side in _SIDES}
  prompts = {side: of_prompts.get(side, str) for side in _SIDES}
  _check_sizes(fields.inner("model"))
  try:
    encoder = DualEncoder.from_json(fields.get("model", dict))
  except InputError as e:
    raise InputError(f"{place}: {e}") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise InputError(f"{place}: damaged ({type(e).__name__}: {e}); it comes with every training run, get it from "
                     "there") from e
  dimensions = fields.get("dimensions", dict, {})
  if not all(name.isdigit() and 0 < int(name) <= encoder.dim for name in dimensions):
    raise InputError(f"{place}: dimensions {', '.join(map(repr, dimensions))} are no lengths of vectors of "
                     f"{encoder.dim} numbers; it comes with every training run, get it from there")
  return encoder, vocabulary, lengths, prompts, tuple(sorted(map(int, dimensions), reverse=True))


def _check_sizes(model: Fields) -> None:
  """Raises InputError where sizes in model.json are no sizes; what is missing or unknown is `from_json`'s to say."""
  config = Fields(model.place, model.get("config", dict, {}), "model.config.")
  for field in dataclasses.fields(T5Config):
    if field.type in (int, "int") and field.name in config.contents:
      config.get(field.name, int, least=1)
  model.get("projection_dim", int, None, least=1)
  for name in ("normalize", "shared"):
    model.get(name, bool, True)
