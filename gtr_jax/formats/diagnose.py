"""What lies where a model was expected: models of other kinds, parts of models and folders around them.

Such a thing is mostly whole, so the messages say what it is and what to do, and not to copy it again.
"""

import re
from collections.abc import Collection

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats.foreign_json import FOLLOW_LINKS, read_fields
from gtr_jax.io.contents import check_contents, first_bytes

# A pattern of names in a folder -> whose weights these are, and what to do. The first that fits is said.
_WEIGHTS = (
    (r".*\.(h5|msgpack)", "weights for TensorFlow or Flax only",
     "load them with transformers (from_tf=True or from_flax=True) and save_pretrained"),
    (r"global_step\d+|zero_to_fp32\.py", "a checkpoint of DeepSpeed in parts (ZeRO)",
     "python zero_to_fp32.py . NEW --safe_serialization there, config.json and the tokenizer beside it, and give NEW"),
    (r"pytorch_model_fsdp.*|.*\.distcp", "a checkpoint of FSDP in parts",
     "accelerate merge-weights, config.json and the tokenizer beside it, and give that"),
    (r"model\.ckpt.*|graph\.pbtxt", "a checkpoint of TensorFlow (Mesh TensorFlow's T5)",
     "take the same model from the Hugging Face hub, or T5X's checkpoint of it"),
    (r"saved_model\.pb", "a SavedModel of TensorFlow", "give the model that it was made of"),
    (r".*\.gguf", "GGUF (llama.cpp)", "give the model that it was made of"),
    (r"onnx|.*\.onnx", "ONNX", "give the model that it was made of"),
    (r"openvino.*", "OpenVINO", "give the model that it was made of"),
    (r".*\.(ot|tflite|mlmodel|mlpackage|engine)", "weights for one runtime", "give the model that it was made of"),
    (r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", "shards without their index",
     "put model.safetensors.index.json (pytorch_model.bin.index.json) beside them"),
    (r".*\.safetensors", "weights under another name", "rename it to model.safetensors if it is the whole model"),
    (r".*\.(pt|pth|ckpt|bin)", "a file of torch under another name",
     "load it in the program that wrote it, and save the T5 with save_pretrained"),
)
_BESIDE_WEIGHTS = re.compile(r"model\.safetensors|pytorch_model\.bin|training_args\.bin|\..*"
                             r"|(optimizer|scheduler|rng_state|random_states|scaler).*\.(pt|pth|bin|pkl|safetensors)")
_ARCHIVE = re.compile(r".*\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)", re.IGNORECASE)
# What gtr_jax itself writes and does not read as a model.
_OURS = {"programs.json": "programs of gtr-jax convert --to stablehlo; give the model that they were made of",
         "saved_model.pb": "a SavedModel of TensorFlow; give the model that it was made of",
         "COMPLETE": "embeddings of gtr-jax encode; give the model, and this folder as --embeddings",
         "results.json": "results of gtr-jax evaluate; give the model"}
_MAGIC = ((b"GGUF", "a GGUF file (llama.cpp)", "give the model that it was made of"),
          (b"\x89HDF", "an HDF5 file, of TensorFlow or Keras",
           "load it with transformers (from_tf=True) and save_pretrained"),
          (b"PK\x03\x04", "a zip archive, as torch writes one", "if torch wrote it, name it pytorch_model.bin"),
          (b"\x1f\x8b", "compressed with gzip", "unpack it"))
_CANNOT_MERGE = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT")
_FAMILIES = (
    (r"umt5", "umT5: each layer of umT5 has its own position bias"),
    (r"longt5", "LongT5, which looks at a window of the text only"),
    (r"switch_transformers", "a Switch Transformer, a mixture of experts"),
    (r"t5gemma\w*|bart|mbart|pegasus\w*|m2m_100|marian|blenderbot\w*|led|prophetnet|encoder-decoder",
     "an encoder-decoder with other layers than T5's"),
    (r"(gpt|llama|mistral|mixtral|qwen|gemma|phi|opt|bloom|falcon|mpt|olmo|deepseek|stablelm|codegen|cohere|granite)\w*"
     r"|internlm\w*|starcoder\w*|mamba\w*|xglm|smollm\w*", "a decoder-only language model"),
    (r"\w*bert|(xlm-)?roberta(-xl)?|deberta(-v2)?|big_bird|electra|mpnet|xlm|xlnet|new|funnel|longformer",
     "an encoder with other layers than T5's"),
)


