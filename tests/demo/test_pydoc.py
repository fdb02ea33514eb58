"""The built-in corpus: read without importing, clean, reproducible, and nothing tested on is trained on."""

import dataclasses
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_text import words

from gtr_jax.collections.collection import read_collection
from gtr_jax.data.pipeline import TrainingBatches, ValidationBatches
from gtr_jax.demo import corpus, docstrings, read
from gtr_jax.demo.near_copies import NearCopies
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.text.tokenizer import Tokenizer

pytest_plugins = "data_fixtures"


def documentation(seed, summary=None):
  """A docstring: a summary, two paragraphs of sentences, a section."""
  sentences = [words(12, f"{seed} sentence {i}").capitalize() + "." for i in range(5)]
  summary = summary or words(6, f"{seed} summary").capitalize() + "."
  return f"{summary}\n\n{' '.join(sentences[:2])}\n\n{' '.join(sentences[2:])}\n\nArgs:\n  x: {words(5, f'{seed} x')}\n"


def near_copy(text):
  """The same with every 25th word exchanged."""
  number = itertools.count(1)
  return re.sub(r"\S+", lambda m: words(1, m.group()) if next(number) % 25 == 0 else m.group(), text)


def write_package(folder, docs):
  """A package of modules of ten functions each, that must not be imported."""
  folder.mkdir(parents=True)
  (folder / "__init__.py").write_text('raise RuntimeError("imported")\n')
  docs = list(docs)
  for start in range(0, len(docs), 10):
    body = "".join(f'def function_{start + i}(x):\n  """{doc}"""\n\n\n' for i, doc in enumerate(docs[start:start + 10]))
    (folder / f"module_{start // 10}.py").write_text('raise RuntimeError("imported")\n' + body)
  return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
  """Two packages to fine-tune on, of which one copies the other's; one more to pretrain on; two zero-shot ones."""
  tree = tmp_path_factory.mktemp("site-packages")
  alpha = [documentation(f"alpha {i}") for i in range(150)]
  zero = [documentation(f"zero {i}") for i in range(60)]
  same_question = [documentation(f"other answer {i}", summary=alpha[i].split("\n")[0]) for i in range(60, 150)]
  beta = [near_copy(doc) for doc in alpha[:60]] + same_question + [documentation(f"beta {i}") for i in range(50)]
  gamma = [near_copy(zero[i]) for i in range(30)] + [documentation(f"gamma {i}") for i in range(40)]
  return corpus.Packages(
      finetune={"alpha": write_package(tree / "alpha", alpha), "beta": write_package(tree / "beta", beta)},
      pretrain={"gamma": write_package(tree / "gamma", gamma)},
      zero_shot={"zero_shot": {"zero": write_package(tree / "zero", zero)},
                 "two_packages": {name: write_package(tree / name, [documentation(f"{name} {i}") for i in range(15)])
                                  for name in ("one", "two")}},
      versions={"alpha": "1.0"})


@pytest.fixture(scope="module")
def prepared(packages, tmp_path_factory):
  return corpus.prepare(packages=packages, output=tmp_path_factory.mktemp("data") / "pydoc", say=lambda line: None)


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def what_is_tested(prepared):
  """(query, document) of every judgement, and the whole zero-shot corpora."""
  asked, documents = [], []
  for name, splits in {"numpy_jax_tensorflow": ("test", "validation"), "zero_shot": ("test",),
                       "two_packages": ("test",)}.items():
    for split in splits:
      collection = read_collection(prepared / "collections" / name, split)
      texts = dict(zip(collection.documents.ids, collection.documents.texts, strict=True))
      for query_id, query in zip(collection.query_ids, collection.queries, strict=True):
        document_id, = collection.qrels[query_id]
        asked.append((query, document_id))
        documents.append(texts[document_id])
      if name != "numpy_jax_tensorflow":
        documents += texts.values()
  return asked, documents


def runs_of_five(text):
  text = re.sub(r"[^a-z ]", "", text.lower()).split()
  return {tuple(text[i:i + 5]) for i in range(len(text) - 4)}


