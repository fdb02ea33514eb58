"""BEIR's sets: the table, finding and downloading them, and the protocol that comes with their names."""

import hashlib
import http.server
import io
import json
import threading
import zipfile

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tiny_model_dir import corpus, write_collection, write_model_dir

from gtr_jax.collections import download, find
from gtr_jax.collections.beir import SETS, SUITES, parts
from gtr_jax.collections.collection import read_collection
from gtr_jax.collections.find import find_collections
from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages
from gtr_jax.evaluation.evaluate import Protocol, evaluate
from gtr_jax.evaluation.measures import MEASURES
from gtr_jax.evaluation.published import published
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.retrieval.runs import read_run
from gtr_jax.retrieval.store import Store

ALL = dict.fromkeys(SETS, {"beir": True})  # What results say of collections that are BEIR's.


def test_the_table():
  assert {name: len(sets) for name, sets in SUITES.items()} == {"beir": 19, "beir-public": 15, "nano-beir": 13}
  assert {name: len(sets) for name, sets in averages.AVERAGES.items()} == {
      "BEIR-18": 18, "BEIR-14": 14, "NanoBEIR-13": 13}
  assert not any("msmarco" in sets for name, sets in averages.AVERAGES.items() if name != "NanoBEIR-13")
  forums = [SETS[name] for name in parts("cqadupstack")]
  whole = SETS["cqadupstack"]  # Published are the sums, 457,199 and 13,145.
  assert (len(forums), sum(of.documents for of in forums), sum(of.queries for of in forums)) == (
      12, whole.documents, whole.queries)
  not_usual = {of.name: (of.split, of.query_length, of.document_length, of.exclude_own_id) for of in
               SETS.values() if (of.split, of.query_length, of.document_length, of.exclude_own_id) !=
               ("test", 64, 512, False)}
  assert not_usual == {
      "msmarco": ("dev", 64, 512, False), "trec-news": ("test", 64, 768, False), "robust04": ("test", 64, 768, False),
      "arguana": ("test", 512, 512, True), "quora": ("test", 64, 512, True),
      "nano-beir/arguana": ("test", 512, 512, True), "nano-beir/quora": ("test", 64, 512, True)}
  assert all(measure in MEASURES for of in SETS.values() for measure in (of.measure, averages.recall_of(of.name)))
  assert [of.name for of in SETS.values() if of.measure == "MRR@10"] == ["msmarco"]


def test_published_averages_are_those_of_the_published_rows():
  """Which sets an average is of, and that no figure was mistyped: every source gives its averages as well."""
  seen = set()
  for row in published():
    values = {name: {row.measure: value, averages.recall_of(name): value} for name, value in row.values.items()
              if name in SETS and value is not None}
    assert set(row.values) <= SETS.keys() | averages.AVERAGES.keys()
    for name, value in averages.averages(values, row.measure, ALL).items():
      if (stated := row.values.get(name)) is not None:
        assert value == pytest.approx(stated, abs=0.00061), (row.name, row.measure, name)
        seen.add((row.name, row.measure, name))
  assert len(seen) == 8 + 10 + 4  # nDCG of 18 (not all of XL's sets are known), of 14; recall of 18.
  assert ("GTR base", "nDCG@10", "BEIR-18") in seen and ("GTR XL", "Recall@100", "BEIR-18") in seen


