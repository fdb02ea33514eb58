import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from tiny_model_dir import sentence, write_model_dir
from tiny_training import tiny_model

import gtr_jax
from gtr_jax.formats.convert import convert
from gtr_jax.formats.stablehlo import encode_rows


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


@pytest.mark.parametrize("platform, one_after_the_other", [("cpu", True), ("cuda", False), ("tpu", False)])
def test_attention_is_that_of_the_platform_that_a_program_is_for(platform, one_after_the_other):
  """Only a CPU, whose caches are small, takes the rows in parts; who exports for others may be one."""
  encoder = tiny_model()
  params = traverse_util.flatten_dict(jax.eval_shape(lambda key: nn.unbox(encoder.init(key)), jax.random.key(0)),
                                      sep="/")
  tokens = jax.ShapeDtypeStruct((32, 512), jax.numpy.int32)
  program = jax.export.export(jax.jit(lambda *inputs: encode_rows(encoder, *inputs)), platforms=[platform])
  assert ("stablehlo.while" in program(params, tokens).mlir_module()) == one_after_the_other


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
