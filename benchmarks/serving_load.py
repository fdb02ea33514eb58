"""The client of benchmarks/serving.py, a process of its own: asyncio and raw HTTP, so that it costs little.

Takes what to do as JSON on stdin, and prints what became of it as JSON. Every mode has `port` and `requests`, a file of
JSON lines: path, body, and how many texts the body has.
"""

import asyncio
import collections
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

_CHECKED = 50  # One answer in so many is parsed; of the others the vectors are counted.
_UNTIL_IT_ENDS = 1 << 62
HOST = "127.0.0.1"


class Connection(asyncio.Protocol):
  """One, over which one request after the other goes."""

  def __init__(self):
    self._received, self._length, self._answer = bytearray(), None, None
    self._closed = False

  @classmethod
  async def open(cls, port: int) -> "Connection":
    _, connection = await asyncio.get_running_loop().create_connection(cls, HOST, port)
    return connection

  def connection_made(self, transport: Any) -> None:
    self.transport = transport

  def data_received(self, data: bytes) -> None:
    self._received += data
    if self._length is None and (end := self._received.find(b"\r\n\r\n")) >= 0:
      head = bytes(self._received[:end]).lower()
      self.status = int(head[9:12])
      _, found, after = head.partition(b"content-length:")
      self._begin = end + 4
      self._length = self._begin + int(after.partition(b"\r\n")[0]) if found else _UNTIL_IT_ENDS
    if self._length is not None and len(self._received) >= self._length:
      self._done()

  def connection_lost(self, exc: Exception | None) -> None:
    self._closed = True
    if self._answer is not None and not self._answer.done():
      if self._length == _UNTIL_IT_ENDS:
        self._done()
      else:
        self._answer.set_exception(ConnectionError("hung up"))

  def _done(self):
    body, self._length = bytes(self._received[self._begin:]), None
    self._received.clear()
    if self._answer is not None and not self._answer.done():
      self._answer.set_result((self.status, body))

  def begin(self) -> asyncio.Future[tuple[int, bytes]]:
    """What will be the status and the body of the next answer."""
    self._answer = asyncio.get_running_loop().create_future()
    if self._closed:
      self._answer.set_exception(ConnectionError("hung up"))
    return self._answer

  async def ask(self, request: bytes) -> tuple[int, bytes]:
    """Status and body."""
    answer = self.begin()
    if not self._closed:
      self.transport.write(request)
    return await answer

  @property
  def usable(self) -> bool:
    return not self._closed

  def close(self) -> None:
    self.transport.close()


def as_http(path: str, body: bytes, length: int | None = None) -> bytes:
  """A POST of JSON."""
  return (f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: "
          f"{len(body) if length is None else length}\r\n\r\n").encode() + body


class Requests:
  """Those of a file, again from the start after the last."""

  def __init__(self, path: str, first: int = 0):
    with open(path, encoding="utf-8") as f:
      rows = [json.loads(line) for line in f]
    self._all = [(as_http(row["path"], row["body"].encode()), row["texts"]) for row in rows]
    self._numbers: Iterator[int] = itertools.count(first)

  def next(self) -> tuple[bytes, int]:
    """A request, and how many texts it has."""
    return self._all[next(self._numbers) % len(self._all)]


class Checks:
  """Whether answers are what was asked for."""

  def __init__(self):
    self._seen = 0

  def __call__(self, body: bytes, texts: int) -> None:
    self._seen += 1
    if body.count(b'"embedding":[') + body.count(b'"embedding":"') + body.count(b'"results":[') != texts:
      raise SystemExit(f"an answer to {texts} texts has another number of vectors: {body[:200]!r}")
    if self._seen % _CHECKED == 1:
      json.loads(body)


