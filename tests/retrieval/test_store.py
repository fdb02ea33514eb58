"""Embedding stores: reading, and one line that names the file where something is damaged."""

import json
import types

import numpy as np
import pytest

from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.retrieval import store
from gtr_jax.retrieval.search import Searcher
from gtr_jax.retrieval.store import Store, StoreWriter

DOCUMENTS = Documents(["2", "10", "é", "a"], ["", "Ten", "", "A\u2028title"], ["two", "", "accent\n", "text"])
SETTINGS = {"weights_hash": "w" * 64, "max_length": 8, "prompt": ""}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(store, "CHUNK_ROWS", 3)
  writer = StoreWriter(tmp_path / "store", DOCUMENTS, 2, SETTINGS)
  for chunk in writer.missing_chunks():
    writer.write_chunk(chunk, np.asarray([[row, -row] for row in chunk], np.float32), 10 + np.asarray(chunk))
  writer.finish()
  return tmp_path / "store"


def test_rows_descend_by_id_and_documents_are_there_to_show(folder):
  there = Store(folder)
  assert there.ids == ["é", "a", "2", "10"]
  assert [there.document(row) for row in range(4)] == [
      ("é", "", "accent\n"), ("a", "A\u2028title", "text"), ("2", "", "two"), ("10", "Ten", "")]
  assert there.shape == (4, 2)
  assert there.settings == SETTINGS


@pytest.mark.parametrize("rows", [slice(0, 4), slice(0, 2), slice(1, 4), slice(3, 4), slice(2, 2), slice(4, 9)])
def test_slices_cross_chunks(folder, rows):
  whole = np.asarray([[row, -row] for row in range(4)], np.float32)
  np.testing.assert_array_equal(Store(folder)[rows], whole[rows])
  np.testing.assert_array_equal(Store(folder).norms(rows), np.arange(10, 14, dtype=np.float32)[rows])


def test_can_be_searched(folder):
  scores, rows = Searcher(Store(folder)).search(np.float32([[1, 0]]), 2)
  assert (scores.tolist(), rows.tolist()) == ([[3, 2]], [[3, 2]])


def cut_off(path):
  path.write_bytes(path.read_bytes()[:-4])


def overwrite(path):
  path.write_bytes(b"not an array at all")


def of_another_size(path):
  np.save(path, np.zeros((3, 5), np.float32))


@pytest.mark.parametrize(("name", "spoil"), [
    ("embeddings-00001.npy", cut_off), ("embeddings-00000.npy", overwrite), ("embeddings-00000.npy", of_another_size),
    ("embeddings-00001.npy", lambda path: path.unlink()), ("offsets.npy", cut_off), ("ids.txt", cut_off),
    ("checksums.npy", cut_off),
    ("documents.jsonl", lambda path: path.unlink()),
    ("norms-00001.npy", cut_off), ("norms-00000.npy", lambda path: path.unlink()),
    ("ids.txt", lambda path: path.unlink()), ("manifest.json", cut_off),
    ("manifest.json", lambda path: path.write_text("[]")),
    ("ids.txt", lambda path: path.write_bytes(b"\xff\n" * 4)),
    *(("manifest.json", lambda path, field=field: path.write_text(
        json.dumps({**json.loads(path.read_text()), **field}))) for field in (
            {"documents": "4"}, {"dim": None}, {"chunk_rows": 0}, {"settings": []}, {"documents": 1.5},
            {"settings": {"weights_hash": 5}})),
])
def test_a_damaged_file_is_named(folder, name, spoil):
  spoil(folder / name)
  with pytest.raises(InputError) as e:
    Store(folder)
  assert f"{folder / name}: damaged" in str(e.value)
  assert "\n" not in str(e.value)


def test_a_damaged_document_is_named(folder):
  cut_off(folder / "documents.jsonl")
  there = Store(folder)
  with pytest.raises(InputError, match="documents.jsonl: damaged or cut off .the file is shorter than it was"):
    there.document(3)


@pytest.mark.parametrize("name", ["documents.jsonl", "embeddings-00000.npy", "norms-00000.npy", "checksums-00000.npy"])
def test_one_bit_that_is_another_is_seen(folder, name):
  data = bytearray((folder / name).read_bytes())
  data[-3] ^= 1
  (folder / name).write_bytes(data)
  there = Store(folder)
  damaged = "norms-00000.npy" if name.startswith("checksums") else name
  with pytest.raises(InputError, match=f"{damaged}: damaged or cut off .*its checksum is another"):
    _ = there.document(3), there[0:3], there.norms(slice(0, 3))


