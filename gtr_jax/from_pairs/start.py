"""What a run starts from: a published or trained model with all that it says, or a size with random weights."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gtr_jax import config
from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.errors import InputError
from gtr_jax.formats.any_form import open_foreign, open_model
from gtr_jax.formats.model_dir import find_model_dir
from gtr_jax.formats.tokenization import Tokenization, complete, tokenizer_of
from gtr_jax.io import atomic, data_root
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.tokenizer import Tokenizer

GTR_LENGTHS = {"query": 64, "document": 512}  # of a T5 that says none (arXiv 2112.07899)
GTR_DIM = 768
T5_EXTRA_IDS = 100
_VOCABULARY_SIZE, _VOCABULARY_CHARACTERS = 8000, 5_000_000
_HOW_TO_TRAIN = ("dtype", "remat", "scan_layers", "attention", "dropout_rate")  # of a T5Config: for this run to say


class Start(NamedTuple):
  """What a run starts from.

  Attributes:
    gin: lines of gin that bind MODEL.
    initial: value of INITIAL_CHECKPOINT_PATH; None: random weights.
    tokenizer: of its vocabulary.
    vocabulary: where that lies below the data folder.
    lengths: most tokens of a "query" and of a "document".
    prompts: text before each.
    said: what it is, for the user.
  """

  gin: str
  initial: str | None
  tokenizer: Tokenizer
  vocabulary: str
  lengths: Mapping[str, int]
  prompts: Mapping[str, str]
  said: str


def sizes() -> list[str]:
  """The names of the models that come with gtr_jax, for random weights."""
  shared = {"t5_1_0", "t5_1_1", "mt5"}
  return sorted(path.stem for path in (config.configs_dir() / "models").glob("*.gin") if path.stem not in shared)


def is_size(init: str) -> bool:
  """Whether it is a size of `sizes()`, and not the path of a model."""
  return init in sizes() and not os.path.exists(init)


def of_model(init: str, tokenization: Tokenization) -> Start:
  """What the model `init` gives.

  Args:
    init: a model in any form that `inference.load.load_model` reads.
    tokenization: what the user says of vocabulary and lengths; it comes before what the model says.

  Raises:
    InputError: there is no such model, or it is damaged, or does not say what is not given.
  """
  given = _lengths(tokenization)
  if find_model_dir(init) is not None:
    if tokenization.vocabulary is not None or tokenization.extra_ids is not None:
      raise InputError(f"{init}: a training run says its vocabulary itself; leave --vocabulary and --extra_ids out")
    source, tokenizer = open_model(init)
  else:
    source = open_foreign(init)
    lengths = {**GTR_LENGTHS, **source.lengths, **given}
    source = complete(source, dataclasses.replace(
        tokenization, query_length=lengths["query"], document_length=lengths["document"]))
    tokenizer = tokenizer_of(source)
  encoder, added = source.encoder, ""
  if encoder.projection_dim is None and find_model_dir(init) is None and not (source.path / "modules.json").exists():
    encoder = dataclasses.replace(encoder, projection_dim=GTR_DIM)
    added = f" (a T5 alone: its projection to {GTR_DIM} is drawn at random)"
  path = init if "://" in init or not os.path.exists(init) else os.path.abspath(os.path.expanduser(init))
  return Start(_gin_of(encoder), path, tokenizer, _keep(tokenizer), {**source.lengths, **given}, source.prompts,
               f"{init}{added}")


def of_size(size: str, tokenization: Tokenization, texts: Iterable[str]) -> Start:
  """Random weights of a size of `sizes()`.

  Args:
    size: its name.
    tokenization: what the user says of vocabulary and lengths.
    texts: of the pairs: what a vocabulary is trained on where none is given; else they are not looked at.

  Raises:
    InputError: the vocabulary is none, or the texts are too few for one.
  """
  if tokenization.vocabulary is None:
    if tokenization.extra_ids is not None:
      raise InputError("--extra_ids belongs to --vocabulary; give that, or leave it out")
    tokenizer = _trained(texts)
    said = f"a vocabulary of {tokenizer.size:,} pieces trained on the pairs"
  else:
    extra_ids = T5_EXTRA_IDS if tokenization.extra_ids is None else tokenization.extra_ids
    tokenizer, said = Tokenizer(tokenization.vocabulary, extra_ids), os.fspath(tokenization.vocabulary)
  rows = -(-tokenizer.size // 128) * 128
  gin = f"include 'models/{size}.gin'\nfrom gtr_jax.models import t5\nt5.T5Config.vocab_size = {rows}\n"
  lengths = {**GTR_LENGTHS, **_lengths(tokenization)}
  return Start(gin, None, tokenizer, _keep(tokenizer), lengths, {"query": "", "document": ""},
               f"RANDOM WEIGHTS of the size {size}, with {said}")


def _lengths(tokenization: Tokenization) -> dict[str, int]:
  """Those that the user says."""
  lengths = {"query": tokenization.query_length, "document": tokenization.document_length}
  return {side: length for side, length in lengths.items() if length is not None}


def _trained(texts: Iterable[str]) -> Tokenizer:
  """A vocabulary of the first so many characters."""
  chosen = list(_first(texts, _VOCABULARY_CHARACTERS))
  name = hashlib.sha256("\0".join(chosen).encode()).hexdigest()[:16]
  path = data_root.data_dir() / "vocabularies" / f"trained-{name}.model"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    train_vocabulary(chosen, path, _VOCABULARY_SIZE)
  return Tokenizer(path)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
  for text in texts:
    yield text
    characters -= len(text)
    if characters <= 0:
      return


def _keep(tokenizer: Tokenizer) -> str:
  """A copy of the vocabulary in the data folder, whatever becomes of the model; its path below that."""
  name = f"vocabularies/{tokenizer.sha256[:16]}.model"
  path = data_root.resolve(name)
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, tokenizer.model)
  return name


def _gin_of(encoder: DualEncoder) -> str:
  """Bindings of all that the model says of itself."""
  lines = ["from gtr_jax.models import dual_encoder", "from gtr_jax.models import t5", "DROPOUT_RATE = 0.0",
           "MODEL = @dual_encoder.DualEncoder()", "dual_encoder.DualEncoder.config = @t5.T5Config()",
           "t5.T5Config.dropout_rate = %DROPOUT_RATE"]
  lines += _bindings("dual_encoder.DualEncoder", encoder, but=("config", "lora"))
  lines += _bindings("t5.T5Config", encoder.config, but=_HOW_TO_TRAIN)
  return "\n".join([*lines, ""])


def _bindings(name: str, of: DualEncoder | T5Config, but: tuple[str, ...]) -> list[str]:
  fields: list[dataclasses.Field[Any]] = [field for field in dataclasses.fields(of) if field.name not in but]
  return [f"{name}.{field.name} = {getattr(of, field.name)!r}" for field in fields]
