"""The parameters that a loss has of its own: leaves at the root of the tree, beside the model's."""

from collections.abc import Mapping
from typing import Any

from gtr_jax.errors import InputError

NAMES = ("logit_scale", "logit_bias", "teacher_map")


def of_loss(params: Mapping[str, Any]) -> dict[str, Any]:
  """Those of the loss among all parameters, or of another tree of their structure."""
  return {name: params[name] for name in NAMES if name in params}


def check_own_params(loss: Any, params: Mapping[str, Any], names: tuple[str, ...]) -> None:
  """Raises InputError where a loss gets others than those of these names."""
  if params.keys() == set(names):
    return
  said = [f"{name} is missing" for name in names if name not in params]
  said += [f"{name} is given" for name in params if name not in names]
  raise InputError(f"{type(loss).__name__} has {' and '.join(names) or 'no parameters'} of its own, but "
                   f"{' and '.join(said)}: the parameters belong to another loss")
