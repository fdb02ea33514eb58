"""Two real processes with four devices each, and four with two, against one with eight; and deaths."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from metrics_lines import without_times
from one_of_two import SIGNAL_AFTER, STEPS
from ports import free_port
from test_resume import GIN, write_data
from tiny_model_dir import corpus, write_collection, write_model_dir
from tiny_training import tiny_batch

from gtr_jax.checkpoints.checkpointer import list_steps
from gtr_jax.cli.main import main
from gtr_jax.retrieval.runs import read_run
from gtr_jax.retrieval.store import Store

SCRIPT = Path(__file__).parents[1] / "one_of_two.py"
LIMIT = 300  # seconds; no test takes that long


class Processes:
  """Started at once; `commands` and `environments` have one for each; their outputs go to files of this name."""

  def __init__(self, folder, name, commands, environments):
    self._outputs = [folder / f"{name}_output_{i}" for i in range(len(commands))]
    base = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_backend_optimization_level=0"
                         " --xla_llvm_disable_expensive_passes=true"}
    self.processes = []
    for command, environment, output in zip(commands, environments, self._outputs, strict=True):
      with output.open("w") as f:
        self.processes.append(subprocess.Popen([sys.executable, *map(str, command)], env={**base, **environment},
                                               stdout=f, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2]))

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    for process in self.processes:
      process.kill()
      process.wait()

  def outputs(self):
    return [path.read_text() for path in self._outputs]

  def exit_codes(self, limit=LIMIT):
    """When all have ended by themselves."""
    try:
      return [process.wait(limit) for process in self.processes]
    except subprocess.TimeoutExpired:
      pytest.fail("\n".join(self.outputs()))

  def wait_until(self, condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
      assert time.monotonic() < deadline and not any(p.poll() for p in self.processes), "\n".join(self.outputs())
      time.sleep(0.02)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  """The folder of `one_of_two.py`, and of the two processes their reports, exit codes and outputs."""
  folder = tmp_path_factory.mktemp("two")
  write_model_dir(folder / "model")
  write_collection(folder / "collection", corpus(60))
  port = free_port()
  with Processes(folder, "all", [[SCRIPT, 2, 0, port, folder], [SCRIPT, 2, 1, port, folder], [SCRIPT, "alone", folder]],
                 [{"JAX_NUM_CPU_DEVICES": devices} for devices in "448"]) as processes:
    *codes, code_alone = processes.exit_codes()
    paths = [folder / "report_0.json", folder / "report_1.json"]
    assert code_alone == 0 and all(path.exists() for path in paths), "\n".join(processes.outputs())
    return folder, [json.loads(path.read_text()) for path in paths], codes, processes.outputs()[:2]


@pytest.fixture(scope="module")
def four(together):
  """The folder of `one_of_two.py`, and of four processes their reports, exit codes and outputs."""
  folder, *_ = together
  port = free_port()
  with Processes(folder, "four", [[SCRIPT, 4, index, port, folder] for index in range(4)],
                 [{"JAX_NUM_CPU_DEVICES": "2"}] * 4) as processes:
    codes, paths = processes.exit_codes(), [folder / f"four_{index}.json" for index in range(4)]
    assert all(path.exists() for path in paths), "\n".join(processes.outputs())
    return folder, [json.loads(path.read_text()) for path in paths], codes, processes.outputs()


def metrics(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(lines):
  return [without_times(line) for line in lines]


def test_same_losses_as_one_process(together):
  folder, reports, _, _ = together
  assert [report["devices"] for report in reports] == [[8, 4], [8, 4]]
  ours, expected = metrics(folder / "undisturbed"), metrics(folder / "alone")
  assert len(ours) == len(expected) == STEPS
  for name in ("train/loss", "train/grad_norm", "train/param_norm", "train/mrr"):
    np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in expected], rtol=1e-9)


def test_process_0_can_be_asked_in_turn(together):
  """As where it makes files before the others look at them, and a model is opened for that."""
  _, (first, other), _, _ = together
  asked, waits, within = first["in turn"]
  assert asked == ["0 of process 0", "1 of process 0", 16] and within == "within, of process 0"
  assert "cannot wait for each other meanwhile" in waits
  assert other["in turn"] == first["in turn"]


def test_each_feeds_the_groups_of_its_devices(together):
  _, reports, _, _ = together
  for index, report in enumerate(reports):
    (own, apart), (shared, same), (scattered, whole) = report["fed"]
    assert own == [index] and shared == [0]
    assert apart == tiny_batch(1, 2).queries.tokens.tolist() and same == tiny_batch(1, 1).queries.tokens.tolist()
    # A torus may be taken apart so.
    assert scattered == [[0, 3], [1, 2]][index] and whole == tiny_batch(1, 4).queries.tokens.tolist()


def test_signal_to_one_stops_both_promptly_at_the_same_step(together):
  folder, reports, _, outputs = together
  assert reports[0]["stopped"] == reports[1]["stopped"]
  step, stopped_by = reports[0]["stopped"]
  assert SIGNAL_AFTER <= step <= SIGNAL_AFTER + 2 and stopped_by == signal.SIGTERM
  assert outputs[0].count(f"stopped by SIGTERM after step {step}") == 1
  assert "stopped by" not in outputs[1]
  assert [report["going on"] for report in reports] == [STEPS, STEPS]
  assert without_time(metrics(folder / "stopped")) == without_time(metrics(folder / "undisturbed"))


def test_evaluates_as_one_process(together):
  folder, _, _, outputs = together
  ours, expected = (json.loads((folder / name / "results.json").read_text()) for name in ("results", "results_alone"))
  assert set(ours["systems"]) == {"BM25", "model"} and ours == expected
  assert "nDCG@10" in outputs[0] and "nDCG@10" not in outputs[1]


def same_store_and_run_as_alone(folder, name):
  ours = Store(folder / f"store_{name}")
  expected = Store(next((folder / "results_alone" / "embeddings").iterdir()))
  assert ours.ids == expected.ids and ours.settings == expected.settings
  assert ours.documents_hash == expected.documents_hash
  assert all((ours.path / file).read_bytes() == (expected.path / file).read_bytes() for file in (
      "documents.jsonl", "offsets.npy", "checksums.npy"))
  np.testing.assert_allclose(ours[:], expected[:], atol=1e-6)
  ours = read_run(folder / f"run_{name}.trec")
  expected = read_run(folder / "results_alone" / "runs" / "model-collection.trec")
  assert ours.keys() == expected.keys() and len(ours) == 12
  for query, ranking in expected.items():
    assert ours[query].doc_ids == ranking.doc_ids
    np.testing.assert_allclose(ours[query].scores, ranking.scores, atol=1e-6)
  same_int8_as_alone(folder, name)


def same_int8_as_alone(folder, name):
  """The store is as good as one process's float32 is, and one process finds the same in it, its 20 candidates too."""
  ours = Store(folder / f"store_{name}_int8")
  whole = Store(next((folder / "results_alone" / "embeddings").iterdir()))[:]
  np.testing.assert_allclose(ours.quantizer.fitted, np.abs(whole).max(axis=0) / 127, rtol=1e-5)
  np.testing.assert_allclose(ours[:], whole, atol=ours.quantizer.fitted.max())
  again = folder / f"again_{name}_int8.trec"
  assert main(["search", "--model", f"{folder}/model", "--embeddings", str(ours.path), "--queries",
               f"{folder}/collection/queries.jsonl", "--output", str(again), "--top_k", "5"]) == 0
  expected, found = read_run(again), read_run(folder / f"run_{name}_int8.trec")
  assert expected.keys() == found.keys()
  for query, ranking in expected.items():
    assert found[query].doc_ids == ranking.doc_ids
    np.testing.assert_allclose(found[query].scores, ranking.scores, atol=1e-6)


