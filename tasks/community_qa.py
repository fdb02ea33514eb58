"""GTR's first stage: community questions and answers (docs/recipe.md says where the dumps are).

    gtr-jax prepare reddit RS_*.zst RC_*.zst --validation_share 0.0001
    gtr-jax prepare stack_exchange *.7z --validation_share 0.001
"""

import functools

import seqio

from gtr_jax.data.examples import add_pair_task, prepared, rate_by_size, tfds

_add_task = functools.partial(add_pair_task, vocabulary="t5_vocab/spiece.model", extra_ids=100)

_add_task("reddit", prepared("reddit", "train", "validation"),
          prepare="gtr-jax prepare reddit RS_*.zst RC_*.zst --validation_share 0.0001")
_add_task("stack_exchange", prepared("stack_exchange", "train", "validation"),
          prepare="gtr-jax prepare stack_exchange *.7z --validation_share 0.001")

# The summaries that authors of long posts give, from TensorFlow Datasets.
_add_task("reddit_summaries", tfds("reddit:1.0.0", train="train[1000:]", validation="train[:1000]"),
          query="summary", passage="content", query_id="id")

# As many of each as there are, but of none more than if it had 100 million pairs.
seqio.MixtureRegistry.add("community_qa", ["reddit", "stack_exchange"], default_rate=rate_by_size(most=100_000_000))
