"""BEIR collections: what is read, and one line with file and line number for all that is wrong."""

import gzip
import json

import numpy as np
import pytest
import table_files

from gtr_jax.collections.collection import read_collection, read_documents, splits
from gtr_jax.collections.corpus import full_text
from gtr_jax.errors import InputError

CORPUS = [{"_id": "d1", "title": "Cats", "text": "They purr."}, {"_id": "d2", "title": "", "text": "Dogs bark."},
          {"_id": "d3", "text": "No title at all."}]
QUERIES = [{"_id": "q1", "text": "who purrs"}, {"_id": "q2", "text": "not judged"}, {"_id": "q3", "text": "who barks"}]
QRELS = "query-id\tcorpus-id\tscore\nq3\td2\t2\nq1\td1\t1\nq1\td3\t0\n"


def jsonl(records):
  return "".join(json.dumps(r) + "\n" for r in records)


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "pets"
  (folder / "qrels").mkdir(parents=True)
  (folder / "corpus.jsonl").write_text(jsonl(CORPUS))
  (folder / "queries.jsonl").write_text(jsonl(QUERIES))
  (folder / "qrels" / "test.tsv").write_text(QRELS)
  return folder


def error(call, *args, **kwargs):
  with pytest.raises(InputError) as e:
    call(*args, **kwargs)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_reads_the_layout_and_keeps_judged_queries_only(folder):
  collection = read_collection(folder)
  assert collection.name == "pets"
  assert collection.documents.ids == ["d1", "d2", "d3"]
  assert list(collection.documents.full_texts()) == ["Cats They purr.", "Dogs bark.", "No title at all."]
  assert collection.words.tolist() == [3, 2, 4]
  assert (collection.query_ids, collection.queries) == (["q1", "q3"], ["who purrs", "who barks"])
  assert collection.qrels == {"q3": {"d2": 2}, "q1": {"d1": 1, "d3": 0}}


def test_document_text_has_no_space_for_an_empty_title():
  assert full_text("a title", "a text") == "a title a text"
  assert full_text("", "a text") == "a text"
  assert full_text("a title", "") == "a title"


def test_reads_gzip_and_says_when_it_is_cut_off(folder):
  (folder / "corpus.jsonl").unlink()
  packed = gzip.compress(jsonl(CORPUS).encode(), mtime=0)
  (folder / "corpus.jsonl.gz").write_bytes(packed)
  assert read_collection(folder).documents.ids == ["d1", "d2", "d3"]
  (folder / "corpus.jsonl.gz").write_bytes(packed[:-12])
  assert "corpus.jsonl.gz:" in error(read_collection, folder)
  (folder / "corpus.jsonl.gz").write_bytes(b"not gzip")
  assert "corpus.jsonl.gz: is plain text, not compressed as its name says" in error(read_collection, folder)


@pytest.mark.parametrize(("line", "message"), [
    ('{"_id": "d9", "text": }', "corpus.jsonl:4: not JSON"),
    ('["d9"]', "corpus.jsonl:4: a list of JSON, not an object"),
    ('{"title": "t", "text": "t"}', 'corpus.jsonl:4: no "_id"'),
    ('{"_id": 9.5, "text": "t"}', 'corpus.jsonl:4: "_id": 9.5 is no id'),
    ('{"_id": null, "text": "t"}', 'corpus.jsonl:4: "_id" is null'),
    ('{"_id": " ", "text": "t"}', 'corpus.jsonl:4: "_id" is \' \''),
    ('{"_id": true, "text": "t"}', 'corpus.jsonl:4: "_id": true is no id'),
    ('{"_id": ["d9"], "text": "t"}', 'corpus.jsonl:4: "_id": ["d9"] is no id'),
    ('{"_id": "d 9", "text": "t"}', 'corpus.jsonl:4: "_id" is \'d 9\''),
    ('{"_id": "d1", "text": "t"}', "corpus.jsonl:4: duplicate _id 'd1', first at "),
    ('{"_id": "d9", "title": " ", "text": ""}', "corpus.jsonl:4: document 'd9' has neither title nor text"),
    ('{"_id": "d9", "title": ["a"], "text": ""}', 'corpus.jsonl:4: "title" is ["a"], not a string'),
])
def test_bad_documents(folder, line, message):
  with (folder / "corpus.jsonl").open("a") as f:
    f.write(line + "\n")
  assert message in error(read_documents, folder)
  assert message in error(read_collection, folder)


