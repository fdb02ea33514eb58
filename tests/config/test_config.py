"""Gin files: what a run resolves to, and what is refused before it starts."""

import os
import re
from pathlib import Path

import pytest

from gtr_jax import config
from gtr_jax.errors import InputError
from gtr_jax.from_pairs import start
from gtr_jax.models import t5
from gtr_jax.training import run

GOLDEN = Path(__file__).parents[1] / "golden" / "runs"
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
    "gtr_base_finetune_rocketqa": ["models/t5_base.gin", "recipes/gtr_finetune_rocketqa.gin"],
    "gtr_base_finetune_nq": ["models/t5_base.gin", "recipes/gtr_finetune_nq.gin"],
    "sentence_t5_large_nli": ["models/t5_large.gin", "recipes/sentence_t5_nli.gin"],
}
OF_RUN = {"demo": ["VALIDATION_COLLECTION='c'"]} | dict.fromkeys(
    ["gtr_large_finetune_eight_gpus", "gtr_base_finetune_10_percent", "gtr_base_finetune_nq",
     "gtr_base_finetune_rocketqa", "sentence_t5_large_nli"],
    ["INITIAL_CHECKPOINT_PATH='runs/pretrained'"])
REQUIRED = ["MODEL_DIR='m'", "MIXTURE_OR_TASK_NAME='task'", "MIXTURE_OR_TASK_MODULE='module'"]
BASE = ["models/t5_tiny.gin", "runs/pretrain.gin"]


def resolve(files, bindings=()):
  config.parse(files, bindings)
  return config.resolved(run.TrainingRun)


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
  assert "TrainingRun.optimizer = @gtr_jax.training.optimizers.adamw()" in text and "adafactor" not in text


def test_search_path_comes_before_ours(tmp_path, monkeypatch):
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "train.gin").mkdir()  # A folder with an include's name in the current folder is no trap.
  (tmp_path / "extra").mkdir()
  (tmp_path / "extra" / "more.gin").write_text("LOG_PERIOD = 7\n")
  monkeypatch.chdir(tmp_path)
  config.parse([*BASE, "more.gin"], REQUIRED, [str(tmp_path / "extra")])
  assert "log_period = 7\n" in config.resolved(run.TrainingRun)


def test_an_include_may_lie_beside_the_file(tmp_path):
  (tmp_path / "common.gin").write_text("LOG_PERIOD = 7\n")
  (tmp_path / "mine.gin").write_text("include 'runs/pretrain.gin'\ninclude 'common.gin'\n")
  assert "log_period = 7\n" in resolve(["models/t5_tiny.gin", str(tmp_path / "mine.gin")], REQUIRED)


