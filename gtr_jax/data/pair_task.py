"""The seqio task of text pairs: from texts to token ids, on the fly or through seqio's offline cache.

On the fly, only the negatives that a run uses are tokenised. `seqio_cache_tasks` writes the token ids of all of them,
before anything is cut, so that one cache serves every length and number of negatives.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from gtr_jax.data.datasets import Examples, many_at_once
from gtr_jax.data.feature_converter import exact_hash
from gtr_jax.losses.teacher import NOTHING, OfTeacher

Lengths = Mapping[str, int | tuple[int, int]]

_LISTS = {"negative_inputs": ("negative_queries",),
          "negative_targets": ("negatives", "negative_ids", "negative_keys", "negative_vector", "negative_score")}
_CACHED_LISTS = {"negative_inputs": ("negative_inputs",),
                 "negative_targets": ("negative_targets", "negative_passage_hash", "negative_text_hash")}
"""Feature -> what an example has of each text of it."""
_OF_TEACHER = ("query_vector", "passage_vector", "score", "negative_vector", "negative_score")
_CACHE_FORMAT = 6  # Raise it when hashes change: those of two caches, or of a cache and a source, meet in a batch.


class PairTask(seqio.Task):
  """Pairs as `sources` yields them -> features of token ids and hashes.

  A length of a feature with several texts is the texts' length, or (how many, length); where a run gives none, it does
  not use that feature, and no time is spent on it.

  Args:
    name: of the task.
    query_prefix: put before every query, negative ones too.
    passage_prefix: put before every passage, negative ones too.
    sample_negatives: of an example with more negatives than a run uses, draw them anew in every epoch (validation,
      which is not shuffled, takes the first); False takes the first.
    vocabulary: what all texts are read with.
    **kwargs: of `seqio.Task`.
  """

  def __init__(self, name: str, *, query_prefix: str, passage_prefix: str, sample_negatives: bool, vocabulary: Any,
               **kwargs: Any):
    self._query_prefix, self._passage_prefix = query_prefix, passage_prefix
    self._sample_negatives, self._vocabulary = sample_negatives, vocabulary
    self._tokenize_all = True
    super().__init__(name, **kwargs | {"preprocessors": [self._to_cached, seqio.CacheDatasetPlaceholder()]})

  @property
  def graph_key(self) -> tuple:
    """All that decides the graph of `features`, beside its arguments."""
    return self._query_prefix, self._passage_prefix, self._sample_negatives, self._vocabulary.file

  def get_dataset(self, *args: Any, **kwargs: Any) -> tf.data.Dataset:
    """See `seqio.Task`."""
    on_the_fly = copy.copy(self)
    on_the_fly._tokenize_all = False
    return super(PairTask, on_the_fly).get_dataset(*args, **kwargs)

  def preprocess_precache(self, dataset: tf.data.Dataset, seed: int | None = None) -> tf.data.Dataset:
    """What `seqio_cache_tasks` writes."""
    return super().preprocess_precache(dataset, seed) if self._tokenize_all else dataset

  def preprocess_postcache(self, dataset: tf.data.Dataset, sequence_length: Lengths | None,
                           seed: int | None = None) -> tf.data.Dataset:
    """Texts, or what is cached of them -> features, trimmed to length - 1 and closed with EOS."""
    nothing = {"negative_inputs": tf.zeros([0, 0], tf.int32), "negative_targets": tf.zeros([0, 0], tf.int32),
               "negative_passage_hash": tf.zeros([0], tf.int64), "negative_text_hash": tf.zeros([0], tf.int64)}

    def features(numbers, examples):
      return self.features(numbers, examples, sequence_length, seed)

    def dense(example):
      return nothing | {name: value.to_tensor() if isinstance(value, tf.RaggedTensor) else value
                        for name, value in example.items()}

    return many_at_once(dataset.enumerate(), features, dense)

  def features(self, numbers: tf.Tensor, examples: Examples, sequence_length: Lengths | None,
               seed: int | None = None, teacher: OfTeacher = NOTHING) -> Examples:
    """Texts, or what is cached of them -> features of all examples.

    Args:
      numbers: int64 `[examples]`: by seed and number the negatives of an example are drawn.
      examples: as `sources` has them, or `parse_cached`. They may name their task, as "task", string `[]`: the graph is
        then that of all tasks with the same `graph_key`.
      sequence_length: of the features.
      seed: None: nothing is drawn.
      teacher: what of it the run uses; of texts that are cached, nothing is there.

    Returns:
      `[examples, …]`, ragged: nothing is filled up. Features that the run does not use are not there. Of a teacher,
      "query_vector", "passage_vector", and of each negative "negative_vector", as `prepare.vectors` packs them, and
      "score", "negative_score", float32; "" and NaN where there is none.
    """
    cached = "query" not in examples
    texts: dict[str, Any] = self._checked(examples) if cached else {**examples, **_of_teacher(examples, teacher)}
    lists = [feature for feature in _LISTS if sequence_length is None or feature in sequence_length]
    if not cached and "negative_targets" in lists:
      texts["negative_ids"] = _filled(texts["negative_ids"], texts["negatives"])
    for feature, names in (_CACHED_LISTS if cached else _LISTS).items():
      names = tuple(name for name in names if name in texts)
      if feature in lists:
        chosen = self._choose(texts[names[0]], (sequence_length or {}).get(feature), seed, numbers)
        texts |= {name: _gathered(texts[name], chosen) for name in names}
      else:
        texts = {name: value for name, value in texts.items() if name not in names}
    return self._finish(texts if cached else self._tokenize(texts, lists), sequence_length)

  def _checked(self, examples):
    """What is cached, made with this vocabulary and these hashes."""
    examples = dict(examples)
    again, name = "run seqio_cache_tasks again with --overwrite", examples.pop("task", self.name)
    with tf.control_dependencies([
        tf.debugging.Assert(tf.reduce_all(examples["vocabulary_hash"] == self._vocabulary.hash64()), [
            name + f": was cached with another vocabulary; train with that one, or {again}"]),
        tf.debugging.Assert(tf.reduce_all(examples["cache_format"] == _CACHE_FORMAT), [
            name + f": was cached by a gtr_jax that held other texts for equal; {again}"])]):
      return _from_cached({**examples, "example_id": tf.identity(examples["example_id"])})

  def _choose(self, texts, length, seed, numbers):
    """Which of each example's texts the run uses: int64 `[examples, (texts)]`."""
    available = texts.row_lengths()
    count = tf.minimum(available, length[0]) if isinstance(length, tuple) else available
    if not self._sample_negatives or seed is None:
      return tf.ragged.range(count)
    most = tf.reduce_max(tf.concat([available, [0]], 0))
    draws = _draws(seed, numbers, most)
    order = tf.argsort(tf.where(tf.range(most) < available[:, None], draws, 2.0), stable=True)
    return tf.RaggedTensor.from_tensor(tf.cast(order, tf.int64), lengths=count)

  def _tokenize(self, examples, lists):
    """Texts, and of lists these, -> token ids, as long as they are, and hashes."""

    def encode(texts, prefix):
      if isinstance(texts, tf.RaggedTensor):
        return texts.with_flat_values(encode(texts.flat_values, prefix))
      return self._vocabulary.encode_tf(prefix + texts)

    query, passage = _number(examples["query_key"]), _number(examples["passage_key"])
    positives = examples["positives"].with_flat_values(_number(examples["positives"].flat_values))
    out = {
        "inputs": encode(examples["query"], self._query_prefix),
        "targets": encode(examples["passage"], self._passage_prefix),
        "query_hash": self._hash(examples, examples["query_id"], query),
        "passage_hash": self._hash(examples, examples["passage_id"], passage),
        "text_hash": passage,
        "known_hash": tf.concat([query[:, None], positives], 1),
        "example_id": examples["example_id"],
    }
    out |= {name: examples[name] for name in _OF_TEACHER if name in examples}
    if "negative_inputs" in lists:
      out["negative_inputs"] = encode(examples["negative_queries"], self._query_prefix)
    if "negative_targets" in lists:
      negatives = examples["negatives"]
      by_text = _number(examples["negative_keys"].flat_values)
      hashes = self._hash(examples, examples["negative_ids"].flat_values, by_text)
      out |= {"negative_targets": encode(negatives, self._passage_prefix),
              "negative_passage_hash": negatives.with_flat_values(hashes),
              "negative_text_hash": negatives.with_flat_values(by_text)}
    return out

  def _hash(self, examples, ids, by_text):
    """Of things with ids, or with none: an id counts within its task only, a text is the same everywhere."""
    in_task = tf.strings.join([examples.get("task", self.name), ids], separator="\n")
    return tf.where(tf.strings.length(ids) > 0, exact_hash(in_task), by_text)

  def query_hash(self, examples: Examples) -> tf.Tensor:
    """int64 `[examples]`, of examples as they are read."""
    if "query_hash" in examples:
      return examples["query_hash"]
    return self._hash(examples, examples["query_id"], _number(examples["query_key"]))

  def _finish(self, examples, sequence_length):
    """Trims and closes the texts."""

    def close(ids, length):
      ids = ids[..., :length - 1] if length else ids
      if ids.ragged_rank > 1:
        return ids.with_values(close(ids.values, None))
      return tf.concat([ids, tf.fill([ids.nrows(), 1], self._vocabulary.eos_id)], 1)

    def length(feature):
      value = (sequence_length or {}).get(feature)
      return value[-1] if isinstance(value, tuple) else value

    return {**examples, **{feature: close(examples[feature], length(feature))
                           for feature in ("inputs", "targets", *_LISTS) if feature in examples}}

  def _to_cached(self, dataset):
    """Every feature as `seqio_cache_tasks` can write it: of lists of texts, all tokens and how many each text has."""
    vocabulary_hash = self._vocabulary.hash64()

    def tokenized(examples):
      ids = _filled(examples["negative_ids"], examples["negatives"])
      return self._tokenize({**examples, "negative_ids": ids}, _LISTS)

    def flat(example):
      for feature in _LISTS:
        example[f"{feature}_lengths"] = tf.cast(example[feature].row_lengths(), tf.int32)
        example[feature] = example[feature].flat_values
      return {**example, "vocabulary_hash": tf.constant(vocabulary_hash, tf.int64),
              "cache_format": tf.constant(_CACHE_FORMAT, tf.int64)}

    return many_at_once(dataset, tokenized, flat)


