"""The command line from end to end, and every wrong input in one line."""

import errno
import io
import json
import re
import subprocess
import sys

import pytest
from tiny_gin import tiny_model
from tiny_model_dir import sentence, write_vocabulary

from gtr_jax.cli import demo, encode
from gtr_jax.cli.main import main
from gtr_jax.data import examples
from gtr_jax.io import data_root

RUN = tiny_model(160, 16) + """
from gtr_jax.evaluation import evaluate
from gtr_jax.losses import in_batch
include 'runs/train.gin'
dual_encoder.DualEncoder.projection_dim = 8
DROPOUT_RATE = 0.0
TRAIN_STEPS = 6
LOG_PERIOD = 2
EVAL_PERIOD = 3
CHECKPOINT_PERIOD = 3
BATCH_SIZE = 16
WARMUP_STEPS = 1
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 12}
QUERY_LENGTH = 8
DOCUMENT_LENGTH = 16
MIXTURE_OR_TASK_MODULE = 'cli_tasks'
MIXTURE_OR_TASK_NAME = 'cli_pairs'
EVALUATORS = [@evaluate.RetrievalEvaluator]
evaluate.RetrievalEvaluator.name = 'small'
BEST_METRIC = 'small/nDCG@10'
"""
TASKS = """
from gtr_jax.data.examples import add_pair_task, jsonl
add_pair_task("cli_pairs", jsonl(train="train.jsonl", validation="dev.jsonl"), query="query", passage="positive",
              negatives="negatives", vocabulary="spiece.model")
"""


def jsonl(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


def write_collection(folder):
  (folder / "qrels").mkdir(parents=True)
  jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": sentence(i, 9)} for i in range(40)])
  jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": sentence(i, 4)} for i in range(8)])
  (folder / "qrels" / "test.tsv").write_text(
      "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(8)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A data folder, a gin file and a collection; the task module is importable."""
  folder = tmp_path_factory.mktemp("cli")
  write_vocabulary(folder / "spiece.model")
  for name, count in (("train", 120), ("dev", 20)):
    jsonl(folder / f"{name}.jsonl", [{"query": sentence(i, 4), "positive": sentence(i, 9)} for i in range(count)])
  (folder / "cli_tasks.py").write_text(TASKS)
  (folder / "run.gin").write_text(RUN)
  write_collection(folder / "small")
  sys.path.insert(0, str(folder))
  yield folder
  sys.path.remove(str(folder))
  data_root.set_data_dir(None)


def train(place, *flags, model_dir="model", run=main):
  return run(["train", "--gin_file", str(place / "run.gin"), f"--gin.MODEL_DIR='{place / model_dir}'",
                   f"--gin.evaluate.RetrievalEvaluator.collection='{place / 'small'}'", "--data_dir", str(place),
                   *flags])


@pytest.fixture(scope="module")
def model(place):
  assert train(place) == 0
  return place / "model"


def test_training_leaves_what_the_docs_say(model, capsys):
  names = {p.name for p in model.iterdir()}
  assert names == {"checkpoints", "config.gin", "metrics.jsonl", "model.json", "parameters.txt", "spiece.model",
                   "tensorboard", "versions.json"}
  lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6]
  evaluated = [line for line in lines if "validation/loss" in line]
  assert [line["step"] for line in evaluated] == [3, 6] and "small/nDCG@10" in evaluated[0]
  assert list((model / "tensorboard").iterdir())
  assert "12 arrays" in (model / "parameters.txt").read_text()


def test_what_is_next_is_not_said_within_the_demo(place, model, capsys, monkeypatch):
  del model  # All is trained.

  def labels():
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].strip()]

  assert train(place) == 0 and labels()[-3:] == ["best", "where", "next"]
  monkeypatch.setattr(demo, "run", lambda args, run_command: train(place, run=run_command))
  assert main(["demo", "--output", str(place / "demo")]) == 0 and labels()[-2:] == ["best", "where"]


