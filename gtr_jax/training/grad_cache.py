"""Gradient caching: a contrastive batch as large as the loss allows, in the memory of one microbatch.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983): the loss
needs the embeddings of the whole batch, but its gradient with respect to each embedding is all that a text's encoder
has to know. So: encode every microbatch without keeping activations; compute the loss of the global batch and its
gradient with respect to the embeddings; encode every microbatch again and pull that gradient back. The negatives are
those of the whole batch, and the gradient is the one-shot gradient. It costs one more forward pass.

Letters: G groups, m microbatches, T texts of a microbatch in a group, D embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gtr_jax.losses.own_params import of_loss
from gtr_jax.losses.rounds import after
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import overlaid, trained
from gtr_jax.parallel import shards
from gtr_jax.parallel.partitioning import BATCH_AXES, over_shards
from gtr_jax.text.batch import Batch
from gtr_jax.text.packing import Texts
from gtr_jax.training.encode_pair import encode_pair
from gtr_jax.training.state import Loss

_NO_TEXTS = Texts(None, None)
_GROUPED, _MICROBATCHED, _WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec(None, BATCH_AXES), PartitionSpec()


def encode_microbatches(model: DualEncoder, params: Any, batch: Batch,
                        dropout_key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """Embeddings of both sides, `[m, G, T, D]`, one microbatch after the other; not for differentiation."""
  def encode(params, batch, dropout_key):
    def step(_, numbered):
      number, microbatch = numbered
      return None, encode_pair(model, params, microbatch, _microbatch_key(dropout_key, number))

    return jax.lax.scan(step, None, _numbered(batch))[1]

  encode = over_shards(encode, (model.specs(), _GROUPED, _WHOLE), _MICROBATCHED)
  return encode(_of_model(model, params), batch, dropout_key)


def gradient(model: DualEncoder, loss: Loss, params: Any, batch: Batch,
             dropout_key: jax.Array | None) -> tuple[Any, dict[str, jax.Array]]:
  """Gradient and metrics of the loss of the whole batch.

  Args:
    model: a `DualEncoder`.
    loss: an `InBatchLoss` or `RingLoss`.
    params: of model and loss.
    batch: with a microbatch axis after the groups.
    dropout_key: a microbatch's masks depend on it and on the microbatch's number; the second pass draws them again.

  Returns:
    A tree like `params`, of what is trained of them, and the loss's metrics.
  """
  embeddings = jax.lax.stop_gradient(encode_microbatches(model, params, batch, dropout_key))

  def loss_of_embeddings(embeddings, own):
    (queries, passages), merged_batch = merged(embeddings, batch)
    with jax.named_scope("loss"):
      return loss(queries, passages, merged_batch, params=own, train=True)

  (to_embeddings, to_loss), metrics = jax.grad(loss_of_embeddings, (0, 1), has_aux=True)(embeddings, of_loss(params))
  to_embeddings = after(jax.tree.map(jnp.sum, (metrics, to_loss)), to_embeddings)

  specs = trained(model, model.specs())

  def pulled_back(params, batch, to_embeddings, dropout_key):
    own = shards.own_gradients(params, model.specs())
    changing = trained(model, own)

    def step(so_far, numbered):
      (number, microbatch), cotangents = numbered
      _, pull_back = jax.vjp(lambda changing: encode_pair(
          model, overlaid(own, changing), microbatch, _microbatch_key(dropout_key, number)), changing)
      return jax.tree.map(jnp.add, so_far, pull_back(cotangents)[0]), None

    of_device, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, changing), (_numbered(batch), to_embeddings))
    return shards.total(of_device, specs)

  pulled_back = over_shards(pulled_back, (model.specs(), _GROUPED, _MICROBATCHED, _WHOLE), specs)
  return {**pulled_back(_of_model(model, params), batch, to_embeddings, dropout_key), **to_loss}, metrics


def merged(embeddings: tuple[jax.Array, jax.Array], batch: Batch) -> tuple[tuple[jax.Array, jax.Array], Batch]:
  """What the loss reads: embeddings and batch without the microbatch axis, each group's own texts, then its negatives.

  Args:
    embeddings: of both sides, `[m, G, T, D]`.
    batch: with a microbatch axis.

  Returns:
    Embeddings `[G, m * T, D]`, and the batch without its texts.
  """
  pairs = batch.valid.shape[2]
  offset = pairs * jnp.arange(batch.valid.shape[1], dtype=batch.negative_owner.dtype)[None, :, None]
  flat = {name: _flatten(getattr(batch, name)) for name in (
      "valid", "negative_valid", "negative_query_valid", "known_hash")}
  of_texts = {name: jax.tree.map(lambda x: _own_first(x, pairs), getattr(batch, name)) for name in (
      "query_hash", "passage_hash", "text_hash", "teacher")}
  batch = batch._replace(queries=_NO_TEXTS, passages=_NO_TEXTS, negative_owner=_flatten(batch.negative_owner + offset),
                         **flat, **of_texts)
  return tuple(_own_first(jnp.moveaxis(x, 0, 1), pairs) for x in embeddings), batch


def _own_first(x_GxmxTx, pairs):
  return jnp.concatenate([_flatten(x_GxmxTx[:, :, :pairs]), _flatten(x_GxmxTx[:, :, pairs:])], axis=1)


def _flatten(x_GxmxTx):
  return x_GxmxTx.reshape(x_GxmxTx.shape[0], -1, *x_GxmxTx.shape[3:])


def _numbered(batch):
  """Microbatches with their numbers, the microbatch axis first."""
  return jnp.arange(batch.valid.shape[1]), jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch)


def _of_model(model, params):
  """Without the loss's own."""
  return {name: params[name] for name in model.specs()}


def _microbatch_key(dropout_key, number):
  return None if dropout_key is None else jax.random.fold_in(dropout_key, number)
