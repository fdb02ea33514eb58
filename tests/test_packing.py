"""The host batch: which text lies where, and what its arrays say of it."""

import numpy as np
import pytest

from gtr_jax.errors import InputError
from gtr_jax.text.batch import make_batch, split_hash

PAIRS, GROUPS, K, M = 4, 2, 3, 2


@pytest.fixture
def features():
  rng = np.random.default_rng(0)

  def tokens(*shape):
    x = rng.integers(1, 99, shape).astype(np.int32)
    x[..., -2:] = 0
    return x

  f = {"left_encoder_input_tokens": tokens(PAIRS, 5), "right_encoder_input_tokens": tokens(PAIRS, 7),
       "right_negative_encoder_input_tokens": tokens(PAIRS, K, 7),
       "left_negative_encoder_input_tokens": tokens(PAIRS, M, 5)}
  f["right_negative_encoder_input_tokens"][1, 2] = 0  # pair 1 has one negative less
  f |= {name: rng.integers(-2**62, 2**62, PAIRS) for name in ("query_hash", "passage_hash", "text_hash")}
  f |= {name: rng.integers(-2**62, 2**62, (PAIRS, K)) for name in ("negative_passage_hash", "negative_text_hash")}
  return f


def text(texts, group, number):
  """The tokens of text `number` of a group, wherever they lie."""
  return texts.tokens[group][texts.segment_ids[group] == 1 + number]


def without_padding(tokens):
  return tokens[tokens != 0]


def test_every_text_is_where_the_batch_says(features):
  batch = make_batch(features, GROUPS)
  per_group = PAIRS // GROUPS
  for pair in range(PAIRS):
    group, i = divmod(pair, per_group)
    np.testing.assert_array_equal(text(batch.queries, group, i),
                                  without_padding(features["left_encoder_input_tokens"][pair]))
    np.testing.assert_array_equal(text(batch.passages, group, i),
                                  without_padding(features["right_encoder_input_tokens"][pair]))
    for k in range(K):
      place = i * K + k
      negative = features["right_negative_encoder_input_tokens"][pair, k]
      np.testing.assert_array_equal(text(batch.passages, group, per_group + place), without_padding(negative))
      assert batch.negative_owner[group, place] == i
      assert batch.negative_valid[group, place] == negative.any()
      for name in ("passage_hash", "text_hash"):
        both = batch._asdict()[name][group, per_group + place].view(np.uint64)[0]
        assert both.astype(np.int64) == features[f"negative_{name}"][pair, k]
    for m in range(M):
      np.testing.assert_array_equal(text(batch.queries, group, per_group + i * M + m),
                                    without_padding(features["left_negative_encoder_input_tokens"][pair, m]))
    assert batch.query_hash[group, i].view(np.uint64)[0].astype(np.int64) == features["query_hash"][pair]
    assert batch.passage_hash[group, i].view(np.uint64)[0].astype(np.int64) == features["passage_hash"][pair]
  assert not batch.negative_valid.all() and batch.negative_query_valid.all() and batch.valid.all()


def test_without_negatives_nothing_of_them_is_there(features):
  batch = make_batch({k: v for k, v in features.items() if "negative" not in k}, GROUPS)
  assert batch.passages.tokens.shape == (GROUPS, 2, 7) and batch.queries.tokens.shape == (GROUPS, 2, 5)
  assert batch.negative_owner.shape == batch.negative_valid.shape == batch.negative_query_valid.shape == (GROUPS, 0)
  assert batch.text_hash.shape == (GROUPS, 2, 2) and batch.text_hash.dtype == np.uint32


def test_padding_belongs_to_no_text(features):
  batch = make_batch(features, GROUPS)
  for side in (batch.queries, batch.passages):
    np.testing.assert_array_equal(side.segment_ids == 0, side.tokens == 0)
    assert side.tokens.dtype == side.segment_ids.dtype == np.int32


def test_fill_pairs_are_marked(features):
  features["valid"] = np.array([True, True, True, False])
  assert make_batch(features, GROUPS).valid.tolist() == [[True, True], [True, False]]


def test_groups_must_divide_the_pairs(features):
  with pytest.raises(InputError, match="4 pairs cannot be divided over 3 data shards"):
    make_batch(features, 3)


def test_split_hash_keeps_all_bits():
  value = np.array([-1, 2**63 - 1, 5], np.int64)
  np.testing.assert_array_equal(split_hash(value).view(np.uint64)[:, 0], value.astype(np.uint64))
