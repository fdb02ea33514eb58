"""Declaring pair tasks: sources, fields, hashes, shards, and what is said about files that are wrong."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tiny_text import pairs, records, task_name, words, write_jsonl

from gtr_jax.data import examples, run_vocabulary, shards
from gtr_jax.data.examples import add_pair_task, jsonl, rate_by_size, tfrecord
from gtr_jax.data.feature_converter import exact_hash
from gtr_jax.data.json_examples import Fields
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.errors import InputError
from gtr_jax.io import data_root, lines
from gtr_jax.prepare.records import key_of
from gtr_jax.text.tokenizer import Tokenizer

pytest_plugins = "data_fixtures"

LENGTHS = {"inputs": 8, "targets": 12, "negative_inputs": 8, "negative_targets": 12}


def read(task, lengths=LENGTHS, split="train"):
  """A task's examples by their id."""
  dataset = task.get_dataset(lengths, split=split, shuffle=False, try_in_mem_cache=False)
  return {ex["example_id"].decode(): ex for ex in dataset.as_numpy_iterator()}


def encoded(tokenizer, text, length):
  return tokenizer.encode([text], length)[0].tolist()


def test_declaring_touches_no_disk_and_using_names_the_command(tmp_path):
  data_root.set_data_dir(str(tmp_path / "nowhere"))
  try:
    task = add_pair_task(task_name(), jsonl(train="corpus/train.jsonl"), query="query", passage="passage",
                         vocabulary="corpus/spiece.model", prepare="gtr-jax prepare corpus")
    seqio.MixtureRegistry.add(task_name(), [(task.name, 1.0)])
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InputError, match="nowhere/corpus/train.jsonl: no such file; run: gtr-jax prepare corpus"):
      read(task)
    write_jsonl(tmp_path / "nowhere/corpus/train.jsonl", pairs(1))
    with pytest.raises(InputError, match="nowhere/corpus/spiece.model: no such .*; run: gtr-jax prepare corpus"):
      read(task)
  finally:
    data_root.set_data_dir(None)


def test_data_root_by_call_then_environment_then_default(monkeypatch, tmp_path):
  monkeypatch.delenv("GTR_DATA_DIR", raising=False)
  assert str(data_root.data_dir()).endswith("/.cache/gtr_jax") and data_root.data_dir().is_absolute()
  monkeypatch.setenv("GTR_DATA_DIR", str(tmp_path / "env"))
  assert data_root.data_dir() == tmp_path / "env"
  data_root.set_data_dir(str(tmp_path / "set"))
  assert data_root.data_dir() == tmp_path / "set" and data_root.resolve("a/b") == tmp_path / "set/a/b"
  assert str(data_root.resolve("/a/b")) == "/a/b" and str(data_root.resolve("gs://bucket/b")) == "gs://bucket/b"
  data_root.set_data_dir(None)


def test_text_becomes_the_ids_that_inference_makes(data_dir, vocabulary):
  rows = [{"query": words(3, 1), "title": words(2, 2), "text": words(30, 3)},
          {"query": " " + words(30, 4), "title": " ", "text": words(2, 5)},
          {"query": words(3, 6), "title": None, "text": words(2, 7)}]
  write_jsonl(data_dir / "pairs.jsonl", rows)
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage=("title", "text"),
                       vocabulary=vocabulary, query_prefix="ba: ", passage_prefix="de: ")
  got, tokenizer = read(task), Tokenizer(vocabulary)
  for i, row in enumerate(rows):
    ex = got[f"pairs.jsonl:{i + 1}"]
    passage = f"{row['title'] or ''} {row['text']}".strip()
    assert ex["inputs"].tolist() == encoded(tokenizer, "ba: " + row["query"].strip(), 8)
    assert ex["targets"].tolist() == encoded(tokenizer, "de: " + passage, 12)
    assert ex["inputs"].dtype == ex["targets"].dtype == np.int32
    assert ex["negative_targets"].shape[0] == ex["negative_inputs"].shape[0] == 0
  assert len(got["pairs.jsonl:1"]["targets"]) == 12 and got["pairs.jsonl:1"]["targets"][-1] == 1


