"""What mining knows of all pairs, on disk: the same as sets in memory, and memory that does not grow."""

import random
import tracemalloc

import pytest

from gtr_jax.mining import on_disk
from gtr_jax.mining.pairs import Pair, id_key
from gtr_jax.prepare import buckets
from gtr_jax.text.near_text import are_near
from gtr_jax.text.same_text import text_key


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Many chunks, buckets that are read in parts, and tables of several blocks."""
  monkeypatch.setattr(buckets, "_MEMORY", 1 << 15)
  monkeypatch.setattr(buckets, "_MOST_AT_ONCE", 1 << 12)
  monkeypatch.setattr(on_disk, "_ROWS", 4)


def made_up(number, rng):
  """A query of few, often with an id; a passage of few, sometimes with one."""
  query, passage = int(rng.random() ** 3 * 50), rng.randrange(200)
  record = {"other": [number, None, "é\ud800", {"x": 2**70}]}
  ids = (f"q{query // 2 if query < 40 else query}" if rng.random() < 0.5 else "",
         f"p{passage // 2}" if passage < 40 else "")
  if number % 5 == 0:  # Of a set.
    ids = f"set:{query // 9}", f"set:{query // 9}"
  return Pair(record, f"query {query}", f"Passage {passage}", *ids, is_negative=number % 7 == 3,
              is_known=number % 11 == 5, bare=f"{passage}" if passage % 3 else "")


def test_as_sets_in_memory(tmp_path):
  rng = random.Random(1)
  pairs = [made_up(number, rng) for number in range(3000)]
  gathered = on_disk.gather(iter(pairs), tmp_path, own_passages=True, progress=False)
  answering = [pair for pair in pairs if not pair.is_negative and not pair.is_known]
  assert gathered.num_pairs == len(answering)
  assert list(gathered.pairs()) == list(gathered.pairs()) == answering
  known, texts, passages, ids = {}, {}, {}, {}
  for pair in pairs:
    if not pair.is_known:
      passages.setdefault(pair.passage_key, pair)
      ids.setdefault(pair.passage_key, pair.passage_id or None)
    if not pair.is_negative:
      for key in pair.query_keys:
        known.setdefault(key, set()).update({text_key(pair.passage), pair.passage_key})
        known[key] |= {text_key(pair.bare)} if pair.bare else set()
        texts.setdefault(key, set()).add(pair.passage)
  assert max(map(len, known.values())) > 100
  for key in [*known, 0, 2**64 - 1, text_key("nothing"), id_key("q0")]:
    assert gathered.known.of(key) == known.get(key, set())
    near, of_query = gathered.known.near((key,)), texts.get(key, ())
    assert (near is not None) == (len(of_query) > 1)
    for i in range(0, 200, 9) if near else ():
      assert near(f"passage {i}?") == (f"Passage {i}" in of_query)
  wordings, ids_of_text = {}, {}
  for pair in pairs:
    for text in (pair.query, pair.passage)[:2 if pair.query_id[:4] == "set:" else 1]:
      if pair.query_id and not pair.is_negative:
        wordings.setdefault(id_key(pair.query_id), set()).add(text_key(text))
        ids_of_text.setdefault(text_key(text), set()).add(id_key(pair.query_id))
  alone = {identifier for identifier, of_id in wordings.items() if len(of_id) == 1}
  for key, of_text in [*ids_of_text.items(), (0, set())]:
    assert gathered.known.ids(key) == of_text - alone
  assert alone and max(map(len, ids_of_text.values())) > 2
  two = [text_key("query 1"), id_key("q1")]
  assert gathered.known.near(tuple(two))("passage 3") == any("Passage 3" in texts[key] for key in two)
  documents = gathered.passages.documents
  assert list(documents.ids) == [f"{key:016x}" for key in passages]
  assert list(documents.full_texts()) == [pair.passage for pair in passages.values()]
  assert list(documents.texts) == [pair.bare or pair.passage for pair in passages.values()]
  assert list(gathered.passages.given_ids) == list(ids.values()) and gathered.passages.have_ids
  rows = on_disk.IdRows(documents.ids)
  assert [rows.get(doc_id) for doc_id in documents.ids] == list(range(len(passages)))
  assert rows.get("x") is None and rows.get(None) is None
  assert sorted(path.name for path in tmp_path.iterdir()) == ["ids", "known", "pairs", "passages", "places",
                                                                "texts"]


def test_near_to_one_of_many():
  """As `are_near` says of each."""
  rng = random.Random(2)
  texts = [" ".join(rng.choices("abcde", k=rng.choice((3, 9, 14, 30)))) for _ in range(60)]
  asked = texts[40:] + [" ".join([*text.split()[:-1], "x"]) for text in texts] + [text + " b" for text in texts] + [""]
  near = on_disk.near_one_of(texts[:40])
  expected = [any(are_near(text, other) for other in texts[:40]) for text in asked]
  assert [near(text) for text in asked] == expected and 20 < sum(expected) < len(asked) - 20


def test_texts_of_one_query_are_so_many_at_most(tmp_path, monkeypatch):
  """In memory; what is equal to one is known of all."""
  monkeypatch.setattr(on_disk, "_MOST_NEAR", 20)
  pairs = [Pair({}, "query", f"passage {i} " + " ".join(f"{i}w{j}" for j in range(40))) for i in range(50)]
  known = on_disk.gather(pairs, tmp_path, own_passages=False, progress=False).known
  key, = pairs[0].query_keys
  assert known.of(key) == {text_key(pair.passage) for pair in pairs}
  assert sum(known.near((key,))(pair.passage + " x") for pair in pairs) == 20


def test_ids_whose_hashes_are_equal(monkeypatch):
  monkeypatch.setattr(on_disk, "hash_key", len)
  rows = on_disk.IdRows(["aa", "b", "cc", "dd"])
  assert [rows.get(doc_id) for doc_id in ("aa", "b", "cc", "dd", "ee", "e", "eee")] == [0, 1, 2, 3, None, None, None]


def test_memory_does_not_grow_with_the_pairs(tmp_path):
  def peak(number):
    def pairs():
      for i in range(number):
        yield Pair({}, f"query {i}", f"passage {i} " + "with many words " * 30)

    (folder := tmp_path / str(number)).mkdir()
    tracemalloc.start()
    try:
      gathered = on_disk.gather(pairs(), folder, own_passages=True, progress=False)
      assert len(gathered.passages.documents.ids) == number
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  peak(100)  # What is made once.
  fewer, more = peak(2000), peak(10_000)
  assert (more - fewer) / 8000 < 50  # Bytes a pair, whose texts have 500.
