"""README.md of prepared data: what the hub reads, what is in it in words, and a command that trains on it."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import toy_source
import yaml
from test_prepare_engine import contents, data, manifest, prepare  # noqa: F401
from toy_source import ToySource, write

from gtr_jax.cli.main import main
from gtr_jax.prepare import card
from gtr_jax.prepare.sources.nq_open import NqOpen
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.prepare.sources.reddit import Reddit
from gtr_jax.prepare.sources.stack_exchange import StackExchange

pytest_plugins = "data_fixtures"


def test_what_it_says(data, tmp_path):  # noqa: F811
  rows = [*toy_source.rows(200), *toy_source.rows(3), {"query": "a", "passage": "a"}, b"broken",
          {"query": "b|*c*", "passage": "# d", "negatives": ["<e>", "f"]}]
  path = write(tmp_path / "a|b.jsonl", rows)
  folder = prepare(ToySource((path,)), validation_share=0.2, name="mine")
  text, found = (folder / "README.md").read_text(), manifest(folder)
  _, header, body = text.split("---\n", 2)
  assert yaml.safe_load(header) == {"size_categories": ["n<1K"]}
  assert body.startswith("\n# mine\n")
  for split, number in found["examples"].items():
    files = found["splits"][split]
    assert f"| {split} | {number} | {len(files)} | {sum(files.values()):,} |" in body
  (of,) = found["inputs"]
  assert f"| a\\|b.jsonl | {of['bytes']:,} | `{of['sha256']}` |" in body
  assert "| validation_share | 0.2 |" in body and "Licence: not known." in body
  for line in ("206 lines or records were read, 201 pairs are here.", "- 1 pairs whose query is its own passage (`",
               "- 3 pairs whose texts were there already; their", "- 1 lines that are not as their format says (`"):
    assert line in body
  assert body.count("> **query** ") == card.EXAMPLES == body.count("> **passage** ")
  assert str(tmp_path) not in text and text.isascii() | ("…" in text)
  # The same for the same data elsewhere.
  reference = contents(folder)["README.md"]
  shutil.rmtree(folder)
  moved = tmp_path / "elsewhere" / "a|b.jsonl"
  moved.parent.mkdir()
  Path(path).rename(moved)
  again = prepare(ToySource((str(moved),)), processes=2, validation_share=0.2, name="mine")
  assert contents(again)["README.md"] == reference


@pytest.mark.parametrize("number, size", [
    (999, "n<1K"), (1000, "1K<n<10K"), (25_959, "10K<n<100K"), (700_000_000, "100M<n<1B"), (2 * 10**9, "n>1B")])
def test_header(number, size):
  found = {"examples": {"train": number}, "filters": {"language": "en"}}
  assert yaml.safe_load("\n".join(list(card._header(found))[1:-1])) == {"size_categories": [size], "language": ["en"]}
  found |= {"filters": {"language": "any"}}
  assert yaml.safe_load("\n".join(list(card._header(found))[1:-1])) == {"size_categories": [size]}


def test_markup_is_shown_as_it_is():
  assert card._cut("# a  *b* <c> [d](e)\n`f`") == r"\# a \*b\* \<c\> \[d\](e) \`f\`"
  assert card._cut("x" * 1000) == "x" * 400 + "…"


def test_licences_are_those_of_the_sources():
  judged = {"passages": "p", "queries": ("q",), "qrels": "r", "cache": "c"}
  assert "CC BY-SA: 2.5 of what was written before" in StackExchange(("a",)).licence
  assert "CC BY-SA 3.0" in NqOpen("a", "b", "c", "d").licence
  assert "non-commercial research" in JudgedPairs("msmarco", **judged).licence
  assert not JudgedPairs("beir_scifact", **judged).licence and not Reddit(("a",)).licence
  assert not PairsJsonl(("a",)).licence


def command_of(folder):
  """As a shell reads it."""
  text = re.search(r"```\n(gtr-jax train.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
  return shlex.split(text.replace("\\\n", ""))


def test_its_command_trains(data, tmp_path, vocabulary, monkeypatch):  # noqa: F811
  rows = [row | {"negatives": ["a negative", "and another"]} for row in toy_source.rows(40)]
  name, command, *arguments = command_of(prepare(ToySource((write(tmp_path / "a.jsonl", rows),))))
  assert (name, command) == ("gtr-jax", "train") and {
      "--gin.NEGATIVES_PER_EXAMPLE=1", "--gin.VALIDATION=None", "--gin.BATCH_SIZE=32"} < set(arguments)
  (data / "t5_vocab").mkdir()
  shutil.copy(vocabulary, data / "t5_vocab/spiece.model")
  monkeypatch.chdir(tmp_path)
  tiny = [of.replace("t5_small", "t5_tiny") for of in arguments]
  tiny += [f"--gin.{of}" for of in ("TRAIN_STEPS=1", "BATCH_SIZE=8", "t5.T5Config.num_layers=1",
                                    "t5.T5Config.vocab_size=512", "TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}")]
  assert main(["train", *tiny, "--data_dir", str(data)]) == 0
  assert (tmp_path / "runs/toy/model.json").exists()


def test_its_command_for_plain_pairs_with_some_held_out(data, tmp_path):  # noqa: F811
  source = ToySource((write(tmp_path / "a.jsonl", toy_source.rows(40)),))
  command = command_of(prepare(source, validation_share=0.3))
  assert not {"--gin.NEGATIVES_PER_EXAMPLE=1", "--gin.VALIDATION=None"} & set(command)
