"""One training step, and one validation step: pure functions of a state and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gtr_jax.errors import InputError
from gtr_jax.losses.own_params import of_loss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import overlaid, trained
from gtr_jax.text.batch import Batch
from gtr_jax.training import grad_cache
from gtr_jax.training.encode_pair import encode_pair
from gtr_jax.training.optimizers import Optimizer
from gtr_jax.training.state import Loss, TrainState

FINITE = ("loss", "grad_norm", "param_norm")  # Metrics of a step that have to be.

COUNTS = {"pairs", "tokens", "token_slots"}  # Metrics that are no means.

Metrics = dict[str, jax.Array]


def make_train_step(model: DualEncoder, loss: Loss, optimizer: Optimizer, seed: int,
                    skips_non_finite: bool = False) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The function that makes one update.

  Args:
    model: the encoder.
    loss: of a whole batch.
    optimizer: of `gtr_jax.training.optimizers`.
    seed: of the dropout masks, which depend on it and on the step alone, so that a run that resumes draws the same.
    skips_non_finite: where the loss, the gradient or the new parameters are not finite, parameters and optimizer stay
      as they were, and the step counts.

  Returns:
    `(state, batch) -> (state, metrics)`; a batch with a microbatch axis goes through gradient caching. The metrics are
    scalars: the loss's own (loss, accuracy, mrr), the global norms of the gradient of what is trained and of all new
    parameters (either is non-finite if any value in it is), the learning rate, and the numbers of pairs, of real tokens
    and of token slots in the batch.

  Raises:
    InputError: the optimizer does not say its learning rate.
  """
  if not hasattr(optimizer, "learning_rate"):
    raise InputError(f"the optimizer is a {type(optimizer).__name__} without a learning_rate: use one of "
                     "gtr_jax.training.optimizers, or wrap it as optimizers.Optimizer(init, update, schedule)")

  def loss_fn(changing, params, batch, dropout_key):
    params = overlaid(params, changing)
    queries, passages = encode_pair(model, params, batch, dropout_key)
    with jax.named_scope("loss"):
      return loss(queries, passages, batch, params=of_loss(params), train=True)

  def train_step(state, batch):
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
    changing = trained(model, state.params)
    if batch.valid.ndim == 3:
      gradient, metrics = grad_cache.gradient(model, loss, state.params, batch, dropout_key)
    else:
      gradient, metrics = jax.grad(loss_fn, has_aux=True)(changing, state.params, batch, dropout_key)
    with jax.named_scope("optimizer"):
      updates, opt_state = optimizer.update(gradient, state.opt_state, changing)
      params = overlaid(state.params, optax.apply_updates(changing, updates))
    metrics = {**metrics, **_counts(batch), "grad_norm": optax.tree.norm(gradient),
               "param_norm": optax.tree.norm(params), "learning_rate": jnp.asarray(optimizer.learning_rate(state.step))}
    if skips_non_finite:
      finite = jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in FINITE])))
      params, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, opt_state),
                                       (state.params, state.opt_state))
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step


def make_eval_step(model: DualEncoder, loss: Loss) -> Callable[[Any, Batch], Metrics]:
  """`(params, batch) -> metrics`: the loss without dropout and without what applies to training only."""

  def eval_step(params, batch):
    counts = _counts(batch)
    if batch.valid.ndim == 3:
      embeddings = grad_cache.encode_microbatches(model, params, batch, None)
      (queries, passages), batch = grad_cache.merged(embeddings, batch)
    else:
      queries, passages = encode_pair(model, params, batch, None)
    _, metrics = loss(queries, passages, batch, params=of_loss(params), train=False)
    return {**metrics, **counts}

  return eval_step


def compile_step(train_step: Callable, shardings: TrainState, deterministic_on_gpu: bool = False) -> jax.stages.Wrapped:
  """`train_step` under jit: the old state's memory is used for the new one, which keeps the shardings.

  Args:
    train_step: of `make_train_step`.
    shardings: of the state.
    deterministic_on_gpu: XLA takes no kernel that adds in the order in which threads come, and chooses none by how long
      it takes just now. On CPUs and TPUs there is none.
  """
  options: dict[str, Any] | None = {"xla_gpu_deterministic_ops": True} if deterministic_on_gpu else None
  return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)


def _counts(batch):
  sides = (batch.queries.segment_ids, batch.passages.segment_ids)
  return {"pairs": jnp.sum(batch.valid), "tokens": sum(jnp.sum(ids > 0) for ids in sides),
          "token_slots": jnp.asarray(sum(ids.size for ids in sides), jnp.float32)}
