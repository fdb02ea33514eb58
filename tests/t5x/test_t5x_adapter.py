"""The parts of the T5X adapter: batches, axes, mesh, what it refuses, and its gin files."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from t5x_runs import ROOT, write_task

pytest.importorskip("t5x.train", reason="T5X is not installed")
import t5x.eval
import t5x.infer
import t5x.train
from jax.sharding import Mesh
from t5x import adafactor, partitioning, train_state, trainer, utils

from gtr_jax import config
from gtr_jax.data.feature_converter import DualEncoderFeatureConverter
from gtr_jax.errors import InputError
from gtr_jax.integrations.t5x import model as adapter
from gtr_jax.integrations.t5x.features import FeatureConverter
from gtr_jax.integrations.t5x.restore import take_parameters
from gtr_jax.io import data_root
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.ring import RingLoss
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel.partitioning import AXES
from gtr_jax.text.batch import make_batch

PAIRS = 16
CONFIG = T5Config(vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_layers=1)


def features(seed=0):
  """Of a converter with two hard negatives, some missing, and a negative query; hashes as numbers."""
  rng = np.random.default_rng(seed)

  def tokens(*shape):
    ids = rng.integers(1, 64, shape).astype(np.int32)
    ids[np.arange(shape[-1]) >= rng.integers(2, shape[-1], shape[:-1])[..., None]] = 0
    return ids

  out = {"left_encoder_input_tokens": tokens(PAIRS, 6), "right_encoder_input_tokens": tokens(PAIRS, 9),
         "right_negative_encoder_input_tokens": tokens(PAIRS, 2, 8),
         "left_negative_encoder_input_tokens": tokens(PAIRS, 1, 7)}
  out["right_negative_encoder_input_tokens"][::3, 1] = 0
  for name, shape in (("query_hash", ()), ("passage_hash", ()), ("text_hash", ()), ("negative_passage_hash", (2,)),
                      ("negative_text_hash", (2,))):
    out[name] = rng.integers(-2**62, 2**62, (PAIRS, *shape))
  out["passage_hash"][5] = out["passage_hash"][2]
  return out


def for_t5x(features):
  """The same as T5X's jax gets it."""
  return {name: x.astype(np.int64)[..., None].view(np.uint32) if name.endswith("hash") else x
          for name, x in features.items()}


def dual_encoder_model(loss, **options):
  model = adapter.DualEncoderModel(DualEncoder(CONFIG, projection_dim=8), loss, adafactor.Adafactor(
      logical_factor_rules=adapter.logical_factor_rules()), **options)
  shapes = {"left_encoder_input_tokens": (PAIRS, 6), "right_encoder_input_tokens": (PAIRS, 9)}
  return model, functools.partial(model.get_initial_variables, input_shapes=shapes)


def partitioner(data=4, model=2):
  """The adapter's, on a mesh that T5X would not make of CPUs: it puts all of a process's along `model`."""
  rules = partitioning.standard_logical_axis_rules(additional_rules=[("affinity", None)])
  out = adapter.Partitioner(num_partitions=1, logical_axis_rules=rules)
  assert out.mesh.shape == {"data": 1, "fsdp": 1, "model": 8}
  out.__dict__["mesh"] = Mesh(np.array(jax.devices()).reshape(data, 1, model), AXES)
  return out


def test_batch_is_that_of_make_batch():
  made = adapter._grouped({name: jnp.asarray(x) for name, x in for_t5x(features()).items()})
  for ours, expected in zip(jax.tree.leaves(made), jax.tree.leaves(make_batch(features(), groups=1)), strict=True):
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)


def test_ring_on_t5x_mesh_is_the_dense_loss_on_one_device():
  batch = for_t5x(features())
  dense, init = dual_encoder_model(InBatchLoss(learned_temperature=True, temperature=0.05))
  params = init(rng=jax.random.key(0))["params"]
  step = jax.value_and_grad(lambda model, params: model.loss_fn(params, batch, None)[0], argnums=1)
  expected, expected_gradient = jax.jit(step, static_argnums=0)(dense, params)

  ring, init = dual_encoder_model(RingLoss(learned_temperature=True, temperature=0.05))
  ring.get_initial_variables(jax.random.key(0), {"x": (PAIRS, 6)})
  on_mesh = partitioner()
  state = utils.TrainStateInitializer(ring.optimizer_def, ring.get_initial_variables, {"x": (PAIRS, 6)}, on_mesh)
  run = on_mesh.partition(jax.value_and_grad(lambda params, batch: ring.loss_fn(params, batch, None)[0]),
                          in_axis_resources=(state.train_state_axes.params, on_mesh.data_partition_spec),
                          out_axis_resources=None)
  loss, gradient = run(freeze(params), batch)
  assert float(loss) == pytest.approx(float(expected), rel=1e-5)
  for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)