def test_means_only_where_everything_is_there():
  names = averages.AVERAGES["BEIR-18"]
  results = {name: {"nDCG@10": i / 100, "Recall@100": 0.5, "Capped recall@100": 0.9} for i, name in enumerate(names)}
  found = averages.averages(results, "nDCG@10", ALL)
  assert found["BEIR-18"] == pytest.approx(sum(range(18)) / 18 / 100) and "BEIR-14" in found
  recall = averages.averages(results, "Recall@100", ALL)["BEIR-18"]
  assert recall == pytest.approx((17 * 0.5 + 0.9) / 18)  # TREC-COVID's is capped.
  assert averages.averages(results, "nDCG@10", {**ALL, "scifact": {"beir": False}}) == {}  # A folder of that name.
  del results["bioasq"]
  assert list(averages.averages(results, "nDCG@10", ALL)) == ["BEIR-14"]
  del results["scifact"]
  assert averages.averages(results, "nDCG@10", ALL) == {}
  forums = {name: {"nDCG@10": float(i)} for i, name in enumerate(parts("cqadupstack"))}
  assert averages.with_means(forums)["cqadupstack"] == {"nDCG@10": 5.5}
  del forums["cqadupstack/tex"]
  assert "cqadupstack" not in averages.with_means(forums)


# Finding and downloading.

