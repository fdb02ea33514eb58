"""What test_two_processes.py starts: one of two processes, one of four, or a single one that does the same."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_training import TinyBatches, tiny_loss

from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.cli import main
from gtr_jax.collections.corpus import Documents
from gtr_jax.errors import InputError
from gtr_jax.formats.tokenization import Tokenization
from gtr_jax.from_pairs import start
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.parallel import partitioning, processes
from gtr_jax.retrieval import store
from gtr_jax.training import optimizers
from gtr_jax.training.loop import Periods, fit, resume
from gtr_jax.training.state import create_state
from gtr_jax.training.step import compile_step, make_train_step
from gtr_jax.training.writers import JsonlWriter

STEPS, SIGNAL_AFTER = 12, 5
store._HASHED_ROWS = 8  # So that each process has a part of the documents to hash.


class PartOfBatches(TinyBatches):
  """This process's groups of `tiny_batch`; calls `then` after one of them."""

  def __init__(self, mesh, after=None, then=None):
    super().__init__(partitioning.num_groups(mesh))
    self._mine = list(partitioning.own_groups(mesh))
    self._after, self._then = after, then

  def __iter__(self):
    for item in super().__iter__():
      yield item._replace(batch=jax.tree.map(lambda x: x[self._mine], item.batch))
      if self.number == self._after:
        self._then()


def fed(**axes):
  """What arrives on the devices of such a mesh: this process's part of the data, and the tokens of all the queries."""
  mesh = partitioning.make_mesh(**axes)
  batch = partitioning.global_batch(mesh, next(iter(PartOfBatches(mesh))).batch)
  whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(batch.queries.tokens)
  return [partitioning.own_groups(mesh), np.asarray(whole).tolist()]


class Training:
  """Runs of one program, in float64."""

  def __init__(self, **axes):
    self.mesh = partitioning.make_mesh(**axes)
    config = T5Config(vocab_size=64, emb_dim=16, num_heads=8, head_dim=2, mlp_dim=32, num_layers=1, dropout_rate=0.1)
    model, loss, optimizer = DualEncoder(config, projection_dim=8), tiny_loss(), optimizers.adamw(1e-2)
    self._single, self._shardings = create_state(model, loss, optimizer, self.mesh, seed=0)
    self._double = jax.jit(lambda state: jax.tree.map(
        lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state), out_shardings=self._shardings)
    self._step = compile_step(make_train_step(model, loss, optimizer, seed=1), self._shardings)

  def run(self, folder, **interruption):
    """Begins or goes on; returns what `fit` returns."""
    if processes.is_first():
      folder.mkdir(exist_ok=True)
    processes.wait_for_all()
    checkpointer = Checkpointer(folder / "checkpoints")
    periods, batches = Periods(STEPS, log=1, checkpoint=0), PartOfBatches(self.mesh, **interruption)
    state, progress = resume(checkpointer, self._double(self._single), self._shardings, batches)
    writers = [JsonlWriter(folder / "metrics.jsonl", int(state.step))] if processes.is_first() else []
    with contextlib.closing(checkpointer):
      return fit(state, self._step, batches, checkpointer, periods=periods, mesh=self.mesh, writers=writers,
                 progress=progress)


def command(*argv):
  """Runs a command of gtr-jax in processes that are joined already."""
  args = main.parser().parse_args([str(arg) for arg in argv])
  assert not main.COMMANDS[args.command].run(args)


def in_turn(index, model):
  """What processes get that ask process 0 while they do something one after the other."""

  def asks_twice():
    return [processes.from_first(lambda: f"0 of process {index}"),
            processes.from_first(lambda: f"1 of process {index}"),
            start.of_model(str(model), Tokenization()).lengths["query"]]

  try:
    processes.first_before_others(processes.wait_for_all)
  except RuntimeError as e:
    waits = str(e)
    if processes.is_first():
      processes.from_first(lambda: None)  # What the other waits for.
  return [processes.first_before_others(asks_twice), waits,
          processes.from_first(lambda: processes.from_first(lambda: f"within, of process {index}"))]


def alone(folder):
  """What the two do together, in one process."""
  with jax.enable_x64(True):
    Training(data=2, fsdp=2, model=2).run(folder / "alone")
  command("evaluate", "--model", folder / "model", "--collection", folder / "collection", "--bm25", "--output",
          folder / "results_alone")


