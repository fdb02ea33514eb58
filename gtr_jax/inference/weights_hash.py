"""A hash of all that decides an embedding."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gtr_jax.formats.model_dir import deciding_fields
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.text.tokenizer import Tokenizer


def weights_hash(encoder: DualEncoder, params: Any, tokenizer: Tokenizer, lengths: Mapping[str, int],
                 prompts: Mapping[str, str]) -> str:
  """Hexadecimal sha256 of all that decides an embedding, the dtype of the activations too. The same on every mesh; all
  processes must call it."""
  fields = deciding_fields(encoder)
  fields["config"]["dtype"] = encoder.config.dtype
  digest = hashlib.sha256()
  digest.update(json.dumps([fields, tokenizer.sha256, tokenizer.extra_ids, dict(lengths),
                            dict(prompts)], sort_keys=True).encode())
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  for name, leaf in sorted(leaves.items()):
    value = np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if jax.process_count() > 1 else leaf)
    digest.update(f"{name} {value.dtype} {value.shape}".encode())
    digest.update(np.ascontiguousarray(value).view(np.uint8).data)
  return digest.hexdigest()
