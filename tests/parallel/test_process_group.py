"""Processes that come together, agree and end together; here each is a thread with its own end of the connections.

And how the command line learns which one it is.
"""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from ports import free_port

import gtr_jax
from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.parallel import process_group, processes, progress, rendezvous
from gtr_jax.parallel.process_group import Group
from gtr_jax.parallel.rendezvous import Cluster


@pytest.fixture
def port(monkeypatch):
  monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 120)
  monkeypatch.setattr(process_group, "GRACE_SECONDS", 1)
  return free_port()


class Process(threading.Thread):
  """Meets the others, then calls `main(group)`; keeps what comes of it."""

  def __init__(self, port, index, count, main, now=lambda: progress.Stamp()):
    super().__init__(daemon=True)
    self.met, self.ended, self.result, self.error = threading.Event(), threading.Event(), None, None
    self._main = main
    self.group = Group("test", Cluster(f"localhost:{port}", count, index), "do it again", self.end, now)
    self.start()

  def run(self):
    try:
      self.group.meet()
      self.met.set()
      self.result = self._main(self.group)
    except InputError as e:
      self.error = str(e)

  def end(self, code):
    """As when the process ends: its connections do too."""
    if not self.ended.is_set():
      self.code, self.group._ending = code, True
      self.ended.set()
      for peer in self.group._peers.values():
        with contextlib.suppress(OSError):  # The other side was quicker.
          peer.connection.shutdown(socket.SHUT_RDWR)

  def exit_code(self):
    assert self.ended.wait(120)
    return self.code


def start(port, *mains):
  return [Process(port, index, len(mains), main) for index, main in enumerate(mains)]


def finish(processes):
  for process in processes:
    process.join(120)
    assert not process.is_alive()
  return [process.error for process in processes]


HELLO = b'{"index": %b, "count": 3, "host": "a", "nonce": "", "proof": ""}\n'


def connect(port):
  """By hand, as soon as process 0 listens."""
  while True:
    try:
      return socket.create_connection(("localhost", port), timeout=120)
    except ConnectionRefusedError:
      time.sleep(0.01)


def train(group):
  """Does not come to an end by itself."""
  group.from_first(threading.Event().wait)


def lines(capfd):
  return [line for line in capfd.readouterr().err.split("\n") if line]


def test_agree(port):
  late, seen = threading.Event(), []

  def first(group):
    value = group.from_first(lambda: {"steps": (1, 2)})
    late.wait(120)
    seen.append("late")
    group.wait_for_all()
    return value

  def other(group):
    value = group.from_first(lambda: pytest.fail("only process 0 is asked"))
    late.set()
    group.wait_for_all()
    seen.append("after")
    return value

  processes = start(port, first, other, other)
  finish(processes)
  assert [p.result for p in processes] == [{"steps": [1, 2]}] * 3
  assert seen == ["late", "after", "after"]


def test_ends_without_a_word_when_all_are_done(port, capfd):
  processes = start(port, *[lambda group: group.wait_for_all(bye=True)] * 3)
  finish(processes)
  for peer in processes[0].group._peers.values():
    peer.connection.shutdown(socket.SHUT_RDWR)
  time.sleep(0.3)
  assert lines(capfd) == [] and not any(process.ended.is_set() for process in processes)


@pytest.mark.parametrize("lost", [0, 1])
def test_lost_process_ends_the_others(port, capfd, lost):
  processes = start(port, train, train, train)
  assert all(process.met.wait(120) for process in processes)
  for process in processes:
    process.group.make_advice = lambda: "go on at 7"
  processes[lost].end(-9)
  others = [i for i in range(3) if i != lost]
  assert [processes[i].exit_code() for i in others] == [1, 1]
  advice = "go on at 7" if lost else "do it again"  # Without process 0 there is no time.
  gone = f"process {lost} of 3 (on {socket.gethostname()}) is gone: killed, out of memory, or its machine is lost"
  assert sorted(lines(capfd)) == [f"test (process {i} of 3): {gone}; {advice}" for i in others]


@pytest.mark.parametrize("failing", [0, 2])
def test_failure_of_one_ends_the_others_with_its_reason(port, capfd, failing):
  mains = [train] * 3
  mains[failing] = lambda group: group.fail("no such file", 2)
  processes = start(port, *mains)
  assert [process.exit_code() for process in processes] == [2 if i == failing else 1 for i in range(3)]
  name = f"process {failing} of 3"
  assert sorted(lines(capfd)) == sorted(
      [f"test ({name}): no such file"] +
      [f"test (process {i} of 3): {name} (on {socket.gethostname()}) stopped: no such file"
       for i in range(3) if i != failing])


def test_what_fails_all_is_said_once_by_each(port, capfd):
  processes = start(port, *[lambda group: group.fail("not finite", 1)] * 3)
  assert [process.exit_code() for process in processes] == [1, 1, 1]
  assert sorted(lines(capfd)) == [f"test (process {i} of 3): not finite" for i in range(3)]


def test_missing_process(port, monkeypatch):
  monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 3)
  processes = [Process(port, index, 4, train) for index in (0, 2)]
  errors = finish(processes)
  assert errors == 2 * [f"process 1, 3 of 4 did not come to localhost:{port} within 3 seconds; start all processes, "
                        "and look at what that one says"]


