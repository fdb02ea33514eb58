"""What `t5x.eval` runs beside the loss of the validation batches: nothing."""

from typing import Any

import seqio


class NoInference:
  """Stands where `t5x.eval` has `seqio.Evaluator`, which demands tasks with metrics of their own.

  Retrieval is measured by `gtr-jax evaluate`; with this, `t5x.eval` measures the loss (`training_evaluator_cls`).
  """

  def __init__(self, mixture_or_task_name: str, feature_converter: seqio.FeatureConverter, eval_split: str,
               sequence_length: dict[str, Any], use_cached: bool = False, **kwargs: Any):
    del kwargs
    provider = seqio.get_mixture_or_task(mixture_or_task_name)
    self.eval_tasks = [task for task in seqio.get_subtasks(provider) if eval_split in task.splits]
    dataset = provider.get_dataset(sequence_length, eval_split, use_cached=use_cached, shuffle=False)
    spec = feature_converter(dataset, sequence_length).element_spec
    self.model_feature_shapes = {name: tuple(feature.shape) for name, feature in spec.items()}

  def evaluate(self, **kwargs: Any) -> tuple["NoInference", None]:
    """As `seqio.Evaluator.evaluate`: a future of the metrics, and all outputs."""
    del kwargs
    return self, None

  def result(self) -> dict[str, Any]:
    return {}

  def close(self) -> None:
    pass
