"""GTR's second stage: MS MARCO's passages (https://microsoft.github.io/msmarco), with and without hard negatives.

    gtr-jax prepare msmarco DIR
    gtr-jax prepare msmarco DIR --negatives msmarco-hard-negatives.jsonl.gz --name msmarco_hard_negatives
"""

from gtr_jax.data.examples import add_pair_task, prepared

_T5 = {"vocabulary": "t5_vocab/spiece.model", "extra_ids": 100}

add_pair_task("msmarco", prepared("msmarco", "train", "validation"), prepare="gtr-jax prepare msmarco DIR", **_T5)
add_pair_task("msmarco_hard_negatives", prepared("msmarco_hard_negatives", "train", "validation"),
              sample_negatives=True, prepare="gtr-jax prepare msmarco DIR --negatives msmarco-hard-negatives.jsonl.gz "
              "--name msmarco_hard_negatives", **_T5)