async def closed(spec: dict[str, Any]) -> dict[str, Any]:
  """`clients`, each of which sends the next request when it has its answer; after `warmup` s, for `seconds`; or, with
  `count`, so many requests."""
  requests, check = Requests(spec["requests"], spec.get("first", 0)), Checks() if spec.get("check", True) else None
  begin = time.perf_counter() + spec["warmup"]
  end = begin + spec["seconds"]
  latencies, statuses, texts, last = [], collections.Counter(), 0, begin
  left = spec.get("count", 1 << 62)

  async def client():
    nonlocal texts, last, left
    connection = await Connection.open(spec["port"])
    while (sent := time.perf_counter()) < end and left > 0:
      request, number = requests.next()
      status, body = await connection.ask(request)
      now = time.perf_counter()
      if status == 200 and check is not None:
        check(body, number)
      if begin <= now <= end and left > 0:
        statuses[status] += 1
        latencies.append(now - sent)
        texts += number if status == 200 else 0
        last, left = now, left - 1
    connection.close()

  clients = asyncio.gather(*(client() for _ in range(spec["clients"])))
  await asyncio.sleep(max(begin - time.perf_counter(), 0))
  used = time.process_time()
  await clients
  used = time.process_time() - used
  seconds = spec["seconds"] if "count" not in spec else last - begin
  return {"latencies": latencies, "statuses": statuses, "texts": texts, "seconds": seconds, "cpu_seconds": used}


async def opened(spec: dict[str, Any]) -> dict[str, Any]:
  """`rate` requests a second, whatever becomes of those before, for `seconds`; at most `clients` at once."""
  requests, check, rng = Requests(spec["requests"], spec.get("first", 0)), Checks(), random.Random(0)
  idle, running, found = [], set(), collections.defaultdict(list)
  not_sent = texts = 0

  async def one(request, number):
    nonlocal texts
    sent = time.perf_counter()
    try:
      while idle and not idle[-1].usable:  # The server has closed what nobody used for long.
        idle.pop()
      connection = idle.pop() if idle else await Connection.open(spec["port"])
      status, body = await asyncio.wait_for(connection.ask(request), spec["timeout"])
      if status == 200:
        check(body, number)
        texts += number
      if connection.usable:
        idle.append(connection)
    except TimeoutError:
      status = "no answer in time"
      connection.close()
    except OSError:
      status = "hung up"
    found[status].append(time.perf_counter() - sent)

  began = due = time.perf_counter()
  while due < began + spec["seconds"]:
    await asyncio.sleep(max(due - time.perf_counter(), 0))
    if len(running) < spec["clients"]:
      task = asyncio.ensure_future(one(*requests.next()))
      running.add(task)
      task.add_done_callback(running.discard)
    else:
      not_sent += 1
    due += rng.expovariate(spec["rate"])
  seconds = time.perf_counter() - began
  await asyncio.gather(*running)
  for connection in idle:
    connection.close()
  return {"latencies": found, "not_sent": not_sent, "texts": texts, "seconds": seconds}


