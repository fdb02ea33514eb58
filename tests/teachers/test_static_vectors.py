"""Vectors of pieces, and what they learn from a teacher's vectors of texts."""

import numpy as np
import pytest
from prepared_files import prepare_rows
from tiny_model_dir import sentence, write_model_dir, write_vocabulary

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.teachers import static_vectors
from gtr_jax.teachers.static_vectors import TaughtTexts, fitted, mean_cosine, of_pieces, taught_texts
from gtr_jax.teachers.teach import teach
from gtr_jax.teachers.teacher import Described, Teacher

DIM, PIECES = 6, 50


def texts_of(number, seed, truth):
  """Texts whose vectors are the sums of those of their pieces, of lengths of their own."""
  rng = np.random.default_rng(seed)
  tokens = [rng.integers(0, PIECES, rng.integers(1, 12)).astype(np.int32) for _ in range(number)]
  vectors = np.stack([truth[ids].sum(0) for ids in tokens])
  return TaughtTexts(tokens, np.float32(vectors * rng.uniform(0.5, 2, (number, 1))))


def cosine(vectors, texts):
  """From the definition, in float64."""
  found = []
  for ids, vector in zip(texts.tokens, np.float64(texts.vectors), strict=True):
    of_text = np.float64(vectors)[ids].sum(0)
    found.append(of_text @ vector / np.linalg.norm(of_text) / np.linalg.norm(vector))
  return np.mean(found)


@pytest.fixture
def small_batches(monkeypatch):
  monkeypatch.setattr(static_vectors, "_TOKENS", 64)
  monkeypatch.setattr(static_vectors, "_TEXTS", 9)


def test_the_mean_cosine_is_that_of_sums(small_batches):
  truth = np.random.default_rng(0).normal(size=(PIECES, DIM))
  texts = texts_of(101, 1, truth)
  vectors = np.float32(np.random.default_rng(2).normal(size=(PIECES, DIM)))
  assert mean_cosine(vectors, texts) == pytest.approx(cosine(vectors, texts), abs=1e-6)


def test_fitting_finds_what_texts_not_seen_agree_with(small_batches):
  rng = np.random.default_rng(0)
  truth = rng.normal(size=(PIECES, DIM)) / np.sqrt(DIM)
  start = np.float32(truth + rng.normal(size=truth.shape) * 0.5 / np.sqrt(DIM))
  found = fitted(start, texts_of(2000, 1, truth), 0)
  held_out = texts_of(200, 2, truth)
  assert cosine(start, held_out) < 0.93 < 0.98 < cosine(found, held_out)


def test_pieces_of_no_text_stay():
  start = np.float32(np.random.default_rng(0).normal(size=(PIECES, DIM)))
  texts = TaughtTexts([np.int32([3, 4])], np.ones((1, DIM), np.float32))
  found = fitted(start, texts, 0)
  assert set(np.flatnonzero(np.any(found != start, axis=1))) == {3, 4}


def test_a_text_longer_than_a_batch(monkeypatch):
  monkeypatch.setattr(static_vectors, "_TOKENS", 8)
  start = np.float32(np.random.default_rng(0).normal(size=(PIECES, DIM)))
  tokens = [np.arange(20, dtype=np.int32), np.int32([1])]
  assert mean_cosine(start, TaughtTexts(tokens, np.ones((2, DIM), np.float32))) == pytest.approx(
      cosine(start, TaughtTexts([tokens[0][:8], tokens[1]], np.ones((2, DIM)))), abs=1e-6)


def test_vectors_of_another_width():
  with pytest.raises(InputError, match="their vectors have 4 numbers, those of --teacher 6"):
    fitted(np.ones((PIECES, DIM), np.float32), TaughtTexts([np.int32([3])], np.ones((1, 4), np.float32)), 0)


def test_a_teacher_that_changes_its_width():
  def changing(texts):
    return np.ones((len(texts), 3 if len(texts) == 1 else 4), np.float32)

  with pytest.raises(InputError, match="is needed"):
    of_pieces(Teacher(Described("fake", "1"), changing, changing), ["▁a", "b"])


@pytest.fixture
def data(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  rows = [{"query": sentence(i, 4) + f" {i}", "positive": sentence(i // 2, 6), "negatives": [sentence(i, 9)]}
          for i in range(40)]
  prepare_rows(tmp_path, rows, validation_share=0.2)
  yield "p0"
  data_root.set_data_dir(None)


def test_texts_of_prepared_data(tmp_path, data):
  asked = {}

  def encode(texts):
    vectors = np.random.default_rng(len(asked)).normal(size=(len(texts), DIM)).astype(np.float32)
    asked.update(zip(texts, vectors, strict=True))
    return vectors

  teach(data, "taught", teacher=Teacher(Described("fake", "1"), encode, encode), say=str)
  vocabulary = write_vocabulary(tmp_path / "spiece.model")
  for split in ("train", "validation"):
    texts = taught_texts(["taught"], split, vocabulary, 64, 64)
    assert len(texts.tokens) == len(np.unique(texts.vectors, axis=0)) > 10
    both = taught_texts(["taught", "taught"], split, vocabulary, 64, 64)
    np.testing.assert_array_equal(both.vectors, texts.vectors)
    known = {vector.tobytes(): text for text, vector in asked.items()}
    for ids, vector in zip(texts.tokens, texts.vectors, strict=True):
      np.testing.assert_array_equal(ids, vocabulary.encode([known[vector.tobytes()]], 64)[0])
  assert max(map(len, taught_texts(["taught"], "train", vocabulary, 3, 5).tokens)) == 5


def test_data_of_two_teachers(tmp_path, data):
  for width in (3, 4):
    def encode(texts, width=width):
      return np.ones((len(texts), width), np.float32)

    teach(data, f"of{width}", teacher=Teacher(Described("fake", str(width)), encode, encode), say=str)
  with pytest.raises(InputError, match="several widths, 3 in of3, 4 in of4; give what one"):
    taught_texts(["of3", "of4"], "train", write_vocabulary(tmp_path / "spiece.model"), 3, 64)


def test_data_that_nobody_has_taught(tmp_path, data):
  with pytest.raises(InputError, match="no vectors of a teacher; give data that gtr-jax teach --teacher wrote"):
    taught_texts([data], "train", write_vocabulary(tmp_path / "spiece.model"), 64, 64)


def test_command(tmp_path, data, capsys):
  vocabulary = write_model_dir(tmp_path / "teacher") / "spiece.model"
  assert main(["teach", "--pairs", data, "--teacher", str(tmp_path / "teacher"), "--name", "taught", "--data_dir",
               str(tmp_path / "data")]) == 0
  words = ["student", "--teacher", str(tmp_path / "teacher"), "--vocabulary", str(vocabulary), "--layers", "1",
           "--extra_ids", "0", "--data_dir", str(tmp_path / "data"), "--output", str(tmp_path / "student")]
  assert main([*words, "--pairs", "p0"]) == 2
  assert "no vectors of a teacher" in capsys.readouterr().err and not (tmp_path / "student").exists()
  assert main([*words, "--pairs", "taught"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert " texts: cosine with the teacher " in lines[-3] and " texts held out: cosine with" in lines[-2]
