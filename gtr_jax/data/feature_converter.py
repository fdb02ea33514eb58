"""seqio task features -> the model features of a dual encoder, under T5X Retrieval's names."""

import math
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from gtr_jax.losses.teacher import NOTHING, OfTeacher

_HASHES = {"query_hash": "inputs", "passage_hash": "targets", "text_hash": "targets"}
_NEGATIVE_HASHES = ("negative_passage_hash", "negative_text_hash")


class DualEncoderFeatureConverter(seqio.FeatureConverter):
  """One example -> `left_…`, `right_…` and, if asked for, a static number of negatives.

  | task feature | model feature | |
  |---|---|---|
  | `inputs` | `left_encoder_input_tokens` | int32 `[query length]` |
  | `targets` | `right_encoder_input_tokens` | int32 `[passage length]` |
  | `negative_targets` | `right_negative_encoder_input_tokens` | int32 `[negatives, passage length]` |
  | `negative_inputs` | `left_negative_encoder_input_tokens` | int32 `[negative queries, query length]` |
  | `query_hash`, `passage_hash`, `text_hash` | the same | int64 |
  | `negative_passage_hash`, `negative_text_hash` | the same | int64 `[negatives]` |
  | `known_hash` | the same | int64 `[known]` |
  | `example_id` | the same | string |

  Of an example with more negatives than asked for the first are taken; where it has fewer, rows of zeros follow. Hashes
  that a task lacks are made from the token ids, so that any seqio task with `inputs` and `targets` will do; a missing
  `example_id` is empty.

  Args:
    negatives_per_example: hard negatives.
    negative_queries_per_example: likewise.
    known_per_example: texts that an example knows to be no negatives: its query, and other passages that answer it.
    teacher: what of a teacher `convert` keeps; seqio's own iterator has nothing of it.
    **kwargs: of seqio.
  """

  def __init__(self, negatives_per_example: int = 0, negative_queries_per_example: int = 0, known_per_example: int = 1,
               teacher: OfTeacher = NOTHING, **kwargs: Any):
    self.teacher = teacher
    self._negatives, self._known = negatives_per_example, known_per_example
    self._negative_queries = negative_queries_per_example
    spec = self.FeatureSpec
    tokens, rows = spec(dtype=tf.int32), spec(dtype=tf.int32, rank=2, sequence_dim=1)
    self.TASK_FEATURES = {"inputs": tokens, "targets": tokens}
    self.MODEL_FEATURES = {"left_encoder_input_tokens": tokens, "right_encoder_input_tokens": tokens,
                           "example_id": spec(dtype=tf.string, rank=0)}
    self.MODEL_FEATURES |= {name: spec(dtype=tf.int64, rank=0) for name in _HASHES}
    self.MODEL_FEATURES["known_hash"] = spec(dtype=tf.int64)
    if negatives_per_example:
      self.TASK_FEATURES["negative_targets"] = rows
      self.MODEL_FEATURES["right_negative_encoder_input_tokens"] = rows
      self.MODEL_FEATURES |= {name: spec(dtype=tf.int64) for name in _NEGATIVE_HASHES}
    if negative_queries_per_example:
      self.TASK_FEATURES["negative_inputs"] = rows
      self.MODEL_FEATURES["left_negative_encoder_input_tokens"] = rows
    self.PACKING_FEATURE_DTYPES: dict[str, tf.DType] = {}
    super().__init__(pack=False, **kwargs)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    lengths = {"left_encoder_input_tokens": task_feature_lengths["inputs"],
               "right_encoder_input_tokens": task_feature_lengths["targets"], "example_id": 1}
    lengths |= dict.fromkeys(_HASHES, 1) | {"known_hash": self._known}
    if self._negatives:
      lengths["right_negative_encoder_input_tokens"] = task_feature_lengths["negative_targets"]
      lengths |= dict.fromkeys(_NEGATIVE_HASHES, self._negatives)
    if self._negative_queries:
      lengths["left_negative_encoder_input_tokens"] = task_feature_lengths["negative_inputs"]
    return lengths

  def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
    # Nothing in it to convert, and tracing is faster without.
    return ds.map(tf.autograph.experimental.do_not_convert(lambda ex: self.convert(ex, task_feature_lengths)),
                  num_parallel_calls=tf.data.AUTOTUNE)

  def convert(self, features: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, tf.Tensor]:
    """Of one example; or of several, ragged, with an axis more."""
    out = {"left_encoder_input_tokens": _fit(features["inputs"], lengths["inputs"]),
           "right_encoder_input_tokens": _fit(features["targets"], lengths["targets"]),
           "example_id": features.get("example_id", tf.constant(""))}
    for name, tokens in _HASHES.items():
      out[name] = features[name] if name in features else _token_hash(features[tokens])
    known = features["known_hash"] if "known_hash" in features else _token_hash(features["inputs"])[..., None]
    out["known_hash"] = _fit(known, self._known)
    if self._negatives:
      negatives = features["negative_targets"]
      out["right_negative_encoder_input_tokens"] = _fit(negatives, self._negatives, lengths["negative_targets"])
      for name in _NEGATIVE_HASHES:
        out[name] = _fit(features[name] if name in features else _token_hash(negatives), self._negatives)
    out |= {name: features[name] for name in ("query_vector", "passage_vector", "score") if name in features}
    if self._negatives:
      out |= {name: _fit(features[name], self._negatives, fill=fill)
              for name, fill in (("negative_vector", ""), ("negative_score", math.nan)) if name in features}
    if self._negative_queries:
      out["left_negative_encoder_input_tokens"] = _fit(
          features["negative_inputs"], self._negative_queries, lengths["negative_inputs"])
    return out


def _fit(tensor: tf.Tensor | tf.RaggedTensor, *shape: int, fill: Any = None) -> tf.Tensor:
  """Cuts each axis to `shape`, or fills it up with zeros; of a ragged tensor those after the first, or with `fill`."""
  if isinstance(tensor, tf.RaggedTensor):
    return tensor.to_tensor(fill, shape=(None, *shape))
  tensor = tensor[tuple(slice(n) for n in shape)]
  tensor = tf.pad(tensor, [(0, n - tf.shape(tensor)[i]) for i, n in enumerate(shape)])
  return tf.ensure_shape(tensor, shape)


def exact_hash(text: tf.Tensor) -> tf.Tensor:
  """int64 hashes of strings, of their shape."""
  return tf.strings.to_hash_bucket_fast(text, 2**63 - 1)


def _token_hash(tokens: tf.Tensor) -> tf.Tensor:
  """int64 hash of the token ids along the last axis, whatever the padding after them."""
  pieces = tf.where(tokens != 0, tf.strings.as_string(tokens), "")
  text = tf.strings.reduce_join(tf.strings.join([pieces, tf.where(tokens != 0, " ", "")]), axis=-1)
  return exact_hash(text)
