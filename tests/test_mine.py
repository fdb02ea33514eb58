"""Hard negatives: never an answer, from the ranks asked for, the same every time."""

import gzip
import json

import pytest

from gtr_jax.errors import InputError
from gtr_jax.retrieval.bm25 import BM25Index
from gtr_jax.retrieval.mine import mine_bm25

# The first query is there twice, with two answers; "Lion habitat one" comes back in other spelling under another query.
PAIRS = [
    {"query": "lion habitat", "positive": "lion habitat one", "source": "a"},
    {"query": "Lion  HABITAT", "positive": "lion habitat two"},
    {"query": "lion habitat map", "positive": "Lion habitat  ONE"},
    {"query": "tiger", "positive": "tiger and lion habitat"},
    {"query": "tiger food", "positive": "lion food"},
    {"query": "copper", "positive": "silver"},
]


def write(path, pairs):
  path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
  return path


def mined(tmp_path, pairs=PAIRS, **options):
  short = mine_bm25(write(tmp_path / "pairs.jsonl", pairs), tmp_path / "out.jsonl", progress=False, **options)
  return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()], short


def test_answers_of_the_same_query_are_no_negatives(tmp_path):
  records, short = mined(tmp_path, num_negatives=9)
  assert [{k: v for k, v in r.items() if k != "negatives"} for r in records] == PAIRS
  negatives = [set(r["negatives"]) for r in records]
  assert negatives[0] == negatives[1] == {"tiger and lion habitat", "lion food"}
  assert negatives[2] == {"lion habitat two", "tiger and lion habitat", "lion food"}
  assert negatives[3] == set()
  assert negatives[4] == {"tiger and lion habitat"}
  assert negatives[5] == set()
  assert short == 6


def test_ids_tell_what_is_the_same(tmp_path):
  pairs = [{"q": "lion", "p": "lion one", "qid": 1, "pid": "a"},
           {"q": "big lion", "p": "lion two", "qid": 1, "pid": "b"},
           {"q": "lion food", "p": "lion one, revised", "qid": 2, "pid": "a"},
           {"q": "x", "p": "lion four", "pid": "d"}]
  records, _ = mined(tmp_path, pairs, query_field="q", passage_field="p", query_id_field="qid", passage_id_field="pid",
                     num_negatives=9)
  assert [set(r["negative_ids"]) for r in records] == [{"d"}, {"d"}, {"b", "d"}, set()]
  assert [len(r["negatives"]) for r in records] == [1, 1, 2, 0]


def test_ranks_and_draw(tmp_path):
  passages = [f"lion {'lion ' * i}word{i}" for i in range(20)]
  pairs = [{"query": f"lion query{i}", "positive": passage} for i, passage in enumerate(passages)]
  ranked = [passages[row] for row in next(BM25Index(passages, progress=False).search(["lion"], 20))[0]]
  records, short = mined(tmp_path, pairs, num_negatives=3, first_rank=4, last_rank=10)
  assert short == 0
  for record in records:
    ranks = [ranked.index(negative) + 1 for negative in record["negatives"]]
    assert len(set(ranks)) == 3
    assert ranks == sorted(ranks)
    assert set(ranks) <= set(range(4, 11))
    assert record["positive"] not in record["negatives"]
  assert len({tuple(r["negatives"]) for r in records}) > 5  # Drawn anew for each query.
  assert mined(tmp_path, pairs, num_negatives=3, first_rank=4, last_rank=10)[0] == records
  assert mined(tmp_path, pairs, num_negatives=3, first_rank=4, last_rank=10, seed=1)[0] != records


def test_gzip_in_and_out(tmp_path):
  (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(p) + "\n" for p in PAIRS).encode()))
  mine_bm25(tmp_path / "pairs.jsonl.gz", tmp_path / "new" / "out.jsonl.gz", progress=False)
  lines = gzip.decompress((tmp_path / "new" / "out.jsonl.gz").read_bytes()).splitlines()
  assert len(lines) == len(PAIRS)
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.jsonl.gz"]


@pytest.mark.parametrize(("pairs", "options", "message"), [
    ([{"query": "a"}], {}, 'pairs.jsonl:1: no "positive"'),
    ([PAIRS[0], {"query": " ", "positive": "x"}], {}, 'pairs.jsonl:2: "query" is empty'),
    ([PAIRS[0], {"query": "x", "positive": ""}], {}, 'pairs.jsonl:2: "positive" is empty'),
    ([], {}, "pairs.jsonl: no pairs"),
    (PAIRS, {"first_rank": 5, "last_rank": 4}, "ranks 5 to 4"),
])
def test_bad_input_writes_nothing(tmp_path, pairs, options, message):
  with pytest.raises(InputError, match=message):
    mined(tmp_path, pairs, **options)
  assert [p.name for p in tmp_path.iterdir()] in (["pairs.jsonl"], [])
