"""Flags of every command: numbers have ranges, paths may begin with `~`."""

import argparse
import os

import pytest

from gtr_jax.cli import main, prepare
from gtr_jax.io import flags

PATHS = {"FILE", "DIR", "DUMP", "COLLECTION", "DIR,DIR", "SRC", "DST", "MODEL", "[NAME=]MODEL"}


def commands():
  """(name, parser) of every command and source."""
  whole = main.parser()
  for name, parser in subparsers(whole):
    if name != "prepare":
      yield name, parser
  for name, parser in subparsers(dict(subparsers(whole))["prepare"]):
    if name in prepare.SOURCES:
      prepare._module(prepare.SOURCES[name][0]).add_arguments(parser)
    yield f"prepare {name}", parser


def subparsers(parser):
  return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices.items()


ACTIONS = [(name, action) for name, parser in commands() for action in parser._actions]


def named(actions):
  return {f"{name} {action.option_strings[0] if action.option_strings else action.dest}": action
          for name, action in actions}


TAKES_PATHS = named((name, a) for name, a in ACTIONS if a.metavar in PATHS or a.dest in (
    "output", "collection", "data_dir", "model", "embeddings", "queries", "vocabulary", "folder", "without"))
NUMBERS = named((name, a) for name, a in ACTIONS if a.type not in (None, flags.path, flags.paths, flags.named_path))


def test_the_walk_finds_what_there_is():
  assert {"train --gin_file", "convert source", "evaluate --model", "prepare pairs paths", "prepare msmarco --scores",
          "prepare reddit --without", "prepare pydoc --vocabulary", "report --sweep", "demo --output",
          "mine --embeddings", "sweep --gin_search_paths"} <= TAKES_PATHS.keys()
  assert {"search --top_k", "mine --margin", "prepare pairs --max_pairs", "prepare beir --min_grade",
          "train --described_devices", "sweep --workers", "encode --process_id"} <= NUMBERS.keys()


@pytest.mark.parametrize("name", sorted(TAKES_PATHS))
def test_every_path_may_begin_with_a_tilde(name, monkeypatch):
  monkeypatch.setenv("HOME", "/home/someone")
  read = TAKES_PATHS[name].type
  assert read in (flags.path, flags.paths, flags.named_path)
  for text, expected in (("~/x/", "/home/someone/x/"), ("./a", "./a"), ("google/t5", "google/t5"),
                         ("gs://b/x", "gs://b/x"), ("a~b", "a~b")):
    assert read(text) == (("", expected) if read is flags.named_path else expected)
  for text in ("s3://b/x", "file:///x", "a\0b"):
    with pytest.raises(argparse.ArgumentTypeError):
      read(text)