def test_train_encode_search_evaluate_mine_report(place, model, capsys):
  store = place / "store"
  assert main(["encode", "--model", str(model), "--collection", str(place / "small"), "--output", str(store)]) == 0
  assert main(["search", "--model", str(model), "--embeddings", str(store), "--query", sentence(3, 4),
                   "--top_k", "2"]) == 0
  answer = capsys.readouterr().out
  assert answer.count("\n  1  ") == answer.count("\n  2  ") == 1 and sentence(3, 9)[:5]
  run = place / "run.trec"
  assert main(["search", "--model", str(model), "--embeddings", str(store), "--queries",
                   str(place / "small/queries.jsonl"), "--output", str(run), "--top_k", "5"]) == 0
  assert len(run.read_text().splitlines()) == 8 * 5
  results = place / "results"
  assert main(["evaluate", "--model", f"ours={model}", "--bm25", "--collection", str(place / "small"), "--output",
                   str(results)]) == 0
  table = capsys.readouterr().out
  assert "nDCG@10" in table and "BM25" in table and "ours" in table
  values = json.loads((results / "results.json").read_text())["systems"]["BM25"]["results"]["small"]
  assert f"{values['nDCG@10']:.4f}" in table
  mined = place / "mined.jsonl"
  assert main(["mine", "--pairs", str(place / "train.jsonl"), "--output", str(mined)]) == 0
  assert len(mined.read_text().splitlines()) == 120
  assert main(["report", "--results", str(results), "--model_dir", str(model), "--output",
                   str(place / "report")]) == 0
  assert "ours" in (place / "report/report.md").read_text()


def test_json_for_machines(place, model, tmp_path, monkeypatch, capfd):
  store, collection = tmp_path / "store", str(place / "small")
  assert main(["encode", "--model", str(model), "--collection", collection, "--output", str(store)]) == 0
  search = ["search", "--model", str(model), "--embeddings", str(store), "--json", "--top_k", "2"]
  texts = [sentence(i, 4) for i in range(8)]

  def answers(words):
    capfd.readouterr()
    assert main(words) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

  found = answers([*search, *(word for text in texts for word in ("--query", text))])
  assert [answer["query"] for answer in found] == texts
  for answer in found:
    assert [result["rank"] for result in answer["results"]] == [1, 2]
    assert answer["results"][0]["score"] >= answer["results"][1]["score"]
    for result in answer["results"]:
      assert result.keys() == {"rank", "score", "id", "title", "text"}
      assert result["text"] == sentence(int(result["id"][1:]), 9)
  monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in texts)))
  typed = answers(search)
  of_file = answers([*search, "--queries", str(place / "small/queries.jsonl")])
  assert [answer.pop("query_id") for answer in of_file] == [f"q{i}" for i in range(8)]
  for again in (typed, of_file):
    assert [[result["id"] for result in answer["results"]] for answer in again] == [
        [result["id"] for result in answer["results"]] for answer in found]
  assert main([*search, "--queries", str(place / "small/queries.jsonl"), "--output", "run.trec"]) == 2
  assert "--json prints answers" in capfd.readouterr().err

  assert main(["evaluate", "--model", str(model), "--bm25", "--collection", collection, "--output",
               str(tmp_path / "results"), "--json"]) == 0
  printed = json.loads(capfd.readouterr().out)
  kept = json.loads((tmp_path / "results/results.json").read_text())
  for of in kept["systems"].values():
    assert len(of.pop("per query")["small"]["nDCG@10"].split()) == 8
  assert printed == kept
  assert printed["significance"]["nDCG@10"]["small"].keys() == {"BM25", model.name}
  assert printed["systems"]["BM25"]["results"]["small"]["nDCG@10"] > 0


def test_quiet_leaves_results_and_errors(place, model, tmp_path, monkeypatch, capfd):
  store, collection = str(tmp_path / "store"), ["--collection", str(place / "small")]
  capfd.readouterr()
  assert main(["encode", "--quiet", "--model", str(model), *collection, "--output", store]) == 0
  monkeypatch.setattr("sys.stdin", io.StringIO("lion\n"))
  assert main(["search", "--quiet", "--json", "--model", str(model), "--embeddings", store]) == 0
  assert main(["evaluate", "--quiet", "--bm25", *collection, "--output", str(tmp_path / "results")]) == 0
  assert train(place, "--quiet", "--gin.TRAIN_STEPS=6") == 0  # It is there: nothing is left to do.
  out, err = capfd.readouterr()
  assert err == "" and "nDCG@10" in out and "type a query" not in out and "going on" not in out
  assert main(["encode", "--quiet", "--model", str(tmp_path), *collection, "--output", store]) == 2
  assert "no model that gtr_jax reads" in capfd.readouterr().err
  assert main(["evaluate", "--bm25", *collection, "--output", str(tmp_path / "results")]) == 0
  assert "BM25 on small: 40 documents" in capfd.readouterr().err  # As ever, in the same process.


