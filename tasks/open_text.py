"""Small, openly licensed pairs of real text, for a first model of real quality on a small machine (docs/results.md).

Below the data root:
  pretrain/reddit_title_body.jsonl.gz         {"title", "body"}: Reddit post titles and bodies
  pretrain/msdocs_description_page.jsonl.gz   {"query", "title", "positive"}: Microsoft Docs descriptions and pages
  finetune/questions_train.jsonl.gz           {"query", "positive", "negatives"}: MedQuAD, FairytaleQA, SelQA
  finetune/questions_dev.jsonl.gz             the same, held out
  t5_vocab/spiece.model                       the vocabulary of T5
"""

import functools

import seqio

from gtr_jax.data.examples import add_pair_task, jsonl

_add_task = functools.partial(add_pair_task, vocabulary="t5_vocab/spiece.model", extra_ids=100)

_add_task("reddit_title_body", jsonl(train="pretrain/reddit_title_body.jsonl.gz"), query="title", passage="body")
_add_task("msdocs_description_page", jsonl(train="pretrain/msdocs_description_page.jsonl.gz"), query="query",
          passage=("title", "positive"))
_add_task("open_questions", jsonl(train="finetune/questions_train.jsonl.gz",
                                  validation="finetune/questions_dev.jsonl.gz"),
          query="query", passage="positive", negatives="negatives")

# As many of each as there are.
seqio.MixtureRegistry.add("open_text_pretrain", [("reddit_title_body", 60.0), ("msdocs_description_page", 10.0)])