def packed(name, folder):
  """A zip file as BEIR's: the set's folder, and what a Mac leaves beside it."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("__MACOSX/._x", "")
    for path in sorted(folder.rglob("*")):
      archive.write(path, f"{name}/{path.relative_to(folder)}")
  return stream.getvalue()


@pytest.fixture
def server(monkeypatch):
  """Serves `files` (path -> bytes), ranges too; `cut`: end each answer after so many bytes; `asked`: the requests."""
  class Handler(http.server.BaseHTTPRequestHandler):
    files, asked, cut = {}, [], None

    def do_GET(self):
      data, start = self.files.get(self.path), int((self.headers["Range"] or "bytes=0-")[6:-1])
      self.asked.append((self.path, start))
      if data is None:
        self.send_error(404)
        return
      self.send_response(206 if start else 200)
      self.send_header("Content-Length", str(len(data) - start))
      self.end_headers()
      self.wfile.write(data[start:][:self.cut])

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as serving:
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    monkeypatch.setattr(download, "ZIP_FILE", f"http://localhost:{serving.server_port}/{{name}}.zip")
    monkeypatch.setattr(download, "HUB", f"http://localhost:{serving.server_port}")
    yield Handler
    serving.shutdown()


def serve(server, monkeypatch, tmp_path, name="scifact"):
  folder = write_collection(tmp_path / "made" / name, corpus(20))
  server.files = {f"/{name}.zip": packed(name, folder)}
  server.asked, server.cut = [], None
  monkeypatch.setitem(SETS, name, SETS[name]._replace(
      md5=hashlib.md5(server.files[f"/{name}.zip"]).hexdigest()))
  return server.files[f"/{name}.zip"]


def one_line(call, *args):
  with pytest.raises(InputError) as e:
    call(*args)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_a_set_is_downloaded_once(server, monkeypatch, tmp_path):
  serve(server, monkeypatch, tmp_path)
  for _ in range(2):
    (found,) = find_collections(["beir/scifact"], None, tmp_path / "data")
    assert (found.name, found.beir, found.folder) == ("scifact", SETS["scifact"], str(
        tmp_path / "data/beir/scifact"))
  assert server.asked == [("/scifact.zip", 0)]
  assert [p.name for p in (tmp_path / "data/beir").iterdir()] == ["scifact"]
  assert sorted(p.name for p in (tmp_path / "data/beir/scifact").iterdir()) == [
      "corpus.jsonl", "qrels", "queries.jsonl"]


def test_a_download_that_was_cut_off_goes_on(server, monkeypatch, tmp_path):
  data = serve(server, monkeypatch, tmp_path)
  server.cut = 100
  message = one_line(find_collections, ["beir/scifact"], None, tmp_path)
  assert f"ended at 100 of {len(data):,} bytes" in message
  assert [p.name for p in (tmp_path / "beir").iterdir()] == ["scifact.zip.part"]
  server.cut = None
  find_collections(["beir/scifact"], None, tmp_path)
  assert server.asked == [("/scifact.zip", 0), ("/scifact.zip", 100)]
  assert (tmp_path / "beir/scifact/corpus.jsonl").exists()


def test_what_is_not_the_set_is_not_unpacked(server, monkeypatch, tmp_path):
  data = serve(server, monkeypatch, tmp_path)
  (tmp_path / "beir").mkdir()
  (tmp_path / "beir/scifact.zip.part").write_bytes(b"something else")
  assert "start again" in one_line(find_collections, ["beir/scifact"], None, tmp_path)
  assert not list((tmp_path / "beir").iterdir())
  (tmp_path / "beir/scifact.zip").write_bytes(data[:-9])  # Put there by hand.
  assert "scifact.zip: cut off, or another file" in one_line(find_collections, ["beir/scifact"], None, tmp_path)
  assert [p.name for p in (tmp_path / "beir").iterdir()] == ["scifact.zip"]
  (tmp_path / "beir/scifact.zip").write_bytes(data)
  server.files = {}
  find_collections(["beir/scifact"], None, tmp_path)
  assert [p.name for p in (tmp_path / "beir").iterdir()] == ["scifact"]


def serve_nano(server, **tables):
  """A data set of NanoBEIR, with the columns of its card on the hub; in `tables` some are other ones."""
  tables = {"corpus": {"_id": ["7", "a"], "text": ["one\nline", "zwei “Wörter”"]},
            "queries": {"_id": ["q"], "text": ["two"]}, "qrels": {"query-id": ["q"], "corpus-id": ["a"]}, **tables}
  server.files, server.asked, server.cut = {}, [], None
  for name, columns in tables.items():
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), stream)
    address = f"/zeta-alpha-ai/NanoSciFact/resolve/main/{name}/train-00000-of-00001.parquet"
    server.files[address] = stream.getvalue()


def test_nano_beir_is_downloaded_as_a_collection(server, tmp_path):
  serve_nano(server)
  server.cut = 100
  assert "corpus.parquet.part: the connection ended at 100 of" in one_line(
      find_collections, ["nano-beir/scifact"], None, tmp_path)
  server.cut = None
  for _ in range(2):
    (found,) = find_collections(["nano-beir/scifact"], None, tmp_path)
    assert found == (str(tmp_path / "nano-beir/scifact"), "nano-beir/scifact", SETS["nano-beir/scifact"])
  assert [start for _, start in server.asked] == [0, 100, 0, 0]
  assert [p.name for p in (tmp_path / "nano-beir").iterdir()] == ["scifact"]
  collection = read_collection(found.folder)
  assert collection.documents.ids == ["7", "a"] and collection.queries == ["two"]
  assert list(collection.documents.texts) == ["one\nline", "zwei “Wörter”"] and collection.qrels == {"q": {"a": 1}}


def test_what_is_not_nano_beir_is_refused(server, tmp_path):
  serve_nano(server, qrels={"query-id": ["q"], "document": ["a"]})
  for _ in range(2):
    message = one_line(find_collections, ["nano-beir/scifact"], None, tmp_path)
    assert "qrels.parquet: not the qrels of NanoBEIR" in message and "expected columns query-id, corpus-id" in message
  assert not (tmp_path / "nano-beir/scifact").exists()
  serve_nano(server)
  find_collections(["nano-beir/scifact"], None, tmp_path)
  assert len(server.asked) == 1  # Corpus and queries were there already.


def test_without_a_network_all_that_is_missing_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(download, "ZIP_FILE", "http://localhost:1/{name}.zip")
  monkeypatch.setattr(download, "HUB", "http://localhost:1")
  write_collection(tmp_path / "beir/nq", corpus(5), queries=1)
  message = one_line(find_collections, [], "beir-public", tmp_path)
  for name in SUITES["beir-public"]:
    assert (f"beir/{name}" in message) == (f"localhost:1/{name}.zip" in message) == (name != "nq")
  assert str(tmp_path / "beir") in message
  message = one_line(find_collections, ["beir/cqadupstack/tex"], None, tmp_path)
  assert "localhost:1/cqadupstack.zip" in message
  assert sorted(p.name for p in (tmp_path / "beir").iterdir()) == ["nq"]
  message = one_line(find_collections, ["beir/fiqa"], "nano-beir", tmp_path)
  assert message.count("localhost:1/zeta-alpha-ai/Nano") == 13 and f"into {tmp_path}/nano-beir/NAME" in message
  assert f"put http://localhost:1/fiqa.zip, or what is in it, into {tmp_path}/beir, and write" in message


def test_what_cannot_be_downloaded_is_named_before_anything_is(server, tmp_path):
  server.asked = []
  message = one_line(find_collections, ["beir/scifact"], "beir", tmp_path)
  assert "not there: beir/bioasq, beir/signal1m, beir/trec-news, beir/robust04 (not public" in message
  assert "qrels/test.tsv" in message and "--suite beir-public" in message
  assert f"into {tmp_path}/beir/NAME" in message
  downloaded = message.partition("--suite beir-public; ")[2]
  assert downloaded.count("beir/") == 15 and downloaded.endswith(" would be downloaded once these are there")
  message = one_line(find_collections, ["beir/robust04"], None, tmp_path)
  assert f"of each into {tmp_path}/beir/robust04" in message and "would be" not in message
  assert "no such set; there are msmarco" in one_line(find_collections, ["beir/nothing"], None, tmp_path)
  assert server.asked == []


def test_references(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for place in ("beir/nq", "data/beir/fiqa", "data/nano-beir/nq", "mine/beir/quora", "mine/nq", "beir/own"):
    write_collection(tmp_path / place, corpus(5), queries=1)
  (tmp_path / "data/beir/cqadupstack").mkdir()
  names = ["beir/nq", "beir/fiqa", "nano-beir/nq", "mine/beir/quora", "mine/nq", "beir/own", "beir/cqadupstack",
           "mine/none"]
  found = find_collections(names, None, tmp_path / "data")
  assert [(one.name, one.folder.removeprefix(f"{tmp_path}/")) for one in found[:6]] == [
      ("nq", "beir/nq"), ("fiqa", "data/beir/fiqa"), ("nano-beir/nq", "data/nano-beir/nq"),
      ("quora", "mine/beir/quora"), (None, "mine/nq"), (None, "beir/own")]
  assert [one.name for one in found[6:18]] == list(parts("cqadupstack"))
  assert found[6].folder == str(tmp_path / "data/beir/cqadupstack/android")
  assert found[18:] == [find.Found("mine/none", None, None)]


# The protocol.

@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Sets of BEIR, small: ArguAna's queries are its documents; MS MARCO has judgements of two splits; news is long."""
  root = tmp_path_factory.mktemp("beir")
  documents = corpus(20)
  folder = write_collection(root / "beir/arguana", documents, queries=4)
  (folder / "queries.jsonl").write_text("".join(
      json.dumps({"_id": documents.ids[i], "text": documents.texts[i]}) + "\n" for i in range(4)))
  (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(
      f"{documents.ids[i]}\t{documents.ids[i + 1]}\t1\n" for i in range(4)))
  folder = write_collection(root / "beir/msmarco", documents, queries=6)
  lines = (folder / "qrels/test.tsv").read_text().splitlines(keepends=True)
  (folder / "qrels/dev.tsv").write_text("".join(lines[:5]))
  folder = write_collection(root / "beir/trec-news", documents, queries=3)
  with (folder / "corpus.jsonl").open("a") as f:
    f.write('{"_id": "empty", "title": "", "text": ""}\n')
  for number, name in enumerate(parts("cqadupstack")):
    write_collection(root / "beir" / name, corpus(6 + number), queries=2)
  write_model_dir(root / "run")
  return root


