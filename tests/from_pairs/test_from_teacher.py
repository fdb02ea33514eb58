"""From prepared pairs and a teacher to a student of it, by the four commands that one gives."""

import json

import pytest
from tiny_model_dir import sentence, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.from_pairs import data
from gtr_jax.io import data_root
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl

PAIRS = 160
DISTILS = "--gin.LOSS=@embedding_distillation.EmbeddingDistillationLoss()"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
  """A folder with prepared pairs in data/, "mine" and what a teacher says of them, "mine_taught"; and a student."""
  place = tmp_path_factory.mktemp("taught")
  write_model_dir(place / "teacher")
  (place / "my.jsonl").write_text("".join(json.dumps({
      "query": f"{i} {sentence(i, 4)}", "positive": f"{i} {sentence(i, 9)}"}) + "\n" for i in range(PAIRS)))
  vocabulary = next((place / "teacher").glob("*.model"))
  root = ["--data_dir", str(place / "data")]
  for words in (["prepare", "pairs", place / "my.jsonl", "--name", "mine", "--validation_share", "0.2", *root],
                ["teach", "--pairs", "mine", "--teacher", place / "teacher", "--name", "mine_taught", *root],
                ["student", "--teacher", place / "teacher", "--vocabulary", vocabulary, "--extra_ids", "0",
                 "--layers", "1", "--output", place / "student"]):
    assert main(list(map(str, words))) == 0
  return place


@pytest.fixture(autouse=True)
def data_dir(taught):
  data_root.set_data_dir(str(taught / "data"))
  yield
  data_root.set_data_dir(None)


def train(place, output, *flags, pairs="mine_taught"):
  return main(["train", "--pairs", pairs, "--init", str(place / "student"), "--output", str(place / output),
               "--data_dir", str(place / "data"), "--batch_size", "16", *flags])


def test_it_learns_what_the_teacher_says(taught):
  assert train(taught, "run", DISTILS, "--steps", "40", "--gin.LOG_PERIOD=5", "--gin.LEARNING_RATE=0.01") == 0
  lines = [json.loads(line) for line in (taught / "run" / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in lines if "train/loss" in line]
  assert losses[-1] < 0.8 * losses[0]
  last = lines[-1]
  assert last["validation/query_cosine"] > 0 and "validation/mrr" not in last and last["held_out/nDCG@10"] > 0


def test_pairs_that_nobody_taught(taught, capfd):
  assert train(taught, "none", DISTILS, "--steps", "2", pairs="mine") == 2
  assert "the loss asks for a teacher's vectors, and no example of the first batches" in capfd.readouterr().err
  assert not (taught / "none").exists()


def test_prepared_pairs_by_their_path(taught):
  by_name, by_path = (data.prepare(PairsJsonl((path,)), None) for path in ("mine", str(taught / "data" / "mine")))
  assert by_name == by_path and by_name.name == "mine" and by_name.fields == ["prepared as mine"]
  assert by_name.train + by_name.validation == PAIRS and by_name.collection is not None


@pytest.mark.parametrize("source, share, message", [
    (PairsJsonl(("mine", "mine_taught")), None, "prepared data go alone"),
    (PairsJsonl(("mine",), query=("a",), passage=("b",)), None, "its fields are known; leave out --query"),
    (PairsJsonl(("mine",)), 0.1, "what is held out was decided then")], ids=["two", "fields", "share"])
def test_what_does_not_go_with_prepared_pairs(taught, source, share, message):
  with pytest.raises(InputError, match=message):
    data.prepare(source, share)
