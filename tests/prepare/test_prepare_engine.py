"""Preparing a source: the same bytes however it is run, nothing twice, nothing tested, what is broken is said."""

import dataclasses
import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_source
from toy_source import ToySource, write

from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.prepare import buckets, engine, records
from gtr_jax.prepare.manifests import Settings
from gtr_jax.prepare.sources.natural_questions import NaturalQuestions


@pytest.fixture
def data(tmp_path):
  """An empty data root, set as this process's."""
  data_root.set_data_dir(str(tmp_path / "data"))
  yield tmp_path / "data"
  data_root.set_data_dir(None)


def prepare(source, processes=1, max_broken=0.001, **settings):
  return Path(engine.prepare(source, Settings(**settings), processes=processes, max_broken=max_broken,
                             say=lambda line: None))


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder):
  return {name: data for name, data in contents(folder).items() if name.endswith(".tfrecord")}


def examples(folder, split="train"):
  """The texts of a split's examples, in their order."""
  found = []
  for path in sorted(folder.glob(f"{split}-*")):
    with path.open("rb") as f:
      found += [records.texts_of(record) for record in records.read_records(f, str(path))]
  return found


def pairs(folder, split="train"):
  return [(e["query"][0], e["passage"][0]) for e in examples(folder, split)]


def manifest(folder):
  return json.loads((folder / "manifest.json").read_text())


def dropped(folder):
  return list(map(json.loads, (folder / "dropped.jsonl").read_text().splitlines()))


def test_all_examples_once_shuffled_with_a_manifest(data, tmp_path):
  rows = toy_source.rows(3000)
  path = write(tmp_path / "a.jsonl", [rows[0] | {"length": 0}, *rows[1:]])
  folder = prepare(ToySource((path,)), processes=2)
  got, expected = pairs(folder), [(r["query"], r["passage"]) for r in rows[1:]]
  assert folder == data / "toy" and sorted(got) == sorted(expected)
  order = [expected.index(pair) for pair in got[:300]]
  assert sorted(order)[:3] != [0, 1, 2] and order != sorted(order)
  assert sum(b - a == 1 for a, b in zip(order, order[1:], strict=False)) < 5
  found = manifest(folder)
  assert found["counts"] == {
      "read": 3000, "too_short": 1, "broken": 0, "written": 2999, "with_up_to_4_other_answers": 2998}
  assert found["examples"] == {"train": 2999} and found["filters"]["paths"] == [path]
  assert found["inputs"][0]["name"] == "a.jsonl" and found["inputs"][0]["bytes"] == os.path.getsize(path)
  assert found["splits"] == {"train": {n: len(d) for n, d in sorted(shards(folder).items())}}
  assert len(shards(folder)) == 64 and "train-00063-of-00064.tfrecord" in shards(folder)
  assert sorted(p.name for p in data.iterdir()) == ["toy"]
  assert [(row["reason"], row["query"]) for row in dropped(folder)] == [("too_short", rows[0]["query"])]


@pytest.mark.parametrize("joins", [False, True])
def test_the_same_bytes_whatever_the_workers_parts_and_interruptions(data, tmp_path, monkeypatch, joins):
  source = ToySource((write(tmp_path / "a.jsonl", toy_source.rows(400)),), joins)
  reference = contents(prepare(source))
  assert sum(len(d) for n, d in reference.items() if n.endswith("tfrecord")) > 10_000
  (data / "toy").rename(data / "first")
  assert contents(prepare(source, processes=3)) == reference
  assert shards(prepare(dataclasses.replace(source, part_bytes=1000), name="parts")) == {
      name: d for name, d in reference.items() if name.endswith(".tfrecord")}

  (data / "toy").rename(data / "second")
  for where, name, call in ((engine.Job, "commit", 3), (engine.Job, "commit", 8), (engine.Job, "commit", 40),
                            (engine.Job, "commit", 15), (engine.manifests, "write", 1)):
    with monkeypatch.context() as patch:
      patch.setattr(where, name, interrupted(getattr(where, name), call))
      with pytest.raises(KeyboardInterrupt):
        prepare(source)
    assert not (data / "toy").exists()
  assert contents(prepare(source)) == reference


def interrupted(function, call):
  """The function, until its call of that number."""
  numbers = itertools.count(1)

  def replaced(*args):
    if next(numbers) == call:
      raise KeyboardInterrupt
    return function(*args)

  return replaced


