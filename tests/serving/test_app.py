"""What the routes answer, and what is refused, by a server in a thread with a tiny model."""

import base64
import concurrent.futures
import http.client
import json
import logging
import socket
import threading
import time

import jax
import numpy as np
import pytest
from served_here import ask, served_here
from tiny_model_dir import WORDS, corpus, sentence, write_model_dir

import gtr_jax
from gtr_jax.collections.corpus import Documents
from gtr_jax.inference.embedder import Embedder
from gtr_jax.inference.load import load_model
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.retrieval.encode import encode_corpus
from gtr_jax.retrieval.hybrid import Hybrid
from gtr_jax.retrieval.search import Searcher
from gtr_jax.retrieval.store import Store
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.model import ServedModel
from gtr_jax.serving.service import Served, Service
from gtr_jax.serving.stores import ServedStore

TEXTS = [sentence(i, 1 + i * 7 % 20) for i in range(12)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """(a service, the model, its store) that several servers share; the model has two towers."""
  folder = tmp_path_factory.mktemp("app")
  run = write_model_dir(folder / "run", shared=False)
  model = load_model(run, make_mesh(devices=jax.devices()[:1]))
  encode_corpus(model, corpus(60), folder / "store", progress=False)
  service = Service(Limits(batch_tokens=160))
  served = ServedModel("tiny", model, service.limits, service.metrics, service.tokenizing)
  store = ServedStore("docs", Store(folder / "store"), served, service.metrics, hybrid=True, rescore=4, max_top_k=1000)
  served.start(lambda done, total: None)
  store.start()
  service.served = Served({"tiny": served}, {"docs": store})
  yield service, Embedder(model), Store(folder / "store")
  store.end()
  served.end()


@pytest.fixture(scope="module")
def port(world):
  with served_here(world[0]) as port:
    yield port


def with_limits(world, keys=(), **limits):
  """A service of the same model."""
  service = Service(Limits(**limits), keys)
  service.served = world[0].served
  return service


def test_embeddings_as_openai_has_them(port, world):
  expected = world[1].encode_document(TEXTS)
  status, headers, answer = ask(port, "POST", "/v1/embeddings", {"input": TEXTS, "model": "tiny"})
  assert status == 200 and headers["X-Request-Id"]
  assert (answer["object"], answer["model"]) == ("list", "tiny")
  assert [data["index"] for data in answer["data"]] == list(range(12))
  np.testing.assert_allclose([data["embedding"] for data in answer["data"]], expected, rtol=0, atol=1e-6)
  tokens = sum(map(len, world[1].model.tokenizer.encode(TEXTS, 32)))
  assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
  one = ask(port, "POST", "/v1/embeddings", {"input": TEXTS[3], "encoding_format": "base64"})[2]
  vector = np.frombuffer(base64.b64decode(one["data"][0]["embedding"]), "<f4")
  np.testing.assert_allclose(vector, expected[3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("path", "more", "side"), [
    ("/v1/embeddings", {}, "document"), ("/v1/embeddings", {"input_type": "query"}, "query"),
    ("/query/v1/embeddings", {}, "query"), ("/document/v1/embeddings", {}, "document"),
    ("/embed", {}, "document"), ("/embed", {"prompt_name": "query"}, "query"), ("/", {"input_type": "query"}, "query"),
    ("/query/embed", {}, "query"), ("/document", {}, "document")])
def test_sides(port, world, path, more, side):
  openai = path.endswith("embeddings")
  status, _, answer = ask(port, "POST", path, {"input" if openai else "inputs": TEXTS[:3], **more})
  assert status == 200
  found = [data["embedding"] for data in answer["data"]] if openai else answer
  np.testing.assert_allclose(found, world[1].encode(TEXTS[:3], side), rtol=0, atol=1e-6)


def test_models_stores_info_and_health(port):
  models = ask(port, "GET", "/v1/models")[2]
  assert [(model["id"], model["object"], model["dimensions"]) for model in models["data"]] == [("tiny", "model", 8)]
  assert ask(port, "GET", "/v1/models/tiny")[2] == models["data"][0]
  assert ask(port, "GET", "/query/v1/models/other")[0] == 404
  assert ask(port, "GET", "/stores")[2] == {"stores": [{"name": "docs", "model": "tiny", "documents": 60,
                                                        "dimensions": 8, "precision": "float32", "hybrid": True}]}
  info = ask(port, "GET", "/info")[2]
  assert (info["model_id"], info["max_input_length"], info["max_concurrent_requests"]) == ("tiny", 32, 512)
  assert ask(port, "GET", "/health")[0] == 200
  assert "/v1/embeddings" in ask(port, "GET", "/openapi.json")[2]["paths"]


def test_metrics(port):
  ask(port, "POST", "/embed", {"inputs": TEXTS})
  ask(port, "POST", "/embed", {"inputs": 7})
  content = ask(port, "GET", "/metrics")[2].decode()
  for line in ('te_request_count{route="/embed"}', 'te_request_success{route="/embed"}',
               'te_request_failure{err="invalid_request",route="/embed"}', "te_queue_size 0.0",
               "gtr_queue_expected_wait 0.0",
               "te_request_queue_duration_count", "te_request_tokenization_duration_count", "gtr_batch_fill_count",
               "te_request_inference_duration_count", "gtr_texts_total", "gtr_tokens_total"):
    assert line in content, line


def test_search_is_that_of_the_library(port, world):
  _, embedder, store = world
  vectors = embedder.encode_query(TEXTS[:3])
  scores, rows = Searcher(store, embedder.model.mesh).search(vectors, 7)
  answer = ask(port, "POST", "/search", {"query": TEXTS[:3], "top_k": 7})[2]
  assert (answer["store"], answer["model"]) == ("docs", "tiny") and answer["ms"] > 0
  for of_query, query, of_scores, of_rows in zip(answer["answers"], TEXTS, scores, rows, strict=False):
    assert of_query["query"] == query
    assert [(r["rank"], r["id"], r["title"], r["text"]) for r in of_query["results"]] == [
        (rank, *store.document(int(row))) for rank, row in enumerate(of_rows, 1)]
    np.testing.assert_allclose([r["score"] for r in of_query["results"]], of_scores, rtol=0, atol=1e-5)
  one, = ask(port, "POST", "/search", {"query": TEXTS[0], "top_k": 7, "texts": False})[2]["answers"]
  assert [r.keys() for r in one["results"]] == [{"rank", "score", "id"}] * 7
  assert len(ask(port, "POST", "/search", {"query": TEXTS[0], "top_k": 1000})[2]["answers"][0]["results"]) == 60


@pytest.mark.parametrize("hybrid", [True, 0.7])
@pytest.mark.parametrize("prefix", ["", "d1"])
def test_hybrid_and_id_prefix(port, world, hybrid, prefix):
  _, embedder, store = world
  ids = [doc_id for doc_id in store.ids if doc_id.startswith(prefix)]
  vectors = embedder.encode_query(TEXTS[:1])
  rows = range(store.ids.index(ids[0]), store.ids.index(ids[-1]) + 1)
  dense = Searcher(store, embedder.model.mesh)
  run, _ = Hybrid(dense, store, None if hybrid is True else hybrid, progress=False).search(
      ["q"], TEXTS[:1], vectors, 5, rows)
  body = {"query": TEXTS[0], "top_k": 5, "id_prefix": prefix}
  found = ask(port, "POST", "/search", {**body, "hybrid": hybrid})[2]["answers"][0]["results"]
  assert [r["id"] for r in found] == run["q"].doc_ids
  np.testing.assert_allclose([r["score"] for r in found], run["q"].scores, rtol=0, atol=1e-5)
  scores, best = dense.search(vectors, 60)
  expected = [(store.ids[row], score) for row, score in zip(best[0], scores[0], strict=True)
              if store.ids[row].startswith(prefix)][:5]
  found = ask(port, "POST", "/search", body)[2]["answers"][0]["results"]
  assert [r["id"] for r in found] == [doc_id for doc_id, _ in expected]
  assert ask(port, "POST", "/search", {**body, "id_prefix": "nothing"})[2]["answers"][0]["results"] == []


def test_several_stores_are_searched_as_one(world, tmp_path):
  service, embedder, store = world
  whole = corpus(60)
  parts = [Documents(*(column[start:start + 20] for column in (whole.ids, whole.titles, whole.texts)))
           for start in (0, 20, 40)]
  stores = {}
  for number, part in enumerate(parts):
    encode_corpus(embedder.model, part, tmp_path / str(number), progress=False)
    stores[f"part{number}"] = ServedStore(f"part{number}", Store(tmp_path / str(number)), service.served.models["tiny"],
                                          service.metrics, hybrid=False, rescore=4, max_top_k=1000)
    stores[f"part{number}"].start()
  several = Service(Limits())
  several.served = Served(service.served.models, {**service.served.stores, **stores})
  with served_here(several) as port:
    for query in TEXTS[:3]:
      found = ask(port, "POST", "/search", {"query": query, "stores": ["part0", "part1", "part2"], "top_k": 15})[2]
      expected = ask(port, "POST", "/search", {"query": query, "top_k": 15})[2]
      results, of_one = found["answers"][0]["results"], expected["answers"][0]["results"]
      np.testing.assert_allclose([r["score"] for r in results], [r["score"] for r in of_one], rtol=0, atol=1e-6)
      assert [r["rank"] for r in results] == list(range(1, 16)) and found["store"] is None
      assert all(r["id"] in stores[r["store"]].store.ids for r in results)
      assert {r["text"] for r in results} == {r["text"] for r in of_one}
    for more in ({"store": "docs"}, {"hybrid": True}):
      assert ask(port, "POST", "/search", {"query": "q", "stores": ["part0"], **more})[0] == 400
    assert ask(port, "POST", "/search", {"query": "q", "stores": ["part0", "other"]})[0] == 404
  for of_part in stores.values():
    of_part.end()


def test_similarity(port, world):
  queries, documents = world[1].encode_query(TEXTS[:2]), world[1].encode_document(TEXTS[2:5])
  answer = ask(port, "POST", "/similarity", {"queries": TEXTS[:2], "documents": TEXTS[2:5]})[2]
  np.testing.assert_allclose(answer["scores"], queries @ documents.T, rtol=0, atol=1e-5)
  answer = ask(port, "POST", "/similarity", {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[2:5]}})[2]
  np.testing.assert_allclose(answer, (queries @ documents.T)[0], rtol=0, atol=1e-5)


def test_normalize_and_truncate(port, world):
  whole = ask(port, "POST", "/embed", {"inputs": TEXTS, "normalize": False})[2]
  lengths = np.linalg.norm(whole, axis=1, keepdims=True)
  assert np.abs(lengths - 1).max() > 0.1
  np.testing.assert_allclose(whole / lengths, world[1].encode_document(TEXTS), rtol=0, atol=1e-6)
  long = sentence(1, 200)
  np.testing.assert_allclose(ask(port, "POST", "/embed", {"inputs": long})[2], [world[1].encode_document(long)],
                             rtol=0, atol=1e-6)
  status, _, answer = ask(port, "POST", "/embed", {"inputs": [TEXTS[0], long], "truncate": False})
  assert (status, answer["error_type"]) == (422, "Validation")
  assert answer["error"].startswith("text 1 has more than 32 tokens")
  assert ask(port, "POST", "/embed", {"inputs": TEXTS[0], "truncate": False})[0] == 200


@pytest.mark.parametrize(("path", "body", "status", "message"), [
    ("/v1/embeddings", {"input": TEXTS[0], "model": "other"}, 404, "the model 'other' does not exist; give one of"),
    ("/v1/embeddings", {"input": TEXTS[0], "dimensions": 4}, 400, "dimensions: 4 is none that the model was trained"),
    ("/v1/embeddings", {"input": ""}, 400, "input: "),
    ("/v1/embeddings", {"input": []}, 400, "input: "),
    ("/v1/embeddings", {"input": [TEXTS[0], ""]}, 400, "input: 1: String should have at least 1 character"),
    ("/v1/embeddings", {"input": [TEXTS[0], 7]}, 400, "input: 1: Input should be a valid string"),
    ("/v1/embeddings", {"input": [[5, 6]]}, 400, "input: token ids are not accepted"),
    ("/v1/embeddings", {"input": TEXTS[0], "dimesions": 4}, 400, "dimesions: there is no such field"),
    ("/v1/embeddings", {}, 400, "input: "),
    ("/v1/embeddings", b"{", 400, "the body is no JSON"),
    ("/v1/embeddings", {"input": TEXTS[0], "encoding_format": "int8"}, 400, "encoding_format: "),
    ("/v1/embeddings", {"input": "\ud800"}, 400, None),
    ("/search", {"query": "q", "store": "other"}, 404, "the store 'other' does not exist; give one of 'docs'"),
    ("/search", {"query": "q", "top_k": 1001}, 422, "top_k: 1,001, and an answer may have 1,000"),
    ("/search", {"query": "q", "hybrid": 1.5}, 400, "hybrid: "),
    ("/similarity", {"queries": "q"}, 400, "the body: give queries and documents"),
    ("/nothing", {}, 404, "there is no POST of this path"),
    ("/health", {}, 405, "this path takes no POST")])
def test_what_is_refused(port, path, body, status, message):
  found, _, answer = ask(port, "POST", path, body)
  assert found == status or message is None and found in (400, 422)
  assert answer["error"].keys() == {"message", "type", "param", "code"}
  assert answer["error"]["message"].startswith(message or "")


def test_token_ids_of_clients_that_have_the_vocabulary(world):
  service = with_limits(world)
  service.accept_token_ids = True
  tokens = [ids.tolist() for ids in world[1].model.tokenizer.encode(TEXTS, 32)]
  with served_here(service) as port:
    expected = world[1].encode_document(TEXTS)
    for given in (tokens, [ids[:-1] for ids in tokens]):  # With EOS, and without.
      answer = ask(port, "POST", "/v1/embeddings", {"input": given})[2]
      np.testing.assert_allclose([data["embedding"] for data in answer["data"]], expected, rtol=0, atol=1e-6)
    answer = ask(port, "POST", "/v1/embeddings", {"input": tokens[0]})[2]
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected[0], rtol=0, atol=1e-6)
    for ids, message in (([5, 10**6], "has the token id 1000000"), ([0, 5], "has the token id 0")):
      status, _, answer = ask(port, "POST", "/v1/embeddings", {"input": ids})
      assert status == 422 and message in answer["error"]["message"]


