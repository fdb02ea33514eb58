"""BEIR's sets: `beir_fiqa` from its folder, where it has judgements to train on, and every one as `beir_fiqa_tfds`.

    gtr-jax prepare beir datasets/fiqa
    tfds build beir/fiqa --data_dir $GTR_DATA_DIR/tensorflow_datasets

To train on a set is to give up its test as a zero-shot one. A test split can be what the loss is measured on
(`pipeline.ValidationBatches.split = 'test'`). Passages of TensorFlow Datasets are without their titles.
"""

import functools

from gtr_jax.data.examples import add_pair_task, prepared, tfds

_add_task = functools.partial(add_pair_task, vocabulary="t5_vocab/spiece.model", extra_ids=100)
_TRAIN, _VALIDATION, _TEST = "train", "validation", "test"

for _name, _folder, *_splits in (
    ("bioasq", "bioasq", _TRAIN), ("fever", "fever", _TRAIN, _VALIDATION), ("fiqa", "fiqa", _TRAIN, _VALIDATION),
    ("hotpotqa", "hotpotqa", _TRAIN, _VALIDATION), ("msmarco", "msmarco", _TRAIN, _VALIDATION),
    ("nfcorpus", "nfcorpus", _TRAIN, _VALIDATION), ("nq", "nq-train", _TRAIN), ("scifact", "scifact", _TRAIN)):
  _add_task(f"beir_{_name}", prepared(f"beir_{_folder}", *_splits), sample_negatives=True,
            prepare=f"gtr-jax prepare beir datasets/{_folder}")

_FORUMS = ("android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
           "webmasters", "wordpress")
for _names, *_splits in (
    (("fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus"), _TRAIN, _VALIDATION, _TEST),
    (("scifact",), _TRAIN, _TEST),
    (("dbpedia_entity", "quora"), _VALIDATION, _TEST),
    (("arguana", "climate_fever", "nq", "scidocs", "trec_covid", "webis_touche2020",
      *(f"cqadupstack.{forum}" for forum in _FORUMS)), _TEST)):
  for _name in _names:
    _add_task(f"beir_{_name.replace('.', '_')}_tfds",
              tfds(f"beir/{_name}:1.0.0", **{split: split for split in _splits}), query="query", passage="passage",
              query_id="query_id", passage_id="passage_id")
