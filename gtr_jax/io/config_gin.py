"""The text of config.gin, a resolved configuration: a line for each binding. gin itself is not needed to read it."""

import re

_BINDING = re.compile(r"^([\w./]+) = (.+)$", re.MULTILINE)


def bindings_of(text: str) -> dict[str, str]:
  """Name -> value as it is written there: "gtr_jax.training.run.TrainingRun.train_steps" -> "8"; without imports."""
  return dict(_BINDING.findall(text))


def short_name(name: str) -> str:
  """Without modules: "small/gtr_jax.evaluation.evaluate.RetrievalEvaluator.name" -> "small/RetrievalEvaluator.name"."""
  scope, slash, selector = name.rpartition("/")
  return scope + slash + ".".join(selector.split(".")[-2:])
