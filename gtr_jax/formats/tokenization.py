"""How a model reads texts, as a user says it: vocabulary and lengths, which checkpoints of other programs may lack."""

import dataclasses
import numbers
import os
from typing import Any

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats.diagnose import other_vocabulary
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.io.paths import location
from gtr_jax.text.tokenizer import MOST_TOKENS, Tokenizer

LENGTHS = {"query": "query_length", "document": "document_length"}  # of each side, its argument


@dataclasses.dataclass(frozen=True)
class Tokenization:
  """What a checkpoint of another program may not say, for `load_model`; what is None is the model's own.

  Attributes:
    vocabulary: the SentencePiece model.
    extra_ids: sentinels after its pieces (T5: 100).
    query_length: most tokens of a query.
    document_length: most tokens of a document.
    only_unsaid: a model keeps what it says itself; otherwise what is given here comes first, and a training run, which
      says all of it, is refused.

  Raises:
    InputError: one of them is of another kind, too small or too large.
  """

  vocabulary: epath.PathLike | None = None
  extra_ids: int | None = None
  query_length: int | None = None
  document_length: int | None = None
  only_unsaid: bool = False

  def __post_init__(self):
    for name, least in (("extra_ids", 0), ("query_length", 1), ("document_length", 1)):
      if (value := getattr(self, name)) is not None:
        object.__setattr__(self, name, whole_number(name, value, least))
    if not isinstance(self.vocabulary, str | os.PathLike | None):
      raise InputError(f"vocabulary is {self.vocabulary!r}: give the path of a SentencePiece model, or leave it out")

  def given(self) -> list[str]:
    """The names of what is given."""
    return [name for name in ("vocabulary", "extra_ids", *LENGTHS.values()) if getattr(self, name) is not None]


def whole_number(name: str, value: Any, least: int = 1) -> int:
  """`value`, perhaps of numpy; raises InputError unless it is a whole number between `least` and a million."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= MOST_TOKENS:
    raise InputError(f"{name} is {value!r}: give a whole number of at least {least} and at most {MOST_TOKENS:,}, or "
                     "leave it out")
  return int(value)


def complete(source: ModelOnDisk, tokenization: Tokenization | None) -> ModelOnDisk:
  """A model in another program's format, with what it does not say. Raises InputError where that is not given."""
  tokenization = tokenization or Tokenization()
  given = {name: getattr(tokenization, name) for name in tokenization.given()}
  if tokenization.only_unsaid:
    said = {"vocabulary", "extra_ids"} if source.vocabulary is not None else set()
    said |= {name for side, name in LENGTHS.items() if side in source.lengths}
    given = {name: value for name, value in given.items() if name not in said}
  if "vocabulary" in given:
    source = dataclasses.replace(source, vocabulary=location(given["vocabulary"]), vocabulary_model=None)
  if source.vocabulary is None:
    raise InputError(f"{source.path}: comes without a vocabulary{other_vocabulary(source.path)}; give the "
                     "SentencePiece model (spiece.model) that it was trained with: --vocabulary, in Python vocabulary=")
  lengths = {}
  for side, name in LENGTHS.items():
    if (length := given.get(name, source.lengths.get(side))) is None:
      raise InputError(f"{source.path}: does not say how long a {side} may be; give a number of tokens (GTR: 64 for "
                       f"queries, 512 for documents): --{name}, in Python {name}=")
    lengths[side] = length
  return dataclasses.replace(source, extra_ids=given.get("extra_ids", source.extra_ids), lengths=lengths)


def refuse_given(tokenization: Tokenization | None, path: epath.PathLike) -> None:
  """Raises InputError where something is given for a training run, which says all of it."""
  if tokenization is not None and tokenization.given() and not tokenization.only_unsaid:
    raise InputError(f"{path}: a training run says its vocabulary and lengths itself; leave "
                     f"{', '.join(tokenization.given())} out")


def tokenizer_of(source: ModelOnDisk) -> Tokenizer:
  """The model's tokenizer. Raises InputError where it has more pieces than the model rows."""
  make = source.vocabulary_model
  tokenizer = Tokenizer(source.vocabulary, source.extra_ids, None if make is None else make())
  tokenizer.check_fits(source.encoder.config.vocab_size)
  return tokenizer
