"""Rescoring with a cross-encoder of sentence-transformers: what its own `predict` says of each pair."""

import numpy as np
import pytest
from mining_runs import mine, mined_from, write
from sentence_transformers import CrossEncoder
from tiny_bert import write_bert
from tiny_model_dir import sentence
from transformers import BertModel

pytestmark = pytest.mark.peers

PAIRS = [{"query": sentence(i + 1, 4), "positive": passage} for i, passage in enumerate(
    dict.fromkeys(sentence(i, 3 + i % 9) for i in range(60)))]


@pytest.mark.parametrize("limits", [{}, {"margin": 0.05}, {"max_score_ratio": 0.8}])
def test_scores_are_those_of_predict(tmp_path, limits):
  path = write_bert(tmp_path / "cross")
  mined = mined_from(tmp_path, PAIRS, num_negatives=5, last_rank=30, rescore_cross_encoder=path, **limits)
  expected = CrossEncoder(str(path)).predict([(record["query"], text) for record in mined for text in (
      record["positive"], *record["negatives"])], show_progress_bar=False)
  np.testing.assert_allclose([score for record in mined for score in record["scores"]], expected, atol=1e-5)
  assert np.std(expected) > 0.1
  for record in mined:
    positive, *negatives = record["scores"]
    most = min(positive - limits.get("margin", -np.inf), positive * limits.get("max_score_ratio", np.inf))
    assert all(score <= most + 1e-6 for score in negatives)
  assert bool(limits) is any(len(record["negatives"]) < 5 for record in mined)
  assert any(len(record["negatives"]) == 5 for record in mined)


@pytest.mark.parametrize(("model", "message"), [
    ({"labels": 3}, "gives 3 numbers for a pair"),
    ({"of_class": BertModel}, "saved as BertModel, without the head that scores a pair; a bi-encoder is for --rescore"),
    (None, "no cross-encoder that sentence-transformers reads"),
])
def test_what_is_no_cross_encoder_of_one_score(tmp_path, capsys, model, message):
  path = tmp_path / "cross"
  if model is not None:
    write_bert(path, **model)
  assert mine(tmp_path, pairs=write(tmp_path / "pairs.jsonl", PAIRS), rescore_cross_encoder=path) == (2, None)
  assert message in capsys.readouterr().err.splitlines()[-1]
