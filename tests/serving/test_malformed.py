"""Requests that are wrong, hostile or cut off: each gets the right status or its connection is closed, and others are
answered as ever.

The application is the real one, under uvicorn with the server's own protocol; what encodes is a stand-in.
"""

import contextlib
import dataclasses
import gzip
import json
import re
import socket
import threading
import time
import types

import numpy as np
import pytest
from served_here import served_here
from tiny_model_dir import write_vocabulary

from gtr_jax.serving import model as serving_model
from gtr_jax.serving import server
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.model import ServedModel
from gtr_jax.serving.service import Served, Service

MOST_BYTES = 1 << 20
SLOW_S = 2.0  # that a body, and headers, may take; others need much less on a busy machine too
NEVER = "lion lion lion"  # a text that is encoded when its client has gone
JSON = "Content-Type: application/json"


class FakeBatcher:
  """Encodes by counting; jobs of `NEVER` wait to be forgotten."""

  most_tokens, waiting_texts = 1024, 0

  def __init__(self, model, batch_tokens, observe):
    self._never = model.tokenizer.encode([NEVER], 32)[0].tobytes()
    self.waiting, self.forgotten = 0, threading.Event()

  def expected_wait(self):
    return 0.0

  def submit(self, tokens, tower, done):
    if tokens[0].tobytes() == self._never:
      self.waiting += 1
    else:
      done(np.asarray([[len(of_text), of_text.sum(), 1] for of_text in tokens], np.float32))
    return types.SimpleNamespace(waited_s=0.0, since=time.monotonic())

  def forget(self, job):
    self.waiting -= 1
    self.forgotten.set()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
  service = Service(Limits(body_bytes=MOST_BYTES, timeout_s=60.0))
  model = types.SimpleNamespace(
      tokenizer=write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "spiece.model"), dimensions=(),
      lengths={"query": 16, "document": 32}, prompts={"query": "", "document": ""},
      encoder=types.SimpleNamespace(dim=3, normalize=False, config=types.SimpleNamespace(dtype="float32")))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(serving_model, "Batcher", FakeBatcher)
    served = ServedModel("fake", model, service.limits, service.metrics, service.tokenizing)
  service.served = Served({"fake": served}, {})
  return service


@pytest.fixture(scope="module")
def address(service):
  """The server's host and port."""
  async def reload():
    raise RuntimeError("of the test")

  with served_here(service, reload, timeout_graceful_shutdown=5) as port:
    yield "127.0.0.1", port


@pytest.fixture(autouse=True)
def others(address, service):
  """During each test a client asks what is right, and gets it; when it is over, nothing is left of the test."""
  answers, over = [], threading.Event()

  def ask():
    while True:
      answers.append(ask_right(address))
      if over.wait(.05):
        return

  asking = threading.Thread(target=ask, daemon=True)
  asking.start()
  yield
  over.set()
  asking.join(30)
  assert answers and set(answers) == {200}
  until = time.monotonic() + 10
  while service.active and time.monotonic() < until:
    time.sleep(.01)
  assert service.active == 0
  assert ask_right(address) == 200


def ask_right(address):
  began = time.monotonic()
  answer = post(address, "/v1/embeddings", b'{"input": "a river"}')
  assert answer.status != 200 or len(answer.json()["data"][0]["embedding"]) == 3
  assert time.monotonic() - began < 10
  return answer.status


@dataclasses.dataclass
class Answer:
  status: int
  headers: dict[str, str]
  body: bytes

  def json(self):
    return json.loads(self.body)


def read_answer(file):
  """The next one of a connection; None where it is closed."""
  line = file.readline()
  if not line:
    return None
  headers = {}
  while (header := file.readline().strip()):
    name, _, value = header.decode().partition(": ")
    headers[name.lower()] = value
  body = file.read(int(headers.get("content-length", -1)))  # -1: until it is closed
  return Answer(int(line.split()[1]), headers, body)


@contextlib.contextmanager
def connected(address):
  with socket.create_connection(address[:2], timeout=30) as connection, connection.makefile("rb") as file:
    yield connection, file


