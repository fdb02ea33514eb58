"""Runs a source of training pairs as the engine does, in one process and in memory."""

import collections
import json
import pickle

from gtr_jax.prepare.interface import Counts, Example


def prepared(source):
  """(examples, counts) of a source; its values go through JSON, and it through pickle, on the way."""
  source, counts = pickle.loads(pickle.dumps(source)), Counts()
  examples, joined = [], collections.defaultdict(list)
  for part in source.parts():
    for key, value in source.read(part, counts):
      if isinstance(value, Example):
        examples.append(value)
      else:
        joined[key].append(json.loads(json.dumps(value)))
  for key, values in joined.items():
    examples += source.join(key, values, counts)
  return examples, counts
