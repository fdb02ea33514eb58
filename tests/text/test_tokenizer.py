"""Token ids against sentencepiece itself, and vocabularies that do not fit."""

import numpy as np
import pytest
import sentencepiece
from tiny_model_dir import sentence, write_vocabulary

from gtr_jax.errors import InputError
from gtr_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
  write_vocabulary(path)
  return path


def test_ids_are_sentencepieces_trimmed_and_closed(path):
  tokenizer = Tokenizer(path)
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
  texts = ["", sentence(1, 3), sentence(2, 30), "  spaces   and\ttabs "]
  for length in (2, 8, 100):
    for ids, text in zip(tokenizer.encode(texts, length), texts, strict=True):
      np.testing.assert_array_equal(ids, pieces.encode(text)[:length - 1] + [pieces.eos_id()])
      assert ids.dtype == np.int32 and len(ids) <= length


def test_size_counts_sentinels(path):
  plain, extended = Tokenizer(path), Tokenizer(path, extra_ids=100)
  assert extended.size == plain.size + 100 and extended.sha256 == plain.sha256
  extended.check_fits(extended.size)
  with pytest.raises(InputError, match=f"{extended.size} ids do not fit .* {extended.size - 1} rows"):
    extended.check_fits(extended.size - 1)


def test_wrong_files(path, tmp_path):
  with pytest.raises(InputError, match="no such vocabulary"):
    Tokenizer(tmp_path / "nothing.model")
  (tmp_path / "text.model").write_text("this is no model")
  with pytest.raises(InputError, match="not a SentencePiece model"):
    Tokenizer(tmp_path / "text.model")
  cut = tmp_path / "cut.model"
  cut.write_bytes(path.read_bytes()[:100])
  with pytest.raises(InputError):
    Tokenizer(cut)


def test_a_vocabulary_without_eos_is_refused(tmp_path):
  prefix = tmp_path / "no_eos"
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(sentence(i, 8) for i in range(200)), model_prefix=str(prefix), vocab_size=100, pad_id=0,
      eos_id=-1, unk_id=1, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
  with pytest.raises(InputError, match="end-of-sentence"):
    Tokenizer(f"{prefix}.model")


def test_a_vocabulary_with_a_piece_at_the_padding_id_is_refused(tmp_path):
  prefix = tmp_path / "defaults"  # sentencepiece's own: unk 0, bos 1, eos 2, no padding
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(sentence(i, 8) for i in range(200)), model_prefix=str(prefix), vocab_size=100,
      hard_vocab_limit=False, minloglevel=2)
  with pytest.raises(InputError, match="id 0 for padding"):
    Tokenizer(f"{prefix}.model")


def test_text_that_is_not_unicode(path):
  with pytest.raises(InputError, match="not valid Unicode"):
    Tokenizer(path).encode(["\ud800"], 8)
