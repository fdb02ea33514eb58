"""Sweeps: which commands a grid comes to, what is shared, what goes on after failures and interruptions."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gtr_jax.errors import InputError
from gtr_jax.sweep import results, scripts
from gtr_jax.sweep import run as running
from gtr_jax.sweep.plan import Folders, Job, Sweep, make_plan

STAGES = {"pretrain": ["pretrain.gin", "TRAIN_STEPS = 5"], "mine": "mine --pairs p.jsonl",
          "finetune": ["finetune.gin", "MIXTURE_OR_TASK_NAME = 'mined_{mine}'"]}
AXES = {"stages": {"PT": {"stages": ["pretrain"]}, "FT": {"stages": ["mine", "finetune"]}, "PT+FT": {}},
        "size": {"small": ["small.gin"], "large": ["large.gin", "BATCH_SIZE = 2"]},
        "temperature": {0.1: {"finetune": ["T = 0.1"]}, "0.2": {"finetune": ["T = 0.2"]}}}
SWEEP = {"stages": STAGES, "axes": AXES, "evaluate": "--collection c"}


def planned(folder="out", refused=(), **sweep):
  """A plan; a training resolves to its files and bindings, sorted, the last value of each."""
  def resolve(files, bindings):
    if wrong := set(refused) & {*files, *bindings}:
      raise InputError(f"nothing in this run uses {wrong}")
    values = dict(binding.split("=", 1) for binding in bindings)
    return repr((files, sorted(values.items())))

  return make_plan(Sweep(**{**SWEEP, **sweep}), Folders(str(folder), "data", ("--data_dir", "data")), resolve)


def words_of(plan, run, command):
  return [plan.jobs[name].words for run_ in plan.runs if run_.name == run for name in run_.jobs
          if plan.jobs[name].words[0] == command]


def test_a_grid_and_what_its_runs_share():
  plan = planned()
  assert [run.name for run in plan.runs] == [f"{s}-{z}-{t}" for s in AXES["stages"] for z in AXES["size"]
                                             for t in (0.1, 0.2)]
  assert plan.runs[0].axes == {"stages": "PT", "size": "small", "temperature": "0.1"}
  jobs = [re.sub("_[0-9a-f]{8}$", "", name) for name in plan.jobs]
  # Pretraining once for each size; mining with BM25 once, and once with each pretrained model; BM25 evaluated once.
  assert {name: jobs.count(name) for name in ("BM25", "pretrain", "mine", "finetune")} == {
      "BM25": 1, "pretrain": 2, "mine": 3, "finetune": 8}
  assert sum(name.startswith("evaluate") for name in jobs) == 10  # PT does not depend on the temperature.
  of_run = {run.name: run for run in plan.runs}
  assert of_run["PT-small-0.1"].results == of_run["PT-small-0.2"].results != of_run["PT-large-0.1"].results
  names = list(plan.jobs)
  for job in plan.jobs.values():
    assert all(names.index(before) < names.index(job.name) for before in job.after)


def test_a_runs_commands():
  plan = planned()
  run = next(run for run in plan.runs if run.name == "PT+FT-large-0.2")
  pretrain, mine, finetune, evaluation = (plan.jobs[name] for name in run.jobs)
  assert pretrain.words == ("train", "--gin_file=large.gin", "--gin_file=pretrain.gin", "--gin.TRAIN_STEPS=5",
                            "--gin.BATCH_SIZE=2", f"--gin.MODEL_DIR='out/{pretrain.name}'", "--data_dir", "data")
  assert mine.words == ("mine", "--pairs", "p.jsonl", "--model", f"out/{pretrain.name}", "--embeddings",
                        "out/embeddings", "--output", mine.makes)
  mined = Path(mine.makes).stem  # Another sweep of the same words has a file of its own.
  assert os.path.dirname(mine.makes) == "data/mined" and re.fullmatch(rf"{mine.name}_[0-9a-f]{{8}}", mined)
  elsewhere = planned("out2").jobs[mine.name]
  assert elsewhere.makes != mine.makes and os.path.dirname(elsewhere.makes) == "data/mined"
  assert finetune.words == (
      "train", "--gin_file=large.gin", "--gin_file=finetune.gin", f"--gin.MIXTURE_OR_TASK_NAME='mined_{mined}'",
      "--gin.BATCH_SIZE=2", "--gin.T=0.2", f"--gin.INITIAL_CHECKPOINT_PATH='out/{pretrain.name}'",
      f"--gin.MODEL_DIR='out/{finetune.name}'", "--data_dir", "data")
  assert evaluation.words == ("evaluate", "--model", f"PT+FT-large-0.2=out/{finetune.name}", "--collection", "c",
                              "--output", "out/results/PT+FT-large-0.2")
  assert [job.after for job in (pretrain, mine, finetune, evaluation)] == [
      (), (pretrain.name,), (pretrain.name, mine.name), (finetune.name,)]
  assert "INITIAL_CHECKPOINT_PATH" not in str(words_of(plan, "FT-large-0.2", "train"))
  assert "--model" not in words_of(plan, "FT-large-0.2", "mine")[0]
  assert planned("elsewhere").jobs.keys() == plan.jobs.keys()  # Names do not depend on the folder.


def test_what_a_training_starts_from_can_be_said():
  again = {**STAGES, "finetune": [*STAGES["finetune"], "INITIAL_CHECKPOINT_PATH = %T5"],
           "again": ["a.gin", "INITIAL_CHECKPOINT_PATH = '{pretrain}'"]}
  plan = planned(stages=again, axes={})
  pretrain, _, finetune, last, _ = plan.runs[0].jobs
  assert plan.runs[0].name == "run"
  assert "--gin.INITIAL_CHECKPOINT_PATH=%T5" in plan.jobs[finetune].words
  assert f"--gin.INITIAL_CHECKPOINT_PATH='out/{pretrain}'" in plan.jobs[last].words
  assert plan.jobs[last].after == (pretrain,)


def test_a_list_of_runs_and_no_evaluation():
  plan = planned(runs={"a": {"size": "small", "stages": "PT"}, "b": {"size": "large"}}, evaluate="")
  assert {run.name: (len(run.jobs), run.results) for run in plan.runs} == {"a": (1, None), "b": (3, None)}
  assert plan.bm25_results is None


@pytest.mark.parametrize(("changed", "message"), [
    ({"stages": {}}, "stages is empty"),
    ({"stages": {"a b": []}}, "'a b' cannot name a stage"),
    ({"stages": {"a": "evaluate x"}}, "begins with 'mine '"),
    ({"stages": {"mine": "mine --pairs 'x"}, "axes": {}}, "run run, stage mine: \"mine --pairs 'x\" is not a command"),
    ({"stages": {"mine": "mine --pairs x"}, "axes": {}}, "run run, none of its stages is a training"),
    ({"axes": {"a": {}}}, "a has no values"),
    ({"axes": {"a": {"b": {"tune": []}}}}, "axes: a b: there is no stage 'tune'; there are pretrain, mine, finetune"),
    ({"axes": {"a": {"b": {"stages": ["tune"]}}}}, "no stage 'tune' to run"),
    ({"axes": {"a": {"b": "x.gin"}}}, "plan.Sweep.axes['a']['b'] is 'x.gin': give a list of gin files and bindings"),
    ({"axes": {"a": {"b/c": []}}}, "'b/c' cannot name a run"),
    ({"axes": {"a": {"BM25": []}}}, "'BM25' cannot name a run"),
    ({"axes": {"a": {"x-y": [], "x": []}, "b": {"z": [], "y-z": []}}}, "two runs are called x-y-z"),
    ({"runs": {"r": {"colour": "red"}}}, "run r: there is no axis 'colour'; there are stages, size, temperature"),
    ({"runs": {"r": {"size": "huge"}}}, "axis size has no value 'huge'; it has small, large"),
    ({"runs": {}}, "runs is empty"),
    ({"evaluate": "--model x"}, "the sweep gives --model itself"),
    ({"evaluate": "--collection c --output=y --model=x"}, "the sweep gives --model and --output itself"),
    ({"stages": {"a": ["x.gin", "B = '{c}'"]}, "axes": {}}, "stage a: {c} stands for what a stage before"),
    ({"axes": {"a": {"b": {"stages": ["finetune"]}}}}, "run b, stage finetune: {mine} stands for what"),
    ({"refused": ["large.gin"]}, "run PT-large-0.1, stage pretrain: nothing in this run uses {'large.gin'}"),
])
def test_bad_sweeps(changed, message):
  with pytest.raises(InputError, match=re.escape(message)):
    planned(**changed)


@pytest.mark.parametrize(("changed", "message"), [
    ({"stages": ["a.gin"]}, "plan.Sweep.stages is ['a.gin']: give a dictionary, in {}"),
    ({"stages": {"a": 3}}, "plan.Sweep.stages['a'] is 3: give a list of gin files and bindings, in [], or a command"),
    ({"stages": {"a": None}}, "plan.Sweep.stages['a'] is None: give a list"),
    ({"stages": {"a": ["x.gin", 3]}}, "plan.Sweep.stages['a'][1] is 3: give a string"),
    ({"stages": {"a": [["x.gin"]]}}, "plan.Sweep.stages['a'][0] is ['x.gin']: give a string"),
    ({"stages": {"a": {"b": []}}}, "plan.Sweep.stages['a'] is {'b': []}: give a list"),
    ({"stages": {3: []}}, "plan.Sweep.stages is {3: []}: give keys that are each a string, not 3"),
    ({"stages": {"a": ["x.gin", " "]}}, "plan.Sweep.stages: a: one of its entries is empty"),
    ({"axes": ["size"]}, "plan.Sweep.axes is ['size']: give a dictionary, in {}"),
    ({"axes": None}, "plan.Sweep.axes is None: give a dictionary"),
    ({"axes": {"size": ["small"]}}, "plan.Sweep.axes['size'] is ['small']: give a dictionary"),
    ({"axes": {"size": 3}}, "plan.Sweep.axes['size'] is 3: give a dictionary"),
    ({"axes": {"size": {"small": 3}}}, "plan.Sweep.axes['size']['small'] is 3: give a list of gin files and bindings"),
    ({"axes": {"size": {"small": None}}}, "plan.Sweep.axes['size']['small'] is None: give a list"),
    ({"axes": {"size": {"small": [3]}}}, "plan.Sweep.axes['size']['small'][0] is 3: give a string"),
    ({"axes": {"size": {"small": {"finetune": 3}}}}, "plan.Sweep.axes['size']['small']['finetune'] is 3: give a list"),
    ({"axes": {"size": {"small": {"stages": "finetune"}}}}, "['small']['stages'] is 'finetune': give a list"),
    ({"axes": {"size": {("a", 1): []}}}, "plan.Sweep.axes['size'] is {('a', 1): []}: give keys that are each a"),
    ({"axes": {3: {"small": []}}}, "give keys that are each a string, not 3"),
    ({"axes": {" ": {"small": []}}}, "' ' names no axis"),
    ({"axes": {"size": {1: [], "1": []}}}, "size has values that are written alike: 1, '1'"),
    ({"axes": {"size": {"..": []}}}, "'..' cannot name a run"),
    ({"axes": {"size": {-1: []}}}, "'-1' cannot name a run"),
    ({"axes": {"size": {"small": [""]}}}, "plan.Sweep.axes: size small: one of its entries is empty"),
    ({"runs": ["a"]}, "plan.Sweep.runs is ['a']: give a dictionary, in {}, or None"),
    ({"runs": {"a": ["small"]}}, "plan.Sweep.runs['a'] is ['small']: give a dictionary"),
    ({"runs": {"a": {"size": ["small"]}}}, "plan.Sweep.runs['a']['size'] is ['small']: give a string or a number"),
    ({"common": "x.gin"}, "plan.Sweep.common is 'x.gin': give a list of gin files and bindings, in []"),
    ({"common": [3]}, "plan.Sweep.common[0] is 3: give a string"),
    ({"evaluate": ["--collection c"]}, "plan.Sweep.evaluate is ['--collection c']: give a string"),
    ({"evaluate": None}, "plan.Sweep.evaluate is None: give a string"),
    ({"bm25": "yes"}, "plan.Sweep.bm25 is 'yes': give True or False"),
])
def test_sweeps_of_other_types(changed, message):
  with pytest.raises(InputError, match=re.escape(message)) as e:
    planned(**changed)
  assert "\n" not in str(e.value)


class FakeProcess:
  """Ends with `code` at the second poll; makes what the job makes."""

  def __init__(self, job, code):
    self.job, self.code, self.polls = job, code, 0
    self.ended_by = None

  def poll(self):
    self.polls += 1
    if self.ended_by is None and self.polls < 2:
      return None
    if self.ended_by is not None:
      return -self.ended_by
    if self.code == 0:
      Path(self.job.makes).parent.mkdir(parents=True, exist_ok=True)
      Path(self.job.makes).touch()
    return self.code

  def terminate(self):
    self.ended_by = signal.SIGTERM

  def kill(self):
    self.ended_by = signal.SIGKILL


class Runner:
  """Runs the jobs of a plan without processes; `failing` are the stages and values that end with an error."""

  def __init__(self, tmp_path, monkeypatch, **sweep):
    monkeypatch.setattr(running, "POLL_SECONDS", 0)
    monkeypatch.chdir(tmp_path)
    self.sweep = Sweep(**{**SWEEP, **sweep})
    self.plan, self.started, self.at_once = planned(**sweep), [], 0
    self.processes = []

  def run(self, workers=2, failing=lambda job: False, on_start=lambda job: None):
    self.started, self.processes = [], []

    def start(job, log, worker):
      assert worker < workers
      self.at_once = max(self.at_once, 1 + sum(process.polls < 2 for process in self.processes))
      with log.open("a") as out:
        out.write("step 1\ngtr-jax train: it went wrong\n" if failing(job) else "fine\n")
      self.started.append(job.name)
      self.processes.append(FakeProcess(job, 2 if failing(job) else 0))
      on_start(job)
      return self.processes[-1]

    return running.run_jobs(self.plan.jobs, "out", workers, start, say=lambda line: None)

  def write_results(self):
    for number, run in enumerate(self.plan.runs):
      if os.path.exists(run.results):
        Path(run.results).write_text(json.dumps(found(run.name, number / 10)))
    Path(self.plan.bm25_results).write_text(json.dumps(found("BM25", 0.5)))


def found(system, value):
  """Results of one system on one collection."""
  return {"collections": {"c": {"documents": 3, "queries": 2, "median words": 5.0}},
          "systems": {system: {"weights_hash": None, "results": {"c": {"nDCG@10": value}}}}}


def test_failures_are_kept_apart_and_tried_again(tmp_path, monkeypatch):
  runner = Runner(tmp_path, monkeypatch)

  def fails(job):
    return job.name.startswith("pretrain") and "--gin_file=large.gin" in job.words

  failed = runner.run(failing=fails).failed
  broken, = (name for name in failed if name.startswith("pretrain"))
  assert failed[broken] == "gtr-jax train: it went wrong"
  needing = {name for run in runner.plan.runs if broken in run.jobs for name in run.jobs[run.jobs.index(broken):]}
  assert set(failed) == needing
  assert set(runner.started) == set(runner.plan.jobs) - needing | {broken}
  assert runner.at_once == 2
  runner.write_results()
  whole = results.collect(runner.plan, runner.sweep, "out", failed)
  assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == whole
  assert whole["axes"] == {"stages": ["PT", "FT", "PT+FT"], "size": ["small", "large"], "temperature": [0.1, 0.2]}
  for run in whole["runs"]:
    assert run["axes"]["temperature"] in (0.1, 0.2)
    of_broken = run["axes"]["size"] == "large" and run["axes"]["stages"] != "FT"
    assert (run["results"] is None) == of_broken == (run["failed"] is not None)
    assert not of_broken or run["failed"] == f"{broken}: {failed[broken]} (log: out/logs/{broken}.log)"
  lines = results.table(whole, "out").splitlines()
  assert lines[0].split() == ["nDCG@10", "c"] and lines[1].split() == ["BM25", "0.5000"]
  assert [line.split()[1] for line in lines[2:6]] == ["0.1000", "0.1000", "-", "-"]  # Runs 0 and 1 share one file.
  assert lines[-1].startswith(f"PT+FT-large-0.2: {broken}: ")

  assert runner.run().failed == {}
  assert set(runner.started) == needing
  runner.write_results()
  assert not any(run["failed"] for run in results.collect(runner.plan, runner.sweep, "out", {})["runs"])
  runner.run()
  assert runner.started == []

  # What was made has to have been made for the same.
  runner.plan = planned(evaluate="--collection c --collection d")
  runner.run()
  assert all(name.startswith(("evaluate", "BM25")) for name in runner.started) and len(runner.started) == 11


def test_what_depends_on_what_is_made_again_is_made_again(tmp_path, monkeypatch):
  runner = Runner(tmp_path, monkeypatch)
  runner.run()
  jobs, run = runner.plan.jobs, next(run for run in runner.plan.runs if run.name == "PT+FT-small-0.1")
  pretrain, mine, finetune, evaluation = run.jobs

  def depending(*names):
    found = set(names)
    for job in jobs.values():
      found |= {job.name} if found & set(job.after) else set()
    return found

  # A training: the interrupted sweep has made it, and nothing of what depends on it.
  Path(jobs[pretrain].makes).rename(tmp_path / "elsewhere")
  Path(jobs[finetune].makes).write_text("of the first")
  assert running.done_jobs("out", jobs) == jobs.keys() - depending(pretrain)
  assert len(depending(pretrain)) == 1 + 1 + 1 + 2 + 2
  assert runner.run(workers=1, on_start=lambda job: os.kill(os.getpid(), signal.SIGINT)).stopped_by
  assert runner.started == [pretrain]
  assert not Path(jobs[finetune].makes).exists()
  assert Path(f"{jobs[finetune].makes}.old1").read_text() == "of the first"
  runner.run(failing=lambda job: job.name == finetune)
  Path(jobs[finetune].makes).write_text("half of it")
  runner.run()
  assert set(runner.started) == {finetune, evaluation}
  assert Path(jobs[finetune].makes).read_text() == "half of it"  # It went on.
  assert running.done_jobs("out", jobs) == jobs.keys()

  # An evaluation is of the training that is there, however it came there.
  running.marker_of("out", finetune).write_text(f"{finetune}\n1\n")
  assert jobs.keys() - running.done_jobs("out", jobs) == {evaluation}
  runner.run()
  assert runner.started == [evaluation]

  Path(jobs[mine].makes).unlink()
  runner.run()
  assert set(runner.started) == depending(mine) and len(runner.started) == 5
  assert Path(f"{jobs[finetune].makes}.old2").exists()
  runner.run()
  assert runner.started == []


@pytest.mark.parametrize("received", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_and_going_on(tmp_path, monkeypatch, received):
  runner = Runner(tmp_path, monkeypatch)

  def interrupt(job):
    if len(runner.started) == 4:
      os.kill(os.getpid(), received)

  before = signal.getsignal(received)
  outcome = runner.run(on_start=interrupt)
  assert outcome == ({}, received) and signal.getsignal(received) == before
  assert len(runner.started) == 4 and runner.processes[-1].ended_by == signal.SIGTERM
  first = set(runner.started) - {process.job.name for process in runner.processes if process.ended_by}
  assert runner.run() == ({}, None)
  assert first and set(runner.started) == set(runner.plan.jobs) - first

  process = FakeProcess(next(iter(runner.plan.jobs.values())), 0)  # One that does not heed SIGTERM.
  process.terminate = lambda: os.kill(os.getpid(), received)
  (tmp_path / "out" / "done" / "BM25").unlink()
  assert running.run_jobs(runner.plan.jobs, "out", 1, lambda *_: os.kill(os.getpid(), received) or process,
                          say=lambda line: None).stopped_by == received
  assert process.ended_by == signal.SIGKILL


def test_one_sweep_at_a_time_in_a_folder(tmp_path, monkeypatch):
  python = tmp_path / "python"
  python.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" "$@"\nexec sleep 600\n')
  python.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(python))
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  job, folder = Job("a", ("train", "x"), (), "a", "a"), tmp_path / "out"
  with running.locked(folder) as lock:
    child = running.starter(lock, workers=2)(job, tmp_path / "log", 1)
    with pytest.raises(InputError, match="at work in this folder"), running.locked(folder):
      pass
  with pytest.raises(InputError, match="at work"), running.locked(folder):  # What it started still runs.
    pass
  while not (tmp_path / "log").read_text():
    assert child.poll() is None
  assert (tmp_path / "log").read_text() == "6,7 -P -m gtr_jax train x\n"
  assert os.getpgid(child.pid) == child.pid  # ctrl-C at the terminal does not reach it.
  child.kill()
  child.wait()
  with running.locked(folder):
    pass


def test_why_a_job_ended(tmp_path):
  log = tmp_path / "log"
  assert running.last_error(log) == ""
  log.write_text("a\ngtr-jax train: wrong\nI0000 cudart_stub.cc:31] no GPU\n 50%|###  | 1/2 [00:01, 1.2it/s]\r\n\n")
  assert running.last_error(log) == "gtr-jax train: wrong"


def test_the_script_can_be_run_by_hand_and_by_slurm(tmp_path, monkeypatch):
  runner = Runner(tmp_path, monkeypatch)
  text = scripts.commands(runner.plan, done={"BM25"})
  assert [tuple(shlex.split(line)[1:]) for line in text.splitlines() if line.startswith("gtr-jax")] == [
      job.words for job in runner.plan.jobs.values()]
  assert "# BM25; done\n" in text

  # sbatch that runs what it is given at once, and prints a number; what it depends on must be done.
  fake = tmp_path / "bin" / "sbatch"
  fake.parent.mkdir()
  fake.write_text(f"""#!{sys.executable}
