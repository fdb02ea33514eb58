"""Several processes as one run, one for each host or each device: joining them, agreeing, and ending together.

Only process 0 prints and writes what there is once, and what the processes have to do alike is decided there. All
functions work in a single process too, where there is nobody to ask.
"""

import ctypes
import hashlib
import importlib.metadata
import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.parallel import process_group, progress, rendezvous
from gtr_jax.parallel.process_group import Group
from gtr_jax.parallel.rendezvous import Cluster as Cluster  # for `join`

SHARED_SECONDS = 60  # for a file that process 0 has written to be seen by the others: NFS caches what is not there

_PACKAGE = Path(__file__).parent.parent

_group: Group | None = None
_turn: "_Turn | None" = None  # that processes take just now


def join(name: str, cluster: Cluster, advice: str = "start all of them again") -> None:
  """Joins the processes of a run; before anything else that uses jax.

  Args:
    name: what speaks, before every message: "gtr-jax train".
    cluster: from `find_cluster`, or as the user says.
    advice: what to do when a process is lost.

  Raises:
    InputError: not all came within `rendezvous.JOIN_SECONDS`, two are the same, or their secret or software differs.
  """
  global _group
  if cluster.count == 1:
    return
  import jax
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  group = Group(name, cluster, advice)
  group.meet()
  _group = group
  with group.met.held:
    jax.distributed.initialize(group.met.jax_address, cluster.count, cluster.index,
                               coordinator_bind_address=group.met.jax_bind_address,
                               local_device_ids=cluster.local_device_ids, cluster_detection_method="deactivate",
                               # It would abort all where one is stopped; this is noticed here, and the reason said.
                               heartbeat_timeout_seconds=int(10 * progress.SILENT_SECONDS * progress.patience()) + 60,
                               shutdown_timeout_seconds=60)
  _let_reasons_come_first()
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax has taken it, for a service that is not used here.
  if jax.process_index() != cluster.index:
    raise InputError(f"--process_id {cluster.index}: the machines say that this is process {jax.process_index()}; give "
                     "that, or --distributed")
  check_same({f"the version of {package}": importlib.metadata.version(package) for package in ("jax", "jaxlib")} |
             {"the source code of gtr_jax": _source_hash()})
  _connect_devices()


def _connect_devices() -> None:
  """Devices connect when they first exchange arrays, and on CPUs wait only 30 seconds for the last (gloo).

  So they do while all processes are here: a device of each with each other's, and all devices.
  """
  import jax
  import numpy as np
  from jax.experimental import multihost_utils
  from jax.sharding import Mesh, NamedSharding, PartitionSpec
  multihost_utils.process_allgather(np.int32(0))
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, PartitionSpec("data")), lambda _: np.ones(1))
  jax.block_until_ready(jax.jit(jax.numpy.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones))