def head(path, *headers, method="POST"):
  return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def talk(address, data):
  """The answer to bytes; None where the connection is closed without one."""
  with connected(address) as (connection, file):
    try:
      connection.sendall(data)
      return read_answer(file)
    except (ConnectionResetError, BrokenPipeError):
      return None


def post(address, path, body, *headers):
  return talk(address, head(path, *(headers or (JSON,)), f"Content-Length: {len(body)}") + body)


def assert_form(answer, path, text, tei_type="Validation"):
  """Of an error: OpenAI's or text-embeddings-inference's, with nothing of the machine in it."""
  said = answer.json()
  assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
  if path.startswith("/v1"):
    assert said.keys() == {"error"} and said["error"].keys() == {"message", "type", "param", "code"}
    message = said["error"]["message"]
  else:
    assert said.keys() == {"error", "error_type"} and said["error_type"] == tei_type
    message = said["error"]
  assert re.search(text, message), message
  assert len(message) < 1000
  assert not re.search(r"Traceback|\.py|site-packages|gtr_jax/|0x[0-9a-f]{6}", message)


ROUTES = {"/v1/embeddings": b"input", "/embed": b"inputs"}


def of_field(value, extra=b""):
  return lambda field: b'{"' + field + b'": ' + value + extra + b"}"


NOT_JSON = {
    "empty": b"", "half": b'{"input": "a', "words": b"a river", "two": b'{"input": "a"} {"input": "b"}',
    "form": b"input=a&inputs=a", "nul": b'{"input": "a"}\0', "nothing-but-nul": b"\0" * 100,
    "latin-1": '{"input": "Größe", "inputs": "Größe"}'.encode("latin-1"),
    "cut-utf-8": b'{"input": "a\xf0\x9f\x98", "inputs": "a\xf0\x9f\x98"}',
    "gzip": gzip.compress(b'{"input": "a"}', mtime=0),
    "deep": b"[" * 100_000, "deep-and-closed": b"[" * 100_000 + b"]" * 100_000,
    "deep-objects": b'{"input":' * 100_000 + b"1" + b"}" * 100_000,
    "control": b'{"input": "a\nb"}', "digits": b'{"dimensions": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", NOT_JSON)
def test_no_json(address, name, path):
  answer = post(address, path, NOT_JSON[name])
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, "body.*(JSON|required)")


@pytest.mark.parametrize("path", ROUTES)
def test_compressed(address, path):
  answer = post(address, path, NOT_JSON["gzip"], JSON, "Content-Encoding: gzip")
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, "not compressed")


WRONG = {  # bodies of each route, and of what the answer speaks
    "null": (lambda _: b"null", "the body"), "list": (lambda _: b"[]", "the body"),
    "number": (lambda _: b"17", "the body"), "text": (lambda _: b'"a river"', "the body"),
    "no-field": (lambda _: b"{}", "inputs?: "), "null-field": (of_field(b"null"), "inputs?: "),
    "number-field": (of_field(b"1.5"), "inputs?: "), "true": (of_field(b"true"), "inputs?: "),
    "object": (of_field(b'{"a": "b"}'), "inputs?: "), "mixed": (of_field(b'["a", 1]'), "inputs?: "),
    "null-in-list": (of_field(b'["a", null]'), "inputs?: "), "nested": (of_field(b'[["a"]]'), "inputs?: "),
    "nan": (of_field(b"NaN"), "inputs?: "), "empty-text": (of_field(b'""'), "inputs?: "),
    "empty-list": (of_field(b"[]"), "inputs?: "), "empty-text-in-list": (of_field(b'["a", ""]'), "inputs?: "),
    "surrogate": (of_field(b'"a \\ud800 river"'), "inputs?: "),
    "surrogate-in-list": (of_field(b'["a", "\\udfff"]'), "inputs?: "),
    "surrogate-as-utf-8": (of_field(b'"a \xed\xa0\x80 river"'), "inputs?: |JSON"),
    "surrogate-in-name": (of_field(b'"a"', b', "\\ud800": 1'), "the body: .*unicode"),
    "surrogate-in-side": (of_field(b'"a"', b', "input_type": "\\ud800"'), "input_type: "),
    "long-name": (of_field(b'"a"', b', "' + b"n" * 100_000 + b'": 1'), "no such field"),
    "nul-in-name": (of_field(b'"a"', b', "a\\u0000b": 1'), "no such field"),
    "huge-dimensions": (of_field(b'"a"', b', "dimensions": ' + b"9" * 4000), "dimensions: "),
    "infinite-dimensions": (of_field(b'"a"', b', "dimensions": 1e999'), "dimensions: "),
    "other-dimensions": (of_field(b'"a"', b', "dimensions": 7'), "dimensions: 7 is none"),
    "no-dimensions": (of_field(b'"a"', b', "dimensions": 0'), "dimensions: "),
    "negative-dimensions": (of_field(b'"a"', b', "dimensions": -1'), "dimensions: "),
    "fraction": (of_field(b'"a"', b', "dimensions": 3.5'), "dimensions: "),
    "text-of-number": (of_field(b'"a"', b', "dimensions": "3"'), "dimensions: "),
    "text-of-truth": (of_field(b'"a"', b', "truncate": "false"'), "truncate: "),
    "of-truth": (of_field(b'"a"', b', "truncate": 0'), "truncate: "),
    "side": (of_field(b'"a"', b', "input_type": "passage"'), "input_type: "),
    "deep-enough-for-json": (of_field(b"[" * 500 + b"]" * 500), "inputs?: "),
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields(address, name, path):
  body, text = WRONG[name]
  answer = post(address, path, body(ROUTES[path]))
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, text)