def encode_and_search(folder, name):
  model, collection, store_dir = folder / "model", folder / "collection", folder / f"store_{name}"
  command("encode", "--model", model, "--collection", collection, "--output", store_dir)
  command("search", "--model", model, "--embeddings", store_dir, "--queries", collection / "queries.jsonl",
          "--output", folder / f"run_{name}.trec", "--top_k", 1000)
  int8 = folder / f"store_{name}_int8"
  command("encode", "--model", model, "--collection", collection, "--output", int8, "--precision", "int8")
  command("search", "--model", model, "--embeddings", int8, "--queries", collection / "queries.jsonl",
          "--output", folder / f"run_{name}_int8.trec", "--top_k", 5)


def one_of_four(index, port, folder):
  """Two devices each; the third is signalled in training, and in the end the second is killed."""
  processes.join("test", processes.Cluster(f"localhost:{port}", 4, index), "start again")
  report = {"devices": [jax.device_count(), jax.local_device_count()], "fed": [fed(model=2), fed(model=4)]}

  with jax.enable_x64(True):
    training = Training(data=2, fsdp=2, model=2)
    interruption = {"after": SIGNAL_AFTER, "then": lambda: os.kill(os.getpid(), signal.SIGTERM)} if index == 2 else {}
    result = training.run(folder / "four", **interruption)
    report["stopped"] = [int(result.state.step), result.stopped_by]
    report["going on"] = int(training.run(folder / "four").state.step)

  encode_and_search(folder, "four")

  (folder / f"four_{index}.json").write_text(json.dumps(report))
  processes.wait_for_all()
  with jax.enable_x64(True):
    interruption = {"after": 3, "then": lambda: os.kill(os.getpid(), signal.SIGKILL)} if index == 1 else {}
    training.run(folder / "killed_of_four", **interruption)


def together(index, port, folder):
  processes.join("test", processes.Cluster(f"localhost:{port}", 2, index), "start again")
  report = {"devices": [jax.device_count(), jax.local_device_count()]}

  try:
    processes.check_same({"BATCH_SIZE": 16, "LEARNING_RATE": 0.1 * (1 + index)})
  except InputError as e:
    report["differs"] = str(e)
    processes.wait_for_all()  # Where process 0 waits.
  processes.SHARED_SECONDS = 1
  own = folder / f"of_process_{index}"
  own.mkdir()
  try:
    processes.check_shared(own)
  except InputError as e:
    report["not shared"] = str(e)
    processes.wait_for_all()

  report["in turn"] = in_turn(index, folder / "model")

  report["fed"] = [fed(model=4), fed(model=8), fed(data=4, model=2, devices=[
      jax.devices()[i] for i in (0, 1, 4, 5, 6, 7, 2, 3)])]

  with jax.enable_x64(True):
    training = Training(data=2, fsdp=2, model=2)
    training.run(folder / "undisturbed")
    interruption = {"after": SIGNAL_AFTER, "then": lambda: os.kill(os.getpid(), signal.SIGTERM)} if index else {}
    result = training.run(folder / "stopped", **interruption)
    report["stopped"] = [int(result.state.step), result.stopped_by]
    report["going on"] = int(training.run(folder / "stopped").state.step)

  encode_and_search(folder, "two")
  texts = [f"text {row}" for row in range(20)]
  texts[0] += " of process 1" * index  # The last row, of the part that process 1 hashes.
  writer = store.StoreWriter(folder / "other", Documents([f"{row:02}" for row in range(20)], [""] * 20, texts), 4, {})
  for rows in (range(4, 12), range(12, 20)):
    try:
      writer.check_documents(rows)
    except InputError as e:
      report["other documents"] = [rows.start, str(e)]
  command("evaluate", "--model", folder / "model", "--collection", folder / "collection", "--bm25", "--output",
          folder / "results")

  (folder / f"report_{index}.json").write_text(json.dumps(report))
  processes.wait_for_all()
  with jax.enable_x64(True):
    interruption = {} if index else {"after": 3, "then": lambda: os.kill(os.getpid(), signal.SIGKILL)}
    training.run(folder / "killed", **interruption)


if __name__ == "__main__":
  if sys.argv[1] == "alone":
    alone(Path(sys.argv[2]))
  else:
    {"2": together, "4": one_of_four}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