@pytest.mark.parametrize("name, old, new", [
    ("ids.txt", b"a", b"x"), ("manifest.json", b"wwww", b"wwwx"), ("manifest.json", b'"prompt": ', b'"prompt":  '),
    ("offsets.npy", b"\x00\x00\x00\x00", b"\x00\x01\x00\x00"), ("checksums.npy", None, None),
    ("embeddings-00000.npy", b"'fortran_order': False", b"'fortran_order': True ")])
def test_what_has_become_another_is_seen_at_once(folder, name, old, new):
  """Whatever decides an answer: also where it is as long as it was, and can be read."""
  data = (folder / name).read_bytes()
  spoilt = data[:-1] + bytes([data[-1] ^ 1]) if old is None else new.join(data.rsplit(old, 1))
  assert spoilt != data
  (folder / name).write_bytes(spoilt)
  with pytest.raises(InputError, match=f"{name}: damaged or cut off"):
    Store(folder)


def test_the_advice_for_other_ids_works(folder):
  ids = (folder / "ids.txt").read_bytes()
  (folder / "ids.txt").write_bytes(ids.replace(b"a", b"x", 1))
  with pytest.raises(InputError, match="remove ids.txt and COMPLETE"):
    StoreWriter(folder, DOCUMENTS, 2, SETTINGS).finish()  # What says that it is whole is of the documents.
  for name in ("ids.txt", "COMPLETE"):
    (folder / name).unlink()
  writer = StoreWriter(folder, DOCUMENTS, 2, SETTINGS)
  assert writer.missing_chunks() == [] and writer.finish().ids and (folder / "ids.txt").read_bytes() == ids


def test_a_store_of_an_earlier_version(folder):
  """Has an empty COMPLETE, which is written anew by what made it."""
  (folder / "COMPLETE").write_bytes(b"")
  with pytest.raises(InputError, match="COMPLETE: is empty, as an earlier version"):
    Store(folder)
  writer = StoreWriter(folder, DOCUMENTS, 2, SETTINGS)
  assert writer.missing_chunks() == [] and writer.finish().ids == Store(folder).ids
  (folder / "COMPLETE").write_bytes(b"{")
  with pytest.raises(InputError, match="COMPLETE: damaged"):
    Store(folder)


@pytest.mark.parametrize("damaged", ["embeddings-00001.npy", "norms-00001.npy"])
def test_the_advice_for_a_damaged_chunk_works(folder, damaged):
  cut_off(folder / damaged)
  for name in (damaged, "COMPLETE"):
    (folder / name).unlink()
  writer = StoreWriter(folder, DOCUMENTS, 2, SETTINGS)
  assert writer.missing_chunks() == [range(3, 4)]
  writer.write_chunk(range(3, 4), np.float32([[3, -3]]), np.float32([4]))
  assert writer.finish()[3:4].tolist() == [[3, -3]] and Store(folder).norms(slice(3, 4)).tolist() == [4]


def model(weights_hash, dtype="float32"):
  return types.SimpleNamespace(weights_hash=weights_hash, encoder=DualEncoder(T5Config(9, 8, 1, 8, 8, 1, dtype=dtype)))


def test_embeddings_are_of_one_dtype(folder, tmp_path):
  half = {"dtype": "bfloat16", **SETTINGS}
  StoreWriter(folder, DOCUMENTS, 2, half)  # An earlier version has not said it; then the hash of the weights decides.
  writer = StoreWriter(tmp_path / "half", DOCUMENTS, 2, half)
  for chunk in writer.missing_chunks():
    writer.write_chunk(chunk, np.zeros((len(chunk), 2), np.float32), np.zeros(len(chunk), np.float32))
  store = writer.finish()
  store.check_model(model("w" * 64, "bfloat16"))
  with pytest.raises(InputError, match="computed in bfloat16, and queries would be in float32; .*--dtype bfloat16"):
    store.check_model(model("w" * 64))
  with pytest.raises(InputError, match="computed in another dtype .'bfloat16', not 'float32'.; choose another folder"):
    StoreWriter(tmp_path / "half", DOCUMENTS, 2, {"dtype": "float32", **SETTINGS})


