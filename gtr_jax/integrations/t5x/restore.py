"""Starting from another run's parameters: `state_transformation_fns` of T5X's `RestoreCheckpointConfig`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util
from t5x import state_utils

from gtr_jax.errors import InputError


def take_parameters(checkpoint: Mapping[str, Any], state: Mapping[str, Any], *, fresh: Sequence[str] = (),
                    is_resuming: bool = False) -> Mapping[str, Any]:
  """The model's parameters in a checkpoint, and nothing else: step and optimizer start fresh (`fallback_to_scratch`).

  Args:
    checkpoint: what it holds; of an encoder-decoder the decoder is left out.
    state: what the run needs.
    fresh: patterns of parameters that may be missing and are then initialised.
    is_resuming: set by T5X where a run goes on from its own checkpoint, which is taken as it is.

  Raises:
    InputError: another parameter is missing.
  """
  if is_resuming:
    return checkpoint
  found, wanted = (state_utils.flatten_state_dict(tree["target"]) for tree in (checkpoint, state))
  missing = [name for name in wanted if name not in found and not any(re.fullmatch(p, name) for p in fresh)]
  if missing:
    raise InputError(f"INITIAL_CHECKPOINT_PATH: the checkpoint lacks {', '.join(sorted(missing)[:3])}"
                     f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; give one of this model's size, "
                     "or name in take_parameters.fresh what shall start fresh")
  return {"target": traverse_util.unflatten_dict({name: found[name] for name in wanted if name in found}, sep="/")}
