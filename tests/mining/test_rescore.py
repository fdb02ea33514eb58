"""A second model's scores: compared in the place of the ranker's, and written as a teacher's."""

import numpy as np
import pytest
from mining_runs import mine, mined_from, write
from tiny_model_dir import sentence, write_model_dir

from gtr_jax.inference.embedder import load
from gtr_jax.mining import rescore
from gtr_jax.prepare.interface import Counts
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.text.near_text import are_near

PASSAGES = list(dict.fromkeys(sentence(i, 3 + i % 9) for i in range(60)))
PAIRS = [{"query": sentence(i + 1, 4) + f" {i}", "positive": passage} for i, passage in enumerate(PASSAGES)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rescore_models")
  return write_model_dir(folder / "a" / "run"), write_model_dir(folder / "b" / "run", seeds=(7,))


@pytest.fixture(scope="module")
def score(models):
  """float32 [queries, passages] of the second model, with a dense product."""
  second = load(models[1])
  return second.encode_queries([pair["query"] for pair in PAIRS]) @ second.encode_documents(PASSAGES).T


@pytest.mark.parametrize("first", ["model", "bm25"])
@pytest.mark.parametrize("limits", [{}, {"margin": 0.1}, {"max_score_ratio": 0.9}, {"margin": -0.2}],
                         ids=["none", "margin", "ratio", "above"])
def test_scores_of_a_second_model(tmp_path, models, score, first, limits):
  flags = {"last_rank": 60, "num_negatives": 60, "model": models[0] if first == "model" else None}
  plain = mined_from(tmp_path, PAIRS, **flags)
  mined = mined_from(tmp_path, PAIRS, **flags, rescore=models[1], **limits)
  dropped = 0
  for i, (before, record) in enumerate(zip(plain, mined, strict=True)):
    places = [PASSAGES.index(negative) for negative in record["negatives"]]
    np.testing.assert_allclose(record["scores"], score[i][[i, *places]], atol=1e-5)
    most = score[i][i] - limits.get("margin", abs(score[i][i]) * (1 - limits["max_score_ratio"])
                                    if "max_score_ratio" in limits else 0) if limits else np.inf
    unclear = {PASSAGES[j] for j in np.flatnonzero(abs(score[i] - most) < 1e-5)}
    right = {negative for negative in before["negatives"] if score[i][PASSAGES.index(negative)] <= most}
    assert set(record["negatives"]) ^ right <= unclear
    assert not any(are_near(negative, record["positive"]) for negative in record["negatives"])
    dropped += len(before["negatives"]) - len(record["negatives"])
    # In the order of the ranking, whose own scores are kept apart.
    assert record["mined"]["ranks"] == sorted(record["mined"]["ranks"])
    of_ranker = dict(zip(before["negatives"], before["mined"]["scores"], strict=True))
    assert record["mined"]["scores"] == [of_ranker[negative] for negative in record["negatives"]]
  assert bool(dropped) is bool(limits)


def test_a_few_are_drawn_as_if_all_had_been_scored(tmp_path, models, score):
  """Which depends on nothing but the draw, however many are scored at once."""
  flags = {"last_rank": 40, "num_negatives": 3, "max_score_ratio": 0.9, "rescore": models[1]}
  whole = mined_from(tmp_path, PAIRS, **flags)
  assert sum(len(record["negatives"]) == 3 for record in whole) > 20
  for i, record in enumerate(whole):
    most = score[i][i] - 0.1 * abs(score[i][i])
    assert all(score[i][PASSAGES.index(negative)] <= most + 1e-5 for negative in record["negatives"])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rescore.BiEncoderRescorer, "pairs_at_once", 7)
    patch.setattr(rescore, "_KEPT_BYTES", 4 * 8 * 30)  # Of 30 passages.
    again = mined_from(tmp_path, PAIRS, **flags)
  for record, other in zip(whole, again, strict=True):
    assert record["negatives"] == other["negatives"] and record["mined"] == other["mined"]
    np.testing.assert_allclose(record["scores"], other["scores"], atol=1e-5)
  assert mined_from(tmp_path, PAIRS, **flags, seed=1) != whole


def test_are_read_as_a_teachers(tmp_path, models):
  mined = mined_from(tmp_path, PAIRS, last_rank=20, num_negatives=3, rescore=models[1])
  source, counts = PairsJsonl((str(tmp_path / "out.jsonl"),)), Counts()
  part, = source.parts()
  examples = [example for _, example in source.read(part, counts)]
  assert not counts.reasons and [list(example.scores) for example in examples] == [
      record["scores"] if record["negatives"] else record["scores"][:1] for record in mined]
  # Mined again, they are of other negatives.
  again = mine(tmp_path, pairs=tmp_path / "out.jsonl", output="again.jsonl", num_negatives=3, last_rank=20)
  assert again[0] == 0 and "scores" not in again[1][0]


@pytest.mark.parametrize(("flags", "message"), [
    ({"rescore": "not/here/at/all"}, "not/here/at/all"),
    ({"rescore": "x", "rescore_cross_encoder": "y"}, "each score what is drawn; leave one out"),
])
def test_refused(tmp_path, capsys, flags, message):
  assert mine(tmp_path, pairs=write(tmp_path / "pairs.jsonl", PAIRS), **flags) == (2, None)
  assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_sentence_transformers(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
  assert mine(tmp_path, pairs=write(tmp_path / "pairs.jsonl", PAIRS), rescore_cross_encoder="x") == (2, None)
  assert "install it: pip install sentence-transformers" in capsys.readouterr().err.splitlines()[-1]
