"""`gtr-jax prepare … --dry_run`: what is said of each source's files is about right, and nothing is written."""

import bz2
import gzip
import json
import os
import re

import pyarrow
import pytest
import toy_source
from pyarrow import parquet
from test_prepare_engine import collection

from gtr_jax.cli.main import main
from gtr_jax.io import data_root


@pytest.fixture(autouse=True)
def no_data_dir():
  yield
  data_root.set_data_dir(None)


def everything(folder):
  return {os.path.join(place, name): os.stat(os.path.join(place, name)).st_mtime_ns
          for place, _, names in os.walk(folder) for name in names}


@pytest.fixture
def dry_run(tmp_path, capsys):
  """What is said, as one text; nothing below the test's folder has been written."""

  def run(*arguments):
    before = everything(tmp_path)
    flags = ["--data_dir", str(tmp_path / "data"), "--dry_run", "--workers", "1"]
    assert main(["prepare", *map(str, arguments), *flags]) == 0
    assert everything(tmp_path) == before
    return capsys.readouterr().out

  return run


def in_all(said):
  """The pairs that are expected."""
  return float(re.search(r"in all (?:at least )?about ([\d,.]+) pairs", said)[1].replace(",", ""))


def compressed(path, pack):
  packed = path.with_name(path.name + {gzip: ".gz", bz2: ".bz2"}[pack])
  packed.write_bytes(pack.compress(path.read_bytes()))
  return packed


@pytest.mark.parametrize("form", ["jsonl", "gz", "bz2", "parquet", "small"])
def test_pairs(dry_run, tmp_path, form):
  rows = [{"query": row["query"], "positive": row["passage"], "topic": "x"} for row in toy_source.rows(5000)]
  rows = rows[:100] if form == "small" else rows
  rows[3]["positive"] = rows[3]["query"]
  path = tmp_path / "a.jsonl"
  toy_source.write(path, rows)
  if form in ("gz", "bz2"):
    path = compressed(path, {"gz": gzip, "bz2": bz2}[form])
  elif form == "parquet":
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500)
  said = dry_run("pairs", path)
  lines = said.splitlines()
  assert lines[0] == 'fields: query: "query"; passage: "positive"; not read: topic'
  looked_at = "all 100" if form == "small" else "the first 1,000 of about 5,000"
  assert lines[1] == f"{path}{' (parquet)' * (form == 'parquet')}: {looked_at} lines or records"
  assert lines[2].startswith(f"counts: read {'100' if form == 'small' else '1,000'}, query_is_passage 1, ")
  assert sum(line.startswith("--- train") for line in lines) == 3
  assert sum(line.startswith("passage ") for line in lines) == 3
  assert 0.9 * len(rows) < in_all(said) < 1.1 * len(rows) and lines[-1].endswith("nothing was written")


def test_what_is_dropped_and_what_is_broken(dry_run, tmp_path, capsys):
  tested = collection(tmp_path / "tested")
  passage = " ".join(f"w{i}" for i in range(100))
  rows = [["What is tested?", "a"], ["b", passage], ["b", passage + " more"], ["c", "d"], ["c", "D!"], b"broken"]
  said = dry_run("pairs", toy_source.write(tmp_path / "a.jsonl", rows), "--decontaminate", tested, "--near_duplicates",
                 "--validation_share", "0.5")
  assert "counts: read 6, broken 1, contaminated 1, duplicate 1, near_duplicate 1, " in said
  assert f"broken: {tmp_path}/a.jsonl:6: not JSON" in said
  toy_source.write(tmp_path / "b.jsonl", [{"a": 1}])
  assert main(["prepare", "pairs", str(tmp_path / "b.jsonl"), "--dry_run", "--data_dir", str(tmp_path / "data")]) == 2
  assert "b.jsonl:1: " in capsys.readouterr().err


