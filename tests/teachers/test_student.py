"""A student that computes what the teacher says of the pieces, before it is trained."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model_dir import sentence, write_model_dir, write_vocabulary

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.teachers.static_vectors import of_pieces
from gtr_jax.teachers.student import Sizes, embedding_and_projection, write_student
from gtr_jax.teachers.teacher import Described, Teacher
from gtr_jax.text.packing import Texts

DIM = 24


def vectors_of(texts):
  """Of each text another one, with a mean that is not 0."""
  vectors = [np.random.default_rng(list(text.encode())).normal(size=DIM) + 1 for text in texts]
  return np.asarray(vectors, np.float32)


TEACHER = Teacher(Described("fake", "1"), vectors_of, vectors_of)


@pytest.fixture
def tokenizer(tmp_path):
  return write_vocabulary(tmp_path / "spiece.model")


def expected(tokenizer, texts, dim):
  """The weighted mean of the vectors of the pieces, from the definition, in float64."""
  pieces = tokenizer.pieces()
  has = [number for number, piece in enumerate(pieces)
         if piece.strip("▁") and not (piece.startswith("<") and piece.endswith(">"))]
  vectors = np.zeros((len(pieces), DIM))
  vectors[has] = vectors_of([pieces[number].replace("▁", " ").strip() for number in has])
  vectors[has] -= vectors[has].mean(0)
  weighted = vectors * np.log(2 + np.arange(len(pieces)))[:, None]
  components = np.linalg.svd(weighted, full_matrices=False)[2][:dim - 1]
  weighted = weighted @ components.T @ components
  longest = np.quantile(np.linalg.norm(weighted[has], axis=1), 0.98)
  out = []
  for text in texts:
    rows = [weighted[number] * min(1, longest / max(np.linalg.norm(weighted[number]), 1e-9))
            for number in tokenizer.encode([text], 64)[0]]
    mean = np.mean(rows, axis=0)
    out.append(mean / np.linalg.norm(mean))
  return np.stack(out)


@pytest.mark.parametrize("dim", [None, 128])
def test_it_gives_the_mean_of_what_the_teacher_says_of_the_pieces(tokenizer, tmp_path, dim):
  made, parameters = write_student(of_pieces(TEACHER, tokenizer.pieces()), tokenizer, tmp_path / "student",
                                   Sizes(2, dim), query_length=16, document_length=64)
  assert made.config.num_layers == 2 and made.config.emb_dim == (dim or 64)
  assert made.dim == DIM and parameters > 128 * 64
  model = load_model(tmp_path / "student")
  texts = [sentence(i, 7) for i in range(6)]
  found = embed(model, texts, "query", 64, progress=False)
  np.testing.assert_allclose(found, expected(tokenizer, texts, dim or 64), atol=1e-5)
  assert model.lengths["document"] == 64


def test_rows_have_the_length_of_those_that_are_drawn():
  vectors = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
  vectors[:3] = 0
  embedding, projection = embedding_and_projection(vectors, 128, 8)
  assert embedding.shape == (128, 8) and projection.shape == (8, 12)
  np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), math.sqrt(8), rtol=1e-5)
  assert not embedding[:3, :-1].any() and not embedding[50:, :-1].any() and not projection[-1].any()
  np.testing.assert_allclose(projection[:-1] @ projection[:-1].T, np.eye(7), atol=1e-6)


def test_training_goes_on_from_it(tokenizer, tmp_path):
  """All of the layers learns: what adds nothing yet has a gradient."""
  write_student(of_pieces(TEACHER, tokenizer.pieces()), tokenizer, tmp_path / "student", Sizes(1))
  model = load_model(tmp_path / "student")
  tokens = np.asarray([[[5, 7, 9, 1]]])

  def value(params):
    return jnp.sum(model.encoder.encode(params, Texts(tokens, np.ones_like(tokens)), 1) * jnp.arange(DIM)[None, None])

  gradient = jax.grad(value)(jax.device_get(model.params))
  assert np.abs(gradient["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]).max() > 0
  assert np.abs(gradient["encoder"]["layers_0"]["attention"]["out"]["kernel"]).max() > 0


def test_command(tokenizer, tmp_path, capsys):
  write_model_dir(tmp_path / "teacher")
  words = ["student", "--teacher", str(tmp_path / "teacher"), "--vocabulary", str(tokenizer.path), "--layers", "1",
           "--extra_ids", "0", "--output", str(tmp_path / "student")]
  assert main(words) == 0
  out = capsys.readouterr().out
  assert "student: 1 layers, 64 wide, " in out and "in the space of" in out
  assert main(words) == 2
  assert "student: exists; give a new folder" in capsys.readouterr().err


def test_a_width_that_heads_do_not_divide(tokenizer, tmp_path):
  with pytest.raises(InputError, match="--dim 100: give a multiple of 64"):
    write_student(np.ones((150, DIM)), tokenizer, tmp_path / "student", Sizes(1, 100))
  assert not (tmp_path / "student").exists()