@pytest.mark.parametrize("binding, message", [
    ("BATCH_SIZ=32", "--gin.BATCH_SIZ=32: nothing in this run uses BATCH_SIZ"),
    ("optimizers.adamw.b1=0.5", "nothing in this run uses gtr_jax.training.optimizers.adamw.b1"),
    ("t5.T5Config.layers=2", "T5Config has no parameter 'layers'; did you mean num_layers?"),
    ("MODEL_DIR=runs/a", "a string needs quotes of its own"),
    ("OPTIMIZER=@optimizer.adamw()", "no import statement of the gin files provides 'optimizer'; did you mean optimiz"),
    ("OPTIMIZER=@optimizers.adamv()", "gtr_jax.training.optimizers has no 'adamv'; did you mean adamw?"),
    ("t5.T5Confg.num_layers=2", "gtr_jax.models.t5 has no 'T5Confg'; did you mean T5Config?"),
    ("t5.T5Config=2", "t5.T5Config is a function or class; name what to bind of it: --gin.t5.T5Config.PARAMETER=VALUE"),
    ("BATCH_SIZ=32", "did you mean BATCH_SIZE?"), ("batch_size=32", "did you mean BATCH_SIZE?"),
    ("MODEL=%MODLE", "MODLE is not set: give --gin.MODLE=VALUE or bind it in a gin file; did you mean MODEL?"),
    # What is no value of Python's.
    ("MODEL_DIR=runs/a", "runs/a is no value: a string needs quotes of its own, as in --gin.MODEL_DIR=\"'runs/a'\""),
    ("MODEL_DIR=~/a", "~/a is no value: a string needs quotes of its own"),
    ("MODEL_DIR=\"runs/a", "a quote or bracket is not closed"), ("EVALUATORS=[1,", "a quote or bracket is not closed"),
    ("TASK_FEATURE_LENGTHS={'inputs': a}", "a is no value: a string needs quotes of its own, as in 'a'"),
    ("EVALUATORS=[evaluate.X]", "evaluate is no value: a string needs .* or, of a function, @evaluate.X"),
    ("ONE_TASK_PER_BATCH=true", "true is no value: write True"), ("VOCABULARY=null", "null is no value: write None"),
    ("LEARNING_RATE=1/3", "1/3 is more than one value: gin computes nothing"),
    ("MODEL_DIR=“a”", "“a” has typographic quotes"), ("BATCH_SIZE=", "BATCH_SIZE is given no value; write --gin.BATC"),
    ("BATCH_SIZE", "'BATCH_SIZE' binds nothing; write --gin.NAME=VALUE"), ("=3", "'' is no name that could be bound"),
    ("include 'x.gin'", "x.gin: no such gin file"),
    ("from gtr_jax.training import optimizers, run", "an import statement of gin's names one module; write a line for"),
])
def test_wrong_flag(binding, message):
  with pytest.raises(InputError) as e:
    config.load(run.TrainingRun, BASE, [*REQUIRED, binding])
  text = str(e.value)
  assert text.isprintable() and re.search("(<.* object|<module|malformed| at 0x|SyntaxError)", text) is None
  assert message in text or re.search(message, text), text


def test_all_that_is_wrong_at_once(tmp_path):
  """Statements of a file, bindings, names and values; nothing that only comes of another one."""
  path = tmp_path / "mine.gin"
  path.write_text("""from __gin__ import dynamic_registration
from gtr_jax.models import t5
include 'runs/pretrain.gin'
t5.T5Config.layers = 3
MODEL_DIR = runs
TASK_FEATURE_LENGTHS = {
  'inputs': x,
  'targets': 8}
EVAL_PERIOD = 2.5
""")
  with pytest.raises(InputError) as e:
    config.load(run.TrainingRun, ["models/t5_tiny.gin", str(path)],
                ["MIXTURE_OR_TASK_NAME=task", "BATCH_SIZ=8", "TRAIN_STEPS=-1", "OPTIMIZER=@optimizers.adam()",
                 "optimizers.adamw.b1=0.5"])
  assert str(e.value).split("; ") == [
      f"{path}:4: T5Config has no parameter 'layers'", "did you mean num_layers?",
      f"{path}:5: runs is no value: a string needs quotes of its own, as in MODEL_DIR = 'runs'",
      f"{path}:7: x is no value: a string needs quotes of its own, as in 'x'",
      "--gin.MIXTURE_OR_TASK_NAME=task: task is no value: a string needs quotes of its own, as in "
      "--gin.MIXTURE_OR_TASK_NAME=\"'task'\"",
      "--gin.OPTIMIZER=@optimizers.adam(): gtr_jax.training.optimizers has no 'adam'", "did you mean adamw?",
      "--gin.BATCH_SIZ=8: nothing in this run uses BATCH_SIZ", "did you mean BATCH_SIZE?",
      "TRAIN_STEPS is -1: give a whole number of 0 or more",
      f"{path}:9: EVAL_PERIOD is 2.5: give a whole number of 0 or more"]


def test_what_is_wrong_in_an_included_file_is_named_there(tmp_path):
  (tmp_path / "inner.gin").write_text("\nBATCH_SIZE = eight\n")
  (tmp_path / "outer.gin").write_text("include 'runs/pretrain.gin'\ninclude 'inner.gin'\n")
  with pytest.raises(InputError) as e:
    config.load(run.TrainingRun, ["models/t5_tiny.gin", str(tmp_path / "outer.gin")], REQUIRED)
  assert str(e.value) == (f"{tmp_path}/inner.gin:2: eight is no value: a string needs quotes of its own, as in "
                          "BATCH_SIZE = 'eight'")
  (tmp_path / "inner.gin").write_text("\n\nTASK_FEATURE_LENGTHS = {'inputs': 3,\n\nBATCH_SIZE = 8\n")
  with pytest.raises(InputError, match="inner.gin:3: a quote or bracket is not closed"):
    config.load(run.TrainingRun, ["models/t5_tiny.gin", str(tmp_path / "inner.gin")], REQUIRED)


