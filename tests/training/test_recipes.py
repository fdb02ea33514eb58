"""The recipes, with a tiny model put in place of T5's: prepared data, tasks, and three steps of each."""

import dataclasses
import json
import re
import runpy

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds
from tiny_gin import tiny_model
from tiny_model_dir import sentence, write_model_dir

from gtr_jax import config
from gtr_jax.cli.main import main
from gtr_jax.data.sources import TfdsSource
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.training import run

# Of each distinct structure one; the other recipes differ from these in numbers and names only (tests/golden/runs).
RECIPES = {
    "GTR-PT, one GPU": (["recipes/gtr_pretrain.gin", "meshes/one_gpu.gin"], ["MICROBATCH_SIZE=16"]),
    "GTR, eight GPUs": (["recipes/gtr_finetune.gin", "meshes/eight_gpus.gin"], ["MICROBATCH_SIZE=16"]),
    "GTR-FT, 10 %, TPU slice": (["recipes/gtr_finetune_10_percent.gin", "meshes/tpu_slice.gin"],
                                ["DATA_FRACTION=0.5"]),
    "Sentence-T5": (["recipes/sentence_t5_nli.gin"], ["ONE_TASK_PER_BATCH=True"]),
}
TINY = tiny_model(56, 16)
SHORT = ["BATCH_SIZE=32", "TRAIN_STEPS=3", "LOG_PERIOD=1", "EVAL_PERIOD=3", "CHECKPOINT_PERIOD=3",
         "TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 16}", "ROW_LENGTHS={'inputs': 16, 'targets': 24}",
         "QUERY_LENGTH=8", "DOCUMENT_LENGTH=16", "dual_encoder.DualEncoder.projection_dim=8"]
NAMES = {"reddit", "stack_exchange", "msmarco_hard_negatives", "natural_questions", "nli"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A data root where all that the recipes read is prepared, T5's vocabulary is a tiny one, and T5 is a tiny run."""
  folder = tmp_path_factory.mktemp("recipes")
  write_model_dir(folder / "t5")
  (folder / "t5_vocab").mkdir()
  (folder / "vocabulary.model").rename(folder / "t5_vocab" / "spiece.model")
  (folder / "tiny.gin").write_text(TINY)
  for number, name in enumerate(sorted(NAMES)):
    rows = [{"query": f"{sentence(i, 3)} {i}", "pos": [f"{sentence(i + number, 7)} {i}"],
             "neg": [f"{sentence(i + k, 6)} {k} {i}" for k in range(1, 5)]} for i in range(160)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["prepare", "pairs", str(folder / f"{name}.jsonl"), "--name", name, "--data_dir", str(folder),
                     "--validation_share", "0.25", "--workers", "1"]) == 0
  yield folder
  data_root.set_data_dir(None)


class OnMesh(InBatchLoss):
  """What `on_mesh` gives."""

  computed: list[bool] = []  # Whether in training. # noqa: RUF012

  def _compute(self, *args):
    self.computed.append(args[-1])
    return super()._compute(*args)


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps_of_each_recipe(data, name, tmp_path, monkeypatch):
  monkeypatch.setattr(InBatchLoss, "on_mesh", lambda loss, mesh: OnMesh(**dataclasses.asdict(loss)))
  OnMesh.computed.clear()
  files, bindings = RECIPES[name]
  data_root.set_data_dir(str(data))
  start = f"{'T5_CHECKPOINT' if 'pretrain' in files[0] else 'INITIAL_CHECKPOINT_PATH'}='{data / 't5'}'"
  config.parse([str(data / "tiny.gin"), *files],
               [*SHORT, "EXTRA_IDS=0", "VOCABULARY='t5_vocab/spiece.model'", f"MODEL_DIR='{tmp_path / 'run'}'",
                start, *bindings])
  assert run.train(config.bound(run.TrainingRun)(), config.resolved(run.TrainingRun)) is None
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in lines if "train/loss" in line]
  assert len(losses) == 3 and np.isfinite(losses).all() and np.isfinite(lines[-1]["validation/loss"])
  assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
  assert {True, False} == set(OnMesh.computed)  # In training and in validation the loss for the mesh.


def test_every_task_says_how_to_prepare_it(tmp_path):
  """All tasks that the recipes and BEIR have; a command names a source that there is, and the folder that is read."""
  import gtr_jax.tasks.beir
  import gtr_jax.tasks.community_qa
  import gtr_jax.tasks.msmarco
  import gtr_jax.tasks.natural_questions
  import gtr_jax.tasks.nli  # noqa: F401
  data_root.set_data_dir(str(tmp_path))
  try:
    for name in (*NAMES, "msmarco", "rocketqa", "trivia_qa", "squad", *(f"beir_{name}" for name in (
        "bioasq", "fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus", "nq", "scifact"))):
      task = seqio.TaskRegistry.get(name)
      with pytest.raises(InputError, match=r"no prepared data there; run: gtr-jax prepare ") as e:
        task.source.list_shards("train")
      folder = re.search(r"(\S+): no prepared data", str(e.value))[1].rpartition("/")[2]
      command = str(e.value).partition("run: ")[2].split()
      named = command[command.index("--name") + 1] if "--name" in command else command[2]
      assert folder == (f"beir_{command[3].rpartition('/')[2]}" if named == "beir" else named), str(e.value)
  finally:
    data_root.set_data_dir(None)


def test_fields_of_tfds_are_those_of_its_builders(tmp_path):
  import gtr_jax.tasks.beir
  import gtr_jax.tasks.community_qa
  import gtr_jax.tasks.natural_questions  # noqa: F401
  sets = {f"beir_{config.name.replace('.', '_')}_tfds": config.qrel_splits
          for config in tfds.builder_cls("beir").BUILDER_CONFIGS}
  for name in ("reddit_summaries", "natural_questions_pages", "squad_paragraphs", *sets):
    source = seqio.TaskRegistry.get(name).source
    assert isinstance(source, TfdsSource)
    builder = tfds.builder(source._name, data_dir=tmp_path)
    fields = source._fields
    used = {*fields.query, *fields.passage, *filter(None, (fields.query_id, fields.passage_id))}
    assert used <= set(builder.info.features), name
    if name in sets:
      assert source._patterns == {split: split for split in sets[name]}, name


def test_two_mined_files_that_would_be_one_task(tmp_path):
  (tmp_path / "mined").mkdir()
  for name in ("same-name.jsonl", "same_name.jsonl.gz"):
    (tmp_path / "mined" / name).write_text('{"query": "a", "positive": "b"}\n')
  data_root.set_data_dir(str(tmp_path))
  try:
    with pytest.raises(InputError, match="both would be the task mined_same_name; rename one"):
      runpy.run_module("gtr_jax.tasks.mined")
  finally:
    data_root.set_data_dir(None)
    seqio.TaskRegistry.remove("mined_same_name")