def test_a_sets_own_protocol_and_the_flags_that_override_it(data, tmp_path):
  mesh = make_mesh(devices=[*make_mesh().devices.flat][:1])
  names = ["beir/arguana", "beir/msmarco", "beir/trec-news"]
  results = evaluate({"tiny": data / "run"}, names, tmp_path / "out", bm25=True, data_root=data, mesh=mesh,
                     progress=False)
  of = results["collections"]
  assert {name: (of[name]["split"], of[name]["documents"], of[name]["queries"], of[name]["beir"]) for name in of} == {
      "arguana": ("test", 20, 4, True), "msmarco": ("dev", 20, 2, True), "trec-news": ("test", 21, 3, True)}
  assert of["msmarco"]["warnings"] == ["20 documents, and BEIR's msmarco has 8,841,823",
                                       "2 queries, and BEIR's msmarco has 6,980"]
  for system in ("BM25", "tiny"):
    run = read_run(tmp_path / f"out/runs/{system}-arguana.trec")
    assert len(run) == 4 and not any(query in ranking.doc_ids for query, ranking in run.items())
  assert all(len(ranking.doc_ids) == 19 for ranking in run.values())
  stores = {path.name.split("-")[0]: Store(path).settings["max_length"]
            for path in (tmp_path / "out/embeddings").iterdir()}
  assert stores == {"arguana": 512, "msmarco": 512, "trec": 768}

  before = set((tmp_path / "out/embeddings").iterdir())
  again = evaluate({"tiny": data / "run"}, names[:1], tmp_path / "out", data_root=data, mesh=mesh, progress=False,
                   protocol=Protocol(exclude_own_id=False, document_length=32))
  run = read_run(tmp_path / "out/runs/tiny-arguana.trec")
  assert all(query in ranking.doc_ids for query, ranking in run.items())
  (new,) = set((tmp_path / "out/embeddings").iterdir()) - before
  assert Store(new).settings["max_length"] == 32  # The model's own, and so under the name that it always has.
  assert new.name == f"arguana-{again['systems']['tiny']['weights_hash'][:12]}"


