import json

import jax
import numpy as np
import safetensors.numpy
from tiny_model_dir import sentence, write_model_dir

import gtr_jax
from gtr_jax.formats.convert import convert


def test_programs_compute_what_the_model_does(tmp_path):
  """Called as programs.json says, without any of gtr_jax but the tokenizer."""
  run = write_model_dir(tmp_path / "run")
  convert(run, tmp_path / "hlo", "stablehlo")
  fields = json.loads((tmp_path / "hlo" / "programs.json").read_text())
  weights = safetensors.numpy.load_file(tmp_path / "hlo" / "weights.safetensors")
  model = gtr_jax.load(run)
  texts = [sentence(i, i) for i in range(32)]
  assert len(fields["programs"]) == 4
  for file in ("encode_1x64.stablehlo", "encode_32x64.stablehlo"):
    program = jax.export.deserialize((tmp_path / "hlo" / file).read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    count = fields["programs"][file]["texts"]
    tokens = np.zeros((count, 64), np.int32)
    for row, ids in zip(tokens, model.model.tokenizer.encode(texts[:count], 64), strict=True):
      row[:len(ids)] = ids
    vectors = program.call([weights[name] for name in fields["weights"]], tokens)
    np.testing.assert_allclose(vectors, model.encode(texts[:count], max_length=64), atol=1e-5, rtol=0)


def test_saved_model(tmp_path):
  import tensorflow as tf
  run = write_model_dir(tmp_path / "run")
  convert(run, tmp_path / "saved", "saved-model")
  model, texts = gtr_jax.load(run), [sentence(i, i) for i in range(32)]
  tokens = np.zeros((32, 64), np.int32)
  for row, ids in zip(tokens, model.model.tokenizer.encode(texts, 64), strict=True):
    row[:len(ids)] = ids
  loaded = tf.saved_model.load(tmp_path / "saved")
  found = loaded.signatures["encode_32x64"](tokens=tf.constant(tokens))["embeddings"]
  np.testing.assert_allclose(found, model.encode(texts, max_length=64), atol=1e-5, rtol=0)
  assert (tmp_path / "saved" / "assets" / "spiece.model").read_bytes() == model.model.tokenizer.model
