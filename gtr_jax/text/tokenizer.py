"""SentencePiece tokenisation for inference: ids exactly as T5 was trained on, without TensorFlow."""

import hashlib
from collections.abc import Sequence

import numpy as np
import sentencepiece
from etils import epath

from gtr_jax.errors import InputError

PAD_ID = 0
MOST_TOKENS = 1_000_000  # of a text: more is a mistake, or a way to say that there is no limit


class Tokenizer:
  """A SentencePiece model with T5's conventions: 0 pads, EOS closes every text, sentinels come after the pieces.

  Attributes:
    path: where the model was read from.
    model: the SentencePiece model itself.
    sha256: of the model file.
    extra_ids: sentinels beyond the pieces of the file (T5: 100).
    size: pieces + extra_ids, the least number of embedding rows that a model needs.
    eos_id: id appended to every text.
  """

  def __init__(self, path: epath.PathLike, extra_ids: int = 0, model: bytes | None = None):
    """Reads the model at `path`; where `model` is given, `path` only names where that came from."""
    self.path = epath.Path(path)
    if model is None and not self.path.exists():
      raise InputError(f"{path}: no such vocabulary; give the path of a SentencePiece model (spiece.model)")
    self.model = self.path.read_bytes() if model is None else model
    self.sha256 = hashlib.sha256(self.model).hexdigest()
    self.extra_ids = extra_ids
    self._pieces = sentencepiece.SentencePieceProcessor()
    try:
      self._pieces.LoadFromSerializedProto(self.model)
    except RuntimeError as e:
      raise InputError(f"{path}: not a SentencePiece model") from e
    self.size = self._pieces.GetPieceSize() + extra_ids
    self.eos_id = self._pieces.eos_id()
    if self.eos_id < 0 or self._pieces.pad_id() != PAD_ID:
      raise InputError(f"{path}: needs an end-of-sentence piece and id 0 for padding, as T5's vocabularies have; "
                       "train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1")

  def pieces(self) -> list[str]:
    """All pieces in the order of their ids, without the sentinels."""
    return [self._pieces.IdToPiece(i) for i in range(self._pieces.GetPieceSize())]

  def check_fits(self, vocab_size: int) -> None:
    """Raises InputError if the model's embedding has fewer rows than there are ids."""
    if self.size > vocab_size:
      raise InputError(f"{self.path}: {self.size} ids do not fit the model's embedding of {vocab_size} rows; take the "
                       "vocabulary that the model was trained with, or set vocab_size")

  def encode(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Token ids of each text, int32 `[<= max_length]`: trimmed to `max_length - 1`, then EOS."""
    try:
      pieces = self._pieces.EncodeAsIds(list(texts))
    except (TypeError, UnicodeEncodeError) as e:
      raise InputError("a text is not valid Unicode (it has half of a surrogate pair); correct it") from e
    return [np.asarray(ids[:max_length - 1] + [self.eos_id], np.int32) for ids in pieces]