def test_none_one_or_many_negatives(data_dir, vocabulary):
  rows = [{}, {"negatives": None}, {"negatives": []}, {"negatives": "ba da"},
          {"negatives": ["ba", words(30, 2), "fa"], "bad_queries": ["zi zo"]},
          {"negatives": [{"passage": "bu", "id": 7}, {"passage": "da", "id": 8}], "id": 9}]
  write_jsonl(data_dir / "pairs.jsonl", [{"query": words(3, i), "passage": words(5, 1)} | row
                                         for i, row in enumerate(rows)])
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                       negatives="negatives", negative_queries="bad_queries", vocabulary=vocabulary)
  got, tokenizer = read(task), Tokenizer(vocabulary)
  for line, texts in enumerate([[], [], [], ["ba da"], ["ba", words(30, 2), "fa"], ["bu", "da"]], 1):
    ex = got[f"pairs.jsonl:{line}"]
    assert [r[r != 0].tolist() for r in ex["negative_targets"]] == [encoded(tokenizer, t, 12) for t in texts]
    assert len(ex["negative_text_hash"]) == len(ex["negative_passage_hash"]) == len(texts)
  assert got["pairs.jsonl:5"]["negative_inputs"].tolist() == [encoded(tokenizer, "zi zo", 8)]
  # What a run does not use it does not tokenise; of what it uses, the first come.
  without = read(task, {"inputs": 8, "targets": 12})["pairs.jsonl:5"]
  assert without["negative_targets"].shape == (0, 0) and len(without["negative_text_hash"]) == 0
  two = read(task, LENGTHS | {"negative_targets": (2, 12)})["pairs.jsonl:5"]
  np.testing.assert_array_equal(two["negative_targets"], got["pairs.jsonl:5"]["negative_targets"][:2])
  assert len(two["negative_text_hash"]) == 2


def test_hashes_follow_ids_and_texts(data_dir, vocabulary):
  rows = [{"query": "ba", "passage": "da", "qid": 1, "pid": "x", "negatives": ["fa", "ga"], "nids": ["y", "z"]},
          {"query": "be", "passage": "de", "qid": 1, "pid": "y", "negatives": ["da", "fa"], "nids": ["x", "w"]}]
  write_jsonl(data_dir / "pairs.jsonl", rows)

  def hashes(**ids):
    task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                         negatives="negatives", vocabulary=vocabulary, query_prefix="no part of it ", **ids)
    got = read(task)
    return [got[f"pairs.jsonl:{i}"] for i in (1, 2)]

  a, b = hashes(query_id="qid", passage_id="pid", negative_ids="nids")
  assert a["query_hash"] == b["query_hash"] and a["passage_hash"] != b["passage_hash"]
  assert a["negative_passage_hash"].tolist()[0] == b["passage_hash"]
  assert b["negative_passage_hash"].tolist()[0] == a["passage_hash"]
  assert b["negative_text_hash"].tolist() == [a["text_hash"], a["negative_text_hash"][0]]
  other_a, other_b = hashes(query_id="qid", passage_id="pid", negative_ids="nids")  # Another task's ids.
  assert other_a["query_hash"] != a["query_hash"] and other_a["passage_hash"] != a["passage_hash"]
  assert other_a["text_hash"] == a["text_hash"]
  a, b = hashes()
  assert a["query_hash"] != b["query_hash"] and a["passage_hash"] == a["text_hash"] == other_a["text_hash"]
  assert b["negative_passage_hash"].tolist() == b["negative_text_hash"].tolist()


@pytest.mark.parametrize("line, message", [
    ("{broken", "not JSON"), ('["list"]', "a list of JSON, not an object"),
    ('{"query": "a"}', "no field 'passage', which the task declares, only 'query'"),
    ('{"query": " ", "passage": "b"}', r"the query \(field query\) is empty"),
    ('{"query": "a", "passage": ""}', r"the passage \(field passage\) is empty"),
    ('{"query": 5, "passage": "b"}', "field 'query' is a number, not a string"),
    ('{"query": "a", "passage": "b", "negatives": [""]}', "the negative .* is empty"),
    ('{"query": "a", "passage": "b", "negatives": [{"text": "c"}]}', "a negative has no field 'passage'"),
    ('{"query": "a", "passage": "b", "negatives": ["c"], "nids": [1, 2]}', "2 ids for 1 negatives"),
    (b'{"query": "a", "passage": "\xff"}', "not UTF-8 .*iconv"),
])
def test_a_wrong_line_is_named_and_nothing_is_written(data_dir, vocabulary, line, message):
  good = b'{"query": "a", "passage": "b"}\n'
  (data_dir / "pairs.jsonl").write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                       negatives="negatives", negative_ids="nids", vocabulary=vocabulary)
  with pytest.raises(InputError, match=rf"data/pairs.jsonl:3: .*{message}") as e:
    read(task)
  assert "\n" not in str(e.value) and not list((data_dir / "cache").iterdir())


