"""`gtr-jax sweep`: one sweep for real, with trainings, mining, evaluation and a run that fails; what is refused before
anything starts; and the sweeps that come with gtr_jax."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import GIN, STEPS, sentence
from tiny_model_dir import corpus, write_collection, write_vocabulary

from gtr_jax.cli import sweep
from gtr_jax.cli.main import main
from gtr_jax.sweep import data_keys

TASKS = """
from gtr_jax.data.examples import add_pair_task, jsonl
add_pair_task("sweep_pairs", jsonl(train="pairs.jsonl"), query="query", passage="positive", vocabulary="spiece.model",
              shuffle_buffer_size=64)
"""
TINY = GIN.split("WARMUP_STEPS")[0].replace("include 'models/t5_1_0.gin'", "include 'models/t5_tiny.gin'").replace(
    f"TRAIN_STEPS = {STEPS}", "TRAIN_STEPS = 3").replace("in_batch.InBatchLoss.temperature", "TEMPERATURE") + """
BATCH_SIZE = 8
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 12}
MIXTURE_OR_TASK_MODULE = 'sweep_tasks'
MIXTURE_OR_TASK_NAME = 'sweep_pairs'
VOCABULARY = 'spiece.model'
VALIDATION = None
"""
REAL = """
from __gin__ import dynamic_registration
from gtr_jax.sweep import plan
plan.Sweep.stages = {
  'pretrain': ['tiny.gin'],
  'mine': 'mine --pairs data/pairs.jsonl --last_rank 10',
  'finetune': ['tiny.gin', "MIXTURE_OR_TASK_MODULE = 'gtr_jax.tasks.mined'", "MIXTURE_OR_TASK_NAME = 'mined_{mine}'",
               "NEGATIVES_PER_EXAMPLE = 1"]}
plan.Sweep.axes = {
  'stages': {'PT': {'stages': ['pretrain']}, 'PT+FT': {}},
  'temperature': {'0.05': {'finetune': ['TEMPERATURE = 0.05']}, 'wrong': {'finetune': ["VOCABULARY = 'gone.model'"]}}}