def test_every_parameter_has_axes_and_rules():
  model, init = dual_encoder_model(InBatchLoss(learned_temperature=True))
  axes = utils.TrainStateInitializer(model.optimizer_def, model.get_initial_variables, {"x": (PAIRS, 6)},
                                     partitioner()).train_state_axes.params
  assert axes["projection_layer"]["kernel"] == jax.sharding.PartitionSpec(None, None)
  assert axes["encoder"]["layers_0"]["mlp"]["wi"]["kernel"] == jax.sharding.PartitionSpec(None, "model")
  assert axes["logit_scale"] == jax.sharding.PartitionSpec()
  model.optimizer_def = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
  with pytest.raises(KeyError, match="affinity"):
    train_state.FlaxOptimTrainState.create(model.optimizer_def, init(rng=jax.random.key(0)))


def test_microbatches_are_refused():
  model, init = dual_encoder_model(InBatchLoss())
  state = train_state.FlaxOptimTrainState.create(model.optimizer_def, init(rng=jax.random.key(0)))
  with pytest.raises(InputError, match="num_microbatches"):
    trainer.accumulate_grads_microbatched(model, state, for_t5x(features()), jax.random.PRNGKey(0), num_microbatches=2)


def test_another_partitioner_is_refused():
  model, init = dual_encoder_model(InBatchLoss())
  params = init(rng=jax.random.key(0))["params"]
  theirs = partitioning.PjitPartitioner(num_partitions=1)
  run = theirs.partition(lambda params, batch: model.loss_fn(params, batch, None)[0],
                         in_axis_resources=(None, theirs.data_partition_spec), out_axis_resources=None)
  with pytest.raises(InputError, match="Partitioner"):
    run(params, for_t5x(features()))
  start = utils.TrainStateInitializer(model.optimizer_def, model.get_initial_variables, {"x": (PAIRS, 6)}, theirs)
  with pytest.raises(InputError, match="Partitioner"):
    start.from_scratch(jax.random.PRNGKey(0))


def test_packing_is_refused():
  model, _ = dual_encoder_model(InBatchLoss(), negatives_per_example=1)
  with pytest.raises(InputError, match="pack=True.*pack = False"):
    model.FEATURE_CONVERTER_CLS(pack=True, use_custom_packing_ops=False)
  assert "right_negative_encoder_input_tokens" in model.FEATURE_CONVERTER_CLS(pack=False).MODEL_FEATURES


