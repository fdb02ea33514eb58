"""Who is let in to a run, who is not, where process 0 listens, and the port that it keeps for jax."""

import json
import re
import socket
import subprocess
import sys
import time

import pytest
from ports import free_port
from test_process_group import HELLO, Process, connect, finish, port  # noqa: F401

from gtr_jax.parallel import rendezvous

SECRET = "GTR_RUN_SECRET"


def agree(group):
  return group.from_first(lambda: 1)


def wait_until_it_listens(number):
  connect(number).close()


def test_only_who_knows_the_secret_is_let_in(port, monkeypatch):  # noqa: F811
  monkeypatch.setenv(SECRET, "ours")
  first = Process(port, 0, 3, agree)
  wait_until_it_listens(port)
  monkeypatch.setenv(SECRET, "theirs")
  assert finish([Process(port, 1, 3, agree)]) == [
      f"{SECRET} is another one in this process than in process 0; give all processes the same"]
  monkeypatch.delenv(SECRET)
  assert finish([Process(port, 1, 3, agree)]) == [
      f"{SECRET} is set in process 0 and not in this process; give all processes the same"]
  monkeypatch.setenv(SECRET, "ours")
  processes = [first, Process(port, 1, 3, agree), Process(port, 2, 3, agree)]
  assert finish(processes) == [None] * 3 and [process.result for process in processes] == [1, 1, 1]


def test_a_secret_that_process_0_has_not(port, monkeypatch):  # noqa: F811
  first = Process(port, 0, 2, agree)
  wait_until_it_listens(port)
  monkeypatch.setenv(SECRET, "ours")
  assert finish([Process(port, 1, 2, agree)]) == [
      f"{SECRET} is set in this process and not in process 0; give all processes the same"]
  monkeypatch.delenv(SECRET)
  assert finish([first, Process(port, 1, 2, agree)]) == [None, None]


def test_who_is_not_process_0_is_found_out_and_hears_no_secret(port, monkeypatch):  # noqa: F811
  monkeypatch.setenv(SECRET, "ours")
  with socket.create_server(("localhost", port)) as server:
    process = Process(port, 1, 2, agree)
    connection, _ = server.accept()
    connection.sendall(b'{"gtr_jax": "1"}\n')
    heard = connection.makefile("rb").readline()
    proof = json.loads(heard)["proof"]
    connection.sendall(json.dumps({"jax_port": 1, "host": "\x1b[2J", "proof": proof}).encode() + b"\n")
    error, = finish([process])
    assert re.match(rf"what answers at localhost:{port} does not know {SECRET}, so it is not process 0 of", error)
    assert b"ours" not in heard


def test_a_proof_is_of_no_use_again(port, monkeypatch):  # noqa: F811
  """Whoever has listened cannot say the same."""
  monkeypatch.setenv(SECRET, "ours")
  first = Process(port, 0, 2, agree)
  hello = {"index": 1, "count": 2, "host": "a", "nonce": "b"}
  answers = []
  for replayed in (False, True):
    with connect(port) as connection, connection.makefile("rb") as lines:
      nonce = json.loads(lines.readline())["gtr_jax"]
      if not replayed:
        said = json.dumps({**hello, "proof": rendezvous._proof(b"other", *rendezvous._claims(hello), nonce)})
      connection.sendall(said.encode() + b"\n")
      answers.append(json.loads(lines.readline()))
  assert all("refused" in answer for answer in answers)
  assert finish([first, Process(port, 1, 2, agree)]) == [None, None]


def test_strangers_hold_up_nobody(port, monkeypatch):  # noqa: F811
  """However many there are and whatever they say, also where none of them is sent away for saying nothing."""
  monkeypatch.setattr(rendezvous, "_HELLO_SECONDS", 600)
  monkeypatch.setattr(rendezvous, "_MOST_STRANGERS", 16)
  first = Process(port, 0, 3, agree)
  strangers = [connect(port) for _ in range(40)]
  for said in (b"x" * 10_000, b"[" * 4000 + b"\n", b"\xff\n", HELLO.replace(b"%b", b"[]"), HELLO % b"true",
               HELLO % b'"1"', HELLO % b"-1", HELLO % b"7", HELLO.replace(b"3", b"1e9") % b"1",
               b'{"index": 1, "count": 3, "host": "a", "nonce": "\\ud800", "proof": "\\ud800"}\n'):
    strangers.append(connect(port))
    strangers[-1].sendall(said)
  processes = [first, Process(port, 1, 3, agree)]
  strangers += [connect(port) for _ in range(40)]
  processes.append(Process(port, 2, 3, agree))
  assert finish(processes) == [None] * 3 and [process.result for process in processes] == [1, 1, 1]
  for stranger in strangers:
    stranger.close()


