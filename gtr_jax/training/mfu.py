"""Model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311): of real tokens, by the run's chip and dtype."""

import math

import jax
from flax import traverse_util

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.lora import FACTORS
from gtr_jax.models.parameters import abstract_parameters
from gtr_jax.parallel import chips


def most_tokens_per_second(model: DualEncoder, mesh: jax.sharding.Mesh) -> float | None:
  """Tokens a second at which the devices would do nothing but the products of the encoder's kernels, at their peak.

  Six FLOPs for each token and parameter of a kernel, forward and backward, or four where it is not trained. Those of
  attention are left out, which depend on the texts' lengths (2 % of base's at 100 tokens), and so is what gradient
  caching and remat compute again: they are not the model's. None where the chip's figures are not known, as of CPUs.
  """
  device = mesh.devices.flat[0]
  if (chip := chips.of_device(device)) is None:
    return None
  params = abstract_parameters(model, mesh)
  tower = params if model.shared else params["query"]  # A token goes through one of them.
  each = {"kernel": 6 if model.lora is None else 4} | dict.fromkeys(FACTORS, 6)
  flops = sum(each.get(path[-1], 0) * math.prod(leaf.shape)
              for path, leaf in traverse_util.flatten_dict(tower["encoder"]).items())
  return mesh.size * chip.flops_in(model.config.dtype_on(device.platform)) / flops
