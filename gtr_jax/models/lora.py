"""LoRA (Hu et al. 2021, arXiv 2106.09685): the encoder's kernels stay as they are, and what is trained is a product of
two thin matrices beside each of them.

    y = x W + (alpha / r) (x A) B, with W [in, out], A [in, r] drawn at random, and B [r, out] zero at first

A and B are leaves of the parameter tree beside the kernel, "encoder/layers_0/attention/query/lora_a". Neither W + AB
nor a gradient of W's size is ever made while a model is trained.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from gtr_jax.errors import InputError
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import Positive, Range

FACTORS = ("lora_a", "lora_b")
_KERNELS = re.compile(r"(.*/)?encoder/layers_\d+/(attention|mlp)/\w+/kernel")  # those of the encoder's linear layers
# As Microsoft's own code and PEFT draw A, uniform up to 1 / sqrt(in): so that learning rates are theirs.
_init_a = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Lora:
  """Which kernels get factors, and of what rank.

  Attributes:
    rank: r, columns of A and rows of B.
    alpha: the product is scaled by alpha / rank, so that another rank needs no other learning rate.
    kernels: regular expressions, each matched against whole paths of the encoder's linear layers; of separate towers
      they begin with "query/" or "passage/". The default is the paper's: query and value of attention. [".*"] is all.

  Raises:
    InputError: a value is not of its type or range.
  """

  rank: Positive = 8
  alpha: Annotated[float, Range(above=0)] = 16.0
  kernels: Sequence[str] = (".*/attention/(query|value)/kernel",)

  def __post_init__(self):
    check_fields(self)
    object.__setattr__(self, "kernels", tuple(self.kernels))
    if not self.kernels:
      raise InputError("Lora.kernels is empty: give regular expressions, such as '.*' for all linear layers")
    for kernel in self.kernels:
      try:
        re.compile(kernel)
      except re.error as e:
        raise InputError(f"Lora.kernels: {kernel!r} is no regular expression ({e}); correct it") from e

  @property
  def scale(self) -> float:
    """alpha / r."""
    return self.alpha / self.rank

  def with_factors(self, params: Any, key: jax.Array) -> dict[str, Any]:
    """Parameters with factors beside those kernels that are meant.

    Args:
      params: a model's, each boxed as `nn.LogicallyPartitioned`.
      key: A of a kernel depends on it and on the kernel's path alone.

    Raises:
      InputError: a regular expression matches no kernel, or the rank is above a kernel's sides.
    """
    found = traverse_util.flatten_dict(params, sep="/")
    linear = [name for name in sorted(found) if _KERNELS.fullmatch(name)]
    for kernel in self.kernels:
      if not any(re.fullmatch(kernel, name) for name in linear):
        raise InputError(f"Lora.kernels: {kernel!r} matches no whole path of a linear layer of the encoder; there is "
                         f"{linear[0]}, for instance")
    for name in linear:
      if any(re.fullmatch(kernel, name) for kernel in self.kernels):
        box = found[name]
        (rows, columns), (of_rows, of_columns) = box.value.shape, box.names
        if self.rank > min(rows, columns):
          raise InputError(f"Lora.rank is {self.rank}, and {name} is {[rows, columns]}: give at most "
                           f"{min(rows, columns)}")
        above = name.removesuffix("kernel")
        a = _init_a(jax.random.fold_in(key, zlib.crc32(name.encode())), (rows, self.rank), box.value.dtype)
        found[f"{above}lora_a"] = nn.LogicallyPartitioned(a, (of_rows, "lora_rank"))
        found[f"{above}lora_b"] = nn.LogicallyPartitioned(jnp.zeros((self.rank, columns), box.value.dtype),
                                                          ("lora_rank", of_columns))
    return traverse_util.unflatten_dict(found, sep="/")

  def scaled(self, params: Any) -> Any:
    """Parameters in which each B holds the factor alpha / r, as the encoder's layers take them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: self.scale * leaf if path[-1].key == "lora_b" else leaf, params)


def is_factor(name: str) -> bool:
  """Of a parameter, by its path."""
  return name.rpartition("/")[2] in FACTORS