def architecture(model_type: str) -> str:
  """What a `model_type` of transformers is, as the end of a sentence, or nothing where it is not known."""
  return next((f", and this is {text}" for pattern, text in _FAMILIES if re.fullmatch(pattern, model_type)), "")


def check_no_adapter(folder: epath.Path) -> None:
  """Raises InputError where a folder has the adapter of another model, be it alone or beside a model."""
  place = folder / "adapter_config.json"
  if not place.exists():
    if any((folder / f"adapter_model.{end}").exists() for end in ("safetensors", "bin")):
      raise InputError(f"{folder}: the weights of an adapter (adapter_model), not of a whole model; put its "
                       "adapter_config.json beside them, merge it with its base model, and give what comes of it")
    return
  fields = read_fields(place).contents
  base, kind = fields.get("base_model_name_or_path"), fields.get("peft_type")
  base = base if isinstance(base, str) and base else "a model that it does not name"
  what = f"{folder}: an adapter{f' ({kind})' if isinstance(kind, str) else ''} of {base:.200}, not a whole model; "
  if kind in _CANNOT_MERGE:
    raise InputError(f"{what}gtr_jax reads whole models, and adapters of this kind cannot be merged into one")
  raise InputError(f"{what}merge it first, with peft: load it, merge_and_unload(), save_pretrained(NEW), the "
                   "tokenizer beside it, and give NEW")


def check_no_broken_link(folder: epath.Path) -> None:
  """Raises InputError for a link to nothing, as a copy of the hub's cache has where links were not followed."""
  for name in _names(folder):
    if not (folder / name).exists():
      raise InputError(f"{folder / name}: a link to nothing; {FOLLOW_LINKS}")


def check_magic(path: epath.Path, beginning: bytes) -> None:
  """Raises InputError where the first bytes of a file of weights are empty or of another format."""
  check_contents(path, beginning)
  for mark, what, advice in _MAGIC:
    if beginning.startswith(mark):
      raise InputError(f"{path}: {what}, not what its name says; {advice}")


def no_weights(folder: epath.Path) -> InputError:
  """The error for a folder with neither model.safetensors nor pytorch_model.bin, one or in shards."""
  names = _names(folder)
  check_no_broken_link(folder)
  if (found := _other_weights(names)) is not None:
    return InputError(f"{folder}: holds its {found}" if found.startswith("weights for T") else f"{folder}: has {found}")
  if "trainer_state.json" in names or "optimizer.pt" in names:
    return InputError(f"{folder}: has the state of a Trainer and no weights of the model; give another checkpoint, or "
                      "what save_model() wrote")
  return InputError(f"{folder}: has neither model.safetensors nor pytorch_model.bin, one or in shards with an index; "
                    "copy the whole model")


def other_vocabulary(folder: epath.Path) -> str:
  """What a folder without spiece.model and tokenizer.json has instead, to follow "comes without a vocabulary"."""
  for pattern, what in ((r"vocab\.(txt|json)|merges\.txt", "that one is of another kind than SentencePiece's"),
                        (r".*\.model", "if that is its SentencePiece model, give it")):
    if found := next((name for name in _names(folder) if re.fullmatch(pattern, name)), None):
      return f" of its own (there is {folder / found}; {what})"
  return ""