def test_null_is_no_id(data_dir, vocabulary):
  """Pairs without an id are told apart by their texts; numbers of tables are one id, with a point or without."""
  rows = [{"query": "ba", "passage": "da", "qid": None, "pid": None, "negatives": ["fa", "ga"], "nids": [None, 2]},
          {"query": "be", "passage": "de", "qid": None, "pid": "", "negatives": ["ha", "ka"], "nids": [2.0, None]},
          {"query": "bi", "passage": "di", "qid": 1, "pid": 1.0, "negatives": [], "nids": []},
          {"query": "bo", "passage": "do", "qid": 1.0, "pid": "1", "negatives": None, "nids": None}]
  write_jsonl(data_dir / "pairs.jsonl", rows)
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                       negatives="negatives", vocabulary=vocabulary, query_id="qid", passage_id="pid",
                       negative_ids="nids")
  got = read(task)
  a, b, c, d = (got[f"pairs.jsonl:{i}"] for i in range(1, 5))
  assert len({ex["query_hash"] for ex in (a, b, c)}) == 3 and c["query_hash"] == d["query_hash"]
  assert len({ex["passage_hash"] for ex in (a, b, c)}) == 3 and c["passage_hash"] == d["passage_hash"]
  assert a["passage_hash"] == a["text_hash"] and b["passage_hash"] == b["text_hash"]  # "" is none either.
  assert a["negative_passage_hash"][0] == a["negative_text_hash"][0]
  assert b["negative_passage_hash"][1] == b["negative_text_hash"][1]
  assert a["negative_passage_hash"][1] == b["negative_passage_hash"][0]


def test_ids_that_are_not_there(data_dir, vocabulary):
  """As null, but where no line has any the declared name is wrong."""
  write_jsonl(data_dir / "pairs.jsonl", [{"query": "ba", "passage": "da", "qid": 1}, {"query": "be", "passage": "de"}])
  fields = {"query": "query", "passage": "passage", "vocabulary": vocabulary}
  got = read(add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query_id="qid", **fields))
  assert got["pairs.jsonl:1"]["query_hash"] != got["pairs.jsonl:2"]["query_hash"]
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), passage_id="pid", **fields)
  with pytest.raises(InputError, match="pairs.jsonl: none has a 'pid', which the task declares"):
    read(task)


@pytest.mark.parametrize("value", ["true", "1.5", "[1]", '{"a": 1}', "NaN", "Infinity"])
@pytest.mark.parametrize("field", ["qid", "pid", "nids"])
def test_what_is_no_id(data_dir, vocabulary, field, value):
  ids = {"qid": "1", "pid": "2", "nids": "[3]"} | {field: f"[{value}]" if field == "nids" else value}
  line = f'{{"query": "a", "passage": "b", "negatives": ["c"], {", ".join(f"{k!r}: {v}" for k, v in ids.items())}}}'
  (data_dir / "pairs.jsonl").write_text(line.replace("'", '"') + "\n")
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                       negatives="negatives", vocabulary=vocabulary, query_id="qid", passage_id="pid",
                       negative_ids="nids")
  with pytest.raises(InputError, match=rf"data/pairs.jsonl:1: field '{field}': .* is no id"):
    read(task)


def test_files_of_a_split(data_dir, vocabulary):
  rows = pairs(30)
  (data_dir / "a.jsonl.gz").write_bytes(
      gzip.compress("".join(json.dumps(r) + "\n" for r in rows[:10]).encode(), mtime=0))
  write_jsonl(data_dir / "sub/part-1.jsonl", rows[10:20])
  write_jsonl(data_dir / "sub/part-2.jsonl", rows[20:])
  task = add_pair_task(task_name(), jsonl(train=["a.jsonl.gz", "sub/part-*.jsonl"], dev="sub/part-2.jsonl"),
                       query="query", passage="passage", vocabulary=vocabulary)
  assert set(task.splits) == {"train", "dev"} and task.num_input_examples("train") == 30
  ids = [f"{name}:{i}" for name in ("a.jsonl.gz", "sub/part-1.jsonl", "sub/part-2.jsonl") for i in range(1, 11)]
  assert sorted(read(task)) == sorted(ids)
  assert sorted(read(task, split="dev")) == sorted(ids[20:])
  (data_dir / "a.jsonl.gz").write_bytes((data_dir / "a.jsonl.gz").read_bytes()[:-30])
  with pytest.raises(InputError, match=r"a.jsonl.gz: the archive is cut off .*; fetch it again"):
    read(task)


