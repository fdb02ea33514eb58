"""GTR's second stage: MS MARCO's passages (https://microsoft.github.io/msmarco), with and without hard negatives.

    gtr-jax prepare msmarco DIR
    gtr-jax prepare msmarco DIR --negatives msmarco-hard-negatives.jsonl.gz --name msmarco_hard_negatives
    gtr-jax prepare rocketqa marco_de1_denoise.tsv --validation_share 0.001        # with the negatives that GTR had
"""

import functools

from gtr_jax.data.examples import add_pair_task, prepared

_add_task = functools.partial(add_pair_task, vocabulary="t5_vocab/spiece.model", extra_ids=100)

_add_task("msmarco", prepared("msmarco", "train", "validation"), prepare="gtr-jax prepare msmarco DIR")
_add_task("msmarco_hard_negatives", prepared("msmarco_hard_negatives", "train", "validation"),
          sample_negatives=True, prepare="gtr-jax prepare msmarco DIR --negatives msmarco-hard-negatives.jsonl.gz "
          "--name msmarco_hard_negatives")
_add_task("rocketqa", prepared("rocketqa", "train", "validation"), sample_negatives=True,
          prepare="gtr-jax prepare rocketqa marco_de1_denoise.tsv --validation_share 0.001")