plan.Sweep.evaluate = '--collection made_up --similarity cosine --similarity dot'
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Data, a task, a collection, and the gin files of a small sweep, in the current folder."""
  (tmp_path / "data").mkdir()
  write_vocabulary(tmp_path / "data" / "spiece.model")
  write_collection(tmp_path / "made_up", corpus(30))
  pairs = [{"query": sentence(i, 3), "positive": sentence(i, 4 + i % 9)} for i in range(60)]
  (tmp_path / "data" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
  for name, text in (("sweep_tasks.py", TASKS), ("tiny.gin", TINY), ("real.gin", REAL)):
    (tmp_path / name).write_text(text)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_a_real_sweep(folder):
  environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_NUM_CPU_DEVICES": "1",
                 "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(folder / "jax_cache"),
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
  done = subprocess.run([sys.executable, "-m", "gtr_jax", "sweep", "--gin_file=real.gin", "--output=out",
                         "--data_dir=data", "--workers=2"], env=environment, capture_output=True, text=True)
  logs = {path.stem: path.read_text() for path in (folder / "out" / "logs").glob("*.log")}
  assert done.returncode == 1, (done.stdout, done.stderr, logs)
  assert sorted(name.partition("_")[0] for name in logs) == ["BM25", "evaluate", "evaluate", "finetune", "finetune",
                                                             "mine", "pretrain"]
  sweep = json.loads((folder / "out" / "sweep.json").read_text())
  by_name = {run["name"]: run for run in sweep["runs"]}
  assert list(by_name) == ["PT-0.05", "PT-wrong", "PT+FT-0.05", "PT+FT-wrong"]
  assert sweep["axes"] == {"stages": ["PT", "PT+FT"], "temperature": ["0.05", "wrong"]}
  assert "gone.model: no such vocabulary" in by_name["PT+FT-wrong"]["failed"]
  assert [name for name, run in by_name.items() if run["failed"]] == ["PT+FT-wrong"]
  values = {}
  for name in ("PT-0.05", "PT+FT-0.05"):
    of_run = json.loads((folder / "out" / by_name[name]["results"]).read_text())
    assert list(of_run["systems"]) == [name, f"{name} (dot)"]
    values[name] = [f"{of['results']['made_up']['nDCG@10']:.4f}" for of in of_run["systems"].values()]
  cosine, dot = values["PT-0.05"]
  rows = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("PT-")]
  assert rows == [["PT-0.05 (cosine)", cosine], ["PT-0.05 (dot)", dot], ["PT-wrong (cosine)", cosine],
                  ["PT-wrong (dot)", dot]]
  assert re.search(r"BM25 +0\.\d{4}\n", done.stdout) and re.search(r"PT\+FT-wrong +-\n", done.stdout)
  finetuned = Path(by_name["PT+FT-0.05"]["model_dir"])
  assert f"initial_checkpoint_path = 'out/{Path(by_name['PT-0.05']['model_dir']).name}'" in (
      finetuned / "config.gin").read_text()
  report = (folder / "out" / "report" / "report.md").read_text()
  assert "# Report" in report and "### similarity" in report
  mined, = (folder / "data" / "mined").glob("*.jsonl")
  assert all(len(json.loads(line)["negatives"]) == 1 for line in mined.read_text().splitlines())


@pytest.mark.parametrize(("old", "new", "message"), [
    ("'tiny.gin'", "'not_here.gin'", "run PT-0.05, stage pretrain: not_here.gin: no such gin file"),
    ("TEMPERATURE = 0.05", "TEMPERATUR = 0.05", "nothing in this run uses TEMPERATUR"),
    ("--last_rank 10", "--last_rnk 10", "there is no flag --last_rnk; did you mean --last_rank?"),
    ("--collection made_up", "--colection made_up", "there is no flag --colection; did you mean --collection?"),
    ("plan.Sweep.evaluate", "plan.Sweep.evalute", "evalute"),
    ("plan.Sweep.stages", "plan.Sweep.runs", "binds no plan.Sweep.stages"),
    ("TEMPERATURE = 0.05", "TEMPERATURE = 0.0", "run PT+FT-0.05, stage finetune: TEMPERATURE is 0.0: give a"),
    ("'TEMPERATURE = 0.05'", '"BATCH_SIZE = \'x\'"', "BATCH_SIZE is 'x': give a positive whole number"),
    ("TEMPERATURE = 0.05", "MICROBATCH_SIZE = 3", "(MICROBATCH_SIZE) is 3: it must divide the batch of 8"),
    ("plan.Sweep.evaluate = '", "plan.Sweep.bm25 = '", "real.gin:12: plan.Sweep.bm25 is '--collection"),
    ("'mine': 'mine --pairs data/pairs.jsonl --last_rank 10'", "'mine': 3", "Sweep.stages['mine'] is 3: give a list"),
])
def test_all_is_checked_before_anything_starts(folder, capsys, old, new, message):
  (folder / "real.gin").write_text(REAL.replace(old, new))
  assert main(["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data"]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("gtr-jax sweep: ") and message in error
  assert main(["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data", "--print"]) == 2
  assert not (folder / "out").exists()


def jobs_of(printed):
  return set(re.findall(r"^# (\w+_[0-9a-f]{8})\b", printed, flags=re.M))


def test_commands_are_known_by_the_content_of_their_data(folder, capsys):
  def jobs():
    assert main(["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data", "--print"]) == 0
    data_keys._of_tasks.cache_clear()  # As in another process.
    return jobs_of(capsys.readouterr().out)

  before = jobs()
  (folder / "data" / "pairs.jsonl").touch()
  assert jobs() == before
  text = (folder / "data" / "pairs.jsonl").read_text()
  (folder / "data" / "pairs.jsonl").write_text(text.replace('"query": "', '"query": "q', 1))
  changed = jobs()
  assert changed.isdisjoint(before) and len(changed) == len(before)
  (folder / "data" / "pairs.jsonl").write_text(text)
  assert jobs() == before
  write_vocabulary(folder / "data" / "spiece.model", split_digits=False)
  assert jobs().isdisjoint(before)


def test_an_edited_collection_is_another(folder):
  def evaluation():
    return sweep._data_key(["evaluate", "--collection", "made_up", "--similarity", "dot"])

  before = evaluation()
  assert before and sweep._data_key(["evaluate", "--collection", "beir/nq"]) == ""
  (folder / "made_up").rename(folder / "moved")
  assert sweep._data_key(["evaluate", "--collection", "moved"]) == before
  (folder / "moved").rename(folder / "made_up")
  qrels = next((folder / "made_up" / "qrels").iterdir())
  qrels.write_text(qrels.read_text().replace("\t1\n", "\t10\n", 1))
  assert evaluation() != before


def test_a_sweep_in_a_bucket(folder, capsys):
  assert main(["sweep", "--gin_file=real.gin", "--output=gs://bucket/out", "--data_dir=data"]) == 2
  assert "gs://bucket/out: a sweep's folder lies on this machine" in capsys.readouterr().err


def test_damaged_markers_are_of_what_is_not_done(folder, capsys):
  flags = ["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data"]
  assert main([*flags, "--slurm"]) == 0
  first = capsys.readouterr().out
  for name in re.findall(r"^# (\w+)", (folder / "out" / "commands.sh").read_text(), flags=re.M)[1:]:
    for place in ("done", "started"):
      (folder / "out" / place / name).write_bytes(b"\xff\0")
  (folder / "out" / "done" / "evaluate_PT-0.05").write_bytes(b"")
  assert main([*flags, "--slurm"]) == 0
  assert capsys.readouterr().out == first


def test_collections_are_looked_for_before_anything_starts(folder, capsys, monkeypatch):
  flags = ["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data"]
  for given, message in [
      ("--collection nowhere", "plan.Sweep.evaluate: nowhere: no such folder"),
      ("--collection made_up --split dev", "dev.tsv: no such file; splits here: test"),
      ("--collection data", "data: no corpus.jsonl"),
      ("--collection beir/robust04 --collection beir/nq", f"into {folder}/data/beir/robust04; beir/nq would be"),
      ("--bm25_is_missing", "there is no flag --bm25_is_missing"), ("--similarity dot", "nothing to evaluate on"),
  ]:
    (folder / "real.gin").write_text(REAL.replace("--collection made_up", given))
    assert main(flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "out").exists()
    if "nowhere" in given:  # Commands can be printed for another machine.
      assert main([*flags, "--print"]) == 0
      assert message in capsys.readouterr().err
  (folder / "real.gin").write_text(REAL.replace("--collection made_up", "--collection made_up --collection beir/nq"))
  assert main([*flags, "--slurm"]) == 0
  assert "downloaded to" in (error := capsys.readouterr().err) and error.endswith(": beir/nq\n")


def test_what_mining_needs_is_looked_for(folder, capsys):
  (folder / "real.gin").write_text(REAL.replace("data/pairs.jsonl", "data/nothing.jsonl"))
  flags = ["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data"]
  assert main(flags) == 2
  assert "data/nothing.jsonl: no such file or folder" in capsys.readouterr().err.splitlines()[-1]
  assert not (folder / "out").exists()
  assert main([*flags, "--print"]) == 0
  assert "data/nothing.jsonl: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("text, message", [
    (b"", "damaged, not JSON (Expecting value"), (b"\xff", "damaged, not UTF-8"), (b"[" * 100_000, "nested too deeply"),
    (b"[]", "what it holds is [], and should be a dictionary"), (b"9" * 5000, "a number of more than 4,300 digits"),
    (b'{"stages": ["a"]}', "['axes'] is missing, and should be a list"),
    (b'{"stages": ["a"], "axes": {"a": 1}}', "['axes'] is {'a': 1}, and should be a list"),
    (b'{"stages": [1], "axes": []}', "['stages'][0] is 1, and should be a string"),
])
def test_a_damaged_plan_is_one_line(folder, capsys, text, message):
  flags = ["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data"]
  (folder / "out").mkdir()
  (folder / "out/plan.json").write_bytes(text)
  assert main([*flags, "--print"]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("gtr-jax sweep: out/plan.json: damaged, ") and message in error
  assert error.endswith("; put it back, or give another --output")


def test_printed_commands_name_the_data_folder(folder, capsys, monkeypatch):
  monkeypatch.setenv("GTR_DATA_DIR", "data")
  assert main(["sweep", "--gin_file=real.gin", "--output=out", "--slurm"]) == 0
  for line in (folder / "out" / "commands.sh").read_text().splitlines():
    if line.startswith(("gtr-jax train", "gtr-jax evaluate")):
      assert f"--data_dir {folder}/data" in line
  assert f"--data_dir {folder}/data --collect" in (folder / "out" / "slurm" / "submit.sh").read_text()


@pytest.mark.parametrize(("flags", "message"), [
    ("--first_rank 9", "ranks 9 to 3"), ("--split dev", "--split says which judgements"),
    ("--num_negatives 4", "4 negatives: ranks 1 to 3 have fewer"),
    ("--output x.jsonl", "the sweep gives --output itself"), ("--output=x.jsonl", "the sweep gives --output itself"),
    ("--embeddings x --model=y --margin x", "give a number")])
def test_mining_is_checked_before_anything_runs(folder, capsys, flags, message):
  (folder / "real.gin").write_text(REAL.replace("--last_rank 10", f"--last_rank 3 {flags}"))
  assert main(["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data", "--print"]) == 2
  assert message in capsys.readouterr().err.splitlines()[-1] and not (folder / "out").exists()


def test_the_folder_of_something_else(folder, capsys):
  def error(*flags):
    assert main(["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data", *flags]) == 2
    return capsys.readouterr().err.splitlines()[-1]

  (folder / "out").mkdir()
  (folder / "out" / "thesis.tex").touch()
  assert "not empty, and no sweep made it" in error()
  (folder / "out" / "thesis.tex").rename(folder / "out" / sweep.PLAN_FILE)
  (folder / "out" / sweep.PLAN_FILE).write_text('{"stages": ["train"], "axes": ["size"]}')
  assert "holds a sweep of stages train over size" in error()
  (folder / "out" / sweep.PLAN_FILE).unlink()
  assert main(["sweep", "--gin_file=real.gin", "--output=out", "--data_dir=data", "--slurm"]) == 0
  (folder / "out" / "done" / "evaluate_PT-0.05").write_text("pretrain_00000000 --collection made_up\n17\n")
  assert "run PT-0.05 was evaluated as pretrain_00000000 and is pretrain_" in error()


@pytest.mark.parametrize(("file", "runs", "trainings"), [
    ("size", "base large xl xxl", {"pretrain": 4, "finetune": 4}),
    ("data_fraction", "base-0.1 base-1.0 large-0.1 large-1.0 xl-0.1 xl-1.0 xxl-0.1 xxl-1.0",
     {"pretrain": 4, "finetune": 8}),
    ("pretraining", "PT-base PT-large PT-xl PT-xxl FT-base FT-large FT-xl FT-xxl PT+FT-base PT+FT-large PT+FT-xl "
     "PT+FT-xxl", {"pretrain": 4, "finetune": 8}),
    ("finetuning_data", "base-MSMARCO base-NQ large-MSMARCO large-NQ", {"pretrain": 2, "finetune": 4}),
    ("temperature", "base-0.005 base-0.01 base-0.02 base-0.05 base-0.1", {"pretrain": 1, "finetune": 5}),
    ("batch_size", "base-256 base-512 base-1024 base-2048 base-4096", {"pretrain": 1, "finetune": 5}),
    ("mining", "base-given base-mined", {"pretrain": 1, "finetune": 1, "mine": 1, "again": 1}),
    ("demo", "PT-0.02 PT-0.1 FT-0.02 FT-0.1 PT+FT-0.02 PT+FT-0.1", {"pretrain": 1, "mine": 2, "finetune": 4}),
])
def test_the_sweeps_that_come_with_it(capsys, tmp_path, file, runs, trainings):
  assert main(["sweep", f"--gin_file=sweeps/{file}.gin", f"--output={tmp_path}/out", "--print"]) == 0
  printed = capsys.readouterr().out
  assert set(re.findall(r"# evaluate_([\w.+-]+)", printed)) | {run for shared in re.findall(r"for ([^;\n]+)", printed)
                                                              for run in shared.split(", ")} == set(runs.split())
  jobs = re.findall(r"^# (\w+)_[0-9a-f]{8}\b", printed, flags=re.MULTILINE)
  assert {stage: jobs.count(stage) for stage in jobs} == trainings