def test_shards_are_shuffled_once_and_kept_by_content(data_dir, vocabulary, tmp_path, monkeypatch):
  path = write_jsonl(data_dir / "pairs.jsonl", pairs(500))

  def shards_of(path):
    return shards.shards_of([epath.Path(path)], Fields(("query",), ("passage",)), are_lines=True)

  first = shards_of(path)
  assert first.num_examples == 500 and len(first.files) <= 64

  numbers = [[int(example_id.split(":")[1]) for example_id, *_ in records(f)] for f in first.files]
  order = np.array(sum(numbers, []))
  assert sorted(order) == list(range(1, 501))
  assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15
  contents = [Path(f).read_bytes() for f in first.files]
  assert shards_of(path) == first  # Found, not written again.

  data_root.set_data_dir(str(tmp_path / "elsewhere"))  # The same anywhere.
  again = shards_of(path)
  assert [Path(f).read_bytes() for f in again.files] == contents
  with open(again.files[3], "r+b") as f:
    f.truncate(10)
  again = shards_of(path)  # Half a file is not taken for a whole one.
  assert [Path(f).read_bytes() for f in again.files] == contents

  monkeypatch.setattr(shards, "_FEW_BYTES", 0)  # By several processes, in parts.
  monkeypatch.setattr(lines, "PART_BYTES", 5000)
  data_root.set_data_dir(str(tmp_path / "by several"))
  again = shards_of(path)
  assert [Path(f).read_bytes() for f in again.files] == contents
  data_root.set_data_dir(str(tmp_path / "elsewhere"))

  write_jsonl(path, pairs(499))
  assert shards_of(path).num_examples == 499
  folders = sorted(p.name for p in (tmp_path / "elsewhere/cache").iterdir())
  assert len(folders) == 2 and not any(name.endswith(".tmp") for name in folders)


def write_tfrecord(path, rows):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for row in rows:
      feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(
          value=[x.encode() for x in (v if isinstance(v, list) else [v])])) for k, v in row.items()}
      writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def test_tfrecord_source(data_dir, vocabulary):
  rows = [{"q": words(4, i), "title": "" if i == 2 else words(2, -i), "text": words(9, 50 + i), "n": ["ba", "bi"][:i]}
          for i in range(3)]
  write_tfrecord(data_dir / "x-0.tfrecord", rows[:2])
  write_tfrecord(data_dir / "x-1.tfrecord", rows[2:])
  task = add_pair_task(task_name(), tfrecord(train="x-*.tfrecord"), query="q", passage=("title", "text"),
                       negatives="n", vocabulary=vocabulary)
  got, tokenizer = read(task), Tokenizer(vocabulary)
  assert sorted(got) == ["x-0.tfrecord:1", "x-0.tfrecord:2", "x-1.tfrecord:1"]
  for row, ex in zip(rows, (got[i] for i in sorted(got)), strict=True):
    assert ex["inputs"].tolist() == encoded(tokenizer, row["q"], 8)
    assert ex["targets"].tolist() == encoded(tokenizer, f"{row['title']} {row['text']}".strip(), 12)
    assert len(ex["negative_targets"]) == len(row["n"])


