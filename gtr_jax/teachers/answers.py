"""What a teacher answers to many questions: each once, those of like length together, so that little is padding."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gtr_jax.teachers.teacher import checked

_TOGETHER = 1024  # Questions that a teacher is asked at once; it makes batches of them.
Question = str | tuple[str, str]


class Answers:
  """Answers to texts, or pairs of texts.

  Args:
    ask: the teacher: float32 `[n, D]` for n texts, or `[n]` for n pairs.
    shape: of one answer: `(D,)`, or `()`.
    name: of the teacher, for errors.
  """

  def __init__(self, ask: Callable[[Sequence], np.ndarray], shape: tuple[int, ...], name: str):
    self._ask, self._shape, self._name = ask, shape, name
    self._rows: dict[Question, int] = {}
    self._found = np.zeros((0, *shape), np.float32)

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
    self._found = np.zeros((len(questions), *self._shape), np.float32)
    for at in range(0, len(questions), _TOGETHER):
      part = questions[at:at + _TOGETHER]
      answers = checked(self._ask(part), (len(part), *self._shape), self._name)
      self._found[[self._rows[question] for question in part]] = answers
      advance(len(part), sum(map(_length, part)))


def _length(question: Question) -> int:
  return len(question) if isinstance(question, str) else sum(map(len, question))
