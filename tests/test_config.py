"""Gin files: what a run resolves to, and what is refused before it starts."""

import os
from pathlib import Path

import pytest

from gtr_jax import config, train
from gtr_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "runs"
RUNS = {
    "pretrain": ["models/t5_base.gin", "runs/pretrain.gin"],
    "finetune": ["models/t5_base.gin", "runs/finetune.gin"],
    "demo_pretrain": ["runs/demo_pretrain.gin"],
    "demo_finetune": ["runs/demo_finetune.gin"],
    "gtr_base_pretrain_one_gpu": ["models/t5_base.gin", "recipes/gtr_pretrain.gin", "meshes/one_gpu.gin"],
    "gtr_xxl_pretrain_tpu_slice": ["models/t5_xxl.gin", "recipes/gtr_pretrain.gin", "meshes/tpu_slice.gin"],
    "gtr_large_finetune_eight_gpus": ["models/t5_large.gin", "recipes/gtr_finetune.gin", "meshes/eight_gpus.gin"],
    "gtr_xl_finetune_only": ["models/t5_xl.gin", "recipes/gtr_finetune_only.gin"],
    "gtr_base_finetune_10_percent": ["models/t5_base.gin", "recipes/gtr_finetune_10_percent.gin"],
    "gtr_base_finetune_nq": ["models/t5_base.gin", "recipes/gtr_finetune_nq.gin"],
    "sentence_t5_large_nli": ["models/t5_large.gin", "recipes/sentence_t5_nli.gin"],
}
OF_RUN = {"demo": ["VALIDATION_COLLECTION='c'"]} | dict.fromkeys(
    ["gtr_large_finetune_eight_gpus", "gtr_base_finetune_10_percent", "gtr_base_finetune_nq", "sentence_t5_large_nli"],
    ["INITIAL_CHECKPOINT_PATH='runs/pretrained'"])
REQUIRED = ["MODEL_DIR='m'", "MIXTURE_OR_TASK_NAME='task'", "MIXTURE_OR_TASK_MODULE='module'"]
BASE = ["models/t5_tiny.gin", "runs/pretrain.gin"]


def resolve(files, bindings=()):
  config.parse(files, bindings)
  return config.resolved(train.train)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_resolved_run_is_the_golden_one(name):
  text = resolve(RUNS[name], REQUIRED if name in ("pretrain", "finetune") else
                 [REQUIRED[0], *OF_RUN.get(name.partition("_")[0], []), *OF_RUN.get(name, [])])
  path = GOLDEN / f"{name}.gin"
  if os.environ.get("GOLDEN_UPDATE"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  assert text == path.read_text(), "set GOLDEN_UPDATE=1 to accept the change"


def test_resolved_text_repeats_the_run(tmp_path):
  text = resolve(RUNS["finetune"], REQUIRED)
  (tmp_path / "again.gin").write_text(text)
  assert resolve([str(tmp_path / "again.gin")]) == text


@pytest.mark.parametrize("path", sorted(str(p.relative_to(config.configs_dir()))
                                        for p in config.configs_dir().rglob("*.gin") if p.parent.name != "t5x"))
def test_every_file_parses(path):
  config.parse([path])


def test_later_files_and_flags_win(tmp_path):
  (tmp_path / "mine.gin").write_text("include 'runs/pretrain.gin'\nBATCH_SIZE = 64\nRANDOM_SEED = 3\n")
  text = resolve(["models/t5_tiny.gin", str(tmp_path / "mine.gin")], [*REQUIRED, "BATCH_SIZE=32"])
  assert "TrainingBatches.batch_size = 32\n" in text and "random_seed = 3\n" in text


def test_a_binding_may_name_what_the_files_import():
  text = resolve(BASE, [*REQUIRED, "OPTIMIZER=@optimizers.adamw()", "optimizers.adamw.weight_decay=0.1"])
  assert "train.optimizer = @gtr_jax.training.optimizers.adamw()" in text and "adafactor" not in text


def test_search_path_comes_before_ours(tmp_path, monkeypatch):
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "train.gin").mkdir()  # A folder with an include's name in the current folder is no trap.
  (tmp_path / "extra").mkdir()
  (tmp_path / "extra" / "more.gin").write_text("LOG_PERIOD = 7\n")
  monkeypatch.chdir(tmp_path)
  config.parse([*BASE, "more.gin"], REQUIRED, [str(tmp_path / "extra")])
  assert "log_period = 7\n" in config.resolved(train.train)


def test_an_include_may_lie_beside_the_file(tmp_path):
  (tmp_path / "common.gin").write_text("LOG_PERIOD = 7\n")
  (tmp_path / "mine.gin").write_text("include 'runs/pretrain.gin'\ninclude 'common.gin'\n")
  assert "log_period = 7\n" in resolve(["models/t5_tiny.gin", str(tmp_path / "mine.gin")], REQUIRED)


@pytest.mark.parametrize("binding, message", [
    ("BATCH_SIZ=32", "--gin.BATCH_SIZ=32: nothing in this run uses BATCH_SIZ"),
    ("optimizers.adamw.b1=0.5", "nothing in this run uses gtr_jax.training.optimizers.adamw.b1"),
    ("t5.T5Config.layers=2", "doesn't have a parameter named 'layers'"),
    ("MODEL_DIR=runs/a", "a string needs quotes of its own"),
    ("OPTIMIZER=@optimizer.adamw()", "'optimizer'"),
])
def test_wrong_flag(binding, message):
  with pytest.raises(InputError) as e:
    resolve(BASE, [*REQUIRED, binding])
  assert message in str(e.value) and "\n" not in str(e.value)


def test_wrong_line_of_a_file(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("include 'runs/pretrain.gin'\n\nDROPUOT_RATE = 0.2\n")
  with pytest.raises(InputError, match=r"mine\.gin:3: nothing in this run uses DROPUOT_RATE"):
    resolve(["models/t5_tiny.gin", str(path)], REQUIRED)
  path.write_text("BATCH_SIZE =\n")
  with pytest.raises(InputError, match=r"mine\.gin, line 1"):
    resolve([*BASE, str(path)], REQUIRED)


def test_what_is_required():
  with pytest.raises(InputError, match=r"MODEL_DIR is not set: give --gin.MODEL_DIR=VALUE"):
    resolve(BASE, REQUIRED[1:])
  with pytest.raises(InputError, match=r"INITIAL_CHECKPOINT_PATH is not set: give --gin.INITIAL_CHECKPOINT"):
    resolve(["models/t5_base.gin", "recipes/gtr_finetune.gin"], REQUIRED)
  with pytest.raises(InputError, match="T5_CHECKPOINT is not set: give --gin.T5_CHECKPOINT="):
    resolve(["models/t5_tiny.gin", "recipes/gtr_pretrain.gin"], REQUIRED)
  with pytest.raises(InputError, match="nowhere.gin: no such gin file"):
    resolve(["nowhere.gin"])
