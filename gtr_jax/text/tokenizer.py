"""SentencePiece tokenisation for inference: ids exactly as T5 was trained on, without TensorFlow."""

import hashlib
from collections.abc import Sequence

import numpy as np
import sentencepiece
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.contents import check_contents
from gtr_jax.io.paths import check_regular, location

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
    self.path = location(path)
    self.model = _read(self.path) if model is None else model
    self.sha256 = hashlib.sha256(self.model).hexdigest()
    self.extra_ids = extra_ids
    self._pieces = sentencepiece.SentencePieceProcessor()
    try:
      self._pieces.LoadFromSerializedProto(self.model)
    except RuntimeError as e:
      raise InputError(f"{self.path}: {_what_it_is(self.model)}, not a SentencePiece model; give the spiece.model that "
                       "the model was trained with") from e
    self.size = self._pieces.GetPieceSize() + extra_ids
    self.eos_id = self._pieces.eos_id()
    if self.eos_id < 0 or self._pieces.pad_id() != PAD_ID:
      raise InputError(f"{self.path}: needs an end-of-sentence piece and id 0 for padding, as T5's vocabularies have; "
                       "train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1")

  def pieces(self) -> list[str]:
    """All pieces in the order of their ids, without the sentinels."""
    return [self._pieces.IdToPiece(i) for i in range(self._pieces.GetPieceSize())]

  def pieces_of(self, text: str) -> list[str]:
    """A text as pieces, whole and without EOS."""
    return self._pieces.EncodeAsPieces(text)

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


def _read(path: epath.Path) -> bytes:
  if not path.exists():
    raise InputError(f"{path}: no such vocabulary; give the path of a SentencePiece model (spiece.model)")
  if path.is_dir():
    inside = path / "spiece.model"
    raise InputError(f"{path}: a folder; give the vocabulary in it, {inside}" if inside.exists() else
                     f"{path}: a folder; give the path of a SentencePiece model (spiece.model)")
  check_regular(path)
  data = path.read_bytes()
  check_contents(path, data)
  return data


def _what_it_is(data: bytes) -> str:
  """What a file that is no SentencePiece model seems to be."""
  beginning = data[:4096].decode(errors="replace").lstrip("\ufeff \t\r\n")
  if beginning.startswith("{"):
    return "a JSON file (tokenizer.json is another form of a vocabulary)"
  if any(data.startswith(mark) for mark in (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd")):
    return "a compressed file"
  if beginning and all(char.isprintable() or char.isspace() for char in beginning.rstrip("\ufffd")):
    return "a text file (vocab.txt is a vocabulary of another kind)"
  return "damaged, or of another program"
