"""Questions with the passages of Wikipedia that answer them, and hard negatives, as DPR published them.

    gtr-jax prepare dpr biencoder-nq-train.json.gz --validation biencoder-nq-dev.json.gz --name natural_questions
"""

import functools

from gtr_jax.data.examples import add_pair_task, prepared, tfds

_add_task = functools.partial(add_pair_task, vocabulary="t5_vocab/spiece.model", extra_ids=100)

for _name, _file in (("natural_questions", "nq"), ("trivia_qa", "trivia"), ("squad", "squad1")):
  _add_task(_name, prepared(_name, "train", "validation"), sample_negatives=True,
            prepare=f"gtr-jax prepare dpr biencoder-{_file}-train.json.gz --name {_name} "
            f"--validation biencoder-{_file}-dev.json.gz")

# Paragraphs, lists and tables as Google's annotators chose them, without negatives: more than twice as many questions.
_add_task("natural_questions_long", prepared("natural_questions_long", "train"),
          prepare="gtr-jax prepare natural_questions v1.0-simplified_simplified-nq-train.jsonl.gz "
          "--name natural_questions_long")

# From TensorFlow Datasets, without negatives: whole pages of Wikipedia, and paragraphs.
_add_task("natural_questions_pages", tfds("natural_questions/longt5:0.1.0", train="train", validation="validation"),
          query="question", passage=("title", "context"), query_id="id")
_add_task("squad_paragraphs", tfds("squad/v1.1:3.0.0", train="train", validation="validation"),
          query="question", passage=("title", "context"), query_id="id")
