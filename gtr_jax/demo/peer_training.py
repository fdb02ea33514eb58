"""Training by sentence-transformers' own trainer for a given time. Imports torch, which only `--peer` wants."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers.optimization import Adafactor

from gtr_jax.errors import InputError
from gtr_jax.io import bars

_WARMUP = 0.1  # of the time: sentence-transformers' examples warm up for a tenth
_ENDLESS = 10**6  # steps: time ends the training


class Setting(NamedTuple):
  """How a stage is trained.

  Attributes:
    batch_size: pairs.
    query_length: most tokens of a query.
    passage_length: most tokens of a passage.
    temperature: of the loss.
    learning_rate: of Adafactor, relative to the size of each parameter; the highest.
    seed: of the order of the pairs.
  """

  batch_size: int
  query_length: int
  passage_length: int
  temperature: float
  learning_rate: float
  seed: int = 0


def train(start: Path, columns: Mapping[str, Sequence[str]], setting: Setting, marks: Mapping[Path, float]
          ) -> list[int]:
  """Trains a model until the last of the marks, and saves it at each of them.

  The learning rate rises for a tenth of the time and then falls, to 0 at its end: the trainer's own schedule goes by
  steps, and how many there will be nobody knows beforehand.

  Args:
    start: folder of the model to start from.
    columns: "anchor", "positive" and, if there are any, "negative" -> texts, as the loss takes them.
    setting: how.
    marks: folder to write -> seconds of training, ascending. Saving is not part of them.

  Returns:
    For each mark, the steps that the model there has seen.

  Raises:
    InputError: the pairs make no batches without a text twice.
  """
  _be_quiet()
  # Without dropout, as the demo trains. T5's own of 0.1 would cost it quality in so few steps.
  model = SentenceTransformer(os.fspath(start), device="cpu", local_files_only=True,
                              config_kwargs={"dropout_rate": 0.0})
  encoding_length, model.max_seq_length = model.max_seq_length, setting.passage_length
  columns = {**columns, "anchor": _cut(model, columns["anchor"], setting.query_length)}
  loss = MultipleNegativesRankingLoss(model, scale=1 / setting.temperature,
                                      directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
  clock = _Clock(model, marks, encoding_length)
  # T5's optimizer, of which transformers has one with the same settings, and the rate that the demo was tuned with: the
  # default, AdamW at 5e-5, hardly moves random parameters in a minute.
  optimizer = Adafactor(model.parameters(), lr=setting.learning_rate, scale_parameter=True, relative_step=False,
                        warmup_init=False)
  scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: clock.rate())
  with tempfile.TemporaryDirectory() as unused:
    arguments = SentenceTransformerTrainingArguments(
        unused, max_steps=_ENDLESS, per_device_train_batch_size=setting.batch_size, dataloader_drop_last=True,
        batch_sampler=BatchSamplers.NO_DUPLICATES, seed=setting.seed, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, loss=loss, callbacks=[clock], optimizers=(optimizer, scheduler),
        train_dataset=datasets.Dataset.from_dict({name: list(texts) for name, texts in columns.items()}))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
  if len(clock.steps) < len(marks):
    raise InputError(f"sentence-transformers' training ended after {clock.seconds():.0f} of {max(marks.values()):.1f} "
                     f"seconds: it wants no text twice in a batch, and found no batch of {setting.batch_size} pairs; "
                     "give more pairs, or smaller batches")
  return clock.steps


def _be_quiet() -> None:
  """Warnings of theirs are for who trains with them, and bars of how they count the data say nothing here."""
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  datasets.disable_progress_bars()
  logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


def _cut(model: SentenceTransformer, texts: Sequence[str], length: int) -> list[str]:
  """Their beginnings of at most so many tokens: the trainer itself has one length for queries and passages."""
  tokens = model.tokenizer(list(texts), truncation=True, max_length=length, return_offsets_mapping=True)
  return [text[:max(end for _, end in ends)] for text, ends in zip(texts, tokens["offset_mapping"], strict=True)]


class _Clock(transformers.TrainerCallback):
  """Counts the seconds of training, saves at the marks, and ends training at the last one."""

  def __init__(self, model: SentenceTransformer, marks: Mapping[Path, float], encoding_length: int):
    self._model, self._marks, self._encoding_length = model, list(marks.items()), encoding_length
    self._began: float | None = None
    self.steps: list[int] = []

  def seconds(self) -> float:
    return 0.0 if self._began is None else time.perf_counter() - self._began

  def rate(self) -> float:
    """The share of the highest learning rate that the next step has."""
    done = self.seconds() / self._marks[-1][1]
    # A first step without any would be wasted, and the time before it is none.
    return max(min(done / _WARMUP, (1 - done) / (1 - _WARMUP), 1.0), 0.01)

  def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    self._began = time.perf_counter()

  def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    assert self._began is not None
    now = time.perf_counter()
    while len(self.steps) < len(self._marks) and now - self._began >= self._marks[len(self.steps)][1]:
      folder, seconds = self._marks[len(self.steps)]
      self._save(folder)
      self.steps.append(state.global_step)
      bars.note(f"after {seconds:.1f} s: step {state.global_step:,}")
    self._began += time.perf_counter() - now
    control.should_training_stop = len(self.steps) == len(self._marks)

  def _save(self, folder: Path) -> None:
    length, self._model.max_seq_length = self._model.max_seq_length, self._encoding_length
    self._model.save_pretrained(os.fspath(folder), create_model_card=False)
    self._model.max_seq_length = length