def test_cqadupstack_is_the_mean_of_its_forums(data, tmp_path):
  results = evaluate({}, ["beir/cqadupstack"], tmp_path, bm25=True, data_root=data, progress=False)
  found = results["systems"]["BM25"]["results"]
  assert len(found) == 13
  for measure in MEASURES:
    assert found["cqadupstack"][measure] == pytest.approx(
        np.mean([found[name][measure] for name in parts("cqadupstack")]))
  assert results["collections"]["cqadupstack"]["documents"] == sum(range(6, 18))
  assert json.loads((tmp_path / "results.json").read_text()) == results
  for name in parts("cqadupstack")[:2]:  # One forum after the other comes to the same.
    evaluate({}, [f"beir/{name}"], tmp_path / "parts", bm25=True, data_root=data, progress=False)
  there = json.loads((tmp_path / "parts/results.json").read_text())["systems"]["BM25"]["results"]
  assert there == {name: found[name] for name in parts("cqadupstack")[:2]}


def test_documents_that_are_gone_are_tolerated_in_a_set_and_counted(data, tmp_path):
  folder = write_collection(tmp_path / "beir/signal1m", corpus(80), queries=30)
  with (folder / "qrels/test.tsv").open("a") as f:
    f.write("q0\tgone\t1\n")
  results = evaluate({}, ["beir/signal1m"], tmp_path / "out", bm25=True, data_root=tmp_path, progress=False)
  assert results["collections"]["signal1m"]["warnings"][-1] == "1 judgements of documents that are not in the corpus"
  with (folder / "qrels/test.tsv").open("a") as f:
    f.write("".join(f"q0\tgone{i}\t1\n" for i in range(9)))
  with pytest.raises(InputError, match="unknown document 'gone'; it is not in the corpus: remove the line and 9 more"):
    evaluate({}, ["beir/signal1m"], tmp_path / "other", bm25=True, data_root=tmp_path, progress=False)
  folder.rename(tmp_path / "own")
  with pytest.raises(InputError, match="unknown document 'gone'"):
    evaluate({}, [tmp_path / "own"], tmp_path / "other", bm25=True, progress=False)
  assert not (tmp_path / "other").exists()