@pytest.mark.parametrize(("rows", "message"), [
    ([{"qid": "one"}] * 40, "all of its 16 pairs have one query, by id or text; check which field is the query"),
    ([{"query": "the same", "qid": None}] * 40, "all of its 16 pairs have one query"),
    ([{"positive": "the same"}] * 40, "all of its 16 pairs have one passage"),
], ids=["query_id", "query", "passage"])
def test_a_batch_that_teaches_nothing_is_refused(place, capsys, request, rows, message):
  number = request.node.callspec.id
  jsonl(place / f"{number}.jsonl", [{"qid": i, "query": sentence(i, 4), "positive": sentence(i, 9)} | row
                                    for i, row in enumerate(rows)])
  examples.add_pair_task(f"cli_{number}", examples.jsonl(train=f"{number}.jsonl"), query="query", passage="positive",
                         query_id="qid", vocabulary="spiece.model")
  flags = ("--gin.VALIDATION=None", f"--gin.MIXTURE_OR_TASK_NAME='cli_{number}'")
  assert train(place, *flags, model_dir=number) == 2
  assert re.search(f"the first batch teaches nothing .*{message}", capsys.readouterr().err.splitlines()[-1])
  assert not (place / number).exists()


def test_home_folders_in_gin_files_and_flags(place, model, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(place))
  monkeypatch.chdir(tmp_path)
  try:
    assert main(["train", "--gin_file", "~/run.gin", "--data_dir", "~", "--gin.MODEL_DIR='~/of_home'",
                     "--gin.evaluate.RetrievalEvaluator.collection='~/small'", "--gin.TRAIN_STEPS=0",
                     "--gin.VALIDATION=None", f"--gin.INITIAL_CHECKPOINT_PATH='~/{model.name}'",
                     "--gin.VOCABULARY='~/spiece.model'"]) == 0
    assert (place / "of_home" / "model.json").exists()
    assert main(["evaluate", "--model", "A=~/of_home", "--collection", "~/small", "--output", "~/of_results"]) == 0
    assert main(["report", "--results", "~/of_results", "--model_dir", "~/model", "--output", "~/of_report"]) == 0
  finally:
    data_root.set_data_dir(str(place))
  assert (place / "of_report" / "report.md").exists() and not list(tmp_path.iterdir())


def test_fine_tuning_starts_from_the_parameters(place, model, capsys):
  assert train(place, f"--gin.INITIAL_CHECKPOINT_PATH='{model}'", "--gin.TRAIN_STEPS=0", "--gin.VALIDATION=None",
               model_dir="tuned") == 0
  assert train(place, "--gin.TRAIN_STEPS=0", "--gin.VALIDATION=None", model_dir="random") == 0
  from gtr_jax.inference.load import load_model
  trained, tuned, fresh = (load_model(place / name).params["projection_layer"]["kernel"]
                           for name in ("model", "tuned", "random"))
  assert (trained == tuned).all() and not (trained == fresh).all()
  assert json.loads((place / "tuned/model.json").read_text()) == json.loads((model / "model.json").read_text())


def wrong(capsys, code, *parts):
  """The command failed with one line that holds all parts."""
  lines = capsys.readouterr().err.strip().splitlines()
  assert code == 2
  assert lines[-1].startswith("gtr-jax ") and "Traceback" not in "".join(lines)
  for part in parts:
    assert part in lines[-1], lines[-1]


@pytest.mark.parametrize("flags, parts", [
    (["--gin.BATCH_SIZE=17"], ["17 pairs", "8 data shards"]),
    (["--gin.BATCHSIZE=16"], ["nothing in this run uses BATCHSIZE"]),
    (["--gin.t5.T5Config.vocab_size=40"], ["spiece.model", "40 rows"]),
    (["--gin.MIXTURE_OR_TASK_NAME='nothing'"], ["nothing", "cli_pairs"]),
    (["--gin.MIXTURE_OR_TASK_MODULE='no_such_tasks'"], ["no_such_tasks"]),
    (["--gin.INITIAL_CHECKPOINT_PATH='nowhere'"], ["nowhere"]),
    (["--gin.partitioning.make_mesh.model=3"], ["8 devices"]),
    (["--gin.BEST_METRIC='large/nDCG@10'"], ["large/nDCG@10"]),
    (["--gin.BATCH_SIZE=-8"], ["BATCH_SIZE"]),
    (["--gin.TRAIN_STEPS=-1"], ["TRAIN_STEPS"]),
    (["--gin.TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 8}"], ["TASK_FEATURE_LENGTHS"]),
    (["--gin.NEGATIVES_PER_EXAMPLE=-1"], ["NEGATIVES_PER_EXAMPLE"]),
    (["--gin.DROPOUT_RATE='x'"], ["DROPOUT_RATE"]),
])
def test_wrong_run_writes_nothing(place, capsys, flags, parts):
  wrong(capsys, train(place, *flags, model_dir="never"), *parts)
  assert not (place / "never").exists()