def test_includes_that_are_found_are_not_logged_as_missing(tmp_path, caplog):
  (tmp_path / "common.gin").write_text("LOG_PERIOD = 7\n")
  (tmp_path / "mine.gin").write_text("include 'runs/pretrain.gin'\ninclude 'common.gin'\n")
  config.load(run.TrainingRun, ["models/t5_tiny.gin", str(tmp_path / "mine.gin")], REQUIRED)
  assert not caplog.records


@pytest.mark.parametrize("binding, message", [
    # A number of another type.
    ("BATCH_SIZE=16.0", "BATCH_SIZE is 16.0: give a whole number without a point: 16"),
    ("TRAIN_STEPS=2e0", "TRAIN_STEPS is 2.0: give a whole number without a point: 2"),
    ("EVAL_PERIOD=100.0", "EVAL_PERIOD is 100.0: give a whole number without a point: 100"),
    ("BATCH_SIZE='x'", "BATCH_SIZE is 'x': give a positive whole number"),
    ("BATCH_SIZE=True", "BATCH_SIZE is True: give a positive whole number"),
    ("BATCH_SIZE=None", "BATCH_SIZE is None: give a positive whole number"),
    ("BATCH_SIZE=-0.0", "BATCH_SIZE is -0.0: give a positive whole number"),
    ("LEARNING_RATE='1e-3'", "LEARNING_RATE is '1e-3': give a number of 0 or more"),
    ("RANDOM_SEED=0.5", "RANDOM_SEED is 0.5: give a whole number from 0 to 4,294,967,295"),
    ("t5.T5Config.num_layers=12.0", "t5.T5Config.num_layers is 12.0: give a whole number without a point: 12"),
    ("t5.T5Config.head_dim='64'", "t5.T5Config.head_dim is '64': give a positive whole number"),
    ("TASK_FEATURE_LENGTHS={'inputs': 5.0, 'targets': 5}",
     "TASK_FEATURE_LENGTHS['inputs'] is 5.0: give a whole number without a point: 5"),
    ("optimizers.adafactor.learning_rate='x'", "optimizers.adafactor.learning_rate is 'x': give a number of 0 or more, "
     "or a schedule such as @optimizers.linear_decay()"),
    # A number out of range.
    ("TEMPERATURE=0", "TEMPERATURE is 0: give a number above 0 (GTR: 0.01)"),
    ("TEMPERATURE=-1", "TEMPERATURE is -1: give a number above 0"),
    ("TEMPERATURE=1e999", "TEMPERATURE is inf: give a number above 0"),
    ("TEMPERATURE=nan", "--gin.TEMPERATURE=nan: nan is no value: give a finite number"),
    ("DROPOUT_RATE=1.5", "DROPOUT_RATE is 1.5: give a number from 0 to below 1"),
    ("WARMUP_STEPS=-1", "WARMUP_STEPS is -1: give a whole number of 0 or more"),
    ("DATA_FRACTION=0", "DATA_FRACTION is 0: give a number above 0 and up to 1"),
    ("DATA_FRACTION=1.5", "DATA_FRACTION is 1.5: give a number above 0 and up to 1"),
    ("EXTRA_IDS=-1", "EXTRA_IDS is -1: give a whole number of 0 or more"),
    ("RANDOM_SEED=-1", "RANDOM_SEED is -1: give a whole number from 0"),
    ("QUERY_LENGTH=1", "QUERY_LENGTH is 1: give a whole number of 2 or more (a token and EOS)"),
    ("BATCH_SIZE=3000000000", "BATCH_SIZE is 3000000000: give a whole number from 1 to 2,147,483,647"),
    ("TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 5}", "TASK_FEATURE_LENGTHS['inputs'] is 0: give a whole number of"),
    ("partitioning.make_mesh.data=0", "partitioning.make_mesh.data is 0: give a positive whole number, or -1"),
    ("in_batch.InBatchLoss.label_smoothing=1", "InBatchLoss.label_smoothing is 1: give a number from 0 to below 1"),
    ("optimizers.adafactor.clip_norm=0", "optimizers.adafactor.clip_norm is 0: give a number above 0"),
    # Something other than a number.
    ("TASK_FEATURE_LENGTHS=[1, 2]", "TASK_FEATURE_LENGTHS is [1, 2]: give a dictionary such as {'inputs': 64,"),
    ("TASK_FEATURE_LENGTHS={1: 5}", "TASK_FEATURE_LENGTHS is {1: 5}: give keys that are each a string, not 1"),
    ("MODEL_DIR=3", "MODEL_DIR is 3: give a string"),
    ("QUERY_PROMPT=None", "QUERY_PROMPT is None: give a string"),
    ("BEST_METRIC=3", "BEST_METRIC is 3: give a string, or None"),
    ("VOCABULARY=3", "VOCABULARY is 3: give a string, or None"),
    ("ONE_TASK_PER_BATCH=1", "ONE_TASK_PER_BATCH is 1: give True or False"),
    ("USE_CACHED_TASKS='False'", "USE_CACHED_TASKS is 'False': give True or False"),
    ("t5.T5Config.mlp_activations='relu'", "t5.T5Config.mlp_activations is 'relu': give a list, in []"),
    ("EVALUATORS='x'", "EVALUATORS is 'x': give a list, in []"),
    ("EVALUATORS=[3]", "EVALUATORS[0] is 3: give a reference @module.name"),
    # A reference to something else, or with () where none belong.
    ("MODEL=@optimizers.adafactor()", "MODEL is @optimizers.adafactor(), which makes an Optimizer: give a reference "
     "@module.name() that makes a DualEncoder"),
    ("MODEL='t5'", "MODEL is 't5': give a reference @module.name() that makes a DualEncoder"),
    ("OPTIMIZER=@optimizers.adafactor", "OPTIMIZER is @optimizers.adafactor: write it with (), as "
     "@optimizers.adafactor()"),
    ("LOSS=@in_batch.InBatchLoss", "LOSS is @in_batch.InBatchLoss: write it with (), as @in_batch.InBatchLoss()"),
    ("LOSS=@optimizers.adafactor()", "LOSS is @optimizers.adafactor(), which makes an Optimizer"),
    ("LEARNING_RATE=@optimizers.adamw()", "LEARNING_RATE is @optimizers.adamw(), which makes an Optimizer"),
    ("VALIDATION=@pipeline.ValidationBatches()", "write it without (), as @pipeline.ValidationBatches"),
    ("EVALUATORS=[@pipeline.TrainingBatches()]", "EVALUATORS[0] is @pipeline.TrainingBatches(): write it without ()"),
    ("BATCH_SIZE=%BATCH_SIZE", "BATCH_SIZE is made of itself; give it a value"),
    # Values that do not fit together.
    ("ROW_LENGTHS={'inputs': 8, 'targets': 300}", "rows of 8 tokens for inputs (ROW_LENGTHS) are shorter"),
    ("MICROBATCH_SIZE=3", "(MICROBATCH_SIZE) is 3: it must divide the batch of 2048"),
    ("TASK_FEATURE_LENGTHS={'inputs': 7}", "give inputs and targets"),
    ("t5.T5Config.dtype='float16'", "T5Config.dtype is 'float16': use 'auto', 'float32' or 'bfloat16'"),
    ("in_batch.InBatchLoss.own_negatives_only=True", "InBatchLoss.own_negatives_only has no backward direction"),
])
def test_wrong_value(binding, message):
  with pytest.raises(InputError) as e:
    resolve(BASE, [*REQUIRED, binding])
  assert message in str(e.value) and "\n" not in str(e.value)


