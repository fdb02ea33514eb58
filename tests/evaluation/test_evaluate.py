"""Evaluation end to end on tiny models: values equal trec_eval's on the run files; the evaluator of training."""

import gzip
import json

import jax
import numpy as np
import pytest
import pytrec_eval
from tiny_model_dir import corpus, tiny_params, write_collection, write_model_dir

from gtr_jax.collections.collection import read_collection
from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.evaluation import evaluate as evaluation
from gtr_jax.evaluation import results_file
from gtr_jax.evaluation.evaluate import Protocol, RetrievalEvaluator, evaluate
from gtr_jax.evaluation.results_file import tables
from gtr_jax.evaluation.significance import read_stored
from gtr_jax.inference import embed
from gtr_jax.inference.load import load_model
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.retrieval import host_ranking
from gtr_jax.retrieval.runs import read_run
from gtr_jax.retrieval.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("evaluate")
  write_model_dir(folder / "run", seeds=(0, 1))
  write_collection(folder / "a", corpus(40))
  write_collection(folder / "b", corpus(30), queries=5)
  write_collection(folder / "y-a", corpus(30), queries=5)
  mesh = make_mesh(2, devices=jax.devices()[:2])
  results = evaluate({"one": folder / "run" / "checkpoints" / "1", "two": folder / "run"},
                     [folder / "a", folder / "b"], folder / "out", bm25=True, mesh=mesh, progress=False)
  return folder, mesh, results


def test_results_are_trec_evals_on_the_run_files(made):
  folder, _, results = made
  assert results_file.read(folder / "out") == results
  assert list(results["systems"]) == ["BM25", "one", "two"]
  assert results["collections"]["a"] == {
      "split": "test", "documents": 40, "queries": 12, "beir": False, "hash": read_collection(folder / "a").hash,
      "query_length": None, "document_length": None, "exclude_own_id": False,
      "queries without relevant documents": 0,
      "median words": np.median([len(text.split()) for text in corpus(40).full_texts()])}
  for system, of_system in results["systems"].items():
    for name, values in of_system["results"].items():
      run = read_run(folder / "out" / "runs" / f"{system}-{name}.trec")
      lines = (folder / name / "qrels" / "test.tsv").read_text().splitlines()[1:]
      qrels = {}
      for query_id, doc_id, grade in (line.split("\t") for line in lines):
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
      if system != "BM25":
        assert {len(ranking.doc_ids) for ranking in run.values()} == {results["collections"][name]["documents"]}
      by_trec_eval = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "map"}).evaluate(
          {q: dict(zip(r.doc_ids, r.scores.tolist(), strict=True)) for q, r in run.items()})
      for ours, theirs in (("nDCG@10", "ndcg_cut_10"), ("Recall@100", "recall_100"), ("MAP", "map")):
        total = sum(v[theirs] for v in by_trec_eval.values())
        assert values[ours] == pytest.approx(total / len(qrels), abs=1e-9), (system, name, ours)
        if ours != "MAP":
          np.testing.assert_allclose(read_stored(of_system["per query"][name][ours]),
                                     [by_trec_eval[query_id][theirs] for query_id in sorted(qrels)], atol=5.1e-5)
  assert results["systems"]["BM25"]["results"]["a"]["nDCG@10"] > 0.5


