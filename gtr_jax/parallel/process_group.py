"""The connections between the processes of a run, beside those of jax.

With `jax.distributed` alone, a process that is not there, dies or fails leaves the others in a collective that never
ends, or ends them with C++ logs. So each process keeps a TCP connection to process 0, and they tell each other over it,
in lines of JSON, what they agree on, what they are doing and why they end. The kernel closes the connection when a
process dies, and its keepalive notices within 30 seconds that a machine is lost; a process that is alive and stands
still is found by what it says (`progress`). One that is only busy is never taken for a dead one.
"""

import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from gtr_jax.parallel import progress
from gtr_jax.parallel.rendezvous import Cluster, Peer, meet

GRACE_SECONDS = 2     # for a process to say itself what has stopped it too
_ADVICE_SECONDS = 5   # for the file system to say where the run will go on
_LINGER_SECONDS = 10  # that process 0, without which jax aborts the others, stays for them to end


class Group:
  """This process's side of the connections: process 0 has one to each other process, they have one to it.

  Args:
    name: what speaks.
    cluster: the processes.
    advice: what to do when a process is lost.
    exit_process: ends this process.
    now: what its main thread does.
  """

  def __init__(self, name: str, cluster: Cluster, advice: str, exit_process: Callable[[int], None] = os._exit,
               now: Callable[[], progress.Stamp] = progress.current):
    self.cluster, self.index, self.advice = cluster, cluster.index, advice
    self.make_advice: Callable[[], str] = lambda: self.advice
    self._name, self._exit, self._now = name, exit_process, now
    self._patience = progress.patience()
    self._peers: dict[int, Peer] = {}
    self._changed = threading.Condition()  # guards what follows
    self._here: Counter[int] = Counter()   # question -> processes that wait for its answer
    self._answers: dict[int, Any] = {}     # question -> what process 0 has answered
    self._gone: set[int] = set()
    self._deaf: set[int] = set()           # alive, but stopped
    self._ending = self._has_reason = False
    self._questions = 0
    # Of `stopping`:
    self._wake, self._signalled = os.pipe()
    self.stops_after: float = math.inf     # the number of a place
    self._held = False
    self._places: dict[int, int] = {}      # how far the processes are, told to process 0

  def meet(self) -> None:
    """Connects all processes. Raises InputError."""
    self.met = meet(self.cluster, self._peers)
    names = {index: self._named(index, peer.host) for index, peer in self._peers.items()}
    if self.index == 0:
      names[0] = self._named(0, socket.gethostname())
    watch = progress.Watch(names, self._patience)
    for peer in self._peers.values():
      threading.Thread(target=self._listen, args=[peer, watch], name=f"process {peer.index}", daemon=True).start()
    for target, *args in ((self._beat,), (self._look, watch), (self._look_for_signals,)):  # One may have to wait.
      threading.Thread(target=target, args=args, name=target.__name__, daemon=True).start()

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

  def allow_stop(self) -> None:
    """All processes call this at one place and wait for each other: from now on `stop` in one of them stops all."""
    with self._changed:
      self.stops_after, self._held = math.inf, False
      self._places.clear()
    self.wait_for_all()  # Who begins later would forget what all have been told.

  def stop(self) -> None:
    """For a handler of signals, which can neither wait nor send."""
    os.write(self._signalled, b".")

  def wait_while_held(self) -> None:
    """For the main thread, where it has said what it does: how far all go may just be decided."""
    if self._held:
      self._wait(lambda: not self._held)

  def _look_for_signals(self) -> None:
    """A thread."""
    while os.read(self._wake, 1):
      if self.index == 0:
        self._hold_all()
      else:
        self._peers[0].send(stop=True)

  def _hold_all(self) -> None:
    """In process 0: all say how far they are."""
    with self._changed:
      if self._held or self.stops_after < math.inf:
        return
      self._held = True  # Before its own place is read: the main thread first says where it is, then looks at this.
    self._tell(hold=True)
    self._note_place(0, self._now().number)

  def _note_place(self, index: int, place: int) -> None:
    """In process 0."""
    with self._changed:
      self._places[index] = place
      if len(self._places) <= len(self._peers):
        return
    after = max(self._places.values())
    self._tell(stop_after=after)
    self._release(after)

  def _release(self, after: int) -> None:
    with self._changed:
      self.stops_after, self._held = after, False
      self._changed.notify_all()

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

  def _beat(self) -> None:
    """A thread: tells what the main one does. Process 0 only tells that it is there: it looks for itself."""
    while not self._ends_within(progress.BEAT_SECONDS):
      self._tell(beat=None if self.index == 0 else self._now())

  def _look(self, watch: progress.Watch) -> None:
    """A thread: process 0 looks for who stands still; the others, whether process 0 is stopped."""
    before = time.monotonic()
    while not self._ends_within(progress.BEAT_SECONDS):
      if self.index == 0:
        watch.hear(0, self._now())
      before, passed = time.monotonic(), time.monotonic() - before
      if stuck := watch.passed(passed):
        self._deaf |= set() if stuck.hears else set(stuck.indices)
        self._end_with(stuck.reason, lost=True)
        return

  def _ends_within(self, seconds: float) -> bool:
    with self._changed:
      return self._changed.wait_for(lambda: self._ending, seconds)

  def _listen(self, peer: Peer, watch: progress.Watch) -> None:
    """The thread of a connection."""
    stopped = False
    while (message := peer.read()) is not None:
      if "beat" in message:
        watch.hear(peer.index, message["beat"] and progress.Stamp(*message["beat"]))
        continue
      if "stop" in message:
        self._hold_all()
      elif "hold" in message:
        self._held = True
        peer.send(place=self._now().number)
      elif "place" in message:
        self._note_place(peer.index, message["place"])
      elif "stop_after" in message:
        self._release(message["stop_after"])
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
      # Without process 0, jax aborts this one: no time to make advice.
      reason = f"{reason}; {self.advice if 0 in self._gone else self._best_advice()}"
    self._say("\n" + self._signed(reason))
    self._leave_process(1)

  def _best_advice(self) -> str:
    """What is made, if the file system answers: it may be what hangs."""
    made = []

    def make():
      with contextlib.suppress(Exception):
        made.append(self.make_advice())

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(_ADVICE_SECONDS)
    return made[0] if made else self.advice

  def _exit_at_last(self, code: int) -> None:
    """Also where a file system or an output hangs."""
    timer = threading.Timer(2 * _LINGER_SECONDS, self._exit, [code])
    timer.daemon = True
    timer.start()

  def _leave_process(self, code: int) -> None:
    if self.index == 0:  # When it ends, jax aborts the others: they shall have said why they end.
      with self._changed:
        self._changed.wait_for(lambda: self._gone | self._deaf >= self._peers.keys(), _LINGER_SECONDS)
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    self._exit(code)  # Not sys.exit: jax would wait for the others on the way out.

  def _say(self, text: str) -> None:
    with contextlib.suppress(OSError):
      os.write(2, f"{text}\n".encode(errors="replace"))  # At once, in the middle of whatever else is printed.

  def _tell(self, **message: Any) -> None:
    for index, peer in self._peers.items():
      if index not in self._deaf:  # Its buffers may be full.
        peer.send(**message)

  def _named(self, index: int, host: str) -> str:
    return f"process {index} of {self.cluster.count} (on {host})"

  def _signed(self, message: str) -> str:
    return f"{self._name} (process {self.index} of {self.cluster.count}): {message}"
