"""The seqio task of text pairs: from texts to token ids, on the fly or through seqio's offline cache.

On the fly, only the negatives that a run uses are tokenised. `seqio_cache_tasks` writes the token ids of all of them,
before anything is cut, so that one cache serves every length and number of negatives.
"""

import copy
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from gtr_jax.data.text_hash import exact_hash, text_hash

Lengths = Mapping[str, int | tuple[int, int]]

_LISTS = {"negative_inputs": ("negative_queries",), "negative_targets": ("negatives", "negative_ids")}
_CACHED_LISTS = {"negative_inputs": ("negative_inputs",),
                 "negative_targets": ("negative_targets", "negative_passage_hash", "negative_text_hash")}
"""Feature -> what an example has of each text of it."""
_CACHE_FORMAT = 2  # Raise it when hashes change: those of two caches, or of a cache and a source, meet in a batch.


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
    """All that decides the graph of `numbered_features`, beside its arguments."""
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
    return self.numbered_features(dataset.enumerate(), sequence_length, seed)

  def numbered_features(self, dataset: tf.data.Dataset, sequence_length: Lengths | None,
                        seed: int | None = None) -> tf.data.Dataset:
    """The same of (number, example) pairs: by seed and number the negatives of an example are drawn.

    An example may name its task, as "task": the graph is then that of all tasks with the same `graph_key`.
    """
    cached = "query" not in dataset.element_spec[1]
    vocabulary_hash = self._vocabulary.hash64() if cached else None

    @tf.autograph.experimental.do_not_convert  # It would wrap an InputError in its own.
    def convert(number, ex):
      ex = dict(ex)
      if cached:
        again, name = "run seqio_cache_tasks again with --overwrite", ex.pop("task", self.name)
        with tf.control_dependencies([
            tf.debugging.Assert(ex["vocabulary_hash"] == vocabulary_hash, [
                name + f": was cached with another vocabulary; train with that one, or {again}"]),
            tf.debugging.Assert(ex.get("cache_format", 1) == _CACHE_FORMAT, [
                name + f": was cached by a gtr_jax that held other texts for equal; {again}"])]):
          ex = _from_cached({**ex, "inputs": tf.identity(ex["inputs"])})
      else:
        ex = {**ex, "negative_ids": _filled(ex["negative_ids"], tf.size(ex["negatives"]))}
      for feature, names in (_CACHED_LISTS if cached else _LISTS).items():
        chosen = self._choose(ex[names[0]], feature, sequence_length, seed, number)
        ex = {**ex, **{name: tf.gather(ex[name], chosen) for name in names}}
      return self._finish(ex if cached else self._tokenize(ex), sequence_length)

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def _choose(self, texts, feature, sequence_length, seed, number):
    """Which of an example's texts the run uses: indices."""
    available = texts.nrows() if isinstance(texts, tf.RaggedTensor) else tf.size(texts, tf.int64)
    length = (None, None) if sequence_length is None else sequence_length.get(feature, (0, 0))
    count = length[0] if isinstance(length, tuple) else None
    count = available if count is None else tf.minimum(available, count)
    if not self._sample_negatives or seed is None:
      return tf.range(count)
    draw = tf.random.stateless_uniform([available], seed=tf.stack([tf.cast(seed, tf.int64), number]))
    return tf.argsort(draw)[:count]

  def _tokenize(self, ex):
    """Texts -> token ids, as long as they are, and hashes."""
    encode = self._vocabulary.encode_tf

    def hash_of(ids, by_text):
      return self._hash(ex, ids, by_text)

    # At once: an example's texts are so short that most of the time goes into the calls.
    by_text = text_hash(tf.concat([[ex["query"], ex["passage"]], ex["negatives"]], 0))
    query, passage, negatives = by_text[0], by_text[1], by_text[2:]
    return {
        "inputs": encode(self._query_prefix + ex["query"]),
        "targets": encode(self._passage_prefix + ex["passage"]),
        "negative_inputs": encode(self._query_prefix + ex["negative_queries"]),
        "negative_targets": encode(self._passage_prefix + ex["negatives"]),
        "query_hash": hash_of(ex["query_id"], query),
        "passage_hash": hash_of(ex["passage_id"], passage),
        "text_hash": passage,
        "negative_passage_hash": hash_of(ex["negative_ids"], negatives),
        "negative_text_hash": negatives,
        "example_id": ex["example_id"],
    }

  def _hash(self, ex, ids, by_text):
    """Of things with ids, or with none: an id counts within its task only, a text is the same everywhere."""
    in_task = tf.strings.join([ex.get("task", self.name), ids], separator="\n")
    return tf.where(tf.strings.length(ids) > 0, exact_hash(in_task), by_text)

  def query_hash(self, ex: Mapping[str, Any]) -> tf.Tensor:
    """int64, of an example as it is read."""
    return ex["query_hash"] if "query_hash" in ex else self._hash(ex, ex["query_id"], text_hash(ex["query"]))

  def _finish(self, ex, sequence_length):
    """Trims and closes the texts; several of one feature become `[texts, longest]`, padded with 0."""

    def length(feature):
      value = (sequence_length or {}).get(feature)
      return value[-1] if isinstance(value, tuple) else value

    def close(feature):
      ids = ex[feature]
      if isinstance(ids, tf.RaggedTensor):
        ids = ids[:, :length(feature) - 1] if length(feature) else ids
        return tf.concat([ids, tf.fill([ids.nrows(), 1], self._vocabulary.eos_id)], 1).to_tensor()
      return tf.concat([ids[:length(feature) - 1] if length(feature) else ids, [self._vocabulary.eos_id]], 0)

    return {**ex, **{feature: close(feature) for feature in ("inputs", "targets", *_LISTS)}}

  def _to_cached(self, dataset):
    """Every feature as `seqio_cache_tasks` can write it: of lists of texts, all tokens and how many each text has."""
    vocabulary_hash = self._vocabulary.hash64()

    @tf.autograph.experimental.do_not_convert
    def convert(ex):
      out = self._tokenize({**ex, "negative_ids": _filled(ex["negative_ids"], tf.size(ex["negatives"]))})
      for feature in _LISTS:
        out[f"{feature}_lengths"] = tf.cast(out[feature].row_lengths(), tf.int32)
        out[feature] = out[feature].flat_values
      return {**out, "vocabulary_hash": tf.constant(vocabulary_hash, tf.int64),
              "cache_format": tf.constant(_CACHE_FORMAT, tf.int64)}

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def cached_description() -> dict[str, Any]:
  """How `tf.io.parse_single_example` reads a record that `seqio_cache_tasks` has written of a `PairTask`."""
  rows = ["inputs", "targets", "negative_passage_hash", "negative_text_hash", *_LISTS]
  rows += [f"{feature}_lengths" for feature in _LISTS]
  scalar = tf.io.FixedLenFeature([], tf.int64)
  return {
      "example_id": tf.io.FixedLenFeature([], tf.string), "vocabulary_hash": scalar,
      "cache_format": tf.io.FixedLenFeature([], tf.int64, default_value=1),
      **dict.fromkeys(("query_hash", "passage_hash", "text_hash"), scalar),
      **dict.fromkeys(rows, tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True))}


def _from_cached(ex):
  out = {name: value for name, value in ex.items()
         if name not in ("vocabulary_hash", "cache_format") and not name.endswith("_lengths")}
  for feature in _LISTS:
    out[feature] = tf.RaggedTensor.from_row_lengths(tf.cast(ex[feature], tf.int32),
                                                    tf.cast(ex[f"{feature}_lengths"], tf.int64))
  return {**out, "inputs": tf.cast(out["inputs"], tf.int32), "targets": tf.cast(out["targets"], tf.int32)}


def _filled(ids, count):
  """Ids for all of the negatives: "" for those that have none."""
  ids = ids[:count]
  return tf.concat([ids, tf.fill([count - tf.size(ids)], "")], 0)
