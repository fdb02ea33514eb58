"""Optimizers and learning rate schedules, with T5X's settings where T5X has them.

A schedule is a function `step -> learning rate` (optax's convention: `step` is 0 for the first update). An optimizer
is an `optax.GradientTransformation` that also carries its schedule.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from gtr_jax.errors import InputError
from gtr_jax.losses import own_params
from gtr_jax.values.check import check_arguments
from gtr_jax.values.ranges import NonNegative, Positive, Range, Says

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
_Rate = Annotated[float, Range(0)]
_Rates = Annotated[_Rate | Schedule, Says("a number of 0 or more, or a schedule such as @optimizers.linear_decay()")]
_Above0 = Annotated[float, Range(above=0)]
_Decay = Annotated[float, Range(0, below=1)]


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` (`init`, `update`) and the learning rate that it uses at each step."""

  init: Callable
  update: Callable
  learning_rate: Schedule


class Averaged(NamedTuple):
  """The state of `averaged`: that of the optimizer, the number of updates, and the average of the parameters."""

  of_optimizer: Any
  made: jax.Array
  average: Any


def averaged(optimizer: Optimizer, decay: _Decay = 0.9999) -> Optimizer:
  """An optimizer that also keeps an exponential moving average of the parameters (Polyak & Juditsky 1992).

    average = d * average + (1 - d) * X after each update t = 1, 2, ..., with d = min(decay, (1 + t) / (10 + t))

  The average is what is evaluated, what decides which checkpoint is the best, and what whoever takes the model gets.
  Training itself goes on from X. It takes the memory of the parameters once more.

  Args:
    optimizer: which makes the updates.
    decay: of the average, after a while; 0.9999 averages over about 10,000 steps.
  """
  check_arguments(averaged, locals())

  def init(params):
    return Averaged(optimizer.init(params), jnp.zeros((), jnp.int32), params)

  def update(gradient, state, params):
    updates, of_optimizer = optimizer.update(gradient, state.of_optimizer, params)
    made = state.made + 1
    share = jnp.maximum(1 - decay, 9 / (10 + made))
    average = jax.tree.map(lambda mean, x: mean + share * (x - mean), state.average,
                           optax.apply_updates(params, updates))
    return updates, Averaged(of_optimizer, made, average)

  return Optimizer(init, update, optimizer.learning_rate)


def frozen(optimizer: Optimizer, paths: Sequence[str]) -> Optimizer:
  """An optimizer that leaves some of the parameters as they are.

  They get no update, weight decay included, and have no state of the optimizer; a `clip_norm` of the optimizer is of
  the gradients of the others. So what is saved is the optimizer's memory and work for them. Their gradients are still
  computed and summed over the devices, and are part of the metric grad_norm. An average of the weights goes around it:
  `averaged(frozen(adamw(1e-4), ["token_embedder/.*"]))`.

  Args:
    optimizer: which makes the updates of the others.
    paths: regular expressions, each matched against whole paths of parameters, such as
      "encoder/layers_0/attention/query/kernel"; of separate towers they begin with "query/" or "passage/".
      MODEL_DIR/parameters.txt lists those of a run's model; the parameters of a loss are at the root, "logit_scale".

  Raises:
    InputError: there is no path, or one is no regular expression. `init` raises it where one matches no parameter,
      where nothing is left to train, and where the optimizer is `averaged`.
  """
  check_arguments(frozen, locals())
  if not paths:
    raise InputError("optimizers.frozen.paths is empty: give regular expressions, or take its optimizer alone")
  patterns = {path: _pattern(path) for path in paths}

  def trained(tree):
    return traverse_util.unflatten_dict({
        name: leaf for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()
        if not any(pattern.fullmatch(name) for pattern in patterns.values())}, sep="/")

  def init(params):
    names = sorted(traverse_util.flatten_dict(params, sep="/"))
    for path, pattern in patterns.items():
      if not any(map(pattern.fullmatch, names)):
        raise InputError(f"optimizers.frozen.paths: {path!r} matches no whole path of a parameter; "
                         f"{_near(path, pattern, names)}")
    if not (of_others := trained(params)):
      raise InputError(f"optimizers.frozen.paths: {', '.join(map(repr, paths))} match all {len(names)} parameters, so "
                       "that nothing is left to train; take one out, or narrow it")
    state = optimizer.init(of_others)
    if isinstance(state, Averaged):
      raise InputError("optimizers.frozen.optimizer is optimizers.averaged, which would have no average of what is "
                       "frozen; make it the other way round: OPTIMIZER = @optimizers.averaged(), and "
                       "optimizers.averaged.optimizer = @optimizers.frozen()")
    return state

  def update(gradient, state, params):
    updates, state = optimizer.update(trained(gradient), state, trained(params))
    flat = traverse_util.flatten_dict(updates, sep="/")
    return traverse_util.unflatten_dict({
        name: flat[name] if name in flat else jnp.zeros_like(leaf)
        for name, leaf in traverse_util.flatten_dict(gradient, sep="/").items()}, sep="/"), state

  return Optimizer(init, update, optimizer.learning_rate)