def parse_cached(records: tf.Tensor) -> Examples:
  """Examples of records that `seqio_cache_tasks` has written of a `PairTask`."""
  rows = ["inputs", "targets", "known_hash", "negative_passage_hash", "negative_text_hash", *_LISTS]
  rows += [f"{feature}_lengths" for feature in _LISTS]
  scalar = tf.io.FixedLenFeature([], tf.int64)
  return tf.io.parse_example(records, {
      "example_id": tf.io.FixedLenFeature([], tf.string), "vocabulary_hash": scalar,
      "cache_format": tf.io.FixedLenFeature([], tf.int64, default_value=1),
      **dict.fromkeys(("query_hash", "passage_hash", "text_hash"), scalar),
      **{name: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64) for name in rows}})


def _from_cached(examples):
  out = {name: value for name, value in examples.items()
         if name not in ("vocabulary_hash", "cache_format") and not name.endswith("_lengths")}
  for feature in _LISTS:
    of_text = examples[f"{feature}_lengths"]
    texts = tf.RaggedTensor.from_row_lengths(tf.cast(examples[feature].flat_values, tf.int32),
                                             tf.cast(of_text.flat_values, tf.int64))
    out[feature] = of_text.with_values(texts)
  return {**out, "inputs": tf.cast(out["inputs"], tf.int32), "targets": tf.cast(out["targets"], tf.int32)}