def test_a_system_that_ranks_nothing(tmp_path):
  """It has results, of zeros, and the file is read again."""
  folder = write_collection(tmp_path / "c", Documents(["a"], [""], ["the"]), queries=0)
  (folder / "queries.jsonl").write_text('{"_id": "q", "text": "lion"}\n')
  (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
  for _ in range(2):
    found = evaluate({}, [folder], tmp_path / "out", bm25=True, progress=False)
    assert found["systems"]["BM25"]["results"]["c"]["nDCG@10"] == 0


def test_tables(made):
  text = tables(made[2])
  blocks = text.split("\n\n")
  assert [block.split("  ")[0] for block in blocks[:-1]] == [
      "nDCG@10", "nDCG@10, 95 %", "MRR@10", "Recall@100", "Recall@100, 95 %", "Capped recall@100", "MAP"]
  assert blocks[-1].startswith("95 % intervals: percentile bootstrap over queries.\n† below")
  rows = [line.split() for line in blocks[0].splitlines()]
  assert rows[0] == ["nDCG@10", "a", "b", "average"]
  values = made[2]["systems"]["two"]["results"]
  assert [float(cell) for cell in rows[3][1:]] == pytest.approx(
      [values["a"]["nDCG@10"], values["b"]["nDCG@10"], (values["a"]["nDCG@10"] + values["b"]["nDCG@10"]) / 2], abs=1e-4)
  assert len({len(line) for line in blocks[0].splitlines()}) == 1


def test_a_second_evaluation_uses_the_stores(made):
  folder, mesh, results = made
  chunks = {path: path.stat().st_mtime_ns for path in (folder / "out" / "embeddings").rglob("*.npy")}
  assert len(chunks) == 20  # a chunk, its norms, offsets, and checksums of both, for two models on two collections
  again = evaluate({"two": folder / "run"}, [folder / "a"], folder / "out", mesh=mesh, progress=False)
  assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "embeddings").rglob("*.npy")} == chunks
  assert again["systems"]["two"]["results"]["a"] == results["systems"]["two"]["results"]["a"]
  assert list(again["systems"]) == ["two"]


def test_bm25_needs_no_model_and_own_ids_can_be_left_out(tmp_path):
  documents = corpus(20)
  folder = write_collection(tmp_path / "c", documents, queries=4)
  ids = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
  renamed = {query["_id"]: documents.ids[i] for i, query in enumerate(ids)}
  (folder / "queries.jsonl").write_text("".join(
      json.dumps({**query, "_id": renamed[query["_id"]]}) + "\n" for query in ids))
  (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(
      f"{documents.ids[i]}\t{documents.ids[i]}\t1\n" for i in range(4)))
  found = evaluate({}, [folder], tmp_path / "out", bm25=True, progress=False)
  assert found["systems"]["BM25"]["results"]["c"]["Recall@100"] == 1
  found = evaluate({}, [folder], tmp_path / "out", bm25=True, protocol=Protocol(exclude_own_id=True), progress=False)
  assert found["systems"]["BM25"]["results"]["c"]["Recall@100"] == 0


def test_bad_input_writes_nothing(made, tmp_path):
  folder, mesh, _ = made
  good, out = folder / "run", tmp_path / "out"
  for models, collections, options, message in [
      ({}, [folder / "a"], {}, "nothing to evaluate"),
      ({"x": good, "y": folder / "nothing"}, [folder / "a"], {}, "nothing: no such model"),
      ({"x": good, "y": good / "checkpoints" / "9"}, [folder / "a"], {}, "holds no whole checkpoint"),
      ({"x": good}, [folder / "a", folder / "nothing"], {}, "nothing: no such folder"),
      ({"x": good}, [folder / "a", folder / "run" / ".." / "a"], {}, "two collections are called 'a'"),
      ({"BM25": good}, [folder / "a"], {"bm25": True}, "two systems are called 'BM25'"),
      ({"x y": good, "x_y": good}, [folder / "a"], {}, "two systems are called"),
      ({"x": good, "x (dot)": good}, [folder / "a"], {"protocol": Protocol(similarities=("cosine", "dot"))},
       "two systems are called 'x .dot.'"),
      ({"x": good, "x-y": good}, [folder / "a", folder / "y-a"], {}, "two run files are called 'x-y-a'"),
      ({"x": good}, [folder / "a"], {"protocol": Protocol(split="dev")}, "splits here: test"),
  ]:
    with pytest.raises(InputError, match=message):
      evaluate(models, collections, out, mesh=mesh, progress=False, **options)
    assert not out.exists()