def constant(learning_rate: _Rate) -> Schedule:
  """The same learning rate at every step."""
  check_arguments(constant, locals())
  return lambda step: jnp.full((), learning_rate, jnp.float32)


def linear_decay(peak: _Rate, warmup_steps: NonNegative, total_steps: NonNegative,
                 step_offset: NonNegative = 0) -> Schedule:
  """Linear warm-up from 0 to `peak`, then linear decay to 0 at `total_steps`.

  With n = max(0, step - step_offset): `peak * min(n / warmup_steps, (total_steps - n) / (total_steps - warmup_steps))`,
  never below 1e-8. It equals T5X's `create_learning_rate_scheduler(factors="linear_decay", base_learning_rate=peak,
  warmup_steps=..., decay_factor=1 / (total_steps - warmup_steps), step_offset=...)`, floor included; but with
  `warmup_steps=0` there is no warm-up, where T5X divides by zero.

  Args:
    peak: the highest learning rate, reached at `step_offset + warmup_steps`.
    warmup_steps: steps of warm-up.
    total_steps: number of steps, counted from `step_offset`, after which the rate is 0.
    step_offset: the step that the schedule starts from. 0 for a run that counts its own steps; where steps go on
      counting from an earlier run, that run's last step, or the decay ends before it begins.
  """
  check_arguments(linear_decay, locals())

  def schedule(step):
    step = jnp.maximum(0, step - step_offset).astype(jnp.float32)
    decay = (total_steps - step) / max(1, total_steps - warmup_steps)
    warmup = step / warmup_steps if warmup_steps else 1.0
    return jnp.maximum(peak * jnp.minimum(warmup, decay), 1e-8)

  return schedule