def test_empty_documents_can_be_kept(folder):
  with (folder / "corpus.jsonl").open("a") as f:
    f.write('{"_id": "d9", "text": ""}\n')
  assert "--allow_empty_documents" in error(read_collection, folder)
  assert read_collection(folder, allow_empty_documents=True).documents.full_texts()[-1] == ""


def test_bytes_that_are_not_utf8(folder):
  with (folder / "corpus.jsonl").open("ab") as f:
    f.write(b'{"_id": "d9", "text": "\xff"}\n')
  assert "corpus.jsonl:4: not UTF-8" in error(read_collection, folder)


@pytest.mark.parametrize(("line", "message"), [
    ('{"_id": "q9", "text": "  "}', "queries.jsonl:4: query 'q9' is empty"),
    ('{"_id": "q9"}', 'queries.jsonl:4: no "text"'),
    ('{"_id": "q1", "text": "again"}', "queries.jsonl:4: duplicate _id 'q1'"),
])
def test_bad_queries(folder, line, message):
  with (folder / "queries.jsonl").open("a") as f:
    f.write(line + "\n")
  assert message in error(read_collection, folder)


@pytest.mark.parametrize(("text", "message"), [
    ("query-id\tcorpus-id\tscore\nq1\td1\t0\n", "test.tsv: no document is judged relevant, every grade is 0"),
    ("who\twhat\tscore\nq1\td1\t1\n", "if this is the header, write query-id, corpus-id and score"),
])
def test_judgements_that_are_of_no_use(folder, text, message):
  (folder / "qrels/test.tsv").write_text(text)
  assert message in error(read_collection, folder)


@pytest.mark.parametrize(("line", "message"), [
    ("q1\td9\t1", "test.tsv:5: unknown document 'd9'"),
    ("q9\td1\t1", "test.tsv:5: unknown query 'q9'"),
    ("q1\td2\t1.5", "test.tsv:5: the grade '1.5' is not a whole number"),
    ("q1,d2,1", "test.tsv:5: 1 columns"),
    ("q1 0 d2 1 run", "test.tsv:5: 5 columns"),
    ("q1\t\t1", "test.tsv:5: 3 columns, or an empty one"),
    ("q1\td2\t", "test.tsv:5: 3 columns, or an empty one"),  # NaN, as tables write it.
    ("q1\td2", "test.tsv:5: 2 columns, where there are 3 above"),  # Cut off.
    ("q1 0 d2 1", "test.tsv:5: 4 columns, where there are 3 above"),
    ("q1\td2.0\t1", "test.tsv:5: unknown document 'd2.0'"),
    ("q1\t2.0\t1", "unknown document '2.0'; it is not in the corpus (is it '2' there?"),
    ("q1\td2\tnan", "test.tsv:5: the grade 'nan' is not a whole number"),
    ("q1\td1\t0", "test.tsv:5: query 'q1', document 'd1' was judged 1 above and 0 here"),
])
def test_bad_judgements(folder, line, message):
  with (folder / "qrels" / "test.tsv").open("a") as f:
    f.write(line + "\n")
  assert message in error(read_collection, folder)