def test_reading_ends_where_all_is_dropped(dry_run, tmp_path):
  """A large file is not read to its end in want of a pair."""
  rows = [["a", "b" * 3000]] * 3000
  said = dry_run("pairs", toy_source.write(tmp_path / "a.jsonl", rows), "--max_characters", "10")
  number = int(re.search(r"the first ([\d,]+) of", said)[1].replace(",", ""))
  assert 1000 <= number < 2000 and "too_long" in said and in_all(said) == 0


def test_reddit_stack_exchange_and_rocketqa(dry_run, tmp_path):
  texts = [f"this is the body number {i} and it has enough of the words that we want" for i in range(2000)]
  posts = [{"id": f"p{i}", "title": f"a title of number {i} to read", "selftext": text, "author": "x", "subreddit": "s",
            "score": 3, "created_utc": i} for i, text in enumerate(texts)]
  comments = [{"id": f"c{i}", "link_id": f"t3_p{i}", "parent_id": f"t3_p{i}", "body": text + " too", "author": "y",
               "subreddit": "s", "score": 3, "created_utc": i} for i, text in enumerate(texts)]
  files = [toy_source.write(tmp_path / name, rows) for name, rows in (("RS_1", posts), ("RC_1", comments))]
  said = dry_run("reddit", *files)
  assert f"{files[0]} (post): the first 1,000 of about 2,000" in said and "of 1,000 keys in these lines" in said
  assert 3600 < in_all(said) < 4400
  dump = tmp_path / "site/Posts.xml"
  dump.parent.mkdir()
  dump.write_text("<posts>\n" + "".join(
      f'  <row Id="{i}" PostTypeId="1" Score="3" Title="the title {i}" Body="&lt;p&gt;{text}&lt;/p&gt;" />\n'
      for i, text in enumerate(texts)) + "</posts>\n")
  assert 1800 < in_all(dry_run("stack_exchange", dump)) < 2200
  lines = (f"query {i}\t\tpassage {i}\t\tnegative {i}\t0\n" for i in range(3000))
  (tmp_path / "rocketqa.tsv").write_text("".join(lines))
  said = dry_run("rocketqa", tmp_path / "rocketqa.tsv")
  assert "--- train, 1 negatives" in said and 2700 < in_all(said) < 3300


def test_dpr_and_what_is_looked_up_by_id(dry_run, tmp_path):
  records = [{"question": f"question {i}", "positive_ctxs": [{"title": "", "text": f"passage {i} " + "x " * 3000}]}
             for i in range(3000)]
  path = tmp_path / "dpr.json"
  path.write_text(json.dumps(records))
  said = dry_run("dpr", path)
  assert 2500 < in_all(said) < 3500 and "(train array): the first 1,000 of about" in said
  (tmp_path / "nq.jsonl").write_text("".join(
      json.dumps({"question": f"question {i}", "answer": [f"x{i}x"]}) + "\n" for i in range(100)))
  documents = [{"_id": f"d{i}", "title": "", "text": f"it is x{i}x"} for i in range(100)]
  toy_source.write(tmp_path / "corpus.jsonl", documents)
  (tmp_path / "run").write_text("".join(f"{i} Q0 d{i} 1 1.0 bm25\n" for i in range(100)))
  said = dry_run("nq_open", tmp_path / "nq.jsonl", "--run", tmp_path / "run", "--passages", tmp_path / "corpus.jsonl")
  assert in_all(said) == 100 and "corpus.jsonl (passages): looked up by id" in said


def test_beir_below_the_data_root_and_its_index(dry_run, tmp_path, capsys):
  collection(tmp_path / "data/beir/mine", "train")
  arguments = ["prepare", "beir", "beir/mine", "--data_dir", str(tmp_path / "data"), "--workers", "1"]
  before = everything(tmp_path)
  assert main([*arguments, "--dry_run"]) == 0
  assert everything(tmp_path) == before and "written 3" in capsys.readouterr().out
  assert main([*arguments, "--dry_run", "--split", "none"]) == 2
  assert f"{tmp_path}/data/beir/mine" in capsys.readouterr().err  # Not where the links are.
  assert main(arguments) == 0 and (tmp_path / "data/beir_mine").exists()