def test_keys(world):
  with served_here(with_limits(world, (b"first", b"second"))) as port:
    for given in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}, {"Authorization": "first"}):
      status, headers, answer = ask(port, "POST", "/v1/embeddings", {"input": "lion"}, **given)
      assert (status, headers["WWW-Authenticate"], answer["error"]["code"]) == (401, "Bearer", "invalid_api_key")
    for key in ("first", "second"):
      assert ask(port, "POST", "/v1/embeddings", {"input": "lion"}, Authorization=f"Bearer {key}")[0] == 200
    assert ask(port, "POST", "/embed", {"inputs": "lion"})[2]["error_type"] == "Unauthorized"
    for path in ("/metrics", "/stores", "/v1/models", "/info"):
      assert ask(port, "GET", path)[0] == 401
    assert ask(port, "POST", "/admin/reload")[0] == 401
    for path in ("/health", "/"):
      assert ask(port, "GET", path)[0] == 200


def test_limits_of_a_request(world):
  limits = {"texts": 3, "text_characters": 50, "body_bytes": 2000, "batch_tokens": 160}
  with served_here(with_limits(world, **limits)) as port:
    for body, status, code in (({"input": TEXTS[:1] * 4}, 413, "too_many_texts"),
                               ({"input": "x" * 51}, 422, "too_many_characters"),
                               ({"input": "x" * 2001}, 413, "body_too_large")):
      found, headers, answer = ask(port, "POST", "/v1/embeddings", body)
      assert (found, answer["error"]["code"]) == (status, code)
      assert headers.get("Connection") == ("close" if status == 413 and code == "body_too_large" else None)
    # Of a body whose length nobody says too.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/embeddings", iter([b"x" * 1000] * 4), {"Content-Type": "application/json"},
                       encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


