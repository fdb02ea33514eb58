"""Hard negatives: never an answer, from the ranks asked for, the same every time."""

import gzip
import json
import os

import numpy as np
import pytest
import table_files
from mining_runs import mine, mined_from, write
from tiny_model_dir import corpus, sentence, write_collection, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.inference import embed
from gtr_jax.inference.embedder import load
from gtr_jax.io import failures
from gtr_jax.mining import rankers
from gtr_jax.retrieval import encode
from gtr_jax.retrieval.bm25 import BM25Index
from gtr_jax.text.answers import answer_forms, contains_answer
from gtr_jax.text.near_text import are_near

# The first query is there twice, with two answers; "Lion habitat one" comes back in other spelling under another query.
PAIRS = [
    {"query": "lion habitat", "positive": "lion habitat one", "source": "a"},
    {"query": "Lion  HABITAT", "positive": "lion habitat two"},
    {"query": "lion habitat map", "positive": "Lion habitat  ONE"},
    {"query": "tiger", "positive": "tiger and lion habitat"},
    {"query": "tiger food", "positive": "lion food"},
    {"query": "copper", "positive": "silver"},
]


def mined(tmp_path, pairs=PAIRS, **flags):
  return mined_from(tmp_path, pairs, **flags)


def test_answers_of_the_same_query_are_no_negatives(tmp_path):
  records = mined(tmp_path, num_negatives=9)
  assert [{k: v for k, v in r.items() if k not in ("negatives", "mined")} for r in records] == PAIRS
  negatives = [set(r["negatives"]) for r in records]
  assert negatives[0] == negatives[1] == {"tiger and lion habitat", "lion food"}
  assert negatives[2] == {"lion habitat two", "tiger and lion habitat", "lion food"}
  assert negatives[3] == set()
  assert negatives[4] == {"tiger and lion habitat"}
  assert negatives[5] == set()


def test_what_is_nearly_the_passage_is_no_negative(tmp_path):
  passage = "the lion lives in dry habitat and hunts with its pride at night when it is cool"
  near, other = passage.replace("is cool", "was hot"), f"{passage[:50]} goes on about other things of lions and cats"
  passages = [passage, near, other, passage.replace(" and ", ', "and" ').upper()]  # Equal but for punctuation.
  records = mined(tmp_path, [{"query": "lion", "positive": passages[0]}, *(
      {"query": f"x{i}", "positive": passage} for i, passage in enumerate(passages[1:]))], num_negatives=9)
  assert records[0]["negatives"] == [passages[2]]


