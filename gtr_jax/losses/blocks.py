"""The logits of `RingLoss` cut into blocks: which rows and columns there are, and which are candidates of which.

Letters: G groups, D embedding; n examples make R blocks of B.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gtr_jax.losses.in_batch import InBatchLoss


class MaskInputs(NamedTuple):
  """What masks are made of, from the batch, and the global number of each pair, `[G, pairs, 1]`."""

  number: jax.Array
  valid: jax.Array
  negative_valid: jax.Array
  negative_query_valid: jax.Array
  query_hash: jax.Array
  passage_hash: jax.Array
  text_hash: jax.Array
  known_hash: jax.Array


class Facts(NamedTuple):
  """What masks are made of, of the rows, or columns, of the logits: `valid` and words, each `[R, B]`.

  A row and a column are masked for each other when they agree in all words of one of their keys. Each pair agrees with
  itself, and so the own logit is never among those in the blocks. They are masked too where the column's `text` is one
  of those that the row has `known`. Words are uint32, and arrays of their own, because XLA on CPU takes slices of one
  common array anew for each logit, in a loop ten times as slow.
  """

  valid: jax.Array
  keys: tuple[tuple[jax.Array, ...], ...]
  known: tuple[tuple[jax.Array, ...], ...] = ()
  text: tuple[jax.Array, ...] = ()


class Side(NamedTuple):
  """Rows, or columns, of the logits: `x` `[R, B, D]`, and what is known of them."""

  x: jax.Array
  facts: Facts


def candidates(row: Facts, column: Facts) -> jax.Array:
  """True where column c is a candidate of row r, and so the other way round, bool `[B, B]`.

  One mask serves both directions: a passage is no negative of a query where the query is none of the passage, and the
  sums of pairs that are not valid are never used.
  """
  masked = ~(row.valid[:, None] & column.valid[None])
  of_text = ((known, column.text) for known in row.known)
  for row_key, column_key in (*zip(row.keys, column.keys, strict=True), *of_text):
    # Exclusive or: 0 where the words are equal.
    differ = [a[:, None] ^ b[None] for a, b in zip(row_key, column_key, strict=True)]
    masked |= functools.reduce(jnp.bitwise_or, differ) == 0
  return ~masked


class Parts(NamedTuple):
  """The parts of the logits, each as (rows, columns); None where there is nothing.

  `pairs` are queries and positives, used in both directions; `passages` queries and hard negatives, forward;
  `queries` positives and negative queries, backward.
  """

  pairs: tuple[Side, Side]
  passages: tuple[Side, Side] | None
  queries: tuple[Side, Side] | None


def cut(loss: InBatchLoss, block: int, queries: jax.Array, passages: jax.Array, mask_inputs: MaskInputs) -> Parts:
  """`Parts` in blocks of at most `block` examples, for the options of `loss`."""
  pairs = mask_inputs.valid.shape[1]
  query, passage, text = [mask_inputs.query_hash], [mask_inputs.passage_hash], [mask_inputs.text_hash]
  known = list(jnp.moveaxis(mask_inputs.known_hash, 2, 0))
  example = query + passage + text
  if not loss.mask_false_negatives:
    query, passage, text, known, example = [], [], [], [], [mask_inputs.number]

  def own(x, keys, known=(), text=()):
    keys, known, text = ([key[:, :pairs] for key in of] for of in (keys, known, text))
    return side(x[:, :pairs], mask_inputs.valid, keys, known, text, block)

  def negatives(x, valid, keys, text=()):
    return side(x[:, pairs:], valid, [key[:, pairs:] for key in keys], (), [key[:, pairs:] for key in text], block)

  hard = extra = None
  if mask_inputs.negative_valid.size:
    hard = own(queries, passage + text, known), negatives(passages, mask_inputs.negative_valid, passage + text, text)
  if mask_inputs.negative_query_valid.size and loss.bidirectional:
    extra = own(passages, query), negatives(queries, mask_inputs.negative_query_valid, query)
  return Parts((own(queries, example, known), own(passages, example, (), text)), hard, extra)


def side(x: jax.Array, valid: jax.Array, keys: Sequence[jax.Array], known: Sequence[jax.Array],
         text: Sequence[jax.Array], block: int) -> Side:
  """`x` `[G, n, D]`, `valid` `[G, n]` and keys `[G, n, words]`, in as few blocks as possible, all of one size."""
  blocks = -(-valid.size // block)
  shape = blocks, -(-valid.size // blocks)
  words = [tuple(tuple(in_blocks(word, shape) for word in key.reshape(-1, key.shape[-1]).T) for key in of)
           for of in (keys, known, text)]
  return Side(in_blocks(x.reshape(-1, x.shape[-1]), shape), Facts(
      in_blocks(valid.reshape(-1), shape), words[0], words[1], *words[2] or ((),)))


def in_blocks(x, shape):
  """`[n, ...]` -> `[R, B, ...]`, with zeros at the end: not valid, and without weight."""
  missing = math.prod(shape) - len(x)
  return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))).reshape(*shape, *x.shape[1:])


def from_blocks(x, like):
  """`[R, B, D]` -> the shape of `like`, `[G, n, D]`."""
  return x.reshape(-1, x.shape[-1])[:math.prod(like.shape[:2])].reshape(like.shape)


def of_texts(x: jax.Array, d_pairs: jax.Array, d_own: jax.Array, partner: jax.Array, d_negatives: jax.Array | None,
             factor: jax.Array) -> jax.Array:
  """The gradient of the embeddings `x` of one side, `[G, n, D]`, from those of the blocks of logits.

  Args:
    x: the side's.
    d_pairs: `[R, B, D]`, of its pairs, but for their own logits.
    d_own: `[G, pairs]`, of the own logits.
    partner: embeddings of the other side, `[G, n, D]`.
    d_negatives: `[R, B, D]`, of what follows the pairs; None where it meets nothing.
    factor: that all of it lacks.
  """
  pairs, negatives = d_own.shape[1], x[:, d_own.shape[1]:]
  whole = from_blocks(d_pairs, x[:, :pairs]) + d_own[..., None] * partner[:, :pairs].astype(d_pairs.dtype)
  of_negatives = (jnp.zeros_like(negatives, d_pairs.dtype) if d_negatives is None
                  else from_blocks(d_negatives, negatives))
  return (jnp.concatenate([whole, of_negatives], axis=1) * factor).astype(x.dtype)