def test_no_tested_document_or_question_trains_not_even_as_a_copy(prepared):
  asked, documents = what_is_tested(prepared)
  assert len(documents) > 100
  questions = {query.lower() for query, _ in asked}
  runs = [runs_of_five(d) for d in documents]
  for file in ("finetune/train.jsonl", "pretrain/train.jsonl", "pretrain/validation.jsonl"):
    pairs = rows(prepared / file)
    assert pairs
    for pair in pairs:
      assert pair["query"].lower() not in questions
      assert pair["positive_id"] not in {document_id for _, document_id in asked}
      mine = runs_of_five(pair["positive"])
      assert max(len(mine & other) / min(len(mine), len(other)) for other in runs) < 0.1, pair["positive_id"]
  # The copies were there to be found: what they repeat is tested on, or trains from one of the two.
  in_domain = {document_id for _, document_id in asked if document_id.startswith(("alpha", "beta"))}
  assert len(in_domain) >= 10
  assert any(re.fullmatch(r"alpha\.module_[0-5]\..*", i) for i in in_domain), "none of the copied ones is held out"
  gamma = {p["positive_id"][:14] for p in rows(prepared / "pretrain/train.jsonl")} & {
      f"gamma.module_{i}" for i in range(10)}
  assert gamma == {f"gamma.module_{i}" for i in (3, 4, 5, 6)}  # Modules 0 to 2 copy the zero-shot collection.


def test_collections_are_answerable_and_give_nothing_away(prepared):
  test = read_collection(prepared / "collections/numpy_jax_tensorflow", "test")
  validation = read_collection(prepared / "collections/numpy_jax_tensorflow", "validation")
  assert [list(column) for column in test.documents] == [list(column) for column in validation.documents]
  assert not set(test.queries) & set(validation.queries)
  distractors = set(test.documents.ids) - {d for q in (test, validation) for r in q.qrels.values() for d in r}
  assert len(distractors) > 100
  for name in ("numpy_jax_tensorflow", "zero_shot", "two_packages"):
    collection = read_collection(prepared / "collections" / name, "test")
    assert len(set(collection.queries)) == len(collection.queries) >= 10
    assert not any(collection.documents.titles)
    texts = dict(zip(collection.documents.ids, collection.documents.texts, strict=True))
    for query_id, query in zip(collection.query_ids, collection.queries, strict=True):
      (document_id, grade), = collection.qrels[query_id].items()
      assert grade == 1 and len(texts[document_id]) >= 100
      assert query.lower().rstrip(".") not in texts[document_id].lower()
  assert {i.split(".")[0] for i in collection.documents.ids} == {"one", "two"}
  # The pairs of the validation queries are the validation split of fine-tuning.
  assert {p["query"] for p in rows(prepared / "finetune/validation.jsonl")} == set(validation.queries)


def test_pretraining_pairs_are_noisy_and_of_three_kinds(prepared):
  pairs = rows(prepared / "pretrain/train.jsonl")
  kinds = {kind: [p for p in pairs if p["query_id"].endswith(kind)] for kind in (":summary", ":sentence")}
  names = [p for p in pairs if ":" not in p["query_id"]]
  assert len(names) > 150 and min(map(len, kinds.values())) > 30
  assert names[0]["query"] == "alpha module 0 function"
  assert {p["positive_id"].split(".")[0] for p in kinds[":summary"]} == {"gamma"}  # Others have it in fine-tuning.
  assert all(p["query"] not in p["positive"] for p in pairs)
  validation, train = ({p["positive_id"] for p in file} for file in (
      rows(prepared / "pretrain/validation.jsonl"), pairs))
  assert validation and not train & validation