def adafactor(learning_rate: _Rates, decay_rate: _Above0 = 0.8, clipping_threshold: _Above0 = 1.0,
              weight_decay: _Rate = 0.0, min_dim_size_to_factor: Positive = 128,
              clip_norm: _Above0 | None = None) -> Optimizer:
  """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) without momentum, as T5 and GTR were trained.

  Per parameter tensor X with gradient G, at update t = 1, 2, ...:
    b2 = 1 - t^-decay_rate
    R, C = b2 * (R, C) + (1 - b2) * mean of G^2 + 1e-30 over the larger, the smaller axis
    U = G / sqrt(R C / mean(R)), or G / sqrt(V) with a full V where the second largest axis is below
        `min_dim_size_to_factor`
    U = U / max(1, rms(U) / clipping_threshold)
    X = X - learning_rate * max(1e-3, rms(X)) * U - weight_decay * X

  It equals T5X's `adafactor.Adafactor` with its defaults for two-dimensional parameters: `decay_rate`,
  `clipping_threshold`, `min_dim_size_to_factor` and `epsilon1` (1e-30) are the same numbers there;
  `multiply_by_parameter_scale=True` with `epsilon2` (1e-3) is the factor max(1e-3, rms(X)); `beta1=None`;
  `weight_decay` is its `weight_decay_rate` (not multiplied by the learning rate); `clip_norm` is its
  `global_norm_clip_threshold`. The second moments start at zero, and t counts this run's updates: T5X's `step_offset`
  of the optimizer is never needed.

  Args:
    learning_rate: relative to the scale of each parameter; GTR: 1e-3.
    decay_rate: exponent of the second moment's decay.
    clipping_threshold: largest rms of an update before it is scaled.
    weight_decay: share of every parameter that each step removes, norm scales and position biases excepted.
    min_dim_size_to_factor: factor the second moment only where both axes are at least this long.
    clip_norm: first scale the gradient down to this global norm.
  """
  check_arguments(adafactor, locals())
  schedule = learning_rate if callable(learning_rate) else constant(learning_rate)
  parts = [
      optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor),
      optax.clip_by_block_rms(clipping_threshold),
      optax.scale_by_learning_rate(schedule, flip_sign=False),
      optax.scale_by_param_block_rms(1e-3),
  ]
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay, mask=is_decayed))
  parts.append(optax.scale(-1.0))
  return _with_clipping(parts, clip_norm, schedule)


def adamw(learning_rate: _Rates, b1: _Decay = 0.9, b2: _Decay = 0.999, eps: _Above0 = 1e-8,
          weight_decay: _Rate = 0.0, clip_norm: _Above0 | None = None) -> Optimizer:
  """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); every number means what it means in `torch.optim.AdamW`.

    m, v = b1 m + (1 - b1) G, b2 v + (1 - b2) G^2
    X = X - learning_rate * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * X)

  Args:
    learning_rate: absolute; about 1e-4 for a T5.
    b1: decay of the mean of the gradient.
    b2: decay of the mean of its square.
    eps: added to the denominator.
    weight_decay: applied to all parameters but norm scales, position biases and a learned temperature.
    clip_norm: first scale the gradient down to this global norm.
  """
  check_arguments(adamw, locals())
  schedule = learning_rate if callable(learning_rate) else constant(learning_rate)
  parts = [optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay, mask=is_decayed))
  parts.append(optax.scale_by_learning_rate(schedule))
  return _with_clipping(parts, clip_norm, schedule)


def is_decayed(params):
  """Pytree of bools: which parameters weight decay pulls towards zero. The matrices, but not the position biases."""

  def decayed(path, leaf):
    del leaf
    names = {getattr(key, "key", None) for key in path}
    return not names & {"scale", "rel_embedding", *own_params.NAMES}

  return jax.tree_util.tree_map_with_path(decayed, params)


def _pattern(path: str) -> re.Pattern[str]:
  try:
    return re.compile(path)
  except re.error as e:
    raise InputError(f"optimizers.frozen.paths: {path!r} is no regular expression ({e}); correct it") from e


def _near(path: str, pattern: re.Pattern[str], names: Sequence[str]) -> str:
  """What may have been meant by a path that matches nothing whole."""
  if parts := [name for name in names if pattern.search(name)]:
    return f"it is a part of {', '.join(parts[:3])}: write .* before or after it"
  folders = {name[:at] for name in names for at in range(len(name)) if name[at] == "/"}
  near = difflib.get_close_matches(re.sub(r"/?\W*$", "", path), [*names, *sorted(folders)], 3)
  near = [f"{name}/.*" if name in folders else name for name in near]
  return f"near are {', '.join(near)}" if near else f"there is {names[0]}, for instance"


def _with_clipping(parts: list[optax.GradientTransformation], clip_norm: float | None, schedule: Schedule) -> Optimizer:
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
  chained = optax.chain(*clip, *parts)
  return Optimizer(chained.init, chained.update, schedule)
