"""Models as teachers: those that sentence-transformers loads, and in any form that gtr_jax reads."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.formats import sentence_transformers
from gtr_jax.formats.any_form import open_foreign
from gtr_jax.formats.locate import is_hub_name, locate
from gtr_jax.formats.model_dir import find_model_dir
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.io.contents import content_hash
from gtr_jax.mining.rescore import CrossEncoderRescorer
from gtr_jax.teachers.teacher import Described, Encode, Scorer, Teacher

_PAIRS_AT_ONCE = 32
_TOKENS_AT_ONCE = {"cpu": 2048, "else": 65536}  # Of a CPU its caches hold about so much; of a GPU it is busy.
INSTALL = "pip install 'gtr_jax[teachers]' (torch, transformers and sentence-transformers)"
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # As sentence-transformers looks for one.


def bi_encoder(path: str, *, query_prompt: str | None = None, passage_prompt: str | None = None,
               batch_size: int | None = None, max_length: int | None = None,
               tokenization: Tokenization | None = None, dtype: str | None = None) -> Teacher:
  """A model that gives vectors.

  Args:
    path: of a model in any form that `inference.load.load_model` reads, which gtr_jax computes; else a folder that
      sentence-transformers reads, or a name on the Hugging Face hub.
    query_prompt: put before queries; default: the model's own.
    passage_prompt: put before passages and negatives; default: the model's own.
    batch_size: texts that are computed at once; default: by their tokens.
    max_length: most tokens of a text; default: the model's own.
    tokenization: what a model of another program does not say; of T5s only.
    dtype: "float32" or "bfloat16", that it is computed in; default: of a model of gtr_jax what suits the devices, of
      another float32.

  Raises:
    InputError: there is no such model, or it is damaged; or sentence-transformers is needed, and not there.
  """
  refusal = _why_not_ours(path)
  if refusal is None:
    return _of_gtr_jax(path, query_prompt, passage_prompt, batch_size, max_length, tokenization, dtype)
  if tokenization is not None and (given := tokenization.given()):
    raise InputError(f"--{given[0]}: {path} is for sentence-transformers, and says its own; leave it out (--max_length "
                     "is for both sides)")
  return _of_sentence_transformers(path, refusal, query_prompt, passage_prompt, batch_size, max_length,
                                   dtype or "float32")


def cross_encoder(path: str, *, batch_size: int | None = None) -> Scorer:
  """A cross-encoder of sentence-transformers. Raises InputError, as `CrossEncoderRescorer`."""
  _sentence_transformers(f"--cross_encoder {path}")
  rescorer = CrossEncoderRescorer(path, "--cross_encoder", "--teacher", batch_size or _PAIRS_AT_ONCE)
  return Scorer(Described(path, _content(path)), rescorer.score)


def _why_not_ours(path: str) -> InputError | None:
  """None where gtr_jax computes the model; else why not, of one that sentence-transformers may read. Raises InputError
  where there is nothing that it may."""
  if find_model_dir(path) is not None:
    return None
  try:
    open_foreign(path)
  except InputError as e:
    if sentence_transformers.is_folder(_folder(path)):
      return e
    raise
  return None


def _of_gtr_jax(path: str, query_prompt: str | None, passage_prompt: str | None, batch_size: int | None,
                max_length: int | None, tokenization: Tokenization | None, dtype: str | None) -> Teacher:
  model = load_model(path, tokenization=tokenization, dtype=dtype)
  prompts = {"query": model.prompts["query"] if query_prompt is None else query_prompt,
             "passage": model.prompts["document"] if passage_prompt is None else passage_prompt}
  lengths = {"query": max_length or model.lengths["query"], "passage": max_length or model.lengths["document"]}

  def encode_as(tower: str) -> Encode:
    return lambda texts: embed(model, texts, tower, lengths[tower], progress=False, prompt=prompts[tower],
                               batch_size=batch_size)

  alike = model.encoder.shared and len(set(prompts.values())) == len(set(lengths.values())) == 1
  return _teacher(Described(path, model.weights_hash, _settings(prompts) | {
      f"{side}_length": length for side, length in lengths.items()} | {"dtype": model.encoder.config.dtype}),
                  encode_as, alike)


def _of_sentence_transformers(path: str, refusal: InputError, query_prompt: str | None, passage_prompt: str | None,
                              batch_size: int | None, max_length: int | None, dtype: str) -> Teacher:
  _sentence_transformers(f"--teacher {path}: gtr_jax itself does not compute it ({first_line(refusal)}), and")
  from sentence_transformers import SentenceTransformer
  try:
    model = SentenceTransformer(path, model_kwargs={"dtype": dtype})
  except (OSError, ValueError, KeyError, ImportError) as e:
    raise InputError(f"--teacher {path}: neither gtr_jax reads it ({first_line(refusal)}), nor sentence-transformers "
                     f"({first_line(e)}); give the folder of a model that gives vectors") from e
  if max_length is not None:
    _check_length(path, model, max_length)
    model.max_seq_length = max_length
  prompts = {"query": _own_prompt(model, ("query",)) if query_prompt is None else query_prompt,
             "passage": _own_prompt(model, _DOCUMENT_PROMPTS) if passage_prompt is None else passage_prompt}

  tokens_at_once = _TOKENS_AT_ONCE["cpu" if model.device.type == "cpu" else "else"]

  def encode_as(side: str) -> Encode:
    encode = model.encode_query if side == "query" else model.encode_document

    def vectors(texts: Sequence[str]) -> np.ndarray:
      lengths = _tokens(model, texts, prompts[side])
      order = np.argsort(-lengths, kind="stable")
      found = [encode([texts[row] for row in order[part]], prompt=prompts[side], batch_size=len(order[part]),
                      show_progress_bar=False) for part in batches(lengths[order], tokens_at_once, batch_size)]
      return np.concatenate(found)[np.argsort(order)]

    return vectors

  routes = any(type(module).__name__ in ("Router", "Asym") for module in model.modules())
  return _teacher(Described(path, _content(path), _settings(prompts) | {
      "length": model.max_seq_length, "dtype": dtype}), encode_as, len(set(prompts.values())) == 1 and not routes)


def _tokens(model: Any, texts: Sequence[str], prompt: str) -> np.ndarray:
  """How many tokens each text has, int `[texts]`; where the model does not say, its characters."""
  mask = model.preprocess(list(texts), prompt=prompt).get("attention_mask")
  if mask is None or mask.ndim != 2 or len(mask) != len(texts):
    return np.asarray(list(map(len, texts)))
  return mask.sum(1).cpu().numpy()


def batches(lengths: np.ndarray, tokens: int, texts: int | None = None) -> Iterator[slice]:
  """What is computed at once of texts whose lengths fall, `[texts]`: as many as have so many tokens with padding, at
  least one text; or so many `texts`."""
  at = 0
  while at < len(lengths):
    number = texts or max(tokens // max(int(lengths[at]), 1), 1)
    yield slice(at, at + number)
    at += number


def _teacher(described: Described, encode_as: Callable[[str], Encode], alike: bool) -> Teacher:
  encode_query = encode_as("query")
  return Teacher(described, encode_query, encode_query if alike else encode_as("passage"))


def _settings(prompts: dict[str, str]) -> dict[str, str | int | None]:
  return {f"{side}_prompt": prompt for side, prompt in prompts.items()}


def _own_prompt(model: Any, names: Sequence[str]) -> str:
  """As `encode_query` and `encode_document` find it."""
  name = next((name for name in names if name in model.prompts), model.default_prompt_name)
  return model.prompts.get(name) or ""


def _check_length(path: str, model: Any, length: int) -> None:
  """Raises InputError where the model has no positions for so many tokens."""
  config = getattr(model.transformers_model, "config", None)
  most = getattr(config, "max_position_embeddings", None)
  if isinstance(most, int) and length > most:
    raise InputError(f"--max_length {length}: {path} has positions for {most} tokens; give at most that")


def _sentence_transformers(what: str) -> None:
  """Raises InputError where the package is not there."""
  try:
    import sentence_transformers as _  # noqa: F401
  except ImportError as e:
    raise InputError(f"{what} needs sentence-transformers ({first_line(e)}): {INSTALL}") from e


def _folder(path: str) -> epath.Path:
  """Where a model's files are; of a name on the hub, in its cache."""
  folder = locate(path)
  if folder.exists() or not is_hub_name(path):
    return folder
  try:
    import huggingface_hub
    return epath.Path(huggingface_hub.snapshot_download(path, local_files_only=True))
  except Exception:  # In as many types as the hub has reasons.
    return folder


def _content(path: str) -> str:
  """A hash of all files of a model, but for texts on it and hidden ones."""
  folder = os.fspath(_folder(path))
  digest = hashlib.sha256()
  for above, folders, files in os.walk(folder, followlinks=True):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in sorted(name for name in files if not name.startswith(".") and not name.endswith(".md")):
      place = os.path.join(above, name)
      digest.update(f"{os.path.relpath(place, folder)}\0{content_hash(epath.Path(place))}\0".encode())
  return digest.hexdigest()


def described_in_words(teacher: Teacher) -> str:
  """Its prompts and lengths, for the user."""
  return ", ".join(f"{name.replace('_', ' ')} {value!r}" for name, value in teacher.described.settings.items())