def test_cosine_and_dot_have_one_store_and_results_of_their_own(made):
  folder, mesh, results = made
  written = {path: path.stat().st_mtime_ns for path in (folder / "out/embeddings").rglob("*.npy")}
  found = evaluate({"two": folder / "run"}, [folder / "a"], folder / "out", mesh=mesh, progress=False,
                   protocol=Protocol(similarities=("dot", "cosine")))["systems"]
  assert {name: of["similarity"] for name, of in found.items()} == {"two (dot)": "dot", "two": "cosine"}
  assert found["two"]["results"]["a"] == results["systems"]["two"]["results"]["a"]  # As the model was trained.
  assert {path: path.stat().st_mtime_ns for path in (folder / "out/embeddings").rglob("*.npy")} == written
  store = Store(folder / "out/embeddings" / f"a-{found['two']['weights_hash'][:12]}")
  dot = evaluation._with_similarity(load_model(folder / "run", mesh), "dot")
  documents = dict(zip(corpus(40).ids, corpus(40).full_texts(), strict=True))
  vectors = embed.embed(dot, [documents[doc_id] for doc_id in store.ids], "passage", progress=False)
  norms = np.linalg.norm(vectors, axis=1)
  assert np.ptp(norms) > 0.01
  np.testing.assert_allclose(store.norms(slice(None)), norms, rtol=1e-5)
  np.testing.assert_allclose(store[:], vectors / norms[:, None], atol=1e-6)
  query = embed.embed(dot, [" ".join(corpus(40).texts[0].split()[:4])], "query", progress=False)[0]
  ranked = read_run(folder / "out" / "runs" / "two_dot_-a.trec")["q0"]
  assert ranked.doc_ids == [store.ids[row] for row in np.argsort(-(vectors @ query), kind="stable")]
  np.testing.assert_allclose(ranked.scores, np.sort(vectors @ query)[::-1], rtol=1e-5)
  with pytest.raises(InputError, match="similarity 'euclid': give one of cosine, dot"):
    evaluate({"two": folder / "run"}, [folder / "a"], folder / "out", protocol=Protocol(similarities=("euclid",)))


def test_results_of_another_protocol_or_another_call_at_once(tmp_path, capsys):
  folder, out = write_collection(tmp_path / "a", corpus(20)), tmp_path / "out"
  write_collection(tmp_path / "b", corpus(20))
  write_model_dir(tmp_path / "run")
  models = {"one": tmp_path / "run"}
  evaluate(models, [folder, tmp_path / "b"], out, bm25=True, progress=False)
  results = json.loads((out / "results.json").read_text())
  evaluate(models, [folder], out, protocol=Protocol(document_length=4))
  assert "BM25: the results here on a are of other lengths" in capsys.readouterr().err
  now = json.loads((out / "results.json").read_text())
  assert now["collections"]["a"]["document_length"] == 4 and now["collections"]["b"] == results["collections"]["b"]
  assert {name: list(of["results"]) for name, of in now["systems"].items()} == {"BM25": ["b"], "one": ["b", "a"]}
  assert now["systems"]["one"]["results"]["a"] != results["systems"]["one"]["results"]["a"]

  # What another call has written in the meantime stays.
  before = json.loads((out / "results.json").read_text())
  before["systems"]["other"] = before["systems"]["one"]
  (out / "results.json").write_text(json.dumps(before))
  results_file.write(out, {**results, "collections": {}, "systems": {}})
  assert json.loads((out / "results.json").read_text())["systems"].keys() == {"BM25", "one", "other"}
  for damaged in ('{"depth":1000,"systems":{"BM25":{"weights_hash":null}},"collections":{}}',
                  '{"depth":1000,"systems":{},"collections":{"a":3}}', '{"depth":1000,"systems":[],"collections":[]}'):
    (out / "results.json").write_text(damaged)
    with pytest.raises(InputError, match="results.json: damaged; remove it"):
      evaluate({}, [folder], out, bm25=True, progress=False)
  with pytest.raises(InputError, match="exists and holds no evaluation"):
    evaluate({}, [folder], tmp_path, bm25=True, progress=False)


def test_cosine_of_a_model_that_does_not_normalise(made, tmp_path):
  """The same weights: scores are those of the model that does."""
  folder, mesh, results = made
  write_model_dir(tmp_path / "run", seeds=(0, 1), normalize=False)
  found = [evaluate({"raw": tmp_path / "run"}, [folder / "a"], tmp_path / "out", mesh=mesh, progress=False,
                    protocol=Protocol(similarities=similarities))["systems"] for similarities in ((), ("cosine",))]
  assert [[*of] for of in found] == [["raw"], ["raw (cosine)"]] and found[0]["raw"]["similarity"] == "dot"
  assert found[1]["raw (cosine)"]["results"]["a"] == pytest.approx(results["systems"]["two"]["results"]["a"])
  ours, expected = (read_run(path) for path in (tmp_path / "out/runs/raw_cosine_-a.trec",
                                                folder / "out/runs/two-a.trec"))
  for query, ranking in expected.items():
    np.testing.assert_allclose(ours[query].scores, ranking.scores, atol=1e-6)
  assert len([*(tmp_path / "out/embeddings").iterdir()]) == 1