@pytest.mark.parametrize("body, text", [
    (b'{"input": [1, 2]}', "token ids are not accepted"), (b'{"input": [[1], [2]]}', "token ids are not accepted"),
    (b'{"input": [' + b"9" * 4000 + b"]}", "input: "), (b'{"input": [-1]}', "input: "),
    (b'{"input": [[]]}', "input: "), (b'{"input": [1, "a"]}', "input: "),
    (b'{"input": "a", "encoding_format": "int8"}', "encoding_format: "),
    (b'{"input": "a", "model": ["fake"]}', "model: "),
    (b'{"input": "a", "user": 7}', "user: ")])
def test_wrong_fields_of_openai(address, body, text):
  answer = post(address, "/v1/embeddings", body)
  assert answer.status == 400
  assert_form(answer, "/v1/embeddings", text)


@pytest.mark.parametrize("model", ["other", "x" * 100_000, "../../etc/passwd", "a\nb", "\0", "\ud800"],
                         ids=["other", "long", "path", "lines", "nul", "surrogate"])
def test_names_that_nobody_knows_are_not_said_whole(address, model):
  answer = post(address, "/v1/embeddings", json.dumps({"input": "a", "model": model}).encode())
  assert answer.status == 404
  assert_form(answer, "/v1", "does not exist; give one of 'fake'")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", [
    of_field(b'"a \\u0000 river"'), of_field(b'"\\u0000"'), of_field(b'["\\ud83d\\ude00", " ", "\\ufffe"]'),
    of_field(b'"a"', b', "truncate": null, "dimensions": null'), of_field(b'"a river"', b', "dimensions": 3')],
    ids=["nul", "only-nul", "pair", "nulls", "dimensions"])
def test_what_is_odd_and_right(address, body, path):
  answer = post(address, path, body(ROUTES[path]))
  assert answer.status == 200, answer.body


@pytest.mark.parametrize("path", ROUTES)
def test_of_duplicate_keys_the_last_is_taken(address, path):
  """As most readers of JSON do."""
  field = ROUTES[path]
  twice = post(address, path, b'{"' + field + b'": 7, "' + field + b'": "a river"}').json()
  once = post(address, path, b'{"' + field + b'": "a river"}').json()
  other = post(address, path, b'{"' + field + b'": "a castle"}').json()
  assert twice == once != other


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("headers, text", [
    (("Content-Type: application/x-www-form-urlencoded",), "Content-Type: application/json"),
    (("Content-Type: text/plain",), "Content-Type: application/json"),
    (("Content-Type: multipart/form-data; boundary=x",), "Content-Type: application/json"),
    (("Content-Type: \xff\xfe",), "Content-Type: application/json"),
    (("X-None: 1",), "Content-Type: application/json")])
def test_wrong_types_of_bodies(address, path, headers, text):
  answer = post(address, path, b'{"' + ROUTES[path] + b'": "a"}', *headers)
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, text)


