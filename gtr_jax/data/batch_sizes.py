"""The sizes that decide a batch's shapes, and all that can be wrong with them."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.text.batch import Batch, RowLengths, make_batch


class Lengths(NamedTuple):
  """How long each text may be, by feature."""

  of_task: dict[str, int | tuple[int, int]]  # (how many, length) where a feature is several texts
  of_converter: dict[str, int]


def all_lengths(given: Mapping[str, int], negatives: int, negative_queries: int) -> Lengths:
  """Lengths of all features of a run.

  Args:
    given: TASK_FEATURE_LENGTHS; negatives are as long as the rest of their side unless it says otherwise.
    negatives: hard negatives of each example.
    negative_queries: negative queries of each example.

  Raises:
    InputError: a length or a number that is none.
  """
  if not isinstance(given, Mapping):
    raise InputError(f"feature lengths (TASK_FEATURE_LENGTHS) are {given!r}: give {{'inputs': 64, 'targets': 256}}")
  missing = {"inputs", "targets"} - set(given)
  extra = set(given) - {"inputs", "targets", "negative_inputs", "negative_targets"}
  if missing or extra:
    raise InputError(f"feature lengths: give inputs and targets, and nothing but negative_inputs and negative_targets "
                     f"beside them, not {sorted(given)}")
  if any(type(length) is not int or length < 2 for length in given.values()):
    raise InputError(f"feature lengths (TASK_FEATURE_LENGTHS) are {given}: each must be at least 2, a token and EOS")
  if not all(type(n) is int and n >= 0 for n in (negatives, negative_queries)):
    raise InputError(f"negatives for each example (NEGATIVES_PER_EXAMPLE) are {negatives!r}: give a number, 0 for none")
  each = {"inputs": given["inputs"], "targets": given["targets"]}
  task: dict[str, int | tuple[int, int]] = dict(each)
  if negatives:
    each["negative_targets"] = given.get("negative_targets", given["targets"])
    task["negative_targets"] = (negatives, each["negative_targets"])
  if negative_queries:
    each["negative_inputs"] = given.get("negative_inputs", given["inputs"])
    task["negative_inputs"] = (negative_queries, each["negative_inputs"])
  return Lengths(task, each)


def batch_maker(batch_size: int, microbatch_size: int | None, groups: int, own_groups: int,
                row_lengths: Mapping[str, int] | None, lengths: Lengths) -> Callable[..., Batch]:
  """The function from features to this process's batch: `make_batch`, told of all but `usual`.

  The arguments are those of `pipeline.TrainingBatches`; of `own_groups`, how many.

  Raises:
    InputError: the sizes do not divide, or do not fit.
  """
  if type(batch_size) is not int or batch_size < 1:
    raise InputError(f"the batch size (BATCH_SIZE) is {batch_size!r}: it must be a positive number")
  if batch_size % groups:
    raise InputError(f"a batch of {batch_size} pairs cannot be divided over {groups} data shards: change "
                     "the batch size (--batch_size, BATCH_SIZE) or the mesh")
  microbatches = None
  if microbatch_size is not None:
    if type(microbatch_size) is not int or microbatch_size < 1 or batch_size % microbatch_size:
      raise InputError(f"the microbatch size (MICROBATCH_SIZE) is {microbatch_size!r}: it must divide the batch of "
                       f"{batch_size} pairs")
    if microbatch_size % groups:
      raise InputError(f"a microbatch of {microbatch_size} pairs cannot be divided over {groups} data shards: make "
                       f"MICROBATCH_SIZE a multiple of {groups}, or change the mesh")
    microbatches = batch_size // microbatch_size
  rows = None
  if row_lengths is not None:
    if not isinstance(row_lengths, Mapping) or set(row_lengths) != {"inputs", "targets"}:
      raise InputError(f"row lengths (ROW_LENGTHS) are {row_lengths}: give one for inputs and one for targets, or None")
    for side, negatives in (("inputs", "negative_inputs"), ("targets", "negative_targets")):
      longest = max(lengths.of_converter[side], lengths.of_converter.get(negatives, 0))
      if type(row_lengths[side]) is not int:
        raise InputError(f"rows of {row_lengths[side]!r} tokens for {side} (ROW_LENGTHS): give a whole number")
      if row_lengths[side] < longest:
        raise InputError(f"rows of {row_lengths[side]!r} tokens for {side} (ROW_LENGTHS) are shorter than its longest "
                         f"text: TASK_FEATURE_LENGTHS allows {longest}; make the rows at least that long")
    rows = RowLengths(row_lengths["inputs"], row_lengths["targets"])
  return functools.partial(make_batch, groups=own_groups, row_lengths=rows,
                           microbatches=microbatches)