def test_negatives_that_no_example_has(place, capsys):
  wrong(capsys, train(place, "--gin.NEGATIVES_PER_EXAMPLE=1", "--gin.VALIDATION=None", model_dir="no_negatives"),
        "cli_pairs", "NEGATIVES_PER_EXAMPLE")


def test_folders_of_something_else_are_left_alone(place, capsys):
  before = sorted(str(p) for p in (place / "small").rglob("*"))
  wrong(capsys, train(place, model_dir="small"), "small", "MODEL_DIR")
  collection = ["--collection", str(place / "small")]
  wrong(capsys, main(["evaluate", "--bm25", *collection, "--output", str(place / "small")]), "another folder")
  wrong(capsys, main(["evaluate", "--bm25", *collection, "--output", str(place / "run.gin")]), "run.gin")
  assert sorted(str(p) for p in (place / "small").rglob("*")) == before


def test_evaluating_again_keeps_what_was_there(place, model, tmp_path):
  command = ["evaluate", "--collection", str(place / "small"), "--output", str(tmp_path / "out")]
  assert main([*command, "--bm25"]) == 0
  assert main([*command, "--model", str(model)]) == 0
  systems = json.loads((tmp_path / "out/results.json").read_text())["systems"]
  assert set(systems) == {"BM25", "model"} and all("small" in of["results"] for of in systems.values())


def test_half_of_a_surrogate_pair(place, model, tmp_path, capsys):
  write_collection(tmp_path / "c")
  with (tmp_path / "c/corpus.jsonl").open("a") as f:
    f.write('{"_id": "x", "title": "", "text": "\\ud800"}\n')
  wrong(capsys, main(["encode", "--model", str(model), "--collection", str(tmp_path / "c"), "--output",
                          str(tmp_path / "store")]), "corpus.jsonl:41", "Unicode")


def test_checkpoint_of_another_size(place, model, capsys):
  before = sorted(str(p) for p in model.rglob("*"))
  wrong(capsys, train(place, "--gin.t5.T5Config.emb_dim=32"), str(model))
  assert sorted(str(p) for p in model.rglob("*")) == before
  wrong(capsys, train(place, f"--gin.INITIAL_CHECKPOINT_PATH='{model}'", "--gin.t5.T5Config.emb_dim=32",
                      model_dir="never"), "encoder_norm", "[16]", "[32]")
  assert not (place / "never").exists()


@pytest.mark.parametrize("name, line, parts", [
    ("bad_cut_off", "{\"query\": \"a\"", ["bad.jsonl:2"]),
    ("bad_empty", "{\"query\": \"\", \"positive\": \"b\"}", ["bad.jsonl:2", "query"]),
    ("bad_missing", "{\"query\": \"a\"}", ["bad.jsonl:2", "positive"])])
def test_wrong_line_of_training_data(place, capsys, name, line, parts):
  from gtr_jax.data.examples import add_pair_task
  from gtr_jax.data.examples import jsonl as source
  add_pair_task(name, source(train="bad.jsonl"), query="query", passage="positive", vocabulary="spiece.model")
  (place / "bad.jsonl").write_text(json.dumps({"query": "a", "positive": "b"}) + "\n" + line + "\n")
  code = train(place, f"--gin.MIXTURE_OR_TASK_NAME='{name}'", "--gin.VALIDATION=None", model_dir="never")
  wrong(capsys, code, *parts)
  assert not (place / "never").exists()