def test_all_wrong_values_at_once_by_the_names_that_hold_them(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("STEPS = 2.5\nTRAIN_STEPS = %STEPS\nLENGTH = 'x'\n"
                  "TASK_FEATURE_LENGTHS = {'inputs': %LENGTH, 'targets': 8}\n")
  with pytest.raises(InputError) as e:
    resolve([*BASE, str(path)], [*REQUIRED, "BATCH_SIZE=0"])
  assert set(str(e.value).split("; ")) == {
      "BATCH_SIZE is 0: give a positive whole number",
      f"{path}:1: STEPS is 2.5: give a whole number of 0 or more",
      f"{path}:4: TASK_FEATURE_LENGTHS['inputs'] is 'x': give a whole number of 2 or more (a token and EOS)"}


def test_what_a_call_needs_and_nothing_binds(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("from __gin__ import dynamic_registration\nfrom gtr_jax.models import dual_encoder\n"
                  "include 'runs/pretrain.gin'\nMODEL = @dual_encoder.DualEncoder()\n")
  with pytest.raises(InputError, match="dual_encoder.DualEncoder.config is not set: give --gin.dual_encoder.DualEnc"):
    resolve([str(path)], REQUIRED)


@pytest.mark.parametrize("text", [b"BATCH_SIZE = 8 # \xff\n", b"BATCH_SIZE = " + b"[" * 5000 + b"]" * 5000,
                                  b"BATCH_SIZE = " + b"9" * 5000 + b"\n", b"BATCH_SIZE = 8\0\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
  (tmp_path / "mine.gin").write_bytes(text)
  with pytest.raises(InputError, match="mine.gin") as e:
    resolve([*BASE, str(tmp_path / "mine.gin")], REQUIRED)
  assert "\n" not in str(e.value) and len(str(e.value)) < 600


def test_wrong_line_of_a_file(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("include 'runs/pretrain.gin'\n\nDROPUOT_RATE = 0.2\n")
  with pytest.raises(InputError, match=r"mine\.gin:3: nothing in this run uses DROPUOT_RATE"):
    resolve(["models/t5_tiny.gin", str(path)], REQUIRED)
  path.write_text("BATCH_SIZE =\n")
  with pytest.raises(InputError, match=r"mine\.gin:1: BATCH_SIZE is given no value"):
    resolve([*BASE, str(path)], REQUIRED)


def test_what_nobody_has_written_down_may_be_unused():
  """As where a flag has the text made that comes first, and a binding replaces what uses it."""
  config.load(run.TrainingRun, BASE, [*REQUIRED, "run.TrainingRun.best_metric=None"],
              first="BEST_METRIC = 'dev/ndcg'\nSOMETHING = 1\n")


def test_what_is_required():
  with pytest.raises(InputError, match=r"MODEL_DIR is not set: give --gin.MODEL_DIR=VALUE"):
    resolve(BASE, REQUIRED[1:])
  with pytest.raises(InputError, match=r"INITIAL_CHECKPOINT_PATH is not set: give --gin.INITIAL_CHECKPOINT"):
    resolve(["models/t5_base.gin", "recipes/gtr_finetune.gin"], REQUIRED)
  with pytest.raises(InputError, match="T5_CHECKPOINT is not set: give --gin.T5_CHECKPOINT="):
    resolve(["models/t5_tiny.gin", "recipes/gtr_pretrain.gin"], REQUIRED)
  with pytest.raises(InputError, match="nowhere.gin: no such gin file"):
    resolve(["nowhere.gin"])


def test_the_table_of_models_is_what_the_files_say():
  rows = {name: cells for name, *cells in (
      [cell.strip(" `") for cell in line.strip("|").split("|")]
      for line in (config.configs_dir().parent / "docs" / "models.md").read_text().splitlines()
      if re.match(r"\| `m?t5_\w+` \|", line))}
  assert set(rows) == set(start.sizes())
  for name, (*numbers, activations, _, weights) in rows.items():
    config.parse([f"models/{name}.gin"])
    bound = config.bindings(t5.T5Config)
    fields = ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_layers", "vocab_size")
    assert [int(number.replace(",", "")) for number in numbers] == [bound[field] for field in fields], name
    assert tuple(activations.split(", ")) == bound["mlp_activations"]
    text = (config.configs_dir() / "models" / f"{name}.gin").read_text()
    assert re.findall(r"^T5_CHECKPOINT = '(.*)'", text, re.M) == [weights] * bool(weights)
