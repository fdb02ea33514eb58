"""`gtr-jax demo --peer`: sentence-transformers trained for given seconds, and beside our own training."""

import itertools
import json

import numpy as np
import pytest

pytest.importorskip("datasets")  # Of sentence-transformers' trainer.

from etils import epath
from sentence_transformers import SentenceTransformer
from test_convert import written
from tiny_gin import tiny_model
from tiny_model_dir import WORDS, corpus, sentence, tiny_encoder, write_collection, write_vocabulary

from gtr_jax.cli.main import main
from gtr_jax.demo import peer, peer_training
from gtr_jax.errors import InputError
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.io import data_root

pytestmark = pytest.mark.peers



def pair(number):
  """All texts of all pairs differ: the trainer wants no text twice in a batch."""
  rng = np.random.default_rng(number)
  query, others = rng.choice(WORDS, 4), [" ".join(rng.choice(WORDS, 6)) for _ in range(2)]
  return {"query": " ".join(query), "positive": f"{' '.join(query[:3])} {others[0]}", "negatives": [others[1]]}


PAIRS = [pair(i) for i in range(96)]
GIN = tiny_model(160, 16) + """
include 'runs/train.gin'
dual_encoder.DualEncoder.projection_dim = 8
DROPOUT_RATE = 0.0
TRAIN_STEPS = 4
LOG_PERIOD = 2
EVAL_PERIOD = 0
CHECKPOINT_PERIOD = 2
BATCH_SIZE = 16
WARMUP_STEPS = 1
TEMPERATURE = 0.05
LEARNING_RATE = 3e-2
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 12}
DOCUMENT_LENGTH = 16
VALIDATION = None
MIXTURE_OR_TASK_MODULE = 'demo_peer_tasks'
MIXTURE_OR_TASK_NAME = 'demo_peer_pairs'
"""
TASKS = """
from gtr_jax.data.examples import add_pair_task, jsonl
add_pair_task("demo_peer_pairs", jsonl(train="pairs.jsonl"), query="query", passage="positive",
              negatives="negatives", vocabulary="spiece.model")
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  folder = tmp_path_factory.mktemp("start")
  tokenizer = write_vocabulary(epath.Path(folder) / "spiece.model")
  return written(folder / "model", tiny_encoder(tokenizer), tokenizer)


def similarity(path):
  """How much nearer the queries are to their own passages than to others, on average."""
  model = load_model(path)
  queries, passages = (embed(model, [pair[side] for pair in PAIRS[:30]], tower, progress=False)
                       for side, tower in (("query", "query"), ("positive", "passage")))
  cosines = queries @ passages.T
  return np.diag(cosines).mean() - cosines.mean()


@pytest.fixture
def counted(monkeypatch):
  """A clock that goes a second further whenever it is read, so that steps do not depend on the machine."""
  seconds = itertools.count(1000.0)
  monkeypatch.setattr(peer_training.time, "perf_counter", lambda: next(seconds))


@pytest.mark.parametrize("negatives", [False, True])
def test_it_trains_for_the_seconds_and_saves_on_the_way(tmp_path, start, counted, negatives):
  columns = {"anchor": [pair["query"] for pair in PAIRS], "positive": [pair["positive"] for pair in PAIRS]}
  if negatives:
    columns["negative"] = [pair["negatives"][0] for pair in PAIRS]
  marks = {tmp_path / "half": 60.0, tmp_path / "whole": 120.0}
  steps = peer_training.train(start, columns, peer_training.Setting(16, 8, 12, 0.05, 5e-2), marks)
  assert 10 < steps[0] < steps[1] < 120
  assert similarity(start) + 0.05 < similarity(tmp_path / "half") < similarity(tmp_path / "whole")
  assert [SentenceTransformer(str(path), device="cpu").max_seq_length for path in (start, *marks)] == [40, 40, 40]


def test_pairs_that_make_no_batch(tmp_path, start):
  columns = {"anchor": ["lion"] * 20, "positive": ["tiger"] * 20}
  with pytest.raises(InputError, match="ended after 0 of 5.0 seconds: .* no batch of 16 pairs"):
    peer_training.train(start, columns, peer_training.Setting(16, 8, 12, 0.05, 5e-2), {tmp_path / "model": 5.0})


def test_the_rate_rises_and_falls_with_the_time(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(peer_training.time, "perf_counter", lambda: now[0])
  clock = peer_training._Clock(None, {"end": 20.0}, 40)
  rates = [clock.rate()]
  clock.on_train_begin(None, None, None)
  for now[0] in (100.0, 101.0, 102.0, 111.0, 120.0, 130.0):
    rates.append(clock.rate())
  np.testing.assert_allclose(rates, [0.01, 0.01, 0.5, 1.0, 0.5, 0.01, 0.01])


def test_queries_are_cut_where_the_demo_cuts_them(start):
  model = SentenceTransformer(str(start), device="cpu")
  texts = [sentence(i, 1 + i) for i in range(20)]
  cut = peer_training._cut(model, texts, 8)
  assert all(text.startswith(part) for text, part in zip(texts, cut, strict=True)) and cut[0] == texts[0]
  assert cut[-1] != texts[-1]
  assert model.tokenizer(cut)["input_ids"] == model.tokenizer(texts, truncation=True, max_length=8)["input_ids"]


def test_both_at_the_same_seconds(tmp_path, monkeypatch, capsys):
  """The demo's stages in small: two trainings of ours, theirs as long, one evaluation of all."""
  write_vocabulary(tmp_path / "spiece.model")
  pairs = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
  (tmp_path / "pairs.jsonl").write_text(pairs)
  (tmp_path / "demo_peer_tasks.py").write_text(TASKS)
  (tmp_path / "run.gin").write_text(GIN)
  write_collection(tmp_path / "small", corpus(30))
  demo = tmp_path / "demo"
  (demo / "data").mkdir(parents=True)
  monkeypatch.syspath_prepend(str(tmp_path))
  stages = []
  for stage in peer.STAGES:
    (demo / "data" / stage.model_dir).write_text(pairs)
    stages.append(stage._replace(pairs=stage.model_dir))
  monkeypatch.setattr(peer, "STAGES", tuple(stages))

  def command(*words):
    assert main(list(map(str, words))) == 0

  try:
    for name, steps in (("gtr_pt", 4), ("gtr", 4), ("untrained", 0)):
      command("train", "--gin_file", tmp_path / "run.gin", f"--gin.MODEL_DIR='{demo / name}'", "--data_dir", tmp_path,
              f"--gin.TRAIN_STEPS={steps}")
    # Compiled in no time where it has been before; and theirs would have taken no step.
    monkeypatch.setattr(peer, "_COUNTED", (*peer._COUNTED, "starting"))
    text = peer.compare(demo, command, [tmp_path / "small"])
  finally:
    data_root.set_data_dir(None)
  assert "sentence-transformers 6" in capsys.readouterr().out
  rows = text.splitlines()[2:-1]
  assert [row.split("  ")[0] for row in rows] == ["pretraining, 1 of 2", "pretraining, 2 of 2", "fine-tuning, 1 of 2",
                                                  "fine-tuning, 2 of 2"]
  points = json.loads((demo / "peer/by_time.json").read_text())
  assert [point["pairs"] for point in points if point["system"] == peer.OURS] == [32, 64, 32, 64]
  assert all(point["pairs"] > 0 and 0 < point["nDCG@10"] < 1 for point in points) and len(points) == 8
  setting = peer.setting_of(demo / "gtr")
  assert setting == peer_training.Setting(16, 8, 12, 0.05, 0.03)