def test_paths_with_names_and_commas(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", "/home/someone")
  assert flags.paths("~/a,b,~/c") == "/home/someone/a,b,/home/someone/c" and flags.paths("") == ""
  assert flags.named_path("A=~/x") == ("A", "/home/someone/x")
  assert flags.named_path("~/a=b") == ("", "/home/someone/a=b")
  assert flags.named_path("A=google/t5") == ("A", "google/t5") and flags.named_path("A=b=c") == ("A", "b=c")
  (tmp_path / "a=~b").touch()
  monkeypatch.chdir(tmp_path)
  assert flags.named_path("a=~b") == ("", "a=~b")  # It is there.
  (tmp_path / "x=y").mkdir()
  assert flags.named_path(f"lr=1={tmp_path}/x=y") == ("lr=1", f"{tmp_path}/x=y")
  with pytest.raises(argparse.ArgumentTypeError, match="the path is empty"):
    flags.named_path("A=")


def test_no_number_is_without_a_range():
  for name, action in ACTIONS:
    assert action.type not in (int, float), f"{name} {action.dest}"


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_what_is_no_number_is_refused(name):
  for text in ("", "x", "nan", "inf", "-inf", "1e999", "True", "None", "0x10", "9" * 5000):
    with pytest.raises(argparse.ArgumentTypeError, match="give "):
      NUMBERS[name].type(text)
  if NUMBERS[name].default not in (None, []):
    assert NUMBERS[name].type(str(NUMBERS[name].default)) == NUMBERS[name].default


@pytest.mark.parametrize("words, message", [
    ("prepare pairs x --max_pairs -1", "--max_pairs: '-1': give a positive whole number"),
    ("prepare pairs x --min_words -5", "--min_words: '-5': give a whole number of 0 or more"),
    ("prepare pairs x --max_characters 1e3", "--max_characters: '1e3': give a whole number without a point: 1000"),
    ("prepare pairs x --validation_share 1", "--validation_share: '1': give a number from 0 to below 1"),
    ("prepare pairs x --max_broken 1.5", "--max_broken: '1.5': give a number from 0 to 1"),
    ("prepare pairs x --workers 0", "--workers: '0': give a positive whole number"),
    ("prepare reddit x --max_words 0", "--max_words: '0': give a positive whole number"),
    ("prepare reddit x --min_post_score 0.5", "--min_post_score: '0.5': give a whole number"),
    ("prepare stack_exchange x --min_words -1", "--min_words: '-1': give a whole number of 0 or more"),
    ("prepare dpr x --num_positives -1", "--num_positives: '-1': give a whole number of 0 or more"),
    ("prepare beir x --min_grade 0", "--min_grade: '0': give a positive whole number"),
    ("prepare msmarco x --margin nan", "--margin: 'nan': give a number"),
    ("prepare nq_open x --run r --passages p --depth 0", "--depth: '0': give a positive whole number"),
    ("prepare rocketqa x --num_negatives -1", "--num_negatives: '-1': give a whole number of 0 or more"),
    ("mine --output o --num_negatives 0", "--num_negatives: '0': give a positive whole number"),
    ("mine --output o --first_rank 0", "--first_rank: '0': give a positive whole number"),
    ("mine --output o --margin inf", "--margin: 'inf': give a number"),
    ("mine --output o --max_score_ratio 0", "--max_score_ratio: '0': give a number above 0"),
    ("mine --output o --seed -1", "--seed: '-1': give a whole number from 0 to 4,294,967,295"),
    ("search --model m --embeddings e --top_k 2.0", "--top_k: '2.0': give a whole number without a point: 2"),
    ("search --model m --embeddings e --extra_ids -1", "--extra_ids: '-1': give a whole number of 0 or more"),
    ("search --model m --embeddings e --query_length 1", "--query_length: '1': give a whole number of 2 or more (a"),
    ("encode --model m --collection c --output o --model_parallel 0", "--model_parallel: '0': give a positive"),
    ("encode --model m --collection c --output o --process_id -1", "--process_id: '-1': give a whole number of 0 or"),
    ("train --dry_run --described_devices 10001", "--described_devices: '10001': give a whole number from 1 to 10,000"),
    ("train --dry_run --mean_tokens 0 3", "--mean_tokens: '0': give a number above 0"),
    ("sweep --output o --workers 0", "--workers: '0': give a positive whole number"),
    ("sweep --output file:///o", "--output: file:///o: gtr_jax reads and writes local paths"),
])
def test_what_the_command_line_says(words, message, capsys):
  with pytest.raises(SystemExit) as e:
    main.parser().parse_args(words.split())
  assert e.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words, message", [
    ("evaluate --colection x", "gtr-jax evaluate: there is no flag --colection; did you mean --collection?"),
    ("evaluate --batch_size 4", "gtr-jax evaluate: there is no flag --batch_size"),
    ("evaluate --BM25 --output o", "gtr-jax evaluate: there is no flag --BM25; did you mean --bm25?"),
    ("evaluate --output=o --data-dir=d", "gtr-jax evaluate: there is no flag --data-dir; did you mean --data_dir?"),
    ("evaluate -output o", "gtr-jax evaluate: there is no flag -output; did you mean --output?"),
    ("evaluate runs/mine --output o", "gtr-jax evaluate: there is no argument runs/mine"),
    ("search --model m --embeddings e --querys q", "there is no flag --querys; did you mean --query?"),
    ("train --TRAIN_STEPS=5", "gtr-jax train: there is no flag --TRAIN_STEPS; did you mean --gin.TRAIN_STEPS?"),
    ("train --batchsize 5", "gtr-jax train: there is no flag --batchsize; did you mean --batch_size?"),
    ("train --ROW_LENGTH 5", "gtr-jax train: there is no flag --ROW_LENGTH; did you mean --gin.ROW_LENGTHS?"),
    ("train --lr 1e-4", "gtr-jax train: there is no flag --lr; did you mean --learning_rate?"),
    ("train --num_train_epochs=3", "there is no flag --num_train_epochs; did you mean --epochs?"),
    ("train --per-device-train-batch-size 8", "no flag --per-device-train-batch-size; did you mean --batch_size?"),
    ("train --model_name_or_path x", "there is no flag --model_name_or_path; did you mean --init?"),
    ("train --output_dir x", "there is no flag --output_dir; did you mean --output?"),
    ("train --warmup_steps 3", "there is no flag --warmup_steps; did you mean --gin.WARMUP_STEPS?"),
    ("train --num-train-steps 5", "there is no flag --num-train-steps; did you mean --gin.TRAIN_STEPS?"),
    ("train --gin_files f", "there is no flag --gin_files; did you mean --gin_file?"),
    ("train --gin_file=f BATCH_SIZE=5", "there is no argument BATCH_SIZE; did you mean --gin.BATCH_SIZE?"),
    ("sweep --output o --stages x", "gtr-jax sweep: there is no flag --stages; did you mean --gin.plan.Sweep.stages?"),
    ("prepare beir x --min_grad 1", "gtr-jax prepare beir: there is no flag --min_grad; did you mean --min_grade?"),
    ("--collection c evaluate", "gtr-jax: there is no flag --collection; flags follow the COMMAND"),
])
def test_unknown_flags_get_the_usage_of_their_command_and_what_is_near(words, message, capsys):
  with pytest.raises(SystemExit) as e:
    main.main(words.split())
  *usage, last = capsys.readouterr().err.splitlines()
  assert e.value.code == 2 and message in last
  assert usage[0].startswith(f"usage: {last.partition(':')[0]} ")