async def abuse(spec: dict[str, Any]) -> dict[str, Any]:
  """Clients that hang up, slow ones and wrong ones, while a well-behaved one asks `good` in turn."""
  hung, good, rng = Requests(spec["requests"]), Requests(spec["good"]), random.Random(0)
  statuses = {"hanging up": collections.Counter(), "slow": collections.Counter(), "wrong": collections.Counter()}
  bad, latencies, errors = [], [], collections.Counter()
  over = False

  async def answered(kind, connection, what, seconds):
    """Whatever comes after that was sent."""
    try:
      status, body = await asyncio.wait_for(what, seconds)
    except TimeoutError:
      status, body = "nothing", b""
    except OSError:
      status, body = "hung up", b""
    connection.close()
    statuses[kind][status] += 1
    if (isinstance(status, int) and status >= 500) or b"Traceback" in body or b'File "' in body:
      bad.append([kind, status, body[:300].decode("latin-1")])

  async def hanging_up():
    request, _ = hung.next()
    connection = await Connection.open(spec["port"])
    in_body = rng.random() < .5
    head = request.index(b"\r\n\r\n") + 4
    connection.transport.write(request[:rng.randrange(head, len(request))] if in_body else request)
    await asyncio.sleep(rng.random() * .05)
    connection.transport.abort() if rng.random() < .5 else connection.close()
    statuses["hanging up"]["in the body" if in_body else "waiting"] += 1

  async def slow(number):
    request, _ = hung.next()
    head = request.index(b"\r\n\r\n") + 4 if number % 4 else 0  # A quarter is slow with the headers already.
    connection = await Connection.open(spec["port"])
    answer, end = connection.begin(), time.perf_counter() + spec["slow_seconds"]
    connection.transport.write(request[:head])
    for i in itertools.count(head):
      await asyncio.wait({answer}, timeout=1)
      if answer.done() or time.perf_counter() > end:
        break
      connection.transport.write(request[i:i + 1])
    await answered("slow", connection, answer, .01)

  async def wrong(number):
    connection, request = await Connection.open(spec["port"]), _wrong(number, spec["body_bytes"])
    await answered("wrong", connection, connection.ask(request), spec["timeout"])

  async def behaves():
    connection = await Connection.open(spec["port"])
    while not over:
      sent = time.perf_counter()
      try:
        status, _ = await asyncio.wait_for(connection.ask(good.next()[0]), spec["timeout"])
      except (OSError, TimeoutError) as e:
        status, connection = type(e).__name__, await Connection.open(spec["port"])
      latencies.append(time.perf_counter() - sent)
      if status != 200:
        errors[status] += 1
      await asyncio.sleep(.002)

  async def at_once(most, tasks):
    """Runs them, so many at a time."""
    left = iter(tasks)

    async def some():
      for task in left:
        try:
          await task
        except OSError as e:
          statuses["hanging up"][f"no connection: {type(e).__name__}"] += 1

    await asyncio.gather(*(some() for _ in range(most)))

  well = asyncio.ensure_future(behaves())
  await asyncio.gather(
      at_once(spec["at_once"], (hanging_up() for _ in range(spec["hang_ups"]))),
      at_once(8, (wrong(i) for i in range(spec["wrong"]))),
      at_once(spec["slow"], (slow(i) for i in range(spec["slow"]))))
  over = True
  await well
  return {"statuses": statuses, "bad": bad[:20], "bad_count": len(bad), "latencies": latencies, "errors": errors}


def _wrong(number: int, most: int) -> bytes:
  """A request that should be refused; every 50th is too large."""
  if number % 50 == 0:
    body = b'{"input": "' + b"a" * most + b'"}'
    return as_http("/v1/embeddings", body) if number % 100 else (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"{len(body):x}\r\n").encode() + body + b"\r\n0\r\n\r\n"
  bodies = [
      b'{"input": ', b"", b"null", b"[]", b'{"input": 1.5}', b'{"input": []}', b'{"input": [""]}',
      b'{"input": [[[1]]]}', b"[" * 100_000, b'{"input": ' + b"[" * 100_000, b'{"input": "\xff\xfe"}',
      b'{"input": "\\ud800"}', b'{"input": NaN}', b'{"input": "a", "dimensions": -1}',
      b'{"input": "a", "dimensions": 1e400}', b'{"input": [' + b'"a",' * 5000 + b'"a"]}',
      b'{"input": "a", "encoding_format": "x"}', b'{"inputs": "a"}', b'{"input": {"a": 1}}',
      b'{"input": "a", "model": "../../etc/passwd"}', b'{"input": [1, 2, "a"]}', b"\x00" * 1000,
      b'{"input": [' + b"9" * 5000 + b"]}"]
  whole = [b"GARBAGE\r\n\r\n", b"GET /v1/embeddings HTTP/1.1\r\nHost: a\r\n\r\n",
           b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
           b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\n{}}",
           b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
           as_http("/v1/embeddings", b"{}", length=10**15), as_http("/../../secret", b"{}"),
           b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
  which = number % (len(bodies) + len(whole))
  return as_http("/v1/embeddings", bodies[which]) if which < len(bodies) else whole[which - len(bodies)]


def main():
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  spec = json.load(sys.stdin)
  try:
    from uvloop import new_event_loop
  except ImportError:
    new_event_loop = None
  with asyncio.Runner(loop_factory=new_event_loop) as runner:
    json.dump(runner.run({"closed": closed, "opened": opened, "abuse": abuse}[spec["mode"]](spec)), sys.stdout)


if __name__ == "__main__":
  main()
