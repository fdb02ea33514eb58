"""`python -m t5x.train`, `t5x.eval` and `t5x.infer` with our gin files, beside our own trainer and readers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from t5x_runs import BATCH, LENGTHS, SEED, SIZES, TEMPERATURE, json_lines, logged, t5x_program, write_task

pytest.importorskip("t5x.train", reason="T5X is not installed")
from etils import epath
from t5x import utils

from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.formats import any_form, t5x
from gtr_jax.formats.model_on_disk import Array
from gtr_jax.io import data_root
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import make_batch
from gtr_jax.text.packing import pad_texts
from gtr_jax.training import optimizers
from gtr_jax.training.state import TrainState, create_state
from gtr_jax.training.step import compile_step, make_train_step

STEPS = 20
WARMUP, RATE = 4, 2e-3
# Of AdamW. Its default makes whole steps of gradients that are nothing but rounding, which differs by the machine.
EPS = 1e-3
TRAINING = [f"train/utils.DatasetConfig.seed = {SEED}", "train_script.train.stats_period = 1", f"TRAIN_STEPS = {STEPS}",
            f"WARMUP_STEPS = {WARMUP}", f"LEARNING_RATE = {RATE}", f"CHECKPOINT_PERIOD = {STEPS}",
            f"EVAL_PERIOD = {STEPS}"]


def our_model():
  return DualEncoder(T5Config(**SIZES), projection_dim=768)


def nested(source):
  """The arrays of a checkpoint, as the model takes them."""
  return traverse_util.unflatten_dict({name: array.read() for name, array in source.arrays.items()}, sep="/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A task, and a checkpoint of random parameters that gtr_jax has written: `initial/checkpoint_0`."""
  folder = tmp_path_factory.mktemp("t5x")
  write_task(folder)
  params = jax.tree.map(np.asarray, nn.meta.unbox(our_model().init(jax.random.key(3))))
  write_checkpoint(folder / "initial", traverse_util.flatten_dict(params, sep="/"))
  return folder


def write_checkpoint(folder, flat):
  path = epath.Path(folder / "checkpoint_0")
  path.mkdir(parents=True)
  t5x.write(path, {name: Array(leaf.shape, leaf.dtype, lambda leaf=leaf: leaf) for name, leaf in flat.items()})


def our_training(folder, optimizer, negatives):
  """Losses of 20 steps of our own trainer, from the same checkpoint and batches, and the parameters after them."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  loss, model = InBatchLoss(temperature=TEMPERATURE), our_model()
  state, shardings = create_state(model, loss, optimizer, mesh, seed=0)
  params = nested(any_form.open_foreign(folder / "initial"))
  state = TrainState(state.step, jax.device_put(params, shardings.params), state.opt_state)
  step = compile_step(make_train_step(model, loss, optimizer, seed=0), shardings)
  data_root.set_data_dir(str(folder / "data"))
  lengths = LENGTHS | ({"negative_targets": LENGTHS["targets"]} if negatives else {})
  data = utils.DatasetConfig("t5x_pairs", lengths, "train", BATCH, shuffle=True, seed=SEED, module="t5x_tasks")
  stream = utils.get_dataset(data, 0, 1, lambda **flags: DualEncoderFeatureConverter(negatives)).as_numpy_iterator()
  losses = []
  with jax.set_mesh(mesh):
    for features in itertools.islice(stream, STEPS):
      del features["example_id"]
      state, metrics = step(state, partitioning.global_batch(mesh, make_batch(features, groups=1)))
      losses.append(float(metrics["loss"]))
  data_root.set_data_dir(None)
  return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def runs(folder):
  """Runs of t5x.train: its Adafactor on one device, in Orbax's format; AdamW of optax on two devices, in its own."""
  initial = f"INITIAL_CHECKPOINT_PATH = '{folder}/initial/checkpoint_0'"
  t5x_program("train", folder, "pretrain", *TRAINING, initial, f"MODEL_DIR = '{folder}/adafactor'")
  t5x_program("train", folder, "finetune", *TRAINING, initial, f"MODEL_DIR = '{folder}/adamw'",
              "OPTIMIZER = @t5x_optimizers.OptaxWrapper()", f"optimizers.adamw.eps = {EPS}",
              "LOSS = @ring.RingLoss()", "NUM_PARTITIONS = 2",
              f"TASK_FEATURE_LENGTHS = {LENGTHS | {'negative_targets': (1, LENGTHS['targets'])}}",
              "train_script.train.use_orbax = False", devices=2)
  return folder


@pytest.fixture(scope="module")
def ours(runs):
  """Losses and parameters of our trainer, for each of the runs."""
  schedule = optimizers.linear_decay(RATE, WARMUP, STEPS)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(runs))
    return {"adafactor": our_training(runs, optimizers.adafactor(schedule), negatives=0),
            "adamw": our_training(runs, optimizers.adamw(schedule, eps=EPS), negatives=1)}


RUNS = pytest.mark.parametrize("name", ["adafactor", "adamw"])


@RUNS
def test_the_first_20_losses_are_those_of_our_trainer(runs, ours, name):
  losses, _ = ours[name]
  theirs = logged(runs / name, "loss")
  assert sorted(theirs) == list(range(1, STEPS + 1))
  np.testing.assert_allclose([theirs[step] for step in sorted(theirs)], losses, rtol=0, atol=1e-5)
  assert losses[-1] < losses[0] - 0.1


