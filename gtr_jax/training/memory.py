"""What memory a training step needs on each device, estimated from sizes alone, and what is there.

For a banner and for a first choice of the microbatch. `gtr-jax train --dry_run` asks the compiler, which is exact and
takes as long as compiling does.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import trained
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning

_ATTENTION_COPIES = 2  # of the weights of one layer's attention: they, and their gradient
# What is kept of an activation function for the backward pass, in widths of the MLP.
_KEPT = {"relu": 2, "gelu": 5, "linear": 1}
_LOGIT_COPIES = 3      # of the loss: the logits of a pair of sides, their exponentials, their gradient
_CGROUP = Path("/sys/fs/cgroup")


def estimated_bytes(model: DualEncoder, params: Any, opt_state: Any, mesh: jax.sharding.Mesh,
                    shapes: Mapping[str, tuple[int, int]], batch_size: int, passages: int, microbatches: int) -> int:
  """Bytes of a training step on the device that needs the most.

  Args:
    model: the encoder.
    params: arrays, or their shapes.
    opt_state: likewise.
    mesh: the devices; parameters count as divided over `fsdp` and `model`.
    shapes: of each side, "queries" and "passages", the rows that a device encodes at once, and their length; of none,
      for what the state alone takes.
    batch_size: pairs of the global batch.
    passages: positives and hard negatives of the global batch.
    microbatches: of a batch; 1 without gradient caching.
  """
  divided = mesh.shape["fsdp"] * mesh.shape["model"]
  of_params, of_trained = _bytes(params), _bytes(trained(model, params))
  gradients = of_trained * (2 if microbatches > 1 else 1)  # with gradient caching also their sum
  dtype = model.config.dtype_on(mesh.devices.flat[0].platform)
  if dtype == "bfloat16":
    gradients += of_params // 2  # the copy that is computed with
  state = (of_params + _bytes(opt_state) + gradients) // divided
  config = model.config
  if config.scan_layers:  # Its copy of the layers' parameters, stacked, and their gradients.
    state += (of_params + of_trained) // divided
  activations = max((_activations(config, dtype, rows, length) for rows, length in shapes.values()), default=0)
  if microbatches == 1:  # Both sides are kept until the loss is known.
    activations = sum(_activations(config, dtype, rows, length) for rows, length in shapes.values())
  shards = partitioning.num_groups(mesh)
  embeddings = 4 * model.dim * (batch_size + passages) * 4
  logits = _LOGIT_COPIES * 4 * batch_size * passages // shards
  return state + activations // mesh.shape["model"] + embeddings + logits


def _activations(config: T5Config, dtype: str, rows: int, length: int) -> int:
  """Bytes that the forward pass keeps for the backward pass, and the most that a layer needs besides."""
  size = 2 if dtype == "bfloat16" else 4
  joined = config.num_heads * config.head_dim
  mlp = sum(_KEPT.get(name, 2) for name in config.mlp_activations) + (len(config.mlp_activations) > 1)
  of_token = 4 * config.emb_dim + 4 * joined + mlp * config.mlp_dim
  attention = _ATTENTION_COPIES * 4 * rows * config.num_heads * length * length
  # XLA for CPUs keeps what it should compute again, unless the layers are a loop.
  if config.remat == "layer" and (config.scan_layers or jax.default_backend() != "cpu"):
    kept = config.num_layers * config.emb_dim + of_token
  else:
    kept = config.num_layers * of_token
  return size * rows * length * kept + attention


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_bytes() -> int | None:
  """Memory of a device that is free for a step: of a CPU the machine's, or what its container may have; None: unknown.

  The devices of a CPU share it.
  """
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)
  found = [free for free in (_free_of_machine(), _free_of_container()) if free is not None]
  return min(found, default=None)


def _free_of_machine() -> int | None:
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:  # macOS
    names = os.sysconf_names
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
      return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  of_name = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
  return 1024 * of_name["MemAvailable"] if "MemAvailable" in of_name else None


def _free_of_container() -> int | None:
  """Of the limit of this process's control group, versions 2 and 1."""
  for limit, used in (("memory.max", "memory.current"),
                      ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
    try:
      most, now = ((_CGROUP / name).read_text().strip() for name in (limit, used))
    except OSError:
      continue
    if most.isdigit() and now.isdigit() and int(most) < 2**60:
      return max(0, int(most) - int(now))
  return None
