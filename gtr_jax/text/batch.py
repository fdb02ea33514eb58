"""The contrastive batch: texts of both sides, padded or packed, and what the loss has to know of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gtr_jax.errors import InputError
from gtr_jax.text.packing import Array, Texts, UsualRows, balance, pack_texts, pad_texts, usual_rows

# Of `round_rows`. Queries are the smaller part of a batch, so wide steps cost little there and save programs.
QUERY_SPREAD, PASSAGE_SPREAD = 2.8, 1.4
QUERY_VARIATION, PASSAGE_VARIATION = 2.0, 1.4  # of `usual_rows`, likewise; texts are dealt evenly to batches


class Taught(NamedTuple):
  """What a teacher has to say of the texts of a batch; each None where the loss does not ask (`losses.teacher`).

  Attributes:
    queries: float32 `[groups, Q + M, T]`, its vectors of the queries, zeros where there is none.
    passages: float32 `[groups, Q + N, T]`, of the passages.
    scores: float32 `[groups, Q + N]`, how well each passage answers the query that it is the positive of, or was mined
      for; NaN where there is none.
  """

  queries: Array | None = None
  passages: Array | None = None
  scores: Array | None = None


class Batch(NamedTuple):
  """A contrastive batch: in each group Q pairs, N hard negatives and M negative queries (often N = M = 0).

  For gradient caching there is a microbatch axis after the groups in every array, and Q, N and M are those of a
  microbatch.

  Attributes:
    queries: texts 0..Q-1 are the queries, Q..Q+M-1 the negative queries.
    passages: texts 0..Q-1 are the positives (text i answers query i), Q..Q+N-1 the hard negatives.
    valid: bool `[groups, Q]`, False for a pair that only fills up the batch.
    negative_valid: bool `[groups, N]`.
    negative_owner: int32 `[groups, N]`, the query, local to the group (microbatch), that each hard negative was mined
      for.
    negative_query_valid: bool `[groups, M]`.
    query_hash: uint32 `[groups, Q + M, 2]`, of the query's id.
    passage_hash: uint32 `[groups, Q + N, 2]`, of the passage's id.
    text_hash: uint32 `[groups, Q + N, 2]`, of the passage's text.
    known_hash: uint32 `[groups, Q, K, 2]`, of texts that are no negatives of the query: its own, and others that answer
      it; filled up with zeros.
    teacher: of the same texts.
  """

  queries: Texts
  passages: Texts
  valid: Array
  negative_valid: Array
  negative_owner: Array
  negative_query_valid: Array
  query_hash: Array
  passage_hash: Array
  text_hash: Array
  known_hash: Array
  teacher: Taught = Taught()


class RowLengths(NamedTuple):
  """Lengths of the packed rows of each side."""

  queries: int
  passages: int


class UsualShape(NamedTuple):
  """Of the packed batches of some data."""

  queries: UsualRows
  passages: UsualRows


def split_hash(hash64: np.ndarray) -> np.ndarray:
  """int64 or uint64 `[...]` -> uint32 `[..., 2]` (jax would truncate 64 bits)."""
  return np.ascontiguousarray(hash64.astype(np.uint64)[..., None]).view(np.uint32)


def make_batch(features: Mapping[str, np.ndarray], groups: int, *, row_lengths: RowLengths | None = None,
               microbatches: int | None = None, usual: UsualShape | None = None) -> Batch:
  """A batch from the model features of `gtr_jax.data.feature_converter`.

  Args:
    features: `left_encoder_input_tokens` int32 `[pairs, query length]`, `right_encoder_input_tokens` int32
      `[pairs, passage length]`; optionally `right_negative_encoder_input_tokens` int32 `[pairs, k, length]` and
      `left_negative_encoder_input_tokens` int32 `[pairs, m, length]`, where a row of zeros is "no negative here";
      `query_hash`, `passage_hash`, `text_hash` int64 `[pairs]`, and `negative_passage_hash`, `negative_text_hash` int64
      `[pairs, k]`; optionally `known_hash` int64 `[pairs, K]` and `valid` bool `[pairs]`; of a teacher
      `query_vector` and `passage_vector` float32 `[pairs, T]`, `negative_vector` `[pairs, k, T]`, and `score` float32
      `[pairs]`, `negative_score` `[pairs, k]`.
    groups: number of data shards.
    row_lengths: pack into rows of these lengths, hard negatives beside the positives. None: one text a row, as long as
      the features are.
    microbatches: for gradient caching: divide each group into so many; None: no microbatch axis.
    usual: of `usual_shape`: the numbers of rows that packed batches of this data have.

  Returns:
    A `Batch` of numpy arrays. The pairs keep their order: the first group's first microbatch first. Packed, they move
    between the microbatches of their group to fill all equally.

  Raises:
    InputError: the pairs cannot be divided that way, or a text is longer than a row.
  """
  pairs, parts = len(features["left_encoder_input_tokens"]), groups * (microbatches or 1)
  if pairs % parts:
    raise InputError(f"a batch of {pairs} pairs cannot be divided over {groups} data shards" +
                     (f" with {microbatches} microbatches each" if microbatches else "") +
                     ": change the batch size or the mesh")
  of_pairs = _each_with_negatives({name: split_hash(value) if name.endswith("_hash") else value
                                   for name, value in features.items()}, np)
  if row_lengths and microbatches and microbatches > 1:
    sizes = (np.count_nonzero(tokens, axis=(1, 2)).reshape(groups, -1) for tokens in of_pairs[:2])
    order = np.concatenate([group * (pairs // groups) + balance(queries, passages, microbatches)
                            for group, (queries, passages) in enumerate(zip(*sizes, strict=True))])
    of_pairs = [array if array is None else array[order] for array in of_pairs]
  arrays = [_own_first(array, parts, np) for array in of_pairs]
  if row_lengths:
    texts = (pack_texts(arrays[0], row_lengths.queries, QUERY_SPREAD, usual and usual.queries),
             pack_texts(arrays[1], row_lengths.passages, PASSAGE_SPREAD, usual and usual.passages))
  else:
    texts = _padded(arrays, parts, np)
  batch = _batch(texts, arrays, np)
  return batch if microbatches is None else _map(lambda x: x.reshape(groups, microbatches, *x.shape[1:]), batch)


def usual_shape(batch: Batch) -> UsualShape:
  """Of packed batches like this one."""
  return UsualShape(usual_rows(batch.queries, batch.query_hash.shape[-2], QUERY_SPREAD, QUERY_VARIATION),
                    usual_rows(batch.passages, batch.passage_hash.shape[-2], PASSAGE_SPREAD, PASSAGE_VARIATION))


def padded_batch(features: Mapping[str, Any], groups: int, xp: Any) -> Batch:
  """`make_batch` without packing and microbatches for arrays of any library, also under jit.

  Args:
    features: as of `make_batch`, but hashes are uint32 `[..., 2]`.
    groups: number of data shards; it divides the pairs.
    xp: numpy or jax.numpy.
  """
  arrays = [_own_first(array, groups, xp) for array in _each_with_negatives(features, xp)]
  return _batch(_padded(arrays, groups, xp), arrays, xp)


def with_rows(batch: Batch, query_rows: int, passage_rows: int) -> Batch:
  """The batch with empty rows added, so that all processes have the same shapes."""
  def longer(texts, rows):
    fill = [(0, 0)] * (texts.tokens.ndim - 2) + [(0, rows - texts.tokens.shape[-2]), (0, 0)]
    return Texts(*(np.pad(array, fill) for array in texts))

  return batch._replace(queries=longer(batch.queries, query_rows), passages=longer(batch.passages, passage_rows))


def _each_with_negatives(features, xp):
  """Of each pair `[pairs, 1 + negatives, ...]`: queries, passages, valid, hashes of query, passage and text, and those
  that it knows; then what `Taught` has."""
  def tokens(side):
    own = features[f"{side}_encoder_input_tokens"][:, None]
    negatives = features.get(f"{side}_negative_encoder_input_tokens", own[:, :0])
    length = max(own.shape[-1], negatives.shape[-1])
    return xp.concatenate([xp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[-1]))) for x in (own, negatives)], axis=1)

  def both(name, of_negatives, count, fill=0):
    own = features[name][:, None]
    negatives = features.get(of_negatives, xp.full((len(own), count, *own.shape[2:]), fill, own.dtype))
    return xp.concatenate([own, negatives], axis=1)

  def hashes(name, count):
    return both(name, f"negative_{name}", count)

  queries, passages = tokens("left"), tokens("right")
  m, k = queries.shape[1] - 1, passages.shape[1] - 1
  valid = features["valid"] if "valid" in features else xp.ones(len(queries), bool)
  known = features["known_hash"] if "known_hash" in features else xp.zeros((len(queries), 1, 2), np.uint32)
  return [queries, passages, valid[:, None], hashes("query_hash", m), hashes("passage_hash", k), hashes("text_hash", k),
          known[:, None], *((both("query_vector", None, m), both("passage_vector", "negative_vector", k))
                            if "query_vector" in features else (None, None)),
          both("score", "negative_score", k, np.nan) if "score" in features else None]


def _own_first(array, parts, xp):
  """`[pairs, 1 + k, ...]` -> `[parts, pairs / parts * (1 + k), ...]`: each part's own, then its negatives."""
  if array is None:
    return None
  array = array.reshape(parts, -1, *array.shape[1:])
  own, negatives = array[:, :, 0], array[:, :, 1:]
  return xp.concatenate([own, negatives.reshape(parts, -1, *array.shape[3:])], axis=1)


def _padded(arrays, parts, xp):
  return [pad_texts(side.reshape(-1, side.shape[-1]), parts, xp) for side in arrays[:2]]


def _batch(texts, arrays, xp):
  """Of texts in rows, and of `_own_first` of all arrays."""
  queries, passages, valid, query_hash, passage_hash, text_hash, known_hash, *teacher = arrays
  parts, own = valid.shape
  owner = xp.repeat(xp.arange(own, dtype=np.int32), passages.shape[1] // own - 1)
  of_queries, of_passages = texts
  return Batch(of_queries, of_passages, valid, (passages[:, own:] != 0).any(-1), xp.tile(owner, (parts, 1)),
               (queries[:, own:] != 0).any(-1), query_hash, passage_hash, text_hash, known_hash,
               Taught(*teacher))


def _map(function: Callable[[Array], Array], of_batch: Any) -> Any:
  """Of all arrays in named tuples, which may be named tuples."""
  if isinstance(of_batch, tuple):
    return of_batch._make(_map(function, x) for x in of_batch)  # type: ignore[attr-defined]
  return None if of_batch is None else function(of_batch)
