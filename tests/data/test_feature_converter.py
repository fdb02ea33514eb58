"""Task features -> model features: names, static shapes, order of negatives, hashes; also through mixtures."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from tiny_text import pairs, task_name, words, write_jsonl

from gtr_jax.data.examples import add_pair_task, jsonl
from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.text.batch import make_batch, split_hash

pytest_plugins = "data_fixtures"

LENGTHS = {"inputs": 4, "targets": 5}


def dataset(*rows):
  """Examples with token ids alone; `negative_targets` has as many rows as given."""
  spec = {"inputs": tf.TensorSpec([None], tf.int32), "targets": tf.TensorSpec([None], tf.int32),
          "negative_targets": tf.TensorSpec([None, None], tf.int32),
          "negative_inputs": tf.TensorSpec([None, None], tf.int32)}
  return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=spec)


def row(inputs, targets, negatives=(), negative_queries=()):
  def rows(texts):
    longest = max(map(len, texts), default=0)
    return np.array([[*t, *[0] * (longest - len(t))] for t in texts], np.int32).reshape(len(texts), longest)

  return {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32),
          "negative_targets": rows(negatives), "negative_inputs": rows(negative_queries)}


def convert(converter, *rows, **lengths):
  return list(converter(dataset(*rows), LENGTHS | lengths).as_numpy_iterator())


def test_without_negatives():
  out, = convert(DualEncoderFeatureConverter(), row([5, 1], [7, 8, 1], [[9, 1]]))
  assert set(out) == {"left_encoder_input_tokens", "right_encoder_input_tokens", "query_hash", "passage_hash",
                      "text_hash", "known_hash", "example_id"}
  assert out["left_encoder_input_tokens"].tolist() == [5, 1, 0, 0]
  assert out["right_encoder_input_tokens"].tolist() == [7, 8, 1, 0, 0]
  assert out["query_hash"].dtype == np.int64 and out["query_hash"].shape == ()


def test_a_static_number_of_negatives_the_first_ones_in_order():
  none, one, three = convert(
      DualEncoderFeatureConverter(negatives_per_example=2, negative_queries_per_example=1),
      row([5, 1], [7, 1]), row([5, 1], [7, 1], [[9, 1]], [[6, 6, 1], [4, 1]]),
      row([5, 1], [7, 1], [[9, 1], [8, 8, 8, 1], [7, 1]]), negative_targets=5, negative_inputs=4)
  name = "right_negative_encoder_input_tokens"
  assert none[name].tolist() == [[0] * 5] * 2
  assert one[name].tolist() == [[9, 1, 0, 0, 0], [0] * 5]
  assert three[name].tolist() == [[9, 1, 0, 0, 0], [8, 8, 8, 1, 0]]
  assert one["left_negative_encoder_input_tokens"].tolist() == [[6, 6, 1, 0]]
  assert three["left_negative_encoder_input_tokens"].tolist() == [[0] * 4]
  assert one["negative_text_hash"][0] == three["negative_text_hash"][0] != three["negative_text_hash"][1]
  assert three["negative_passage_hash"].shape == three["negative_text_hash"].shape == (2,)


def test_tasks_without_hashes_get_them_from_their_tokens():
  a, b, c = convert(DualEncoderFeatureConverter(negatives_per_example=2),
                    row([5, 1], [7, 8, 1], [[9, 1], [7, 8, 1]]), row([5, 1], [78, 1], [[7, 8, 1]]),
                    row([51], [7, 8, 1]), negative_targets=5)
  assert a["query_hash"] == b["query_hash"] != c["query_hash"]
  assert a["text_hash"] == a["passage_hash"] == c["text_hash"] != b["text_hash"]
  # Padding does not count: the second row of `a` is padded no further than its first, that of `b` not at all.
  assert a["negative_text_hash"][1] == b["negative_text_hash"][0] == a["text_hash"]


def test_too_long_or_undeclared_features_are_refused():
  with pytest.raises(ValueError, match="negative_targets"):
    convert(DualEncoderFeatureConverter(negatives_per_example=1), row([5, 1], [7, 1]))
  with pytest.raises(ValueError, match="extra features"):
    convert(DualEncoderFeatureConverter(), row([5, 1], [7, 1]), negative_targets=5)
  with pytest.raises(tf.errors.InvalidArgumentError, match="length"):
    convert(DualEncoderFeatureConverter(), row([5, 5, 5, 5, 1], [7, 1]))


def test_a_mixture_of_tasks_with_and_without_negatives_becomes_a_batch(data_dir, vocabulary):
  rows = pairs(40)
  write_jsonl(data_dir / "plain.jsonl", rows[:20])
  write_jsonl(data_dir / "hard.jsonl", [r | {"negatives": [words(4, f"n{i}"), rows[20 + (i + 1) % 20]["passage"]]}
                                        for i, r in enumerate(rows[20:])])
  plain, hard = task_name(), task_name()
  fields = {"query": "query", "passage": "passage", "vocabulary": vocabulary}
  add_pair_task(plain, jsonl(train="plain.jsonl"), **fields)
  add_pair_task(hard, jsonl(train="hard.jsonl"), negatives="negatives", **fields)
  mixture = task_name()
  seqio.MixtureRegistry.add(mixture, [(plain, 1.0), (hard, 3.0)])
  # As T5X calls it: every length a plain number.
  lengths = {"inputs": 16, "targets": 32, "negative_targets": 32}
  converter = DualEncoderFeatureConverter(negatives_per_example=3)
  ds = seqio.get_dataset(mixture, lengths, converter, shuffle=True, seed=1, num_epochs=None).batch(64)
  features = next(ds.as_numpy_iterator())
  ids = [i.decode().split(":")[0] for i in features.pop("example_id")]
  assert 0.6 < np.mean([i == "hard.jsonl" for i in ids]) < 0.9

  batch = make_batch(features, groups=2)
  assert batch.queries.tokens.shape == (2, 32, 16) and batch.passages.tokens.shape == (2, 32 * 4, 32)
  is_hard = np.array([i == "hard.jsonl" for i in ids]).reshape(2, 32)
  np.testing.assert_array_equal(batch.negative_valid.reshape(2, 32, 3),
                                np.stack([is_hard, is_hard, np.zeros_like(is_hard)], -1))
  np.testing.assert_array_equal(batch.text_hash[:, :32], split_hash(features["text_hash"]).reshape(2, 32, 2))
  # The second negative of each hard pair is the positive of the next: equal text hash, equal tokens.
  same_hash, same_tokens = ((x[:, 32:].reshape(2, 32, 3, -1)[is_hard, 1][:, None] == x[:, :32].reshape(64, -1)).all(-1)
                            for x in (batch.text_hash, batch.passages.tokens))
  np.testing.assert_array_equal(same_hash, same_tokens)
  assert same_hash.any(1).sum() > is_hard.sum() / 2 and same_hash.sum(1).max() < 16
  assert (batch.passages.segment_ids.max(-1) >= 0).all()