@pytest.mark.parametrize("signum, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_in_the_middle_it_goes_on_and_its_workers_are_gone(data, tmp_path, signum, code):
  path, log = write(tmp_path / "a.jsonl", toy_source.rows(300)), tmp_path / "log"
  source = ToySource((path,), True, log=str(log))
  parts, wait = [part.start for part in source.parts()], Path(f"{log}.wait")
  assert len(parts) > 7
  wait.touch()
  process = subprocess.Popen([sys.executable, toy_source.__file__, str(data), path, str(log), "True"],
                             start_new_session=True, stderr=subprocess.PIPE)
  read = data / "toy.tmp" / "read"
  while len(list(read.glob("*.json"))) < 4 or len(log.read_text().splitlines()) < 7:
    assert process.poll() is None
    time.sleep(0.02)
  if signum == signal.SIGINT:
    os.killpg(process.pid, signum)  # As a terminal does.
  else:
    process.send_signal(signum)
  said = process.communicate(timeout=300)[1]  # It ends when no worker has it any more.
  assert process.returncode == code and b"Traceback" not in said
  begun = [int(line.split()[0]) for line in log.read_text().splitlines()]
  assert sorted(begun) == parts[:7]
  wait.unlink()
  log.unlink()
  reference = contents(prepare(dataclasses.replace(source, name="whole")))
  log.unlink()
  went_on = contents(prepare(source))
  assert sorted(int(line.split()[0]) for line in log.read_text().splitlines()) == parts[4:]
  named = ("manifest.json", "README.md")  # The name of the folder is in these.
  assert {n: d for n, d in went_on.items() if n not in named} == {n: d for n, d in reference.items() if n not in named}


def test_a_large_bucket_is_read_in_passes_to_the_same_order(tmp_path, monkeypatch):
  rng = random.Random(0)
  all_records = [(rng.randbytes(16), f"{i}", b"x" * 100) for i in range(1000)]
  all_records += [(d, f"again {i}", b"y") for i, (d, *_) in enumerate(all_records[::10])]

  def stored(memory, most_at_once):
    monkeypatch.setattr(buckets, "_MEMORY", memory)
    monkeypatch.setattr(buckets, "_MOST_AT_ONCE", most_at_once)
    paths = [str(tmp_path / name) for name in "ab"]
    for path, half in zip(paths, (all_records[:700], all_records[700:]), strict=True):
      writer = buckets.Writer(path, 4)
      for record in half:
        writer.add(*record)
      writer.close()
    read = [list(buckets.read([*paths, str(tmp_path / "none")], i, 4)) for i in range(4)]
    return [len(passes) for passes in read], [r for passes in read for records in passes for r in records]

  passes, whole = stored(1 << 20, 1 << 30)
  assert passes == [1] * 4 and whole == sorted(all_records, key=lambda r: r[0])
  passes, again = stored(10_000, 20_000)
  assert min(passes) > 2 and again == whole


def test_equal_pairs_are_kept_once(data, tmp_path):
  first = toy_source.rows(200)
  other = [row | {"query_id": f"other {row['query_id']}"} for row in toy_source.rows(200, seed=1)]
  again = [{"query": r["query"].upper() + "?", "passage": r["passage"].replace(" ", "  "), "query_id": "again"}
           for r in first[:50]]
  near = [{"query": r["query"], "passage": r["passage"] + " more"} for r in first[50:60]]
  path = write(tmp_path / "a.jsonl", [*first, *again, *near, *other])
  folder = prepare(ToySource((path,)), processes=2)
  assert sorted(pairs(folder)) == sorted((r["query"], r["passage"]) for r in [*first, *near, *other])
  assert manifest(folder)["counts"] == {
      "read": 460, "duplicate": 50, "broken": 0, "written": 410, "with_up_to_4_other_answers": 410}
  assert len(dropped(folder)) == 20  # Of 50.
  assert all(row["reason"] == "duplicate" and row["query_id"] == "again" for row in dropped(folder))


def test_without_what_other_prepared_data_has(data, tmp_path):
  rows = toy_source.rows(300)
  a, b = write(tmp_path / "a.jsonl", rows[:200]), write(tmp_path / "b.jsonl", rows[100:])
  prepare(ToySource((a,)), name="a", validation_share=0.3)
  folder = prepare(ToySource((b,)), processes=2, name="b", without=("a",))
  assert sorted(pairs(folder)) == sorted((r["query"], r["passage"]) for r in rows[200:])
  assert manifest(folder)["counts"]["in_a"] == 100 and {r["reason"] for r in dropped(folder)} == {"in_a"}
  with pytest.raises(InputError, match="data/c: no prepared data there; run: gtr-jax prepare … --name c"):
    prepare(ToySource((b,)), name="d", without=("c",))
  with pytest.raises(InputError, match="--without d: that is what is to be prepared"):
    prepare(ToySource((b,)), name="d", without=("d",))
  with pytest.raises(InputError, match="no example is left .*in_a 200"):
    prepare(ToySource((a,)), name="d", without=("a",))


def collection(folder, split="test"):
  """A document is found by q1; q2 is not judged in this split; d2 is judged not relevant; d3 is short."""
  document = "It begins. " + " ".join(f"word{i}" for i in range(20)) + ", and ends."
  (folder / "qrels").mkdir(parents=True)
  write(folder / "corpus.jsonl", [{"_id": "d1", "title": "The title", "text": document},
                                  {"_id": "d2", "title": "", "text": document.replace("word", "other")},
                                  {"_id": "d3", "title": "", "text": "A short relevant document."},
                                  {"_id": "d4", "title": "It has a title",
                                   "text": "Twelve words of a text: one two three four five six seven"}])
  write(folder / "queries.jsonl", [{"_id": "q1", "text": "What is tested?"}, {"_id": "q2", "text": "What is trained?"},
                                   {"_id": "q3", "text": " ".join(f"asked{i}" for i in range(14))}])
  (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq3\td3\t2\nq3\td4\t1\n")
  return str(folder)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_decontamination(data, tmp_path, split):
  clean = toy_source.rows(20)
  thirteen, other = (" ".join(f"{word}{i}" for i in range(4, 17)) for word in ("word", "other"))
  cases = {
      "query q1": [("what is tested", "anything"), ("What is tested?\nIt has a body", "anything")],
      "document d1": [("a", f"x {thirteen.upper()}, y"), (thirteen, "b"),
                      ("k", thirteen.replace(" ", "\u00a0")), ("m", thirteen.replace(" ", " — "))],
      "query q3": [("c " + " ".join(f"asked{i}" for i in range(1, 14)), "d")],
      "document d3": [("e", "a short, relevant document")],
      "document d4": [("l", "Twelve words of a text: one two three four five six seven.")]}
  kept = [("What is trained?", "f"), ("g", thirteen.removesuffix(" word16")), ("h", other),
          ("i", "a short relevant document and more"), ("j", " ".join(f"asked{i}" for i in range(12)))]
  bad = [pair for found in cases.values() for pair in found]
  path = write(tmp_path / "a.jsonl", [*clean, *({"query": q, "passage": p} for q, p in bad + kept)])
  collection(data / "beir/tested", split)
  folder = prepare(ToySource((path,)), processes=2, decontaminate=("beir/tested",))
  assert sorted(pairs(folder)) == sorted([(r["query"], r["passage"]) for r in clean] + kept)
  assert manifest(folder)["counts"]["contaminated"] == len(bad)
  found = {row["query"]: row["reason"] for row in dropped(folder)}
  assert found == {q: f"contaminated by tested {what}" for what, each in cases.items() for q, _ in each}
  assert all(row["place"].startswith(path) for row in dropped(folder))
  collection(tmp_path / "forums/b", split)
  assert contents(prepare(ToySource((path,)), name="of_forums", decontaminate=(str(tmp_path / "forums"),))).keys() >= (
      shards(folder).keys())
  rows = [{"query": "What is tested?", "passage": "held out", "split": "validation"}, *clean]
  folder = prepare(ToySource((write(tmp_path / "b.jsonl", rows),)), name="b", decontaminate=("beir/tested",))
  assert pairs(folder, "validation") == [("What is tested?", "held out")]


def test_negatives_that_are_tested_are_left_out(data, tmp_path):
  collection(data / "beir/tested")
  negatives = ["harmless", "A short relevant document.", "harmless too"]
  rows = [{"query": "a", "passage": "b", "negatives": negatives, "negative_ids": ["1", "2", "3"],
           "negative_queries": ["What is tested?", "What else?"]}, *toy_source.rows(5)]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", rows),)), decontaminate=("beir/tested",))
  found = [texts for texts in examples(folder) if texts["query"] == ["a"]]
  assert [(texts["negatives"], texts["negative_ids"], texts["negative_queries"]) for texts in found] == [
      (["harmless", "harmless too"], ["1", "3"], ["What else?"])]
  assert manifest(folder)["counts"]["contaminated_negative"] == 2


def test_wrong_collections(data, tmp_path):
  source = ToySource((write(tmp_path / "a.jsonl", toy_source.rows(5)),))
  folder = Path(collection(tmp_path / "tested"))
  with pytest.raises(InputError, match="none: no such folder; give a folder in BEIR layout"):
    prepare(source, decontaminate=(str(tmp_path / "none"),))
  header = "query-id\tcorpus-id\tscore\n"
  for qrels, message in ((f"{header}q1,d1,1\n", r"test.tsv:2: 1 columns"), (header, "no judgements"),
                         ("x1\td1\t1\n", "1 of 1 judged queries, such as 'x1', are not"),
                         (f"{header}q1\td1\t1\nq3\tx3\t1\n", "1 of 2 judged documents, such as 'x3', are not"),
                          ("", "test.tsv: is empty")):
    (folder / "qrels/test.tsv").write_text(qrels)
    with pytest.raises(InputError, match=message):
      prepare(source, decontaminate=(str(folder),))


def test_validation_share_is_of_queries(data, tmp_path):
  path = write(tmp_path / "a.jsonl", toy_source.rows(1000))
  folder = prepare(ToySource((path,)), validation_share=0.2)
  train, validation = ({q for q, _ in pairs(folder, split)} for split in ("train", "validation"))
  assert not train & validation and len(train) + len(validation) == 500 and 70 < len(validation) < 130
  assert manifest(folder)["examples"] == {"train": 2 * len(train), "validation": 2 * len(validation)}
  assert not set(pairs(folder)) & set(pairs(folder, "validation"))
  given = write(tmp_path / "b.jsonl", [*toy_source.rows(10), *(r | {"split": "validation"}
                                                               for r in toy_source.rows(4, seed=1))])
  assert manifest(prepare(ToySource((given,)), name="b"))["examples"] == {"train": 10, "validation": 4}


def test_validation_share_is_of_groups_where_there_are_any(data, tmp_path):
  rows = [r | {"group": f"g{i // 5}"} for i, r in enumerate(toy_source.rows(500))]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", rows),)), validation_share=0.2)
  group_of = {r["passage"]: r["group"] for r in rows}
  train, validation = ({group_of[p] for _, p in pairs(folder, split)} for split in ("train", "validation"))
  assert not train & validation and len(train) + len(validation) == 100 and 8 < len(validation) < 35


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_in_both_splits_stays_in_validation(data, tmp_path, first):
  rows = toy_source.rows(100)
  held_out = [r | {"split": "validation"} for r in [*rows[:30], rows[0]]]
  files = [write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", held_out)]
  folder = prepare(ToySource((files[first], files[1 - first])), processes=2)
  assert sorted(pairs(folder)) == sorted((r["query"], r["passage"]) for r in rows[30:])
  assert sorted(pairs(folder, "validation")) == sorted((r["query"], r["passage"]) for r in rows[:30])
  assert manifest(folder)["counts"]["duplicate"] == 31 and len(dropped(folder)) == 20
  again = write(tmp_path / "c.jsonl", [*rows[:30], *held_out])
  with pytest.raises(InputError, match="no example is left to train on .*duplicate 31.*written_validation 30"):
    prepare(ToySource((again,)), name="c")


def test_a_pair_gets_the_negatives_of_its_copies(data, tmp_path):
  pair = {"query": "a", "passage": "b"}
  rows = [pair | {"negatives": ["n1"], "negative_ids": ["1"]}, pair | {"negatives": ["n2", "n1"]},
          pair | {"negatives": ["n3"], "negative_ids": ["3"], "negative_queries": ["m"]}, pair, {**pair, "query": "c"}]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", rows),)))
  (found,) = [texts for texts in examples(folder) if texts["query"] == ["a"]]
  assert [found[name] for name in ("negatives", "negative_ids", "negative_queries")] == [
      ["n1", "n2", "n3"], ["1", "", "3"], ["m"]]
  assert manifest(folder)["counts"] == {"read": 5, "duplicate": 3, "negative_of_duplicate": 3, "broken": 0,
                                        "written": 2}
  held_out = [pair | {"split": "validation"}, pair | {"negatives": ["n1"]}, *toy_source.rows(2)]
  folder = prepare(ToySource((write(tmp_path / "b.jsonl", held_out),)), name="b")
  assert examples(folder, "validation")[0]["negatives"] == []


def test_broken_lines_are_counted_below_a_threshold_and_an_error_above(data, tmp_path):
  rows = toy_source.rows(200)
  nine = [*rows[:150], b"{broken", b'{"a": "\xff"}', *[b"broken"] * 7, *rows[150:]]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", nine),)), processes=2)
  found = manifest(folder)
  assert found["counts"] == {"read": 209, "broken": 9, "written": 200, "with_up_to_4_other_answers": 200}
  assert len(found["broken_places"]) == 9
  assert all((": not JSON" in place) != (": not UTF-8" in place) for place in found["broken_places"])
  assert "a.jsonl" in found["broken_places"][0] and "not UTF-8 (invalid start byte)" in found["broken_places"][1]
  source = ToySource((write(tmp_path / "b.jsonl", [b"", rows[0], *[b"broken"] * 3, *nine]),), log=str(tmp_path / "log"))
  with pytest.raises(InputError, match=r"12 of 214 lines are broken, more than a share of 0.001; the first: "
                     r"\S*b.jsonl:3: not JSON \(.*; mend the files, or let gtr-jax prepare leave more out "
                     r"\(--max_broken\)"):
    prepare(source, name="b")
  (tmp_path / "log").unlink()
  assert len(pairs(prepare(source, name="b", max_broken=0.06))) == 200
  with pytest.raises(InputError, match="12 of 214 lines are broken, more than a share of 0.001; the first: "):
    prepare(source, name="b")  # It is there, and would not be now.
  assert not (tmp_path / "log").exists()  # What had been read is not read again.
  source = ToySource((write(tmp_path / "c.jsonl", [*rows[:10], *[b"broken"] * 10]),))
  with pytest.raises(InputError, match="10 of 20 lines are broken"):  # It is another kind of file.
    prepare(source, name="c")
  assert not (data / "c.tmp").exists()


def test_what_cannot_be_written_is_counted(data, tmp_path):
  rows = [*toy_source.rows(5), {"query": " ", "passage": "a"}, {"query": "a", "passage": ""},
          {"query": "a", "passage": "half \ud800"}, {"query": "?!", "passage": "only signs"}]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", rows),)))
  assert manifest(folder)["counts"] == {
      "read": 9, "empty": 2, "not_unicode": 1, "broken": 0, "written": 6, "with_up_to_4_other_answers": 4}


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_of_one_line(data, tmp_path, processes):
  with pytest.raises(InputError, match="none.jsonl: no such file"):
    prepare(ToySource((str(tmp_path / "none.jsonl"),)))
  path = write(tmp_path / "a.jsonl", [*toy_source.rows(200), {"error": "the\nreason"}])
  with pytest.raises(InputError, match=r"a.jsonl, from byte \d+: KeyError: .*reason.* \(toy_source.py:\d+\); the "
                     "traceback is in .*traceback.txt") as e:
    prepare(ToySource((path,)), processes)
  assert "\n" not in str(e.value) and "in read" in (data / "toy.tmp/traceback.txt").read_text()
  path = write(tmp_path / "b.jsonl", [r | {"length": 0} for r in toy_source.rows(200)])
  with pytest.raises(InputError, match=r"no example is left \(read 200, too_short 200\); are these the right files"):
    prepare(ToySource((path,)), processes)
  assert not (data / "toy").exists() and not (data / "toy.tmp").exists()  # Nothing to go on from.
  cut = tmp_path / "c.jsonl.gz"
  cut.write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in toy_source.rows(200)), mtime=0)[:-20])
  with pytest.raises(InputError, match="cut off"):
    prepare(ToySource((str(cut),)), processes)
  assert not (data / "toy.tmp").exists()
  with pytest.raises(InputError, match="--validation_share 1.5: give a number from 0 to below 1"):
    prepare(ToySource((path,)), validation_share=1.5)
  with pytest.raises(InputError, match="--name a/b: give a name of letters"):
    prepare(ToySource((path,)), name="a/b")


