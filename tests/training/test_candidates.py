"""Batches that look like perfect success: no pair has a candidate but its own passage."""

import numpy as np
import pytest
from tiny_training import tiny_loss

from gtr_jax.errors import InputError
from gtr_jax.losses import in_batch
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.text.batch import make_batch
from gtr_jax.training.candidates import Candidates, _Pairs

PAIRS = 8
DIFFERENT = np.arange(1, PAIRS + 1)
SAME = np.full(PAIRS, 7)


def batch(query=DIFFERENT, passage=DIFFERENT, text=DIFFERENT, negatives=None, valid=None, groups=1, microbatches=None):
  """`negatives`: [pairs, k] hashes, 0 where there is none."""
  pairs = len(query)
  tokens = np.ones((pairs, 3), np.int32)
  features = {"left_encoder_input_tokens": tokens, "right_encoder_input_tokens": tokens, "query_hash": query,
              "passage_hash": passage, "text_hash": text,
              "valid": np.ones(pairs, bool) if valid is None else np.asarray(valid)}
  if negatives is not None:
    features |= {"right_negative_encoder_input_tokens": np.where(negatives[..., None], tokens[:, None], 0),
                 "negative_passage_hash": negatives, "negative_text_hash": negatives}
  return make_batch(features, groups, microbatches=microbatches)


@pytest.mark.parametrize(("made", "why"), [
    (batch(query=SAME), "all of its 8 pairs have one query"),
    (batch(query=SAME, groups=4), "all of its 8 pairs have one query"),
    (batch(query=SAME, groups=2, microbatches=2), "all of its 8 pairs have one query"),
    (batch(passage=SAME), "all of its 8 pairs have one passage"),
    (batch(text=SAME), "all of its 8 pairs have one passage"),
    (batch(*[DIFFERENT[:1]] * 3), "it has one pair, .*--batch_size, or raise BATCH_SIZE"),
    (batch(valid=np.arange(PAIRS) == 3), "it has one pair"),
    (batch(query=SAME, negatives=DIFFERENT[:, None] * 0), "all of its 8 pairs have one query"),
    (batch(*[DIFFERENT[:1]] * 3, negatives=DIFFERENT[:1, None]), "it has one pair"),  # Its own passage.
], ids=["query", "query-groups", "query-microbatches", "passage", "text", "one-pair", "one-valid", "no-negatives",
        "own-passage"])
def test_refused_at_the_first_batch(made, why):
  with pytest.raises(InputError, match=f"the first batch teaches nothing .*{why}"):
    Candidates(tiny_loss()).check_first(made)


@pytest.mark.parametrize("made", [
    batch(), batch(query=SAME, negatives=DIFFERENT[:, None] + 100), batch(groups=4),
    batch(*[DIFFERENT[:1]] * 3, negatives=DIFFERENT[:1, None] + 100),
    batch(query=np.where(np.arange(PAIRS) < 3, 7, DIFFERENT))],
    ids=["different", "negatives", "groups", "one-pair-with-a-negative", "a-few"])
def test_with_candidates_nothing_is_said(made, capsys):
  Candidates(tiny_loss()).check_first(made)
  assert capsys.readouterr().err == ""


def test_the_loss_says_what_is_a_candidate(capsys):
  Candidates(tiny_loss(mask_false_negatives=False)).check_first(batch(query=SAME))
  own = tiny_loss(own_negatives_only=True, bidirectional=False)
  with pytest.raises(InputError, match="no pair has a hard negative of its own"):
    Candidates(own).check_first(batch())
  with pytest.raises(InputError, match="no pair has a hard negative of its own"):
    Candidates(own).check_first(batch(negatives=DIFFERENT[:, None]))  # All of them are the positives.
  Candidates(own).check_first(batch(negatives=DIFFERENT[:, None] + 100))
  assert capsys.readouterr().err == ""


def test_a_loss_of_somebodys_own_is_taken_for_one_that_masks():
  Candidates(object()).check_first(batch())
  with pytest.raises(InputError, match="all of its 8 pairs have one query"):
    Candidates(object()).check_first(batch(query=SAME))


def test_many_are_said(capsys):
  of_one = np.where(np.arange(PAIRS) == 0, 5, 0)[:, None]
  own = tiny_loss(own_negatives_only=True, bidirectional=False)
  Candidates(own).check_first(batch(negatives=101 * of_one))
  assert "88% of the pairs of the first batch have no candidate" in capsys.readouterr().err


def test_validation_that_measures_nothing(capsys):
  candidates = Candidates(tiny_loss())
  candidates.check_validation(batch(), decides=True)
  candidates.check_validation(batch(*[DIFFERENT[:1]] * 3), decides=False)
  assert "the validation data measures nothing: it has one pair; give it more" in capsys.readouterr().err
  with pytest.raises(InputError, match="all of its 8 pairs have one query.*BEST_METRIC cannot be taken from it"):
    candidates.check_validation(batch(query=SAME), decides=True)


def test_a_later_batch_is_said_once(capsys):
  candidates = Candidates(tiny_loss())
  candidates.look_at(3, batch())
  assert capsys.readouterr().err == ""
  for step in (4, 5):
    candidates.look_at(step, batch(query=SAME))
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and said.startswith("the batch of step 4 teaches nothing: all of its 8 pairs have one ")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [
    {}, {"mask_false_negatives": False}, {"own_negatives_only": True, "bidirectional": False}],
    ids=["masked", "all", "own"])
def test_agrees_with_the_mask_of_the_loss(seed, options):
  rng = np.random.default_rng(seed)
  hashes = [rng.integers(1, 4, PAIRS) for _ in range(3)]
  made = batch(*hashes, negatives=rng.integers(0, 4, (PAIRS, 2)), valid=rng.random(PAIRS) < .7, groups=2)
  pairs = in_batch._flatten(made, ())
  mask = np.asarray(InBatchLoss(**options)._forward_mask(pairs))[np.asarray(pairs.valid)]
  expected = int((mask.sum(1) == 1).sum())
  found = Candidates(InBatchLoss(**options))._alone(_Pairs(made))
  assert found == (expected, len(mask))
