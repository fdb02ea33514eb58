"""One form of records: what is read of pairs, what of them is written, and that all of gtr_jax reads it again."""

import importlib.util
import json
from pathlib import Path

import pytest
import seqio
from mining_runs import mine, mined_from, write
from tiny_model_dir import corpus

from gtr_jax.cli.main import main
from gtr_jax.errors import InputError
from gtr_jax.from_pairs import data as from_pairs
from gtr_jax.io import data_root, tables
from gtr_jax.mining.pairs import Fields, read_pairs
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.interface import Counts
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.prepare.vectors import unpacked

FILLING = [{"query": f"lion {i}", "positive": f"lion number {i}"} for i in range(4)]
FORMS = {
    "names": [{"question": "lion food", "answer": "the lion eats zebra"}],
    "negatives": [{"anchor": "lion food", "positive": "the lion eats zebra", "negative": "a lion sleeps", "hard": 1}],
    "lists": [["lion food", "the lion eats zebra", "a lion sleeps"], ["lion den", "a lion's den"]],
    "set": [{"set": ["lion one two", "two lion one", "one two of lion"]}],
    "texts": [{"texts": ["lion food", "the lion eats zebra"]}],
    "several": [{"query": "lion food", "pos": ["the lion eats zebra", "lion and antelope"], "neg": ["lion den", "x"],
                 "pos_scores": [3, 2.5], "neg_scores": [1, 0], "type": "a"}],
    "objects": [{"question": "lion food", "positive_ctxs": [{"title": "Lion", "text": "eats zebra"}],
                 "hard_negative_ctxs": [], "dataset": "x"}],
    "labels": [{"query": "lion food", "passage": "the lion eats zebra", "label": 1},
               {"query": "lion food", "passage": "a lion sleeps", "label": 0},
               {"query": "lion den", "passage": "lion and sheep", "label": "0"}],
    "score": [{"query": "lion food", "positive": "the lion eats zebra", "positive_score": 7.5, "negatives": ["a"]}],
}


