"""The kernel for attention against the reference, on the chip and the texts of a run: before anything is trained with
it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gtr_jax.errors import TrainingError
from gtr_jax.models import kernel_check
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import overlaid, trained
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import Batch
from gtr_jax.training.row_counts import same_row_counts


def check_kernel(model: DualEncoder, params: Any, batch: Batch, mesh: jax.sharding.Mesh) -> None:
  """Compares passages' embeddings, and the gradient of a sum of them, by the kernel and by the reference.

  Args:
    model: whose `config.attention` may be "kernel"; else nothing is done.
    params: on the mesh.
    batch: the first one of this process's groups; of microbatches the first is looked at.
    mesh: the devices.

  Raises:
    TrainingError: they differ by more than roundings.
  """
  if model.config.attention != "kernel":
    return
  (_, batch), = same_row_counts([batch], mesh, batch_of=lambda batch: batch)
  is_cached = batch.passages.tokens.ndim == 4
  texts = jax.tree.map(lambda x: x[:, 0] if is_cached else x, batch.passages)
  count = (batch.passage_hash[:, 0] if is_cached else batch.passage_hash).shape[1]
  weights = jax.random.normal(jax.random.key(0), (model.dim,))

  def outputs(attention, params, texts):
    of = dataclasses.replace(model, config=dataclasses.replace(model.config, attention=attention))

    def f(changing):
      embeddings = of.encode(overlaid(params, changing), texts, count, tower="passage")
      return jnp.sum(jnp.sin(embeddings @ weights)), embeddings

    gradient, embeddings = jax.grad(f, has_aux=True)(trained(model, params))
    return {"embeddings": embeddings, "gradient": gradient}

  @jax.jit
  def differences(params, texts):
    by_kernel, by_reference = (outputs(attention, params, texts) for attention in ("kernel", "reference"))
    return {name: kernel_check.difference(by_kernel[name], by_reference[name]) for name in by_kernel}

  with jax.set_mesh(mesh):
    found = jax.device_get(differences(params, partitioning.global_batch(mesh, texts)))
  device = mesh.devices.flat[0]
  for name, difference in found.items():
    if refusal := kernel_check.refusal(f"{name} of the first batch", difference,
                                       model.config.dtype_on(device.platform), device):
      raise TrainingError(f"T5Config.attention: {refusal}: --gin.t5.T5Config.attention=\"'reference'\"")