def test_what_is_tested_is_neither_asked_nor_drawn(tmp_path, capsys):
  folder = tmp_path / "tested"
  (folder / "qrels").mkdir(parents=True)
  write(folder / "corpus.jsonl", [{"_id": "d", "title": "", "text": "lion food"}])
  write(folder / "queries.jsonl", [{"_id": "q", "text": "Copper?"}])
  (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
  records = mined(tmp_path, num_negatives=9, decontaminate=folder)
  assert [r["query"] for r in records] == [p["query"] for p in PAIRS if p["query"] not in ("copper", "tiger food")]
  assert set(records[0]["negatives"]) == {"tiger and lion habitat"}
  assert "4 pairs, 4 of which got fewer than 9 negatives; 2 are left out, for they have what is tested" in (
      capsys.readouterr().out)


def test_a_query_is_no_negative_of_its_own(tmp_path):
  """Pairs that are each other's reverse: BM25 ranks nothing as high as the query itself."""
  topics = ["keep cats healthy", "cook brown rice", "repair a bicycle", "learn to swim"]
  pairs = [pair for topic in topics for pair in (
      {"query": f"how do I {topic}", "positive": f"what does it take to {topic}?"},
      {"query": f"What  does it take to {topic.title()} ?!", "positive": f"How do I {topic.upper()}."})]
  records = mined(tmp_path, pairs, num_negatives=9)
  assert all(record["negatives"] for record in records)
  for i, record in enumerate(records):
    about = topics[i // 2].split()[-1]
    assert not any(about in negative.casefold() for negative in record["negatives"])


@pytest.mark.parametrize("ids", [True, False], ids=["by-id", "by-text"])
@pytest.mark.parametrize("with_pairs", [True, False], ids=["pairs", "judged"])
def test_queries_that_are_documents(tmp_path, ids, with_pairs):
  """A collection of duplicate questions: each is a document too, by its id (here revised) or by its text alone."""
  folder, documents = tmp_path / "questions", corpus(20)
  texts = [f"{text} number {i}" for i, text in enumerate(documents.texts)]
  (folder / "qrels").mkdir(parents=True)
  write(folder / "corpus.jsonl", [{"_id": f"x{i}", "text": f"{text}?"} for i, text in enumerate(texts)])
  queries = [{"_id": f"x{i}" if ids else f"q{i}", "text": f"{text} please" if ids else f" {text.upper()}  ."}
             for i, text in enumerate(texts)]
  write(folder / "queries.jsonl", queries)
  judged = "".join(f"{query['_id']}\tx{(i + 1) % 20}\t1.0\n" for i, query in enumerate(queries))
  (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
  flags = {"collection": folder, "num_negatives": 19, "last_rank": 20}
  if with_pairs:
    flags["pairs"] = write(tmp_path / "pairs.jsonl", [
        {"query": query["text"], "positive": f"{texts[(i + 1) % 20]}?", "qid": query["_id"], "pid": f"x{(i + 1) % 20}"}
        for i, query in enumerate(queries)])
    flags |= {"query_id_field": "qid", "passage_id_field": "pid"}
  code, records = mine(tmp_path, **flags)
  assert code == 0 and len(records) == 20
  for i, record in enumerate(records):
    assert len(record["negatives"]) >= 5 and not {f"x{i}", f"x{(i + 1) % 20}"} & set(record["negative_ids"])


def test_ids_that_are_null_are_none(tmp_path):
  pairs = [{"query": f"lion {word}", "positive": f"lion passage {word}", "qid": qid, "pid": pid}
           for word, qid, pid in (("one", None, None), ("two", None, None), ("three", 7, 1), ("four", 7.0, 2.0))]
  records = mined(tmp_path, pairs, query_id_field="qid", passage_id_field="pid", num_negatives=9)
  assert [len(record["negatives"]) for record in records] == [3, 3, 2, 2]
  assert [sorted(record["negative_ids"], key=str) for record in records] == [
      ["1", "2", None], ["1", "2", None], [None, None], [None, None]]


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "link.jsonl"])
def test_what_is_read_is_not_overwritten(tmp_path, capsys, name):
  folder = write_collection(tmp_path / "c", corpus(10), queries=2)
  (folder / "link.jsonl").symlink_to("corpus.jsonl")
  before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
  assert main(["mine", f"--collection={folder}", "--split=test", f"--output={folder / name}"]) == 2
  assert "would be overwritten" in capsys.readouterr().err.splitlines()[-1]
  assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
  assert main(["mine", f"--collection={folder}", "--split=test", f"--output={folder / 'new.jsonl'}"]) == 0
  assert main(["search", "--model", str(tmp_path), "--embeddings", str(tmp_path), "--queries",
                   str(folder / "queries.jsonl"), "--output", str(folder / "queries.jsonl")]) == 2
  assert "--output would overwrite --queries" in capsys.readouterr().err.splitlines()[-1]


def test_ids_tell_what_is_the_same(tmp_path):
  pairs = [{"q": "lion", "p": "lion one", "qid": 1, "pid": "a"},
           {"q": "big lion", "p": "lion two", "qid": 1, "pid": "b"},
           {"q": "lion food", "p": "lion one, revised", "qid": 2, "pid": "a"},
           {"q": "x", "p": "lion four", "pid": "d"},
           {"q": "wolf lion", "p": "LION  one", "pid": "e"}]  # The text of the first.
  records = mined(tmp_path, pairs, query_field="q", passage_field="p", query_id_field="qid", passage_id_field="pid",
                     num_negatives=9)
  assert [set(r["negative_ids"]) for r in records] == [{"d"}, {"d"}, {"b", "d", "e"}, set(), {"b", "d"}]
  assert [len(r["negatives"]) for r in records] == [1, 1, 3, 0, 2]


def test_ranks_and_draw(tmp_path):
  passages = [f"lion {'lion ' * i}word{i}" for i in range(20)]
  pairs = [{"query": f"lion query{i}", "positive": passage} for i, passage in enumerate(passages)]
  ranked = [passages[row] for row in next(BM25Index(passages, progress=False).search(["lion"], 20))[0]]
  records = mined(tmp_path, pairs, num_negatives=3, first_rank=4, last_rank=10)
  for record in records:
    ranks = [ranked.index(negative) + 1 for negative in record["negatives"]]
    assert len(set(ranks)) == 3
    assert ranks == sorted(ranks)
    assert set(ranks) <= set(range(4, 11))
    assert record["positive"] not in record["negatives"]
  assert len({tuple(r["negatives"]) for r in records}) > 5  # Drawn anew for each query.
  assert mined(tmp_path, pairs, num_negatives=3, first_rank=4, last_rank=10) == records
  assert mined(tmp_path, pairs, num_negatives=3, first_rank=4, last_rank=10, seed=1) != records


def test_gzip_in_and_out(tmp_path):
  (tmp_path / "pairs.jsonl.gz").write_bytes(
      gzip.compress("".join(json.dumps(p) + "\n" for p in PAIRS).encode(), mtime=0))
  assert main(["mine", f"--pairs={tmp_path}/pairs.jsonl.gz", f"--output={tmp_path}/new/out.jsonl.gz"]) == 0
  lines = gzip.decompress((tmp_path / "new" / "out.jsonl.gz").read_bytes()).splitlines()
  assert len(lines) == len(PAIRS)
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.jsonl.gz"]


@pytest.mark.parametrize(("answer", "passage", "there"), [
    ("Lion", "A LION's den", True),               # DPR: tokens in a row
    ("lion", "lions", False),
    ("1945", "1939-1945", True),
    ("the U.S.", "in US waters", True),           # SQuAD: without punctuation and articles
    ("U.S.", "in the U.S. army", True),
    ("caf\u00e9", "CAFE\u0301 noir", True),        # one character or two
    ("blue whale", "blue. Whale", True),
    ("blue whale", "blue and whale", False),
    ("the", "the end", True),                     # DPR drops no article ..
    ("!", "end", False),
    ("", "end", False),                           # .. and what is left of nothing is nowhere.
    ("\u5317\u4eac", "\u5317\u4eac \u5e02", True),
])
def test_whether_a_passage_contains_an_answer(answer, passage, there):
  assert contains_answer(passage, answer_forms([answer])) is there
  assert contains_answer(passage, answer_forms(["nowhere", answer])) is there


def test_passages_with_an_answer_are_no_negatives(tmp_path):
  pairs = [{"query": "lion", "positive": "lion a", "answers": ["den", "The Cave"]},
           {"query": "tiger", "positive": "lion in a cave!", "answers": "jungle"},
           {"query": "zebra", "positive": "lion den", "answers": []},
           {"query": "horse", "positive": "lion denial", "answers": []}]
  assert mined(tmp_path, pairs, num_negatives=9, answers_field="answers")[0]["negatives"] == ["lion denial"]
  assert len(mined(tmp_path, pairs, num_negatives=9)[0]["negatives"]) == 3


@pytest.mark.parametrize("flags", [{"margin": 0.3}, {"max_score_ratio": 0.8}, {"margin": 0.1, "max_score_ratio": 0.9}])
def test_scores_of_bm25_against_the_positives(tmp_path, flags):
  passages = ["lion " * (i % 4 + 1) + sentence(i, 12) for i in range(30)] + ["zebra finch"]
  pairs = [{"query": "lion lantern", "positive": passage} for passage in passages]
  for i, pair in enumerate(pairs):
    pair["query"] += f" query{i}"  # Each its own.
  index = BM25Index(passages, progress=False)
  rows, scores = next(index.search(["lion lantern"], 31))
  score = dict(zip(rows.tolist(), scores.tolist(), strict=True))
  assert len(score) == 30
  for row, record in enumerate(mined(tmp_path, pairs, num_negatives=30, last_rank=30, **flags)):
    most = min(score[row] - flags.get("margin", 0), score[row] * flags.get("max_score_ratio", 1)) if row < 30 else -1
    assert set(record["negatives"]) == {passages[i] for i in score if score[i] <= most and i != row}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return write_model_dir(tmp_path_factory.mktemp("mine_model") / "run")


def scores_of(model, queries, passages):
  """float32 [queries, passages], with a dense product."""
  embedder = load(model)
  return embedder.encode_queries(queries) @ embedder.encode_documents(passages).T


def test_a_models_own_search(tmp_path, model, monkeypatch):
  passages = list(dict.fromkeys(sentence(i, 3 + i % 9) for i in range(60)))
  pairs = [{"query": sentence(i + 1, 4) + f" {i}", "positive": passage} for i, passage in enumerate(passages)]
  score = scores_of(model, [pair["query"] for pair in pairs], passages)
  flags = {"model": model, "num_negatives": 5, "first_rank": 3, "last_rank": 12}
  records = mined(tmp_path, pairs, **flags)
  for i, record in enumerate(records):
    ranks = [int((score[i] > score[i][passages.index(negative)]).sum()) + 1 for negative in record["negatives"]]
    assert len(ranks) == 5 and ranks == sorted(ranks) and set(ranks) <= set(range(3, 13))
    assert record["positive"] not in record["negatives"]

  # Again, and with the scores compared: the store is there, and nothing is encoded but queries.
  towers = []

  def watched(*args):
    towers.append(args[3])
    return embed_tokens(*args)

  embed_tokens = embed.embed_tokens
  monkeypatch.setattr(embed, "embed_tokens", watched)
  monkeypatch.setattr(encode.EmbeddingStream, "add", lambda *args: towers.append("a document"))
  assert mined(tmp_path, pairs, **flags) == records
  assert len(list((tmp_path / "embeddings").iterdir())) == 1
  for limits in ({"margin": 0.05}, {"max_score_ratio": 0.9}):
    for i, record in enumerate(mined(tmp_path, pairs, **{**flags, "first_rank": 1, "last_rank": 60,
                                                         "num_negatives": 60}, **limits)):
      most = score[i][i] - limits.get("margin", abs(score[i][i]) * 0.1)
      clear = abs(score[i] - most) > 1e-5  # Programs of other shapes round otherwise.
      near = {passage for passage in passages if are_near(passage, record["positive"])}
      assert {passages[j] for j in np.flatnonzero((score[i] < most) & clear)} - near <= set(record["negatives"])
      assert not {passages[j] for j in np.flatnonzero((score[i] > most) & clear)} & set(record["negatives"])
  assert set(towers) == {"query"}


@pytest.mark.parametrize("with_model", [False, True])
def test_a_corpus_and_its_judgements(tmp_path, model, with_model):
  documents = corpus(50)
  folder = write_collection(tmp_path / "made_up", documents)
  (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
  flags = {"model": model if with_model else None, "num_negatives": 3, "last_rank": 20}
  code, records = mine(tmp_path, collection=folder, **flags)
  assert code == 0
  texts = dict(zip(documents.ids, documents.full_texts(), strict=True))
  assert [(r["query_id"], r["passage_id"]) for r in records] == [
      (f"q{i}", documents.ids[i + j]) for i in range(12) for j in range(2)]
  for i, record in enumerate(records):
    assert record["positive"] == texts[record["passage_id"]]
    assert not {records[i - i % 2]["passage_id"], records[i - i % 2 + 1]["passage_id"]} & set(record["negative_ids"])
    assert record["negatives"] == [texts[doc_id] for doc_id in record["negative_ids"]]
  assert sum(len(r["negatives"]) for r in records) > 40

  # The same from files of MS MARCO's kind, and from pairs that name documents.
  tsv = tmp_path / "made_up_tsv"
  tsv.mkdir()
  (tsv / "collection.tsv").write_text("".join(f"{i}\t{texts[i]}\n" for i in documents.ids))
  (tsv / "queries.train.tsv").write_text("".join(f"q{i}\t{records[2 * i]['query']}\n" for i in range(12)))
  (tsv / "qrels.train.tsv").write_text("".join(f"{r['query_id']}\t0\t{r['passage_id']}\t1\n" for r in records))
  assert mine(tmp_path, output="tsv.jsonl", collection=tsv, **flags) == (0, records)
  pairs = [{name: r[name] for name in ("query_id", "query", "passage_id", "positive")} for r in records]
  assert mine(tmp_path, output="pairs_out.jsonl", collection=tsv, pairs=write(tmp_path / "pairs.jsonl", pairs),
              query_id_field="query_id", passage_id_field="passage_id", **flags) == (0, records)
  for record in mine(tmp_path, output="margin.jsonl", collection=tsv, **{**flags, "max_score_ratio": 0.7})[1]:
    assert set(record["negative_ids"]) < set(texts)


@pytest.mark.parametrize(("pairs", "flags", "message"), [
    ([{"query": "a"}], {}, "pairs.jsonl:1: fields 'query' are of no kind that is known; name those of the query and"),
    ([{"a": "x"}], {"query_field": "a"}, "pairs.jsonl:1: no field 'positive', only 'a'"),
    ([PAIRS[0], {"query": " ", "positive": "x"}], {}, 'pairs.jsonl:2: "query" is empty'),
    ([PAIRS[0], {"query": "x", "positive": ""}], {}, 'pairs.jsonl:2: "positive" is empty'),
    ([{**PAIRS[0], "a": [1]}], {"answers_field": "a"}, 'pairs.jsonl:1: "a" is [1]; give a string or a list'),
    (PAIRS, {"answers_field": "a"}, 'pairs.jsonl:1: "a" is null; give a string or a list'),
    ([], {}, "pairs.jsonl: is empty"),
    (PAIRS, {"first_rank": 5, "last_rank": 4}, "ranks 5 to 4"),
    (PAIRS, {"last_rank": 4, "num_negatives": 5}, "5 negatives: ranks 1 to 4 have fewer"),
    (PAIRS, {"max_score_ratio": 1.1}, "BM25 knows the score"),
    (PAIRS, {"margin": -1}, "BM25 knows the score"),
    (PAIRS, {"embeddings": "x"}, "--embeddings keeps those of --model"),
    (PAIRS, {"model": "not/here/at/all"}, "not/here/at/all"),
    (PAIRS, {"collection": "not_here"}, "not_here: no such folder"),
    (PAIRS, {"collection": "not_here", "margin": 1}, "say with --passage_id_field"),
    (PAIRS, {"split": "dev"}, "--split says"),
    (PAIRS, {"query_id_field": "qid"}, "no pair has a 'qid'"),
    (PAIRS, {"passage_id_field": "pid"}, "no pair has a 'pid'"),
    (None, {}, "give --pairs"),
    (None, {"collection": "x", "query_field": "q"}, "--query_field is a field of --pairs"),
])
def test_bad_input_writes_nothing(tmp_path, capsys, pairs, flags, message):
  if pairs is not None:
    flags["pairs"] = write(tmp_path / "pairs.jsonl", pairs)
  assert mine(tmp_path, **flags)[0] == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("gtr-jax mine: ") and message in error
  assert [p.name for p in tmp_path.iterdir()] in (["pairs.jsonl"], [])


def test_a_pairs_passage_without_the_title_of_its_document(tmp_path):
  folder = write_collection(tmp_path / "made_up", documents := corpus(20))
  assert any(documents.titles)
  pairs = [{"query": f"{text} {i}", "positive": text} for i, text in enumerate(documents.texts)]
  code, records = mine(tmp_path, pairs=write(tmp_path / "pairs.jsonl", pairs), collection=folder, num_negatives=19,
                       last_rank=20)
  assert code == 0 and any(record["negatives"] for record in records)
  whole = documents.full_texts()
  assert not any(whole[i] in record["negatives"] for i, record in enumerate(records))


def test_two_runs_at_the_same_output(tmp_path, monkeypatch):
  """The other run's lines are its own, whoever is done first."""
  pairs = write(tmp_path / "pairs.jsonl", PAIRS)
  expected = mine(tmp_path, pairs=pairs, num_negatives=2)[1]
  rank = rankers.Bm25Ranker.rank

  def interrupted(self, *args):
    monkeypatch.setattr(rankers.Bm25Ranker, "rank", rank)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert mine(tmp_path, pairs=pairs, num_negatives=1)[0] == 0
    return rank(self, *args)

  monkeypatch.setattr(rankers.Bm25Ranker, "rank", interrupted)
  assert mine(tmp_path, pairs=pairs, num_negatives=2) == (0, expected)
  assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_a_killed_run_has_left_is_removed(tmp_path):
  """Tables on disk may be large."""
  left = tmp_path / f".out.jsonl.{failures.HOST}-{2**22 + 1}-0.tmp"  # No process has such a number.
  left.mkdir()
  (left / "known").write_bytes(b"x")
  mined(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


def test_ids_of_another_collection(tmp_path, capsys):
  folder = write_collection(tmp_path / "made_up", documents := corpus(20))

  def told(*ids):
    pairs = [{"query": "lion", "positive": "x", "pid": pid} for pid in ids]
    code = mine(tmp_path, pairs=write(tmp_path / "pairs.jsonl", pairs), collection=folder, passage_id_field="pid")[0]
    return code, (found := capsys.readouterr()).out + found.err.splitlines()[-1]

  there = documents.ids[:2]
  code, error = told(there[0], "x1", "x1", None)
  assert code == 2 and "unknown pid 'x1'" in error and "2 of 3 pairs; give the collection" in error
  code, error = told(None)
  assert code == 2 and "no pair has a 'pid'" in error
  assert not (tmp_path / "out.jsonl").exists()
  code, said = told(*there, "x1", "x2")
  assert code == 0 and "; 2 have a passage id that" in said
  code, said = told(*there)
  assert code == 0 and "passage id" not in said


def test_an_output_that_is_a_folder(tmp_path, capsys):
  (tmp_path / "out.jsonl").mkdir()
  pairs = write(tmp_path / "pairs.jsonl", [{"not": "read"}])
  assert main(["mine", f"--pairs={pairs}", f"--output={tmp_path}/out.jsonl"]) == 2
  assert "out.jsonl: is a folder; name the file" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("file", "text", "message"), [
    ("collection.tsv", "1\n", "collection.tsv:1: 1 columns"),
    ("collection.tsv", "", "collection.tsv: is empty"),
    ("collection.tsv", "1\ta\n1\tb\n", "collection.tsv:2: duplicate _id '1'"),
    ("collection.tsv", "1\t \n", "collection.tsv:1: 2 columns, or no text"),
    ("qrels.train.tsv", "7\t0\t1\t1\n", "qrels.train.tsv:1: unknown query '7'"),
    ("qrels.train.tsv", "3\t0\t9\t1\n", "qrels.train.tsv:1: unknown document '9'"),
    ("qrels.train.tsv", "3\t0\t1\tx\n", "qrels.train.tsv:1: the grade"),
    ("queries.train.tsv", None, "no queries.jsonl or queries.train.tsv, plain or compressed; there are "
     "collection.tsv, qrels.train.tsv"),
])
def test_broken_msmarco_files(tmp_path, capsys, file, text, message):
  good = {"collection.tsv": "1\ta\n2\tb\n", "queries.train.tsv": "3\tlion\n", "qrels.train.tsv": "3\t0\t1\t1\n"}
  for name, content in {**good, file: text}.items():
    if content is not None:
      (tmp_path / name).write_text(content)
  assert mine(tmp_path, collection=tmp_path)[0] == 2
  assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("form", table_files.FORMS)
def test_pairs_in_a_table(tmp_path, form):
  """As in JSON lines; the output has all their columns."""
  flags = {"num_negatives": 2, "answers_field": "answers"}
  pairs = [pair | {"source": f"of {i}", "answers": [f"habitat {'one' * (i % 2)}"]} for i, pair in enumerate(PAIRS)]
  expected = mined(tmp_path, pairs, **flags)
  if form in ("x.csv", "x.tsv"):
    expected = [record | {"answers": json.dumps(record["answers"])} for record in expected]
  path = table_files.write(tmp_path, form, pairs)
  assert mine(tmp_path, pairs=path, output="table.jsonl", **flags) == (0, expected)
  assert any(record["negatives"] for record in expected)


def test_a_table_that_is_no_pairs(tmp_path, capsys):
  path = table_files.write(tmp_path, "x.parquet", [{"query": "a", "positive": None}])
  assert mine(tmp_path, pairs=path) == (2, None)
  assert f'{path}:row 1: "positive" is null' in capsys.readouterr().err