@pytest.fixture(autouse=True)
def data_folder(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  yield
  data_root.set_data_dir(None)


def examples_of(path):
  """What `gtr-jax prepare pairs` reads."""
  source, counts = PairsJsonl((str(path),)), Counts()
  found = [example for part in tables.parts(path) for _, example in source.read(part, counts)]
  assert counts.reasons["broken"] == 0, counts.places
  return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_prepare_reads(tmp_path, form):
  path = write(tmp_path / "pairs.jsonl", FORMS[form] + FILLING)
  pairs = [(example.query, example.passage) for example in examples_of(path) if not example.is_negative]
  code, mined = mine(tmp_path, pairs=path, num_negatives=9)
  assert code == 0 and [(record["query"], record["positive"]) for record in mined] == pairs
  marks = {"query_id", "passage_id", "negative_ids"} if form == "set" else set()
  assert all(set(record) <= {"query", "positive", "negatives", "mined", "hard", "type", "dataset"} | marks
             for record in mined)
  assert all(record["negatives"] for record in mined)
  again = examples_of(tmp_path / "out.jsonl")
  assert [(e.query, e.passage, list(e.negatives)) for e in again] == [
      (r["query"], r["positive"], r["negatives"]) for r in mined]
  assert not any(example.scores for example in again)  # What a ranker says is no teacher's score.


def test_what_a_label_calls_no_answer_is_searched_and_not_written(tmp_path):
  mined = mined_from(tmp_path, FORMS["labels"] + FILLING, num_negatives=9)
  assert mined[0]["query"] == "lion food" and len(mined) == 5
  assert {"a lion sleeps", "lion and sheep"} < set(mined[0]["negatives"])
  assert mine(tmp_path, pairs=write(tmp_path / "none.jsonl", FORMS["labels"][1:]), output="x.jsonl") == (2, None)


def test_the_field_of_the_answers_is_no_other_pair(tmp_path):
  path = write(tmp_path / "pairs.jsonl", [{"question": "a", "answer": "b", "gold_answers": ["b", "c"]}])
  pair, = read_pairs(path, Fields(answers="gold_answers"))
  assert pair.answers == ("b", "c") and pair.passage == "b"
  with pytest.raises(InputError, match="a field 'gold_answers', which may change"):
    list(read_pairs(path))


def test_all_answers_of_a_line_are_known(tmp_path):
  negatives = [record["negatives"] for record in mined_from(tmp_path, FORMS["several"] + FILLING, num_negatives=9)]
  assert negatives[0] == negatives[1] and not {"the lion eats zebra", "lion and antelope"} & set(negatives[0])


WITH_IDS = [{"query": f"lion place {i}", "positive": f"a lion lives in place {i}", "query_id": f"q{i}",
             "positive_id": i, "url": f"u{i}"} for i in range(5)] + [
                 {"query": "lion place, please", "positive": "no such place has a lion", "query_id": "q0"}]


def test_ids_are_found_by_their_names_and_stay(tmp_path):
  mined = mined_from(tmp_path, WITH_IDS, num_negatives=9)
  for pair, record in zip(WITH_IDS, mined, strict=True):
    assert {name: record[name] for name in pair} == pair
    assert "0" not in record["negative_ids"] or pair["query_id"] != "q0"
    assert [f"a lion lives in place {i}" if i else "no such place has a lion" for i in record["negative_ids"]] == (
        record["negatives"])
  assert mined[0]["negative_ids"] and mined[-1]["negative_ids"]
  # Ids that mean nothing are not read, and what has another name gets this one.
  without = mined_from(tmp_path, WITH_IDS, num_negatives=9, ignore="query_id,positive_id")
  assert "negative_ids" not in without[0] and len(without[0]["negatives"]) == 5
  renamed = [{"q": p["query"], "p": p["positive"], "nr": p["query_id"], "p_nr": p.get("positive_id")} for p in WITH_IDS]
  of_names = mined_from(tmp_path, renamed, num_negatives=9, query_field="q", passage_field="p", query_id_field="nr",
                        passage_id_field="p_nr")
  assert [{**record, "passage_id": record.get("positive_id")} | {"url": 0, "positive_id": 0} for record in mined] == [
      record | {"url": 0, "positive_id": 0} for record in of_names]


def test_ids_of_several_passages(tmp_path):
  """A list has one for each; one id is that of none of them."""
  pairs = [{"query": "lion a", "pos": ["first lion", "second lion"], "passage_id": ["x", "y"]},
           {"query": "lion b", "pos": ["third lion", "fourth lion"], "passage_id": "z"},
           {"query": "lion c", "pos": [], "passage_id": "0"}]
  mined = mined_from(tmp_path, pairs, num_negatives=9)
  assert [record.get("passage_id") for record in mined] == ["x", "y", None, None]
  assert [set(record["negative_ids"]) for record in mined] == [{None}, {None}, {"x", "y"}, {"x", "y"}]


TEXT = {name: " ".join(f"{name}{number}" for number in range(20)) + " lion" for name in "abcd"}


@pytest.mark.parametrize("by", ["query", "id", "lists", "set", "label"])
def test_copies_of_the_querys_other_passages(tmp_path, by):
  """Nearly so, and whatever their title: by whatever the pairs are of one query."""
  first, second = TEXT["a"], TEXT["b"]
  pairs = {"query": [{"query": "lion", "positive": first}, {"query": "Lion", "positive": second}],
           "id": [{"query": "lion", "positive": first, "query_id": 7}, {"query": "a lion", "positive": second,
                                                                        "query_id": 7}],
           "lists": [{"query": "lion", "pos": [first, second]}],
           "set": [{"set": ["the lion", first, second]}],
           "label": [{"query": "lion", "passage": text, "label": label} for text, label in (
               (first, 1), (TEXT["d"], 0), (second, 1))]}[by]
  others = [{"query": f"lion {i}", "positive": text} for i, text in enumerate((
      f"{first} here", f"Title {second}", f"{second} there", TEXT["c"], "the lion and more"))]
  mined = mined_from(tmp_path, pairs + others, num_negatives=9)
  right = {TEXT["c"], "the lion and more", *([TEXT["d"]] if by == "label" else [])}
  assert [set(record["negatives"]) for record in mined[:2]] == [right] * 2
  assert {first, second} < set(mined[-1]["negatives"])


@pytest.mark.parametrize("pairs", [
    None, [{"query": "lion", "positive": TEXT["a"], "passage_id": "a", "query_id": "q"},
           {"query": "lion", "positive": "as the pair has it", "passage_id": "b", "query_id": "q"}]])
def test_copies_in_a_collection(tmp_path, pairs):
  """Of what is judged relevant, lower grades too, or of what pairs name: short ones without their title as well."""
  (folder := tmp_path / "c").mkdir()
  (folder / "qrels").mkdir()
  documents = [("a", "Alpha", TEXT["a"]), ("b", "Beta", TEXT["b"]), ("low", "Short", "a lion"), ("a1", "", TEXT["a"]),
               ("b1", "", TEXT["b"] + " here"), ("b2", "Other", TEXT["b"]), ("low1", "", "a lion"),
               ("zero", "", "lion"), ("z", "Z", "another lion"), ("empty", "Cat of a lion", "")]
  write(folder / "corpus.jsonl", [{"_id": i, "title": title, "text": text} for i, title, text in documents])
  write(folder / "queries.jsonl", [{"_id": "q", "text": "lion and others"}])
  (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t2\nq\tlow\t1\nq\tzero\t0\n")
  flags = {"min_grade": 2} if pairs is None else {"pairs": write(tmp_path / "pairs.jsonl", pairs)}
  code, mined = mine(tmp_path, collection=folder, num_negatives=9, **flags)
  right = {"zero", "z", "empty"} if pairs is None else {"low", "z"}  # The query itself is none.
  assert code == 0 and len(mined) == 2
  for record in mined:
    found = set(record["negative_ids"])
    if pairs is not None:
      assert len(found & {"low", "low1"}) == 1  # Nor two of one text.
      found = found - {"low1", "zero", "empty"} | {"low"}
    assert found == right


@pytest.mark.parametrize("way", ["as it is", "prepared", "mined"])
def test_sets_stay_marked_and_each_of_their_texts_is_a_passage(tmp_path, way):
  path = write(tmp_path / "pairs.jsonl", [{"set": ["lion a", "lion b", "lion c", "lion d"]}, *FILLING])
  if way == "prepared":
    assert main(["prepare", "pairs", str(path), "--name", "sets", "--workers", "1"]) == 0
  elif way == "mined":
    path = write(tmp_path / "again.jsonl", mine(tmp_path, pairs=path, num_negatives=9)[1])
  code, mined = mine(tmp_path, pairs="sets" if way == "prepared" else path, num_negatives=9)
  of_set = [record for record in mined if record["query"] in ("lion a", "lion b", "lion c")]
  others = [record for record in mined if record not in of_set]
  marks = {record["query_id"] for record in of_set} | {record["passage_id"] for record in of_set}
  assert code == 0 and len(of_set) == 3 and len(marks) == 1 and len(others) == len(FILLING)
  texts = {"lion a", "lion b", "lion c", "lion d"}
  assert all(texts.isdisjoint(record["negatives"]) for record in of_set)
  for record in others:
    assert {"lion b", "lion c", "lion d"} < set(record["negatives"])
    ids = dict(zip(record["negatives"], record["negative_ids"], strict=True))
    assert {text for text, of in ids.items() if of in marks} == {"lion b", "lion c", "lion d"}
  again = [example for example in examples_of(write(tmp_path / "mined.jsonl", mined)) if example.query in texts]
  assert {example.query_id for example in again} == marks and all(example.is_mutual for example in again)


def test_title_and_text_of_pairs(tmp_path):
  """Passages that are objects are known without their title too."""
  pairs = [{"query": "what is a lion", "passage": {"title": "Lion", "text": "a big cat"}},
           {"query": "big lion cat", "passage": "a big cat"}, {"query": "lion cat", "passage": "no lion, but a cat"}]
  mined = mined_from(tmp_path, pairs, num_negatives=9)
  assert [record["positive"] for record in mined] == ["Lion a big cat", "a big cat", "no lion, but a cat"]
  assert [record["negatives"] for record in mined[:2]] == [["no lion, but a cat"]] * 2
  assert len(mined[2]["negatives"]) == 1  # One of the two, which have one text.


def test_lists_that_go_with_the_passages(tmp_path):
  """Are divided as these are; what goes with negatives goes with them."""
  pairs = [{"query": "lion a", "pos": ["first lion", "second lion"], "neg": ["no lion"], "pos_ids": ["x", "y"],
            "positive_titles": [["t"], None], "pos_notes": ["of all"], "neg_ids": ["n"], "tags": ["p", "q"],
            "pos_vectors": [[1, 2], [3, 4]], "neg_vectors": [[5, 6]], "query_vector": [7, 8]}]
  first, second, *_ = mined_from(tmp_path, pairs + FILLING, num_negatives=2, ignore="neg_ids")
  rest = {"query": "lion a", "pos_notes": ["of all"], "tags": ["p", "q"], "query_vector": [7, 8]}
  for record in (first, second):
    assert len(record.pop("negatives")) == 2 and record.pop("mined") and record.pop("negative_ids") == [None] * 2
  assert first == rest | {"positive": "first lion", "passage_id": "x", "positive_titles": ["t"],
                          "positive_vector": [1, 2]}
  assert second == rest | {"positive": "second lion", "passage_id": "y", "positive_titles": None,
                           "positive_vector": [3, 4]}


def test_ids_that_were_found_and_are_of_no_document(tmp_path, capsys):
  folder = tmp_path / "c"
  folder.mkdir()
  write(folder / "corpus.jsonl", [{"_id": f"x{i}", "text": f"lion number {i}"} for i in range(9)])
  pairs = write(tmp_path / "pairs.jsonl", [{"query": "lion", "positive": "lion number 3", "passage_id": "p3"}])
  flags = {"pairs": pairs, "collection": folder, "num_negatives": 3}
  assert mine(tmp_path, **flags) == (2, None)
  assert "give the collection that the ids are of, or say that they mean nothing here: --ignore passage_id" in (
      capsys.readouterr().err.splitlines()[-1])
  (record,) = mine(tmp_path, **flags, ignore="passage_id")[1]
  assert record["passage_id"] == "p3" and len(record["negatives"]) == 3 and "x3" not in record["negative_ids"]
  # BM25 looks for the pair's own passage by its id.
  assert mine(tmp_path, **flags, ignore="passage_id", margin=0.0, output="x.jsonl") == (2, None)
  assert "say with --passage_id_field which" in capsys.readouterr().err.splitlines()[-1]
  write(pairs, [{"query": "lion three 3", "positive": "lion number 3", "passage_id": "x3"}])
  (record,) = mine(tmp_path, **flags, margin=0.0)[1]
  assert len(record["negatives"]) == 3 and all(
      score <= record["mined"]["positive_score"] for score in record["mined"]["scores"])


def test_what_may_be_meant_in_two_ways(tmp_path, capsys):
  """With the names of this command's flags."""
  pair = {"title": "a lion", "body": "x", "query": "lion", "positive": "a lion eats"}
  pairs = write(tmp_path / "pairs.jsonl", [pair])
  assert mine(tmp_path, pairs=pairs) == (2, None)
  assert "name those that are (--query_field, --passage_field)" in capsys.readouterr().err.splitlines()[-1]
  assert mine(tmp_path, pairs=pairs, query_field="query")[1][0]["positive"] == "a lion eats"
  assert mine(tmp_path, pairs=pairs, query_field="title", passage_field="body")[1][0]["query"] == "a lion"
  assert mine(tmp_path, pairs=pairs, query_field="title,query", passage_field="body")[1][0]["query"] == "a lion lion"


def test_a_name_to_ignore_that_no_line_has(tmp_path, capsys):
  """Lists, whose passages may be objects, have no names."""
  rows = [["lion food", {"title": "Lion", "text": "eats zebra"}], {"query": "lion", "positive": "a lion", "Label": 0}]
  pairs = write(tmp_path / "pairs.jsonl", rows)
  assert [len(mine(tmp_path, pairs=pairs, ignore=name, output=f"{name}.jsonl")[1]) for name in ("label", "")] == [2, 1]
  assert mine(tmp_path, pairs=pairs, ignore="labell", output="x.jsonl") == (2, None)
  assert "no line has a field 'labell' (--ignore); correct the name" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("with_ids", [True, False])
def test_what_was_mined_is_read_by_all(tmp_path, capsys, with_ids):
  """By `mine`, `prepare pairs` and `train --pairs`, all without a word about its fields."""
  pairs = WITH_IDS if with_ids else [
      {name: value for name, value in pair.items() if name in ("query", "positive", "url")} for pair in WITH_IDS]
  mined = mined_from(tmp_path, pairs, num_negatives=3, output="data/mined/a.jsonl")
  path = tmp_path / "data/mined/a.jsonl"
  again = mine(tmp_path, pairs=path, num_negatives=3, output="again.jsonl")
  assert again == (0, mined)
  assert main(["prepare", "pairs", str(path), "--name=prepared", f"--data_dir={tmp_path}/data"]) == 0
  read = 'ids: "query_id" + "positive_id" + "negative_ids"; ' * with_ids
  assert f"{read}not read: url, mined" in capsys.readouterr().out
  trained = from_pairs.prepare(PairsJsonl((str(path),)), 0.0)
  negatives = {record["query"]: record["negatives"] for record in mined}
  for name in ("prepared", trained.name):
    assert {example.query: list(example.negatives) for example in in_folder(name)} == negatives


def test_a_teachers_vectors_stay(tmp_path):
  """Through `prepare` and `mine`, but for those of negatives that are replaced."""
  pairs = [pair | {"query_vector": [i, 0.5], "positive_vector": [0.25, i], "negatives": ["n"],
                   "negative_vectors": [[8, 8]]} for i, pair in enumerate(WITH_IDS)]
  of_query = {pair["query"]: (pair["query_vector"], pair["positive_vector"]) for pair in pairs}
  path = write(tmp_path / "vectors.jsonl", pairs)
  assert main(["prepare", "pairs", str(path), "--name=vectors", f"--data_dir={tmp_path}/data"]) == 0
  found = {e.query: [unpacked(vector).tolist() for vector in e.vectors] for e in in_folder("vectors")}
  assert found == {query: [*two, [8, 8]] for query, two in of_query.items()}
  for given in (path, tmp_path / "data/vectors"):
    for record in mine(tmp_path, pairs=given, num_negatives=2)[1]:
      assert (record["query_vector"], record["positive_vector"]) == of_query[record["query"]]
      assert "negative_vectors" not in record


def in_folder(name):
  """The pairs to train on that were prepared under a name."""
  for shard in manifests.shards(name):
    with open(shard.path, "rb") as f:
      yield from (records.example_in(record) for record in records.read_records(f, shard.path))


def test_ids_in_the_task_of_what_was_mined(tmp_path):
  mined = mined_from(tmp_path, WITH_IDS[:5], num_negatives=2, output="data/mined/with_ids.jsonl")
  spec = importlib.util.spec_from_file_location("mined_tasks", Path(__file__).parents[2] / "tasks/mined.py")
  try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    task = seqio.get_mixture_or_task("mined_with_ids")
    of = {row["query"].decode(): row for row in task.source.get_dataset("train", shuffle=False).as_numpy_iterator()}
    for record in mined:
      row = of[record["query"]]
      assert row["query_id"].decode() == record["query_id"]
      assert row["passage_id"].decode() == str(record["positive_id"])
      assert [i.decode() for i in row["negative_ids"]] == record["negative_ids"]
  finally:
    seqio.TaskRegistry.remove("mined_with_ids")


def test_what_prepare_wrote(tmp_path):
  pairs = FORMS["several"] + FORMS["labels"] + FILLING + [{"query": "other", "positive": "goat and lion"}]
  path = write(tmp_path / "pairs.jsonl", pairs)
  assert main(["prepare", "pairs", str(path), "--name=p", f"--data_dir={tmp_path}/data"]) == 0
  code, mined = mine(tmp_path, pairs=tmp_path / "data/p", num_negatives=9)
  assert code == 0
  of_lines = mined_from(tmp_path, [pair for pair in pairs if pair.get("label") not in (0, "0")], num_negatives=9)
  assert {(r["query"], r["positive"]): set(r["negatives"]) for r in mined} == {
      (r["query"], r["positive"]): set(r["negatives"]) for r in of_lines}
  assert mine(tmp_path, pairs=tmp_path / "data/p", query_field="q", output="x.jsonl") == (2, None)
  assert mine(tmp_path, pairs="p", data_dir=tmp_path / "data", num_negatives=9, output="named.jsonl") == (0, mined)
  assert mine(tmp_path, pairs="p", query_field="q", data_dir=tmp_path / "data", output="x.jsonl") == (2, None)


def test_what_was_prepared_knows_of_answers_that_are_not_there(tmp_path):
  """Where a part was held out, the others' keys are in the records."""
  example = next(iter(examples_of(write(tmp_path / "one.jsonl", FILLING[:1]))))
  known = example._replace(positives=(records.key_of("lion number 1"), records.key_of("lion number 2")))
  folder = tmp_path / "data/p"
  assert main(["prepare", "pairs", str(write(tmp_path / "pairs.jsonl", FILLING)), "--name=p",
               f"--data_dir={tmp_path}/data"]) == 0
  for shard in manifests.shards("p"):
    with open(shard.path, "rb") as f:
      there = list(records.read_records(f, shard.path))
    with open(shard.path, "wb") as f:
      for record in there:
        is_first = records.example_in(record).query == example.query
        records.write_record(f, records.serialize(known, records.id_in(record)) if is_first else record)
  manifest = json.loads((folder / "manifest.json").read_text())
  for files in manifest["splits"].values():
    for name in files:
      files[name] = (folder / name).stat().st_size
  (folder / "manifest.json").write_text(json.dumps(manifest))
  mined = {record["query"]: record["negatives"] for record in mine(tmp_path, pairs=folder, num_negatives=9)[1]}
  assert mined["lion 0"] == ["lion number 3"] and len(mined["lion 3"]) == 3


@pytest.mark.parametrize("chunks", [True, False])
def test_parts_of_the_querys_own_document(tmp_path, chunks):
  """A pair's passage that is named as a part of its query says what the other parts are called."""
  documents = corpus(40)
  folder = tmp_path / "chunked"
  folder.mkdir()
  write(folder / "corpus.jsonl", [{"_id": f"d{i // 4}#{i % 4}", "text": f"{text} number {i} lion"}
                                  for i, text in enumerate(documents.texts)])
  pairs = [{"query": f"lion number {i} of all", "positive": f"{documents.texts[4 * i]} number {4 * i} lion",
            "query_id": f"d{i}", "passage_id": f"d{i if chunks else (i + 1) % 10}#0"} for i in range(10)]
  code, mined = mine(tmp_path, pairs=write(tmp_path / "pairs.jsonl", pairs), collection=folder, num_negatives=39)
  assert code == 0
  for i, record in enumerate(mined):
    of_query = {doc_id for doc_id in record["negative_ids"] if doc_id.startswith(f"d{i}#")}
    assert len(record["negative_ids"]) >= 20 and bool(of_query) is not chunks


def test_least_grade_of_a_passage(tmp_path, capsys):
  folder = tmp_path / "graded"
  (folder / "qrels").mkdir(parents=True)
  write(folder / "corpus.jsonl", [{"_id": f"x{i}", "text": f"lion number {i}"} for i in range(6)])
  write(folder / "queries.jsonl", [{"_id": "a", "text": "lion a"}, {"_id": "b", "text": "lion b"}])
  (folder / "qrels/train.tsv").write_text(
      "query-id\tcorpus-id\tscore\na\tx0\t2\na\tx1\t1\na\tx2\t0\nb\tx3\t1\nb\tx4\t3\n")

  def negatives(**flags):
    records = mine(tmp_path, collection=folder, num_negatives=6, last_rank=6, **flags)[1]
    return {(r["query_id"], r["passage_id"]): set(r["negative_ids"]) for r in records}

  of_a, of_b = {"x2", "x3", "x4", "x5"}, {"x0", "x1", "x2", "x5"}
  assert negatives() == {("a", "x0"): of_a, ("a", "x1"): of_a, ("b", "x3"): of_b, ("b", "x4"): of_b}
  # What is judged relevant, though less than is asked for, is no negative.
  assert negatives(min_grade=2) == {("a", "x0"): of_a, ("b", "x4"): of_b}
  assert negatives(min_grade=3) == {("b", "x4"): of_b}
  assert mine(tmp_path, collection=folder, min_grade=4, output="x.jsonl") == (2, None)
  assert f"--min_grade 4: no judgement of {folder} is so high; the grades there are 0 (1), 1 (2), 2 (1), 3 (1); " in (
      capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("row, ids", [
    ({"query": "a b", "positive_passages": [{"docid": "d7", "title": "T", "text": "c"}, {"docid": "d8", "text": "d"}],
      "negative_passages": [{"docid": "d9", "text": "e"}]}, ["d7", "d8"]),
    ({"query": "a b", "pos": ["c", "d"], "pos_id": ["p1", "p2"], "neg": ["e"], "neg_id": ["n1"]}, ["p1", "p2"]),
    ({"query": "a b", "positive": {"_id": 5, "text": "c"}}, ["5"])])
def test_ids_of_passages_wherever_a_line_has_them(row, ids, tmp_path):
  path = tmp_path / "pairs.jsonl"
  path.write_text(json.dumps(row) + "\n")
  found = list(read_pairs(path))
  assert [pair.passage_id for pair in found] == [pair.record["passage_id"] for pair in found] == ids
  assert all(set(pair.record) == {"query", "passage_id", "positive"} for pair in found)
