import inspect

import jax
import numpy as np
import pytest
from tiny_model_dir import sentence, write_model_dir

import gtr_jax
from gtr_jax.errors import InputError
from gtr_jax.formats.convert import convert
from gtr_jax.inference.load import load_model

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


def test_a_title_of_none_is_none(model):
  documents = [{"title": None, "text": TEXTS[4]}, {"title": "", "text": TEXTS[5]}]
  np.testing.assert_array_equal(model.encode_documents(documents), model.encode_documents(TEXTS[4:6]))


def test_names_of_sentence_transformers(model):
  queries, documents = model.encode_queries(TEXTS[:5]), model.encode_documents(TEXTS[:5])
  for found, expected in (
      (model.encode_query(TEXTS[:5], batch_size=2, show_progress_bar=False), queries),
      (model.encode_query(inputs=TEXTS[:5], convert_to_numpy=True), queries),
      (model.encode_document(sentences=TEXTS[:5], normalize_embeddings=False), documents),
      (model.encode(sentences=TEXTS[:5], normalize_embeddings=True), documents),
      (model.encode(TEXTS[:5], prompt_name="query"), queries),
      (model.encode(TEXTS[:5], "query", prompt_name="query", normalize=True, normalize_embeddings=True), queries),
      (model.encode_query([text[5:] for text in TEXTS[:5]], prompt=TEXTS[0][:5]),
       model.encode_query([TEXTS[0][:5] + text[5:] for text in TEXTS[:5]]))):
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
  for options in ({"convert_to_tensor": True}, {"convert_to_numpy": False}, {"convert_to_tensor": True,
                                                                             "convert_to_numpy": True}):
    assert isinstance(model.encode(TEXTS[:5], **options), jax.Array)
  assert isinstance(model.encode(TEXTS[:5], convert_to_tensor=False), np.ndarray)
  np.testing.assert_array_equal(model.similarity(embeddings1=queries, embeddings2=documents),
                                model.similarity(queries, documents))


def test_prompts_are_the_sides_own_or_the_given_one(tmp_path, model):
  convert(model.model.path, tmp_path / "exported", "sentence-transformers")
  (tmp_path / "exported/config_sentence_transformers.json").write_text(
      '{"prompts": {"query": "lion ", "document": "sea "}, "similarity_fn_name": "cosine"}')
  prompted = gtr_jax.load(tmp_path / "exported")
  for options, text in (({"side": "query"}, "lion zebra"), ({}, "sea zebra"), ({"prompt": ""}, "zebra"),
                        ({"side": "query", "prompt": "river "}, "river zebra")):
    np.testing.assert_allclose(prompted.encode("zebra", **options), model.encode(text), atol=1e-6, rtol=0)


def test_signatures_say_what_there_is(model):
  names = {"prompt", "batch_size", "max_length", "normalize", "normalize_embeddings", "dtype", "as_numpy",
           "convert_to_numpy", "convert_to_tensor", "progress", "show_progress_bar"}
  for method, others in (("encode", {"texts", "side", "prompt_name"}), ("encode_queries", {"queries"}),
                         ("encode_query", {"queries"}), ("encode_documents", {"documents"}),
                         ("encode_document", {"documents"})):
    assert inspect.signature(getattr(model, method)).parameters.keys() == names | others
  assert "mesh" in inspect.signature(gtr_jax.load).parameters


@pytest.mark.parametrize("options, text", [
    ({"side": "query", "prompt_name": "document"}, "side is 'query' and prompt_name is 'document': these are names of"),
    ({"progress": True, "show_progress_bar": False}, "progress is True and show_progress_bar is False"),
    ({"as_numpy": True, "convert_to_tensor": True}, "as_numpy is True and convert_to_tensor is False"),
    ({"normalize": True, "normalize_embeddings": False}, "normalize is True and normalize_embeddings is False"),
    ({"prompt_name": "passage"}, "prompt_name is 'passage': give 'query' or 'document'"),
    ({"sentences": TEXTS}, "encode: texts is given twice, also as sentences"),
    ({"prompt": 3}, "prompt is 3: give a text"), ({"batch_size": 0}, "batch_size is 0: give a whole number"),
])
def test_two_names_that_disagree(model, options, text):
  with pytest.raises(InputError, match=text):
    model.encode(TEXTS, **options)