def test_a_worker_that_is_killed_is_told_of(data, tmp_path):
  path, log = write(tmp_path / "a.jsonl", toy_source.rows(300)), tmp_path / "log"
  Path(f"{log}.wait").touch()
  process = subprocess.Popen([sys.executable, toy_source.__file__, str(data), path, str(log), "False"],
                             stderr=subprocess.PIPE, text=True)
  while not log.exists() or len(log.read_text().splitlines()) < 7:
    assert process.poll() is None
    time.sleep(0.02)
  os.kill(int(log.read_text().splitlines()[-1].split()[1]), signal.SIGKILL)
  message = process.communicate()[1].splitlines()[-1]
  assert process.returncode == 1
  assert "was killed (is memory short?); run the same command again, with fewer --workers, and it goes on" in message


def test_what_is_there_is_kept(data, tmp_path):
  source = ToySource((write(tmp_path / "a.jsonl", toy_source.rows(20)),), log=str(tmp_path / "log"))
  folder, said = prepare(source), []
  (tmp_path / "log").unlink()
  engine.prepare(source, Settings(), processes=1, say=said.append)
  assert said == [f"{folder} is up to date"] and not (tmp_path / "log").exists()
  with pytest.raises(InputError, match="toy holds what was prepared from other files or settings, or .* changed: "
                     "validation_share was 0.0, and is 0.5; remove it"):
    prepare(source, validation_share=0.5)
  second = write(tmp_path / "b.jsonl", toy_source.rows(3))
  with pytest.raises(InputError, match="changed: b.jsonl is new; remove it"):
    prepare(ToySource((*source.paths, second), log=source.log))
  with pytest.raises(InputError, match="changed: b.jsonl is new; a.jsonl is not among them any more; remove it"):
    prepare(ToySource((second,), log=source.log))
  write(tmp_path / "a.jsonl", toy_source.rows(21))
  with pytest.raises(InputError, match="changed: a.jsonl has changed; remove it"):
    prepare(source)
  both = prepare(ToySource((*source.paths, second)), name="both")
  with pytest.raises(InputError, match="changed: the same files in another order, by which of equal pairs the first"):
    prepare(ToySource((second, *source.paths)), name="both")
  shard = next(both.glob("*.tfrecord"))
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(InputError, match=r"tfrecord: missing, or not of the .* remove .*both, and prepare it again"):
    prepare(ToySource((*source.paths, second)), name="both")
  shard.write_bytes(shard.read_bytes() + b"?")
  with pytest.raises(InputError, match="damaged or cut off; remove the folder .*both, and give the command again"), \
      shard.open("rb") as f:
    list(records.read_records(f, str(shard)))
  write(tmp_path / "a.jsonl", toy_source.rows(20))

  os.utime(tmp_path / "a.jsonl", (1, 1))
  (tmp_path / "a.jsonl").rename(tmp_path / "moved.jsonl")
  moved = dataclasses.replace(source, paths=(str(tmp_path / "moved.jsonl"),))
  engine.prepare(moved, Settings(), processes=1, say=said.append)
  assert said[1:] == [f"{folder} is up to date"] and not (tmp_path / "log").exists()
  (tmp_path / "moved.jsonl").rename(tmp_path / "a.jsonl")
  text = (tmp_path / "a.jsonl").read_bytes()
  (tmp_path / "a.jsonl").write_bytes(text.replace(b"a", b"b", 1) if b"a" in text else text.upper())
  os.utime(tmp_path / "a.jsonl", (1, 1))
  with pytest.raises(InputError, match="before one of the files changed: a.jsonl has changed; remove it, or give"):
    prepare(source)
  write(tmp_path / "a.jsonl", toy_source.rows(19))
  with pytest.raises(InputError, match="toy holds what was prepared from other files or settings"):
    prepare(source)
  (data / "mine").mkdir()
  with pytest.raises(InputError, match="mine is there, but holds no prepared data; give another --name"):
    prepare(source, name="mine")
  # What an interrupted run of something else has left is not gone on from.
  (data / "b.tmp/read").mkdir(parents=True)
  (data / "b.tmp/description.json").write_text('{"fingerprint": "other"}')
  (data / "b.tmp/read/000000.json").write_text("{}")
  assert len(pairs(prepare(source, name="b"))) == 19


def test_nothing_but_broken_lines_are_shown(data, tmp_path):
  path = write(tmp_path / "a.jsonl", [{"x": 1}, {"y": 2}])
  with pytest.raises(InputError, match=r"no example is left \(broken 2, read 2; the first broken ones: .*a.jsonl:1: "):
    engine.prepare(NaturalQuestions((path,)), Settings(), processes=1, say=lambda line: None)
