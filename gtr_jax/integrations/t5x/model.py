"""The dual encoder as a T5X model, and T5X's partitioner with the mesh axes that it needs.

T5X calls `loss_fn` inside its own jit, with the global batch as a dict of arrays `[pairs, ...]`; gtr_jax wants groups,
one for each data shard, which is another view of the same arrays.
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import seqio
from clu import metrics as clu_metrics
from flax import traverse_util
from flax.core import unfreeze
from flax.linen import partitioning as flax_partitioning
from jax.sharding import Mesh
from t5x import adafactor, metrics, models, partitioning

from gtr_jax.errors import InputError
from gtr_jax.integrations.t5x.features import FeatureConverter
from gtr_jax.losses.own_params import of_loss
from gtr_jax.losses.teacher import of_teacher
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.parallel.partitioning import AXES, num_groups
from gtr_jax.text.batch import padded_batch
from gtr_jax.training.encode_pair import encode_pair


class Partitioner(partitioning.PjitPartitioner):
  """T5X's `PjitPartitioner`, whose mesh also has the axis `fsdp`, of one device, that gtr_jax's rules name."""

  @functools.cached_property
  def mesh(self) -> Mesh:
    mesh = super().mesh
    if mesh.axis_names != ("data", "model"):
      raise InputError(f"the partitioner's mesh has the axes {mesh.axis_names}: gtr_jax trains over data and model; "
                       "leave ici_mesh_shape and dcn_mesh_shape out")
    return Mesh(mesh.devices[:, None], AXES)


class DualEncoderModel(models.BaseModel):
  """A `DualEncoder` with its loss, to be trained, evaluated and used for inference by T5X's programs.

  Args:
    encoder: the model.
    loss: an `InBatchLoss` or `RingLoss`.
    optimizer_def: of T5X.
    vocabulary: what the token ids mean; `t5x.infer` compares it with the task's. None: not known.
    negatives_per_example: hard negatives for each pair: the first so many, or as many as there are.
    negative_queries_per_example: the same for negative queries.

  Raises:
    InputError: the vocabulary has more pieces than the encoder has rows, or the encoder has `lora`, of which T5X would
      train all parameters.
  """

  def __init__(self, encoder: DualEncoder, loss: Any, optimizer_def: Any, vocabulary: seqio.Vocabulary | None = None,
               negatives_per_example: int = 0, negative_queries_per_example: int = 0):
    super().__init__(optimizer_def)
    rows = encoder.config.vocab_size
    if vocabulary is not None and vocabulary.vocab_size > rows:
      raise InputError(f"the vocabulary has {vocabulary.vocab_size} pieces, and the encoder {rows} rows: set "
                       "t5.T5Config.vocab_size, or take the vocabulary that the model was trained with")
    if any(of_teacher(loss, encoder.dim)):
      raise InputError(f"{type(loss).__name__} asks for what a teacher says of the texts, which T5X's batches have "
                       "not: train with gtr-jax")
    if encoder.lora is not None:
      raise InputError("DualEncoder.lora: T5X would train the parameters that LoRA leaves as they are; train with "
                       "gtr-jax train, or set it to None")
    self.encoder, self.loss = encoder, loss
    self.input_vocabulary = self.output_vocabulary = vocabulary
    self.FEATURE_CONVERTER_CLS = functools.partial(
        FeatureConverter, negatives_per_example=negatives_per_example,
        negative_queries_per_example=negative_queries_per_example)
    self._pairs = 0  # In the run's batch.

  def get_initial_variables(self, rng: jax.Array, input_shapes: Mapping[str, Any],
                            input_types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Float32 parameters, and `params_axes` with the logical axis names of each.

    Raises:
      InputError: under a mesh that is not of `Partitioner`.
    """
    del input_types
    _data_shards()  # Raises for another mesh than ours.
    self._pairs = max(shape[0] for shape in input_shapes.values())
    boxed = {**self.encoder.init(rng), **self.loss.init_params(self.encoder.dim)}
    boxes = traverse_util.flatten_dict(boxed)
    params = {path: getattr(box, "value", box) for path, box in boxes.items()}
    axes = {(*path[:-1], f"{path[-1]}_axes"): flax_partitioning.AxisMetadata(tuple(getattr(box, "names", ())))
            for path, box in boxes.items()}
    return {"params": traverse_util.unflatten_dict(params), "params_axes": traverse_util.unflatten_dict(axes)}

  def loss_fn(self, params: Any, batch: Mapping[str, jax.Array],
              dropout_rng: jax.Array | None) -> tuple[jax.Array, dict[str, clu_metrics.Metric]]:
    """Loss and metrics of a global batch, in training.

    Raises:
      InputError: for a part of the batch.
    """
    pairs = len(batch["left_encoder_input_tokens"])
    if pairs < self._pairs:
      raise InputError(
          f"the loss is asked for {pairs} of the batch's {self._pairs} pairs: T5X's num_microbatches adds up the "
          "gradients of parts of the batch, and each part would have only its own pairs as negatives; set "
          "trainer.Trainer.num_microbatches = None, or train with gtr-jax, which caches gradients (MICROBATCH_SIZE)")
    loss, values = self._loss(params, batch, dropout_rng, train=True)
    return loss, _metrics(values, batch)

  def eval_fn(self, params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, clu_metrics.Metric]]:
    """The same without dropout and without what applies to training only."""
    loss, values = self._loss(params, batch, None, train=False)
    return loss, _metrics(values, batch)

  def predict_batch_with_aux(self, params: Any, batch: Mapping[str, jax.Array],
                             rng: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Embeddings `[pairs, dim]` of the queries, and those of the passages as `passage`."""
    del rng
    grouped = _grouped(batch)
    pairs = grouped.valid.shape[1]
    sides = encode_pair(self.encoder, unfreeze(params), grouped, None)
    queries, passages = (side[:, :pairs].reshape(-1, side.shape[-1]) for side in sides)
    return queries, {"passage": passages}

  def score_batch(self, params: Any, batch: Mapping[str, jax.Array],
                  return_intermediates: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Dot product of each pair, `[pairs]`, and the embeddings `[pairs, dim]`: `query`, `passage`."""
    del return_intermediates
    queries, others = self.predict_batch_with_aux(params, batch)
    return jnp.sum(queries * others["passage"], axis=-1), {"query": queries, **others}

  def _loss(self, params, batch, dropout_rng, train):
    params = unfreeze(params)
    batch = _grouped(batch)
    queries, passages = encode_pair(self.encoder, params, batch, dropout_rng)
    return self.loss(queries, passages, batch, params=of_loss(params), train=train)


def vocabulary_of(mixture_or_task_name: str, mixture_or_task_module: str | None = None) -> seqio.Vocabulary:
  """The vocabulary of a task's or mixture's queries and passages."""
  if mixture_or_task_module:
    importlib.import_module(mixture_or_task_module)
  return seqio.get_mixture_or_task(mixture_or_task_name).output_features["inputs"].vocabulary


def logical_factor_rules() -> dict[str, Any]:
  """T5X's rules of what Adafactor factors, and one for the projection's output."""
  return {**adafactor.standard_logical_factor_rules(), "affinity": adafactor.FactorDim.COLUMN}


def _data_shards():
  """Of the mesh that T5X traces under; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  if mesh.axis_names != AXES:
    raise InputError(f"T5X's mesh has the axes {mesh.axis_names}, and gtr_jax needs {AXES}: take its Partitioner "
                     "(train.partitioner = @model.Partitioner())")
  return num_groups(mesh)


def _grouped(features):
  """The batch as the loss reads it, one group a data shard."""
  groups, pairs = _data_shards(), len(features["left_encoder_input_tokens"])
  if pairs % groups:
    raise InputError(f"a batch of {pairs} pairs cannot be divided over {groups} data shards: change BATCH_SIZE, or the "
                     "partitioner's mesh")
  return padded_batch(features, groups, jnp)


def _metrics(values, batch):
  """T5X's metrics: means over the steps, and rates."""
  tokens = sum((jnp.sum(x != 0) for name, x in batch.items() if name.endswith("_tokens")), jnp.int32(0))
  return {
      **{name: clu_metrics.Average.from_model_output(value[None]) for name, value in values.items()},
      "timing/steps_per_second": metrics.StepsPerTime.from_model_output(),
      "timing/pairs_per_second": metrics.TimeRate.from_model_output(
          numerator=jnp.float32(len(batch["left_encoder_input_tokens"]))),
      "timing/tokens_per_second": metrics.TimeRate.from_model_output(numerator=tokens.astype(jnp.float32)),
  }
