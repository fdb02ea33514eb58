"""Hashes of texts in TensorFlow's graph: equal where `text.same_text` says that the texts are."""

import tensorflow as tf
import tensorflow_text

from gtr_jax.text.same_text import CLOSING

_SPACE = r"\t-\r\x1c-\x1f\x{85}\x{1680}\x{2028}\x{2029}"  # What str.split parts at and case folding makes no blank of.
_SPACES = rf"[{_SPACE}][ {_SPACE}]*| [ {_SPACE}]+"  # Single blanks are no match: each would cost as much as the rest.
_CLOSING = f"([^{CLOSING}])[{CLOSING}]+$"  # A text of nothing else is itself.


def exact_hash(text: tf.Tensor) -> tf.Tensor:
  """int64 hashes of strings, of their shape."""
  return tf.strings.to_hash_bucket_fast(text, 2**63 - 1)


def text_hash(text: tf.Tensor) -> tf.Tensor:
  """int64 hashes that equal texts share."""
  return exact_hash(folded(text))


def folded(text: tf.Tensor) -> tf.Tensor:
  """`text.same_text.folded` of strings in UTF-8."""
  text = tensorflow_text.case_fold_utf8(text)  # toNFKC_Casefold, whatever its name says.
  text = tf.strings.strip(tf.strings.regex_replace(text, _SPACES, " "))
  return tf.strings.regex_replace(text, _CLOSING, r"\1")