def _let_reasons_come_first() -> None:
  """Where process 0 is lost, a thread of jax aborts the others at once, whatever they are doing.

  That thread sleeps first (`sleep` takes the number of the signal, six, for seconds), so that the thread that listens
  can say which process is lost and end this one, also where another one holds Python for a while. What aborts for a
  reason of its own does so a little later.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def find_cluster() -> Cluster:
  """What the machines say: Slurm, Open MPI, Cloud TPU, GKE.

  Raises:
    InputError: nothing says so.
  """
  from jax._src.clusters import ClusterEnv  # Not public; jax.distributed.initialize() would abort where this explains.
  try:
    address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, rendezvous.JOIN_SECONDS)
  except Exception as e:  # Of whatever jax asks: metadata servers, Kubernetes.
    raise InputError(f"--distributed: the cluster cannot be asked ({type(e).__name__}: {first_line(e)}); give "
                     "--coordinator_address, --num_processes and --process_id to each process") from e
  if address is None or count is None or index is None:
    raise InputError("--distributed: no cluster found (Slurm, Open MPI, Cloud TPU, GKE); give --coordinator_address, "
                     "--num_processes and --process_id to each process")
  if ids := os.environ.get("JAX_LOCAL_DEVICE_IDS"):
    devices = [int(i) for i in ids.split(",")]
  return Cluster(address, count, index, devices)


def joined() -> bool:
  """Whether this is one of several processes."""
  return _group is not None


def is_first() -> bool:
  """Whether this is process 0, which prints and writes what there is once."""
  return (group := joined_group()) is None or group.index == 0


def print_once(text: str) -> None:
  """Prints, in process 0."""
  if is_first():
    print(text, flush=True)


def from_first(make: Callable[[], Any]) -> Any:
  """What `make` gives in process 0, JSON; only process 0 calls it. All must call this, in the same order."""
  if (group := joined_group()) is None:
    return make()
  if _turn is not None:
    return _turn.answer(make)
  with _Turn():
    return group.from_first(make)


def wait_for_all() -> None:
  """Returns when all processes have called it."""
  if (group := joined_group()) is not None:
    if _turn is not None:
      raise RuntimeError("processes that do something one after the other cannot wait for each other meanwhile")
    group.wait_for_all()


def first_before_others(make: Callable[[], Any]) -> Any:
  """`make()`, in process 0 before it is called in the others, which find what it has written.

  Where `make` asks `from_first`, the others get what process 0 was answered.
  """
  if joined_group() is None or _turn is not None:
    return make()
  if is_first():
    with _Turn() as turn:
      made = make()
    from_first(lambda: turn.answers)
    return made
  with _Turn(from_first(lambda: None)):
    return make()


class _Turn:
  """While processes do something one after the other: what process 0 is answered is kept, and answers the others."""

  def __init__(self, answers: list[Any] | None = None):
    self.answers: list[Any] = answers or []

  def answer(self, make: Callable[[], Any]) -> Any:
    """Of `from_first`."""
    if is_first():
      self.answers.append(make())
      return self.answers[-1]
    if not self.answers:
      raise RuntimeError("process 0 was not asked what this process asks")
    return self.answers.pop(0)

  def __enter__(self) -> "_Turn":
    global _turn
    _turn = self
    return self

  def __exit__(self, *exc_info: Any) -> None:
    global _turn
    _turn = None


def check_same(values: Mapping[str, Any]) -> None:
  """Raises InputError in each process whose values are not those of process 0; names the first. JSON values."""
  if joined_group() is None:
    return
  values = json.loads(json.dumps(values))  # As it comes from there.
  first = from_first(lambda: values)
  for name in [*first, *(name for name in values if name not in first)]:
    here, there = values.get(name, "not set"), first.get(name, "not set")
    if here != there:
      raise InputError(f"{name} is {here!r:.100} in this process and {there!r:.100} in process 0; start all processes "
                       "with the same command, configuration, software and data")
  wait_for_all()


def check_shared(folder: epath.PathLike) -> None:
  """Raises InputError unless all processes see in this folder what process 0 writes there. It must exist there."""
  if joined_group() is None:
    return
  folder = epath.Path(folder)
  name = from_first(lambda: f".shared-{uuid.uuid4().hex}")
  if is_first():
    (folder / name).write_text("")
  wait_for_all()
  deadline = time.monotonic() + SHARED_SECONDS
  while not (folder / name).exists():
    if time.monotonic() > deadline:
      raise InputError(f"{folder}: not the same folder here and in process 0; give one that all hosts share, such as "
                       "gs://... or a network file system")
    time.sleep(0.5)
  wait_for_all()
  if is_first():
    (folder / name).unlink()


def advise(make_advice: Callable[[], str]) -> None:
  """Says better what to do when a process is lost, if there is time to call this."""
  if _group is not None:
    _group.make_advice = make_advice


def fail(message: str, code: int) -> None:
  """Ends this process with a line and an exit code, and the others with the reason. Alone: does nothing."""
  if _group is not None:
    _group.fail(message, code)


def fail_unexpectedly(error: Exception) -> None:
  """`fail` with a traceback, unless the error only comes of another process that is lost. Alone: does nothing."""
  if _group is None:
    return
  time.sleep(process_group.GRACE_SECONDS)  # A connection that breaks at the same time ends this process by then.
  _group.fail(f"{type(error).__name__}: {first_line(error)}", 1, details="".join(traceback.format_exception(error)))


def leave() -> None:
  """Waits for all processes to be done."""
  global _group
  if _group is None:
    return
  import jax
  _group.wait_for_all(bye=True)
  _group = None
  jax.distributed.shutdown()


def joined_group() -> Group | None:
  """What joins the processes; None for one alone."""
  jax = sys.modules.get("jax")
  if _group is None and jax is not None and jax.distributed.is_initialized():
    raise InputError("several processes: join them with gtr_jax.parallel.processes.join instead of "
                     "jax.distributed.initialize")
  return _group


def _source_hash() -> str:
  """Of the files of gtr_jax: a host where they were not updated would compute something else."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob("*.py")):
    digest.update(f"{path.relative_to(_PACKAGE)} ".encode() + path.read_bytes())
  return digest.hexdigest()[:12]