def test_of_many_records_each_is_read_as_alone(data_dir, vocabulary):
  """More than are made at once, each with other numbers of negatives, ids and negative queries, some of them none."""
  rows = [{"q": words(4, i), "p": words(9, 1000 + i), "qid": f"{i // 2}" if i % 3 else "",
           "n": [words(3, f"{i} {k}") for k in range(i % 4)], "nid": [f"{i} {k}" for k in range(i % 4)] * (i % 3 > 0),
           "nq": [words(2, f"{i} {k}") for k in range(i % 5 // 2)]} for i in range(300)]
  write_tfrecord(data_dir / "x.tfrecord", rows)
  task = add_pair_task(task_name(), tfrecord(train="x.tfrecord"), query="q", passage="p", query_id="qid",
                       negatives="n", negative_ids="nid", negative_queries="nq", vocabulary=vocabulary)
  tokenizer, of_seqio = Tokenizer(vocabulary), read(task)
  batch = next(iter(ValidationBatches(task.name, None, LENGTHS, 300, split="train", negatives_per_example=2,
                                      negative_queries_per_example=1)))

  def texts(side, first, each):
    tokens = side.tokens[0][first:first + 300 * each].reshape(300, each, -1)
    return [[ids[ids != 0].tolist() for ids in of_example if ids.any()] for of_example in tokens]

  def hashes(of_name, each):
    return [np.ascontiguousarray(of_example).view(np.int64)[:, 0].tolist()
            for of_example in getattr(batch, of_name)[0][300 if each else 0:].reshape(300, each or 1, 2)]

  def hash_of(name, text):
    return int(exact_hash(f"{task.name}\n{name}") if name else key_of(text))

  found = (texts(batch.queries, 0, 1), texts(batch.queries, 300, 1), texts(batch.passages, 0, 1),
           texts(batch.passages, 300, 2), hashes("passage_hash", 2))
  order = [i for i, _ in sorted(enumerate(rows), key=lambda row: found[0].index([encoded(tokenizer, row[1]["q"], 8)]))]
  for at, i in enumerate(order):
    row, ex = rows[i], of_seqio[f"x.tfrecord:{i + 1}"]
    expected = [[encoded(tokenizer, row[name], length)] for name, length in (("q", 8), ("p", 12))]
    negatives = [encoded(tokenizer, text, 12) for text in row["n"]]
    negative_hashes = [hash_of((row["nid"] or [""] * 3)[k], text) for k, text in enumerate(row["n"])]
    assert [found[0][at], found[2][at]] == expected and found[3][at] == negatives[:2]
    assert found[1][at] == [encoded(tokenizer, text, 8) for text in row["nq"][:1]]
    assert found[4][at] == (negative_hashes + [0, 0])[:2]
    assert [[ex["inputs"].tolist()], [ex["targets"].tolist()]] == expected
    assert [ids[ids != 0].tolist() for ids in ex["negative_targets"]] == negatives
    assert ex["negative_passage_hash"].tolist() == negative_hashes and ex["query_hash"] == hash_of(row["qid"], row["q"])


def test_of_many_records_the_wrong_one_is_named(data_dir, vocabulary):
  rows = [{"q": words(4, i), "title": "", "text": " " if i == 77 else words(9, i)} for i in range(200)]
  write_tfrecord(data_dir / "x.tfrecord", rows)
  task = add_pair_task(task_name(), tfrecord(train="x.tfrecord"), query="q", passage=("title", "text"),
                       vocabulary=vocabulary)
  with pytest.raises(InputError, match=r"x.tfrecord:78: the passage \(field title \+ text\) is empty; correct or "):
    list(ValidationBatches(task.name, None, LENGTHS, 200, split="train"))


def test_tfds_source(data_dir, vocabulary):
  rows = [{"question": words(4, i), "answer": words(9, 50 + i), "n": [words(3, f"{i} {k}") for k in range(i)]}
          for i in range(3)]
  source = examples.tfds("little_pairs", train="train", validation="train[:1]")
  task = add_pair_task(task_name(), source, query="question", passage="answer", negatives="n", vocabulary=vocabulary)
  with pytest.raises(InputError, match="little_pairs.*run: tfds build little_pairs --data_dir .*tensorflow_datasets"):
    read(task)
  folder = data_dir / "tensorflow_datasets/little_pairs/1.0.0"
  folder.mkdir(parents=True)
  write_tfrecord(folder / "little_pairs-train.tfrecord-00000-of-00001", rows)
  text = tfds.features.Text()
  tfds.folder_dataset.write_metadata(
      data_dir=folder, split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[3], num_bytes=0)],
      filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      features=tfds.features.FeaturesDict({"question": text, "answer": text, "n": tfds.features.Sequence(text)}))
  got, tokenizer = list(read(task).values()), Tokenizer(vocabulary)
  assert sorted(ex["inputs"].tolist() for ex in got) == sorted(encoded(tokenizer, r["question"], 8) for r in rows)
  assert sorted(len(ex["negative_targets"]) for ex in got) == [0, 1, 2]
  assert all("train" in name for name in read(task)) and len(read(task, split="validation")) == 1
  assert rate_by_size(9)(task) == 3.0 and rate_by_size(2)(task) == 2.0


def test_rate_by_size_of_each_source(data_dir, vocabulary):
  declared = {"query": "query", "passage": "passage", "vocabulary": vocabulary}
  write_jsonl(data_dir / "a.jsonl", pairs(5))
  write_tfrecord(data_dir / "a.tfrecord", pairs(4))
  write_tfrecord(data_dir / "b.tfrecord", pairs(7)[4:])
  tasks = [add_pair_task(task_name(), jsonl(train="a.jsonl"), **declared),
           add_pair_task(task_name(), tfrecord(train="*.tfrecord", validation="a.tfrecord"), **declared)]
  assert [rate_by_size(100)(task) for task in tasks] == [5.0, 7.0] and tasks[1].num_input_examples("validation") == 4
  assert [rate_by_size(6)(task) for task in tasks] == [5.0, 6.0]
  mixture = seqio.MixtureRegistry.add(task_name(), [task.name for task in tasks], default_rate=rate_by_size(6))
  batches = TrainingBatches(mixture.name, None, {"inputs": 8, "targets": 12}, 4, one_task_per_batch=True)
  batches.check_first_batch()
  batches.close()


def test_rate_by_size_where_nothing_can_be_counted(data_dir, vocabulary):
  declared = {"query": "query", "passage": "passage", "vocabulary": vocabulary}
  write_tfrecord(data_dir / "a.tfrecord", pairs(4))
  (data_dir / "cut.tfrecord").write_bytes((data_dir / "a.tfrecord").read_bytes()[:-3])
  (data_dir / "text.tfrecord").write_text("no records here, only a line of text\n")
  for name, message in (("cut", "cut.tfrecord: a record is damaged or cut"), ("text", "text.tfrecord: a record is d"),
                        ("gone", "gone.tfrecord: no such file")):
    task = add_pair_task(task_name(), tfrecord(train=f"{name}.tfrecord"), **declared)
    with pytest.raises(InputError, match=message) as e:
      rate_by_size(9)(task)
    assert "\n" not in str(e.value)
  only = add_pair_task(task_name(), tfrecord(validation="a.tfrecord"), **declared)
  with pytest.raises(InputError, match=f"{only.name}: no split 'train' whose size could be its rate, only validation"):
    rate_by_size(9)(only)
  unknown = seqio.TaskRegistry.add(
      task_name(), seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: None, splits=["train"]),
      output_features={"inputs": seqio.Feature(seqio.PassThroughVocabulary(size=0))}, preprocessors=[])
  with pytest.raises(InputError, match=f"{unknown.name}: its source does not say how many examples it has; give its"):
    rate_by_size(9)(unknown)
  for most in (0, -1, float("nan"), "9", None, True):
    with pytest.raises(InputError, match="rate_by_size: most is .*: give a number above 0"):
      rate_by_size(most)


@pytest.mark.parametrize("rate, message", [(0.0, "none can be drawn"), (-1.0, "none can be drawn"),
                                           (float("nan"), "none can be drawn"), ("x", "its rates cannot be told"),
                                           (lambda task: None, "its rates cannot be told")])
def test_rates_that_are_none(data_dir, vocabulary, rate, message):
  write_tfrecord(data_dir / "a.tfrecord", pairs(8))
  task = add_pair_task(task_name(), tfrecord(train="a.tfrecord"), query="query", passage="passage",
                       vocabulary=vocabulary)
  mixture = seqio.MixtureRegistry.add(task_name(), [(task.name, rate)])
  with pytest.raises(InputError, match=f"{mixture.name}: .*{message}"):
    TrainingBatches(mixture.name, None, {"inputs": 8, "targets": 12}, 4)


def test_vocabulary_of_the_run_replaces_the_tasks(data_dir, vocabulary, tmp_path):
  write_jsonl(data_dir / "pairs.jsonl", pairs(3))
  other = tmp_path / "other.model"
  train_vocabulary([words(12, f"other{i}") for i in range(300)], other, size=120)
  task = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                       vocabulary=vocabulary)
  second = add_pair_task(task_name(), jsonl(train="pairs.jsonl"), query="query", passage="passage",
                         vocabulary=str(other))
  mixture = seqio.MixtureRegistry.add(task_name(), [(task.name, 1.0), (second.name, 1.0)])
  text = pairs(1)[0]["query"]
  with pytest.raises(ValueError, match="same vocabulary"):
    mixture.get_dataset(LENGTHS)
  with run_vocabulary.use_vocabulary(str(other), extra_ids=5):
    assert read(task)["pairs.jsonl:1"]["inputs"].tolist() == encoded(Tokenizer(str(other)), text, 8)
    assert task.output_features["inputs"].vocabulary.vocab_size == 125
    mixture.get_dataset(LENGTHS)
  assert read(task)["pairs.jsonl:1"]["inputs"].tolist() == encoded(Tokenizer(vocabulary), text, 8)
  assert task.output_features["inputs"].vocabulary.vocab_size == 300
