"""`search --hybrid`, and `evaluate --fuse` and `--run`, by the command line."""

import json

import pytest
from tiny_model_dir import corpus, write_collection, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.evaluation import results_file
from gtr_jax.retrieval.bm25 import bm25_run
from gtr_jax.retrieval.fusion import convex, prior_weight, rrf
from gtr_jax.retrieval.runs import read_run, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hybrid")
  write_model_dir(folder / "model")
  write_collection(folder / "c", corpus(40), queries=30)
  write_collection(folder / "other", corpus(25), queries=3)
  assert gtr_jax(folder, "encode", "--model", "@model", "--collection", "@c", "--output", "@store") == 0
  return folder


def gtr_jax(folder, *words):
  return main([word.replace("@", f"{folder}/") for word in words])


def wrong(folder, capsys, *words):
  """The last line on stderr of a command that refuses."""
  capsys.readouterr()
  assert gtr_jax(folder, *words) == 2
  return capsys.readouterr().err.splitlines()[-1]


def texts_of(folder):
  queries = [json.loads(line) for line in (folder / "c/queries.jsonl").read_text().splitlines()]
  return [query["_id"] for query in queries], [query["text"] for query in queries]


def parts(folder):
  """The rankings of the model alone, and those of BM25."""
  search = ["search", "--model", "@model", "--embeddings", "@store", "--queries", "@c/queries.jsonl"]
  assert gtr_jax(folder, *search, "--top_k", "1000", "--output", "@dense.trec") == 0
  return read_run(folder / "dense.trec"), bm25_run(corpus(40), *texts_of(folder), 1000, progress=False)


def same(found, expected, depth):
  assert found.keys() == expected.keys()
  for query_id, ranking in expected.items():
    assert found[query_id].doc_ids == ranking.doc_ids[:depth]
    assert found[query_id].scores.tolist() == pytest.approx(ranking.scores[:depth].tolist(), abs=1e-6)


def test_a_search_of_both(folder, capsys):
  dense, bm25 = parts(folder)
  search = ["search", "--model", "@model", "--embeddings", "@store", "--top_k", "7"]
  of_file = [*search, "--queries", "@c/queries.jsonl"]
  weight = prior_weight(dense, bm25)
  assert 0 < weight < 1
  assert gtr_jax(folder, *of_file, "--hybrid", "--output", "@hybrid.trec") == 0
  said = capsys.readouterr()
  assert f"beside BM25: {weight:.2f}" in said.out and "an index of 40 documents is built" in said.err
  same(read_run(folder / "hybrid.trec"), convex(dense, bm25, weight), 7)
  assert gtr_jax(folder, *of_file, "--hybrid", "0.4", "--output", "@hybrid.trec") == 0
  assert "is built" not in capsys.readouterr().err
  same(read_run(folder / "hybrid.trec"), convex(dense, bm25, 0.4), 7)
  assert gtr_jax(folder, *of_file, "--hybrid", "--json") == 0
  answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  expected = convex(dense, bm25, weight)
  documents = dict(zip(corpus(40).ids, corpus(40).texts, strict=True))
  for answer in answers:
    ranking = expected[answer["query_id"]]
    assert [result["id"] for result in answer["results"]] == ranking.doc_ids[:7]
    assert all(result["text"] == documents[result["id"]] for result in answer["results"])
  query_id, text = "q3", texts_of(folder)[1][3]
  assert gtr_jax(folder, *search, "--hybrid", "--json", "--query", text) == 0
  answer = json.loads(capsys.readouterr().out)
  few = convex({query_id: dense[query_id]}, {query_id: bm25[query_id]}, 0.2)
  assert [result["id"] for result in answer["results"]] == few[query_id].doc_ids[:7]
  assert gtr_jax(folder, *search, "--hybrid", "--query", text) == 0
  assert answer["results"][0]["id"] in capsys.readouterr().out.splitlines()[1]