def _of_teacher(examples, teacher):
  """The features of a teacher, for all negatives: of none "" and NaN."""
  out: dict[str, Any] = {}
  negatives = examples["negatives"]
  if teacher.vectors:
    own = examples["vectors"].to_tensor("", shape=[None, 2])
    out |= {"query_vector": own[:, 0], "passage_vector": own[:, 1],
            "negative_vector": _filled(examples["vectors"][:, 2:], negatives)}
  if teacher.scores:
    scores = examples["scores"].with_flat_values(tf.strings.to_number(examples["scores"].flat_values))
    out |= {"score": scores.to_tensor(math.nan, shape=[None, 1])[:, 0],
            "negative_score": _filled(scores[:, 1:], negatives, math.nan)}
  return out


def _number(keys):
  return tf.strings.to_number(keys, tf.int64)


def _gathered(texts, chosen):
  """Of the texts of each example those at the chosen places, ragged: `tf.gather` takes long to trace."""
  places = tf.repeat(texts.row_starts(), chosen.row_lengths()) + chosen.values
  return chosen.with_values(tf.gather(texts.values, places))


def _filled(ids, texts, fill=""):
  """Ids, or other things, for all of the texts: `fill` for those that have none."""
  count = texts.row_lengths()
  ids = tf.concat([ids, texts.with_values(tf.fill(tf.shape(texts.values), fill))], 1)
  return _gathered(ids, tf.ragged.range(count))


def _draws(seed, numbers, most):
  """float64 `[examples, most]` in [0, 1): SplitMix64 of seed, number and place."""

  def mixed(x):
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
      x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64)))
      x *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(31, tf.uint64)))

  golden = tf.constant(0x9E3779B97F4A7C15, tf.uint64)
  of_example = mixed(tf.cast(numbers, tf.uint64) + mixed(tf.cast(seed, tf.uint64) * golden + golden))
  bits = mixed(of_example[:, None] + (tf.cast(tf.range(most), tf.uint64) + tf.constant(1, tf.uint64)) * golden)
  return tf.cast(tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64)), tf.float64) * 2.0**-53
