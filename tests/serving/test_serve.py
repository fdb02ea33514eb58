"""`gtr-jax serve` as a process: it starts, takes another model, ends, and loses no request meanwhile."""

import concurrent.futures
import json
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from served_here import ask
from serving_process import Serving
from tiny_model_dir import corpus, sentence, write_model_dir

import gtr_jax
from gtr_jax.cli.main import main
from gtr_jax.inference.load import load_model
from gtr_jax.retrieval.encode import encode_corpus

TEXTS = [sentence(i, 1 + i % 20) for i in range(40)]


@pytest.fixture
def started():
  """Starts servers that do not outlive the test."""
  servers = []

  def start(*words):
    servers.append(Serving("--max_batch_tokens", "80", *words))
    return servers[-1]

  yield start
  for server in servers:
    server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("serve")
  write_model_dir(folder / "one" / "run", seeds=(0,))
  write_model_dir(folder / "two" / "run", seeds=(1,))
  encode_corpus(load_model(folder / "one" / "run"), corpus(60), folder / "store", progress=False)
  encode_corpus(load_model(folder / "two" / "run"), corpus(60), folder / "other", progress=False)
  return folder


def test_a_model_is_replaced_and_the_server_ends_without_a_lost_request(folder, started, tmp_path):
  shutil.copytree(folder / "one", tmp_path / "model")
  shutil.copytree(folder / "store", tmp_path / "store")
  (tmp_path / "keys").write_text("a-key\n\nanother\n")
  server = started("--model", f"mine={tmp_path / 'model/run'}", "--embeddings", f"docs={tmp_path / 'store'}",
                   "--api_key_file", tmp_path / "keys")
  assert ask(server.port, "GET", "/health")[0] in (200, 503)
  server.ready()
  before, after = (gtr_jax.load(folder / name / "run").encode_document(TEXTS) for name in ("one", "two"))
  key = {"Authorization": "Bearer another"}
  stop, answers = threading.Event(), []

  def client(number):
    """Asks for embeddings again and again: (when it was asked, status, what came)."""
    found = []
    while not stop.is_set():
      at = time.monotonic()
      text = number + len(found) % 10
      status, _, answer = ask(server.port, "POST", "/v1/embeddings", {"input": TEXTS[text]}, **key)
      assert status == 200, answer
      found.append((at, text, answer["data"][0]["embedding"]))
    return found

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    clients = [pool.submit(client, 10 * number) for number in range(4)]
    try:
      time.sleep(0.3)
      shutil.rmtree(tmp_path / "model")
      shutil.copytree(folder / "two", tmp_path / "model")
      shutil.rmtree(tmp_path / "store")
      shutil.copytree(folder / "other", tmp_path / "store")
      searched = ask(server.port, "POST", "/search", {"query": "lion"}, **key)
      assert searched[0] == 200  # By what was read before.
      lines = len(server.lines)
      server.process.send_signal(signal.SIGHUP)
      server.line('"event":"ready"', lines)
      reloaded = time.monotonic()
      time.sleep(0.3)
    finally:
      stop.set()
    answers = [answer for client in clients for answer in client.result()]
  by = [[np.abs(np.asarray(vector) - of_model[text]).max() < 1e-6 for of_model in (before, after)]
        for _, text, vector in answers]
  assert all(sum(of_answer) == 1 for of_answer in by)  # Each is of one of them, and whole.
  assert {tuple(of_answer) for of_answer in by} == {(True, False), (False, True)}
  assert all(of_answer[1] for (at, _, _), of_answer in zip(answers, by, strict=True) if at > reloaded)
  other = ask(server.port, "POST", "/search", {"query": "lion"}, **key)[2]
  assert other["answers"][0]["results"] != searched[2]["answers"][0]["results"]

  # A signal during a reload is not forgotten: what has come meanwhile is taken.
  lines = len(server.lines)
  for _ in range(3):
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.02)
  second = next(i for i, line in enumerate(server.lines) if server.line('"event":"ready"', lines) == line)
  server.line('"event":"ready"', second + 1)

  # What cannot be taken changes nothing.
  shutil.rmtree(tmp_path / "model")
  status, _, answer = ask(server.port, "POST", "/admin/reload", **key)
  assert (status, answer["error"]["code"]) == (500, "not_reloaded")
  assert str(tmp_path) not in json.dumps(answer)
  assert str(tmp_path) in server.line('"event":"not reloaded"')
  assert ask(server.port, "POST", "/search", {"query": "lion"}, **key)[2]["answers"] == other["answers"]

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    many = pool.submit(ask, server.port, "POST", "/embed", {"inputs": [sentence(i, 30) for i in range(1000)]}, **key)
    time.sleep(0.1)
    assert server.end() == 0
    assert many.result()[0] == 200 and len(many.result()[2]) == 1000
  assert '"event":"ended"' in server.lines[-1]
  assert "Traceback" not in "".join(server.lines)


