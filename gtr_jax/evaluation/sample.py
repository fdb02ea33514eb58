"""Some of many queries or documents, the same ones every time."""

import hashlib
from collections.abc import Sequence


def sample(ids: Sequence[str], number: int | None, first: set[str] | frozenset[str] = frozenset()) -> list[int]:
  """Positions, ascending, of `number` ids (None: of all): those in `first` (all of them), then those with the lowest
  hashes."""
  if number is None:
    return list(range(len(ids)))

  def rank(position):
    return ids[position] not in first, hashlib.blake2b(ids[position].encode()).digest()

  return sorted(sorted(range(len(ids)), key=rank)[:max(number, sum(i in first for i in ids))])
