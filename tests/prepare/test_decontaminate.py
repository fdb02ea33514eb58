"""What gives a test away: its queries in the same, in more, and in nearly the same words; its documents; its edits."""

import json
import os

import pytest
from toy_source import ToySource, rows, write

from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.prepare import decontaminate, engine
from gtr_jax.prepare.manifests import Settings

QUERIES = {
    "sky": "Why is the sky blue in the morning?", "c": "C++", "negative": "-1 < 0", "digits": r"what does \d+ match",
    "short": "king's son", "measles": "What are the symptoms of measles?", "five": "where does the king live",
    "long": "a question of more than thirteen words, " + " ".join(f"asked{i}" for i in range(14)), "mark": "?",
    "and": "what does && mean in the shell", "less": "is 1 < 0 true in math", "unequal": "how do I use x != y in C",
    "lupus": "what is lupus", "stop": "is it this",
    "python": "is it true that python is faster than java",
}
LONG = " ".join(f"word{i}" for i in range(30))
DOCUMENTS = {"long": LONG, "short": "A short relevant document.", "titled": "Seven more words of a text, C++ too",
             "empty": ""}


def collection(folder, queries=QUERIES):
  (folder / "qrels").mkdir(parents=True, exist_ok=True)
  write(folder / "corpus.jsonl", [{"_id": name, "title": "The title" * (name == "titled"), "text": text}
                                  for name, text in DOCUMENTS.items()])
  write(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
  (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(
      f"{query}\t{doc}\t1\n" for query in queries for doc in DOCUMENTS))
  return str(folder)


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tested")
  decontaminate.write_tested([collection(folder / "t")], os.fspath(folder / "tested.npz"))
  return decontaminate.Tested(os.fspath(folder / "tested.npz"))


@pytest.mark.parametrize(("query", "passage", "found"), [
    ("why is the sky blue in the morning", "p", "query sky"), ("q", "Why is the sky blue in the morning", "query sky"),
    ("Is it true, why is the sky blue in the morning?", "p", "query sky"),
    ("Why is the sky blue in the morning please", "p", "query sky"),
    ("A title\nAnd then: why is the sky blue in the morning? Tell me.", "p", "query sky"),
    ("q", "First line.\nThe second asks why is the sky blue in the morning, and answers.", "query sky"),
    ("Why was the sky blue in a morning", "p", "query sky"),  # Other stop words.
    ("why is the skies blue in mornings", "p", None),  # Not an ending that is known.
    ("why is the sky blues in mornings?", "p", "query sky"),
    ("q", "Why was sky blue in mornings\nSecond line.", "query sky"),
    ("Why is the sky red in the morning", "p", None), ("Why is the sky blue", "p", None),
    ("Why is the morning blue in the sky", "p", None), ("Why is the sky not blue in the morning?", "p", None),
    ("What are the symptoms of mumps?", "p", None), ("What were the symptoms of measles", "p", "query measles"),
    ("Are these symptoms of measles?", "p", None),  # Two words that are no stop words.
    ("tell me: what are the symptoms of measles", "p", "query measles"),
    ("I ask where does the king live now", "p", None),  # Five words stand together in many texts.
    ("C++.", "p", "query c"), ("C", "p", None), ("C++ please", "p", "query c"), ("C#", "p", None),
    ("-1 < 0", "p", "query negative"), ("1 < 0", "p", None), ("-1 > 0", "p", None),
    (r"What does \d+ match?", "p", "query digits"), (r"What does \d* match?", "p", None),
    ("What does && mean in a shell?", "p", "query and"), ("what does || mean in the shell", "p", None),
    ("Is 1 < 0 true in math?", "p", "query less"), ("is 1 > 0 true in math", "p", None),
    ("Tell me how do I use x != y in C", "p", "query unequal"), ("Tell me how do I use x == y in C", "p", None),
    ("Tell me how do I use x = y in C", "p", None),
    ("King's son!", "p", "query short"), ("the king's son", "p", "query short"), ("?", "p", "query mark"),
    ("!", "p", None),
    ("Is it true that what is lupus?", "p", "query lupus"),
    ("please tell me what lupus is", "p", "query lupus"),
    ("q", "So, what is lupus?\nA disease.", "query lupus"), ("who is lupus", "p", None), ("lupus", "p", None),
    ("q", "What is lupus? A disease", None), ("is that it", "p", None), ("what is lupus nephritis", "p", None),
    ("so, is it true that Python is faster than Java?", "p", "query python"),
    ("python is faster than java", "p", "query python"), ("java is faster than python", "p", None),
    (" ".join(f"asked{i}" for i in range(13)), "p", "query long"),
    (" ".join(f"asked{i}" for i in range(12)), "p", None),
    ("q", LONG.upper().replace(" ", " — "), "document long"), ("q", " ".join(LONG.split()[5:18]), "document long"),
    ("q", " ".join(LONG.split()[5:17]), None),
    ("q", " ".join(LONG.split()[:12]) + "\n" + LONG.split()[12], "document long"),
    (" ".join(LONG.split()[:7]), " ".join(LONG.split()[7:14]), None),  # Of a query and a passage nothing is in a row.
    ("q", "a short, relevant document", "document short"), ("q", "A short\nrelevant document", "document short"),
    ("q", "a short relevant document and more", None), ("", "A short relevant document", "document short"),
    ("q", "Seven more words of a text, C++ too", "document titled"),
    ("q", "The title Seven more words of a text C++ too.", "document titled"),
    ("q", "Seven more words of a text, C too", None), ("", "", None), ("\n", "\n", None), ("a\ud800", "b", None),
])
def test_what_is_found(tested, query, passage, found):
  assert tested.find(query, passage) == (found and f"t {found}")


def test_many_texts_against_plain_words(tested):
  """Hashes find what a comparison of words finds: any 13 words of the long document, wherever they stand."""
  for start in range(0, 18, 3):
    for before in (0, 1, 700, 3000):
      text = " ".join([*(f"x{i}" for i in range(before)), *LONG.split()[start:start + 13], "y"])
      assert tested.find("q", text) == "t document long"
      assert tested.find("q", text.replace(f"word{start + 6}", "z")) is None


@pytest.fixture
def data(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  yield tmp_path / "data"
  data_root.set_data_dir(None)


def texts(folder):
  return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_edited_collection_is_another_one(data, tmp_path, monkeypatch, interrupted):
  """Also in this process, where what was tested has been read from a file of the same name."""
  folder = tmp_path / "t"
  source = ToySource((write(tmp_path / "a.jsonl", [{"query": q, "passage": f"p {q}"} for q in (
      "who is the first", "who is the second")] + rows(20)),))
  said = []

  def prepare():
    return engine.prepare(source, Settings(decontaminate=(str(folder),)), processes=1, say=said.append)

  collection(folder, {"q": "Who is the first?"})
  if interrupted:
    with monkeypatch.context() as patch:
      patch.setattr(engine, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
      with pytest.raises(KeyboardInterrupt):
        prepare()
    assert (data / "toy.tmp/tested.npz").exists()
  else:
    prepare()
    prepare()
    assert "up to date" in said[-1]
    assert [row["query"] for row in texts(data / "toy")] == ["who is the first"]
  collection(folder, {"q": "Who is the second?"})
  if not interrupted:
    with pytest.raises(InputError, match="prepared from other files or settings, or before one of the files changed"):
      prepare()
    (data / "toy").rename(data / "before")
  prepare()
  assert [(row["reason"], row["query"]) for row in texts(data / "toy")] == [
      ("contaminated by t query q", "who is the second")]
  assert not any("going on" in line for line in said)
