"""Requests that are cut off, slow, endless or no HTTP at all: each is refused or its connection closed, and others are
answered as ever."""

import contextlib
import json
import socket
import time

import pytest
from raw_requests import JSON, MOST_BYTES, NEVER, ROUTES, assert_form, connected, head, limits, post, read_answer, talk

from gtr_jax.serving import server

SLOW_S = 2.0  # that a body, and headers, may take; others need much less on a busy machine too
pytest_plugins = "raw_fixtures"
pytestmark = pytest.mark.usefixtures("others")


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
