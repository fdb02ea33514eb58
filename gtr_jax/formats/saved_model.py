"""A model as TensorFlow's SavedModel, by jax2tf. Needs TensorFlow, which nothing else that converts or encodes does."""

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.formats.stablehlo import SHAPES, encode_rows
from gtr_jax.io import tensorflow_log
from gtr_jax.io.atomic import write_bytes
from gtr_jax.text.tokenizer import Tokenizer


def write(folder: epath.Path, model: ModelOnDisk, tokenizer: Tokenizer, dtype: str = "float32") -> None:
  """Writes the SavedModel.

  It has a signature `encode_<texts>x<length>` for each of `stablehlo.SHAPES`: `tokens` int32 `[texts, length]`, each
  text closed with EOS and padded with 0, to `embeddings` float32 `[texts, dim]`. The vocabulary is among its assets.

  Args:
    folder: is there already, empty.
    model: one tower for both sides.
    tokenizer: of its vocabulary.
    dtype: of the weights.
  """
  tensorflow_log.quiet()
  try:
    import tensorflow as tf
    from jax.experimental import jax2tf
  except ImportError as e:
    raise InputError("a SavedModel needs TensorFlow: pip install tensorflow") from e
  module = tf.Module()
  # tf.Module tracks no names with slashes.
  module.weights = {name.replace("/", "."): tf.Variable(array.astype(dtype).read(), trainable=False)
                    for name, array in model.arrays.items()}
  encode = jax2tf.convert(
      lambda weights, tokens: encode_rows(model.encoder, {n.replace(".", "/"): x for n, x in weights.items()}, tokens),
      with_gradient=False)
  write_bytes(folder / "spiece.model", tokenizer.model)
  module.vocabulary = tf.saved_model.Asset(str(folder / "spiece.model"))
  signatures = {}
  for texts, length in SHAPES:
    signatures[f"encode_{texts}x{length}"] = tf.function(
        lambda tokens: {"embeddings": encode(module.weights, tokens)}, autograph=False,
        input_signature=[tf.TensorSpec([texts, length], tf.int32, name="tokens")])
  try:
    tf.saved_model.save(module, str(folder), signatures=signatures)
  except tf.errors.OpError as e:  # TensorFlow's for a full disk too
    raise OSError(None, " ".join(str(e).split())[:200], str(folder)) from e
  (folder / "spiece.model").unlink()  # It lies in assets/ now.
