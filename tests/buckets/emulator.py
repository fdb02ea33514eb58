"""A bucket on this machine: gcp-storage-emulator, behind what makes TensorFlow and TensorStore take it for Google's.

TensorStore goes where `TENSORSTORE_GCS_HTTP_URL` says, Google's own client where `STORAGE_EMULATOR_HOST` does.
TensorFlow's addresses are fixed, and https: it is given a proxy that answers for Google's hosts, with a certificate of
its own. In between stands what the emulator lacks: bodies in chunks that say a length too, conditions on an object's
generation, a session that has got nothing yet, an object of nothing.
"""

import contextlib
import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import trustme
from gcp_storage_emulator.server import create_server
from ports import free_port

GOOGLE = ("www.googleapis.com", "storage.googleapis.com")
_HOP = {"connection", "content-length", "expect", "host", "keep-alive", "te", "transfer-encoding"}
_LAYOUT = b'{"hierarchicalNamespace": {"enabled": false}}'
_NOTHING = b"".join(b"--part\r\nContent-Type: application/%b\r\n\r\n%b\r\n" % part
                    for part in ((b"json", b"{}"), (b"octet-stream", b""))) + b"--part--"


@contextlib.contextmanager
def bucket(folder: Path, name: str = "bucket") -> Iterator[dict[str, str]]:
  """The environment of processes for which gs://`name` is an empty bucket of this machine."""
  authority, port = trustme.CA(), free_port()
  authority.cert_pem.write_to_path(str(folder / "authority.pem"))
  tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  authority.issue_cert(*GOOGLE).configure_cert(tls)
  emulator = create_server("localhost", port, in_memory=True, default_bucket=name)
  emulator.start()
  front = ThreadingHTTPServer(("localhost", 0), _Front)
  front.daemon_threads, front.tls, front.emulator, front.lock = True, tls, port, threading.Lock()
  threading.Thread(target=front.serve_forever, daemon=True).start()
  here = f"http://localhost:{front.server_port}"
  try:
    yield {"https_proxy": here, "no_proxy": "localhost,127.0.0.1", "CURL_CA_BUNDLE": str(folder / "authority.pem"),
           "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any", "NO_GCE_CHECK": "true", "TENSORSTORE_GCS_HTTP_URL": here,
           "STORAGE_EMULATOR_HOST": here, "GOOGLE_CLOUD_PROJECT": "any"}
  finally:
    front.shutdown()
    front.server_close()
    emulator.stop()


class _Front(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_CONNECT(self):
    """From now on the connection is one to Google's host, as the client sees it."""
    self.send_response(200)
    self.end_headers()
    self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
    self.rfile, self.wfile = self.connection.makefile("rb"), _Writer(self.connection)
    self.close_connection = False

  def _pass_on(self):
    body, query = self._body(), parse_qs(urlsplit(self.path).query)
    with self.server.lock:  # So a condition holds until what it is for is done.
      status, headers, answer = (
          (200, {}, _LAYOUT) if self.path.endswith("/storageLayout") else
          (304 if self.command == "GET" else 412, {}, b"") if self._fails(query) else
          self._ask(self.command, self.path, body))
    if status == 308 and headers.get("Range") == "bytes=0-0":
      del headers["Range"]  # Nothing was received.
    self.send_response_only(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header("Content-Length", str(len(answer)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(answer)

  do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

  def _body(self):
    if "chunked" not in self.headers.get("Transfer-Encoding", ""):
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    parts = []
    while size := int(self.rfile.readline().split(b";")[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  def _fails(self, query):
    """Whether a condition on the object's generation (0: there is none) does not hold."""
    if "ifGenerationMatch" not in query and "ifGenerationNotMatch" not in query:
      return False
    path = urlsplit(self.path).path
    object_path = path if "name" not in query else (
        path.replace("/upload/", "/").replace("/resumable/", "/") + "/" + quote(query["name"][0], safe=""))
    status, _, answer = self._ask("GET", object_path, b"")
    generation = json.loads(answer)["generation"] if status == 200 else "0"
    return (query.get("ifGenerationMatch", [generation])[0] != generation or
            query.get("ifGenerationNotMatch", [None])[0] == generation)

  def _ask(self, command, path, body):
    """The emulator: status, headers, body."""
    own = dict(self.headers.items())
    if not body and "uploadType=media" in path:  # Of nothing it wants to know the length.
      path, body = path.replace("uploadType=media", "uploadType=multipart"), _NOTHING
      own["Content-Type"] = "multipart/related; boundary=part"
    emulator = http.client.HTTPConnection("localhost", self.server.emulator)
    with contextlib.closing(emulator):
      emulator.putrequest(command, path, skip_host=True, skip_accept_encoding=True)
      # Where the sessions of uploads that it makes are.
      emulator.putheader("Host", f"localhost:{self.server.server_port}")
      for key, value in own.items():
        if key.lower() not in _HOP:
          emulator.putheader(key, value)
      emulator.putheader("Content-Length", str(len(body)))
      emulator.endheaders(body)
      answer = emulator.getresponse()
      headers = {key: value for key, value in answer.getheaders() if key.lower() not in _HOP}
      return answer.status, headers, answer.read()

  def log_message(self, format, *args):
    del format, args


class _Writer:
  """What http.server writes to."""

  def __init__(self, connection):
    self.write, self.flush, self.closed = connection.sendall, lambda: None, False

  def close(self):
    pass