def test_a_search_that_cannot_be_of_both(folder, capsys):
  said = wrong(folder, capsys, "search", "--vectors", "@v.npy", "--ids", "@v.txt", "--embeddings", "@store",
               "--hybrid", "--output", "@x.trec")
  assert "--hybrid: BM25 needs the texts" in said
  with pytest.raises(SystemExit):
    gtr_jax(folder, "search", "--model", "@model", "--embeddings", "@store", "--hybrid", "1.5")
  assert "--hybrid: '1.5': give" in capsys.readouterr().err
  (folder / "store" / "bm25.npz").write_text("mine")
  said = wrong(folder, capsys, "search", "--model", "@model", "--embeddings", "@store", "--hybrid", "--query", "lion")
  assert "bm25.npz: damaged, or no BM25 index" in said
  (folder / "store" / "bm25.npz").unlink()


def test_fusions_are_rows_of_the_same_table(folder, capsys):
  dense, bm25 = parts(folder)
  evaluate = ["evaluate", "--collection", "@c", "--fuse", "rrf", "--fuse", "convex", "--quiet"]
  assert gtr_jax(folder, *evaluate, "--model", "A=@model", "--bm25", "--output", "@out") == 0
  table = capsys.readouterr().out
  weight = prior_weight(dense, bm25)
  assert f"A + BM25 (convex)                 {weight:.2f} (agreement)" in table
  systems = results_file.read(folder / "out")["systems"]
  assert list(systems) == ["BM25", "A", "A + BM25 (rrf)", "A + BM25 (convex)"]
  assert systems["A + BM25 (convex)"]["weights"]["c"] == {
      "weight": pytest.approx(weight, abs=1e-4), "by": "agreement", "queries": 30}
  runs = folder / "out" / "runs"
  same(read_run(runs / "A_BM25_rrf_-c.trec"), rrf(dense, bm25), 1000)
  same(read_run(runs / "A_BM25_convex_-c.trec"), convex(dense, bm25, weight), 1000)
  certain = results_file.read(folder / "out")["significance"]["nDCG@10"]["c"]
  assert set(certain) == set(systems)
  # Of run files the same comes out, wherever BM25 stands.
  assert gtr_jax(folder, *evaluate, "--run", "A=@out/runs/A-c.trec", "--run", "BM25=@out/runs/BM25-c.trec",
                 "--output", "@of_runs") == 0
  of_runs = results_file.read(folder / "of_runs")["systems"]
  assert {name: of["results"] for name, of in of_runs.items()} == {name: of["results"] for name, of in systems.items()}
  assert of_runs["A + BM25 (convex)"]["weights"] == systems["A + BM25 (convex)"]["weights"]


def with_validation(folder, name, queries):
  """A collection of which the first queries are those of its train split, in a file of their own."""
  write_collection(folder / name, corpus(40), queries=30)
  lines = (folder / name / "queries.jsonl").read_text().splitlines(keepends=True)
  qrels = (folder / name / "qrels/test.tsv").read_text().splitlines(keepends=True)
  train = {json.loads(line)["_id"] for line in lines[:queries]}
  (folder / name / "queries_train.jsonl").write_text("".join(lines[:queries]))
  (folder / name / "queries.jsonl").write_text("".join(lines[queries:]))
  (folder / name / "qrels/train.tsv").write_text(qrels[0] + "".join(
      line for line in qrels[1:] if line.split("\t")[0] in train))
  (folder / name / "qrels/test.tsv").write_text(qrels[0] + "".join(
      line for line in qrels[1:] if line.split("\t")[0] not in train))


