"""What a model has ranked is kept: filters encode and search nothing again, more ranks encode no passage."""

import contextlib

import pytest
from mining_runs import mine, mined_from, write
from tiny_model_dir import corpus, sentence, write_collection, write_model_dir

from gtr_jax.inference import embed
from gtr_jax.mining import rankers
from gtr_jax.retrieval import encode, search


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return write_model_dir(tmp_path_factory.mktemp("rankings_model") / "run")


@pytest.fixture
def work(monkeypatch):
  """What is done: the towers that have encoded texts, and searches; empty it to count anew."""
  done = []
  embed_tokens, search_of = embed.embed_tokens, search.Searcher.search

  class Documents(embed.EmbeddingStream):
    def add(self, *args):
      done.append("passage")
      super().add(*args)

  monkeypatch.setattr(embed, "embed_tokens", lambda *args: done.append(args[3]) or embed_tokens(*args))
  monkeypatch.setattr(encode, "EmbeddingStream", Documents)
  monkeypatch.setattr(search.Searcher, "search", lambda *args: done.append(f"search of {args[2]}") or search_of(*args))
  return done


PAIRS = [{"query": sentence(i + 1, 4) + f" {i}", "positive": sentence(i, 3 + i % 9) + f" {i}"} for i in range(40)]


def test_other_filters_encode_and_search_nothing(tmp_path, model, work, capsys):
  flags = {"model": model, "num_negatives": 3, "last_rank": 20}
  first = mined_from(tmp_path, PAIRS, **flags)
  assert work == ["passage", "query", "search of 20"]
  assert all(record["mined"]["positive_score"] is not None for record in first)
  said = capsys.readouterr().out
  store, = (tmp_path / "embeddings").iterdir()
  assert f"rankings in {store}/rankings: 0.0 MB" in said and "of other pairs" not in said
  work.clear()
  others = [mined_from(tmp_path, PAIRS, **flags | more) for more in (
      {"num_negatives": 5}, {"seed": 3}, {"margin": 0.1}, {"max_score_ratio": 0.8}, {"first_rank": 4, "last_rank": 11})]
  assert work == [] and all(records != first for records in others)
  assert mined_from(tmp_path, PAIRS, **flags) == first and work == []

  # More ranks take the place of fewer.
  (tmp_path / "fresh").mkdir()
  more = mined_from(tmp_path, PAIRS, **flags | {"last_rank": 30})
  assert work == ["query", "search of 30"] and len(list((store / "rankings").iterdir())) == 1
  assert more == mined_from(tmp_path / "fresh", PAIRS, **flags | {"last_rank": 30})
  work.clear()
  assert mined_from(tmp_path, PAIRS, **flags) == first and work == []

  # Other pairs have other rankings; those of the first ones are said to be there.
  capsys.readouterr()
  others = [pair | {"query": pair["query"] + " x"} for pair in PAIRS]
  assert mined_from(tmp_path, others, **flags) != first and work == ["query", "search of 20"]
  assert "of them of other pairs, which may be removed" in capsys.readouterr().out
  assert mined_from(tmp_path, PAIRS, **flags) == first and work == ["query", "search of 20"]


def test_ranks_that_the_corpus_does_not_have(tmp_path, model, work):
  flags = {"model": model, "num_negatives": 3, "last_rank": 1000}
  first = mined_from(tmp_path, PAIRS, **flags)
  work.clear()
  assert mined_from(tmp_path, PAIRS, **flags) == first and work == []


def test_passages_that_are_not_in_the_corpus(tmp_path, model, work):
  """Their scores are those of their texts, and kept too."""
  folder = write_collection(tmp_path / "c", corpus(30))
  flags = {"model": model, "collection": folder, "num_negatives": 3, "last_rank": 9}
  first = mined_from(tmp_path, PAIRS, **flags)
  assert work == ["passage", "query", "search of 9", "passage"]
  work.clear()
  filtered = mined_from(tmp_path, PAIRS, **flags | {"max_score_ratio": 0.9})
  assert work == [] and [r["mined"]["positive_score"] for r in filtered] == [
      r["mined"]["positive_score"] for r in first]
  for record in filtered:
    score = record["mined"]["positive_score"]
    assert all(s <= score - 0.1 * abs(score) for s in record["mined"]["scores"])
  mined_from(tmp_path, [PAIRS[0] | {"positive": "another passage"}, *PAIRS[1:]], **flags)
  assert work == ["query", "search of 9", "passage"]


def test_goes_on_after_an_interruption(tmp_path, model, work, monkeypatch):
  """A block of pairs that is done is not done again."""
  monkeypatch.setattr(rankers.ModelRanker, "pairs_at_once", 16)
  flags = {"model": model, "num_negatives": 3, "last_rank": 20}
  whole = mined_from(tmp_path, PAIRS, **flags, embeddings=tmp_path / "whole")
  assert work == ["passage", *["query", "search of 20"] * 3]
  search_of = rankers.ModelRanker._search

  def interrupted(*args):
    if sum(what == "query" for what in work) == 2:
      raise KeyboardInterrupt
    return search_of(*args)

  work.clear()
  monkeypatch.setattr(rankers.ModelRanker, "_search", interrupted)
  pairs = write(tmp_path / "pairs.jsonl", PAIRS)
  (tmp_path / "out.jsonl").unlink()
  with contextlib.suppress(KeyboardInterrupt):
    mine(tmp_path, pairs=pairs, **flags)
  assert not (tmp_path / "out.jsonl").exists() and work == ["passage", *["query", "search of 20"] * 2]
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
  monkeypatch.setattr(rankers.ModelRanker, "_search", search_of)
  work.clear()
  assert mine(tmp_path, pairs=pairs, **flags) == (0, whole) and work == ["query", "search of 20"]


def test_damaged_rankings(tmp_path, model, capsys):
  flags = {"model": model, "last_rank": 9}
  mined_from(tmp_path, PAIRS, **flags)
  scores, = tmp_path.glob("embeddings/*/rankings/*/scores.npy")
  whole = scores.read_bytes()
  for name in ("rows", "scores", "positive_scores", "checksums"):
    there = (path := scores.parent / f"{name}.npy").read_bytes()
    path.write_bytes(there[:-3] + bytes([there[-3] ^ 1]) + there[-2:])
    assert mine(tmp_path, pairs=tmp_path / "pairs.jsonl", **flags)[0] == 2
    of = "positive_scores" if name == "checksums" else name
    assert f"{scores.parent}: damaged or cut off (the checksum of {of}.npy is another); remove the folder" in (
        capsys.readouterr().err.splitlines()[-1])
    path.write_bytes(there)
  assert mine(tmp_path, pairs=tmp_path / "pairs.jsonl", **flags)[0] == 0
  scores.write_bytes(whole[:-4])
  assert mine(tmp_path, pairs=tmp_path / "pairs.jsonl", **flags)[0] == 2
  assert f"{scores.parent}: damaged or cut off" in capsys.readouterr().err.splitlines()[-1]
  (scores.parent / "checksums.npy").unlink()  # As an earlier version left it: is made anew.
  assert mine(tmp_path, pairs=tmp_path / "pairs.jsonl", **flags)[0] == 0 and scores.read_bytes() == whole
