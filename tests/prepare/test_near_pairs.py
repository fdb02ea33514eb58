"""--near_duplicates: what is left is what comparing all pairs with all leaves, by a formula of this file."""

import dataclasses
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import toy_source
from test_prepare_engine import contents, data, dropped, examples, manifest, pairs, prepare, shards  # noqa: F401
from toy_source import ToySource, write

from gtr_jax.prepare import buckets, engine, near_pairs, records


@pytest.fixture(autouse=True)
def few_shards(monkeypatch):
  """Each is a task, and several files."""
  monkeypatch.setattr(engine, "_MIN_BUCKETS", 8)


def edited(rng, text, changes):
  """With some of its words replaced."""
  found = text.split()
  for _ in range(changes):
    found[rng.randrange(len(found))] = f"new{rng.randrange(10**6)}"
  return " ".join(found)


def rows_with_near_ones(number, seed=0):
  """Families of pairs of words alone: the same, with a word or two changed in the query, the passage or both."""
  rng, rows = random.Random(seed), []
  for i in range(number):
    lengths = rng.choice([3, 7, 8, 12, 80]), rng.choice([5, 60, 120, 200])
    query, passage = (" ".join(f"w{rng.randrange(3000)}" for _ in range(n)) for n in lengths)
    rows.append({"query": query, "passage": passage})
    for _ in range(rng.randrange(4)):
      changed = rng.choice([0, 0, 0, 1]), rng.choice([0, 1, 1, 2])
      rows.append({"query": edited(rng, query, changed[0]), "passage": edited(rng, passage, changed[1])})
    if i % 5 == 0:
      rows.append({"query": f"another {i} of the kind", "passage": passage})  # Another question of the same passage.
  rng.shuffle(rows)
  return list({(row["query"], row["passage"]): row for row in rows}.values())


def similarity(one, other):
  a, b = ({tuple(words[i:i + 8]) for i in range(max(1, len(words) - 7))} for words in (one.split(), other.split()))
  return len(a & b) / len(a | b)


def digest_of(row):
  return records.digest_of(row["query"].encode(), row["passage"].encode())


def left_of(rows):
  """By the formula: all but those that are near to one before them, in the order of digests."""
  rows, found = sorted(rows, key=digest_of), []
  for i, row in enumerate(rows):
    if not any(min(similarity(row[side], other[side]) for side in ("query", "passage")) >= 0.8 for other in rows[:i]):
      found.append((row["query"], row["passage"]))
  return sorted(found)


def test_what_is_left_is_what_all_pairs_leave(data, tmp_path):  # noqa: F811
  rows = rows_with_near_ones(160)
  source = ToySource((write(tmp_path / "a.jsonl", rows),))
  expected = left_of(rows)
  assert len(rows) > 300 and 60 < len(rows) - len(expected) < len(rows) - 160
  folder = prepare(source, processes=1, near_duplicates=True)
  assert sorted(pairs(folder)) == expected
  counts = manifest(folder)["counts"]
  assert counts["near_duplicate"] == len(rows) - len(expected) and counts["written"] == len(expected)
  assert manifest(folder)["filters"]["near_duplicates"] is True
  # Each is shown with one that it is near to, which stays, where it is not near to another one itself.
  told, ids = dropped(folder), {texts["example_id"][0] for texts in examples(folder)}
  assert len(told) == 20 < counts["near_duplicate"] and {row["reason"] for row in told} == {"near_duplicate"}
  assert sum(row["near_id"] in ids for row in told) > 0.8 * len(told)
  by_id = {digest_of(row).hex(): row for row in rows}
  for row in told:
    assert by_id[row["near_id"]]["passage"].startswith(row["near_passage"])
    assert any(row["passage"] == other["passage"][:300] and similarity(other["query"], by_id[row["near_id"]]["query"])
               >= 0.8 for other in rows)
  # Whatever the workers, the parts and the order of the lines.
  reference = contents(folder)
  shutil.rmtree(folder)
  assert contents(prepare(source, processes=3, near_duplicates=True)) == reference
  other = dataclasses.replace(source, paths=(write(tmp_path / "b.jsonl", rows[::-1]),), part_bytes=20_000)
  assert shards(prepare(other, name="other", near_duplicates=True)) == {
      name: data for name, data in reference.items() if name.endswith(".tfrecord")}
  assert sorted(pairs(prepare(source, name="all"))) == sorted((row["query"], row["passage"]) for row in rows)


