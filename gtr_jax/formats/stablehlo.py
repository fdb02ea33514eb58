"""A model as StableHLO: programs that any runtime of it runs, without gtr_jax or Python code of the model.

A folder of `encode_<texts>x<length>.stablehlo` (of `jax.export`, for CPU, CUDA and TPU), one for each shape; of the
weights, `weights.safetensors`, which the programs take as arguments; and `programs.json`, which says how to call them.
Tokenisation stays outside: `spiece.model` is there for it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from etils import epath
from flax import traverse_util

from gtr_jax.formats import safetensors
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.io.atomic import write_bytes, write_json
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.packing import Texts
from gtr_jax.text.tokenizer import Tokenizer

PLATFORMS = ("cpu", "cuda", "tpu")
SHAPES = ((1, 64), (32, 64), (1, 512), (32, 512))  # (texts, tokens of each)


def encode_rows(encoder: DualEncoder, params: Mapping[str, jax.Array], tokens: jax.Array) -> jax.Array:
  """Embeddings `[texts, dim]` of token ids `[texts, length]`, each a text padded with 0; parameters by native name.

  Activations are float32, the same wherever the program will run.
  """
  encoder = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, dtype="float32"))
  rows = jnp.arange(1, len(tokens) + 1, dtype=jnp.int32)[:, None]
  texts = Texts(tokens[None], jnp.where(tokens > 0, rows, 0)[None])
  return encoder.encode(traverse_util.unflatten_dict(dict(params), sep="/"), texts, len(tokens))[0]


def write(folder: epath.Path, model: ModelOnDisk, tokenizer: Tokenizer, dtype: str = "float32",
          shapes: Sequence[tuple[int, int]] = SHAPES) -> None:
  """Writes the folder.

  Args:
    folder: is there already, empty.
    model: one tower for both sides.
    tokenizer: of its vocabulary.
    dtype: of the weights.
    shapes: (texts, tokens of each) of the programs; shorter texts are padded with 0, longer ones are cut.
  """
  names = sorted(model.arrays)
  safetensors.write(folder / "weights.safetensors", {name: model.arrays[name].astype(dtype) for name in names})

  def encode(weights, tokens):
    return encode_rows(model.encoder, dict(zip(names, weights, strict=True)), tokens)

  weights = [jax.ShapeDtypeStruct(model.arrays[name].shape, dtype) for name in names]
  files = {}
  for texts, length in shapes:
    tokens = jax.ShapeDtypeStruct((texts, length), jnp.int32)
    exported = jax.export.export(jax.jit(encode), platforms=PLATFORMS)(weights, tokens)
    file = f"encode_{texts}x{length}.stablehlo"
    write_bytes(folder / file, bytes(exported.serialize()))
    files[file] = {"texts": texts, "length": length}
  write_bytes(folder / "spiece.model", tokenizer.model)
  description = {
      "programs": files, "weights": names, "dim": model.encoder.dim, "platforms": PLATFORMS,
      "prompts": dict(model.prompts),
      "vocabulary": {"file": "spiece.model", "extra_ids": tokenizer.extra_ids, "eos_id": tokenizer.eos_id, "pad_id": 0},
      "call": "jax.export.deserialize(program).call([weights[name] for name in names], tokens): int32 [texts, length], "
              "each text closed with EOS and padded with 0 -> float32 [texts, dim]"}
  write_json(folder / "programs.json", description, indent=2)
