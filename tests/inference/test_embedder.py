import jax
import numpy as np
import pytest
from tiny_model_dir import sentence, write_model_dir

import gtr_jax
from gtr_jax.errors import InputError

TEXTS = [sentence(i, 1 + i % 20) for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return gtr_jax.load(write_model_dir(tmp_path_factory.mktemp("model") / "run"))


def test_queries_and_documents(model):
  queries = model.encode_queries(TEXTS)
  assert (queries.shape, queries.dtype, model.dim) == ((30, 8), np.float32, 8)
  np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
  np.testing.assert_array_equal(queries, model.encode(TEXTS, "query"))
  np.testing.assert_allclose(model.encode_queries(TEXTS[3]), queries[3], atol=1e-6)
  titled = model.encode_documents([{"title": TEXTS[1], "text": TEXTS[2]}, {"text": TEXTS[4]}, TEXTS[5]])
  np.testing.assert_array_equal(titled, model.encode_documents([f"{TEXTS[1]} {TEXTS[2]}", TEXTS[4], TEXTS[5]]))
  np.testing.assert_allclose(model.encode_documents(TEXTS[4]), titled[1], atol=1e-6)
  assert model.encode([]).shape == (0, 8)
  short = model.encode_queries(TEXTS, max_length=3)
  assert np.abs(short - queries).max() > 1e-3
  np.testing.assert_array_equal(model.encode_queries(TEXTS, max_length=np.int64(3)), short)


def test_dtypes_and_similarity(model):
  queries, documents = model.encode_queries(TEXTS[:7]), model.encode_documents(TEXTS)
  scores = model.similarity(queries, documents)
  assert (scores.shape, scores.dtype) == ((7, 30), np.float32)
  np.testing.assert_allclose(scores, queries.astype(np.float64) @ documents.T.astype(np.float64), atol=1e-6)
  half = model.encode_documents(TEXTS, dtype="float16")
  assert half.dtype == np.float16
  np.testing.assert_allclose(model.similarity(queries, half), scores, atol=1e-3)
  small = model.encode_documents(TEXTS, dtype="int8")
  assert small.dtype == np.int8
  assert set(np.abs(small.astype(int)).max(1)) == {127}
  np.testing.assert_allclose(model.similarity(queries, small), scores, atol=0.02)
  np.testing.assert_allclose(model.similarity(model.encode_queries(TEXTS[:7], dtype="int8"), small), scores, atol=0.02)
  on_device = model.encode_queries(TEXTS[:7], as_numpy=False)
  assert isinstance(on_device, jax.Array)
  np.testing.assert_array_equal(on_device, queries)
  assert model.similarity(queries[0], documents).shape == (1, 30)


def test_normalization(tmp_path, model):
  raw = gtr_jax.load(write_model_dir(tmp_path / "run", normalize=False))
  vectors = raw.encode(TEXTS)
  assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > 0.1
  np.testing.assert_allclose(raw.encode(TEXTS, normalize=True), model.encode(TEXTS), atol=1e-6)
  with pytest.raises(InputError, match="vectors have length 1"):
    model.encode(TEXTS, normalize=False)


def test_wrong_arguments(model):
  for arguments, text in (({"side": "passage"}, "side is 'passage': give 'query' or 'document'"),
                          ({"dtype": "float64"}, "dtype is 'float64': give one of float32, float16, int8")):
    with pytest.raises(InputError, match=text):
      model.encode(TEXTS, **arguments)
  with pytest.raises(InputError, match="text 1 is of type NoneType: give strings"):
    model.encode(["a", None])
  for length in (0, -1, 2.5, True, 2**63, 1_000_001):
    with pytest.raises(InputError, match="max_length is"):
      model.encode(TEXTS, max_length=length)
  for texts in ({"a": 1}, {"a", "b"}, frozenset("a")):
    for encode in (model.encode, model.encode_queries):
      with pytest.raises(InputError, match=f"texts is of type {type(texts).__name__}: give a list of texts"):
        encode(texts)
  with pytest.raises(InputError, match="documents is of type set: give a list of texts"):
    model.encode_documents({"a"})
  with pytest.raises(InputError, match="documents is one mapping"):
    model.encode_documents({"text": "a"})
  for document in ({"title": "a"}, {"text": 3}):
    with pytest.raises(InputError, match="document 0: give its text"):
      model.encode_documents([document])
  for texts in (None, 3):
    for encode in (model.encode, model.encode_queries, model.encode_documents):
      with pytest.raises(InputError, match=f"is of type {type(texts).__name__}: give a text, or a list of texts"):
        encode(texts)
  with pytest.raises(InputError, match="normalize is 'yes'"):
    model.encode(TEXTS, normalize="yes")
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    gtr_jax.lod  # noqa: B018


@pytest.mark.parametrize("queries, documents, text", [
    (np.ones((2, 8)), np.ones((3, 5)), r"queries are \[2, 8\] and documents \[3, 5\]: give vectors of one model"),
    ("a", "b", "queries are .* give vectors"),
    (np.ones((2, 8)), np.ones((2, 3, 8)), r"documents are \[2, 3, 8\] of float64: give vectors"),
    ([[1.0], [1.0, 2.0]], np.ones((2, 8)), "queries are no array"),
])
def test_similarity_of_what_does_not_fit(model, queries, documents, text):
  with pytest.raises(InputError, match=text):
    model.similarity(queries, documents)


@pytest.mark.parametrize("arguments, text", [
    ({"model": None}, "model is None: give the path"), ({"model": 3}, "model is 3: give the path"),
    ({"model": ""}, "the path is empty; give the path of a file or folder"),
    ({"model": "https://h/x"}, "https://h/x: gtr_jax reads"),
    ({"mesh": 3}, "mesh is 3: give one of"), ({"vocabulary": 3}, "vocabulary is 3: give the path"),
    *(({"query_length": value}, f"query_length is {value!r}: give a whole number of at least 1") for value in (
        0, -3, "64", 2.5, True, 2**63)),
    ({"document_length": 0}, "document_length is 0"), ({"extra_ids": -1}, "extra_ids is -1: .* at least 0"),
    ({"query_length": 8, "vocabulary": "x"}, "a training run says .*; leave vocabulary, query_length out"),
])
def test_load_with_wrong_arguments(model, arguments, text):
  with pytest.raises(InputError, match=text) as e:
    gtr_jax.load(**{"model": model.model.path, **arguments})
  assert "\n" not in str(e.value)
