"""The BM25 index beside a store: built once, of the store's own documents, or built again and said so."""

import json

import numpy as np
import pytest
from tiny_model_dir import corpus

from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.retrieval import bm25_file
from gtr_jax.retrieval.bm25 import BM25Index
from gtr_jax.retrieval.bm25_file import FILE, bm25_of
from gtr_jax.retrieval.store import StoreWriter


def write_store(folder, documents: Documents, settings=None):
  """A store of vectors that are all the same."""
  writer = StoreWriter(folder, documents, 2, settings or {"weights_hash": "of a test"})
  return writer.write_all(lambda rows: (np.ones((rows.stop - rows.start, 2), np.float32),
                                        np.ones(rows.stop - rows.start, np.float32)), progress=False)


def found(index, query):
  (rows, scores), = index.search([query], 10)
  return rows.tolist(), scores.tolist()


def test_an_index_is_built_once_and_read_as_it_was(tmp_path, monkeypatch, capsys):
  store = write_store(tmp_path / "store", corpus(40))
  built = bm25_of(store)
  assert "an index of 40 documents is built" in capsys.readouterr().err
  in_memory = BM25Index([" ".join(store.document(row)[1:]).strip() for row in range(40)], progress=False)
  monkeypatch.setattr(bm25_file, "View", None)  # Nothing is indexed from here on.
  read = bm25_of(store)
  assert not capsys.readouterr().err
  for query in ("lion tiger lion", "castle bridges", "the of", "unknown"):
    assert found(read, query) == found(built, query) == found(in_memory, query)
  assert [path.name for path in (tmp_path / "store").iterdir() if "bm25" in path.name] == [FILE]


def test_of_other_documents_or_made_otherwise_it_is_built_again(tmp_path, capsys):
  store, other = write_store(tmp_path / "store", corpus(40)), write_store(tmp_path / "other", corpus(30))
  bm25_of(other, progress=False)
  (tmp_path / "other" / FILE).rename(tmp_path / "store" / FILE)
  index = bm25_of(store, progress=False)
  assert len(index.order) == 40
  assert f"{FILE}: a BM25 index of other documents than the store's; it is built again" in capsys.readouterr().err
  with np.load(tmp_path / "store" / FILE) as archive:
    arrays = dict(archive)
  of = json.loads(arrays["of"].tobytes())
  arrays["of"] = np.frombuffer(json.dumps({**of, "k1": 0.9}).encode(), np.uint8)
  np.savez(tmp_path / "store" / FILE, **arrays)
  bm25_of(store, progress=False)
  assert "a BM25 index of k1 0.9, where this is 1.5; it is built again" in capsys.readouterr().err
  bm25_of(store, progress=False)
  assert not capsys.readouterr().err


@pytest.mark.parametrize("how", ["cut off", "text", "another array", "a bit"])
def test_what_is_damaged_or_no_index_is_left_alone(tmp_path, how):
  store = write_store(tmp_path / "store", corpus(40))
  bm25_of(store, progress=False)
  path = tmp_path / "store" / FILE
  data = path.read_bytes()
  if how == "another array":
    np.savez(path, a=np.ones(3))
  else:
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes({"cut off": data[:-100], "text": b"my notes", "a bit": bytes(flipped)}[how])
  damaged = path.read_bytes()
  with pytest.raises(InputError, match=f"{FILE}: damaged, or no BM25 index .*; remove it"):
    bm25_of(store, progress=False)
  assert path.read_bytes() == damaged


def test_a_store_without_texts_has_none(tmp_path):
  store = write_store(tmp_path / "store", Documents(["a", "b"], [""] * 2, [""] * 2), {"vectors_hash": "x"})
  with pytest.raises(InputError, match="without texts, and BM25 needs texts"):
    bm25_of(store)


def test_nothing_is_left_where_building_fails(tmp_path, monkeypatch):
  store = write_store(tmp_path / "store", corpus(10))
  before = sorted(path.name for path in (tmp_path / "store").iterdir())
  monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write("not bytes"))
  with pytest.raises(TypeError):
    bm25_of(store, progress=False)
  assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
