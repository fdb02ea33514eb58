"""`gtr-jax convert`: a model from any of its forms on disk into one that another program reads."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats import peft, saved_model, sentence_transformers_writer, stablehlo, t5x
from gtr_jax.formats.any_form import open_model
from gtr_jax.formats.card import model_card
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.formats.shortened import not_trained_for, shortened
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.io import bars
from gtr_jax.io.atomic import new_folder
from gtr_jax.io.paths import is_remote, location, reached
from gtr_jax.text.tokenizer import Tokenizer

FORMATS = ("sentence-transformers", "t5x", "stablehlo", "saved-model", "peft")


def convert(source: epath.PathLike, output: epath.PathLike, to: str, *, tokenization: Tokenization | None = None,
            dtype: str = "float32", results: epath.PathLike | None = None, base_model: str | None = None,
            dimensions: int | None = None) -> None:
  """Writes the model of `source` as the folder `output`, all of it or nothing.

  Args:
    source: anything that `load_model` loads.
    output: a folder that is not there yet; for T5X it ends in `checkpoint_<step>`.
    to: one of `FORMATS`.
    tokenization: what the source does not say.
    dtype: "float32" or "bfloat16", of the weights that are written.
    results: an evaluation's folder, whose table goes into the model card.
    base_model: for PEFT, what the source was trained from with LoRA, in a form that transformers loads.
    dimensions: of the model that is written: it gives so many numbers of each vector, the first, normalised again if
      the source normalises. Default: all.

  Raises:
    InputError: the source cannot be read, or has no such form or not so many dimensions; the output is there, or has no
      place for `results`.
  """
  output = new_place(output, to, results)
  if (to == "peft") != (base_model is not None):
    raise InputError("--to peft writes an adapter for the model that it was trained from: say which, --base_model MODEL"
                     if base_model is None else f"--base_model {base_model}: is for --to peft alone; leave it out")
  if base_model is not None:
    if dimensions is not None:
      raise InputError(f"--dimensions {dimensions}: an adapter changes kernels, and no vectors' length; leave it out, "
                       "or convert to another form")
    with reached(source):
      adapter = peft.open_adapter(source, base_model, tokenization)
    with reached(output):
      _whole_or_nothing(output, lambda folder: peft.write(folder, adapter, base_model, dtype))
    return
  model, tokenizer = open_model(source, tokenization)
  with reached(source):
    if dimensions is not None and model.encoder.shared:
      whole, model = model, shortened(model, dimensions)
      if warning := not_trained_for(model.path, dimensions, whole.encoder.dim, whole.dimensions):
        bars.say(warning)
    write_as(to, output, model, tokenizer, dtype=dtype, results=results)


def write_as(to: str, output: epath.PathLike, model: ModelOnDisk, tokenizer: Tokenizer, *, dtype: str = "float32",
             results: epath.PathLike | None = None, averaged: Sequence[tuple[ModelOnDisk, float]] = ()) -> None:
  """`convert` of a model that is open. Arguments, errors: as there.

  Args:
    averaged: for the model card, the models whose average it is, each with its share.
  """
  output = new_place(output, to, results)
  if not model.encoder.shared:
    raise InputError(f"{model.path}: has a tower for queries and one for documents, and what is written holds one "
                     "tower: train with shared = True, or keep this one in gtr_jax's form")
  if to == "t5x":
    _check_t5x_says_it(model)

  def write(folder):
    if to == "t5x":
      step = int(output.name.removeprefix("checkpoint_"))
      t5x.write(folder, {name: array.astype(dtype) for name, array in model.arrays.items()}, step)
    elif to == "sentence-transformers":
      sentence_transformers_writer.write(folder, model.encoder, model.arrays, tokenizer, model.lengths, model.prompts,
                   model_card(model, output.name, results, averaged), dtype)
    elif to == "stablehlo":
      stablehlo.write(folder, model, tokenizer, dtype)
    else:
      saved_model.write(folder, model, tokenizer, dtype)

  with reached(output):
    _whole_or_nothing(output, write)


def new_place(output: epath.PathLike, to: str, results: epath.PathLike | None = None) -> epath.Path:
  """Where to write. Raises InputError where something is there, or it is no place for this form or for `results`."""
  output = location(output)
  with reached(output):
    if output.exists() or os.path.islink(output):
      what = "exists" if output.exists() else "exists, a link to nothing"
      raise InputError(f"{output}: {what}; give a new folder, or remove this one")
  if to == "t5x" and not re.fullmatch(r"checkpoint_(0|[1-9][0-9]*)", output.name):
    raise InputError(f"{output}: T5X restores folders named checkpoint_<step> only, with a step such as 0 or 1000; "
                     f"give {output}/checkpoint_0")
  if results is not None and to != "sentence-transformers":
    raise InputError(f"--results {results}: goes into the model card of --to sentence-transformers, and --to {to} "
                     "writes none; leave it out")
  return output


def _check_t5x_says_it(model: ModelOnDisk) -> None:
  """Raises InputError where a T5X checkpoint would lose settings that change embeddings."""
  encoder = model.encoder
  lost = {"pooling": (encoder.pooling, "mean"), "normalize": (encoder.normalize, True),
          "relpos_max_distance": (encoder.config.relpos_max_distance, 128)}
  lost |= {f"the prompt of a {side}": (text, "") for side, text in model.prompts.items()}
  for name, (value, assumed) in lost.items():
    if value != assumed:
      raise InputError(f"{model.path}: {name} is {value!r}, and a T5X checkpoint, which does not say it, is read as "
                       f"{assumed!r}; keep this model in another form")


def _whole_or_nothing(output: epath.Path, write: Callable[[epath.Path], None]) -> None:
  """Lets `write` fill a folder of another name beside `output`, which gets its name when all is there.

  Where that fails, what was made is removed, the folders above included. Object stores cannot rename: there it is
  `output` itself, and the file that makes it a model is written last.
  """
  remote = is_remote(output)
  made = [] if remote else [path for path in output.parents if not path.exists()]
  try:
    if remote:
      _in_place(output, write)
    else:
      with new_folder(output) as folder:
        write(folder)
  except BaseException as e:
    for path in made:  # from the inside out
      with contextlib.suppress(OSError):  # Another process has written there.
        path.rmdir()
    if not isinstance(e, OSError) or remote or e.filename is not None and not _lies_at(os.fspath(e.filename), output):
      raise
    above = next((path for path in output.parents if path.exists()), output.parent)
    reason = e.strerror or e if above.is_dir() else f"{above} is no folder"
    raise InputError(f"{output}: cannot be written ({reason}); give another folder, or make room and rights for this "
                     "one") from e


def _in_place(output: epath.Path, write: Callable[[epath.Path], None]) -> None:
  output.mkdir(parents=True)
  try:
    write(output)
  except BaseException:
    output.rmtree()
    raise


def _lies_at(name: str, output: epath.Path) -> bool:
  """Whether it is `output`, a folder that it is in, or what is being written for it."""
  path = epath.Path(name)
  return path in (output, *output.parents) or any(
      place.parent == output.parent and place.name.startswith(f".{output.name}.") for place in (path, *path.parents))
