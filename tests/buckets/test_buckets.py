"""The whole path in a bucket, by the commands: what comes of it is what the same commands make in a folder."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest
from emulator import bucket
from metrics_lines import without_times
from tiny_gin import tiny_model
from tiny_model_dir import corpus, sentence, write_collection, write_vocabulary

STEPS, SAVES = 32, 8

TASKS = """
import time
from gtr_jax.data.examples import add_pair_task, jsonl, prepared
from gtr_jax.training.candidates import Candidates
for name, source in (("lines", jsonl(train="questions.jsonl")), ("records", prepared("ready", "train"))):
  add_pair_task(name, source, negatives="negatives", vocabulary="spiece.model")
look_at = Candidates.look_at
def look_slowly(self, step, batch):
  look_at(self, step, batch)
  time.sleep(0.05)  # A process that is to be killed does not come to its end before.
Candidates.look_at = look_slowly
"""

GIN = tiny_model(160, 32) + f"""
include 'runs/train.gin'
dual_encoder.DualEncoder.projection_dim = 16
TRAIN_STEPS = {STEPS}
WARMUP_STEPS = 4
LEARNING_RATE = 0.01
BATCH_SIZE = 16
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 12}}
NEGATIVES_PER_EXAMPLE = 1
MIXTURE_OR_TASK_MODULE = 'bucket_tasks'
MIXTURE_OR_TASK_NAME = 'lines'
VALIDATION = None
LOG_PERIOD = 1
EVAL_PERIOD = 0
CHECKPOINT_PERIOD = {SAVES}
"""


class Place:
  """A folder, or a bucket, with the same data."""

  def __init__(self, root, work, environment):
    self.root, self._work = root, work
    self.environment = {**os.environ, **environment, "PYTHONPATH": os.fspath(work), "JAX_NUM_CPU_DEVICES": "2",
                        "XDG_CACHE_HOME": os.fspath(work / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}

  def start(self, *arguments):
    """A command; `{}` in an argument is the root."""
    command = [sys.executable, "-m", "gtr_jax", *(argument.format(self.root) for argument in arguments)]
    return subprocess.Popen(command, env=self.environment, cwd=self._work, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)

  def run(self, *arguments):
    process = self.start(*arguments)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output

  def train(self):
    return self.start("train", f"--gin_file={self._work / 'run.gin'}", "--gin.MODEL_DIR='{}/run'", "--data_dir={}")

  def metrics(self):
    return [without_times(json.loads(line)) for line in self.read("run/metrics.jsonl").splitlines()]


class Folder(Place):

  def read(self, name):
    return (self.root / name).read_bytes()

  def names(self, below):
    found = [os.path.join(folder, file) for folder, _, files in os.walk(self.root / below) for file in files]
    return {os.path.relpath(name, self.root) for name in found}


class Bucket(Place):

  def _ask(self, path, body=None, headers=()):
    url = self.environment["STORAGE_EMULATOR_HOST"] + path
    with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers))) as answer:
      return answer.read()

  def read(self, name):
    return self._ask(f"/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}?alt=media")

  def write(self, name, data):
    self._ask(f"/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(name, safe='')}", data,
              {"Content-Type": "application/octet-stream"})

  def names(self, below):
    """Without what stands for a folder."""
    found = json.loads(self._ask(f"/storage/v1/b/bucket/o?prefix={urllib.parse.quote(below)}/")).get("items", [])
    return {item["name"] for item in found if not item["name"].endswith("/")}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """A folder and a bucket."""
  work = tmp_path_factory.mktemp("work")
  (work / "bucket_tasks.py").write_text(TASKS)
  (work / "run.gin").write_text(GIN)
  here = Folder(tmp_path_factory.mktemp("folder"), work, {})
  write_vocabulary(here.root / "spiece.model")
  (here.root / "questions.jsonl").write_text("".join(json.dumps({
      "query": f"{sentence(i, 1 + i % 5)} {i}", "passage": f"{sentence(i, 4 + i % 9)} {i}",
      "negatives": [sentence(i + 3, 6)]}) + "\n" for i in range(300)))
  write_collection(here.root / "collection", corpus(150))
  with bucket(work) as environment:
    there = Bucket("gs://bucket", work, environment)
    for name in here.names("."):
      there.write(name, here.read(name))
    yield here, there


@pytest.fixture(scope="module")
def trained(places):
  """In the bucket killed twice: while it saved its first checkpoint, and behind it."""
  here, there = places
  output = (process := here.train()).communicate(timeout=600)[0]
  assert process.returncode == 0, output
  first = f"run/checkpoints/{SAVES}"
  done = f"{first}/commit_success.txt"
  for ready in (lambda: there.names(first), lambda: done in there.names(first) and len(there.metrics()) > SAVES):
    process = there.train()
    while not ready():
      assert process.poll() is None, process.communicate()[0]
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert done in there.names(first)
  output = (process := there.train()).communicate(timeout=600)[0]
  assert process.returncode == 0, output
  assert "going on at step" in output
  return places


def test_training_goes_on_where_it_was_killed(trained):
  here, there = trained
  assert there.metrics() == here.metrics() and here.metrics()[-1]["step"] == STEPS
  own = {"run/config.gin", "run/metrics.jsonl", "run/model.json", "run/parameters.txt", "run/versions.json"}
  assert own < here.names("run") and {name for name in there.names("run") if name.count("/") == 1} == {
      name for name in here.names("run") if name.count("/") == 1 and not name.endswith(".lock")}
  assert {name.split("/")[2] for name in there.names("run/checkpoints")} == {
      name.split("/")[2] for name in here.names("run/checkpoints")}


def test_what_is_made_of_a_model(trained):
  """Encoding, search, evaluation, mining."""
  for place in trained:
    place.run("encode", "--model={}/run", "--collection={}/collection", "--output={}/store")
    place.run("search", "--model={}/run", "--embeddings={}/store", "--queries={}/collection/queries.jsonl",
              "--output={}/found.trec")
    place.run("evaluate", "--model={}/run", "--collection={}/collection", "--output={}/results")
    place.run("mine", "--model={}/run", "--pairs={}/questions.jsonl", "--output={}/mined.jsonl.gz", "--first_rank=1",
              "--last_rank=12", "--num_negatives=2")
  here, there = trained
  assert there.names("store") == here.names("store")
  assert all(there.read(name) == here.read(name) for name in here.names("store"))
  assert there.read("found.trec") == here.read("found.trec") != b""
  assert gzip.decompress(there.read("mined.jsonl.gz")) == gzip.decompress(here.read("mined.jsonl.gz")) != b""
  results = [json.loads(place.read("results/results.json"))["systems"]["run"]["results"] for place in trained]
  assert results[0] == results[1] and 0 < results[0]["collection"]["nDCG@10"] <= 1


def test_prepared(places):
  for place in places:
    place.run("prepare", "pairs", "{}/questions.jsonl", "--data_dir={}", "--name=ready", "--min_words=1")
  here, there = places
  shards = {name for name in here.names("ready") if name.endswith(".tfrecord")}
  assert shards and there.names("ready") == here.names("ready")
  assert all(there.read(name) == here.read(name) for name in shards)
