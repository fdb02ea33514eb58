"""Trains a SentencePiece vocabulary with T5's conventions."""

import io
from collections.abc import Iterable

import sentencepiece
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io.atomic import write_bytes


def train_vocabulary(texts: Iterable[str], path: epath.PathLike, size: int = 8000) -> None:
  """Writes a unigram model: pad 0, end of sentence 1, unknown 2, no beginning of sentence, no bytes.

  One thread, no sampling: the same texts in the same order give the same file. Takes about 1 s per MB of text.

  Args:
    texts: what to train on.
    path: the model to write, `…/spiece.model`.
    size: pieces; a few texts may give fewer.

  Raises:
    InputError: too few texts.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=size,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
        character_coverage=0.9995, byte_fallback=False, hard_vocab_limit=False, input_sentence_size=0,
        max_sentence_length=1 << 16, num_threads=1, minloglevel=2)
  except RuntimeError as e:
    raise InputError(f"{path}: cannot train a vocabulary of {size} pieces ({' '.join(str(e).split())}); give more "
                     "text or ask for fewer pieces") from e
  write_bytes(path, model.getvalue())
