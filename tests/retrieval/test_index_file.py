"""Approximate indices beside a store: how they are bound to its vectors, and what is searched by them; by an index of a
test, which needs no library. Those of FAISS and USearch: tests/peers/test_indices.py."""

import json
import sys

import jax
import numpy as np
import pytest

from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.retrieval import approximate, index_file, index_search
from gtr_jax.retrieval.approximate import FEWEST_OF_PQ, FaissIVFPQ, USearchHNSW, engine
from gtr_jax.retrieval.index_file import build_index, read_index, write_recall
from gtr_jax.retrieval.index_search import IndexSearcher, measure, open_index, own_queries
from gtr_jax.retrieval.search import Searcher, search_run
from gtr_jax.retrieval.store import StoreWriter

NAME = "faiss-hnsw"


class Flat:
  """Looks at all vectors in float64; `blind` ones it does not find."""

  package, install, blind = "numpy", "", ()
  settings = staticmethod(approximate.FaissHNSW.settings)

  def __init__(self, vectors):
    self.vectors = vectors

  @classmethod
  def make(cls, dim, settings, sample):
    assert len(sample(7)) == 7
    return cls(np.zeros((0, dim)))

  @classmethod
  def read(cls, path):
    with open(path, "rb") as file:
      return cls(np.load(file))

  def add(self, vectors):
    self.vectors = np.concatenate([self.vectors, vectors])

  def save(self, path):
    with open(path, "wb") as file:
      np.save(file, self.vectors)

  def search(self, queries, k, factor):
    scores = queries @ self.vectors.T
    scores[:, list(self.blind)] = -np.inf
    found = np.argsort(-scores, axis=1)[:, :factor * k]
    return np.where(np.take_along_axis(scores, found, 1) == -np.inf, -1, found)


@pytest.fixture(autouse=True)
def flat(monkeypatch):
  monkeypatch.setattr(approximate, "ENGINES", dict.fromkeys(approximate.ENGINES, Flat))


def vectors_of(rows, seed=0, dim=8):
  return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def write_store(folder, vectors, settings=None, precision="float32"):
  ids = [f"d{i:04}" for i in range(len(vectors))]
  writer = StoreWriter(folder, Documents(ids, [""] * len(ids), ids), vectors.shape[1],
                       settings or {"weights_hash": "of a test"}, precision)
  if writer.not_fitted:
    writer.fit(vectors[writer.order][writer.sample_rows()])
  ordered = vectors[writer.order]
  return writer.write_all(lambda rows: (ordered[rows], np.linalg.norm(ordered[rows], axis=1)), progress=False)


def build(store, name=NAME):
  return build_index(store, name, {}, progress=False)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_scores_and_order_are_those_of_the_exact_search(tmp_path, precision, monkeypatch):
  vectors = vectors_of(3000)
  vectors[1500:1800] = vectors[:300]  # Which tie.
  store = write_store(tmp_path / "store", vectors, precision=precision)
  monkeypatch.setattr(index_search, "_MAX_QUERIES", 7)
  build(store)
  queries = vectors_of(20, seed=1)
  scores, rows = open_index(store).search(queries, 50)
  expected_scores, expected = Searcher(store[:]).search(queries, 50)
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
  np.testing.assert_array_equal(rows, expected)
  assert all(of.dtype == np.float32 for of in scores)
  both = [search_run(searcher, store.ids, [f"q{i}" for i in range(20)], queries, 5, progress=False)
          for searcher in (Searcher(store[:]), open_index(store))]
  assert [ranking.doc_ids for ranking in both[0].values()] == [ranking.doc_ids for ranking in both[1].values()]


def test_rows_of_any_chunk_are_taken(tmp_path, monkeypatch):
  monkeypatch.setattr("gtr_jax.retrieval.store.CHUNK_ROWS", 16)
  store = write_store(tmp_path / "store", vectors_of(50))
  rows = np.asarray([49, 0, 17, 17, 15, 16])
  np.testing.assert_array_equal(store.take(rows), store[:][rows])
  assert store.take(rows[:0]).shape == (0, 8)


