"""Whether the pairs of a batch have anything to be told apart from.

A pair whose only candidate is its own passage has loss 0 and accuracy 1, whatever the model. A batch of such pairs
looks like perfect success and teaches nothing: one query everywhere, one passage everywhere, a batch of one pair.
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gtr_jax.errors import InputError
from gtr_jax.io import bars
from gtr_jax.text.batch import Batch

_LOOKED_AT = 256  # Pairs of a batch; all of them, where none of these has a candidate.


class Candidates:
  """Looks for batches whose pairs have no candidates but their own passage.

  Args:
    loss: an `InBatchLoss`: which candidates it masks. One that does not say so is taken for one that masks.
  """

  def __init__(self, loss: Any):
    self._masked = getattr(loss, "mask_false_negatives", True)
    self._own_only = getattr(loss, "own_negatives_only", False)
    self._needed = getattr(loss, "needs_candidates", True)
    self._said = False

  def check_first(self, batch: Batch) -> None:
    """Of the first batch of a run; says so where many pairs are alone. All processes call it with their parts.

    Raises:
      InputError: no pair of the batch has a candidate but its own passage.
    """
    if not self._needed:
      return
    pairs = _Pairs(batch, several=jax.process_count() > 1)
    alone, looked_at = self._alone(pairs)
    if alone == looked_at:
      raise InputError("the first batch teaches nothing (every loss would be 0, every accuracy 1): "
                       f"{self._why(pairs)}")
    if alone > looked_at / 2 and jax.process_index() == 0:
      print(f"{alone / looked_at:.0%} of the pairs of the first batch have no candidate but their own passage, and "
            "teach nothing: the others have their query or their passage, by id or text; check the ids and the data, "
            "or take larger batches", file=sys.stderr)

  def look_at(self, step: int, batch: Batch) -> None:
    """Of a later batch: says so, once. Of several processes, none knows all pairs of a batch, and nothing is said."""
    if self._said or not self._needed or jax.process_count() > 1:
      return
    pairs = _Pairs(batch)
    alone, looked_at = self._alone(pairs)
    if alone == looked_at:
      self._said = True
      bars.say(f"the batch of step {step} teaches nothing: {self._why(pairs)}; its loss of 0 and accuracy of 1 are no "
               "success (said once)")

  def check_validation(self, batch: Batch, decides: bool) -> None:
    """Of the first validation batch. All processes call it with their parts.

    Args:
      batch: the batch.
      decides: whether what is measured on it decides which checkpoint is the best.

    Raises:
      InputError: no pair has a candidate, and it decides; otherwise this is said.
    """
    if not self._needed:
      return
    pairs = _Pairs(batch, several=jax.process_count() > 1)
    alone, looked_at = self._alone(pairs)
    if alone < looked_at:
      return
    why = self._why(pairs) if len(pairs.query) > 1 else "it has one pair; give it more"
    message = f"the validation data measures nothing: {why}; its loss of 0 and accuracy of 1 are no success"
    if decides:
      raise InputError(f"{message}, and BEST_METRIC cannot be taken from it")
    if jax.process_index() == 0:
      print(message, file=sys.stderr)

  def _alone(self, pairs: "_Pairs") -> tuple[int, int]:
    """(pairs without a candidate but their own, pairs that were looked at)."""
    count = len(pairs.query)
    some = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
    for rows in (some.tolist(), range(count)):
      alone = [row for row in rows if not self._has_candidate(pairs, row)]
      if len(alone) < len(rows):
        break
    return len(alone), len(rows)

  def _has_candidate(self, pairs: "_Pairs", row: int) -> bool:
    same_passage = (pairs.passage == pairs.passage[row]) | (pairs.text == pairs.text[row])
    same_passage |= np.isin(pairs.text, pairs.known[row])
    wrong = same_passage[:len(pairs.query)] | (pairs.query == pairs.query[row])
    negatives = same_passage[len(pairs.query):]
    if not self._masked:
      wrong, negatives = np.arange(len(wrong)) == row, np.zeros_like(negatives)
    if self._own_only:
      return bool((~negatives & (pairs.owner == row)).any())
    return bool((~wrong).any() or (~negatives).any())

  def _why(self, pairs: "_Pairs") -> str:
    count = len(pairs.query)
    if self._own_only:
      return ("no pair has a hard negative of its own; give some (in the pairs, or as the task's negatives), and set "
              "NEGATIVES_PER_EXAMPLE")
    if count == 1:
      return ("it has one pair, which has no other to be told apart from; make batches larger (--batch_size, or raise "
              "BATCH_SIZE), or give hard negatives (in the pairs, and NEGATIVES_PER_EXAMPLE)")
    if len(np.unique(pairs.query)) == 1:
      return (f"all of its {count:,} pairs have one query, by id or text; check which field is the query (--query, or "
              "the task's query and query_id), or shuffle the data")
    if len(np.unique(pairs.passage[:count])) == 1 or len(np.unique(pairs.text[:count])) == 1:
      return (f"all of its {count:,} pairs have one passage, by id or text; check which field is the passage "
              "(--passage, or the task's passage and passage_id), or shuffle the data")
    return (f"each of its {count:,} pairs shares its query or its passage with all others, by id or text; check "
            "which fields they are (--query and --passage, or the task's), or shuffle the data")


class _Pairs:
  """The valid pairs of a batch, and after them its negatives: hashes as uint64, owners as numbers of pairs."""

  def __init__(self, batch: Batch, several: bool = False):
    arrays = {name: np.asarray(getattr(batch, name)) for name in (
        "valid", "negative_valid", "negative_owner", "query_hash", "passage_hash", "text_hash",
        "known_hash")}
    parts = arrays["valid"].shape[:-1]  # groups, and microbatches of them
    offset = np.arange(np.prod(parts, dtype=int)).reshape(*parts, 1) * arrays["valid"].shape[-1]
    arrays["negative_owner"] = arrays["negative_owner"] + offset
    if several:
      arrays["negative_owner"] += jax.process_index() * arrays["valid"].size
      arrays = multihost_utils.process_allgather(arrays)
    own = arrays["valid"].shape[-1]
    of_pairs, of_negatives = arrays["valid"].reshape(-1), arrays["negative_valid"].reshape(-1)

    def whole_of(name):
      words = arrays[name].astype(np.uint64)
      return words[..., 0] << np.uint64(32) | words[..., 1]

    def hashes(name):
      whole = whole_of(name)
      return whole[..., :own].reshape(-1)[of_pairs], whole[..., own:].reshape(-1)

    self.query = hashes("query_hash")[0]
    known = whole_of("known_hash")
    self.known = known.reshape(-1, known.shape[-1])[of_pairs]
    self.passage, self.text = (np.concatenate([pairs, negatives[of_negatives]]) for pairs, negatives in map(
        hashes, ("passage_hash", "text_hash")))
    number = np.where(of_pairs, np.cumsum(of_pairs) - 1, -1)  # of a pair among the valid ones
    self.owner = number[arrays["negative_owner"].reshape(-1)[of_negatives]]