@RUNS
def test_our_schedule_is_t5x_linear_decay(runs, name):
  rates = logged(runs / name, "learning_rate")
  schedule = optimizers.linear_decay(RATE, WARMUP, STEPS)
  t5x_schedule = utils.create_learning_rate_scheduler("linear_decay", RATE, WARMUP, decay_factor=1 / (STEPS - WARMUP))
  for step, rate in rates.items():
    assert rate == pytest.approx(float(schedule(jnp.int32(step - 1))), rel=1e-6)
    assert rate == pytest.approx(float(t5x_schedule(jnp.int32(step - 1))), rel=1e-6)
  assert len(rates) == STEPS


@RUNS
def test_we_read_what_t5x_has_written(runs, ours, name):
  """Its Orbax format (adafactor) and its own (adamw)."""
  assert (runs / name / "checkpoint_20" / "state").is_dir() == (name == "adafactor")
  source = any_form.open_foreign(runs / name)
  assert source.encoder == our_model()
  read, (_, expected) = nested(source), ours[name]
  assert jax.tree.structure(read) == jax.tree.structure(expected)
  assert max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), read, expected))) < 1e-4
  # They are of this step and no other.
  initial = nested(any_form.open_foreign(runs / "initial"))
  assert all(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max() > 1e-4, read, initial)))


def test_t5x_goes_on_from_its_own_checkpoint(runs):
  out = t5x_program("train", runs, "finetune", *TRAINING, f"INITIAL_CHECKPOINT_PATH = '{runs}/initial/checkpoint_0'",
                    f"TRAIN_STEPS = {STEPS + 2}", f"MODEL_DIR = '{runs}/adafactor'",
                    f"TASK_FEATURE_LENGTHS = {LENGTHS}", "NEGATIVES_PER_EXAMPLE = 0")
  assert f"Starting main loop over steps {STEPS}-{STEPS + 2}" in out
  assert any_form.open_foreign(runs / "adafactor").path.name == f"checkpoint_{STEPS + 2}"


def test_pretraining_starts_from_an_encoder_decoder_without_a_projection(runs):
  source = any_form.open_foreign(runs / "initial")
  flat = {name: array.read() for name, array in source.arrays.items() if not name.startswith("projection_layer")}
  write_checkpoint(runs / "t5", flat | {"decoder/decoder_norm/scale": np.ones(4, np.float32)})
  t5x_program("train", runs, "pretrain", *TRAINING, f"INITIAL_CHECKPOINT_PATH = '{runs}/t5/checkpoint_0'",
              f"MODEL_DIR = '{runs}/from_t5'", "TRAIN_STEPS = 1", "LEARNING_RATE = 0.0")
  start = any_form.open_foreign(runs / "from_t5" / "checkpoint_0")
  assert start.encoder == our_model()
  for name, array in flat.items():
    np.testing.assert_array_equal(start.arrays[name].read(), array)
  assert np.std(start.arrays["projection_layer/kernel"].read()) > 0.01


def test_eval_measures_what_training_measured(runs):
  t5x_program("eval", runs, "eval", f"CHECKPOINT_PATH = '{runs}/adamw/checkpoint_{STEPS}'",
              f"EVAL_OUTPUT_DIR = '{runs}/eval'", "NEGATIVES_PER_EXAMPLE = 1",
              f"TASK_FEATURE_LENGTHS = {LENGTHS | {'negative_targets': (1, LENGTHS['targets'])}}")
  for metric in ("loss", "accuracy", "mrr"):
    measured = logged(runs / "eval", metric, "training_eval/t5x_pairs")
    in_training = logged(runs / "adamw", metric, "training_eval/t5x_pairs")
    assert measured[STEPS] == pytest.approx(in_training[STEPS], abs=1e-5)


@pytest.mark.parametrize("checkpoint", [f"adamw/checkpoint_{STEPS}", "initial/checkpoint_0"])
def test_infer_writes_our_embeddings(runs, checkpoint, monkeypatch):
  """From T5X's checkpoint, and from one that gtr_jax has written."""
  output = runs / f"infer_{checkpoint.partition('/')[0]}"
  t5x_program("infer", runs, "infer", f"CHECKPOINT_PATH = '{runs}/{checkpoint}'", f"INFER_OUTPUT_DIR = '{output}'")
  written = json_lines(output / "t5x_pairs-score.jsonl-00000-of-00001")
  monkeypatch.syspath_prepend(str(runs))
  data_root.set_data_dir(str(runs / "data"))
  data = utils.DatasetConfig("t5x_pairs", LENGTHS, "validation", len(written), False, seed=0, module="t5x_tasks")
  pairs, = utils.get_dataset(data, 0, 1, lambda **flags: DualEncoderFeatureConverter(), 1).as_numpy_iterator()
  data_root.set_data_dir(None)
  assert [row["inputs"]["example_id"] for row in written] == [name.decode() for name in pairs["example_id"]]
  params = nested(any_form.open_foreign(runs / checkpoint))
  for side, tokens in (("query", "left"), ("passage", "right")):
    texts = pad_texts(pairs[f"{tokens}_encoder_input_tokens"], 1)
    expected = our_model().encode(params, texts, len(written))[0]
    np.testing.assert_allclose([row["aux"][side] for row in written], expected, rtol=0, atol=1e-5)
  cosines = [np.dot(line["aux"]["query"], line["aux"]["passage"]) for line in written]
  np.testing.assert_allclose([line["score"] for line in written], cosines, rtol=0, atol=1e-5)