@pytest.mark.parametrize("text", [
    "q3\td2\t2\nq1\td1\t1\nq1\td3\t0\n", "query-id\tcorpus-id\tscore\nq3\td2\t2.0\nq1\td1\t1.\nq1\td3\t0.0\n",
    "query_id\tcorpus_id\tscore\r\nq3\td2\t2\r\nq1\td1\t1\r\n\r\nq1\td3\t0\r\n", "q3 0 d2 2\nq1 0 d1 1\nq1 0 d3 0\n",
    "q3\tQ0\td2\t2\nq1\tQ0\td1\t+1\nq1\tQ0\td3\t0\n", "\ufeffqid\tpid\trelevance\nq3 d2 2\nq1 d1 1\nq1 d3 0",
], ids=["no-header", "grades-of-tables", "windows", "trec", "msmarco", "other-header"])
def test_forms_of_judgements(folder, text):
  expected = read_collection(folder)
  (folder / "qrels" / "test.tsv").write_text(text)
  found = read_collection(folder)
  assert (found.qrels, found.hash) == (expected.qrels, expected.hash)
  (folder / "qrels" / "test.tsv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
  (folder / "qrels" / "test.tsv").unlink()
  assert read_collection(folder).hash == expected.hash


def test_the_files_of_msmarco(folder, tmp_path):
  """The same collection in another layout, with ids that are numbers in one and texts in the other."""
  (folder / "corpus.jsonl").write_text(jsonl([{"_id": i, "text": f"text {i}"} for i in range(3)]))
  (folder / "queries.jsonl").write_text(jsonl([{"_id": float(i), "text": f"query {i}"} for i in range(2)]))
  (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t2\t1\n1\t0\t1\n")
  other = tmp_path / "other"
  other.mkdir()
  (other / "collection.tsv").write_text("".join(f"{i}\ttext {i}\n" for i in range(3)))
  (other / "queries.dev.tsv").write_text("".join(f"{i}\tquery {i}\n" for i in range(2)))
  (other / "qrels.dev.tsv").write_text("0 0 2 1\n1 0 0 1\n")
  one, two = read_collection(folder), read_collection(other, "dev")
  assert one.hash == two.hash and one.documents.full_texts()[:] == two.documents.full_texts()[:]
  assert "splits here: dev" in error(read_collection, other, "train")


def test_judgements_of_another_collection(folder):
  (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nother1\td1\t1\nother2\tx\t1\n")
  assert error(read_collection, folder).endswith("test.tsv:3: unknown query 'other1'; it is not in the queries file, "
                                                 "as for 2 of 3 judgements; give those of this collection")
  (folder / "qrels" / "test.tsv").write_text("".join(f"q1\td{i}\t1\n" for i in range(9)))
  assert "unknown document 'd0'; it is not in the corpus, as for 6 of 9 judgements" in error(read_collection, folder)


def test_texts_stay_on_disk(folder):
  with (folder / "corpus.jsonl").open("ab") as f:
    f.write('\n{"_id": "d9", "title": "Ünïcode \u2028", "text": null, "metadata": {}}\r\n'.encode())
  documents = read_documents(folder, allow_empty_documents=True)
  assert (documents.titles[3], documents.texts[3], documents.texts[-3]) == ("Ünïcode \u2028", "", "Dogs bark.")
  assert documents.titles[:2] == ["Cats", ""] and len(documents.texts) == 4
  turned = documents.reordered(np.asarray([3, 0]))
  assert (turned.ids, list(turned.titles), list(turned.texts)) == (["d9", "d1"], ["Ünïcode \u2028", "Cats"], [
      "", "They purr."])
  assert list(turned.full_texts()) == ["Ünïcode", "Cats They purr."]
  with pytest.raises(IndexError):
    documents.texts[4]
  (folder / "corpus.jsonl").write_text("{" * 200)
  assert "corpus.jsonl: changed while it was in use" in error(lambda: documents.texts[1])


def test_what_is_missing_is_named(folder, tmp_path):
  assert "dev.tsv: no such file; splits here: test" in error(read_collection, folder, "dev")
  (folder / "queries.jsonl").unlink()
  assert "no queries.jsonl or queries.test.tsv, plain or compressed" in error(read_collection, folder)
  assert "no such folder" in error(read_collection, tmp_path / "nothing")
  (folder / "corpus.jsonl").write_text("\n")
  assert "corpus.jsonl: no documents" in error(read_documents, folder)
  (folder / "queries.jsonl").write_text("")
  (folder / "corpus.jsonl").write_text(jsonl(CORPUS))
  assert "queries.jsonl: is empty" in error(read_collection, folder)


TABLES = {"parquet": ("corpus.parquet", "queries.parquet", "qrels/test.parquet"),
          "arrow": ("corpus.arrow", "queries.feather", "qrels/test.arrow"),
          "csv": ("corpus.csv", "queries.csv", "qrels/test.csv"),
          "folders": ("corpus", "queries", "qrels/test"),
          "shards": ("corpus", "queries.parquet", "qrels/test-00000-of-00001.parquet")}


def write_tables(folder, kind, corpus=CORPUS, queries=QUERIES):
  """A collection as tables."""
  qrels = [dict(zip(("query-id", "corpus-id", "score"), line.split("\t"), strict=True))
           for line in QRELS.splitlines()[1:]]
  (folder / "qrels").mkdir(parents=True)
  for name, rows in zip(TABLES[kind], (corpus, queries, [row | {"score": float(row["score"])} for row in qrels]),
                        strict=True):
    write = {"parquet": table_files.write_parquet, "csv": table_files.write_text}.get(name.rpartition(".")[2])
    if "." not in name:
      write = table_files.write_shards if kind == "shards" else table_files.write_dataset
    (write or table_files.write_stream)(folder / name, [{**dict.fromkeys(rows[0]), **row} for row in rows])
  return folder


@pytest.mark.parametrize("kind", TABLES)
def test_tables(folder, tmp_path, kind):
  """The same collection, whatever its form."""
  expected = read_collection(folder)
  found = read_collection(write_tables(tmp_path / kind, kind))
  assert found.hash == expected.hash and found.words.tolist() == expected.words.tolist()
  assert list(found.documents.full_texts()) == list(expected.documents.full_texts())
  assert read_documents(tmp_path / kind).ids == expected.documents.ids
  assert splits(tmp_path / kind) == ["test"]
  assert "qrels/dev.tsv: no such file" in error(read_collection, tmp_path / kind, "dev")


def test_ids_of_a_table_may_be_numbers(tmp_path):
  corpus = [{"_id": i, "text": f"text {i}", "vector": [0.5, 1.5]} for i in range(3)]
  write_tables(tmp_path / "x", "parquet", corpus, [{"_id": 7, "text": "q"}])
  table_files.write_parquet(tmp_path / "x/qrels/test.parquet", [{"qid": 7.0, "doc_id": 2}])
  assert read_collection(tmp_path / "x").qrels == {"7": {"2": 1}}


@pytest.mark.parametrize("name, rows, message", [
    ("corpus.parquet", [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}],
     "corpus.parquet:row 2: duplicate _id 'd1', first at line 1"),
    ("corpus.parquet", [{"id": "d1", "text": "a"}], "corpus.parquet:row 1: no \"_id\", only 'id', 'text'"),
    ("queries.parquet", [{"_id": "q1", "text": None}], 'queries.parquet:row 1: "text" is null'),
    ("qrels/test.parquet", [{"query": "q1", "passage": "d1"}],
     "test.parquet:row 1: columns query, passage; call those of query, document and grade query-id, corpus-id and"),
    ("qrels/test.parquet", [{"query-id": "q1", "corpus-id": "d1", "score": 0.5}],
     "test.parquet:row 1: the grade '0.5' is not a whole number"),
    ("qrels/test.parquet", [{"query-id": "q1", "corpus-id": 1.5}], 'test.parquet:row 1: "corpus-id": 1.5 is no id'),
])
def test_rows_that_are_wrong(tmp_path, name, rows, message):
  write_tables(tmp_path / "x", "parquet")
  table_files.write_parquet(tmp_path / "x" / name, rows)
  assert message in error(read_collection, tmp_path / "x")