@pytest.mark.parametrize("headers", [
    (JSON, "Content-Encoding: identity"), ("content-type: APPLICATION/JSON; charset=utf-8",)])
def test_right_types_of_bodies(address, headers):
  assert post(address, "/embed", b'{"inputs": "a"}', *headers).status == 200


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("length", [MOST_BYTES + 1, 20 * MOST_BYTES, 10**18])
def test_too_large_by_its_length(address, path, length):
  """It is refused before it is sent, and heard by those too who send first and listen then."""
  answer = talk(address, head(path, JSON, f"Content-Length: {length}"))
  assert answer.status == 413 and answer.headers["connection"] == "close"
  assert_form(answer, path, "larger than 1,048,576 bytes")
  if length < 10**9:
    answer = talk(address, head(path, JSON, f"Content-Length: {length}") + b" " * length)
    assert answer is not None and answer.status == 413
    assert_form(answer, path, "larger than 1,048,576 bytes")


def test_the_largest_body_is_answered(address):
  body = b'{"input": "a"}'
  assert post(address, "/v1/embeddings", body + b" " * (MOST_BYTES - len(body))).status == 200


def chunk(data):
  return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("path", ROUTES)
def test_chunks(address, path):
  field, begin = ROUTES[path], head(path, JSON, "Transfer-Encoding: chunked")
  parts = [b'{"', field, b'": "a ', b"river", b'"}']
  assert talk(address, begin + b"".join(map(chunk, parts)) + b"0\r\n\r\n").status == 200
  # Without end.
  with connected(address) as (connection, file):
    connection.sendall(begin)
    for _ in range(40):
      connection.sendall(chunk(b" " * (MOST_BYTES // 10)))
    answer = read_answer(file)
    assert answer.status == 413 and answer.headers["connection"] == "close"
    assert_form(answer, path, "larger than")
    with contextlib.suppress(ConnectionError):  # It is not listened to for ever.
      for _ in range(10_000):
        connection.sendall(chunk(b" " * (MOST_BYTES // 10)))
        time.sleep(.01)
      raise AssertionError("the connection is still open")
  # That are none.
  answer = talk(address, begin + b"zz\r\n" + b"a" * 100)
  assert answer is None or answer.status == 400


@pytest.mark.parametrize("headers, body", [
    (("Content-Length: 10", "Content-Length: 20"), b"a" * 20),
    (("Content-Length: 10", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
    (("Content-Length: -1",), b""), (("Content-Length: ten",), b""), (("Content-Length: " + "9" * 400,), b""),
    (("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity"), b"a" * 20)])
def test_lengths_that_contradict(address, headers, body):
  """No second request is read out of a body: 400, and the connection is closed."""
  inner = head("/health", method="GET")
  with connected(address) as (connection, file):
    connection.sendall(head("/v1/embeddings", JSON, *headers) + body + inner)
    answer = read_answer(file)
    assert answer is None or answer.status == 400
    assert read_answer(file) is None


def test_a_length_that_is_too_small(address):
  """The rest is taken for a request, and is none: what was whole is answered, and the connection closed."""
  body = b'{"input": "a"}'
  with connected(address) as (connection, file):
    connection.sendall(head("/v1/embeddings", JSON, f"Content-Length: {len(body)}") + body + b'{"input": "b"}\r\n\r\n')
    statuses = []
    while (answer := read_answer(file)) is not None:
      statuses.append(answer.status)
  assert statuses in ([200, 400], [400])


def test_a_length_that_is_too_large(address, service):
  """The client waits for an answer, and the server for the rest, no longer than a request may take."""
  with limits(service, timeout_s=SLOW_S):
    began = time.monotonic()
    answer = talk(address, head("/v1/embeddings", JSON, "Content-Length: 100") + b'{"input": "a"}')
    assert answer.status == 408 and answer.headers["connection"] == "close"
    assert_form(answer, "/v1", "not come in time")
    assert SLOW_S * .9 < time.monotonic() - began < SLOW_S + 5


@pytest.mark.parametrize("path", ["/", "/embed", "/query", "/query/embed", "/document", "/document/embed"])
def test_what_is_refused_before_its_route_is_known_has_its_form(address, path):
  answer = talk(address, head(path, JSON, f"Content-Length: {MOST_BYTES + 1}"))
  assert answer.status == 413
  assert_form(answer, path, "larger than")


@contextlib.contextmanager
def limits(service, **changed):
  before = service.limits
  service.limits = dataclasses.replace(before, **changed)
  try:
    yield
  finally:
    service.limits = before


@pytest.mark.parametrize("path", ROUTES)
def test_slow_bodies(address, service, path):
  """A byte now and then does not keep a request alive."""
  with limits(service, timeout_s=SLOW_S), connected(address) as (connection, file):
    connection.sendall(head(path, JSON, "Content-Length: 10000"))
    connection.settimeout(.05)
    began, answer = time.monotonic(), b""
    while not answer and time.monotonic() - began < 20:
      connection.sendall(b" ")
      with contextlib.suppress(TimeoutError):
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ") and time.monotonic() - began < SLOW_S + 5


@pytest.mark.parametrize("begin", [b"", b"POST /v1/embeddings HTTP/1.1\r\nHo"], ids=["none", "some"])
def test_slow_headers(address, monkeypatch, begin):
  monkeypatch.setattr(server.Protocol, "headers_s", SLOW_S)
  with connected(address) as (connection, _):
    began = time.monotonic()
    connection.settimeout(.1)
    with contextlib.suppress(ConnectionError):
      connection.sendall(begin)
      while time.monotonic() - began < 20:
        with contextlib.suppress(TimeoutError):
          if not connection.recv(1):
            break
        if begin:
          connection.sendall(b"s")
    assert SLOW_S * .9 < time.monotonic() - began < SLOW_S + 5


@pytest.mark.parametrize("flood", [
    b"".join(b"X-%d: a\r\n" % i for i in range(100_000)), b"X: " + b"a" * 10_000_000, b"A" * 10_000_000,
    b"X: a\r\n" * 100_000, b"\r\n" * 500_000], ids=["many", "long-value", "long-name", "same", "empty-lines"])
def test_header_floods(address, flood):
  """The connection is closed long before headers that are slow would be."""
  with connected(address) as (connection, file):
    connection.settimeout(server.Protocol.headers_s / 2)
    with contextlib.suppress(ConnectionError):
      connection.sendall((b"" if flood[:1] == b"\r" else b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n") + flood)
    try:
      answer = read_answer(file)
    except ConnectionError:
      answer = None
    assert answer is None or answer.status in (400, 431)


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, b"GET / HTTP/9.9\r\n\r\n", b"\0" * 1000,
    b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"GET / HTTP/1.1\r\nA\0B: c\r\n\r\n"],
    ids=["tls", "version", "nul", "nul-in-path", "http2", "no-path", "space", "nul-in-name"])
def test_what_is_no_http(address, data):
  answer = talk(address, data)
  assert answer is None or answer.status in (400, 404, 505)


@pytest.mark.parametrize("path", [
    "/" + "a" * 50_000, "/%00", "/%ff%fe", "/v1/../../etc/passwd", "//", "/v1/embeddings/", "/v1/models/fake%2f..",
    "/embed%0d%0aX:%20y", "http://example.org/health/x"], ids=lambda path: path[:30])
def test_paths_that_are_not_there(address, path):
  answer = talk(address, head(path, method="GET"))
  assert answer.status == 404
  assert_form(answer, "/v1", "there is no GET of this path")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ROUTES)
def test_methods(address, method, path):
  answer = talk(address, head(path, method=method))
  assert answer.status == 405 and answer.headers["allow"] == "POST"
  assert_form(answer, path, f"takes no {method}")


def test_pipelined_requests(address):
  """Answered in their order, wrong ones among them."""
  bodies = [b'{"input": "a river"}', b'{"input": ', b'{"input": ["a", "b"]}', b"[]", b'{"input": "a"}'] * 10
  with connected(address) as (connection, file):
    connection.sendall(b"".join(
        head("/v1/embeddings", JSON, f"Content-Length: {len(body)}", f"X-Request-Id: {i}") + body
        for i, body in enumerate(bodies)))
    answers = [read_answer(file) for _ in bodies]
  assert [answer.headers["x-request-id"] for answer in answers] == [str(i) for i in range(len(bodies))]
  assert [answer.status for answer in answers] == [200, 400, 200, 400, 200] * 10
  assert [len(answer.json()["data"]) for answer in answers if answer.status == 200] == [1, 2, 1] * 10


def test_a_refused_request_leaves_the_connection_as_it_was(address):
  """What was sent with it is not taken for the next one."""
  inner = head("/v1/models", method="GET")
  with connected(address) as (connection, file):
    for body in (b'{"input": 7}' + inner, inner, b"\0" * 70_000):
      connection.sendall(head("/v1/embeddings", JSON, f"Content-Length: {len(body)}") + body)
      assert read_answer(file).status == 400
    for path in ("/none", "/health"):
      connection.sendall(head(path, JSON, f"Content-Length: {len(inner)}") + inner)
      assert read_answer(file).status in (404, 405)
    connection.sendall(head("/v1/models", method="GET"))
    assert read_answer(file).status == 200


def test_clients_that_hang_up(address, service):
  """In their headers, in their bodies, and while they wait: nobody encodes for them any more."""
  body = b'{"input": "a river"}'
  whole = head("/v1/embeddings", JSON, f"Content-Length: {len(body)}") + body
  for end in (1, 30, len(whole) - len(body), len(whole) - 1):
    for how in (socket.SHUT_RDWR, None):
      with connected(address) as (connection, _):
        connection.sendall(whole[:end])
        if how is not None:
          connection.shutdown(how)
        else:  # Without a word.
          connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
  batcher = service.served.models["fake"].batcher
  batcher.forgotten.clear()
  never = json.dumps({"input": NEVER}).encode()
  with connected(address) as (connection, _):
    connection.sendall(head("/v1/embeddings", JSON, f"Content-Length: {len(never)}") + never)
    until = time.monotonic() + 10
    while not batcher.waiting and time.monotonic() < until:
      time.sleep(.01)
    assert batcher.waiting == 1
  assert batcher.forgotten.wait(10) and batcher.waiting == 0


def test_answers_that_do_not_come_in_time(address, service):
  never = json.dumps({"input": NEVER}).encode()
  with limits(service, timeout_s=SLOW_S):
    answer = post(address, "/v1/embeddings", never)
  assert answer.status == 503 and answer.headers["retry-after"]
  assert_form(answer, "/v1", "not there in time")
  assert service.served.models["fake"].batcher.waiting == 0


@pytest.mark.parametrize("path", ROUTES)
def test_many_texts_and_long_ones(address, service, path):
  field = ROUTES[path].decode()
  for value, status, text in ((["a"] * 2049, 413, "2,049 texts"), ("a" * 1_000_001, 422, "1,000,001 characters")):
    answer = post(address, path, json.dumps({field: value}).encode())
    assert answer.status == status
    assert_form(answer, path, text)
  with limits(service, request_tokens=20):
    served = service.served.models["fake"]
    before, served._limits = served._limits, service.limits
    answer = post(address, path, json.dumps({field: ["a river"] * 20}).encode())
    served._limits = before
  assert answer.status == 422
  assert_form(answer, path, "a request may have 20")


@pytest.mark.parametrize("given", ["a b", "a" * 129, "Größe", "a\tb", "", "<script>"])
def test_request_ids_that_are_none(address, given):
  answer = talk(address, head("/v1/models", f"X-Request-Id: {given}", method="GET"))
  assert answer.status == 200 and re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("path", ROUTES)
def test_a_fault_of_the_server(address, service, monkeypatch, path):
  """The client learns that it is one, and where to look; the log has the rest."""
  served = service.served.models["fake"]
  right = served.encode_tokens

  def encode_tokens(tokens, side, **how):
    if len(tokens) == 3:  # Not those of the others.
      raise RuntimeError("/secret/place")
    return right(tokens, side, **how)

  monkeypatch.setattr(served, "encode_tokens", encode_tokens)
  answer = post(address, path, json.dumps({ROUTES[path].decode(): ["a", "b", "c"]}).encode())
  assert answer.status == 500 and b"secret" not in answer.body
  assert_form(answer, path, f"its log knows why .request {answer.headers['x-request-id']}", "Backend")
