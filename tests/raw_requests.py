"""Requests byte by byte, and what a server answers."""

import contextlib
import dataclasses
import json
import re
import socket
import time

MOST_BYTES = 1 << 20
NEVER = "lion lion lion"  # a text that is encoded when its client has gone
JSON = "Content-Type: application/json"


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


@contextlib.contextmanager
def limits(service, **changed):
  before = service.limits
  service.limits = dataclasses.replace(before, **changed)
  try:
    yield
  finally:
    service.limits = before
