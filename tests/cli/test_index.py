"""`gtr-jax index`, and `search --index`: what they refuse. What they do: tests/peers/test_indices.py."""

import sys

import numpy as np
import pytest

from gtr_jax.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("index")
  np.save(folder / "v.npy", np.eye(8))
  (folder / "v.txt").write_text("".join(f"d{i}\n" for i in range(8)))
  assert gtr_jax(folder, "encode", "--vectors", "@v.npy", "--ids", "@v.txt", "--output", "@store") == 0
  return folder


def gtr_jax(folder, *words):
  return main([word.replace("@", f"{folder}/") for word in words])


@pytest.mark.parametrize("flags, match", [
    ("--to usearch --kind ivf-pq", "--kind ivf-pq: --to usearch has hnsw only; give --to faiss"),
    ("--to faiss --lists 9", "--lists: is of --kind ivf-pq; leave it out"),
    ("--to faiss --kind ivf-pq --effort 9", "--effort: is of --kind hnsw; leave it out"),
    ("--to faiss --queries @q.jsonl", "--queries and --model go together"),
    ("--to faiss --model @m", "--queries and --model go together"),
    ("--to faiss", "faiss-hnsw needs faiss, which is not installed or does not load"),
    ("--to usearch", "pip install 'gtr_jax[usearch]'")])
def test_what_index_refuses(folder, capsys, monkeypatch, flags, match):
  for package in ("faiss", "usearch"):
    monkeypatch.setitem(sys.modules, package, None)
  before = sorted(path.name for path in (folder / "store").iterdir())
  assert gtr_jax(folder, "index", "@store", *flags.split()) == 2
  error = capsys.readouterr().err.splitlines()
  assert len(error) == 1 and match in error[0]
  assert sorted(path.name for path in (folder / "store").iterdir()) == before


@pytest.mark.parametrize("flags, match", [
    ("--to hnswlib", "--to: there is no 'hnswlib'"), ("--to faiss --connections 1", "--connections"),
    ("--to faiss --distributed", "there is no flag --distributed")])
def test_wrong_flags(folder, capsys, flags, match):
  with pytest.raises(SystemExit) as e:
    gtr_jax(folder, "index", "@store", *flags.split())
  assert e.value.code == 2 and match in capsys.readouterr().err


def test_a_search_by_an_index_that_is_not_there(folder, capsys):
  search = ["search", "--embeddings", "@store", "--vectors", "@v.npy", "--ids", "@v.txt", "--output", "@run.trec"]
  for flags, match in ((["--index"], "has no index; make one: gtr-jax index"),
                       (["--index", "usearch-hnsw"], "usearch-hnsw.index: not there; make it: gtr-jax index")):
    assert gtr_jax(folder, *search, *flags) == 2
    assert match in capsys.readouterr().err