def test_who_says_nothing_is_sent_away(port, monkeypatch):  # noqa: F811
  monkeypatch.setattr(rendezvous, "_HELLO_SECONDS", 1)
  first = Process(port, 0, 2, agree)
  with connect(port) as stranger:
    assert stranger.makefile("rb").read().count(b"\n") == 1  # the greeting, and the end
  assert finish([first, Process(port, 1, 2, agree)]) == [None, None]


def test_listens_only_where_it_was_asked_to(port):  # noqa: F811
  first = Process(port, 0, 2, agree)
  wait_until_it_listens(port)
  with pytest.raises(ConnectionRefusedError):
    socket.create_connection(("127.0.0.2", port))  # which is this machine's as well
  second = Process(port, 1, 2, agree)
  assert finish([first, second]) == [None, None]
  assert re.fullmatch(r"(127\.0\.0\.1|\[::1\]):\d+", first.group.met.jax_bind_address)
  assert first.group.met.jax_address == first.group.met.jax_bind_address
  assert second.group.met.jax_address == "localhost:" + first.group.met.jax_bind_address.rpartition(":")[2]


@pytest.mark.parametrize("host, found, own", [
    ("127.0.0.1", ["127.0.0.1"], ["127.0.0.1"]), ("localhost", ["127.0.0.1"], ["127.0.0.1"]),
    ("node7", ["127.0.1.1"], []), ("load-balancer", ["203.0.113.7"], []), ("unknown", None, [])])
def test_addresses_that_are_this_machines_own(monkeypatch, host, found, own):
  def getaddrinfo(host, number, type):
    if found is None:
      raise socket.gaierror(-2, "Name or service not known")
    return [(socket.AF_INET, type, 6, "", (address, 0)) for address in found]

  monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
  assert list(rendezvous._own_addresses(host)) == own


def test_listens_everywhere_where_the_name_is_not_its_own(port, monkeypatch):  # noqa: F811
  monkeypatch.setattr(rendezvous, "_own_addresses", lambda host: {})
  first = Process(port, 0, 2, agree)
  wait_until_it_listens(port)
  socket.create_connection(("127.0.0.2", port)).close()
  assert finish([first, Process(port, 1, 2, agree)]) == [None, None]


def test_the_port_of_jax_is_kept_until_it_listens():
  with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
    (held, address), (other, _) = (rendezvous._hold_port([connection]) for _ in range(2))
  with held, other:
    assert address == "127.0.0.1" and held.getsockname()[1] != other.getsockname()[1]
    with pytest.raises(OSError, match="Address already in use"):
      socket.create_server(held.getsockname())


JOIN = """
import sys
from gtr_jax.parallel import processes
processes.join("join", processes.Cluster("localhost:" + sys.argv[2], 2, int(sys.argv[1])), "start again")
import jax, numpy as np
from jax.experimental import multihost_utils
assert multihost_utils.process_allgather(np.asarray([jax.process_index()])).ravel().tolist() == [0, 1]
print(processes._group.met.jax_address.rpartition(":")[2])
processes.leave()
"""


def test_two_runs_at_the_same_time_have_ports_of_their_own():
  processes = [subprocess.Popen([sys.executable, "-c", JOIN, str(i), number], stdout=subprocess.PIPE, text=True)
               for number in (str(free_port()), str(free_port())) for i in range(2)]
  start = time.monotonic()
  ports = [process.communicate()[0].split()[-1:] for process in processes]
  assert [process.returncode for process in processes] == [0] * 4, (ports, time.monotonic() - start)
  assert ports[0] == ports[1] != ports[2] == ports[3]