def not_a_model(path: epath.Path) -> InputError:
  """The error for a file or folder that no reader knows."""
  if not path.is_dir():
    return _not_a_folder(path)
  check_no_adapter(path)
  check_no_broken_link(path)
  if (around := _model_around(path)) is not None:
    return InputError(f"{path}: a part of a model; give the model's folder, {around}")
  names = _names(path)
  for name, what in _OURS.items():
    if name in names:
      return InputError(f"{path}: holds {what}")
  inside = [path / name for name in names if holds_model(path / name)]
  if len(inside) == 1:
    return InputError(f"{path}: no model itself, and {inside[0]} in it is one; give that")
  if inside:
    return InputError(f"{path}: no model itself; give one of the {len(inside)} in it: {_listed(inside)}")
  if any(name in names for name in ("model.safetensors", "pytorch_model.bin")):
    return InputError(f"{path}: has weights and no config.json, which says what they compute; put the model's own "
                      "config.json and tokenizer beside them")
  if (found := _other_weights(names)) is not None:
    return InputError(f"{path}: has {found}")
  if "_METADATA" in names or "_CHECKPOINT_METADATA" in names or (path / "state" / "_METADATA").exists():
    return InputError(f"{path}: a checkpoint of Orbax alone; of a training run of gtr_jax, give its whole MODEL_DIR, "
                      "with model.json; one of T5X must lie in a folder checkpoint_<step>")
  return InputError(f"{path}: no model that gtr_jax reads: it has neither model.json (a training run), modules.json "
                    "or config.json (Hugging Face), nor checkpoint (T5X)")


def holds_model(folder: epath.Path) -> bool:
  """Whether a folder looks like a model, of a training run, of Hugging Face or of T5X."""
  return folder.is_dir() and (
      any((folder / name).is_file() for name in ("model.json", "modules.json", "checkpoint", "adapter_config.json")) or
      folder.name.startswith("checkpoint_") and (folder / "state").is_dir() or
      (folder / "config.json").is_file() and not re.fullmatch(r"\d+_[A-Z]\w*", folder.name) or
      folder.name.startswith("models--") and (folder / "snapshots").is_dir())


def _not_a_folder(path: epath.Path) -> InputError:
  around = path.parent if holds_model(path.parent) else _model_around(path)
  if around is not None:
    return InputError(f"{path}: one file of a model; give the folder it lies in, {around}")
  if path.parent.name == "blobs" and (path.parent.parent / "snapshots").is_dir():
    return InputError(f"{path}: one file of the Hugging Face hub's cache; give the model's folder there, "
                      f"{path.parent.parent}")
  beginning = first_bytes(path)
  check_contents(path, beginning)
  if _ARCHIVE.fullmatch(path.name):
    return InputError(f"{path}: an archive; unpack it, and give the model's folder")
  for mark, what, advice in _MAGIC[:2]:
    if beginning.startswith(mark):
      return InputError(f"{path}: {what}; {advice}")
  if re.fullmatch(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf)", path.name):
    return InputError(f"{path}: weights without config.json and a tokenizer; give a folder with all of the model's "
                      "files")
  return InputError(f"{path}: a file, and none of a model's; give a training run's MODEL_DIR, a sentence-transformers "
                    "or T5 folder, or a T5X checkpoint")


def _model_around(path: epath.Path) -> epath.Path | None:
  """The model that a path lies in, at most four folders up."""
  for folder in list(path.parents)[:4]:
    if any((folder / name).is_file() for name in ("model.json", "modules.json")):
      return folder
    if folder.name.startswith("checkpoint_") and ((folder / "checkpoint").is_file() or (folder / "state").is_dir()):
      return folder
  return None


def _other_weights(names: Collection[str]) -> str | None:
  names = [name for name in names if not _BESIDE_WEIGHTS.fullmatch(name)]
  for pattern, what, advice in _WEIGHTS:
    if found := next((name for name in sorted(names) if re.fullmatch(pattern, name)), None):
      return f"{what} ({found}); gtr_jax reads model.safetensors and pytorch_model.bin: {advice}"
  return None


def _listed(paths: list[epath.Path], most: int = 5) -> str:
  more = f" and {len(paths) - most} more" if len(paths) > most else ""
  return ", ".join(map(str, paths[:most])) + more


def _names(folder: epath.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