class Held:
  """Stands before the devices: nothing is encoded until the block ends."""

  def __init__(self, world, monkeypatch):
    batcher = world[0].served.models["tiny"].batcher
    encode, self.gate, self.begun = batcher._encode, threading.Event(), threading.Event()

    def held(*args):
      self.begun.set()
      assert self.gate.wait(60)
      return encode(*args)

    monkeypatch.setattr(batcher, "_encode", held)
    self.batcher = batcher


def test_too_many_at_once(world, monkeypatch):
  held = Held(world, monkeypatch)
  service = with_limits(world, concurrent=2)
  with served_here(service) as port, concurrent.futures.ThreadPoolExecutor(2) as pool:
    answers = [pool.submit(ask, port, "POST", "/embed", {"inputs": text}) for text in TEXTS[:2]]
    until(lambda: service.active == 2)
    status, headers, answer = ask(port, "POST", "/embed", {"inputs": "lion"})
    assert (status, headers["Retry-After"], answer["error_type"]) == (429, "1", "Overloaded")
    assert ask(port, "GET", "/health")[0] == 200
    content = ask(port, "GET", "/metrics")[2].decode()  # To be seen when there is something to see.
    assert 'te_request_failure{err="overloaded",route="/embed"} 1.0' in content
    held.gate.set()
    assert [answer.result()[0] for answer in answers] == [200, 200]
    assert ask(port, "POST", "/embed", {"inputs": "lion"})[0] == 200