def test_nobody_at_the_address(port, monkeypatch):
  monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 1)
  error, = finish([Process(port, 1, 2, train)])
  assert error.startswith(f"process 0 does not answer at localhost:{port} (Connection refused, after 1 seconds)")


def test_something_else_at_the_address(port):
  with socket.create_server(("", port)) as server:
    process = Process(port, 1, 2, train)
    connection, _ = server.accept()
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()
    assert finish([process])[0].startswith(f"what answers at localhost:{port} is not process 0, or it has ended")


def test_port_is_taken(port):
  with socket.create_server(("", port)):
    assert finish([Process(port, 0, 2, train)])[0].startswith(f"cannot listen at port {port} (Address already in use)")


@pytest.mark.parametrize("index, count, fault", [
    (1, 3, "two processes are process 1"), (0, 3, "two processes are process 0"),
    (1, 2, "3 processes for process 0 and 2 for process 1")])
def test_who_does_not_belong_is_refused_and_the_others_go_on(port, index, count, fault):
  processes = [Process(port, i, 3, lambda group: group.from_first(lambda: 1)) for i in (0, 1)]
  while not processes[0].group._peers:
    time.sleep(0.01)
  if index == 0:  # Another one that says so, elsewhere, but comes here.
    with connect(port) as connection:
      connection.sendall(HELLO % b"0")
      assert fault.encode() in connection.makefile("rb").readlines()[-1]
  else:
    error, = finish([Process(port, index, count, train)])
    assert error == f"{fault}; give all the same --num_processes, and each its own --process_id"
  assert finish([*processes, Process(port, 2, 3, lambda group: group.from_first(lambda: 1))]) == [None] * 3
  assert processes[1].result == 1


def test_strangers_and_those_who_died_while_they_waited_do_not_count(port):
  processes = [Process(port, 0, 3, lambda group: group.from_first(lambda: 1))]
  for said in (b"", b"GET / HTTP/1.1\r\n", b"[]\n", HELLO % b"1"):
    connection = connect(port)
    connection.sendall(said)
    connection.close()
  processes.append(Process(port, 2, 3, lambda group: group.from_first(lambda: 1)))
  while set(processes[0].group._peers) != {2}:
    time.sleep(0.01)
  processes.append(Process(port, 1, 3, lambda group: group.from_first(lambda: 1)))
  assert finish(processes) == [None] * 3 and [process.result for process in processes] == [1, 1, 1]


@pytest.fixture
def no_cluster(monkeypatch):
  for name in os.environ:
    if name.startswith(("SLURM", "OMPI", "JAX_COORDINATOR", "JAX_LOCAL", "KUBERNETES", "TPU")):
      monkeypatch.delenv(name)


def test_slurm_is_found(monkeypatch, no_cluster):
  for name, value in {"JOB_ID": "4097", "STEP_NODELIST": "node[07-09,12]", "NTASKS": "16", "PROCID": "9",
                      "LOCALID": "1"}.items():
    monkeypatch.setenv(f"SLURM_{name}", value)
  assert processes.find_cluster() == Cluster("node07:61441", 16, 9, [1])
  monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1,2,3")
  assert processes.find_cluster() == Cluster("node07:61441", 16, 9, [0, 1, 2, 3])


@pytest.mark.parametrize("flags, message", [
    (["--distributed"], "--distributed: no cluster found (Slurm, Open MPI, Cloud TPU, GKE); give --coordinator_addr"),
    (["--num_processes", "2"], "--coordinator_address, --num_processes and --process_id go together: give all "),
    (["--distributed", "--process_id", "0"], "give --distributed, or --coordinator_address, "),
    (["--coordinator_address", "host", "--num_processes", "2", "--process_id", "0"],
     "--coordinator_address host: give HOST:PORT"),
    (["--coordinator_address", "host:70000", "--num_processes", "2", "--process_id", "0"],
     "--coordinator_address host:70000: give HOST:PORT"),
    (["--coordinator_address", "host:1", "--num_processes", "2", "--process_id", "2"],
     "--process_id 2: of --num_processes 2 the first is 0, the last 1"),
])
def test_flags_that_do_not_say_it(capfd, no_cluster, flags, message):
  assert main(["search", "--model", "m", "--embeddings", "e", *flags]) == 2
  assert capfd.readouterr().err.startswith(f"gtr-jax search: {message}")


def test_the_source_that_must_be_the_same_is_all_of_it(monkeypatch, tmp_path):
  assert Path(gtr_jax.__file__).parent == processes._PACKAGE
  monkeypatch.setattr(processes, "_PACKAGE", tmp_path)
  before = processes._source_hash()
  (tmp_path / "training").mkdir()
  (tmp_path / "training" / "loop.py").write_text("")
  assert processes._source_hash() != before


def test_a_single_process_needs_nobody(capfd, no_cluster, tmp_path):
  """`--num_processes 1`, as a launch file for any number of hosts gives it."""
  assert main(["search", "--model", "m", "--embeddings", str(tmp_path), "--coordinator_address", "host:1",
                   "--num_processes", "1", "--process_id", "0"]) == 2
  assert "not an embedding store" in capfd.readouterr().err
  assert processes.is_first() and not processes.joined() and processes.from_first(lambda: (1,)) == (1,)