def test_an_interrupted_evaluation_keeps_what_it_has_measured(tmp_path, monkeypatch):
  for name, documents in (("a", 20), ("b", 25)):
    write_collection(tmp_path / name, corpus(documents))
  given = ({}, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
  of_queries = evaluation.of_queries
  with monkeypatch.context() as interrupted:
    def stop_at_b(run, qrels):
      if len(read_run(tmp_path / "out/runs/BM25-a.trec")) and (tmp_path / "out/results.json").exists():
        raise KeyboardInterrupt
      return of_queries(run, qrels)
    interrupted.setattr(evaluation, "of_queries", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
      evaluate(*given, bm25=True, progress=False)
  there = json.loads((tmp_path / "out/results.json").read_text())
  assert list(there["systems"]["BM25"]["results"]) == ["a"]
  whole = evaluate(*given, bm25=True, progress=False)
  assert whole["systems"]["BM25"]["results"]["a"] == there["systems"]["BM25"]["results"]["a"]
  assert json.loads((tmp_path / "out/results.json").read_text()) == whole
  assert not [p for p in (tmp_path / "out").rglob("*") if ".tmp" in p.name]


def test_results_are_not_mixed_with_those_of_another_split_or_corpus(tmp_path):
  folder = write_collection(tmp_path / "a", corpus(20))
  (folder / "qrels" / "dev.tsv").write_text((folder / "qrels" / "test.tsv").read_text())
  evaluate({}, [folder], tmp_path / "out", bm25=True, progress=False)
  before = (tmp_path / "out/results.json").read_text()
  with pytest.raises(InputError, match="a: split dev, and of what the results here call so test"):
    evaluate({}, [folder], tmp_path / "out", bm25=True, protocol=Protocol(split="dev"), progress=False)
  write_collection(tmp_path / "other" / "a", corpus(21))
  with pytest.raises(InputError, match="a: documents 21, and of what the results here call so 20"):
    evaluate({}, [tmp_path / "other" / "a"], tmp_path / "out", bm25=True, progress=False)
  for changed in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
    other = write_collection(tmp_path / changed / "a", corpus(20)) / changed
    old, new = ("\t1\n", "\t2\n") if changed.startswith("qrels") else ('"text": "', '"text": "zebra ')
    other.write_text(other.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match="another collection a than in the results here.*choose another --output"):
      evaluate({}, [tmp_path / changed / "a"], tmp_path / "out", bm25=True, progress=False)
  assert (tmp_path / "out/results.json").read_text() == before
  other = write_collection(tmp_path / "copy" / "a", corpus(20))
  (other / "corpus.jsonl.gz").write_bytes(gzip.compress((other / "corpus.jsonl").read_bytes(), mtime=0))
  (other / "corpus.jsonl").unlink()
  evaluate({}, [other], tmp_path / "out", bm25=True, progress=False)
  assert (tmp_path / "out/results.json").read_text() == before


def test_what_other_weights_of_the_same_name_drop_is_said(made, tmp_path, capsys):
  folder, mesh, _ = made
  for model, collections, said in (("run", "ab", False), ("run", "a", False), ("run/checkpoints/1", "ab", False),
                                   ("run", "a", True)):
    evaluate({"x": folder / model}, [folder / name for name in collections], tmp_path / "out", mesh=mesh)
    error = capsys.readouterr().err
    expected = "x: the results here are of other weights, or computed in another dtype; those on b are dropped"
    assert (expected in error) is said
    assert ("dropped" in error) is said


def test_what_took_how_long_is_said(made, capsys):
  folder, mesh, _ = made
  evaluate({"two": folder / "run"}, [folder / "a"], folder / "out", mesh=mesh)
  line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("two on a: ") and "%" in line)
  assert all(f"{phase} " in line for phase in ("encoding documents", "encoding queries", "searching", "measuring"))


def test_the_evaluator_of_training(made):
  folder, mesh, results = made
  model = load_model(folder / "run", mesh)
  make = {"model": model.encoder, "tokenizer": model.tokenizer, "mesh": mesh, "query_length": 16, "document_length": 32}
  evaluator = RetrievalEvaluator("a", folder / "a", **make)
  assert evaluator.name == "a"
  with jax.set_mesh(mesh):  # As in the training loop.
    found = evaluator(model.params)
  expected = results["systems"]["two"]["results"]["a"]
  assert found == pytest.approx({name: expected[name] for name in ("nDCG@10", "MRR@10", "Recall@100")}, abs=1e-6)
  programs = embed.encode_packed._cache_size(), host_ranking._scores._cache_size()
  others = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), tiny_params(model.encoder, 7), model.params)
  other = evaluator(others)
  assert other != found
  assert (embed.encode_packed._cache_size(), host_ranking._scores._cache_size()) == programs


