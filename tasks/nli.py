"""Sentence-T5's second stage: a premise, what it entails, and as a hard negative what contradicts it.

    gtr-jax prepare pairs AllNLI.jsonl.gz --name nli --validation_share 0.01
"""

from gtr_jax.data.examples import add_pair_task, prepared

add_pair_task("nli", prepared("nli", "train", "validation"), vocabulary="t5_vocab/spiece.model", extra_ids=100,
              prepare="gtr-jax prepare pairs AllNLI.jsonl.gz --name nli --validation_share 0.01")