import json, re, subprocess, sys
from pathlib import Path
state = Path({str(tmp_path / 'state')!r})
done = json.loads(state.read_text()) if state.exists() else []
flags = [word for word in sys.argv[1:] if word.startswith("-")]
scripts = [word for word in sys.argv[1:] if not word.startswith("-")]
number = 1 + max([int(name.split("_")[0]) for name in done], default=0)
for flag in flags:
  if flag.startswith("--dependency=after"):
    kind, *needs = flag.partition("=")[2].split(":")
    assert all(need in done or (kind == "afterany" and f"{{need}}_0" in done) for need in needs), (flag, done)
  if flag.startswith("--array="):
    last = int(flag.partition("-")[2].partition("-")[2].partition("-")[2])
    for task in range(last + 1):
      environment = {{"SLURM_ARRAY_TASK_ID": str(task), "PATH": "/usr/bin:/bin"}}
      subprocess.run(["bash", scripts[0]], env=environment, check=True)
      done.append(f"{{number}}_{{task}}")
  if flag.startswith("--wrap="):
    Path({str(tmp_path / 'collected')!r}).write_text(flag)
state.write_text(json.dumps(done))
assert "--partition=gpu" in flags
print(f"{{number}};cluster")
""")
  fake.chmod(0o755)
  monkeypatch.setattr(sys, "executable", "echo")
  path = scripts.write_slurm(runner.plan.jobs, "out", ["sweep", "--collect"])
  subprocess.run(["bash", path, "--partition=gpu"], check=True, cwd=tmp_path,
                 env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"})
  for job in runner.plan.jobs.values():
    assert re.fullmatch(re.escape(job.stamp) + r"\n\d+\n", running.marker_of("out", job.name).read_text())
    assert running.started_of("out", job.name).read_text() == "".join(
        running.marker_of("out", name).read_text() for name in job.after)
    assert running.log_of("out", job).read_text() == f"-P -m gtr_jax {' '.join(job.words)}\n"
  submit = path.read_text()
  for job in runner.plan.jobs.values():
    script, = (script for script in path.parent.glob("group_*.sh") if f"/{job.name}.log" in script.read_text())
    line, = (line for line in submit.splitlines() if str(script) in line)
    assert line.count("${group_") == len(job.after) and ("=afterok:$" in line) == bool(job.after)
  assert "sweep --collect" in (tmp_path / "collected").read_text()
