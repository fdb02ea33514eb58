"""Declares tasks of text pairs: a source, which of its fields are query and passage, and a vocabulary.

    add_pair_task(
        "questions", jsonl(train="questions/train-*.jsonl.gz", validation="questions/dev.jsonl"),
        query="question", passage=("title", "text"), negatives="negatives", vocabulary="questions/spiece.model")

Declaring reads no file. Paths are relative to the data root unless absolute. The result is an ordinary seqio task, to
be mixed with `seqio.MixtureRegistry.add("mix", [("questions", 1.0), ("titles", 3.0)])`.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated

import seqio
import tensorflow as tf
from etils import epath

from gtr_jax.data import run_vocabulary, sources
from gtr_jax.data.json_examples import Fields
from gtr_jax.data.pair_task import PairTask
from gtr_jax.errors import InputError
from gtr_jax.text.tokenizer import Tokenizer
from gtr_jax.values.check import check
from gtr_jax.values.ranges import Range

Source = Callable[..., seqio.DataSource]


def jsonl(**splits: str | Sequence[str]) -> Source:
  """JSONL or JSONL.gz, one object a line: the files of each split, as a path, a pattern (`*`) or a list of them.

  An object's negatives are absent, one string, a list of strings, or a list of objects with the passage's own fields.
  """
  return functools.partial(sources.JsonlSource, splits)


def tfrecord(**splits: str | Sequence[str]) -> Source:
  """TFRecord of tf.train.Example: the files of each split. A feature is a text, or any number of them."""
  return functools.partial(sources.TfrecordSource, splits)


def prepared(name: str, *splits: str) -> Source:
  """What `gtr-jax prepare … --name NAME` has written, and which of its splits to use (by default "train").

  Its records name their own fields: a task of it need not declare any.
  """
  return functools.partial(sources.PreparedSource, name, splits or ("train",))


def tfds(name: str, **splits: str) -> Source:
  """A dataset of TensorFlow Datasets, `name:version`, and which of its splits to use, as `train="train[:90%]"`.

  It has to be built already, below `tensorflow_datasets` in the data root.
  """
  return functools.partial(sources.TfdsSource, name, splits)


def add_pair_task(
    name: str, source: Source, *, vocabulary: str, query: str | Sequence[str] = "query",
    passage: str | Sequence[str] = "passage", extra_ids: int = 0, negatives: str | None = None,
    negative_queries: str | None = None, query_id: str | None = None, passage_id: str | None = None,
    negative_ids: str | None = None, query_prefix: str = "", passage_prefix: str = "",
    sample_negatives: bool = False, prepare: str | None = None, shuffle_buffer_size: int = 1024) -> seqio.Task:
  """Registers a seqio task whose examples are a query, a passage that answers it, and any number of hard negatives.

  Args:
    name: of the task.
    source: `jsonl(…)`, `tfrecord(…)`, `tfds(…)` or `prepared(…)`.
    query: the field, or the fields, that make the query; several are joined with a space.
    passage: the same for the passage.
    vocabulary: path of a SentencePiece model, unless the run gives another one.
    extra_ids: sentinel ids after the pieces of `vocabulary` (the released T5 `spiece.model`: 100).
    negatives: field of the hard negatives.
    negative_queries: field of queries that the passage does not answer.
    query_id: field of the query's id. Pairs with the same id, or without one equal texts, are never each other's
      negatives. The same for `passage_id` and `negative_ids`.
    passage_id: field of the passage's id.
    negative_ids: field of the negatives' ids, as many as negatives.
    query_prefix: put before every query, negative ones too.
    passage_prefix: put before every passage, negative ones too.
    sample_negatives: where an example has more negatives than a run uses, draw them anew in every epoch instead of
      taking the first.
    prepare: the command that makes the source's files, for the message when they are not there.
    shuffle_buffer_size: examples shuffled in memory by seqio's own iterator, as T5X uses it; our trainer needs none.

  Returns:
    The task. Its features are `inputs`, `targets` int32 `[length]`, `negative_targets`, `negative_inputs` int32
    `[negatives, length]` padded with 0, the hashes of `feature_converter`, and `example_id` (`file:line`).
  """
  fields = Fields(_names(query), _names(passage), negatives, negative_queries, query_id, passage_id, negative_ids)
  tokens = RunVocabulary(vocabulary, extra_ids, prepare)
  as_it_is = seqio.PassThroughVocabulary(size=0)

  def number(rank):
    return seqio.Feature(as_it_is, add_eos=False, dtype=tf.int64, rank=rank)

  return seqio.TaskRegistry.add(
      name,
      source(fields=fields, prepare=prepare),
      output_features={
          "inputs": seqio.Feature(tokens),
          "targets": seqio.Feature(tokens),
          "negative_inputs": seqio.Feature(tokens, rank=2),
          "negative_targets": seqio.Feature(tokens, rank=2),
          "query_hash": number(0),
          "passage_hash": number(0),
          "text_hash": number(0),
          "known_hash": number(1),
          "negative_passage_hash": number(1),
          "negative_text_hash": number(1),
          "example_id": seqio.Feature(as_it_is, add_eos=False, dtype=tf.string, rank=0),
      },
      shuffle_buffer_size=shuffle_buffer_size,
      task_cls=PairTask,
      query_prefix=query_prefix,
      passage_prefix=passage_prefix,
      sample_negatives=sample_negatives,
      vocabulary=tokens,
  )


def rate_by_size(most: float) -> Callable[[seqio.Task | seqio.Mixture], float]:
  """A mixing rate: the number of a task's training pairs, but `most` where it has more.

  The rate raises InputError for a task that has no training split, or whose source cannot say how many pairs it has.
  """
  check(most, Annotated[float, Range(above=0)], "rate_by_size: most")

  def rate(task):
    instead = "give its rate in the mixture as a number"
    if "train" not in task.splits:
      raise InputError(f"{task.name}: no split 'train' whose size could be its rate, only "
                       f"{', '.join(sorted(task.splits)) or 'none'}; {instead}")
    cached = getattr(task, "cache_dir", None)  # A mixture in a mixture has none.
    size = task.get_cached_stats("train")["examples"] if cached else task.num_input_examples("train")
    if size is None:
      raise InputError(f"{task.name}: its source does not say how many examples it has; {instead}")
    return float(min(size, most))

  return rate


def _names(field: str | Sequence[str]) -> tuple[str, ...]:
  return (field,) if isinstance(field, str) else tuple(field)


class RunVocabulary(seqio.Vocabulary):
  """The vocabulary that the run reads with (`run_vocabulary`), or else the task's own; opened when first used."""

  def __init__(self, path: str, extra_ids: int, prepare: str | None):
    self._path, self._task_extra_ids, self._prepare = path, extra_ids, prepare
    super().__init__()

  @property
  def file(self) -> run_vocabulary.VocabularyFile:
    """The file in use now."""
    return run_vocabulary.vocabulary_file(self._path, self._task_extra_ids)

  @property
  def opened_file(self) -> run_vocabulary.VocabularyFile:
    """The same; InputError if it is not there."""
    file = self.file
    if not file.path:
      raise InputError("prepared data has no vocabulary of its own: set VOCABULARY to a SentencePiece model (and "
                       "EXTRA_IDS to its sentinels, of T5's 100)")
    if not epath.Path(file.path).exists():
      hint = f"run: {self._prepare}" if self._prepare else "give the path of a SentencePiece model"
      raise InputError(f"{file.path}: no such vocabulary; {hint}")
    return file

  @property
  def _opened(self) -> seqio.SentencePieceVocabulary:
    return _open(self.opened_file)

  def hash64(self) -> int:
    """Of what decides the ids: the file's bytes and the number of sentinels."""
    file = self.opened_file
    digest = hashlib.sha256(epath.Path(file.path).read_bytes() + b" %d" % file.extra_ids).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

  @property
  def extra_ids(self) -> int:
    return self.file.extra_ids

  @property
  def _base_vocab_size(self) -> int:
    return self._opened.vocab_size - self.extra_ids

  @property
  def bos_id(self) -> int:
    return self._opened.bos_id

  @property
  def eos_id(self) -> int:
    return self._opened.eos_id

  @property
  def unk_id(self) -> int:
    return self._opened.unk_id

  def _encode(self, s):
    return self._opened.encode(s)

  def _decode(self, ids):
    return self._opened.decode(ids)

  def _encode_tf(self, s):
    return self._opened.encode_tf(s)

  def _decode_tf(self, ids):
    return self._opened.decode_tf(ids)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, RunVocabulary) and self.file == other.file

  def __hash__(self) -> int:
    return hash(self.file)

  def __str__(self) -> str:
    return f"RunVocabulary({self._path!r})"


@functools.lru_cache(maxsize=8)
def _open(file: run_vocabulary.VocabularyFile) -> seqio.SentencePieceVocabulary:
  Tokenizer(file.path, file.extra_ids)  # Raises InputError where it is no vocabulary of T5's kind.
  return seqio.SentencePieceVocabulary(file.path, file.extra_ids)