def test_too_much_waits(world, monkeypatch):
  held = Held(world, monkeypatch)
  model = world[0].served.models["tiny"]
  monkeypatch.setattr(model, "_limits", Limits(queue_ms=1000))
  monkeypatch.setattr(held.batcher, "_rate", 10.0)
  with served_here(with_limits(world)) as port, concurrent.futures.ThreadPoolExecutor(2) as pool:
    answers = [pool.submit(ask, port, "POST", "/embed", {"inputs": TEXTS[:1]})]
    assert held.begun.wait(60)
    answers.append(pool.submit(ask, port, "POST", "/embed", {"inputs": [sentence(5, 20), sentence(6, 20)]}))
    until(lambda: held.batcher.waiting_texts >= 2)
    status, headers, answer = ask(port, "POST", "/v1/embeddings", {"input": "lion"})
    assert (status, answer["error"]["code"]) == (429, "overloaded")
    assert 2 <= int(headers["Retry-After"]) <= 10
    held.gate.set()
    assert [answer.result()[0] for answer in answers] == [200, 200]


def test_an_answer_that_does_not_come_in_time(world, monkeypatch):
  held = Held(world, monkeypatch)
  with served_here(with_limits(world, timeout_s=0.3)) as port:
    status, _, answer = ask(port, "POST", "/v1/embeddings", {"input": TEXTS})
    assert (status, answer["error"]["code"]) == (503, "timeout")
    until(lambda: not held.batcher.waiting_texts)  # What was not begun is given up.
    held.gate.set()
    assert ask(port, "POST", "/v1/embeddings", {"input": TEXTS[0]})[0] == 200


