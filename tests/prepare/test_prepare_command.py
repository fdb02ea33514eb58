"""`gtr-jax prepare SOURCE`: its flags reach the source and the engine; what is wrong is one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy_source

from gtr_jax.cli import prepare
from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.io import data_root


@pytest.fixture(autouse=True)
def no_data_dir():
  yield
  data_root.set_data_dir(None)


def test_prepares_pairs(tmp_path, capsys, monkeypatch):
  path = toy_source.write(tmp_path / "a.jsonl", [[r["query"], r["passage"]] for r in toy_source.rows(200)])
  arguments = ["prepare", "pairs", path, "--data_dir", "data"]
  monkeypatch.chdir(tmp_path)
  assert main([*arguments, "--workers", "1"]) == 0
  out = capsys.readouterr().out
  lists = "fields: lists: the first text is the query, the second the passage, any others hard negatives"
  assert out.startswith(f"{lists}\nwrote {tmp_path}/data/pairs\n")
  assert "\nread 200, written 200 (train 200)\n" in out
  more = ["--name", "mine", "--validation_share", "0.2", "--without", "other", "--max_broken", "0", "--workers", "2"]
  toy = toy_source.write(tmp_path / "b.jsonl", [["a question", "its answer"]])
  assert main(["prepare", "pairs", toy, "--name", "other", "--data_dir", str(tmp_path / "data")]) == 0
  run = subprocess.run([Path(sys.executable).parent / "gtr-jax", *arguments, *more], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  manifest = json.loads((tmp_path / "data/mine/manifest.json").read_text())
  assert set(manifest["examples"]) == {"train", "validation"} and sum(manifest["examples"].values()) == 200
  assert manifest["filters"]["without"] == ["other"] and manifest["filters"]["paths"] == [path]


def test_what_was_dropped_and_what_is_broken_is_told(tmp_path, capsys):
  rows = [*([r["query"], r["passage"]] for r in toy_source.rows(20)), ["a", "a"], b"broken", ["b"], b"{", b"\xff"]
  path = toy_source.write(tmp_path / "a.jsonl", rows)
  flags = ["--data_dir", str(tmp_path), "--validation_share", "1e-9", "--workers", "1"]
  assert main(["prepare", "pairs", path, *flags]) == 0
  said = capsys.readouterr().out.splitlines()[1:]
  assert said[1:4] == ["read 25, written 20 (train 20)",
                       "dropped or counted: query_is_passage 1, with_up_to_4_other_answers 20",
                       "broken lines: 4, the first:"]
  assert [line.split(": ")[0] for line in said[4:7]] == [f"  {path}:{n}" for n in (22, 23, 24)]
  assert said[7:] == ["the validation split is empty: nothing that was to be in it is left"]


@pytest.mark.parametrize("source, example", [
    ("msmarco", " DIR --negatives DIR/msmarco-hard-negatives.jsonl.gz \\\n        --scores DIR/cross"),
    ("stack_exchange", "examples:\n  gtr-jax prepare stack_exchange dumps/ --closed\n  gtr-jax")])
def test_examples_of_the_help_are_lines(source, example, capsys):
  with pytest.raises(SystemExit):
    main(["prepare", source, "--help"])
  assert example in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["--beam=--region=x"], "--beam belongs to --runner; add that, or leave it out"),
    (["--name", "../x"], "--name ../x: give a name of letters, digits"),
    ([], "none.jsonl: no such file"),
])
def test_wrong_input_is_one_line(tmp_path, capsys, flags, message):
  assert main(["prepare", "pairs", str(tmp_path / "none.jsonl"), "--data_dir", str(tmp_path), *flags]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and error.startswith("gtr-jax prepare: ")


@pytest.mark.parametrize("source", ["pydoc", *prepare.SOURCES])
def test_each_source_has_its_help(source, capsys):
  with pytest.raises(SystemExit) as e:
    main(["prepare", source, "--help"])
  out = capsys.readouterr().out
  assert e.value.code == 0 and "--data_dir" in out
  assert source == "pydoc" or "--decontaminate" in out and out.count("positional arguments") == 1


def test_pydoc_gets_its_vocabulary(monkeypatch, tmp_path):
  got = []
  from gtr_jax.demo import corpus
  monkeypatch.setattr(corpus, "prepare", got.append)
  assert main(["prepare", "pydoc", "--data_dir", str(tmp_path), "--vocabulary", "v"]) == 0
  assert got == ["v"] and data_root.data_dir() == tmp_path


def test_without_beam_it_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.delitem(sys.modules, "gtr_jax.prepare.beam", raising=False)
  with pytest.raises(InputError, match=r"--runner needs Apache Beam: pip install 'gtr_jax\[beam\]'"):
    import gtr_jax.prepare.beam  # noqa: F401
