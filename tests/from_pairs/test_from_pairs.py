"""`gtr-jax train --pairs` and `gtr_jax.train`: from a file of pairs and any model to a trained one."""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
import table_files
from metrics_lines import without_times
from tiny_model_dir import sentence, write_collection, write_model_dir

import gtr_jax
from gtr_jax import config
from gtr_jax.checkpoints.steps import find_checkpoint
from gtr_jax.cli.main import main
from gtr_jax.collections.collection import read_collection
from gtr_jax.data.pipeline import TrainingBatches
from gtr_jax.errors import InputError
from gtr_jax.formats.convert import convert
from gtr_jax.from_pairs import data, plan, start
from gtr_jax.from_pairs.options import Options
from gtr_jax.inference.load import load_model
from gtr_jax.io import bars, data_root, lock
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.training.run import TrainingRun

PAIRS = 200


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A data folder with a file of pairs, some of them of one query, and a model."""
  folder = tmp_path_factory.mktemp("from_pairs")
  write_model_dir(folder / "model")
  with (folder / "my.jsonl").open("w") as f:
    for i in range(PAIRS):
      f.write(json.dumps({"question": f"{i // 2} {sentence(i // 2, 4)}", "answer": f"{i} {sentence(i, 9)}",
                          "negatives": [f"no {i} {sentence(i + 3, 7)}"]}) + "\n")
  yield folder


@pytest.fixture(autouse=True)
def data_dir(place):
  data_root.set_data_dir(str(place / "data"))
  yield
  data_root.set_data_dir(None)


def options(place, init, **given):
  return Options(**{"pairs": PairsJsonl((str(place / "my.jsonl"),)), "init": str(init), "output": str(place / "out"),
                    "batch_size": 16, **given})


def configured(place, init, bindings=(), **given):
  """What gin binds of the run and of its batches."""
  said = []
  text = plan.gin_text(options(place, init, **given), bindings=bindings, say=said.append)
  config.load(TrainingRun, (), bindings, first=text)
  return config.bindings(TrainingRun), config.bindings(TrainingBatches), said


def bare_t5(folder, to):
  """The T5 alone of a sentence-transformers folder."""
  shutil.copytree(folder, to)
  for name in ("modules.json", "config_sentence_transformers.json"):
    (to / name).unlink()
  for name in ("1_Pooling", "2_Dense", "3_Normalize"):
    shutil.rmtree(to / name)
  (to / "sentence_bert_config.json").unlink(missing_ok=True)
  return to


def flags_of_trained(place, steps=6):
  return ["--batch_size", "16", "--steps", str(steps), "--eval", str(place / "small"), "--gin.EVAL_PERIOD=3"]


def test_every_form_of_model(place):
  """Sizes, vocabulary, lengths and prompts come from the model."""
  ours = load_model(place / "model")
  convert(place / "model", place / "published", "sentence-transformers")
  convert(place / "model", place / "checkpoint_0", "t5x")
  for name in ("model", "published"):
    run, batches, said = configured(place, place / name)
    assert run["model"].to_json() == ours.encoder.to_json() and run["initial_checkpoint_path"] == str(place / name)
    assert (data_root.resolve(batches["vocabulary"])).read_bytes() == ours.tokenizer.model
    assert batches["extra_ids"] == ours.tokenizer.extra_ids
    lengths = (16, 32) if name == "model" else (32, 32)  # sentence-transformers has one for both
    assert (run["query_length"], run["document_length"]) == lengths and said[-1] == f"start     {place / name}"
  t5x, config = place / "checkpoint_0", ours.encoder.to_json()["config"]
  with pytest.raises(InputError, match="comes without a vocabulary.*--vocabulary"):
    configured(place, t5x)
  run, batches, _ = configured(place, t5x, vocabulary=str(place / "vocabulary.model"), extra_ids=0, query_length=9)
  assert run["model"].to_json()["config"] == config and run["model"].projection_dim == ours.encoder.projection_dim
  assert (run["query_length"], run["document_length"]) == (9, 512) and batches["feature_lengths"]["inputs"] <= 9
  run, _, said = configured(place, bare_t5(place / "published", place / "bare"))
  assert run["model"].to_json()["config"] == config and run["model"].projection_dim == 768
  assert "a T5 alone: its projection to 768 is drawn at random" in said[-1]


def test_random_weights(place, monkeypatch):
  run, batches, said = configured(place, "t5_tiny")
  assert run["initial_checkpoint_path"] is None and said[-1].startswith("start     RANDOM WEIGHTS of the size t5_tiny")
  assert run["model"].config.vocab_size % 128 == 0 and run["model"].config.num_layers == 2
  assert batches["vocabulary"].startswith("vocabularies/") and batches["extra_ids"] == 0
  run, batches, said = configured(place, "t5_1_1_tiny", vocabulary=str(place / "vocabulary.model"))
  assert batches["extra_ids"] == 100 and str(place / "vocabulary.model") in said[-1]
  assert run["model"].config.mlp_activations == ("gelu", "linear")
  assert {"t5_small", "mt5_base", "t5_1_1_xxl"} <= set(start.sizes()) and "t5_1_1" not in start.sizes()


def test_defaults_that_fit(place):
  run, batches, said = configured(place, place / "model", batch_size=None)
  pairs = json.loads(re.search(r'[\d,]+ to train', said[0])[0].split()[0].replace(",", ""))
  assert batches["batch_size"] == 128 and batches["negatives_per_example"] == 1
  assert run["train_steps"] == round(3 * pairs / 128) == 4 and run["eval_period"] == 1
  assert batches["row_lengths"]["inputs"] >= batches["feature_lengths"]["inputs"] <= 16
  assert batches["microbatch_size"] is None  # It fits.
  assert run["best_metric"] == "held_out/nDCG@10"
  run, batches, _ = configured(place, place / "model", steps=40, learning_rate=0.02, loss="ring", early_stopping=2,
                               bindings=("BATCH_SIZE=32", "t5.T5Config.remat='layer'"))
  assert batches["batch_size"] == 32 and run["model"].config.remat == "layer"
  assert (run["train_steps"], run["eval_period"], run["early_stopping"]) == (40, 4, 2)
  assert type(run["loss"]).__name__ == "RingLoss"
  assert float(run["optimizer"].learning_rate(4)) == pytest.approx(0.02)


def test_a_length_that_is_cut_to_the_texts_is_said(place):
  _, batches, said = configured(place, "t5_tiny", query_length=100_000, document_length=8)
  assert batches["feature_lengths"]["inputs"] < 100 and batches["feature_lengths"]["targets"] == 8
  lengths = [line for line in said if "tokens on average" in line]
  assert "(--query_length 100,000 is more than any of these texts needs)" in lengths[0]
  assert "is more than" not in lengths[1] and "(--document_length reads more)" in lengths[1]


def test_early_stopping_with_a_measure_of_ones_own(place):
  """What goes on top of the flags counts."""
  run, _, _ = configured(place, place / "model", early_stopping=2, validation_share=0.0,
                         bindings=("BEST_METRIC='mine/x'",))
  assert run["early_stopping"] == 2


def test_microbatches_from_the_memory_that_is_there(place, monkeypatch):
  monkeypatch.setattr("gtr_jax.training.memory.available_bytes", lambda: 3_000_000)
  _, batches, _ = configured(place, place / "model", batch_size=128)
  small = batches["microbatch_size"]
  assert small and 128 % small == 0 and small % 8 == 0
  monkeypatch.setattr("gtr_jax.training.memory.available_bytes", lambda: 30_000_000)
  _, batches, _ = configured(place, place / "model", batch_size=128)
  assert (batches["microbatch_size"] or 128) > small


def test_accelerators(place, monkeypatch):
  """bfloat16, little kept for the backward pass, layers in a loop; parameters divided where they do not fit one."""
  monkeypatch.setattr("jax.default_backend", lambda: "gpu")
  monkeypatch.setattr("gtr_jax.training.memory.available_bytes", lambda: 80 * 10**9)
  run, _, _ = configured(place, place / "model")
  config = run["model"].config
  assert (config.dtype_on("gpu"), config.remat, config.scan_layers) == ("bfloat16", "layer", True)
  assert run["mesh"].shape["data"] == 8
  monkeypatch.setattr("gtr_jax.training.memory.available_bytes", lambda: 50_000)
  run, _, _ = configured(place, place / "model")
  assert run["mesh"].shape["fsdp"] == 8


def test_broken_lines_are_counted(place, tmp_path, capsys):
  for broken, are in ((1, "1 broken line is left out, the first: "), (2, "2 broken lines are left out, the first: ")):
    path = tmp_path / f"{broken}.jsonl"
    path.write_text('["a", "b"]\n["c", "d"]\n' + "3\n" * broken)
    data.prepare(PairsJsonl((str(path),)), 0.0)
    assert are in capsys.readouterr().err


def test_where_pairs_are_prepared(place, monkeypatch):
  name = data.prepare(PairsJsonl((str(place / "my.jsonl"),)), None).name
  _, _, said = configured(place, place / "model")
  assert said[0].endswith(f"; prepared in {place / 'data' / name}")
  monkeypatch.setenv("HOME", str(place))
  assert configured(place, place / "model")[2][0].endswith(f"; prepared in ~/data/{name}")


@pytest.mark.parametrize("form", ["x.parquet", "x.csv", "dataset"])
def test_tables(place, tmp_path, form):
  """The same pairs are held out, and the same are trained on; how many there are is known before."""
  rows = [json.loads(line) for line in (place / "my.jsonl").read_text().splitlines()]
  of_lines = data.prepare(PairsJsonl((str(place / "my.jsonl"),)), 0.1)
  path = table_files.write(tmp_path, form, rows)
  of_table = data.prepare(PairsJsonl((path,)), None)
  assert list(data.sample(of_table.name, "train")) == list(data.sample(of_lines.name, "train"))
  assert of_table.validation == of_lines.validation > 0 and of_table.fields == of_lines.fields
  assert data._estimated_pairs((path,)) == (PAIRS + 1 if form == "x.csv" else PAIRS)
  with pytest.raises(InputError, match="no such model"):  # The path was understood.
    gtr_jax.train(f"{tmp_path}/*", init=str(tmp_path / "nothere"), output=str(tmp_path / "out"))


def test_held_out_is_whole_queries(place):
  pairs = data.prepare(PairsJsonl((str(place / "my.jsonl"),)), None)
  assert pairs.train + pairs.validation == PAIRS and pairs.train % 2 == pairs.validation % 2 == 0
  queries = {split: {text for of in data.sample(pairs.name, split, PAIRS) for text in of["query"]}
             for split in ("train", "validation")}
  assert not queries["train"] & queries["validation"]
  collection = read_collection(pairs.collection)
  assert sorted(collection.queries) == sorted(queries["validation"])
  documents = dict(zip(collection.documents.ids, collection.documents.texts, strict=True))
  for query_id, query in zip(collection.query_ids, collection.queries, strict=True):
    number = int(query.split()[0])
    assert sorted(int(documents[doc_id].split()[0]) for doc_id in collection.qrels[query_id]) == [
        2 * number, 2 * number + 1]
  assert len(documents) == pairs.train // 2 > 2 * pairs.validation  # with the hard negatives, and passages to train on
  assert pairs.sizes == {"queries": len(collection.queries), "documents": len(documents)}
  again = data.prepare(PairsJsonl((str(place / "my.jsonl"),)), None)
  assert again == pairs
  assert data.prepare(PairsJsonl((str(place / "my.jsonl"),)), 0.0).collection is None


def train(place, *flags, output="mine"):
  return main(["train", "--pairs", str(place / "my.jsonl"), "--init", str(place / "model"), "--output",
               str(place / output), "--data_dir", str(place / "data"), *flags])


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
  from gtr_jax.collections.corpus import Documents
  write_collection(place / "small", Documents([f"d{i}" for i in range(40)], [""] * 40,
                                              [sentence(i, 9) for i in range(40)]))
  assert train(place, *flags_of_trained(place)) == 0
  return place / "mine"


def labels_of(out):
  return [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]


def test_one_line(place, trained, capfd):
  lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
  measured = [line for line in lines if "validation/loss" in line]
  assert [line["step"] for line in measured] == [0, 3, 6]
  assert all({"small/nDCG@10", "held_out/nDCG@10"} <= line.keys() for line in measured)
  fields = json.loads((trained / "model.json").read_text())
  assert fields["lengths"] == {"query": 16, "document": 32}
  assert fields["trained_lengths"]["query"] <= 16
  # The same command has nothing left to do, and says so.
  before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
  assert train(place, *flags_of_trained(place)) == 0
  out, err = capfd.readouterr()
  assert labels_of(out) == ["gtr_jax", "pairs", "fields", "lengths", "start", "already", "done", "best", "where",
                            "next"], out
  assert "already trained to step 6; nothing to do" in out and "train:" not in err
  assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
  assert 'fields    query: "question"; passage: "answer"; negatives: "negatives"\n' in out
  best = max(measured[1:], key=lambda line: line["small/nDCG@10"])["small/nDCG@10"]
  start = measured[0]["small/nDCG@10"]  # Which six steps may not better.
  assert re.search(f"small/nDCG@10 {best:.4f}.* before training.*", out)[0].count(f"{start:.4f}") == 1
  for command in ("evaluate", "search", "convert"):
    assert f"gtr-jax {command} " in out
  assert f"--collection {place / 'small'}" in out


def training_of(run, tmp_path):
  """(base model, lines) of what the model card of a run says of its training."""
  card = tmp_path / "card"
  shutil.rmtree(card, ignore_errors=True)
  convert(run, card, "sentence-transformers")
  text = (card / "README.md").read_text()
  base = re.search("^base_model: (.*)$", text.split("---")[1], re.MULTILINE)
  return base and base[1], text.partition("## Training\n\n")[2].partition("\n\n")[0].splitlines()


def test_model_card(place, trained, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(trained, run)
  pairs = data.prepare(PairsJsonl((str(place / "my.jsonl"),)), None)
  best = int(find_checkpoint(run).name)
  (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (
      {"step": 0, "held_out/nDCG@10": 0.5}, {"step": best - 1, "held_out/nDCG@10": 0.9}, {"step": best, "loss": 1.5},
      {"step": best, "small/nDCG@10": 0.1, "held_out/nDCG@10": 0.75})) + '{"step": 7, "lo')  # The process was killed.
  base, lines = training_of(run, tmp_path)
  assert base is None and lines[:3] == [
      f'- training data: my.jsonl ({pairs.train} pairs; query: "question"; passage: "answer"; negatives: "negatives")',
      "- started from: model",
      f"- steps: 6, {6 * 16 / pairs.train:.3g} times the pairs" + f"; this is step {best}" * (best != 6)]
  assert lines[-1] == ("- nDCG@10 on held-out pairs: 0.7500 (0.5000 before training), of "
                       f"{pairs.sizes['queries']} queries among {pairs.sizes['documents']} documents")
  assert not [line for line in lines if str(place) in line]
  # Of a checkpoint before the end; without what was measured.
  text = (run / "config.gin").read_text()
  (run / "config.gin").write_text(text.replace("TrainingRun.train_steps = 6", "TrainingRun.train_steps = 1200"))
  (run / "metrics.jsonl").unlink()
  _, lines = training_of(run / "checkpoints" / "6", tmp_path)
  assert lines[2] == f"- steps: 1,200, {1200 * 16 / pairs.train:.3g} times the pairs; this is step 6"
  assert not [line for line in lines if "held-out" in line]


def test_a_model_card_knows_the_cache_of_the_hub(trained, tmp_path):
  run, cached = tmp_path / "run", tmp_path / "hub" / "models--sentence-transformers--gtr-t5-base" / "snapshots" / "ab12"
  shutil.copytree(trained, run)
  cached.mkdir(parents=True)
  text = (trained / "config.gin").read_text()
  for path in (cached, cached.parent.parent):
    (run / "config.gin").write_text(re.sub("(initial_checkpoint_path = ).*", rf"\g<1>'{path}'", text))
    base, lines = training_of(run, tmp_path)
    assert base == "sentence-transformers/gtr-t5-base" and lines[1] == f"- started from: {base}"


@pytest.mark.parametrize("initial, base, start", [
    ("'sentence-transformers/gtr-t5-base'", "sentence-transformers/gtr-t5-base", "sentence-transformers/gtr-t5-base"),
    ("None", None, "random weights"), ("'/somewhere/runs/one/checkpoints/40'", None, "one")])
def test_what_a_model_card_says_it_started_from(trained, tmp_path, initial, base, start):
  run = tmp_path / "run"
  shutil.copytree(trained, run)
  text, changes = re.subn("(initial_checkpoint_path = ).*", rf"\g<1>{initial}", (trained / "config.gin").read_text())
  assert changes == 1
  (run / "config.gin").write_text(text)
  found, lines = training_of(run, tmp_path)
  assert (found, lines[1]) == (base, f"- started from: {start}")
  # Of other data than those that the run was made for, and of no pairs, only what the configuration says.
  for change in (("mixture_or_task_name = '.*'", "mixture_or_task_name = 'other'"), (".*trained_on = .*\n", "")):
    (run / "config.gin").write_text(re.sub(*change, text))
    found, lines = training_of(run, tmp_path)
    assert found is None and lines[0].startswith("- training data (seqio task or mixture): '")
    assert "- steps: 6" in lines and not [line for line in lines if "held-out" in line]
    assert (f"- started from: {initial}" in lines) == (initial != "None")


def test_changed_settings_are_said(place, trained, capfd):
  changed = place / "changed"
  shutil.copytree(trained, changed)
  text = (changed / "config.gin").read_text()
  start = json.loads((changed / "metrics.jsonl").read_text().splitlines()[0])["small/nDCG@10"]
  # Nothing is left to train.
  assert train(place, *flags_of_trained(place), "--learning_rate", "0.01", output="changed") == 0
  out, err = capfd.readouterr()
  assert "changed: this run was begun with LEARNING_RATE = 0.001 (now 0.01); nothing is trained anew" in err
  assert "already trained to step 6; nothing to do" in out and "train:" not in err
  assert (changed / "config.gin").read_text() == text and not list(changed.glob("config-*"))
  # It goes on.
  assert train(place, *flags_of_trained(place, steps=8), "--learning_rate", "0.01", output="changed") == 0
  out, err = capfd.readouterr()
  assert ("this run was begun with LEARNING_RATE = 0.001 (now 0.01), TRAIN_STEPS = 6 (now 8); from step 6 on the new "
          "ones hold, with another schedule of the learning rate") in err
  assert (changed / "config-6.gin").read_text() == text
  assert "linear_decay.peak = 0.01\n" in (changed / "config.gin").read_text()
  assert labels_of(out) == ["gtr_jax", "pairs", "fields", "lengths", "start", "model", "mesh", "batch", "steps",
                            "texts", "memory", "measured", "output", "going", "done", "best", "where", "next"], out
  assert re.search(r"measured  validation, small \(12 queries among 40 documents\), held_out \(\d+ queries among \d+ "
                   r"documents\) every 3 steps; the best small/nDCG@10 is kept\n", out), out
  assert f"({start:.4f} before training)" in out


def test_a_folder_that_is_trained_in(place, capsys):
  output = place / "taken"
  output.mkdir()
  with lock.locked(output, wait=False):
    assert train(place, "--batch_size", "16", "--steps", "2", output="taken") == 2
  assert capsys.readouterr().err.splitlines()[-1] == (
      f"gtr-jax train: {output}: another process is training there; wait for it, or give another --output (MODEL_DIR)")
  assert not list(output.iterdir())


def test_out_of_memory(place, capsys, monkeypatch):
  monkeypatch.setattr("gtr_jax.training.run.create_state", lambda *_: jnp.zeros((1 << 50,)).block_until_ready())
  assert train(place, "--batch_size", "16", "--steps", "2", output="never") == 1
  assert "out of memory (RESOURCE_EXHAUSTED" in capsys.readouterr().err.splitlines()[-1]
  assert not (place / "never").exists()


def test_epochs_are_the_nearest_steps(place):
  pairs = data.prepare(PairsJsonl((str(place / "my.jsonl"),)), None).train
  for epochs, steps in ((1.4 * 128 / pairs, 1), (1.6 * 128 / pairs, 2), (0.01, 1)):
    assert configured(place, place / "model", batch_size=128, epochs=epochs)[0]["train_steps"] == steps


def test_config_gin_repeats_it(place, trained):
  assert main(["train", f"--gin_file={trained / 'config.gin'}", "--data_dir", str(place / "data"),
               "--output", str(place / "again")]) == 0
  metrics = [[without_times(json.loads(line))
              for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (trained, place / "again")]
  assert metrics[0] == metrics[1] and metrics[0]


def test_from_python(place, trained, capfd):
  pairs = [(f"{i} {sentence(i, 4)}", f"{i} {sentence(i, 9)}") for i in range(40)]
  capfd.readouterr()
  model = gtr_jax.train(pairs, init=trained, output=place / "python", steps=2, batch_size=16,
                        bindings=("EVAL_PERIOD=2",), quiet=True)
  said = capfd.readouterr()
  assert [line.split()[0] for line in said.out.splitlines()] == ["done", "where"], said.out
  assert "train:" not in said.err and bars.shown()
  assert model.similarity(model.encode_queries([pairs[0][0]]), model.encode_documents([pairs[0][1]])).shape == (1, 1)
  text = (place / "python" / "config.gin").read_text()
  assert str(trained) in text and "negatives_per_example = 0" in text


@pytest.mark.parametrize("pairs, message", [
    ([], "pairs is empty: give the path of a file"), (None, "pairs is None: give the path of a file"),
    ([1, 2], r"pairs\[0\] is 1 .*: give .* tuples \(query, passage, …\) or of dicts"),
    ([("a", "b"), "text"], r"pairs\[1\] is 'text' \(a text alone is no pair\): give"),
    ([("a", {1})], r"pairs\[0\] is .*not JSON serializable"), ([("a",)], "a list of 1"),
    ({"query": ["a"], "positive": ["b"]}, r"a mapping of 'query', 'positive': give .*; of columns, list\(zip\("),
    ("nothere.jsonl", "'nothere.jsonl': no such file; give the path"),
    (["what is it?", "it is"], r"'what is it\?': no such file; give .* tuples"),
    (["long " * 99], "long.*: no such file"),
], ids=str)
def test_wrong_pairs_from_python(place, pairs, message):
  with pytest.raises(InputError, match=message) as raised:
    gtr_jax.train(pairs, init=place / "model", output=place / "never")
  assert "\n" not in str(raised.value) and not (place / "never").exists()


@pytest.mark.parametrize("given, message", [
    ({"init": gtr_jax.Embedder}, "init is <class .*: give the name or the path of a model"),
    ({"init": None}, "init is None: give"), ({"output": 3}, "output is 3: give the path of a folder"),
    ({"epochs": 0}, "^epochs is 0: give a number above 0"), ({"steps": 1.5}, "^steps is 1.5: give"),
    ({"query": 3}, "^query is 3: give"), ({"eval": 3}, "^eval is 3: give the path or name of a collection"),
    ({"eval": [None]}, "^eval is None: give"), ({"eval": Path("nothing")}, "^nothing"),
])
def test_wrong_arguments_from_python(place, given, message):
  pairs = [(f"{i} a", f"{i} b") for i in range(12)]
  with pytest.raises(InputError, match=message):
    gtr_jax.train(pairs, **{"init": place / "model", "output": place / "never", **given})
  assert not (place / "never").exists()


def test_what_is_hardly_meant_is_said(place, trained, tmp_path, capsys):
  few = tmp_path / "few.jsonl"
  few.write_text("".join(json.dumps([f"{i} {sentence(i, 4)}", sentence(i, 9) + f" {i}"]) + "\n" for i in range(12)))
  assert main(["train", "--pairs", str(few), "--init", str(trained), "--output", str(tmp_path / "out"),
               "--gin.BATCH_SIZE=16", "--steps", "4", "--data_dir", str(tmp_path / "data"),
               "--gin.WARMUP_STEPS=3"]) == 0
  said = capsys.readouterr()
  assert "a batch of 16 pairs from 12 repeats pairs" in said.err
  assert "the learning rate rises until step" in said.err and "set WARMUP_STEPS" in said.err
  assert "12 to train on, none held out" in said.out


RUN = ["--pairs", "{my}", "--init", "{model}", "--output", "{out}"]


@pytest.mark.parametrize("flags, message", [
    (["--pairs", "{my}"], "needs --init MODEL.*; and --output DIR"),
    (["--batch_size", "8", "--gin_file", "runs/train.gin"], "--batch_size belongs to --pairs"),
    ([*RUN, "--steps", "3", "--epochs", "1"], "give one of them"),
    ([*RUN, "--loss", "triplet"], "give one of in_batch, ring"),
    ([*RUN, "--pairs", "{nothing}"], "nothing"),
    ([*RUN, "--init", "{nothing}"], "nothing"),
    ([*RUN, "--query", "q"], "--query and --passage go together"),
    ([*RUN, "--negatives", "n"], "--negatives goes with --query and --passage; name"),
    (["--pairs", "{few}", *RUN[2:], "--batch_size", "1"], r"a batch of one pair \(--batch_size, BATCH_SIZE\)"),
    (["--pairs", "{copies}", *RUN[2:]], r"one pair to train on \(20 read, left out: 19 duplicate\).*give more pairs"),
    (["--pairs", "{few}", *RUN[2:], "--early_stopping", "2"], "--early_stopping 2: nothing is held out.*give --eval"),
    (["--pairs", "{one_query}", *RUN[2:]], "have one query, by id or text; check which field is the query \\(--query"),
    (["--pairs", "{broken}", *RUN[2:]], "lines are broken, .*; mend the files, or let gtr-jax prepare leave more out"),
    ([*RUN, "--output", "{data}"], r"choose another \(--output, MODEL_DIR\)"),
    ([*RUN, "--init", "gtr-t5-base"], "no such model; did you mean sentence-transformers/gtr-t5-base, on the"),
    ([*RUN, "--vocabulary", "{my}"], "leave --vocabulary"),
    ([*RUN, "--gin.BATCHSIZE=3"], "BATCHSIZE"),
    ([*RUN, "--eval", "{nothing}"], "nothing"),
    ([*RUN, "--batch_size", "100000"], r"--batch_size 100000: there are only \d+ pairs to train on; give at most \d+"),
    ([], "--pairs, --init and --output"),
])
def test_mistakes(place, tmp_path, capsys, flags, message):
  names = {name: str(place / file) for name, file in (
      ("my", "my.jsonl"), ("model", "model"), ("out", "never"), ("nothing", "nothing"), ("data", "data"))}
  files = {"few": [[f"{i} {sentence(i, 4)}", f"{i} {sentence(i, 9)}"] for i in range(12)],
           "copies": [["a b", "c d"]] * 20, "one_query": [["a b", f"{i} {sentence(i, 9)}"] for i in range(12)]}
  files["broken"] = files["few"] + [3] * 12
  for name, rows in files.items():
    names[name] = str(tmp_path / f"{name}.jsonl")
    Path(names[name]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  assert main(["train", *(flag.format(**names) for flag in flags), "--data_dir", str(place / "data")]) == 2
  assert re.search(message, capsys.readouterr().err.splitlines()[-1])
  assert not Path(names["out"]).exists()