def test_work_for_who_has_gone_is_given_up(world, monkeypatch):
  held = Held(world, monkeypatch)
  with served_here(with_limits(world)) as port, concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(ask, port, "POST", "/embed", {"inputs": "lion"})
    assert held.begun.wait(60)
    body = json.dumps({"inputs": TEXTS}).encode()
    with socket.create_connection(("127.0.0.1", port)) as gone:
      gone.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                   + str(len(body)).encode() + b"\r\n\r\n" + body)
      until(lambda: held.batcher.waiting_texts == len({*TEXTS} - {"lion"}))
    until(lambda: not held.batcher.waiting_texts)
    held.gate.set()
    assert first.result()[0] == 200


def test_a_slow_body_is_refused_and_holds_nobody(world):
  with served_here(with_limits(world, timeout_s=1.0, concurrent=1)) as port:
    slow = socket.create_connection(("127.0.0.1", port), timeout=60)
    slow.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    slow_headers = socket.create_connection(("127.0.0.1", port), timeout=60)
    slow_headers.sendall(b"POST /embed HTT")
    assert ask(port, "POST", "/embed", {"inputs": "lion"})[0] == 200
    assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
    with pytest.raises(ConnectionResetError):
      assert slow_headers.recv(100) == b""
      raise ConnectionResetError
    slow.close()
    slow_headers.close()


