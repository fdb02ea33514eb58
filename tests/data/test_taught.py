"""What a teacher says of texts comes into batches beside the very texts, however these are drawn, cut and packed."""

import itertools
import math
import random

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from tiny_text import task_name, words
from toy_source import ToySource, write

from gtr_jax.data.examples import add_pair_task, prepared
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.errors import InputError
from gtr_jax.losses.teacher import OfTeacher
from gtr_jax.prepare import engine
from gtr_jax.prepare.manifests import Settings
from gtr_jax.prepare.vectors import packed
from gtr_jax.text.tokenizer import Tokenizer

pytest_plugins = "data_fixtures"

LENGTHS = {"inputs": 16, "targets": 24}
DIM = 3


def vector(text):
  return [random.Random(f"{text} {i}").uniform(-1, 1) for i in range(DIM)]


def score(query, passage):
  return random.Random(f"{query} {passage}").uniform(-9, 9)


def rows(number, has=lambda i: True):
  """Of every fourth pair, and of every third negative, the teacher has said nothing."""
  out = []
  for i in range(number):
    query, passage = (f"{side}{i} " + words(5, f"{side}{i}") for side in "qp")
    negatives = [f"n{i}_{k} " + words(6, f"n{i} {k}") for k in range(i % 4)]
    says = [has(i)] + [has(i) and (i + k) % 3 > 0 for k in range(len(negatives))]
    out.append({"query": query, "passage": passage, "negatives": negatives,
                "scores": [score(query, text) if said else math.nan
                           for text, said in zip([passage, *negatives], says, strict=True)],
                "vectors": [packed(vector(text)) if said else "" for text, said in zip(
                    [query, passage, *negatives], [has(i), *says], strict=True)]})
  return out


@pytest.fixture
def task(data_dir, tmp_path, vocabulary):
  """Registers a task of prepared rows; returns its name, and what is known of each text by its tokens."""

  def make(given, **options):
    name = task_name()
    engine.prepare(ToySource((write(tmp_path / f"{name}.jsonl", given),)), Settings(name), processes=1,
                   say=lambda line: None)
    add_pair_task(name, prepared(name), vocabulary=vocabulary, **options)
    tokenizer, known = Tokenizer(vocabulary), {}
    for row in given:
      texts = [row["query"], row["passage"], *row["negatives"]]
      for text, of, vec in zip(texts, [math.nan, *row["scores"]], row["vectors"], strict=True):
        length = LENGTHS["inputs" if text == row["query"] else "targets"]
        known[tuple(tokenizer.encode([text], length)[0].tolist())] = vector(text) if vec else [0.0] * DIM, of
    return name, known

  return make


def said(batch, known):
  """Checks each text of a batch without microbatches; returns how many vectors and scores there were."""
  vectors, scores = 0, 0
  for side, of_side in ((batch.queries, batch.teacher.queries), (batch.passages, batch.teacher.passages)):
    for g, i in np.ndindex(of_side.shape[:2]):
      tokens = tuple(side.tokens[g][side.segment_ids[g] == i + 1].tolist())
      expected, score_of = known[tokens] if tokens else ([0.0] * DIM, math.nan)
      np.testing.assert_allclose(of_side[g, i], expected, rtol=1e-6)
      vectors += any(expected)
      if side is batch.passages:
        np.testing.assert_allclose(batch.teacher.scores[g, i], score_of, rtol=1e-6)
        scores += not math.isnan(score_of)
  return vectors, scores


@pytest.mark.parametrize("options", [
    {}, {"negatives_per_example": 2}, {"negatives_per_example": 2, "row_lengths": {"inputs": 32, "targets": 64}},
    {"negatives_per_example": 2, "row_lengths": {"inputs": 32, "targets": 64}, "microbatch_size": 4}], ids=str)
def test_beside_the_very_texts(task, options):
  name, known = task(rows(24), sample_negatives=True)
  teacher = OfTeacher(DIM, True)
  batches = TrainingBatches(name, None, LENGTHS, 8, groups=2, seed=3, teacher=teacher, **options)
  batches.check_first_batch()
  taken = [item.batch for item in itertools.islice(batches, 6)]
  batches.close()
  taken += list(ValidationBatches(name, None, LENGTHS, 16, groups=2, split="train", teacher=teacher, **options))
  vectors, scores = 0, 0
  for batch in taken:
    parts = [batch]
    if options.get("microbatch_size"):
      parts = [jax.tree.map(lambda x, i=i: x[:, i], batch) for i in range(batch.valid.shape[1])]
    for part in parts:
      found = said(part, known)
      vectors, scores = vectors + found[0], scores + found[1]
  assert vectors > 100 and scores > 50


def test_nothing_is_there_unless_it_is_asked_for(task):
  name, _ = task(rows(8))
  for teacher in (OfTeacher(), OfTeacher(scores=True), OfTeacher(DIM)):
    batches = TrainingBatches(name, None, LENGTHS, 4, teacher=teacher, negatives_per_example=1)
    found = next(batches).batch.teacher
    batches.close()
    assert [x is not None for x in found] == [teacher.vectors > 0, teacher.vectors > 0, teacher.scores]


def test_few_have_some(task):
  """Zeros and NaN for the others."""
  name, _ = task(rows(8, has=lambda i: i == 3))
  batches = TrainingBatches(name, None, LENGTHS, 8, teacher=OfTeacher(DIM, True), negatives_per_example=1)
  batches.check_first_batch()
  found = next(batches).batch.teacher
  batches.close()
  assert found.queries.any(-1).sum() == 1 and np.isfinite(found.scores[:, :8]).sum() == 1


@pytest.mark.parametrize("teacher, message", [(OfTeacher(DIM), "a teacher's vectors, and no example"),
                                              (OfTeacher(scores=True), "a teacher's scores, and no example")])
def test_none_has_any(task, teacher, message):
  name, _ = task(rows(8, has=lambda i: False))
  batches = TrainingBatches(name, None, LENGTHS, 4, teacher=teacher)
  with pytest.raises(InputError, match=message + r".*gtr-jax teach"):
    batches.check_first_batch()
  batches.close()


def test_vectors_of_another_width(task):
  name, _ = task(rows(8))
  batches = TrainingBatches(name, None, LENGTHS, 4, teacher=OfTeacher(DIM + 1))
  with pytest.raises(InputError, match=rf"vectors have {DIM} numbers, and the loss expects {DIM + 1}; set its teach"):
    batches.check_first_batch()
  batches.close()


def test_tasks_that_cannot_have_any(data_dir, vocabulary):
  name = task_name()
  seqio.TaskRegistry.add(name, seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: tf.data.Dataset.
                         from_tensor_slices({"inputs": [[5, 1]] * 8, "targets": [[6, 1]] * 8}), splits=["train"]),
                         output_features=dict.fromkeys(("inputs", "targets"), seqio.Feature(
                             seqio.SentencePieceVocabulary(vocabulary))))
  with pytest.raises(InputError, match="that add_pair_task has not declared has nothing of it; train on prepared"):
    TrainingBatches(name, None, LENGTHS, 4, teacher=OfTeacher(DIM))
