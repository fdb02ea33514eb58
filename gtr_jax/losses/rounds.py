"""Who passes what on to whom in the losses that go round the mesh, and the blocks that they work on."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gtr_jax.parallel.partitioning import BATCH_AXES, platform


def shards_of_mesh() -> int:
  """Number of devices that pass something on: of data shards."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


class Ring:
  """Which device passes what on to which: round after round inside its slice, and from slice to slice.

  Args:
    slices: of each device, as `RingLoss.slices`.
  """

  def __init__(self, slices: tuple[int, ...]):
    slices = slices or (0,) * shards_of_mesh()
    # [slices, devices of each]
    self._devices = np.stack([np.flatnonzero(np.asarray(slices) == number) for number in sorted(set(slices))])

  def pass_on(self, tree: Any) -> Any:
    """To the next device of the slice."""
    return self._permuted(tree, np.roll(self._devices, -1, axis=1))

  def to_next_slice(self, tree: Any) -> Any:
    """To the same place in the next slice."""
    return self._permuted(tree, np.roll(self._devices, -1, axis=0))

  def _permuted(self, tree, receivers):
    if (receivers == self._devices).all():
      return tree
    pairs = list(zip(self._devices.reshape(-1).tolist(), receivers.reshape(-1).tolist(), strict=True))
    return jax.tree.map(lambda x: lax.ppermute(x, BATCH_AXES, pairs), tree)

  def rounds(self, a_round: Callable, carry: Any) -> tuple[Any, Any]:
    """`lax.scan` of `a_round` over the numbers of the hops of each round; what it yields, by hop."""
    slices, devices = self._devices.shape
    numbers = jnp.arange(slices * devices).reshape(slices, devices)
    if slices == 1:
      return a_round(carry, numbers[0])
    carry, of_rounds = lax.scan(a_round, carry, numbers)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_rounds)

  def source(self, number: Any) -> Any:
    """The device whose columns are here at a hop."""
    if shards_of_mesh() == 1:
      return number
    slices, devices = self._devices.shape
    of_slice, place = self._here()
    return jnp.asarray(self._devices)[(of_slice - number // devices) % slices, (place - number) % devices]

  def hop_of_device(self) -> jax.Array:
    """At which hop the columns of each device are here, and so those of this device there."""
    slices, devices = self._devices.shape
    of_slice, place = self._here()
    hops = jnp.arange(slices * devices).reshape(slices, devices)
    rounds, of_round = (of_slice - jnp.arange(slices)) % slices, (place - jnp.arange(devices)) % devices
    by_place = hops[rounds[:, None], of_round[None]]
    return by_place.reshape(-1)[np.argsort(self._devices, axis=None)]

  def _here(self):
    where = np.argsort(self._devices, axis=None)
    return divmod(jnp.asarray(where)[lax.axis_index(BATCH_AXES)], self._devices.shape[1])


def take(tree: Any, number: Any) -> Any:
  """Of arrays of blocks, those of this number."""
  return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, number, keepdims=False), tree)


def put(tree: Any, number: Any, block: Any) -> Any:
  """The same with other blocks at this number."""
  # In place, where `at[number].set` also checks bounds, with a select over the block.
  return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, number, 0), tree, block)


def on_mesh(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """`f` of each device's part; of all where there is no mesh."""
  return f if jax.sharding.get_abstract_mesh().empty else jax.shard_map(f, in_specs=in_specs, out_specs=out_specs)


def of_all(tree: Any) -> Any:
  """Of `[C, B]` on each device those of all, `[devices, C, B]`, by one collective."""
  if shards_of_mesh() == 1:
    return jax.tree.map(lambda x: x[None], tree)
  leaves, structure = jax.tree.flatten(tree)
  if not leaves:
    return tree
  widest = jnp.result_type(*leaves)
  gathered = lax.all_gather(jnp.stack([x.astype(widest) for x in leaves]), BATCH_AXES)
  # Each an array of its own (`blocks.Facts` says why).
  found = lax.optimization_barrier([gathered[:, i].astype(x.dtype) for i, x in enumerate(leaves)])
  return jax.tree.unflatten(structure, found)


def after(x: Any, tree: Any) -> Any:
  """`tree`; on CPU not before `x` is there.

  What is exchanged of `tree` would else be exchanged beside the loops that make `x`, by each device when it comes to
  it, and two devices may wait for each other for ever. A barrier does not do: XLA removes it before it divides the work
  among threads. So all of `tree` is made of a number that is 0 unless `x` has a NaN, when nothing matters any more.

  Args:
    x: arrays, of which those of floating point numbers count; `[G, ...]` or scalars, or within `on_mesh` of any shapes.
    tree: arrays `[G, ...]` or scalars; or likewise of any shapes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if platform() != "cpu" or mesh.empty:
    return tree
  of_device = bool(mesh.manual_axes)
  bad = functools.reduce(jnp.logical_or, (
      jnp.any(jnp.isnan(lax.stop_gradient(leaf)), axis=None if of_device else tuple(range(1, leaf.ndim)))
      for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.inexact)))

  def waiting(leaf):
    leaf = jnp.asarray(leaf)
    of_leaf = bad.reshape(*bad.shape, *[1] * (leaf.ndim - bad.ndim))
    if leaf.dtype == bool:
      return leaf ^ of_leaf
    return leaf + (jnp.where(of_leaf, jnp.nan, 0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else of_leaf).astype(
        leaf.dtype)

  return jax.tree.map(waiting, tree)


def total(x: jax.Array) -> jax.Array:
  """Sum over the last axis and all devices of the ring."""
  of_device = jnp.sum(x, -1)
  return of_device if jax.sharding.get_abstract_mesh().empty else lax.psum(of_device, BATCH_AXES)