def test_encodes_and_searches_as_one_process(together):
  folder, _, _, outputs = together
  same_store_and_run_as_alone(folder, "two")
  assert "60 documents, 8 numbers each" in outputs[0] and "documents" not in outputs[1]


def test_differences_are_named(together):
  _, reports, _, _ = together
  assert reports[1]["differs"].startswith("LEARNING_RATE is 0.2 in this process and 0.1 in process 0; ")
  assert re.match(r".*/of_process_1: not the same folder here and in process 0; ", reports[1]["not shared"])
  assert reports[0]["other documents"][0] == 12
  assert reports[0]["other documents"][1].startswith("document '00' is another in process 0 than in one of the others")
  assert reports[0].keys() & {"differs", "not shared"} == reports[1].keys() & {"other documents"} == set()


def test_the_first_process_is_killed(together):
  _, _, codes, outputs = together
  assert codes == [-signal.SIGKILL, 1]
  assert re.search(r"^test \(process 1 of 2\): process 0 of 2 \(on \S+\) is gone: .*; start again$", outputs[1], re.M)


def test_four_train_as_one_process(four):
  """Also where one of them is signalled, and all go on."""
  folder, reports, _, outputs = four
  assert [report["devices"] for report in reports] == [[8, 2]] * 4
  assert [[own for own, _ in report["fed"]] for report in reports] == [[[0], [0]], [[1], [0]], [[2], [1]], [[3], [1]]]
  assert all(tokens == tiny_batch(1, groups).queries.tokens.tolist() for report in reports
             for (_, tokens), groups in zip(report["fed"], (4, 2), strict=True))
  (step, stopped_by), *others = [report["stopped"] for report in reports]
  assert SIGNAL_AFTER <= step <= SIGNAL_AFTER + 2 and stopped_by == signal.SIGTERM
  assert others == [[step, stopped_by]] * 3 and [report["going on"] for report in reports] == [STEPS] * 4
  assert [f"stopped by SIGTERM after step {step}" in output for output in outputs] == [True, False, False, False]
  ours, expected = metrics(folder / "four"), metrics(folder / "alone")
  assert len(ours) == len(expected) == STEPS
  for name in ("train/loss", "train/grad_norm", "train/param_norm", "train/mrr"):
    np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in expected], rtol=1e-9)