def test_the_same_packages_give_the_same_bytes(prepared, packages, tmp_path):
  again = corpus.prepare(packages=packages, output=tmp_path / "again", say=lambda line: None)
  files, files_again = (sorted(p.relative_to(top) for p in Path(top).rglob("*") if p.is_file())
                        for top in (prepared, again))
  assert files == files_again and len(files) > 14
  for file in files:
    assert (again / file).read_bytes() == (prepared / file).read_bytes(), file
  manifest = json.loads((again / "manifest.json").read_text())
  assert manifest["versions"] == {"alpha": "1.0"} and set(manifest["sha256"]) == {
      str(f) for f in files if f.name != "manifest.json"}


def test_read_in_parts_by_several_processes_it_is_the_same(packages, monkeypatch):
  """Also where a package begins in the middle of a part."""
  alone = read.read_packages({**packages.finetune, **packages.pretrain})
  assert [len(documented) for documented in alone.values()] == [150, 200, 70]
  assert [d.name for d in alone["beta"][9:11]] == ["beta.module_0.function_9", "beta.module_1.function_10"]
  monkeypatch.setattr(read, "_PART_BYTES", 20_000)
  monkeypatch.setattr(read, "_FEW_BYTES", 0)
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  shared, run = [], read.workers.run
  monkeypatch.setattr(read.workers, "run", lambda function, tasks, number, on_bytes: shared.append(
      (len(tasks), number)) or run(function, tasks, number, on_bytes))
  assert read.read_packages({**packages.finetune, **packages.pretrain}) == alone
  (parts, number), = shared
  assert parts > 5 and number == 2


def test_again_it_keeps_what_is_the_same_and_replaces_what_is_not(packages, vocabulary, tmp_path):
  output, said = tmp_path / "pydoc", []
  small = corpus.Packages({"alpha": packages.finetune["alpha"]}, {}, {"zero_shot": packages.zero_shot["two_packages"]})
  corpus.prepare(vocabulary, small, output=output, say=said.append)
  assert (output / "spiece.model").read_bytes() == Path(vocabulary).read_bytes()
  mined = output / "finetune_hard_negatives.jsonl"
  mined.write_text("mined\n")
  corpus.prepare(vocabulary, small, output=output, say=said.append)
  assert mined.exists() and said[-1].endswith("is up to date")
  corpus.prepare(vocabulary, corpus.Packages({"alpha": packages.finetune["beta"]}, {}, small.zero_shot), output=output,
                say=said.append)
  assert not mined.exists() and said[-1] == f"wrote {output}"
  kept = output / "set-aside-1" / mined.name
  assert kept.read_text() == "mined\n" and f"{mined}: not of this corpus, and kept as {kept}" in said
  (output / "finetune/train.jsonl").write_text("changed by hand\n")
  corpus.prepare(vocabulary, small, output=output, say=said.append)
  assert kept.exists() and (output / "set-aside-2/finetune/train.jsonl").read_text() == "changed by hand\n"
  assert rows(output / "finetune/train.jsonl")
  assert [p.name for p in tmp_path.iterdir()] == ["pydoc"]
  with pytest.raises(InputError, match="gone.model: no such vocabulary"):
    corpus.prepare(str(tmp_path / "gone.model"), small, output=tmp_path / "other")
  with pytest.raises(InputError, match="cannot train a vocabulary"):
    corpus.prepare(None, corpus.Packages({}, {}, {}), output=tmp_path / "other", say=said.append)
  assert [p.name for p in tmp_path.iterdir()] == ["pydoc"]