@pytest.mark.parametrize("change, parts", [
    (("corpus.jsonl", '{"title": "", "text": "no id"}'), ["corpus.jsonl:41", "_id"]),
    (("corpus.jsonl", '{"_id": "d1", "title": "", "text": "twice"}'), ["corpus.jsonl:41", "d1"]),
    (("corpus.jsonl", '{"_id": "e", "title": "", "text": ""}'), ["corpus.jsonl:41", "empty"]),
    (("corpus.jsonl", '{"_id": "e", '), ["corpus.jsonl:41"]),
    (("queries.jsonl", '{"_id": "q9", "text": ""}'), ["queries.jsonl:9"]),
    (("qrels/test.tsv", "q1\tunknown\t1"), ["test.tsv:10", "unknown"]),
    (("qrels/test.tsv", "unknown\td1\t1"), ["test.tsv:10", "unknown"]),
])
def test_wrong_collection(tmp_path, capsys, change, parts):
  write_collection(tmp_path / "c")
  with (tmp_path / "c" / change[0]).open("a") as f:
    f.write(change[1] + "\n")
  code = main(["evaluate", "--bm25", "--collection", str(tmp_path / "c"), "--output", str(tmp_path / "out")])
  wrong(capsys, code, *parts)
  assert not (tmp_path / "out").exists()


def test_store_of_another_model(place, model, tmp_path, capsys):
  store = str(tmp_path / "store")
  collection = ["--collection", str(place / "small")]
  assert main(["encode", "--model", str(model), *collection, "--output", store]) == 0
  assert train(place, "--gin.RANDOM_SEED=1", "--gin.TRAIN_STEPS=0", "--gin.VALIDATION=None", model_dir="other") == 0
  capsys.readouterr()
  wrong(capsys, main(["encode", "--model", str(place / "other"), *collection, "--output", store]), store)
  wrong(capsys, main(["search", "--model", str(place / "other"), "--embeddings", store, "--query", "x"]), store)
  assert main(["search", "--model", str(model), "--embeddings", store, "--query", "x"]) == 0


def test_wrong_paths(place, tmp_path, capsys):
  here = str(tmp_path)
  wrong(capsys, main(["search", "--model", here, "--embeddings", here, "--query", "x"]), here)
  wrong(capsys, main(["mine", "--pairs", "nowhere.jsonl", "--output", "out.jsonl"]), "nowhere.jsonl")
  wrong(capsys, main(["report", "--results", "nowhere", "--output", str(tmp_path / "r")]), "nowhere")
  wrong(capsys, main(["train", "--gin_file", "nowhere.gin"]), "nowhere.gin")
  wrong(capsys, main(["train"]), "--gin_file")
  wrong(capsys, main(["train", "--gin_file", "models/t5_tiny.gin"]), "runs/train.gin")
  pairs = str(place / "train.jsonl")
  wrong(capsys, main(["mine", "--pairs", pairs, "--output", pairs]), "overwrite")


def test_demo_does_not_empty_what_is_not_its_own(tmp_path, capsys):
  (tmp_path / "thesis.txt").write_text("years of work")
  wrong(capsys, main(["demo", "--output", str(tmp_path)]), str(tmp_path))
  assert (tmp_path / "thesis.txt").exists()


def test_errors_of_the_system_without_a_file(monkeypatch, tmp_path, capsys):
  for error, text in ((OSError(errno.ENOSPC, "No space left on device"), "No space left on device; check the room"),
                      (OSError("a\nb"), "a b; check the room"), (TimeoutError(), "TimeoutError; check")):
    def fail(args, error=error):
      raise error
    monkeypatch.setattr(encode, "run", fail)
    wrong(capsys, main(["encode", "--model=a", "--collection=b", "--output=c"]), text)


def test_numbers_that_are_none(capsys):
  for value in ("x", "0", "2.5", "-1"):
    with pytest.raises(SystemExit):
      main(["search", "--model=a", "--embeddings=b", f"--top_k={value}"])
    assert capsys.readouterr().err.endswith(f"--top_k: {value!r}: give a positive whole number\n")
  with pytest.raises(SystemExit):
    main(["convert", "a", "b", "--query_length=99999999999"])
  assert capsys.readouterr().err == ("gtr-jax convert: --query_length: '99999999999': give a whole number from 2 to "
                                     "2,147,483,647 (a token and EOS)\n")


def test_unknown_flags_are_errors():
  for command in (["encode", "--modell", "x"], ["fly"], []):
    with pytest.raises(SystemExit) as e:
      main(command)
    assert e.value.code == 2


@pytest.mark.parametrize("command", ["prepare", "train", "encode", "search", "evaluate", "mine", "report", "demo"])
def test_help(command, capsys):
  with pytest.raises(SystemExit) as e:
    main([command, "--help"])
  assert e.value.code == 0 and f"gtr-jax {command}" in capsys.readouterr().out


def test_python_m(tmp_path):
  out = subprocess.run([sys.executable, "-m", "gtr_jax", "train", "--list"], capture_output=True, text=True, check=True)
  assert "runs/pretrain.gin" in out.stdout