def test_logs_have_no_text_and_answers_have_the_clients_id(world, caplog):
  with caplog.at_level(logging.INFO, "gtr_jax.serving"), served_here(with_limits(world)) as port:
    headers = ask(port, "POST", "/embed", {"inputs": f"{WORDS[0]} {WORDS[1]}"}, X_Request_Id="mine-1")[1]
    assert headers["X-Request-Id"] == "mine-1"
    odd = ask(port, "POST", "/v1/embeddings", {"input": f"{WORDS[0]}", "dimensions": 3}, X_Request_Id="a b\"c")[1]
    assert len(odd["X-Request-Id"]) == 32
  lines = [record.fields for record in caplog.records if record.message == "request"]
  assert [(line["route"], line["status"]) for line in lines] == [("/embed", 200), ("/v1/embeddings", 400)]
  assert lines[0]["request_id"] == "mine-1" and lines[0]["texts"] == 1 and lines[0]["tokens"] == 3
  assert lines[1]["error"] == "invalid_dimensions"
  assert WORDS[0] not in f"{caplog.text} {lines}"


def test_a_fault_of_the_server_says_nothing_of_itself(world, monkeypatch):
  def broken(*args):
    raise RuntimeError("/secret/path is broken")

  monkeypatch.setattr(world[0].served.models["tiny"].batcher, "_encode", broken)
  with served_here(with_limits(world)) as port:
    status, headers, answer = ask(port, "POST", "/v1/embeddings", {"input": TEXTS})
    assert (status, answer["error"]["code"]) == (500, "internal")
    assert answer["error"]["message"].endswith(f"(request {headers['X-Request-Id']})")
    assert "secret" not in json.dumps(answer) and "Traceback" not in json.dumps(answer)


def test_before_it_is_ready(world):
  service = Service(Limits())
  with served_here(service) as port:
    for path in ("/health", "/v1/models"):
      status, headers, answer = ask(port, "GET", path)
      assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "starting", "5")
    service.served = world[0].served
    assert ask(port, "GET", "/health")[0] == 200
    service.draining = True
    assert ask(port, "GET", "/health")[0] == 503
    status, _, answer = ask(port, "POST", "/embed", {"inputs": "lion"})
    assert (status, answer["error_type"]) == (503, "Unhealthy")
    assert ask(port, "GET", "/metrics")[0] == 200


def test_a_model_of_shorter_vectors(tmp_path):
  """Matryoshka: dimensions that it was trained for."""
  run = write_model_dir(tmp_path / "run")
  described = json.loads((run / "model.json").read_text())
  (run / "model.json").write_text(json.dumps({**described, "dimensions": {"4": 1.0, "8": 1.0}}))
  embedder = gtr_jax.load(run, mesh=make_mesh(devices=jax.devices()[:1]))
  service = Service(Limits(batch_tokens=40))
  model = ServedModel("short", embedder.model, service.limits, service.metrics, service.tokenizing)
  model.start(lambda done, total: None)
  service.served = Served({"short": model}, {})
  whole = embedder.encode_document(TEXTS[:2])[:, :4]
  with served_here(service) as port:
    found = [data["embedding"] for data in ask(port, "POST", "/v1/embeddings", {
        "input": TEXTS[:2], "dimensions": 4})[2]["data"]]
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), rtol=0, atol=1e-6)
    assert "give one of 4, 8" in ask(port, "POST", "/embed", {"inputs": "lion", "dimensions": 5})[2]["error"]
    assert ask(port, "POST", "/search", {"query": "lion"})[0] == 404
  model.end()
