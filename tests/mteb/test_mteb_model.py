"""MTEB 2 evaluates a model on a small retrieval task over data made here: `make test-mteb`."""

import datasets
import mteb
import numpy as np
import pytest
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from tiny_model_dir import corpus, write_collection, write_model_dir

import gtr_jax
from gtr_jax.evaluation.evaluate import evaluate
from gtr_jax.integrations.mteb import MTEBModel

DOCUMENTS = corpus(40)


class LocalTask(AbsTaskRetrieval):
  """The collection of `write_collection`."""

  metadata = TaskMetadata(
      name="LocalTask", description="made here", reference=None, dataset={"path": "local/local", "revision": "1"},
      type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
      main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
      dialect=None, sample_creation=None, bibtex_citation=None)

  def load_data(self, **_):
    """Queries, documents and judgements, in MTEB's form."""
    documents = [{"id": i, "title": title, "text": text} for i, title, text in zip(*DOCUMENTS, strict=True)]
    queries = [{"id": f"q{i}", "text": " ".join(DOCUMENTS.texts[i].split()[:4])} for i in range(12)]
    judged = {f"q{i}": {DOCUMENTS.ids[i + j]: 2 - j for j in range(2)} for i in range(12)}
    self.dataset = {"default": {"test": {
        "corpus": datasets.Dataset.from_list(documents), "queries": datasets.Dataset.from_list(queries),
        "relevant_docs": judged, "top_ranked": None}}}
    self.data_loaded = True


def test_mteb_measures_what_evaluate_does(tmp_path):
  run = write_model_dir(tmp_path / "run")
  result = mteb.evaluate(MTEBModel(run, "me/tiny"), [LocalTask()], cache=None, show_progress_bar=False,
                         encode_kwargs={"show_progress_bar": False})
  theirs = result.task_results[0].scores["test"][0]["ndcg_at_10"]
  write_collection(tmp_path / "collection", DOCUMENTS)
  ours = evaluate({"tiny": run}, [tmp_path / "collection"], tmp_path / "results", progress=False)
  assert theirs == pytest.approx(ours["systems"]["tiny"]["results"]["collection"]["nDCG@10"], abs=1e-5)
  assert 0.05 < theirs < 1


def test_similarities(tmp_path):
  model = gtr_jax.load(write_model_dir(tmp_path / "run"))
  wrapped = MTEBModel(model)
  assert wrapped.mteb_model_meta.name == "gtr_jax/run"
  first, second = model.encode(["lion tiger", "river"]), model.encode(["sea", "lion"])
  np.testing.assert_allclose(np.diag(wrapped.similarity(first, second)), wrapped.similarity_pairwise(first, second),
                             atol=1e-6)