def test_what_is_no_store_or_of_another_model_or_version(folder, tmp_path):
  with pytest.raises(InputError, match="not an embedding store"):
    Store(tmp_path)
  Store(folder).check_model(model("w" * 64))
  with pytest.raises(InputError, match="another model .weights wwwwwwwwwwww, not xxxxxxxxxxxx"):
    Store(folder).check_model(model("x" * 64))
  manifest = json.loads((folder / "manifest.json").read_text())
  (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))
  with pytest.raises(InputError, match="format 9, this version reads 4"):
    Store(folder)


VECTORS = np.float32([[0.5, -1, 2, -4, 0, 1, 1, -1], [1, 1, 1, 1, 0, -1, -2, 3], [-1, 0.25, 0, 2, 0, 1, 1, 1],
                      [0.75, 0.5, -2, 3, 0, 1, 0, -3]])


def small(path, precision, vectors=VECTORS, chunks=None):
  writer = StoreWriter(path, DOCUMENTS, 8, SETTINGS, precision)
  if writer.not_fitted:
    writer.fit(vectors[writer.sample_rows()])
  for chunk in writer.missing_chunks()[:chunks]:
    writer.write_chunk(chunk, vectors[chunk.start:chunk.stop], np.linalg.norm(vectors[chunk.start:chunk.stop], axis=1))
  return writer


@pytest.fixture
def chunks_of_3(monkeypatch):
  monkeypatch.setattr(store, "CHUNK_ROWS", 3)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_small_vectors(chunks_of_3, tmp_path, precision):
  there = small(tmp_path / "store", precision).finish()
  largest = np.abs(VECTORS).max(0) + (VECTORS == 0).all(0) * 4
  if precision == "int8":
    codes = np.rint(VECTORS / largest.astype(np.float64) * 127)
    values = codes * largest / 127
  else:
    turn, thresholds = np.split(np.load(tmp_path / "store" / "rotation.npy").astype(np.float64), [8])
    above = VECTORS @ turn > thresholds
    codes, values = np.packbits(above, axis=1), np.where(above, 1, -1) @ turn.T
  np.testing.assert_array_equal(there.codes(slice(0, 4)), codes)
  np.testing.assert_allclose(there[0:4], values, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(there.norms(slice(1, 4)), np.linalg.norm(VECTORS[1:], axis=1).astype(np.float32))
  size = sum(path.stat().st_size - 128 for path in (tmp_path / "store").glob("embeddings-*.npy"))
  assert size == there.quantizer.num_bytes * 4 == {"int8": 32, "binary": 4}[precision]
  scores, rows = Searcher(there).search(VECTORS[:2], 2)
  exact = VECTORS[:2].astype(np.float64) @ values.T
  np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :2])
  np.testing.assert_allclose(scores, -np.sort(-exact)[:, :2], rtol=1e-6)


def test_an_interrupted_store_keeps_its_scales(chunks_of_3, tmp_path):
  """Whatever the vectors that come then, as on other devices, or in another dtype."""
  small(tmp_path / "store", "int8", chunks=1)
  scales = (tmp_path / "store" / "scales.npy").read_bytes()
  writer = StoreWriter(tmp_path / "store", DOCUMENTS, 8, SETTINGS, "int8")
  assert not writer.not_fitted and writer.missing_chunks() == [range(3, 4)]
  there = small(tmp_path / "store", "int8", vectors=VECTORS * 3).finish()
  assert (tmp_path / "store" / "scales.npy").read_bytes() == scales
  np.testing.assert_allclose(there[0:3], VECTORS[:3], atol=4 / 127)
  assert there.codes(slice(3, 4))[0, 0] == 127  # Is cut off.


def test_scales_that_are_others_are_seen(chunks_of_3, tmp_path):
  folder = tmp_path / "store"
  small(folder, "int8").finish()
  scales = np.load(folder / "scales.npy")
  np.save(folder / "scales.npy", scales * 2)
  with pytest.raises(InputError, match="scales.npy: damaged or cut off .its checksum is another.; remove the folder"):
    Store(folder)
  (folder / "COMPLETE").unlink()
  there = small(folder, "int8").finish()  # Says that they belong there; the chunks know better.
  with pytest.raises(InputError, match="embeddings-00000.npy: damaged or cut off .its checksum is another"):
    there.codes(slice(0, 1))
  for spoilt, message in ((scales * 0, "a scale is not above 0"), (scales[:3], r"float32 \[3\] instead of .* \[8\]")):
    np.save(folder / "scales.npy", spoilt)
    with pytest.raises(InputError, match=f"scales.npy: damaged or cut off .{message}.; remove the folder"):
      small(folder, "int8")
  (folder / "scales.npy").unlink()
  with pytest.raises(InputError, match="scales.npy: missing, and the embeddings here mean nothing without it"):
    small(folder, "int8")


