"""How the processes of a run find each other: process 0 waits at its address for the others, and lets them in.

Process 0 sends whoever connects a number that it uses once, gets their name and a proof made of that number and of the
secret of the run (`SECRET`, the same in all processes), and proves itself to them likewise; the secret itself is never
sent. Whoever says nothing, too much, something else or the wrong thing has no part in it and holds up nobody: all are
listened to at once, each for a few seconds and some bytes. Without a secret, whoever reaches the port may join.
"""

import contextlib
import dataclasses
import hmac
import ipaddress
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from gtr_jax.errors import InputError

SECRET = "GTR_RUN_SECRET"  # environment variable
JOIN_SECONDS = 300       # for all processes to come
_HELLO_SECONDS = 5       # for whoever has connected to say who it is
_GREETING_SECONDS = 30   # for process 0 to say that it is there
_MOST_BYTES = 4096       # of a hello
_MOST_STRANGERS = 256    # that are listened to; of more the first are sent away, for our own speak at once
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
_HELLO = {"index": int, "count": int, "host": str, "nonce": str, "proof": str}


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Which process this is.

  Attributes:
    address: "HOST:PORT" of process 0.
    count: processes in all.
    index: this one, from 0.
    local_device_ids: the devices of the host that are its own; None: all.
  """

  address: str
  count: int
  index: int
  local_device_ids: Sequence[int] | None = None


class Peer:
  """A connection to another process: lines of JSON, both ways."""

  def __init__(self, connection: socket.socket):
    self.connection, self.lines, self.index, self.host = connection, connection.makefile("r", encoding="utf-8"), 0, ""
    self._sending = threading.Lock()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
      if hasattr(socket, option):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

  def send(self, **message: Any) -> None:
    """Does not care whether anybody is there: who listens finds out."""
    with contextlib.suppress(OSError), self._sending:
      self.connection.sendall(_line(message))

  def read(self) -> dict[str, Any] | None:
    """The next message; None at the end, or for what is none."""
    try:
      return _message(self.lines.readline(1 << 26))
    except (OSError, ValueError):
      return None

  def is_there(self) -> bool:
    """Whether the connection stands, as far as is known here."""
    try:
      return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
      return True
    except OSError:
      return False

  def close(self) -> None:
    self.lines.close()
    self.connection.close()


class Met(NamedTuple):
  """Where jax meets after us.

  Attributes:
    jax_address: where this process finds the coordinator of jax.
    jax_bind_address: where process 0 has it listen; None in the others.
    held: keeps its port until it listens there: to be closed then.
  """

  jax_address: str
  jax_bind_address: str | None
  held: contextlib.AbstractContextManager


def meet(cluster: Cluster, peers: dict[int, Peer]) -> Met:
  """Connects all processes: process 0 gets a connection to each of the others, they get one to it.

  Args:
    cluster: the processes.
    peers: gets the connections, as they come.

  Raises:
    InputError: not all came in time, or this one is refused.
  """
  host, _, port = cluster.address.rpartition(":")
  secret = os.environ.get(SECRET, "").encode(errors="surrogateescape")
  if cluster.index:
    peers[0], jax_port = _connect(cluster, host.strip("[]"), int(port), secret)
    return Met(f"{host}:{jax_port}", None, contextlib.nullcontext())
  with contextlib.ExitStack() as closing:
    door = _Door(cluster, peers, _listen(host.strip("[]"), int(port), closing), closing, secret)
    door.wait_for_all()
  held, address = _hold_port([peer.connection for peer in peers.values()])
  jax_port = held.getsockname()[1]
  for index, peer in peers.items():
    peer.send(jax_port=jax_port, host=socket.gethostname(), proof=door.own_proofs[index])
  bind_address = f"[{address}]:{jax_port}" if ":" in address else f"{address}:{jax_port}"
  anywhere = ipaddress.ip_address(address).is_unspecified
  return Met(f"{host}:{jax_port}" if anywhere else bind_address, bind_address, held)


def _listen(host: str, port: int, closing: contextlib.ExitStack) -> list[socket.socket]:
  """At the addresses of this machine that the host's name stands for, or at all of them where it stands for none."""
  try:
    if own := _own_addresses(host):
      servers = [socket.create_server((address, port), family=family) for address, family in own.items()]
    else:
      servers = [_listen_everywhere(port)]
  except OSError as e:
    raise InputError(f"cannot listen at port {port} ({os.strerror(e.errno or 0)}); end what still holds it, or give "
                     "another --coordinator_address") from e
  for server in servers:
    closing.enter_context(server).setblocking(False)
  return servers