def test_packages_are_read_again_only_where_something_has_changed(vocabulary, tmp_path, monkeypatch):
  packages = corpus.Packages(
      {"alpha": write_package(tmp_path / "alpha", [documentation(f"alpha {i}") for i in range(40)])}, {},
      {"zero_shot": {"zero": write_package(tmp_path / "zero", [documentation(f"zero {i}") for i in range(15)])}})
  output, said, read = tmp_path / "data" / "pydoc", [], []
  whole = corpus.Corpus
  monkeypatch.setattr(corpus, "Corpus", lambda *args: read.append(1) or whole(*args))

  def reads(vocabulary=vocabulary, packages=packages):
    """Whether `prepare` has read the packages; it ends with a corpus that another run finds up to date."""
    read.clear()
    corpus.prepare(vocabulary, packages, output=output, say=said.append)
    first = bool(read)
    corpus.prepare(vocabulary, packages, output=output, say=said.append)
    assert len(read) == first and said[-1] == f"{output} is up to date"
    return first

  assert reads() and not reads()
  mined, train = output / "finetune_hard_negatives.jsonl", output / "finetune/train.jsonl"
  mined.write_text("mined\n")
  pairs = train.read_bytes()

  # Other inputs, and the same corpus: what was mined from it stays.
  module = tmp_path / "alpha" / "module_0.py"
  os.utime(module, (1, 1))
  assert reads() and not reads()
  (tmp_path / "zero" / "empty.py").touch()
  assert reads() and not reads()
  assert reads(packages=dataclasses.replace(packages, versions={"alpha": "2"})) and reads()
  (tmp_path / "zero" / "test_of_it.py").touch()  # Documents nothing.
  assert not reads() and mined.exists()

  # Another corpus.
  source = module.read_text()
  module.write_text(source.replace("function_0", "function_x"))
  assert reads() and not mined.exists() and train.read_bytes() != pairs
  module.write_text(source)
  assert reads() and train.read_bytes() == pairs
  other = tmp_path / "other.model"
  other.write_bytes(Path(vocabulary).read_bytes())
  assert not reads(str(other))  # Of the same bytes.
  other.write_bytes(Path(vocabulary).read_bytes() + b"\0")
  assert reads(str(other)) and (output / "spiece.model").read_bytes() == other.read_bytes() and reads()

  # A corpus that is not as it was written.
  train.write_bytes(pairs[:-1])
  assert reads() and train.read_bytes() == pairs
  train.unlink()
  assert reads() and train.read_bytes() == pairs
  (output / "collections/zero_shot/corpus.jsonl").write_text("")
  assert reads() and (output / "collections/zero_shot/corpus.jsonl").read_text()

  # Interrupted, the one before is as whole as it was, and of its own inputs.
  module.write_text(source.replace("function_0", "function_x"))
  with monkeypatch.context() as m:
    m.setattr(corpus, "_replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      corpus.prepare(vocabulary, packages, output=output, say=said.append)
  assert train.read_bytes() == pairs
  assert reads() and train.read_bytes() != pairs
  assert [p.name for p in output.parent.iterdir()] == ["pydoc"]


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", "sub/notes.txt"])
def test_what_it_has_not_made_is_not_replaced(packages, vocabulary, tmp_path, name):
  path = tmp_path / "pydoc" / name
  path.parent.mkdir(parents=True)
  path.write_text('{"mine": true}')
  for output in (tmp_path / "pydoc", path):
    with pytest.raises(InputError, match="is no corpus that gtr-jax prepare pydoc has made; move it"):
      corpus.prepare(vocabulary, packages, output=output)
  assert path.read_text() == '{"mine": true}' and len(list(tmp_path.rglob("*"))) == 2 + name.count("/")


def test_its_tasks_read_it(prepared, tmp_path):
  data = tmp_path / "data"
  shutil.copytree(prepared, data / "pydoc")
  finetune = rows(prepared / "finetune/train.jsonl")
  (data / "pydoc/finetune_hard_negatives.jsonl").write_text("".join(
      json.dumps(row | {"negatives": [other["positive"]]}) + "\n"
      for row, other in zip(finetune, finetune[1:] + finetune[:1], strict=True)))
  data_root.set_data_dir(str(data))
  try:
    lengths = {"inputs": 16, "targets": 32}
    for task, negatives in (("pydoc_finetune_hard_negatives", 1), ("pydoc_both_stages", 0)):
      batches = TrainingBatches(task, "gtr_jax.tasks.pydoc", lengths, 16, negatives_per_example=negatives)
      item = next(batches)
      batches.close()
      assert item.batch.negative_valid.shape == (1, 16 * negatives) and item.batch.negative_valid.all()
      assert Tokenizer(*batches.vocabulary_file).path == data / "pydoc/spiece.model"
      validation = list(ValidationBatches(task, "gtr_jax.tasks.pydoc", lengths, 16))
      assert validation[0].valid.any()
  finally:
    data_root.set_data_dir(None)


def test_the_installed_packages_are_there_without_importing_any():
  packages = corpus.installed_packages()
  folders = [f for part in (packages.finetune, packages.pretrain, *packages.zero_shot.values()) for f in part.values()]
  assert all(folder.is_dir() for folder in folders) and len(set(folders)) == len(folders) > 30
  # What may or may not be installed changes nothing, and no package is on both sides.
  assert not {"torch", "sklearn", "transformers", "pandas", "sympy", "networkx"} & {f.name for f in folders}
  assert set(packages.versions) >= {"python", "numpy", "jax", "scipy"}


def test_what_a_file_documents(tmp_path):
  (tmp_path / "m.py").write_text('''"""Tools for tests. They do nothing.

But well.
"""
raise RuntimeError("imported")
class ThingDoer:
  """Does a thing now."""
  def do_it(self):
    """Really does the thing."""
    def inner():
      """Is nobody's business at all."""
  x = 5
if True:
  def hidden(): "One short"
add_newdoc("pkg.core", "norm", """
    norm(x, ord=None)

    Compute a vector norm.

    Of any order.
    """)
''')
  assert list(docstrings.read_file(tmp_path / "m.py", "pkg.m")) == [
      ("pkg.m", "Tools for tests.", "They do nothing. But well."),
      ("pkg.m.ThingDoer", "Does a thing now.", ""),
      ("pkg.m.ThingDoer.do_it", "Really does the thing.", ""),
      ("pkg.core.norm", "Compute a vector norm.", "Of any order."),
  ]
  (tmp_path / "broken.py").write_text('"""Is not Python."""\ndef (:\n')
  assert list(docstrings.read_file(tmp_path / "broken.py", "broken")) == []


@pytest.mark.parametrize("text, cleaned", [
    ("Sum of `x`.\n\n    Parameters\n    ----------\n    x : int", "Sum of x.\n\nParameters x : int"),
    ("Uses :func:`~numpy.sum` and :class:`a title <b.C>`.", "Uses numpy.sum and a title."),
    (">>> f(1)\n2\n... more", "f(1) 2 more"),
    ("See `the docs <https://a.b/c>`_ or [these](https://d.e/f).", "See the docs or these."),
    ("A.\n\n.. versionadded:: 1.2\n\n.. note::\n   Mind it.", "A.\n\nnote: Mind it."),
    ("A [1]_ b.\n\n```python\nf(x)\n```\n", "A b.\n\nf(x)"),
    ("%(before)s Text, e.g. this.", "Text, e.g. this."),
])
def test_cleaning(text, cleaned):
  assert docstrings.clean(text) == cleaned


def test_first_sentence_and_rest():
  assert docstrings.split("One, e.g. two. Three.\n\nFour.") == ("One, e.g. two.", "Three. Four.")
  assert docstrings.split("No end\n\nArgs: x") == ("No end", "Args: x")
  assert len(docstrings.split("A b c.\n\n" + "word " * 900)[1]) <= 2000


def test_names_in_words():
  for name, in_words in {"keras.src.layers.MaxPooling2D.get_config": "keras layers max pooling 2d get config",
                         "numpy._core.multiarray.HTTPServer": "numpy core multiarray http server"}.items():
    assert docstrings.name_in_words(name) == in_words


def test_near_copies():
  text = words(60, "a text")
  copies = NearCopies([words(60, "another"), text, "three words only"])
  assert text in copies and text.upper() + " and more" in copies and near_copy(text) in copies
  assert words(200, "before") + " " + text + " " + words(200, "after") in copies  # It contains one of them.
  assert " ".join(text.split()[10:50]) in copies and "Three words, only." in copies
  assert words(60, "unheard of") not in copies and " ".join(text.split()[:10]) + words(60, "then") not in copies