def test_what_is_not_found_is_left_out(tmp_path, monkeypatch):
  store = write_store(tmp_path / "store", vectors_of(30))
  build(store)
  monkeypatch.setattr(Flat, "blind", range(4, 30))
  scores, rows = open_index(store).search(vectors_of(3, seed=1), 10)
  assert [sorted(of.tolist()) for of in rows] == [[0, 1, 2, 3]] * 3 and all(len(of) == 4 for of in scores)
  monkeypatch.setattr(Flat, "blind", range(30))
  scores, rows = open_index(store).search(vectors_of(2, seed=1), 10)
  assert [len(of) for of in rows] == [0, 0]


def test_recall_is_the_share_of_what_the_exact_search_finds(tmp_path, monkeypatch):
  store = write_store(tmp_path / "store", vectors_of(400))
  record, queries = build(store), own_queries(store)
  assert queries.shape == (200, 8)
  found = measure(Searcher(store), open_index(store), queries)
  assert (found["queries"], found["recall@10"], found["recall@100"]) == (200, 1, 1)
  assert all(found["ms"][of].keys() == {"all at once", "alone"} for of in ("exact", "index"))
  write_recall(store, record, found)
  assert read_index(store)[0]["recall"] == found
  monkeypatch.setattr(Flat, "blind", range(0, 400, 2))
  assert 0.4 < measure(Searcher(store), open_index(store), queries)["recall@100"] < 0.6
  alike = write_store(tmp_path / "alike", np.ones((400, 8), np.float32))
  build(alike)  # One of them is as good as another.
  assert measure(Searcher(alike), open_index(alike), own_queries(alike))["recall@10"] == 1


def refused(store, match, name=NAME):
  with pytest.raises(InputError, match=match) as e:
    read_index(store, name)
  assert "\n" not in str(e.value)


def test_an_index_of_other_vectors_is_refused(tmp_path):
  stores = {name: write_store(tmp_path / name, vectors_of(rows), {"weights_hash": weights}) for name, rows, weights in (
      ("store", 40, "a"), ("documents", 41, "a"), ("weights", 40, "b"))}
  store = stores["store"]
  refused(store, "faiss-hnsw.index: not there; make it: gtr-jax index .*store --to faiss$")
  build(store)
  assert read_index(store)[0]["of"]["settings"] == {"weights_hash": "a"}
  for name, what in (("documents", "documents"), ("weights", "vectors")):
    build(stores[name])
    for suffix in ("index", "json"):
      (tmp_path / name / f"{NAME}.{suffix}").rename(tmp_path / "store" / f"{NAME}.{suffix}")
    refused(store, f"an index of other {what} than the store's; make it again: gtr-jax index")
  build(store)  # It is ours, and replaced.
  assert len(read_index(store)[1].vectors) == 40


@pytest.mark.parametrize("how, match", [
    ("a bit", "damaged, or not the index that faiss-hnsw.json describes; make it again"),
    ("cut off", "damaged, or not the index"), ("gone", "missing; make it again"),
    ("no json", "without faiss-hnsw.json, which says what it is; remove it"),
    ("json", "faiss-hnsw.json: damaged"), ("another json", "faiss-hnsw.json: damaged, .* missing"),
    ("another format", "of format 9, faiss-hnsw, and not of format 1")])