def test_what_cannot_be_served_is_said_in_a_line(folder, started, tmp_path, capsys):
  server = started("--model", folder / "one/run", "--embeddings", folder / "other")
  assert server.process.wait(120) == 2
  assert server.line("gtr-jax serve: ") == server.lines[-1]
  assert "holds the embeddings of another model" in server.lines[-1]
  assert "Traceback" not in "".join(server.lines)
  (tmp_path / "empty").write_text("\n")
  for words, message in (
      (["--api_key_file", str(tmp_path / "empty")], "no key in it; write one on each line"),
      (["--api_key_file", str(tmp_path / "none")], "no such file; write a key on each line of one"),
      (["--host", "203.0.113.1"], "cannot listen there"), (["--port", "70000"], "cannot listen there"),
      (["--embeddings", str(tmp_path)], "not an embedding store"),
      (["--cors_origin", "example.org/"], "give scheme and host"),
      (["--model", str(folder / "two/run")], "two of --model are called run; name them")):
    assert main(["serve", "--model", str(folder / "one/run"), "--port", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_it_ends_though_nobody_reads_its_log(folder, started):
  server = started("--model", folder / "one/run").ready()
  server.pause()  # The pipe is full after some hundred lines.
  for _ in range(800):
    assert ask(server.port, "GET", "/v1/models", X_Request_Id="x" * 128)[0] == 200
  server.process.send_signal(signal.SIGTERM)
  assert server.process.wait(60) == 0
  server.go_on()


def test_told_twice_it_ends_at_once_and_says_so(folder, started):
  server = started("--model", folder / "one/run").ready()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    texts = [[sentence(number + i, 30) for i in range(2000)] for number in range(4)]
    many = [pool.submit(ask, server.port, "POST", "/v1/embeddings", {"input": of_client}) for of_client in texts]
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    server.line('"event":"ending"')
    status, _, answer = ask(server.port, "POST", "/v1/embeddings", {"input": "lion"})
    assert (status, answer["error"]["code"]) == (503, "draining")
    assert ask(server.port, "GET", "/health")[0] == 503
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    answers = [answer.result() for answer in many]
  assert {status for status, _, _ in answers} <= {200, 503}
  assert {answer["error"]["code"] for status, _, answer in answers if status == 503} <= {"ended", "draining"}
  assert "Traceback" not in "".join(server.lines)


def test_two_models_and_a_store_of_the_second(folder, started):
  server = started("--model", f"one={folder / 'one/run'}", "--model", f"two={folder / 'two/run'}", "--embeddings",
                   f"second={folder / 'other'}", "--embeddings", f"first={folder / 'store'}", "--hybrid").ready()
  stores = ask(server.port, "GET", "/stores")[2]["stores"]
  assert [(store["name"], store["model"], store["hybrid"]) for store in stores] == [("second", "two", True),
                                                                                    ("first", "one", True)]
  both = ask(server.port, "POST", "/search", {"query": "lion", "stores": ["first", "second"]})
  assert (both[0], both[2]["error"]["code"]) == (422, "different_stores")
  for name in ("one", "two"):
    found = ask(server.port, "POST", "/v1/embeddings", {"input": TEXTS[0], "model": name})[2]
    np.testing.assert_allclose(found["data"][0]["embedding"],
                               gtr_jax.load(folder / name / "run").encode_document(TEXTS[0]), rtol=0, atol=1e-6)
  assert ask(server.port, "POST", "/admin/reload")[2] == {"models": ["one", "two"], "stores": ["second", "first"]}
  assert server.end() == 0
