"""The host batch, padded and packed: which text lies where, and what its arrays say of it."""

import jax
import numpy as np
import pytest

from gtr_jax.errors import InputError
from gtr_jax.text.batch import PASSAGE_SPREAD, RowLengths, UsualShape, make_batch, split_hash, usual_shape, with_rows
from gtr_jax.text.packing import UsualRows, balance, best_fit, pack_texts, round_rows, usual_rows

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


def pairs_of(batch, features):
  """For every pair of a batch without microbatches: (query, positive, negatives, hashes ..), all as plain tuples."""
  groups, own = batch.valid.shape
  out = []
  for g in range(groups):
    owners = batch.negative_owner[g]
    for i in range(own):
      negatives = [own + j for j in np.flatnonzero(owners == i)]
      texts = [text(batch.queries, g, i), *(text(batch.passages, g, j) for j in (i, *negatives))]
      hashes = [batch.query_hash[g, i], *(h[g, j] for h in (batch.passage_hash, batch.text_hash)
                                          for j in (i, *negatives))]
      valid = [batch.valid[g, i], *batch.negative_valid[g, [j - own for j in negatives]]]
      out.append(tuple(tuple(np.ravel(x).tolist()) for x in (*texts, *hashes, valid)))
  return out


@pytest.mark.parametrize("groups", [1, 2])
def test_packing_moves_pairs_and_changes_none(features, groups):
  padded = make_batch(features, groups)
  packed = make_batch(features, groups, row_lengths=RowLengths(11, 16))
  assert sorted(pairs_of(packed, features)) == sorted(pairs_of(padded, features))
  if groups == 1:
    assert pairs_of(packed, features) == pairs_of(padded, features)
  assert packed.passages.tokens.shape[1] < padded.passages.tokens.shape[1]
  assert packed.passages.tokens.shape[2] == 16 and packed.queries.tokens.shape[2] == 11
  for side in (packed.queries, packed.passages):
    np.testing.assert_array_equal(side.segment_ids == 0, side.tokens == 0)
    assert side.tokens.dtype == side.segment_ids.dtype == np.int32


@pytest.mark.parametrize("row_lengths", [None, RowLengths(11, 16)])
def test_microbatches_hold_the_same_pairs(features, row_lengths):
  whole = make_batch(features, 2)
  batch = make_batch(features, 1, row_lengths=row_lengths, microbatches=2)
  assert batch.valid.shape == (1, 2, 2) and batch.negative_owner.shape == (1, 2, 2 * K)
  one_by_one = [pairs_of(jax.tree.map(lambda x, i=i: x[:, i], batch), features) for i in range(2)]
  assert sorted(sum(one_by_one, [])) == sorted(pairs_of(whole, features))


def test_negatives_may_be_longer_than_positives(features):
  features["right_negative_encoder_input_tokens"] = np.full((PAIRS, K, 12), 3, np.int32)
  batch = make_batch(features, 1)
  assert batch.passages.tokens.shape == (1, PAIRS * (1 + K), 12)
  np.testing.assert_array_equal(text(batch.passages, 0, PAIRS), np.full(12, 3))
  np.testing.assert_array_equal(text(batch.passages, 0, 0), without_padding(features["right_encoder_input_tokens"][0]))


def test_a_text_longer_than_a_row_is_refused(features):
  with pytest.raises(InputError, match="a text of 3 tokens does not fit a row of 2"):
    make_batch(features, 1, row_lengths=RowLengths(2, 16))


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_is_a_packing(seed):
  """Nothing overlaps, and, as for any algorithm that opens no row without need, one row at most is not half full."""
  rng = np.random.default_rng(seed)
  length = int(rng.integers(4, 60))
  lengths = rng.integers(0, length + 1, rng.integers(1, 200))
  row, start, rows = best_fit(lengths, length)
  taken = np.zeros((rows, length), int)
  for text in np.flatnonzero(lengths):
    assert start[text] + lengths[text] <= length
    taken[row[text], start[text]:start[text] + lengths[text]] += 1
  assert taken.max(initial=0) <= 1 and (taken.any(axis=1)).all() and taken.sum() == lengths.sum()
  assert np.sum(2 * taken.sum(axis=1) <= length) <= 1
  limited, _, rows_of_two = best_fit(lengths, length, max_texts=2)
  assert np.bincount(limited[lengths > 0], minlength=1).max() <= 2 and rows_of_two >= rows


def test_best_fit_takes_the_tightest_row():
  row, start, rows = best_fit(np.array([7, 6, 3, 4, 0]), 10)
  assert rows == 2
  assert (row[0] == row[2]) and (row[1] == row[3]) and start.tolist()[:4] == [0, 0, 7, 6]


def test_best_fit_without_texts():
  assert best_fit(np.zeros(3, int), 8)[2] == 0
  assert pack_texts(np.zeros((2, 3, 5), np.int32), 8, 1.0).tokens.shape == (2, 1, 8)


