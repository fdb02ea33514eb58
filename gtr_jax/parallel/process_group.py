"""The connections between the processes of a run, beside those of jax.

With `jax.distributed` alone, a process that is not there, dies or fails leaves the others in a collective that never
ends, or ends them with C++ logs. So each process keeps a TCP connection to process 0, and they tell each other over it,
in lines of JSON, what they agree on and why they end. The kernel closes the connection when a process dies, and its
keepalive notices within 30 seconds that a machine is lost; a process that is only busy is never taken for a dead one.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gtr_jax.errors import InputError

JOIN_SECONDS = 300    # for all processes to come
GRACE_SECONDS = 2     # for a process to say itself what has stopped it too
_HELLO_SECONDS = 5    # for a process that has connected to say who it is
_LINGER_SECONDS = 10  # that process 0, without which jax aborts the others, stays for them to end
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


@dataclass(frozen=True)
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


class _Peer:
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
      self.connection.sendall(json.dumps(message).encode() + b"\n")

  def read(self) -> dict[str, Any] | None:
    """The next message; None at the end, or for what is none."""
    try:
      message = json.loads(self.lines.readline(1 << 26))
      return message if isinstance(message, dict) else None
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


class Group:
  """This process's side of the connections: process 0 has one to each other process, they have one to it.

  Args:
    name: what speaks.
    cluster: the processes.
    advice: what to do when a process is lost.
    exit_process: ends this process.
  """

  def __init__(self, name: str, cluster: Cluster, advice: str, exit_process: Callable[[int], None] = os._exit):
    self.cluster, self.index, self.advice = cluster, cluster.index, advice
    self.make_advice: Callable[[], str] = lambda: self.advice
    self.jax_port = 0
    self._name, self._exit = name, exit_process
    self._peers: dict[int, _Peer] = {}
    self._changed = threading.Condition()  # guards what follows
    self._here: Counter[int] = Counter()   # question -> processes that wait for its answer
    self._answers: dict[int, Any] = {}     # question -> what process 0 has answered
    self._gone: set[int] = set()
    self._ending = self._has_reason = False
    self._questions = 0

  def meet(self) -> None:
    """Connects all processes. Raises InputError."""
    host, _, port = self.cluster.address.rpartition(":")
    if self.index == 0:
      self._accept(int(port))
    else:
      self._connect(host.strip("[]"), int(port))
    for peer in self._peers.values():
      threading.Thread(target=self._listen, args=[peer], name=f"process {peer.index}", daemon=True).start()

  def _accept(self, port: int) -> None:
    try:
      server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.cluster.count)
    except OSError:
      server = None  # Perhaps this machine has no IPv6.
    try:
      server = server or socket.create_server(("", port), backlog=self.cluster.count)
    except OSError as e:
      reason = os.strerror(e.errno) if e.errno else e
      raise InputError(f"cannot listen at port {port} ({reason}); end what still holds it, or give another "
                       "--coordinator_address") from e
    deadline = time.monotonic() + JOIN_SECONDS
    with server:
      while len(self._peers) < self.cluster.count - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
          self._admit(server.accept()[0])
        except TimeoutError as e:
          missing = [str(i) for i in range(1, self.cluster.count) if i not in self._peers]
          shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
          reason = (f"process {shown} of {self.cluster.count} did not come to {self.cluster.address} within "
                    f"{JOIN_SECONDS} seconds; start all processes, and look at what that one says")
          self._tell(refused=reason)
          raise InputError(reason) from e
        if len(self._peers) == self.cluster.count - 1:
          self._peers = {index: peer for index, peer in self._peers.items() if peer.is_there()}
    with socket.create_server(("", 0)) as free:
      self.jax_port = free.getsockname()[1]
    self._tell(jax_port=self.jax_port, host=socket.gethostname())

  def _admit(self, connection: socket.socket) -> None:
    peer = _Peer(connection)
    connection.settimeout(_HELLO_SECONDS)
    hello = peer.read() or {}
    connection.settimeout(None)
    if hello.keys() != {"index", "count", "host"}:  # None of us.
      peer.close()
      return
    peer.index, peer.host = hello["index"], hello["host"]
    before = self._peers.get(peer.index)
    refusal = None
    if hello["count"] != self.cluster.count:
      refusal = f"{self.cluster.count} processes for process 0 and {hello['count']} for process {peer.index}"
    elif peer.index == 0 or before is not None and before.is_there():
      refusal = f"two processes are process {peer.index}"
    if refusal:
      peer.send(refused=f"{refusal}; give all the same --num_processes, and each its own --process_id")
      peer.close()
    else:
      self._peers[peer.index] = peer

  def _connect(self, host: str, port: int) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
      try:
        connection = socket.create_connection((host, port), timeout=_HELLO_SECONDS)
        break
      except OSError as e:  # Also a name that is not known yet.
        if time.monotonic() > deadline:
          raise InputError(f"process 0 does not answer at {self.cluster.address} ({e.strerror or e}, after "
                           f"{JOIN_SECONDS} seconds); start it too, and give the host and a free port of it to all as "
                           "--coordinator_address") from e
        time.sleep(0.2)
    peer = self._peers[0] = _Peer(connection)
    peer.send(index=self.index, count=self.cluster.count, host=socket.gethostname())
    connection.settimeout(JOIN_SECONDS + _HELLO_SECONDS)
    reply = peer.read() or {}
    connection.settimeout(None)
    if "jax_port" not in reply:
      raise InputError(reply.get("refused") or f"what answers at {self.cluster.address} is not process 0, or it has "
                       "ended; see what that one says, and correct --coordinator_address")
    self.jax_port, peer.host = reply["jax_port"], reply["host"]

  def from_first(self, make: Callable[[], Any]) -> Any:
    """See the function."""
    self._questions += 1
    if self.index == 0:
      answer = json.loads(json.dumps(make()))  # As the others get it.
      self._tell(question=self._questions, answer=answer)
      return answer
    return self._wait(lambda: self._questions in self._answers and (self._answers.pop(self._questions),))[0]

  def wait_for_all(self, bye: bool = False) -> None:
    """See the function. After `bye` it means nothing that a connection ends."""
    question = self._questions + 1
    if self.index == 0:
      self._wait(lambda: self._here[question] == len(self._peers))
      if bye:
        self._begin_to_end()
        self._tell(bye=True)
    else:
      self._peers[0].send(here=question)
    self.from_first(lambda: None)

  def fail(self, message: str, code: int, details: str = "") -> None:
    """See the function."""
    if not self._begin_to_end():  # A thread is about to end this process because of another one.
      time.sleep(2 * _LINGER_SECONDS)
    self._exit_at_last(code)
    self._say(details + self._signed(message))
    self._tell(stopped=f"{self._named(self.index, socket.gethostname())} stopped: {message}", lost=False)
    self._leave_process(code)

  def _wait(self, condition: Callable[[], Any]) -> Any:
    """For as long as it takes: should another process be lost, a thread ends this one."""
    with self._changed:
      return self._changed.wait_for(condition)

  def _begin_to_end(self) -> bool:
    """False if this process is ending already."""
    with self._changed:
      before, self._ending = self._ending, True
      self._changed.notify_all()
    return not before

  def _listen(self, peer: _Peer) -> None:
    """The thread of a connection."""
    stopped = False
    while (message := peer.read()) is not None:
      if "stopped" in message:  # Another thread, for this one has to see the connection end.
        stopped = True
        threading.Thread(target=self._end_with, args=[message["stopped"], message["lost"]], daemon=True).start()
      with self._changed:
        if "question" in message:
          self._answers[message["question"]] = message["answer"]
        elif "here" in message:
          self._here[message["here"]] += 1
        elif "bye" in message:
          self._ending = True
        self._changed.notify_all()
    with self._changed:
      self._gone.add(peer.index)
      self._changed.notify_all()
    if not stopped:
      self._end_with(f"{self._named(peer.index, peer.host)} is gone: killed, out of memory, or its machine is lost",
                     lost=True)

  def _end_with(self, reason: str, lost: bool) -> None:
    """Ends this process because another one is lost, or has stopped, unless the same stops this one in a moment."""
    with self._changed:
      if self._ending or self._has_reason:  # What comes after the first reason comes of it.
        return
      self._has_reason = True
    if self.index == 0:
      self._tell(stopped=reason, lost=lost)
    with self._changed:
      self._changed.wait_for(lambda: self._ending, 0 if lost else GRACE_SECONDS)
    if not self._begin_to_end():
      return
    self._exit_at_last(1)
    if lost:
      advice = self.advice
      if 0 not in self._gone:  # Without process 0, jax aborts this one: no time to make advice.
        with contextlib.suppress(Exception):
          advice = self.make_advice()
      reason = f"{reason}; {advice}"
    self._say("\n" + self._signed(reason))
    self._leave_process(1)

  def _exit_at_last(self, code: int) -> None:
    """Also where a file system or an output hangs."""
    timer = threading.Timer(2 * _LINGER_SECONDS, self._exit, [code])
    timer.daemon = True
    timer.start()

  def _leave_process(self, code: int) -> None:
    if self.index == 0:  # When it ends, jax aborts the others: they shall have said why they end.
      with self._changed:
        self._changed.wait_for(lambda: self._gone >= self._peers.keys(), _LINGER_SECONDS)
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    self._exit(code)  # Not sys.exit: jax would wait for the others on the way out.

  def _say(self, text: str) -> None:
    with contextlib.suppress(OSError):
      os.write(2, f"{text}\n".encode(errors="replace"))  # At once, in the middle of whatever else is printed.

  def _tell(self, **message: Any) -> None:
    for peer in self._peers.values():
      peer.send(**message)

  def _named(self, index: int, host: str) -> str:
    return f"process {index} of {self.cluster.count} (on {host})"

  def _signed(self, message: str) -> str:
    return f"{self._name} (process {self.index} of {self.cluster.count}): {message}"