def test_what_is_held_out_stays_and_what_is_dropped_is_known(data, tmp_path):  # noqa: F811
  passage = " ".join(f"w{i}" for i in range(100))
  near = passage.replace("w99", "other")
  rows = [{"query": "a question", "passage": passage}, {"query": "a question", "passage": near},
          {"query": "a question", "passage": "far away", "negatives": [passage, near, "neither"]},
          {"query": "Held, out", "passage": passage}, {"query": "held out?", "passage": near, "split": "validation"},
          *({"query": sign, "passage": passage} for sign in ("?", "!!", "\U0001f600"))]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", rows),)), near_duplicates=True)
  assert pairs(folder, "validation") == [("held out?", near)]
  left = {texts["query"][0]: texts for texts in examples(folder) if texts["passage"][0] != "far away"}
  assert left.keys() == {"a question", "?", "!!", "\U0001f600"}
  # Both passages answer the question, though one pair alone is left of them.
  (far,) = (texts for texts in examples(folder) if texts["passage"][0] == "far away")
  assert far["negatives"] == ["neither"] and len(far["positives"]) == 2
  assert manifest(folder)["counts"]["near_duplicate"] == 2


def test_many_that_agree_are_compared_with_the_first(data, tmp_path):  # noqa: F811
  text = " ".join(f"w{i}" for i in range(300))
  rows = [{"query": "the same", "passage": text.replace("w150", f"x{i}")} for i in range(50)]
  folder = prepare(ToySource((write(tmp_path / "a.jsonl", rows + toy_source.rows(20)),)), near_duplicates=True)
  assert pairs(folder).count(pairs(folder)[0]) == 1 and len(pairs(folder)) == 21
  ranks = [bytes(15) + bytes([1, i]) for i in range(50)]
  found = list(near_pairs.candidates([*ranks, ranks[3]]))
  assert len(found) == 45 + 40 * 10 and all(first < later for first, later in found)


def test_bands_find_what_is_similar(tmp_path):
  """Jaccard 0.8 on both sides: 1 - (1 - 0.8**4)**8 = 0.985."""
  rng, hits = np.random.default_rng(0), 0
  for i in range(300):
    one, other = [" ".join(f"a{i}w{j}" for j in range(107))] * 2, []
    for side in range(2):
      start = int(rng.integers(0, 96))  # Behind the first 11 words, of 100 runs 11 less are shared: 89 of 111.
      other.append(" ".join(one[side].split()[11:] + [f"b{start}w{j}" for j in range(11)]))
    assert 0.8 <= similarity(one[0], other[0]) < 0.81
    hits += bool(set(near_pairs.bands(*one)) & set(near_pairs.bands(*other)))
  assert hits > 0.965 * 300


def test_bands_are_the_same_in_every_process():
  code = "from gtr_jax.prepare.near_pairs import bands; print([b.hex() for b in bands('a b', 'c ' * 20)])"
  said = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)}).stdout
          for seed in (1, 2)}
  assert len(said) == 1


@pytest.mark.parametrize("most_at_once", [1, 96 << 20])
def test_what_lies_beside_is_found_in_every_pass(tmp_path, monkeypatch, most_at_once):
  monkeypatch.setattr(buckets, "_MOST_AT_ONCE", most_at_once)
  rng = random.Random(0)
  digests = [rng.randbytes(16) for _ in range(40)]
  for name, copies in (("ours", 1), ("others", 2)):
    with buckets.Writer(str(tmp_path / name), buckets.MOST) as writer:
      for digest in digests * copies:
        writer.add(digest, b"")
  for bucket in range(2):
    found = list(buckets.beside(*(buckets.read([str(tmp_path / name)], bucket, 2) for name in ("ours", "others"))))
    expected = [digest for digest in sorted(digests) if buckets.bucket_of(digest, 2) == bucket]
    assert [digest for ours, _ in found for digest, _ in ours] == expected
    assert [digest for _, others in found for digest, _ in others] == [d for d in expected for _ in range(2)]
    assert all({o[0] for o in others} == {o[0] for o in ours} for ours, others in found)