def test_few_row_counts_and_little_waste():
  """Whatever the need, the count is at least that, in steps that shrink with the number of texts."""
  for texts, spread in ((128, 1.4), (2048, 1.4), (16, 2.8)):
    counts = [round_rows(rows, texts, spread) for rows in range(1, 1000)]
    assert all(count >= rows for rows, count in enumerate(counts, 1))
    assert counts == sorted(counts)
    assert all(count - rows <= spread / texts**0.5 * rows + 0.5 for rows, count in enumerate(counts, 1))
  assert len({round_rows(rows, 128, 1.4) for rows in range(48, 58)}) == 4  # 48, 52, 56, 60


@pytest.mark.parametrize("parts", [2, 8])
def test_balance_evens_out_both_sides(parts):
  rng = np.random.default_rng(0)
  before, after = np.zeros((2, 2))
  for _ in range(20):
    queries, passages = rng.integers(1, 64, 128), rng.integers(1, 256, 128)
    order = balance(queries, passages, parts)
    assert sorted(order) == list(range(128))
    for side, tokens in enumerate((queries, passages)):
      before[side] += np.ptp(tokens.reshape(parts, -1).sum(axis=1))
      after[side] += np.ptp(tokens[order].reshape(parts, -1).sum(axis=1))
  assert np.all(after < 0.2 * before)


def test_rows_are_added_without_a_text(features):
  batch = make_batch(features, 2, row_lengths=RowLengths(11, 16), microbatches=1)
  longer = with_rows(batch, 5, 9)
  assert longer.queries.tokens.shape == (2, 1, 5, 11) and longer.passages.segment_ids.shape == (2, 1, 9, 16)
  for side in ("queries", "passages"):
    old, new = getattr(batch, side), getattr(longer, side)
    for a, b in zip(old, new, strict=True):
      np.testing.assert_array_equal(b[:, :, :a.shape[2]], a)
      assert not b[:, :, a.shape[2]:].any()


def random_lengths(rng, texts, longest=(24, 64)):
  """Of queries and passages; long ones are cut."""
  return [np.minimum(rng.integers(2, 2 * most, texts), most) for most in longest]


def packed_batch(lengths, usual=None, microbatches=None, longest=(24, 64)):
  rng = np.random.default_rng(0)
  tokens = [np.where(np.arange(most) < of_side[:, None], 1, 0).astype(np.int32)
            for most, of_side in zip(longest, lengths, strict=True)]
  hashes = {name: rng.integers(-2**62, 2**62, len(lengths[0])) for name in ("query_hash", "passage_hash", "text_hash")}
  return make_batch({"left_encoder_input_tokens": tokens[0], "right_encoder_input_tokens": tokens[1], **hashes}, 1,
                    row_lengths=RowLengths(32, 64), usual=usual, microbatches=microbatches)


def random_batch(seed, usual=None):
  return packed_batch(random_lengths(np.random.default_rng(seed), 256), usual=usual)


@pytest.mark.parametrize("pairs, microbatches", [(256, None), (64, None), (256, 2)])
def test_nearly_all_batches_have_the_usual_shape(pairs, microbatches):
  """Those of a group, as the pipeline deals them from a window."""
  lengths = random_lengths(np.random.default_rng(0), 40 * pairs)
  batches = [[of_side[dealt] for of_side in lengths] for dealt in balance(*lengths, 40).reshape(40, pairs)]
  usual = usual_shape(packed_batch(batches[0], microbatches=microbatches))
  ours, rounded = ([packed_batch(batch, usual=given, microbatches=microbatches).passages.tokens.shape
                    for batch in batches] for given in (usual, None))
  assert max(map(ours.count, ours)) >= 38 and len(set(ours)) <= len(set(rounded))
  slots = [sum(np.prod(shape) for shape in of) for of in (ours, rounded)]
  assert slots[0] < (1 + PASSAGE_SPREAD / np.sqrt(pairs)) * slots[1]  # a step of rounding


def test_more_rows_change_no_text():
  usual = usual_shape(random_batch(0))
  packed, wider = random_batch(3), random_batch(3, usual=UsualShape(*(UsualRows(0, r.most + 9) for r in usual)))
  for of, of_wider in zip(packed[:2], wider[:2], strict=True):
    assert of.tokens.shape[1] < of_wider.tokens.shape[1]
    for number in range(256):
      np.testing.assert_array_equal(text(of, 0, number), text(of_wider, 0, number))
  for array, of_wider in zip(packed[2:], wider[2:], strict=True):
    np.testing.assert_array_equal(array, of_wider)


def test_rows_of_a_batch_that_is_not_usual():
  """Far shorter, or longer than there is room for: as without."""
  tokens = np.ones((1, 64, 5), np.int32)
  rows = pack_texts(tokens, 10, 1.4).tokens.shape[1]
  assert rows == round_rows(32, 64, 1.4) and pack_texts(tokens, 10, 1.4, UsualRows(30, 50)).tokens.shape[1] == 50
  for usual in (UsualRows(33, 50), UsualRows(20, 31)):
    assert pack_texts(tokens, 10, 1.4, usual).tokens.shape[1] == rows


def test_usual_rows_of_texts_that_are_all_alike_leave_no_room():
  texts = pack_texts(np.ones((2, 64, 5), np.int32), 10, 1.4)
  assert usual_rows(texts, 64, 1.4, 2.5) == UsualRows(32, 32)
  assert usual_rows(pack_texts(np.zeros((1, 4, 5), np.int32), 10, 1.4), 4, 1.4, 2.5) == UsualRows(0, 0)
