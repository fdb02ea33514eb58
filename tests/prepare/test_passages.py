"""Passages by id, out of every published form of table."""

import gzip
import json

import pytest

from gtr_jax.errors import InputError
from gtr_jax.prepare import passages
from gtr_jax.prepare.passages import Document, open_table, titled


@pytest.fixture
def table(tmp_path):
  def made(name, content, columns=""):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(str(path), str(tmp_path / "cache"), columns)

  return made


def test_consecutive_ids_need_no_dictionary(table, tmp_path):
  # collection.tsv, as sentence-transformers reads it (examples/.../ms_marco/train_bi-encoder_mnrl.py: pid, passage =
  # line.strip().split("\t")).
  found = table("collection.tsv", "".join(f"{i}\tpassage \"{i}\" é\n" for i in range(300)))
  assert len(found) == 300
  assert found.get("0") == Document("0", "", 'passage "0" é')
  assert found.get("299").text == 'passage "299" é'
  for absent in ("300", "-1", "007", "١", "", "x"):
    assert found.get(absent) is None and absent not in found
  assert not list((tmp_path / "cache").glob("*/hashes.npy"))


def test_a_table_of_dpr_is_csv_with_tabs(table):
  # psgs_w100.tsv, as DPR reads it (dpr/data/retriever_data.py, CsvCtxSrc: csv.reader(delimiter="\t"), columns id, text,
  # title; a first row whose id is "id" is skipped).
  found = table("psgs_w100.tsv", 'id\ttext\ttitle\n1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron\n'
                '2\tno quotes\t"""Weird Al"" Yankovic"\r\n3\tlast')
  assert found.get("1") == Document("1", "Aaron", 'Aaron ( or ; "Ahärôn") is a prophet')
  assert found.get("2") == Document("2", '"Weird Al" Yankovic', "no quotes")
  assert found.broken == 1 and ":4: 2 columns, not 3" in found.broken_places[0]


def test_a_table_without_header_says_which_column_is_the_title(table):
  # corpus.tsv, as Tevatron makes it (examples/coCondenser-marco/get_data.sh: join -o 1.1 2.2 1.2, id, title, text).
  rows = '0\t-\tone "quoted\n1\tTitle\ttwo\n'
  with pytest.raises(InputError, match="three columns and no header.*--passage_columns id,text,title"):
    table("corpus.tsv", rows)
  found = table("corpus.tsv", rows, "id,title,text")
  assert found.get("0") == Document("0", "-", 'one "quoted') and found.get("1").title == "Title"
  assert [titled(r.title, r.text) for r in map(found.get, "01")] == ['one "quoted', "Title two"]
  with pytest.raises(InputError, match="--passage_columns text,id"):
    table("corpus.tsv", rows, "text,id")


@pytest.mark.parametrize("ids", [["MED-10", "MED-2", "5", "é 1"], ["0", "1", "3", "2"], ["7", "8", "x"]])
def test_any_ids(table, ids):
  # corpus.jsonl, as BEIR reads it (beir/datasets/data_loader.py: _id, text, title).
  rows = [{"_id": i, "title": f"t{i}", "text": f"text {i}"} for i in ids]
  found = table("corpus.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  assert [found.get(i) for i in ids] == [Document(i, f"t{i}", f"text {i}") for i in ids]
  assert [i in found for i in ("MED-3", "4", "", "00")] == [False] * 4


def test_ids_of_equal_hash_are_told_apart(table, monkeypatch):
  monkeypatch.setattr(passages, "_hash", lambda row_id: len(row_id))
  found = table("corpus.tsv", "aa\tone\nbb\ttwo\nc\tthree\ncc\tfour\n")
  assert [found.get(i).text for i in ("aa", "bb", "c", "cc")] == ["one", "two", "three", "four"]
  assert found.get("dd") is None and found.get("d") is None and found.get("ddd") is None


def test_an_id_twice(table):
  with pytest.raises(InputError, match=r"the id 'b' is there twice \(passages 2 and 4\)"):
    table("corpus.tsv", "a\tone\nb\ttwo\nc\tthree\nb\tfour\n")


def test_compressed_tables_are_unpacked_once(table, tmp_path):
  found = table("collection.tsv.gz", gzip.compress(b"0\tone\n1\ttwo\n", mtime=0))
  (tmp_path / "collection.tsv.gz").rename(tmp_path / "elsewhere.gz")
  assert found.get("1").text == "two"


def test_a_cut_archive_leaves_nothing(table, tmp_path):
  lines = "".join(f"{i}\tpassage {i * i}\n" for i in range(5000))
  with pytest.raises(InputError, match="collection.tsv.gz: the archive is cut off"):
    table("collection.tsv.gz", gzip.compress(lines.encode(), mtime=0)[:-100])
  assert not any((tmp_path / "cache").iterdir())
  with pytest.raises(InputError, match="unpack it first"):
    table("collection.tar.gz", b"")


def test_a_few_broken_lines_are_skipped_and_told(table):
  rows = [f"{i}\tpassage {i}" for i in range(200)]
  lines = [*map(str.encode, rows[:100]), b"no tab", "é".encode("latin-1") + b"\tx", *map(str.encode, rows[100:]), b""]
  found = table("collection.tsv", b"\n".join(lines))
  assert len(found) == 200 and found.broken == 2
  assert [found.get(str(i)).text for i in (99, 100, 199)] == ["passage 99", "passage 100", "passage 199"]
  assert ":101: 1 columns" in found.broken_places[0] and "collection.tsv:102: not UTF-8" in found.broken_places[1]


@pytest.mark.parametrize("content", ["one text a line\n" * 200, "\n", "0\ta\tb\tc\n", '["a", "b"]\n'])
def test_a_file_of_another_kind(table, content):
  with pytest.raises(InputError, match="is this the passage file"):
    table("collection.tsv", content)


def test_too_many_broken_lines(table):
  rows = "".join(f"{i}\tpassage {i}\n" for i in range(500))
  with pytest.raises(InputError, match="10 of 510 lines are broken, the first: .*collection.tsv:501: 3 columns"):
    table("collection.tsv", rows + "1\t2\t3\n" * 10)


def test_a_byte_order_mark_is_no_part_of_an_id(table):
  assert table("collection.tsv", b"\xef\xbb\xbf0\tone\n1\ttwo\n").get("0") == Document("0", "", "one")


def test_the_index_is_kept_until_the_file_changes(table, tmp_path, monkeypatch):
  table("collection.tsv", "0\tone\n1\ttwo\n")
  monkeypatch.setattr(passages, "_index", None)
  path = str(tmp_path / "collection.tsv")
  assert open_table(path, str(tmp_path / "cache")).get("1").text == "two"
  monkeypatch.undo()
  (tmp_path / "collection.tsv").write_text("0\tone\n1\tthree\n2\tfour\n")
  assert open_table(path, str(tmp_path / "cache")).get("1").text == "three"
