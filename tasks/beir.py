"""The training judgements that BEIR's sets have: `beir_fiqa` from its folder, `beir_fiqa_tfds` from TFDS.

    gtr-jax prepare beir datasets/fiqa
    tfds build beir/fiqa --data_dir $GTR_DATA_DIR/tensorflow_datasets

To train on a set is to give up its test as a zero-shot one.
"""

from gtr_jax.data.examples import add_pair_task, prepared, tfds

_T5 = {"vocabulary": "t5_vocab/spiece.model", "extra_ids": 100}

for _name in ("fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus"):
  add_pair_task(f"beir_{_name}", prepared(_name, "train", "validation"), sample_negatives=True,
                prepare=f"gtr-jax prepare beir datasets/{_name}", **_T5)
  add_pair_task(f"beir_{_name}_tfds", tfds(f"beir/{_name}:1.0.0", train="train", validation="validation"),
                query="query", passage="passage", query_id="query_id", passage_id="passage_id", **_T5)
for _name, _folder in (("nq", "nq-train"), ("scifact", "scifact")):  # These have no judgements for validation.
  add_pair_task(f"beir_{_name}", prepared(_folder), sample_negatives=True,
                prepare=f"gtr-jax prepare beir datasets/{_folder}", **_T5)
add_pair_task("beir_scifact_tfds", tfds("beir/scifact:1.0.0", train="train"), query="query", passage="passage",
              query_id="query_id", passage_id="passage_id", **_T5)
