"""All logits of a global batch once, block by block, while the candidates travel round the mesh.

Letters: D embedding. Of the logits, one device holds R blocks of rows and sees the C blocks of columns of one device at
a time; a block is B examples.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gtr_jax.errors import InputError
from gtr_jax.losses.blocks import MaskInputs, Side, candidates
from gtr_jax.losses.in_batch import dots
from gtr_jax.losses.rounds import Ring, after, of_all, put, shards_of_mesh, take
from gtr_jax.parallel.partitioning import platform

# Largest B. On CPU a block of logits should stay in the cache: of 512, 1024 and 2048, 1024 is the fastest. On GPU and
# TPU it should be large enough to hide the launch of its dozen kernels; 4096 x 4096 logits in float32 are 64 MiB.
BLOCK, BLOCK_ON_CPU = 4096, 1024


def prepared(loss: Any, queries: jax.Array, batch: Any) -> tuple[MaskInputs, int]:
  """What masks are made of, and the largest B.

  Args:
    loss: with `slices`, as `RingLoss`.
    queries: embeddings, `[G, texts, D]`.
    batch: `text.batch.Batch`.

  Raises:
    InputError: the groups of the batch cannot be divided over the mesh, or `slices` are of another one.
  """
  number = jnp.arange(batch.valid.size, dtype=jnp.uint32).reshape(*batch.valid.shape, 1)
  mask_inputs = MaskInputs(*map(jnp.asarray, (
      number, batch.valid, batch.negative_valid, batch.negative_query_valid, batch.query_hash, batch.passage_hash,
      batch.text_hash, batch.known_hash)))
  return after(queries, mask_inputs), block_size(loss, queries)


def block_size(loss: Any, queries: jax.Array) -> int:
  """The largest B. Raises InputError as `prepared`."""
  name, shards = type(loss).__name__, shards_of_mesh()
  if len(queries) % shards:
    raise InputError(f"{name}: {len(queries)} groups cannot be divided over {shards} data shards (data x fsdp): make "
                     "the number of groups a multiple of them, or change the mesh")
  if loss.slices and len(loss.slices) != shards:
    raise InputError(f"{name}.slices is of {len(loss.slices)} data shards, and the mesh has {shards}: let `on_mesh` "
                     "set it")
  return BLOCK_ON_CPU if platform() == "cpu" else BLOCK


def sweep(ring: Ring, rows: Side, columns: Side, logits_of: Callable, add: Callable, row_sums: Any,
          column_sums: Any = None, diagonal: bool = False) -> tuple[Any, Any]:
  """Takes the columns once round the ring, past the rows of each device.

  `logits_of(rows, columns)` are the logits of a block `[B, D]` of each, or a tuple of several kinds of them.
  `add(sums, logits, axis)` adds a block of logits, masked with -inf, to sums `[B]` along an axis; sums are named tuples
  of arrays `[R, B]`, those of columns with `limit`. Without `column_sums` only the rows are summed. With `diagonal` the
  rows' sums have `own`, and column i is the own one of row i at the first hop; its block is the first of each row
  block, as those ahead of the own logit can be counted only when it is known. Of several kinds, the first is meant.

  Returns:
    The rows' sums, and what this device adds to the columns' sums at each hop, `[devices, C, B]`; or None.
  """
  columns = columns._replace(x=after(row_sums, columns.x))  # After the sweep that the sums are of.
  all_facts = of_all(columns.facts)
  all_limits = None if column_sums is None else of_all(column_sums.limit)

  def hop(carry, number):
    x, row_sums = carry
    next_x, (facts, limit) = ring.pass_on(x), take((all_facts, all_limits), ring.source(number))
    of_columns = None if column_sums is None else column_sums._replace(limit=limit)

    def row_block(r, carry):
      row_sums, column_sums = carry
      row_x, row_facts = take(rows, r)

      def block(step, carry):
        row_sum, column_sums = carry
        c = (r + step) % len(x)
        logits = logits_of(row_x, take(x, c))
        if diagonal:
          diagonal_of = jnp.diagonal(jax.tree.leaves(logits)[0])
          own = jnp.where((number == 0) & (step == 0), diagonal_of, row_sum.own)
          row_sum = row_sum._replace(own=own)
        # Without the barrier the mask is computed again for each of the sums.
        logits = lax.optimization_barrier(_masked(candidates(row_facts, take(facts, c)), logits))
        row_sum = add(row_sum, logits, 1)
        if column_sums is not None:
          column_sums = put(column_sums, c, add(take(column_sums, c), logits, 0))
        return row_sum, column_sums

      row_sum, column_sums = lax.fori_loop(0, len(x), block, (take(row_sums, r), column_sums))
      return put(row_sums, r, row_sum), column_sums

    row_sums, of_hop = lax.fori_loop(0, len(rows.x), row_block, (row_sums, of_columns))
    return (next_x, row_sums), None if of_hop is None else of_hop._replace(limit=None)

  def a_round(carry, numbers):
    x, row_sums = carry
    next_x = ring.to_next_slice(x)  # Meanwhile, but on CPU.
    (_, row_sums), of_hops = lax.scan(hop, (after(next_x, x), row_sums), numbers)
    return (next_x, row_sums), of_hops

  (_, row_sums), of_hops = ring.rounds(a_round, (columns.x, row_sums))
  return row_sums, of_hops


def scaled_dots(scale: jax.Array) -> Callable:
  """The logits of embeddings: their dot products times `scale`."""
  return lambda rows, columns: dots(rows, columns) * scale


def _masked(mask, logits):
  return jax.tree.map(lambda x: jnp.where(mask, x, -jnp.inf), logits)


def with_ahead(sums: Any, logits: jax.Array, axis: int) -> Any:
  """`sums`, where they count which of a block of logits are not below the `own` ones, with these."""
  if sums.ahead is None:
    return sums
  # Counted in floating point: XLA sums integers over rows many times more slowly on CPU.
  ahead = (logits >= jnp.expand_dims(sums.own, axis)).astype(logits.dtype)
  return sums._replace(ahead=sums.ahead + jnp.sum(ahead, axis))


def gradient_sweep(ring: Ring, rows: Side, columns: Side, logits_of: Callable, d_logits: Callable, d_rows: jax.Array,
                   row_weights: Any, column_weights: Any = None) -> tuple[jax.Array, jax.Array]:
  """Adds to the gradient of the rows what their dot products give; and the gradient of the columns.

  `d_logits(logits, weights, axis)` is the gradient of a block of dot products, but for a factor that all lack, from its
  logits, masked with -inf, by weights `[B]` along an axis. The columns' gradient goes round the ring one hop behind
  them: while a device computes what it adds to that of one column, that of the one before is on its way; between
  slices, one round behind them. Products are written so that on CPU, where it matters most, no large operand has to be
  transposed: the columns' gradient is held as `[C, D, B]`.
  """
  dtype = d_rows.dtype
  product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
  x, column_weights = after(d_rows, (columns.x, column_weights))
  columns = columns._replace(x=x)  # The facts are those of the forward pass, which were exchanged there.
  all_facts, all_weights = of_all(columns.facts), of_all(column_weights)
  nothing = jnp.swapaxes(jnp.zeros_like(columns.x, dtype), 1, 2)

  def hop(carry, number):
    x, behind, d_rows = carry
    next_x, received = ring.pass_on((x, behind))
    facts, weights = take((all_facts, all_weights), ring.source(number))

    def row_block(r, carry):
      d_rows, d_columns = carry
      (row_x, row_facts), row_weight = take((rows, row_weights), r)
      row_DxB = lax.optimization_barrier(row_x.T.astype(dtype))

      def block(c, carry):
        d_row, d_columns = carry
        column_x, column_facts, column_weight = take((x, facts, weights), c)
        logits = _masked(candidates(row_facts, column_facts), logits_of(row_x, column_x))
        d_block = d_logits(logits, row_weight, 1)
        if column_weight is not None:
          d_block += d_logits(logits, column_weight, 0)
        d_row += product("rc,cd->rd", d_block, column_x.astype(dtype))
        return d_row, put(d_columns, c, take(d_columns, c) + product("dr,rc->dc", row_DxB, d_block))

      d_row, d_columns = lax.fori_loop(0, len(x), block, (take(d_rows, r), d_columns))
      return put(d_rows, r, d_row), d_columns

    d_rows, d_columns = lax.fori_loop(0, len(rows.x), row_block, (d_rows, nothing))
    return (next_x, received + d_columns, d_rows), None

  def a_round(carry, numbers):
    x, of_slices, d_rows = carry
    next_x, received = exchanged = ring.to_next_slice((x, of_slices))
    (_, behind, d_rows), _ = lax.scan(hop, (after(exchanged, x), nothing, d_rows), numbers)
    return (next_x, received + ring.pass_on(behind), d_rows), None

  (_, of_slices, d_rows), _ = ring.rounds(a_round, (columns.x, nothing, d_rows))
  return d_rows, jnp.swapaxes(ring.to_next_slice(of_slices), 1, 2)
