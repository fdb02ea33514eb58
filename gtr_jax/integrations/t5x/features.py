"""The feature converter that T5X asks a model for."""

from collections.abc import Mapping

import tensorflow as tf

from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.errors import InputError


class FeatureConverter(DualEncoderFeatureConverter):
  """`DualEncoderFeatureConverter` with what jax can hold: hashes are two uint32, `[..., 2]`, and no example ids.

  Args:
    pack: T5X's flag; must be False.
    use_custom_packing_ops: T5X's flag, of packing.
    negatives_per_example: as in `DualEncoderFeatureConverter`.
    negative_queries_per_example: likewise.
    known_per_example: likewise.

  Raises:
    InputError: for `pack`.
  """

  def __init__(self, pack: bool = False, use_custom_packing_ops: bool = False, *, negatives_per_example: int = 0,
               negative_queries_per_example: int = 0, known_per_example: int = 1):
    if pack:
      raise InputError("pack=True: T5X would join the texts of several pairs into one example, and the loss needs one "
                       "vector for each; bind utils.DatasetConfig.pack = False in the scopes train/ and train_eval/")
    del use_custom_packing_ops
    super().__init__(negatives_per_example, negative_queries_per_example, known_per_example)
    del self.MODEL_FEATURES["example_id"]
    for name, spec in self.MODEL_FEATURES.items():
      if spec.dtype == tf.int64:
        self.MODEL_FEATURES[name] = self.FeatureSpec(tf.uint32, rank=spec.rank + 1)

  def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int | tuple[int, int]]) -> tf.data.Dataset:
    """Converts. A length may be (how many texts, their length): T5X gives the task and this the same lengths."""
    lengths = {name: length[-1] if isinstance(length, list | tuple) else length
               for name, length in task_feature_lengths.items()}
    return super().__call__(ds, lengths)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    lengths = dict(super().get_model_feature_lengths(task_feature_lengths))
    del lengths["example_id"]
    # A hash was a number and is two now; of several hashes there stay as many.
    hashes = (name for name, spec in self.MODEL_FEATURES.items() if spec.dtype == tf.uint32 and spec.rank == 1)
    return lengths | dict.fromkeys(hashes, 2)

  def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
    def to_jax(ex):
      return {name: tf.bitcast(value, tf.uint32) if value.dtype == tf.int64 else value
              for name, value in ex.items() if name != "example_id"}

    return super()._convert_features(ds, task_feature_lengths).map(to_jax, num_parallel_calls=tf.data.AUTOTUNE)