def test_too_large_a_vocabulary_is_refused(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  write_task(tmp_path)
  data_root.set_data_dir(str(tmp_path / "data"))
  vocabulary = adapter.vocabulary_of("t5x_pairs", "t5x_tasks")
  with pytest.raises(InputError, match="300 pieces.*64 rows"):
    dual_encoder_model(InBatchLoss(), vocabulary=vocabulary)

  # The features are those of our own converter, hashes as two numbers.
  task = {"inputs": 8, "targets": 12, "negative_targets": (2, 10)}
  dataset = utils.seqio.get_mixture_or_task("t5x_pairs").get_dataset(task, "train", shuffle=False)
  ours = next(iter(DualEncoderFeatureConverter(2)(dataset, task | {"negative_targets": 10}).as_numpy_iterator()))
  got = next(iter(FeatureConverter(negatives_per_example=2)(dataset, task).as_numpy_iterator()))
  del ours["example_id"]
  assert got.keys() == ours.keys()
  for name, x in for_t5x({name: np.asarray(x) for name, x in ours.items()}).items():
    np.testing.assert_array_equal(got[name], x)
  data_root.set_data_dir(None)


def test_take_parameters():
  encoder, decoder = {"encoder": {"scale": np.ones(2)}}, {"decoder": {"scale": np.ones(2)}}
  state = {"state": {"step": 0}, "target": encoder | {"projection_layer": {"kernel": np.ones(3)}}}
  checkpoint = {"state": {"step": 9}, "target": encoder | decoder}
  assert take_parameters(checkpoint, state, fresh=["projection_layer/.*"]) == {"target": encoder}
  with pytest.raises(InputError, match="lacks projection_layer/kernel;"):
    take_parameters(checkpoint, state)
  assert take_parameters(checkpoint, state, is_resuming=True) is checkpoint


@pytest.mark.parametrize("run, program", [("pretrain", t5x.train.train), ("finetune", t5x.train.train),
                                          ("eval", t5x.eval.evaluate), ("infer", t5x.infer.infer)])
def test_gin_files_fit_every_size(run, program, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  write_task(tmp_path)
  data_root.set_data_dir(str(tmp_path / "data"))
  main = sys.modules["__main__"]
  for function in (program, t5x.infer.write_inferences_to_file):
    monkeypatch.setattr(main, function.__name__, function, raising=False)
    monkeypatch.setattr(function, "__module__", "__main__")
  # Not "", for gin takes the folder tests/models for a package.
  places = [str(ROOT / "gin"), str(Path(t5x.train.__file__).parents[1])]
  monkeypatch.setattr(gin.config, "_LOCATION_PREFIXES", places)
  sizes = sorted(path.stem for path in (ROOT / "gin" / "models").glob("*.gin"))
  assert "t5_xxl" in sizes and "mt5_base" in sizes
  for size in sizes:
    if size in ("t5_1_0", "t5_1_1", "mt5"):  # What sizes share.
      continue
    gin.clear_config()
    gin.parse_config_files_and_bindings(
        [f"models/{size}.gin", f"t5x/{run}.gin"],
        ["MIXTURE_OR_TASK_MODULE = 't5x_tasks'", "MIXTURE_OR_TASK_NAME = 't5x_pairs'", "MODEL_DIR = '/m'",
         "CHECKPOINT_PATH = '/c/checkpoint_1'", "EVAL_OUTPUT_DIR = '/e'", "INFER_OUTPUT_DIR = '/i'",
         "INITIAL_CHECKPOINT_PATH = '/c/checkpoint_1'"])
    bound = config.bindings(program)
    assert isinstance(bound["model"], adapter.DualEncoderModel), size
    assert isinstance(bound["partitioner"], adapter.Partitioner)
    parameters = jax.eval_shape(bound["model"].get_initial_variables, jax.random.key(0), {"x": (2, 2)})["params"]
    assert "projection_layer" in parameters
    for name in ("train_dataset_cfg", "train_eval_dataset_cfg", "dataset_cfg"):
      assert not getattr(bound.get(name), "pack", False)
  gin.clear_config()
  data_root.set_data_dir(None)


def test_without_t5x_one_error_says_what_to_install():
  code = "import sys; sys.modules['t5x'] = None\nimport gtr_jax.integrations.t5x"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  last = result.stderr.strip().splitlines()[-1]
  assert last.startswith("ImportError: gtr_jax.integrations.t5x needs T5X")
  for needed in ("--no-deps", "google-research/t5x", "google/airio", "google-research/jestimator", "cached_property",
                 "fiddle", "grain"):
    assert needed in last


def test_dropout_separate_towers_and_scanned_layers():
  model, _ = dual_encoder_model(InBatchLoss())
  options = {"dropout_rate": 0.2, "scan_layers": True, "num_layers": 2}
  model.encoder = DualEncoder(dataclasses.replace(CONFIG, **options), projection_dim=8, shared=False)
  on_mesh = partitioner()
  start = utils.TrainStateInitializer(model.optimizer_def, model.get_initial_variables, {"x": (PAIRS, 6)}, on_mesh)
  state = start.from_scratch(jax.random.PRNGKey(0))
  assert set(state.params) == {"query", "passage"}
  run = on_mesh.partition(lambda params, batch, key: model.loss_fn(params, batch, key)[0], in_axis_resources=(
      start.train_state_axes.params, on_mesh.data_partition_spec, None), out_axis_resources=None)
  losses = [float(run(state.params, for_t5x(features()), jax.random.PRNGKey(seed))) for seed in (1, 1, 2)]
  assert losses[0] == losses[1] != losses[2]
