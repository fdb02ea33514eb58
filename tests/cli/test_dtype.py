"""`--dtype`: a store remembers what it was computed in, and queries follow it."""

import json

import numpy as np
from tiny_model_dir import sentence, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.retrieval.store import Store


def test_queries_are_computed_as_their_documents(tmp_path, capsys):
  model, corpus = str(write_model_dir(tmp_path / "model")), tmp_path / "few"
  (corpus / "qrels").mkdir(parents=True)
  for name, count, words in (("corpus", 20, 9), ("queries", 4, 4)):
    (corpus / f"{name}.jsonl").write_text("".join(
        json.dumps({"_id": str(i), "text": sentence(i, words)}) + "\n" for i in range(count)))
  (corpus / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t0\t1\n")
  encode = ["encode", "--model", model, "--collection", str(corpus), "--output"]
  assert main([*encode, str(tmp_path / "whole")]) == main([*encode, str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
  whole, half = Store(tmp_path / "whole"), Store(tmp_path / "half")
  assert (whole.settings["dtype"], half.settings["dtype"]) == ("float32", "bfloat16")
  assert 0 < np.abs(whole[:] - half[:]).max() < 0.05

  def best_score(store, *flags):
    capsys.readouterr()
    code = main(["search", "--model", model, "--embeddings", str(tmp_path / store), "--json", "--query",
                 sentence(0, 4), *flags])
    out, err = capsys.readouterr()
    return json.loads(out)["results"][0]["score"] if code == 0 else (code, err)

  assert best_score("half") == best_score("half", "--dtype", "bfloat16") != best_score("whole")
  code, message = best_score("half", "--dtype", "float32")
  assert code == 2 and "computed in bfloat16, and queries would be in float32" in message
  results = tmp_path / "results"
  evaluate = ["evaluate", "--model", f"ours={model}", "--collection", str(corpus), "--output", str(results)]
  for dtype in ("bfloat16", "float32"):  # Each finds its own store of documents.
    assert main([*evaluate, "--dtype", dtype]) == 0
    assert json.loads((results / "results.json").read_text())["systems"]["ours"]["dtype"] == dtype
  assert len(list((results / "embeddings").iterdir())) == 2
