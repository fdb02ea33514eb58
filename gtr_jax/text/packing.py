"""From token ids to the two arrays that the encoder reads: `tokens` and `segment_ids`.

A group is the part of a batch that one data shard holds. In every group, `segment_ids` is 0 on padding and `1 + i` on
the tokens of the group's text `i`, so that a row may hold one text or several and attention and pooling never need to
know which. Everything here is numpy on the host.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gtr_jax.errors import InputError


class Texts(NamedTuple):
  """Texts of one side. Both arrays are int32 `[groups, rows, length]`."""

  tokens: np.ndarray
  segment_ids: np.ndarray


class Batch(NamedTuple):
  """A contrastive batch: in each group Q pairs, N hard negatives and M negative queries (often N = M = 0).

  Attributes:
    queries: texts 0..Q-1 are the queries, Q..Q+M-1 the negative queries.
    passages: texts 0..Q-1 are the positives (text i answers query i), Q..Q+N-1 the hard negatives.
    valid: bool `[groups, Q]`, False for a pair that only fills up the batch.
    negative_valid: bool `[groups, N]`.
    negative_owner: int32 `[groups, N]`, the query, local to the group, that each hard negative was mined for.
    negative_query_valid: bool `[groups, M]`.
    query_hash: uint32 `[groups, Q + M, 2]`, of the query's id.
    passage_hash: uint32 `[groups, Q + N, 2]`, of the passage's id.
    text_hash: uint32 `[groups, Q + N, 2]`, of the passage's text.
  """

  queries: Texts
  passages: Texts
  valid: np.ndarray
  negative_valid: np.ndarray
  negative_owner: np.ndarray
  negative_query_valid: np.ndarray
  query_hash: np.ndarray
  passage_hash: np.ndarray
  text_hash: np.ndarray


def pad_texts(tokens: np.ndarray, groups: int) -> Texts:
  """One text a row. `tokens` is int32 `[groups * texts, length]`, padded with 0; every text gets its own row."""
  tokens = tokens.reshape(groups, -1, tokens.shape[-1])
  owner = 1 + np.arange(tokens.shape[1], dtype=np.int32)
  return Texts(tokens, np.where(tokens != 0, owner[None, :, None], 0).astype(np.int32))


def split_hash(hash64: np.ndarray) -> np.ndarray:
  """int64 or uint64 `[...]` -> uint32 `[..., 2]` (jax would truncate 64 bits)."""
  return np.ascontiguousarray(hash64.astype(np.uint64)[..., None]).view(np.uint32)


def pad_batch(features: Mapping[str, np.ndarray], groups: int) -> Batch:
  """A batch with one text a row from the model features of `gtr_jax.data.feature_converter`.

  Args:
    features: `left_encoder_input_tokens` int32 `[pairs, query length]`, `right_encoder_input_tokens` int32
      `[pairs, passage length]`; optionally `right_negative_encoder_input_tokens` int32 `[pairs, k, passage length]` and
      `left_negative_encoder_input_tokens` int32 `[pairs, m, query length]`, where a row of zeros is "no negative here";
      `query_hash`, `passage_hash`, `text_hash` int64 `[pairs]`, and `negative_passage_hash`, `negative_text_hash` int64
      `[pairs, k]`; optionally `valid` bool `[pairs]`.
    groups: number of data shards; must divide the number of pairs.

  Returns:
    A `Batch` of numpy arrays, pair `i` in group `i // (pairs / groups)`.
  """
  left, right = features["left_encoder_input_tokens"], features["right_encoder_input_tokens"]
  pairs = len(left)
  if pairs % groups:
    raise InputError(f"a batch of {pairs} pairs cannot be divided over {groups} data shards: change the batch size "
                     "or the mesh")
  negatives = features.get("right_negative_encoder_input_tokens")
  if negatives is None:
    negatives = np.zeros((pairs, 0, right.shape[-1]), np.int32)
  negative_queries = features.get("left_negative_encoder_input_tokens")
  if negative_queries is None:
    negative_queries = np.zeros((pairs, 0, left.shape[-1]), np.int32)

  def grouped(of_pairs, of_negatives):
    """`[pairs, ...]` and `[pairs, k, ...]` -> `[groups, pairs / groups * (1 + k), ...]`, the pairs' own first."""
    tail = of_pairs.shape[1:]
    return np.concatenate([of_pairs.reshape(groups, -1, *tail), of_negatives.reshape(groups, -1, *tail)], axis=1)

  def negative_hash(name):
    return features[name] if negatives.shape[1] else np.zeros((pairs, 0), np.int64)

  queries = grouped(left, negative_queries)
  passages = grouped(right, negatives)
  own = np.repeat(np.arange(pairs // groups, dtype=np.int32), negatives.shape[1])
  negative_query_hash = np.zeros(negative_queries.shape[:2], np.int64)
  return Batch(
      queries=pad_texts(queries.reshape(-1, left.shape[-1]), groups),
      passages=pad_texts(passages.reshape(-1, right.shape[-1]), groups),
      valid=np.asarray(features.get("valid", np.ones(pairs, bool))).reshape(groups, -1),
      negative_valid=(negatives != 0).any(-1).reshape(groups, -1),
      negative_owner=np.tile(own, (groups, 1)),
      negative_query_valid=(negative_queries != 0).any(-1).reshape(groups, -1),
      query_hash=split_hash(grouped(features["query_hash"], negative_query_hash)),
      passage_hash=split_hash(grouped(features["passage_hash"], negative_hash("negative_passage_hash"))),
      text_hash=split_hash(grouped(features["text_hash"], negative_hash("negative_text_hash"))),
  )
