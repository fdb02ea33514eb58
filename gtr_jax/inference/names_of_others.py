"""Arguments by the names that other programs give them: taken for ours where they mean the same, else explained."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from gtr_jax.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
# Arguments of sentence-transformers that have no meaning here, or another one.
_INSTEAD = {
    "device": "a model lies on all devices, or on those of gtr_jax.load(…, mesh=…)",
    "precision": "dtype= is 'float32', 'float16' or 'int8', whose scale is each vector's own",
    "truncate_dim": "take a part of the vectors, vectors[:, :n]",
    "output_value": "there are vectors of whole texts only; leave it out",
    "pool": "all devices compute together as it is; leave it out",
    "chunk_size": "all devices compute together as it is; leave it out",
    "task": "side= is 'query' or 'document'",
    "processing_kwargs": "max_length= is how many tokens of a text are read",
    "prompts": "prompt= of encode is put before every text",
    "cache_folder": "set HF_HOME",
    "model_kwargs": "leave it out", "tokenizer_kwargs": "leave it out", "config_kwargs": "leave it out",
    "trust_remote_code": "no code of a model is ever run; leave it out",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "create_model_card": "one is always written; leave it out",
    "safe_serialization": "it is always safetensors; leave it out",
}


def also_called(**ours: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
  """Decorates a function: `also_called(sentences="texts")` lets `sentences=` stand for the argument `texts`.

  The decorated function raises TypeError for a name that is neither, and says what there is instead, and InputError
  for both names at once. Its signature is the function's own.
  """

  def decorate(function: Callable[P, R]) -> Callable[P, R]:
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
      given: dict[str, Any] = {}
      for name, value in kwargs.items():
        if (name_here := ours.get(name, name)) not in names:
          raise TypeError(_unknown(function.__name__, name, names))
        if name_here in given or name != name_here and name_here in names[:len(args)]:
          raise InputError(f"{function.__name__}: {name_here} is given twice, also as {name}; give it once")
        given[name_here] = value
      return function(*args, **given)

    return call

  return decorate


def one_of(default: Any, **named: Any) -> Any:
  """What one of two names of the same argument is given as, or the default. Raises InputError where they disagree."""
  given = {name: value for name, value in named.items() if value is not None}
  if any(value != next(iter(given.values())) for value in given.values()):
    raise InputError(" and ".join(f"{name} is {value!r:.80}" for name, value in given.items()) +
                     ": these are names of the same thing; give one of them")
  return next(iter(given.values()), default)


def _unknown(function: str, name: str, names: list[str]) -> str:
  known = [known for known in names if known != "self"]
  advice = _INSTEAD.get(name)
  if advice is None:
    near = difflib.get_close_matches(name, known, 1)
    advice = f"do you mean {near[0]}?" if near else f"there are {', '.join(known)}"
  return f"{function} has no argument {name}: {advice}"
