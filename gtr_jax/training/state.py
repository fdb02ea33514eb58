"""The state of training, created sharded: no device ever holds all of a state that the mesh divides."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.parameters import chosen, overlaid, trained
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import Batch
from gtr_jax.training.optimizers import Averaged, Optimizer


@runtime_checkable
class Loss(Protocol):
  """What training needs of a loss, such as an `InBatchLoss`."""

  def on_mesh(self, mesh: jax.sharding.Mesh) -> "Loss": ...

  def init_params(self, dim: int) -> dict[str, jax.Array]: ...

  def __call__(self, queries: jax.Array, passages: jax.Array, batch: Batch, *, params: Mapping[str, jax.Array] = ...,
               train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]: ...


class TrainState(flax.struct.PyTreeNode):
  """What a training step reads and writes.

  Attributes:
    step: int32 scalar, number of updates made.
    params: nested dict of arrays.
    opt_state: the optimizer's, of the parameters that are trained.
  """

  step: Any
  params: Any
  opt_state: Any

  @property
  def params_to_use(self) -> Any:
    """What is evaluated: the average of the parameters where the optimizer keeps one (`optimizers.averaged`)."""
    return overlaid(self.params, self.opt_state.average) if isinstance(self.opt_state, Averaged) else self.params

  def beginning_from(self, params: Any) -> "TrainState":
    """A fresh state with other parameters, which an average begins from too."""
    opt_state = self.opt_state
    if isinstance(opt_state, Averaged):  # A copy: both are donated.
      of_average = traverse_util.flatten_dict(opt_state.average, sep="/")
      opt_state = opt_state._replace(average=jax.tree.map(jnp.copy, chosen(params, of_average.__contains__)))
    return self.replace(params=params, opt_state=opt_state)


def create_state(model: DualEncoder, loss: Loss, optimizer: Optimizer, mesh: jax.sharding.Mesh,
                 seed: int) -> tuple[TrainState, TrainState]:
  """A fresh state, and its shardings.

  Args:
    model: the encoder.
    loss: it may add parameters of its own.
    optimizer: `init` and `update` as in optax.
    mesh: which devices hold what; the optimizer's arrays are divided like the parameters that they belong to.
    seed: of the initial parameters. The same seed gives the same parameters on any mesh.

  Returns:
    The state, and a state of `NamedSharding`s.
  """

  init, shardings = state_initializer(model, loss, optimizer, mesh, seed)
  with jax.set_mesh(mesh):
    return init(), shardings


def state_initializer(model: DualEncoder, loss: Loss, optimizer: Optimizer, mesh: jax.sharding.Mesh,
                      seed: int) -> tuple[Callable[[], TrainState], TrainState]:
  """The jitted function without arguments that makes `create_state`'s state, not called yet, and the shardings."""

  def boxed_state():
    params = {**model.init(jax.random.key(seed)), **loss.init_params(model.dim)}
    changing = trained(model, params)
    opt_state = _name_axes(optimizer.init(changing), changing)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

  shardings = partitioning.state_shardings(mesh, jax.eval_shape(boxed_state))
  return jax.jit(lambda: nn.meta.unbox(boxed_state()), out_shardings=shardings), shardings


def abstract_state(state: TrainState, shardings: TrainState) -> TrainState:
  """Shapes, dtypes and shardings of a state, for restoring a checkpoint."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def free(tree: Any) -> None:
  """Gives the device memory of arrays back at once, so that a large state is never there twice."""
  for leaf in jax.tree.leaves(tree):
    leaf.delete()


def _name_axes(opt_state: Any, params: Any) -> Any:
  """Corrects the logical axis names in an optimizer state that was made from boxed parameters.

  optax maps over parameters without a look at their boxes, so whatever it makes of one carries the parameter's axis
  names. That is right for moments, which have the parameter's shape. Adafactor's `v_row` and `v_col` lack one axis, and
  what it does not use is an array of one element. What is frozen is in no state.
  """

  def reduced(box, param, position):
    if not is_box(box):
      return box
    shape = param.value.shape
    if box.value.shape == shape:
      return box
    if position is not None and len(shape) >= 2:
      # optax sorts the axes by length: `v_row` is the mean over the longest one, `v_col` over the one before.
      removed = int(np.argsort(shape)[position])
      if box.value.shape == shape[:removed] + shape[removed + 1:]:
        return box.replace(names=box.names[:removed] + box.names[removed + 1:])
    return box.value

  def is_box(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)

  def correct(node):
    if not isinstance(node, optax.FactoredState):
      return node
    flat = traverse_util.flatten_dict(params)
    trained = traverse_util.unflatten_dict({path: flat[path] for path in traverse_util.flatten_dict(node.v)})
    return node._replace(**{
        field: jax.tree.map(lambda box, param, at=position: reduced(box, param, at), getattr(node, field), trained,
                            is_leaf=is_box)
        for field, position in (("v_row", -1), ("v_col", -2), ("v", None))})

  return jax.tree.map(correct, opt_state, is_leaf=lambda node: isinstance(node, optax.FactoredState))