def _listen_everywhere(port: int) -> socket.socket:
  with contextlib.suppress(OSError):  # Perhaps this machine has no IPv6.
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def _own_addresses(host: str) -> dict[str, socket.AddressFamily]:
  """Address -> family; none where others reach this machine by a name or an address that it does not know as its own.

  So it is behind a NAT or a service of Kubernetes; and Debian calls a machine 127.0.1.1 to itself.
  """
  own: dict[str, socket.AddressFamily] = {}
  try:
    found = {str(info[4][0]): info[0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
  except OSError:
    return {}
  for address, family in found.items():
    if ipaddress.ip_address(address).is_loopback and host not in ("localhost", address):
      return {}
    with contextlib.suppress(OSError), socket.socket(family) as trial:
      trial.bind((address, 0))
      own[address] = family
  return own


def _hold_port(connections: Sequence[socket.socket]) -> tuple[socket.socket, str]:
  """A port for the coordinator of jax, where the others have come to this machine, and that address.

  jax neither says which port it has got when asked for any, nor survives one that is taken (jaxlib 0.10 crashes). A
  port that is found free and closed again may be another's by the time that jax listens. So this socket keeps it: it
  never listens, and lets in beside itself who shares ports as gRPC does; the kernel, asked for any port, gives nobody
  one that is kept so.
  """
  addresses = {connection.getsockname()[0].removeprefix("::ffff:") for connection in connections}
  address = addresses.pop() if len(addresses) == 1 else "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
  held = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
  held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
  if address == "::":
    held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
  held.bind((address, 0))
  return held, address


class _Stranger:
  """Whoever has connected and not said yet who it is."""

  def __init__(self, connection: socket.socket):
    self.connection, self.nonce, self.said = connection, secrets.token_hex(16), b""
    self.until = time.monotonic() + _HELLO_SECONDS
    connection.setblocking(False)
    with contextlib.suppress(OSError):
      connection.send(_line({"gtr_jax": self.nonce}))

  def hear(self) -> bool:
    """Whether it has said all that is listened to."""
    try:
      heard = self.connection.recv(_MOST_BYTES)
    except BlockingIOError:
      return False
    except OSError:
      return True
    self.said += heard
    return not heard or b"\n" in heard or len(self.said) >= _MOST_BYTES


class _Door:
  """Process 0 lets the others in."""

  def __init__(self, cluster: Cluster, peers: dict[int, Peer], servers: Sequence[socket.socket],
               closing: contextlib.ExitStack, secret: bytes):
    self.own_proofs: dict[int, str] = {}  # for each of those who are let in
    self._cluster, self._peers, self._secret = cluster, peers, secret
    self._strangers: dict[socket.socket, _Stranger] = {}  # the first to come first
    self._selector = closing.enter_context(selectors.DefaultSelector())
    for server in servers:
      self._selector.register(server, selectors.EVENT_READ)
    closing.callback(self._send_all_away)

  def wait_for_all(self) -> None:
    """Raises InputError where not all come in time."""
    deadline = time.monotonic() + JOIN_SECONDS
    others = self._cluster.count - 1
    while len(self._peers) < others:
      if time.monotonic() > deadline:
        self._give_up()
      for key, _ in self._selector.select(min(1, max(deadline - time.monotonic(), 0))):
        speaks = cast(socket.socket, key.fileobj)
        stranger = self._strangers.get(speaks)
        if stranger is not None and stranger.hear():
          self._admit(stranger)
        elif stranger is None and speaks.fileno() >= 0:  # Not one that was sent away a moment ago.
          self._let_come(speaks)
      for stranger in [one for one in self._strangers.values() if one.until < time.monotonic()]:
        self._send_away(stranger)
      if len(self._peers) == others:
        for index in [index for index, peer in self._peers.items() if not peer.is_there()]:
          del self._peers[index]

  def _let_come(self, server: socket.socket) -> None:
    if len(self._strangers) >= _MOST_STRANGERS:
      self._send_away(next(iter(self._strangers.values())))
    with contextlib.suppress(OSError):  # It has gone again.
      connection = server.accept()[0]
      self._strangers[connection] = _Stranger(connection)
      self._selector.register(connection, selectors.EVENT_READ)

  def _send_all_away(self) -> None:
    for stranger in list(self._strangers.values()):
      self._send_away(stranger)

  def _send_away(self, stranger: _Stranger) -> None:
    self._forget(stranger)
    stranger.connection.close()

  def _forget(self, stranger: _Stranger) -> None:
    del self._strangers[stranger.connection]
    self._selector.unregister(stranger.connection)

  def _admit(self, stranger: _Stranger) -> None:
    hello = _message(stranger.said) or {}
    if {name: type(value) for name, value in hello.items()} != _HELLO:  # None of us.
      self._send_away(stranger)
      return
    self._forget(stranger)
    stranger.connection.setblocking(True)
    peer = Peer(stranger.connection)
    peer.index, peer.host = hello["index"], _printable(hello["host"])
    if refusal := self._refusal(peer.index, hello, stranger.nonce):
      peer.send(refused=refusal)
      peer.close()
      return
    self._peers[peer.index] = peer
    self.own_proofs[peer.index] = _proof(self._secret, "process 0", hello["nonce"], stranger.nonce)

  def _refusal(self, index: int, hello: dict[str, Any], nonce: str) -> str | None:
    expected = _proof(self._secret, *_claims(hello), nonce)
    if not hmac.compare_digest(hello["proof"].encode(errors="replace"), expected.encode()):
      fault = (f"{SECRET} is set in this process and not in process 0" if not self._secret else
               f"{SECRET} is set in process 0 and not in this process" if not hello["proof"] else
               f"{SECRET} is another one in this process than in process 0")
      return f"{fault}; give all processes the same"
    before = self._peers.get(index)
    if hello["count"] != self._cluster.count:
      fault = f"{self._cluster.count} processes for process 0 and {hello['count']} for process {index}"
    elif index == 0 or before is not None and before.is_there():
      fault = f"two processes are process {index}"
    elif not 0 < index < self._cluster.count:
      fault = f"process {index} of {self._cluster.count}"
    else:
      return None
    return f"{fault}; give all the same --num_processes, and each its own --process_id"

  def _give_up(self) -> None:
    count, address = self._cluster.count, self._cluster.address
    missing = [str(i) for i in range(1, count) if i not in self._peers]
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    reason = (f"process {shown} of {count} did not come to {address} within {JOIN_SECONDS} seconds; start all "
              "processes, and look at what that one says")
    for peer in self._peers.values():
      peer.send(refused=reason)
    raise InputError(reason)


def _connect(cluster: Cluster, host: str, port: int, secret: bytes) -> tuple[Peer, int]:
  """The connection to process 0, and the port of jax there; tries again until it is there."""
  deadline, greeted = time.monotonic() + JOIN_SECONDS, False
  while True:
    try:
      connection = socket.create_connection((host, port), timeout=_HELLO_SECONDS)
      with contextlib.ExitStack() as closing:
        peer = closing.enter_context(contextlib.closing(Peer(connection)))
        connection.settimeout(_GREETING_SECONDS)
        if connection.recv(1, socket.MSG_PEEK):
          greeted = True
          jax_port = _introduce(peer, cluster, secret)
          closing.pop_all()
          return peer, jax_port
      fault = "it closes the connection"  # As where strangers come in crowds.
    except OSError as e:  # Also a name that is not known yet.
      fault = e.strerror or str(e)
      if greeted and isinstance(e, ConnectionRefusedError):
        raise _not_process_0(cluster) from e
    if time.monotonic() > deadline:
      raise InputError(f"process 0 does not answer at {cluster.address} ({fault}, after {JOIN_SECONDS} seconds); start "
                       "it too, and give the host and a free port of it to all as --coordinator_address")
    time.sleep(0.2)


def _introduce(peer: Peer, cluster: Cluster, secret: bytes) -> int:
  """Says who this is; the port of jax. Raises ConnectionError where the connection ends without a reason."""
  known, nonce = (peer.read() or {}).get("gtr_jax"), secrets.token_hex(16)
  if not isinstance(known, str):
    raise _not_process_0(cluster)
  hello = {"index": cluster.index, "count": cluster.count, "host": socket.gethostname(), "nonce": nonce}
  peer.send(**hello, proof=_proof(secret, *_claims(hello), known))
  peer.connection.settimeout(JOIN_SECONDS + _HELLO_SECONDS)
  if not peer.connection.recv(1, socket.MSG_PEEK):
    raise ConnectionError("it closes the connection")
  reply = peer.read() or {}
  peer.connection.settimeout(None)
  if not {"jax_port", "host", "proof"} <= reply.keys():
    raise InputError(_printable(str(reply["refused"]))) if "refused" in reply else _not_process_0(cluster)
  expected = _proof(secret, "process 0", nonce, known)
  if not hmac.compare_digest(str(reply["proof"]).encode(errors="replace"), expected.encode()):
    raise InputError(f"what answers at {cluster.address} does not know {SECRET}, so it is not process 0 of this run; "
                     "correct --coordinator_address")
  peer.host = _printable(str(reply["host"]))
  return int(reply["jax_port"])


def _not_process_0(cluster: Cluster) -> InputError:
  return InputError(f"what answers at {cluster.address} is not process 0, or it has ended; see what that one says, and "
                    "correct --coordinator_address")


def _claims(hello: dict[str, Any]) -> list[str]:
  return [f"{name} {hello[name]}" for name in ("index", "count", "host", "nonce")]


def _proof(secret: bytes, *parts: str) -> str:
  """That whoever says these things knows the secret; empty where there is none."""
  return hmac.new(secret, json.dumps(parts).encode(), "sha256").hexdigest() if secret else ""


def _line(message: dict[str, Any]) -> bytes:
  return json.dumps(message).encode() + b"\n"


def _message(line: str | bytes) -> dict[str, Any] | None:
  try:
    message = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return message if isinstance(message, dict) else None


def _printable(text: str) -> str:
  """What others say must not move the cursor."""
  return "".join(char for char in text[:500] if char.isprintable())