def test_a_weight_is_chosen_on_validation_queries_alone(folder):
  with_validation(folder, "split", 24)
  evaluate = ["evaluate", "--quiet", "--model", "A=@model", "--bm25", "--fuse", "convex", "--collection", "@split"]
  assert gtr_jax(folder, *evaluate, "--output", "@split_out") == 0
  system = results_file.read(folder / "split_out")["systems"]["A + BM25 (convex)"]
  chosen = system["weights"]["split"]
  texts = [json.loads(line)["text"] for line in (folder / "split/queries.jsonl").read_text().splitlines()]
  trained = [json.loads(line)["text"] for line in (folder / "split/queries_train.jsonl").read_text().splitlines()]
  assert chosen["by"] == "train" and chosen["queries"] == len([text for text in trained if text not in texts]) >= 20
  assert set(read_run(folder / "split_out/runs/A_BM25_convex_-split.trec")) <= {f"q{i}" for i in range(24, 30)}
  # The test's judgements change no ranking.
  path = folder / "split/qrels/test.tsv"
  lines = path.read_text().splitlines()
  others = [f"{line.split()[0]}\td{i}\t1" for i, line in enumerate(lines[1:])]
  path.write_text("".join(f"{line}\n" for line in [lines[0], *others]))
  assert gtr_jax(folder, *evaluate, "--output", "@again_out") == 0
  assert results_file.read(folder / "again_out")["systems"]["A + BM25 (convex)"]["weights"]["split"] == chosen
  # Another call into the same folder keeps the weights of other collections.
  assert gtr_jax(folder, *evaluate[:-1], "@c", "--output", "@split_out") == 0
  kept = results_file.read(folder / "split_out")["systems"]["A + BM25 (convex)"]["weights"]
  assert kept["split"] == chosen and kept["c"]["by"] == "agreement"
  for name in ("A", "BM25", "A_BM25_convex_"):
    files = [folder / out / "runs" / f"{name}-split.trec" for out in ("split_out", "again_out")]
    assert files[0].read_text() == files[1].read_text()
  # Runs without the validation queries are fused by their agreement, and a few queries are none.
  runs = ["--run", "A=@split_out/runs/A-split.trec", "--run", "BM25=@split_out/runs/BM25-split.trec"]
  assert gtr_jax(folder, "evaluate", "--quiet", "--collection", "@split", "--fuse", "convex", *runs, "--output",
                 "@split_runs") == 0
  of_runs = results_file.read(folder / "split_runs")["systems"]["A + BM25 (convex)"]["weights"]["split"]
  assert of_runs == {"weight": 0.2, "by": "agreement", "queries": 6}
  with_validation(folder, "few", 10)
  assert gtr_jax(folder, *evaluate[:-1], "@few", "--output", "@few_out") == 0
  assert results_file.read(folder / "few_out")["systems"]["A + BM25 (convex)"]["weights"]["few"]["by"] == "agreement"


@pytest.mark.parametrize("words, said", [
    ("--bm25 --fuse rrf", "--fuse needs BM25 and another system, and there is BM25; give"),
    ("--model @model --fuse convex", "--fuse needs BM25 and another system, and there is model; give --bm25"),
    ("--run A=@a.trec --run B=@a.trec --fuse rrf", "and there are A, B; give --bm25"),
    ("--run A=@other.trec --bm25 --fuse rrf", "other.trec: ranks document 'elsewhere' for query 'q0', which c does"),
    ("--run A=@queries.trec --bm25", "queries.trec: none of its 1 queries is one of c's; give a run of this"),
    ("--run A=@empty.trec --bm25", "empty.trec: no rankings; give a TREC run"),
    ("--run A=@a.trec --collection @other", "--run: a run is of one collection, and 2 are given"),
    ("--run A=@a.trec --run A=@a.trec", "two of --run are called A"),
    ("--run BM25=@a.trec --bm25", "two systems are called 'BM25'"),
])
def test_what_cannot_be_fused(folder, capsys, words, said):
  run = bm25_run(corpus(40), *texts_of(folder), 5, progress=False)
  write_run(folder / "a.trec", run, "a")
  (folder / "other.trec").write_text("q0 Q0 elsewhere 1 0.5 x\n")
  (folder / "queries.trec").write_text("unknown Q0 d1 1 0.5 x\n")
  (folder / "empty.trec").write_text("\n")
  assert said in wrong(folder, capsys, "evaluate", "--collection", "@c", "--output", "@none", *words.split())
  assert not (folder / "none").exists()


def test_there_is_no_other_fusion(folder, capsys):
  with pytest.raises(SystemExit):
    gtr_jax(folder, "evaluate", "--collection", "@c", "--output", "@none", "--bm25", "--fuse", "rff")
  assert "there is no 'rff'; did you mean rrf?" in capsys.readouterr().err