@pytest.mark.parametrize("words, message", [
    ("evalute --output o", "gtr-jax: COMMAND: there is no 'evalute'; did you mean evaluate? (there are prepare, "),
    ("fly", "gtr-jax: COMMAND: there is no 'fly' (there are prepare, data, train, encode"),
    ("prepare reddot x", "gtr-jax prepare: SOURCE: there is no 'reddot'; did you mean reddit? (there are pydoc"),
    ("convert a b --to t5", "gtr-jax convert: --to: there is no 't5'; did you mean t5x? (there are sentence-transf"),
    ("evaluate --output o --suite nanobeir", "--suite: there is no 'nanobeir'; did you mean nano-beir? (there are"),
    ("train --gin.TRAIN_STEPS 5", "--gin: 'TRAIN_STEPS' binds nothing: give --gin.TRAIN_STEPS=VALUE, with a ="),
])
def test_unknown_names_get_what_is_near(words, message, capsys):
  with pytest.raises(SystemExit) as e:
    main.main(words.split())
  assert e.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    "train", "demo", "report --output o", "convert a b", "merge a b --output o",
    "teach --pairs p --name n", "student --teacher t --vocabulary v --output o", "sweep --output o", "mine --output o",
    "prepare pydoc",
    "prepare beir x", "encode --model m --collection c --output o", "search --model m --embeddings e",
    "evaluate --output o"])
def test_every_command_can_be_quiet(words):
  command, *rest = words.split()
  assert main.parser().parse_args([command, *rest, "--quiet"]).quiet
  assert main.parser().parse_args([command, "--quiet", *rest]).quiet
  assert not main.parser().parse_args([command, *rest]).quiet


def test_what_looks_like_a_flag_may_be_a_value():
  parsed = main.parser().parse_args(["search", "--model=m", "--embeddings=e", "--query", "-x is what", "--query=--y=3"])
  assert parsed.query == ["-x is what", "--y=3"]
  parsed = main.parser().parse_args(["mine", "--output=o", "--margin", "-0.5"])
  assert parsed.margin == -0.5


def test_an_empty_path_is_refused(capsys):
  with pytest.raises(SystemExit):
    main.parser().parse_args(["report", "--results", "r", "--output", ""])
  assert "the path is empty" in capsys.readouterr().err


def test_the_data_folder_of_the_environment(monkeypatch):
  from gtr_jax.io import data_root
  monkeypatch.setenv("HOME", "/home/someone")
  monkeypatch.setenv("GTR_DATA_DIR", "~/data")
  assert os.fspath(data_root.data_dir()) == "/home/someone/data"
  assert os.fspath(data_root.resolve("~/v/spiece.model")) == "/home/someone/v/spiece.model"
  assert os.fspath(data_root.resolve("v")) == "/home/someone/data/v"


def test_what_others_call_it_is_a_flag_here():
  """What stands in the table for their names is there, and none of them is a flag itself."""
  parser = dict(commands())["train"]
  there = {*parser._option_string_actions, *parser.others()}
  assert parser.elsewhere and set(parser.elsewhere.values()) <= there
  assert not {f"--{name}" for name in parser.elsewhere} & there
  assert all(name == flags._bare(name) for name in parser.elsewhere)