def test_names_that_are_none_of_ours(model, tmp_path):
  for call, options, text in (
      (model.encode, {"device": "cuda"}, "encode has no argument device: .* gtr_jax.load.*mesh="),
      (model.encode, {"precision": "int8"}, "no argument precision: dtype= is"),
      (model.encode_query, {"truncate_dim": 4}, r"no argument truncate_dim: .*vectors\[:, :n\]"),
      (model.encode_document, {"bath_size": 4}, "no argument bath_size: do you mean batch_size"),
      (model.encode_query, {"xyz": 4}, "no argument xyz: there are queries, prompt, batch_size"),
      (gtr_jax.load, {"device": "cpu"}, "load has no argument device"),
      (model.save_pretrained, {"safe_serialization": True}, "it is always safetensors")):
    with pytest.raises(TypeError, match=text):
      call(TEXTS, **options)
  assert gtr_jax.load(model_name_or_path=model.model.path).dim == 8


def test_max_seq_length(tmp_path):
  model = gtr_jax.load(write_model_dir(tmp_path / "run"))
  assert model.max_seq_length == 32  # of documents; queries have 16
  expected, before = model.encode(TEXTS, max_length=3), model.model.weights_hash
  model.max_seq_length = np.int64(3)
  assert model.max_seq_length == 3
  for encode in (model.encode_query, model.encode_document):
    np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-6, rtol=0)
  assert model.model.weights_hash != before  # Other embeddings: no store of the former fits.
  with pytest.raises(InputError, match="max_seq_length is None: give a whole number"):
    model.max_seq_length = None
  model.save_pretrained(tmp_path / "saved")
  again = gtr_jax.load(tmp_path / "saved")
  assert again.max_seq_length == 3
  np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


def test_save_pretrained_writes_what_convert_does(model, tmp_path):
  model.save_pretrained(tmp_path / "saved")
  convert(model.model.path, tmp_path / "converted", "sentence-transformers")
  files = {path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*") if path.is_file()}
  for file in files:
    written, expected = ((tmp_path / name / file).read_bytes() for name in ("saved", "converted"))
    assert written == (expected.replace(b"converted", b"saved") if file.name == "README.md" else expected), file
  assert len(files) > 8 and load_model(tmp_path / "saved").encoder == model.model.encoder
  with pytest.raises(InputError, match="saved: exists; give a new folder"):
    model.save_pretrained(tmp_path / "saved")


def test_two_towers_have_no_form_in_sentence_transformers(tmp_path):
  model = gtr_jax.load(write_model_dir(tmp_path / "run", shared=False))
  assert "two towers" in repr(model)
  with pytest.raises(InputError, match="run: has a tower for queries and one for documents"):
    model.save_pretrained(tmp_path / "saved")
  assert not (tmp_path / "saved").exists()


def test_repr_says_what_it_is(model):
  parameters = 16 * model.model.encoder.config.vocab_size + 4 * 16 * 16 + 2 * 16 * 32 + 3 * 16 + 32 * 2 + 16 * 8
  assert repr(model) == (
      f"Embedder({model.model.path!r}: T5 1.0, 1 layer, 16 wide, {parameters:,} parameters; vectors of 8 numbers, "
      "of length 1; query: 16 tokens, prompt ''; document: 32 tokens, prompt ''; on 8 x cpu)")


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


def test_similarity_of_pairs(model):
  queries, documents = model.encode_queries(TEXTS[:7]), model.encode_documents(TEXTS[3:10])
  scores = model.similarity_pairwise(queries, documents)
  assert (scores.shape, scores.dtype) == ((7,), np.float32) and len(set(scores)) == 7
  np.testing.assert_allclose(scores, (queries.astype(np.float64) * documents).sum(-1), atol=1e-6)
  np.testing.assert_array_equal(model.similarity_pairwise(embeddings1=queries, embeddings2=documents), scores)
  small = model.encode_documents(TEXTS[3:10], dtype="int8")
  np.testing.assert_allclose(model.similarity_pairwise(queries, small), np.diag(model.similarity(queries, small)),
                             atol=1e-6)
  np.testing.assert_allclose(model.similarity_pairwise(queries[0], documents[0]), scores[:1], atol=1e-6)
  with pytest.raises(InputError, match=r"queries are \[7, \d+\] and documents \[6, .*compares all with all"):
    model.similarity_pairwise(queries, documents[1:])
  with pytest.raises(InputError, match="of the same width"):
    model.similarity_pairwise(queries, documents[:, 1:])
  assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == queries.shape[1]


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
  np.testing.assert_array_equal(model.encode_documents({"title": None, "text": "a"}), model.encode_documents("a"))
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