def test_what_is_damaged_is_not_read(tmp_path, how, match, monkeypatch):
  store = write_store(tmp_path / "store", vectors_of(40))
  record = build(store)
  path, about = tmp_path / "store" / f"{NAME}.index", tmp_path / "store" / f"{NAME}.json"
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  {"a bit": lambda: path.write_bytes(data), "cut off": lambda: path.write_bytes(data[:-9]), "gone": path.unlink,
   "no json": about.unlink, "json": lambda: about.write_text("{"), "another json": lambda: about.write_text("{}"),
   "another format": lambda: about.write_text(json.dumps({**record, "format": 9}))}[how]()
  with monkeypatch.context() as patched:
    patched.setattr(Flat, "read", None)  # Libraries crash at what they did not write.
    refused(store, match)
  if "json" in how or "format" in how:  # Nobody knows whose it is.
    there = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    with pytest.raises(InputError, match=match):
      build(store)
    assert there == {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
  else:
    build(store)
    read_index(store)


def test_an_interruption_leaves_nothing_that_is_taken_for_an_index(tmp_path, monkeypatch):
  store = write_store(tmp_path / "store", vectors_of(40))
  before = {file.name for file in (tmp_path / "store").iterdir()}

  def full(self, path):
    raise RuntimeError("fwrite failed\nat line 3")

  with monkeypatch.context() as patched:
    patched.setattr(Flat, "save", full)
    with pytest.raises(InputError, match=r"faiss-hnsw.index: cannot be written \(fwrite failed\)"):
      build(store)
  assert {file.name for file in (tmp_path / "store").iterdir()} == before
  with monkeypatch.context() as patched:  # Between the two files.
    patched.setattr(index_file, "write_json", lambda path, value: (path.write_text(json.dumps(value)), 1 / 0))
    with pytest.raises(ZeroDivisionError):
      build(store)
  refused(store, "faiss-hnsw.index: missing; make it again")
  build(store)
  read_index(store)


def test_which_one(tmp_path):
  store = write_store(tmp_path / "store", vectors_of(40))
  refused(store, "has no index; make one: gtr-jax index", None)
  build(store, "faiss-ivf-pq")
  assert read_index(store)[0]["name"] == "faiss-ivf-pq"
  refused(store, "usearch-hnsw.index: not there; make it: gtr-jax index .* --to usearch$", "usearch-hnsw")
  build(store, "usearch-hnsw")
  refused(store, "has several indices; say which: --index faiss-ivf-pq, or usearch-hnsw", None)
  (tmp_path / "store" / "faiss-ivf-pq.index").unlink()
  refused(store, "missing; make it again: gtr-jax index .* --to faiss --kind ivf-pq", "faiss-ivf-pq")


def test_stores_that_have_no_index(tmp_path, monkeypatch):
  with pytest.raises(InputError, match="holds binary vectors, of which an index would be many times as large"):
    build(write_store(tmp_path / "bits", vectors_of(40), precision="binary"))
  store = write_store(tmp_path / "store", vectors_of(40))
  build(store)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  refused(store, "an index is made and searched in one process")
  with pytest.raises(InputError, match="in one process"):
    build(store)


@pytest.mark.parametrize("name, match", [
    (NAME, r"faiss-hnsw needs faiss, .*: pip install 'gtr_jax\[faiss\]' \(faiss-cpu\)"),
    ("usearch-hnsw", r"usearch-hnsw needs usearch, .*: pip install 'gtr_jax\[usearch\]'")])
def test_a_library_that_is_not_there(name, match, monkeypatch):
  monkeypatch.setattr(approximate, "ENGINES", {NAME: approximate.FaissHNSW, "usearch-hnsw": USearchHNSW})
  monkeypatch.setitem(sys.modules, name.partition("-")[0], None)
  with pytest.raises(InputError, match=match):
    engine(name)


def test_settings_of_lists_and_codes():
  assert FaissIVFPQ.settings(1_000_000, 768, {}) == {"lists": 4000, "bytes": 96}
  assert FaissIVFPQ.settings(FEWEST_OF_PQ, 7, {}) == {"lists": 256, "bytes": 1}
  assert FaissIVFPQ.settings(20_000, 100, {"lists": 9, "bytes": 20}) == {"lists": 9, "bytes": 20}
  for documents, given, match in ((9983, {}, "learns from 9,984 documents or more, and there are 9,983"),
                                  (20_000, {"lists": 513}, "--lists 513: of 20,000 documents at most 512"),
                                  (20_000, {"bytes": 7}, "--bytes 7: does not divide the 96 numbers of a vector")):
    with pytest.raises(InputError, match=match):
      FaissIVFPQ.settings(documents, 96, given)


def test_a_factor_says_how_much_is_looked_at(tmp_path):
  store = write_store(tmp_path / "store", vectors_of(100))
  build(store)
  asked = []
  index = read_index(store)[1]

  class Asked:
    def search(self, queries, k, factor):
      asked.append((len(queries), k, factor))
      return index.search(queries, k, factor)

  IndexSearcher(store, Asked(), 9).search(vectors_of(3), 4)
  assert asked == [(3, 4, 9)]