def test_four_encode_and_search_as_one_process(four):
  folder, _, _, outputs = four
  same_store_and_run_as_alone(folder, "four")
  assert ["60 documents, 8 numbers each" in output for output in outputs] == [True, False, False, False]


def test_one_of_four_is_killed(four):
  _, _, codes, outputs = four
  assert codes == [1, -signal.SIGKILL, 1, 1]
  for index in (0, 2, 3):
    assert re.search(rf"^test \(process {index} of 4\): process 1 of 4 \(on \S+\) is gone: .*; start again$",
                     outputs[index], re.M), outputs[index]


BUSY = """
import os, signal, sys, time
from gtr_jax.parallel import processes
processes.join("busy", processes.Cluster("localhost:" + sys.argv[2], 2, int(sys.argv[1])), "start again")
if sys.argv[1] == "0":
  os.kill(os.getpid(), signal.SIGKILL)
while True:
  sum(range(2 * 10**7))  # Python hears of nothing meanwhile.
"""


def test_a_busy_process_says_that_the_first_one_is_killed():
  """jax would abort it before its own thread has a turn."""
  port = str(free_port())
  processes = [subprocess.Popen([sys.executable, "-c", BUSY, str(i), port], stderr=subprocess.PIPE, text=True)
               for i in range(2)]
  outputs = [process.communicate()[1] for process in processes]
  assert [process.returncode for process in processes] == [-signal.SIGKILL, 1], outputs
  assert re.search(r"^busy \(process 1 of 2\): process 0 of 2 \(on \S+\) is gone: .*; start again$", outputs[1], re.M)


def test_train_goes_on_after_one_is_killed(tmp_path):
  """`gtr-jax train` with the real pipeline: each process reads its part of the data."""
  steps = 32
  write_data(tmp_path)
  (tmp_path / "run.gin").write_text(GIN.replace("CHECKPOINT_PERIOD = 8", "CHECKPOINT_PERIOD = 4"))
  command = ["-m", "gtr_jax", "train", f"--gin_file={tmp_path / 'run.gin'}", f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
             f"--gin.TRAIN_STEPS={steps}", f"--data_dir={tmp_path}"]
  environment = {
      "PYTHONPATH": str(tmp_path), "JAX_NUM_CPU_DEVICES": "1",
      "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax_cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
  slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
           "JAX_COORDINATOR_PORT": str(free_port())}

  with Processes(tmp_path, "killed", [[*command, "--distributed"]] * 2, [
      {**environment, **slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLOW_AFTER": "12"} for i in range(2)]
  ) as pair:
    file, checkpoints = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoints"
    # A checkpoint is written while training goes on: the metrics alone do not say that there is one.
    pair.wait_until(lambda: checkpoints.exists() and list_steps(checkpoints) and file.read_text().count("\n") >= 6)
    pair.processes[1].kill()
    assert pair.exit_codes(60) == [1, -signal.SIGKILL]
    before = metrics(tmp_path / "run")
    told = re.search(r"^gtr-jax train \(process 0 of 2\): process 1 of 2 \(on \S+\) is gone: .*; start all processes "
                     r"again; training goes on from checkpoint (\d+)$", pair.outputs()[0], re.M)
    assert told and int(told[1]) in list_steps(checkpoints), pair.outputs()[0]

  by_hand = ["--coordinator_address", f"localhost:{free_port()}", "--num_processes", "2", "--process_id"]
  with Processes(tmp_path, "again", [[*command, *by_hand, i] for i in range(2)], [environment] * 2) as pair:
    assert pair.exit_codes() == [0, 0], pair.outputs()
    assert f"going on at step {told[1]} of {steps}" in pair.outputs()[0] and "going on" not in pair.outputs()[1]
  after = metrics(tmp_path / "run")
  assert [line["step"] for line in after] == list(range(1, steps + 1)) and 6 <= len(before) < steps
  assert without_time(before) == without_time(after[:len(before)])
