"""The indices of FAISS and USearch, and `gtr-jax index` and `gtr-jax search --index`, by the command line."""

import json

import faiss
import numpy as np
import pytest
from tiny_model_dir import corpus, write_collection, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.retrieval import approximate
from gtr_jax.retrieval.approximate import ENGINES
from gtr_jax.retrieval.given_vectors import GivenVectors, store_vectors
from gtr_jax.retrieval.index_file import build_index
from gtr_jax.retrieval.index_search import measure, open_index, own_queries
from gtr_jax.retrieval.runs import read_run
from gtr_jax.retrieval.search import Searcher

pytest.importorskip("usearch")
pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
  """Else a graph is another one each time."""
  before = faiss.omp_get_max_threads()
  faiss.omp_set_num_threads(1)
  monkeypatch.setattr(approximate, "_THREADS", 1)
  yield
  faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  """10,000 vectors in 50 clusters: of the length 1, and of others."""
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
  vectors = rng.normal(size=(50, 32))[rng.integers(50, size=10_000)] + 0.7 * rng.normal(size=(10_000, 32))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  ids = [f"d{i}" for i in range(len(vectors))]
  of = {"normalized": vectors, "not": vectors * np.exp(0.2 * rng.normal(size=(10_000, 1)))}
  return {name: store_vectors(GivenVectors(ids, values.astype(np.float32), False, name), folder / name, progress=False)
          for name, values in of.items()}


SPARSE = {"connections": 8, "effort": 40}


@pytest.mark.parametrize("vectors, name, settings, least", [
    ("normalized", "faiss-hnsw", SPARSE, 0.95), ("normalized", "usearch-hnsw", SPARSE, 0.95),
    ("normalized", "faiss-ivf-pq", {"bytes": 8}, 0.85), ("not", "faiss-ivf-pq", {"bytes": 8}, 0.85),
    ("not", "faiss-hnsw", {}, 0.95), ("not", "usearch-hnsw", {}, 0.95)])
def test_recall(stores, vectors, name, settings, least):
  """Of inner products a sparse graph loses the short vectors, which are near no other."""
  store = stores[vectors]
  record = build_index(store, name, settings, progress=False)
  default = {"lists": 256} if name == "faiss-ivf-pq" else {"connections": 32, "effort": 200}
  assert record["settings"] == {**default, **settings}
  exact, queries = Searcher(store), own_queries(store)
  found = measure(exact, open_index(store, name), queries)
  assert least < found["recall@100"] <= 1 and found["recall@10"] > least
  more = measure(exact, open_index(store, name, 16), queries)
  assert more["recall@100"] >= found["recall@100"]
  if vectors == "not" and name != "faiss-ivf-pq":
    assert more["recall@100"] > 0.98
    return
  # To look at everything: all of it, in the exact order, by the exact scores.
  expected_scores, expected = exact.search(queries[:10], 100)
  scores, rows = open_index(store, name, 100).search(queries[:10], 100)
  np.testing.assert_array_equal(rows, expected)
  np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


@pytest.mark.parametrize("name", ["faiss-hnsw", "usearch-hnsw"])
def test_few_vectors_are_all_found(tmp_path, name):
  vectors = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
  store = store_vectors(GivenVectors([f"d{i}" for i in range(300)], vectors, False, "x"), tmp_path / "store",
                        progress=False)
  build_index(store, name, {}, progress=False)
  for queries in (vectors[:1], vectors[:9]):
    expected_scores, expected = Searcher(store).search(queries, 1000)
    scores, rows = open_index(store).search(queries, 1000)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


def test_the_files_are_those_of_the_libraries(stores):
  from usearch.index import Index
  store = stores["normalized"]
  query = store[:1]
  for name in ENGINES:
    build_index(store, name, {} if "pq" in name else SPARSE, progress=False)
  for name in ("faiss-hnsw", "faiss-ivf-pq"):
    index = faiss.read_index(str(store.path / f"{name}.index"))
    assert index.ntotal == 10_000 and index.metric_type == faiss.METRIC_INNER_PRODUCT
  assert faiss.read_index(str(store.path / "faiss-hnsw.index")).search(query, 1)[1].tolist() == [[0]]
  assert Index.restore(str(store.path / "usearch-hnsw.index")).search(query[0], 1).keys.tolist() == [0]


