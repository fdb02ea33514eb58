"""What is refused between two programs: vocabularies, prompts and places that are not what they seem."""

import io
import json
import resource

import pytest
import sentencepiece
from etils import epath
from test_convert import GATED, change, written
from tiny_model_dir import sentence, tiny_encoder, write_model_dir, write_vocabulary

from gtr_jax.errors import InputError
from gtr_jax.formats import any_form
from gtr_jax.formats.convert import convert
from gtr_jax.inference.load import load_model
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer

# Fields of config_sentence_transformers.json, and the prompts of a query and of a document.
PROMPTS = [
    ({"prompts": {"query": "q: ", "passage": "p: "}}, ("q: ", "")), ({"prompts": {"corpus": "c: "}}, ("", "")),
    ({"prompts": {"query": "q: ", "document": "d: ", "passage": "p: "}}, ("q: ", "d: ")),
    ({"prompts": {"search": "s: "}, "default_prompt_name": "search"}, ("", "")),
    ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, ("q: ", "")),
    ({"prompts": {"query": None, "document": "d: "}, "default_prompt_name": "query"}, ("", "d: ")),
    ({"prompts": {}, "default_prompt_name": "document"}, ("", ""))]


@pytest.fixture
def folder(tmp_path):
  vocabulary = write_vocabulary(epath.Path(tmp_path) / "vocabulary.model")
  return written(tmp_path / "exported", DualEncoder(GATED, projection_dim=10), vocabulary)


def test_vocabularies_that_disagree(folder):
  model = json.loads((folder / "tokenizer.json").read_text())["model"]
  vocab = model["vocab"]
  for spoilt, text in (([*vocab[:-1], ["x", vocab[-1][1]]], f"piece {len(vocab) - 1} is"), (vocab[:-1], "and nothing"),
                       ([*vocab[:9], [vocab[9][0], -99.5], *vocab[10:]], r"piece 9 is .* \(-99.5\)"),
                       ([*vocab[:9], vocab[10], vocab[9], *vocab[11:]], "piece 9 is")):
    change(folder / "tokenizer.json", model={**model, "vocab": spoilt})
    with pytest.raises(InputError, match=f"spiece.model and .*tokenizer.json: do not agree: .*{text}"):
      load_model(folder)
  change(folder / "tokenizer.json", model={"vocab": 3})
  with pytest.raises(InputError, match="tokenizer.json: not T5's tokenizer .*spiece.model is beside it"):
    load_model(folder)


@pytest.mark.parametrize("normalizer", [None, {"type": "Precompiled", "precompiled_charsmap": ""}])
def test_a_fast_tokenizer_that_does_not_normalise(folder, normalizer):
  change(folder / "tokenizer.json", normalizer=normalizer)
  load_model(folder)
  (folder / "spiece.model").unlink()
  with pytest.raises(InputError, match="tokenizer.json: .*normalizer.*; give its SentencePiece model as vocabulary"):
    load_model(folder)


@pytest.mark.parametrize("options, text", [
    ({"model_type": "bpe"}, "model_type bpe"), ({"add_dummy_prefix": False}, "add_dummy_prefix false"),
    ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces false"),
    ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix true"),
    ({"split_by_whitespace": False}, "split_by_whitespace false"),
    ({"user_defined_symbols": ["xyz"]}, "user_defined pieces")])
def test_vocabularies_that_a_fast_tokenizer_cannot_be(tmp_path, options, text):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(sentence(i, 8) for i in range(200)), model_writer=model, pad_id=0, eos_id=1, unk_id=2,
      bos_id=-1, minloglevel=2, hard_vocab_limit=False, **{"vocab_size": 130, "model_type": "unigram", **options})
  (tmp_path / "other.model").write_bytes(model.getvalue())
  vocabulary = Tokenizer(tmp_path / "other.model")  # which is good to read with
  with pytest.raises(InputError, match=f"other.model: was trained with {text}, unlike T5's.*in another form"):
    written(tmp_path / "model", tiny_encoder(vocabulary), vocabulary)
  assert not (tmp_path / "model").exists()


def test_prompts_are_those_of_encode_query_and_encode_document(folder):
  """As sentence-transformers 6.2 reads them: tests/peers compares both."""
  for fields, expected in PROMPTS:
    change(folder / "config_sentence_transformers.json", **fields)
    assert any_form.open_foreign(folder).prompts == dict(zip(("query", "document"), expected, strict=True))


@pytest.mark.parametrize("name", ["file/model", "file/a/model", "link", "/proc/model"])
def test_places_that_cannot_be_written(tmp_path, folder, name):
  (tmp_path / "file").write_text("")
  (tmp_path / "link").symlink_to(tmp_path / "nothing")
  before = sorted(tmp_path.rglob("*"))
  place = tmp_path / name  # of /proc/model, that itself
  with pytest.raises(InputError) as e:
    convert(folder, place, "sentence-transformers")
  assert str(e.value).startswith(f"{place}: {'exists, a link to nothing' if name == 'link' else 'cannot be written ('}")
  assert ".tmp" not in str(e.value)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form, name", [("sentence-transformers", "out"), ("t5x", "checkpoint_0"),
                                        ("stablehlo", "out")])
def test_a_full_disk_leaves_nothing(tmp_path, folder, form, name):
  run = write_model_dir(tmp_path / "run")
  before = sorted(tmp_path.rglob("*"))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
  try:
    with pytest.raises(InputError) as e:
      convert(run, tmp_path / name, form)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert str(e.value).startswith(f"{tmp_path / name}: cannot be written (") and "File too large" in str(e.value)
  assert ".tmp" not in str(e.value) and "\n" not in str(e.value)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_vocabulary_that_spells_unknown_characters_in_bytes(tmp_path):
  """As mT5's does."""
  vocabulary = write_vocabulary(epath.Path(tmp_path) / "bytes.model", vocab_size=400, byte_fallback=True)
  folder = written(tmp_path / "model", tiny_encoder(vocabulary), vocabulary)
  assert json.loads((folder / "tokenizer.json").read_text())["model"]["byte_fallback"] is True
  (folder / "spiece.model").unlink()
  texts = ["lion \u96ea river", "lion"]
  read = load_model(folder).tokenizer.encode(texts, 40)
  assert [list(ids) for ids in read] == [list(ids) for ids in vocabulary.encode(texts, 40)]
  assert len(read[0]) >= 3 + len("\u96ea".encode())
