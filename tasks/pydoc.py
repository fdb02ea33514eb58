"""The built-in corpus (`gtr-jax prepare pydoc`). A task of your own needs no more than one of these."""

import functools

import seqio

from gtr_jax.data.examples import add_pair_task, jsonl

_add_task = functools.partial(
    add_pair_task, query="query", passage="positive", query_id="query_id", passage_id="positive_id",
    vocabulary="pydoc/spiece.model", prepare="gtr-jax prepare pydoc")

# Noisy: names in words -> their documentation, sentences -> the text around them.
_add_task("pydoc_pretrain", jsonl(train="pydoc/pretrain/train.jsonl", validation="pydoc/pretrain/validation.jsonl"))

# First sentence -> the rest of the documentation.
_add_task("pydoc_finetune", jsonl(train="pydoc/finetune/train.jsonl", validation="pydoc/finetune/validation.jsonl"))

# The same with the hard negatives that `gtr-jax mine` finds.
_add_task(
    "pydoc_finetune_hard_negatives",
    jsonl(train="pydoc/finetune_hard_negatives.jsonl", validation="pydoc/finetune/validation.jsonl"),
    negatives="negatives",
    prepare="gtr-jax prepare pydoc, then gtr-jax mine --pairs $DATA/pydoc/finetune/train.jsonl --output "
    "$DATA/pydoc/finetune_hard_negatives.jsonl")

seqio.MixtureRegistry.add("pydoc_both_stages", [("pydoc_pretrain", 2.0), ("pydoc_finetune", 1.0)])
