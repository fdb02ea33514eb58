"""Writes the factors of a run with LoRA as an adapter that PEFT loads (https://github.com/huggingface/peft), beside the
model that the run was trained from: `PeftModel.from_pretrained(T5EncoderModel.from_pretrained(base), folder)`.
"""

import os

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats import safetensors
from gtr_jax.formats.any_form import open_foreign, open_unmerged
from gtr_jax.formats.model_dir import find_model_dir
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.formats.names import encoder_names, names
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.io.atomic import write_json

_PREFIX = "base_model.model."  # of names in PEFT


def open_adapter(source: epath.PathLike, base: str, tokenization: Tokenization | None = None) -> ModelOnDisk:
  """The run, unmerged. All but its factors is read, and compared with the base.

  Args:
    source: a MODEL_DIR, or a step of it.
    base: the model that it was trained from, as PEFT is to find it: a folder of transformers or of
      sentence-transformers, or such a model's name on the hub.
    tokenization: as of `open_model`.

  Raises:
    InputError: the source has no LoRA, or the base is another model than it was trained from, or none that transformers
      loads.
  """
  model, _ = open_unmerged(source, tokenization)
  if model.encoder.lora is None:
    raise InputError(f"{source}: was not trained with LoRA (DualEncoder.lora), so there is no adapter to write; leave "
                     "--to out to convert all of it")
  if not model.encoder.shared:
    raise InputError(f"{source}: has a tower for queries and one for documents, and an adapter is of one T5: convert "
                     "it without --to peft, or train with shared = True")
  if find_model_dir(base) is not None:
    raise InputError(f"--base_model {base}: is a training run, which transformers does not load; convert it first: "
                     f"gtr-jax convert {base} FOLDER, and give FOLDER")
  before = open_foreign(base)
  if not any((before.path / file).exists() for file in ("config.json", "modules.json")):
    raise InputError(f"--base_model {base}: is no model that transformers loads; convert it first: gtr-jax convert "
                     f"{base} FOLDER, and give FOLDER")
  for name in names(model.encoder.merged):
    ours, theirs = model.arrays[name.native], before.arrays.get(name.native)
    same = theirs is not None and theirs.shape == ours.shape and np.array_equal(
        theirs.read().astype(np.float32), ours.read())
    if not same:
      raise InputError(f"--base_model {base}: is not what {source} was trained from: {name.native} "
                       f"{'is not there' if theirs is None else 'is another'}; give that model")
  return model


def write(folder: epath.Path, model: ModelOnDisk, base: str, dtype: str = "float32") -> None:
  """Writes the adapter.

  Args:
    folder: to make.
    model: of `open_adapter`.
    base: likewise.
    dtype: "float32" or "bfloat16", of the factors.
  """
  arrays, lora = model.arrays, model.encoder.lora
  assert lora is not None
  factors, modules = {}, []
  for name in encoder_names(model.encoder.config):
    above, module = name.native.removesuffix("kernel"), name.huggingface.removesuffix(".weight")
    if f"{above}lora_a" in arrays:
      modules.append(module)
      for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        factors[f"{_PREFIX}{module}.{theirs}.weight"] = arrays[above + ours].transposed().astype(dtype)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.write(folder / "adapter_model.safetensors", factors)
  # Last, as without it nothing takes the folder for an adapter.
  write_json(folder / "adapter_config.json", {
      "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": os.fspath(base),
      "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
      "inference_mode": True, "target_modules": modules}, indent=2)
