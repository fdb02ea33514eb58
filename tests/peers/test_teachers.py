"""Teachers that sentence-transformers computes: vectors and scores as its own `encode` and `predict` give them."""

import numpy as np
import pytest
from prepared_files import prepare_rows
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_bert import write_bert, write_bi_encoder
from tiny_model_dir import sentence

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.vectors import unpacked
from gtr_jax.teachers.models import bi_encoder

pytestmark = pytest.mark.peers

ROWS = [{"query": sentence(i + 1, 2 + i % 5) + f" {i}", "positive": sentence(i, 3 + i % 90), "negatives": [
    sentence(i + 2, 5), sentence(i + 3, 70)][:i % 3]} for i in range(60)]
PROMPTS = {"query": "lion: ", "document": "the tiger "}


@pytest.fixture
def name(tmp_path):
  """Of prepared data."""
  data_root.set_data_dir(str(tmp_path / "data"))
  prepare_rows(tmp_path, ROWS)
  yield "p0"
  data_root.set_data_dir(None)


def taught(tmp_path, name, *flags):
  """All examples, once teachers have said what they say of them."""
  assert main(["teach", "--pairs", name, "--name", "taught", *map(str, flags)]) == 0
  found = []
  for path in sorted((tmp_path / "data/taught").glob("*.tfrecord")):
    with path.open("rb") as f:
      found += [records.example_in(record) for record in records.read_records(f, str(path))]
  assert len(found) == len(ROWS)
  return found


@pytest.mark.parametrize("flags", [(), ("--batch_size", 7), ("--max_length", 16)])
@pytest.mark.parametrize("prompts", [None, PROMPTS])
def test_vectors_are_those_of_encode(tmp_path, name, capsys, prompts, flags):
  path = write_bi_encoder(tmp_path / "teacher", prompts)
  examples = taught(tmp_path, name, "--teacher", path, *flags)
  theirs = SentenceTransformer(str(path))
  assert theirs.max_seq_length == 64
  if "--max_length" in flags:
    theirs.max_seq_length = 16
  query_prompt, passage_prompt = (prompts or {"query": "", "document": ""}).values()
  assert f"query prompt {query_prompt!r}, passage prompt {passage_prompt!r}, length" in capsys.readouterr().out
  for example in examples:
    expected = [*theirs.encode_query([example.query]), *theirs.encode_document([example.passage, *example.negatives])]
    np.testing.assert_allclose([unpacked(vector) for vector in example.vectors], expected, atol=1e-5)
  assert np.std([unpacked(vector) for example in examples for vector in example.vectors], axis=0).min() > 0.01


def test_bfloat16_is_another_teacher(tmp_path, name, capsys):
  path = write_bi_encoder(tmp_path / "teacher")
  examples = taught(tmp_path, name, "--teacher", path, "--dtype", "bfloat16")
  expected = SentenceTransformer(str(path)).encode([example.query for example in examples])
  found = np.asarray([unpacked(example.vectors[0]) for example in examples])
  assert 1e-5 < np.abs(found - expected).max() < 0.1
  assert manifests.read("taught")["filters"]["teacher_dtype"] == "bfloat16"
  assert main(["teach", "--pairs", name, "--name", "taught", "--teacher", str(path)]) == 2
  assert 'teacher_dtype was "bfloat16", and is "float32"' in capsys.readouterr().err


@pytest.mark.parametrize("flags", [(), ("--batch_size", 7)])
def test_scores_are_those_of_predict(tmp_path, name, flags):
  path = write_bert(tmp_path / "cross")
  theirs, found = CrossEncoder(str(path)), []
  for example in taught(tmp_path, name, "--cross_encoder", path, *flags):
    expected = theirs.predict([(example.query, text) for text in (example.passage, *example.negatives)])
    np.testing.assert_allclose(example.scores, expected, atol=1e-5)
    found += example.scores
  assert np.std(found) > 0.1


def test_both_at_once(tmp_path, name):
  examples = taught(tmp_path, name, "--teacher", write_bi_encoder(tmp_path / "teacher"), "--cross_encoder",
                    write_bert(tmp_path / "cross"))
  for example in examples:
    assert len(example.vectors) == 2 + len(example.negatives) and len(example.scores) == 1 + len(example.negatives)


def test_a_cross_encoder_as_bi_encoder_and_the_other_way(tmp_path, name, capsys):
  path = write_bi_encoder(tmp_path / "teacher")
  assert main(["teach", "--pairs", name, "--name", "taught", "--cross_encoder", str(path)]) == 2
  assert "without the head that scores a pair; a bi-encoder is for --teacher" in capsys.readouterr().err


def test_more_tokens_than_positions(tmp_path):
  with pytest.raises(InputError, match="has positions for 64 tokens; give at most that"):
    bi_encoder(str(write_bi_encoder(tmp_path / "teacher")), max_length=65)