@pytest.mark.parametrize("name, own", [("quora", None), ("beir/quora", None), ("quora", True), ("quora", False)])
def test_the_evaluator_follows_the_protocol(made, tmp_path, name, own, capsys):
  """Queries that are documents, an empty document, a grade of 1.0, a judgement of nothing: as `evaluate` has it."""
  folder, mesh, _ = made
  place, documents = tmp_path / name, corpus(30)
  write_collection(place, documents, queries=0)
  with (place / "corpus.jsonl").open("a") as f:
    f.write('{"_id": "empty", "text": ""}\n')
  (place / "queries.jsonl").write_text("".join(
      json.dumps({"_id": documents.ids[i], "text": documents.texts[i]}) + "\n" for i in range(12)))
  (place / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(
      f"{documents.ids[i]}\t{documents.ids[i + 1]}\t{float(i != 3)}\n" for i in range(12)))
  model = load_model(folder / "run", mesh)
  protocol = Protocol(exclude_own_id=own, allow_empty_documents=True, similarities=("cosine",))
  expected = evaluate({"it": folder / "run"}, [place], tmp_path / "out", mesh=mesh, protocol=protocol, progress=True)
  assert "1 of 12 queries have no relevant document" in capsys.readouterr().err
  (of_collection,), (of_system,) = expected["collections"].values(), expected["systems"].values()
  assert of_collection["queries without relevant documents"] == 1
  assert of_collection["exclude_own_id"] is (name == "beir/quora" if own is None else own)
  evaluator = RetrievalEvaluator(
      "it", place, model=model.encoder, tokenizer=model.tokenizer, mesh=mesh, query_length=16, document_length=32,
      exclude_own_id=own, allow_empty_documents=name == "quora")
  found, (values,) = evaluator(model.params), of_system["results"].values()
  assert found == pytest.approx({name: values[name] for name in found}, abs=1e-6)
  assert "1 of 12 queries have no relevant document" in capsys.readouterr().err


def test_the_evaluator_names_what_gin_has(made, tmp_path):
  folder, mesh, _ = made
  model = load_model(folder / "run", mesh)
  make = {"model": model.encoder, "tokenizer": model.tokenizer, "mesh": mesh, "query_length": 16, "document_length": 32}
  write_collection(tmp_path / "c", corpus(10), queries=2)
  with (tmp_path / "c/corpus.jsonl").open("a") as f:
    f.write('{"_id": "empty", "text": ""}\n')
  with pytest.raises(InputError, match="RetrievalEvaluator.allow_empty_documents = True") as e:
    RetrievalEvaluator("c", tmp_path / "c", **make)
  assert "--" not in str(e.value)
  with pytest.raises(InputError, match="beir/nowhere: no such folder, and no such set"):
    RetrievalEvaluator("c", "beir/nowhere", **make)


def test_a_sample_keeps_what_is_judged_and_is_the_same_every_time(made):
  folder, mesh, _ = made
  model = load_model(folder / "run", mesh)
  make = {"model": model.encoder, "tokenizer": model.tokenizer, "mesh": mesh, "query_length": 16, "document_length": 32}
  first, second = (RetrievalEvaluator("a", folder / "a", max_queries=5, max_documents=14, **make) for _ in range(2))
  assert len(first._query_ids) == 5
  assert len(first._doc_ids) == 14
  assert set().union(*first._qrels.values()) <= set(first._doc_ids)
  assert first._doc_ids == second._doc_ids == sorted(first._doc_ids, reverse=True)
  assert first(model.params) == second(model.params)
  judged_only = RetrievalEvaluator("a", folder / "a", max_documents=1, **make)
  assert set(judged_only._doc_ids) == set().union(*judged_only._qrels.values())