def test_an_interrupted_store_keeps_its_rotation(chunks_of_3, tmp_path):
  """Whatever another machine would fit."""
  folder = tmp_path / "store"
  small(folder, "binary", chunks=1)
  turned = np.load(folder / "rotation.npy")[:, ::-1]
  (folder / "embeddings-00000.npy").unlink()  # And now as if that had made it.
  np.save(folder / "rotation.npy", np.ascontiguousarray(turned))
  written = (folder / "rotation.npy").read_bytes()
  there = small(folder, "binary", vectors=VECTORS).finish()
  assert (folder / "rotation.npy").read_bytes() == written
  np.testing.assert_array_equal(there.codes(slice(0, 4)), np.packbits(VECTORS @ turned[:-1] > turned[-1], axis=1))


def test_a_rotation_that_is_another_is_seen(chunks_of_3, tmp_path):
  folder = tmp_path / "store"
  small(folder, "binary").finish()
  fitted = np.load(folder / "rotation.npy")
  np.save(folder / "rotation.npy", np.ascontiguousarray(fitted[:, ::-1]))
  with pytest.raises(InputError, match="rotation.npy: damaged or cut off .its checksum is another.; remove the folder"):
    Store(folder)
  (folder / "COMPLETE").unlink()
  there = small(folder, "binary").finish()  # Says that it belongs there; the chunks know better.
  with pytest.raises(InputError, match="embeddings-00000.npy: damaged or cut off .its checksum is another"):
    there.codes(slice(0, 1))
  for spoilt, message in ((fitted * 2, "not a rotation"), (fitted * np.nan, "not a rotation"),
                          (fitted[:8], r"float32 \[8, 8\] instead of .* \[9, 8\]")):
    np.save(folder / "rotation.npy", spoilt)
    with pytest.raises(InputError, match=f"rotation.npy: damaged or cut off .{message}.; remove the folder"):
      small(folder, "binary")


def test_bits_of_an_earlier_version(chunks_of_3, tmp_path):
  """Were not rotated, and no sum says that a rotation has been there."""
  folder = tmp_path / "store"
  small(folder, "binary").finish()
  sums = json.loads((folder / "COMPLETE").read_text())
  del sums["rotation.npy"]
  (folder / "COMPLETE").write_text(json.dumps(sums))
  (folder / "rotation.npy").unlink()
  with pytest.raises(InputError, match="binary vectors of an earlier version, .* remove the folder, and encode again"):
    Store(folder)
  with pytest.raises(InputError, match="rotation.npy: missing, .* remove the folder, and encode again"):
    small(folder, "binary")


def test_a_store_is_of_one_precision_and_size(chunks_of_3, folder, tmp_path):
  with pytest.raises(InputError, match="holds float32 vectors, not int8; choose another folder"):
    StoreWriter(folder, DOCUMENTS, 2, SETTINGS, "int8")
  with pytest.raises(InputError, match="holds vectors of 2 numbers, not 1; choose another folder"):
    StoreWriter(folder, DOCUMENTS, 1, SETTINGS)
  small(tmp_path / "bits", "binary").finish()
  with pytest.raises(InputError, match="holds binary vectors, not float32; choose another folder"):
    StoreWriter(tmp_path / "bits", DOCUMENTS, 8, SETTINGS)
  manifest = json.loads((tmp_path / "bits" / "manifest.json").read_text())
  (tmp_path / "bits" / "manifest.json").write_text(json.dumps({**manifest, "precision": "int4"}))
  with pytest.raises(InputError, match="manifest.json: damaged"):
    Store(tmp_path / "bits")


def test_the_sample_is_spread_over_all_rows(tmp_path):
  ids = [f"{row:05}" for row in range(5000)]
  writer = StoreWriter(tmp_path / "store", Documents(ids, [""] * 5000, ["x"] * 5000), 8, SETTINGS, "int8")
  rows = writer.sample_rows()
  assert len(rows) == 2048 and (rows[0], rows[-1]) == (0, 4999) and set(np.diff(rows)) == {2, 3}
