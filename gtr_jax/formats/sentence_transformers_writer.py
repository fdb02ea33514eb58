"""Writes a folder that `SentenceTransformer(folder)` loads, without torch and array by array.

The files are those of sentence-transformers: the T5 encoder in transformers' format with its tokenizer, `1_Pooling`,
`2_Dense`, `3_Normalize`, and a model card.
"""

from collections.abc import Mapping

import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats import huggingface, safetensors, vocabulary
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.formats.names import Name, encoder_names, projection_name
from gtr_jax.formats.sentence_transformers import VOCABULARY_FILE
from gtr_jax.io.atomic import write_bytes, write_json, write_text
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # of one weight file at most
_MODULES = "sentence_transformers.models"
_POOLINGS = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}


def write(folder: epath.Path, encoder: DualEncoder, arrays: Mapping[str, Array], tokenizer: Tokenizer,
          lengths: Mapping[str, int], prompts: Mapping[str, str], card: str, dtype: str = "float32",
          shard_bytes: int = SHARD_BYTES) -> None:
  """Writes the folder.

  Args:
    folder: to make.
    encoder: the computation.
    arrays: by native name.
    tokenizer: of its vocabulary.
    lengths: most tokens of a "query" and of a "document"; the folder has one length for both, the longer.
    prompts: put before every "query" and every "document".
    card: of the model, README.md.
    dtype: "float32" or "bfloat16", of the encoder's weights; the projection stays float32.
    shard_bytes: of one weight file at most.

  Raises:
    InputError: the model has no such form: two towers, or a vocabulary that tokenizer.json would not read alike.
  """
  if not encoder.shared:
    raise InputError("the model has a tower for queries and one for documents; a sentence-transformers folder of one "
                     "T5 holds one tower: train with shared = True, or keep this one in gtr_jax's form")
  vocabulary.check_exportable(tokenizer.model, tokenizer.path)
  config, length = encoder.config, max(lengths.values())
  folder.mkdir(parents=True, exist_ok=True)
  modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
  _write_weights(folder, {name.huggingface: _of_huggingface(name, arrays[name.native], dtype)
                          for name in encoder_names(config)}, shard_bytes)
  write_json(folder / "config.json", huggingface.config_fields(config, dtype))
  write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
  write_json(folder / "config_sentence_transformers.json",
              {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine" if
               encoder.normalize else "dot"})
  _write_tokenizer(folder, tokenizer.model, tokenizer.extra_ids, length)
  place = folder / "1_Pooling"
  place.mkdir()
  write_json(place / "config.json", {"word_embedding_dimension": config.emb_dim, "include_prompt": True,
                                      **{flag: mode == encoder.pooling for mode, flag in _POOLINGS.items()}})
  if encoder.projection_dim is not None:
    modules.append((f"{len(modules)}_Dense", "Dense"))
    place = folder / modules[-1][0]
    place.mkdir()
    name = projection_name(encoder)
    safetensors.write(place / "model.safetensors",
                      {name.huggingface: _of_huggingface(name, arrays[name.native], "float32")})
    write_json(place / "config.json", {"in_features": config.emb_dim, "out_features": encoder.dim, "bias": False,
                                        "activation_function": "torch.nn.modules.linear.Identity"})
  if encoder.normalize:
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    (folder / modules[-1][0]).mkdir()
  write_text(folder / "README.md", card)
  # Last, as without it nothing takes the folder for a model.
  write_json(folder / "modules.json", [{"idx": i, "name": str(i), "path": path, "type": f"{_MODULES}.{kind}"}
                                        for i, (path, kind) in enumerate(modules)])


def _of_huggingface(name: Name, array: Array, dtype: str) -> Array:
  return (array.transposed() if name.transposed else array).astype(dtype)


def _write_weights(folder: epath.Path, arrays: Mapping[str, Array], shard_bytes: int) -> None:
  shards: list[dict[str, Array]] = [{}]
  size = total = 0
  for name, array in arrays.items():
    nbytes = int(np.prod(array.shape)) * array.dtype.itemsize
    if shards[-1] and size + nbytes > shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = array
    size, total = size + nbytes, total + nbytes
  if len(shards) == 1:
    safetensors.write(folder / "model.safetensors", shards[0])
    return
  files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for file, shard in zip(files, shards, strict=True):
    safetensors.write(folder / file, shard)
  write_json(folder / "model.safetensors.index.json", {
      "metadata": {"total_size": total},
      "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard}})


def _write_tokenizer(folder: epath.Path, model: bytes, extra_ids: int, length: int) -> None:
  """spiece.model for the slow tokenizer, tokenizer.json for the fast one, and what both are configured by."""
  write_bytes(folder / VOCABULARY_FILE, model)
  write_json(folder / "tokenizer.json", vocabulary.to_tokenizer_json(model, extra_ids))
  special = {**vocabulary.special_tokens(model), "additional_special_tokens": sorted(vocabulary.sentinels(extra_ids))}
  write_json(folder / "special_tokens_map.json", special)
  write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": length,
                                                 "extra_ids": extra_ids, **special})
