"""The shapes of a server's batches, which are all compiled before it answers.

Letters: R rows of a group, L length of a row.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from gtr_jax.inference.row_queue import TOKENS_OF_TEXT, row_length, texts_of_rows, tokens_of_batch

_SHORTEST = 56  # Tokens that the shortest rows are made for, ..
_FEW_ROWS = 4  # .. of which a batch has no more than so many.


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of a program: rows of a group, and their length."""

  rows: int
  length: int

  @property
  def texts(self) -> int:
    """That a group has room for."""
    return self.rows * self.texts_of_row

  @property
  def texts_of_row(self) -> int:
    return self.length // TOKENS_OF_TEXT + 1


def shapes(longest: int, batch_tokens: int | None, on_cpu: bool) -> dict[int, list[Shape]]:
  """All shapes, by the most tokens of a text that their rows are for, ascending; of each length by rows, ascending.

  As the row queue of `gtr-jax encode` has them: rows are an eighth longer than what they are for, twice as long from
  step to step. A batch of few texts has few rows, by powers of two, or shorter ones.

  Args:
    longest: most tokens of any text.
    batch_tokens: token slots of a group.
    on_cpu: whether the devices are CPUs.
  """
  tokens = batch_tokens or tokens_of_batch(on_cpu)
  found: dict[int, list[Shape]] = {}
  for most in (min(_SHORTEST, longest), *texts_of_rows(longest)):
    length = row_length(most, on_cpu)
    # Shorter rows than whole batches have are for the few texts of a quiet minute.
    rows = max(tokens // length, 1) if most > _SHORTEST or longest <= _SHORTEST else _FEW_ROWS
    found = {other: of_length for other, of_length in found.items() if of_length[0].length != length}
    found[most] = [Shape(number, length) for number in sorted({*_powers_of_two(rows), rows})]
  return found


def _powers_of_two(most: int) -> Iterator[int]:
  return itertools.takewhile(lambda rows: rows <= most, (1 << i for i in itertools.count()))
