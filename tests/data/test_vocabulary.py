"""The vocabulary: T5's conventions, the same file every time."""

import pytest
import sentencepiece
import seqio
from tiny_text import words

from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.errors import InputError
from gtr_jax.text.tokenizer import Tokenizer

pytest_plugins = "data_fixtures"


def test_has_t5_conventions(vocabulary):
  pieces = sentencepiece.SentencePieceProcessor(model_file=vocabulary)
  assert [pieces.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
  assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
  assert pieces.get_piece_size() == 300
  assert not any(pieces.is_byte(i) for i in range(300))
  text = words(20, "unseen")
  assert pieces.decode(pieces.encode(text)) == text


def test_inference_and_seqio_read_it_alike(vocabulary):
  texts = [words(9, f"alike{i}") for i in range(50)]
  tokenizer, seqio_vocabulary = Tokenizer(vocabulary), seqio.SentencePieceVocabulary(vocabulary)
  assert tokenizer.size == seqio_vocabulary.vocab_size == 300
  for text, ids in zip(texts, tokenizer.encode(texts, 64), strict=True):
    assert ids.tolist() == [*seqio_vocabulary.encode_tf(text).numpy(), 1]


def test_is_deterministic_and_leaves_nothing_else(tmp_path):
  texts = [words(12, i) for i in range(300)]
  train_vocabulary(texts, tmp_path / "a.model", size=200)
  train_vocabulary(iter(texts), tmp_path / "b.model", size=200)
  train_vocabulary(texts[1:], tmp_path / "c.model", size=200)
  a, b, c = ((tmp_path / f"{name}.model").read_bytes() for name in "abc")
  assert a == b != c
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model", "c.model"]


def test_no_text_is_an_input_error(tmp_path):
  with pytest.raises(InputError, match="cannot train a vocabulary of 100 pieces"):
    train_vocabulary([], tmp_path / "spiece.model", size=100)
  assert not list(tmp_path.iterdir())
