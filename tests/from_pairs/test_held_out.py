"""The test collection of the held-out pairs: what is in it beside their own passages."""

import json
from pathlib import Path

import pytest
from tiny_model_dir import sentence

from gtr_jax.collections.collection import read_collection
from gtr_jax.from_pairs import data
from gtr_jax.io import data_root
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.text.same_text import text_key


@pytest.fixture(autouse=True)
def data_dir(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  yield
  data_root.set_data_dir(None)


def prepare(path, rows, share=0.2):
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return data.prepare(PairsJsonl((str(path),)), share)


def documents_of(pairs):
  return read_collection(pairs.collection).documents.texts


def passages(pairs, split):
  return [text for of in data.sample(pairs.name, split, 10_000) for text in of["passage"]]


def test_the_first_passages_to_train_on_fill_it_up(tmp_path):
  pairs = prepare(tmp_path / "a.jsonl", [[f"{i} {sentence(i, 4)}", f"{i} {sentence(i, 9)}"] for i in range(200)])
  held_out = passages(pairs, "validation")
  assert len(set(held_out)) == len(held_out) < pairs.train // 2
  documents = list(documents_of(pairs))
  assert documents == held_out + passages(pairs, "train")[:pairs.train // 2 - len(held_out)]
  assert pairs.sizes == {"queries": pairs.validation, "documents": pairs.train // 2}


def test_most_documents(tmp_path, monkeypatch):
  rows = [[f"{i} {sentence(i, 4)}", f"{i} {sentence(i, 9)}"] for i in range(200)]
  for most in (50, 3):
    monkeypatch.setattr(data, "MOST_DOCUMENTS", most)
    pairs = prepare(tmp_path / "a.jsonl", rows)
    assert len(documents_of(pairs)) == max(most, pairs.validation) == pairs.sizes["documents"]


def test_nothing_that_may_answer_a_held_out_query_is_among_them(tmp_path):
  rows = [{"set": [f"{i} {sentence(i, 4)}", f"{i} {sentence(i, 9)}"]} for i in range(100)]
  rows += [{"set": [f"{i} {sentence(i, 4).upper()} .", f"another answer to {i}"]} for i in range(100)]
  rows += [[f"what {i} answers", f"{i} {sentence(i, 4)}!"] for i in range(100)]  # Queries as passages.
  rows += [[f"again {i}", f"{i}  {sentence(i, 9)}"] for i in range(100)]  # Passages of others.
  pairs = prepare(tmp_path / "a.jsonl", rows, 0.1)
  train, held_out = (list(data.sample(pairs.name, split, 10_000)) for split in ("train", "validation"))
  queries = {text_key(pair["query"][0]) for pair in held_out}
  assert not queries & {text_key(pair["query"][0]) for pair in train}
  own = [text_key(pair["passage"][0]) for pair in held_out]
  documents = [text_key(text) for text in documents_of(pairs)]
  added = documents[len(set(own)):]
  assert len(set(documents)) == len(documents) == pairs.train // 2 and len(added) > 20
  would_be = {text_key(pair["passage"][0]) for pair in train[:len(added)]}
  assert would_be & queries and would_be & set(own)  # Or nothing is tested here.
  assert not set(added) & (queries | set(own))


def test_a_query_of_sets_and_of_pairs_is_held_out_with_all_of_its_passages(tmp_path):
  """And what is held out of a set is trained on in none, in no place, nor as its mirror image."""
  texts = [f"how to fix thing {i}" for i in range(60)]
  rows = [{"set": [text, f"repairing of {text}", f"mending {text}"]} for text in texts]
  rows += [{"set": [f"{verb} {text}", text]} for text in texts for verb in ("to mend:", "mending")]
  rows += [{"query": f"Repairing of {text}.", "positive": f"the manual of {text}"} for text in texts]
  pairs = prepare(tmp_path / "a.jsonl", rows)
  train, held_out = ([tuple(text_key(pair[name][0]) for name in ("query", "passage")) + (pair["query_id"][0],)
                      for pair in data.sample(pairs.name, split, 10_000)] for split in ("train", "validation"))
  assert len(train) + len(held_out) == 5 * len(texts) and 30 < len(held_out) < 150
  queries = {query for query, *_ in held_out}
  assert not queries & {query for query, *_ in train}
  assert not queries & {text for *both, of_set in train if of_set for text in both}
  assert {frozenset(both) for *both, _ in train}.isdisjoint(frozenset(both) for *both, _ in held_out)

def test_one_that_was_cut_off_or_is_of_another_form_is_written_anew(tmp_path):
  rows = [[f"{i} {sentence(i, 4)}", f"{i} {sentence(i, 9)}"] for i in range(200)]
  pairs = prepare(tmp_path / "a.jsonl", rows)
  files = {path: path.read_bytes() for path in Path(pairs.collection).rglob("*") if path.is_file()}
  for path in files:
    path.write_bytes(b"half") if path.name != "held_out.json" else path.unlink()
  before = data_root.resolve(f"{pairs.name}-held_out")  # Of the pairs held out alone.
  (before / "qrels").mkdir(parents=True)
  (before / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
  again = data.prepare(PairsJsonl((str(tmp_path / "a.jsonl"),)), 0.2)
  assert again == pairs and {path: path.read_bytes() for path in files} == files


def test_wordings_of_an_id_are_held_out_together_and_judged_by_all_of_their_passages(tmp_path):
  rows = [{"query_id": f"q{of_id}", "query": f"wording {number} of {of_id}", "positive": f"{of_id} answered {number}"}
          for of_id in range(60) for number in range(4)]
  rows += [{"query": f"Wording 0 of {of_id}.", "positive": f"{of_id} once more"} for of_id in range(60)]
  pairs = prepare(tmp_path / "a.jsonl", rows, None)
  train, held_out = ({pair["query"][0].strip(".").split()[-1] for pair in data.sample(pairs.name, split, 10_000)}
                     for split in ("train", "validation"))
  assert not train & held_out and len(train) + len(held_out) == 60 and len(held_out) > 1
  collection = read_collection(pairs.collection)
  texts = dict(zip(collection.documents.ids, collection.documents.texts, strict=True))
  queries = dict(zip(collection.query_ids, collection.queries, strict=True))
  assert len(queries) == 4 * len(held_out)
  for query_id, text in queries.items():
    _, number, _, of_id = text.lower().strip(".").split()
    known = {f"{of_id} answered {other}" for other in range(4)} | ({f"{of_id} once more"} if number == "0" else set())
    assert {texts[doc_id] for doc_id in collection.qrels[query_id]} == known