def test_one_library_s_file_is_not_read_by_another(stores):
  store = stores["normalized"]
  for name in ("faiss-hnsw", "usearch-hnsw"):
    build_index(store, name, SPARSE, progress=False)
  (store.path / "usearch-hnsw.index").write_bytes((store.path / "faiss-hnsw.index").read_bytes())
  with pytest.raises(InputError, match="damaged, or not the index that usearch-hnsw.json describes"):
    open_index(store, "usearch-hnsw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("commands")
  write_model_dir(folder / "model")
  write_collection(folder / "c", corpus(40), queries=30)
  assert gtr_jax(folder, "encode", "--model", "@model", "--collection", "@c", "--output", "@store") == 0
  return folder


def gtr_jax(folder, *words):
  return main([word.replace("@", f"{folder}/") for word in words])


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_commands(folder, capsys, library):
  name = f"{library}-hnsw"
  make = ["index", "@store", "--to", library]
  assert gtr_jax(folder, *make, "--connections", "16") == 0
  out = capsys.readouterr().out
  assert f"{name}.index (16 connections, 200 effort; 0.0 MB)" in out
  assert "by 40 documents of the store as queries: recall@10 1.0000, recall@100 1.0000" in out
  assert "index: " in out and "ms a query, all at once; " in out
  assert gtr_jax(folder, *make, "--model", "@model", "--queries", "@c/queries.jsonl") == 0
  assert f"by 30 queries of {folder}/c/queries.jsonl: recall@10 1.0000" in capsys.readouterr().out
  about = json.loads((folder / "store" / f"{name}.json").read_text())
  assert about["recall"]["by"] == f"queries of {folder}/c/queries.jsonl" and about["settings"]["connections"] == 32

  search = ["search", "--model", "@model", "--embeddings", "@store", "--top_k", "7"]
  for flags in ((), ("--hybrid",)):
    runs = []
    for by in ((), ("--index", name)):
      assert gtr_jax(folder, *search, *flags, *by, "--queries", "@c/queries.jsonl", "--output", "@run.trec") == 0
      runs.append(read_run(folder / "run.trec"))
    assert runs[0].keys() == runs[1].keys()
    for query_id, ranking in runs[0].items():
      assert runs[1][query_id].doc_ids == ranking.doc_ids
      np.testing.assert_allclose(runs[1][query_id].scores, ranking.scores, atol=1e-5)
  capsys.readouterr()
  assert gtr_jax(folder, *search, "--index", name, "--query", "lion tiger", "--json") == 0
  by_index = json.loads(capsys.readouterr().out)["results"]
  assert gtr_jax(folder, *search, "--query", "lion tiger", "--json") == 0
  exact = json.loads(capsys.readouterr().out)["results"]
  assert [result["id"] for result in by_index] == [result["id"] for result in exact] and len(exact) == 7


def test_vectors(tmp_path, capsys):
  np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(200, 8)))
  (tmp_path / "v.txt").write_text("".join(f"d{i}\n" for i in range(200)))
  given = ["--vectors", "@v.npy", "--ids", "@v.txt"]
  assert gtr_jax(tmp_path, "encode", *given, "--output", "@store") == 0
  assert gtr_jax(tmp_path, "index", "@store", "--to", "faiss") == 0
  for name, by in (("exact", ()), ("index", ("--index",))):
    assert gtr_jax(tmp_path, "search", "--embeddings", "@store", *given, *by, "--output", f"@{name}", "--top_k",
                   "9") == 0
  assert "at most 9 documents each" in capsys.readouterr().out
  exact, found = read_run(tmp_path / "exact"), read_run(tmp_path / "index")
  assert all(exact[query_id].doc_ids == found[query_id].doc_ids for query_id in exact)
