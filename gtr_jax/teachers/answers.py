"""What a teacher answers to many questions: each once, those of like length together, so that little is padding."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gtr_jax.errors import InputError
from gtr_jax.teachers.teacher import checked

_TOGETHER = 512  # Questions that a teacher is asked at once; it makes batches of them.
Question = str | tuple[str, str]


class Answers:
  """Answers to texts, or pairs of texts.

  Args:
    ask: the teacher: float32 `[n, D]` for n texts, or `[n]` for n pairs.
    rank: 2 of vectors, 1 of scores.
    name: of the teacher, for errors.
  """

  def __init__(self, ask: Callable[[Sequence], np.ndarray], rank: int, name: str):
    self._ask, self._rank, self._name = ask, rank, name
    self._rows: dict[Question, int] = {}
    self._found = np.zeros(0, np.float32)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, question: Question) -> np.ndarray:
    return self._found[self._rows[question]]

  def want(self, questions: Iterable[Question]) -> None:
    """Asks for more, before `find`."""
    for question in questions:
      self._rows.setdefault(question, len(self._rows))

  def size(self) -> int:
    """Characters of all questions: what the work grows with."""
    return sum(map(_length, self._rows))

  def find(self, advance: Callable[[int, int], None]) -> None:
    """Asks the teacher; `advance` gets questions and characters that are done. Raises InputError where the answers are
    not what a teacher gives."""
    questions = sorted(self._rows, key=_length, reverse=True)  # The longest first: memory fails at once or never.
    found = None
    for at in range(0, len(questions), _TOGETHER):
      part = questions[at:at + _TOGETHER]
      answers = checked(self._ask(part), len(part), self._rank, self._name)
      if found is None:
        found = np.zeros((len(questions), *answers.shape[1:]), np.float32)
      if answers.shape[1:] != found.shape[1:]:
        raise InputError(f"teacher {self._name}: its vectors have {answers.shape[1]} numbers, and had "
                         f"{found.shape[1]} before")
      found[[self._rows[question] for question in part]] = answers
      advance(len(part), sum(map(_length, part)))
    self._found = self._found if found is None else found


def _length(question: Question) -> int:
  return len(question) if isinstance(question, str) else sum(map(len, question))
