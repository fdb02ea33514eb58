"""Prepared data with what a teacher says: the same records, its answers in their order, and what an interruption or
another teacher makes of it."""

import json
import sys

import numpy as np
import pytest
from prepared_files import prepare_rows
from tiny_model_dir import sentence, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.data.sources import PreparedSource
from gtr_jax.errors import InputError
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.io import data_root
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.vectors import unpacked
from gtr_jax.teachers import models
from gtr_jax.teachers import teach as module
from gtr_jax.teachers.teach import teach
from gtr_jax.teachers.teacher import Described, Scorer, Teacher

ROWS = [{"query": sentence(i, 4) + f" {i}", "positive": sentence(i // 2, 6), "negatives": [
    sentence(i + 1, 5), sentence(i + 2, 7)][:i % 3]} for i in range(40)]


class Fake:
  """A vector of each text that nothing else has; `asked` are the texts."""

  def __init__(self, by=1.0, stop_at=None):
    self.asked, self._by, self._stop_at = [], by, stop_at

  def __call__(self, texts):
    if self._stop_at is not None and len(self.asked) >= self._stop_at:
      raise KeyboardInterrupt
    self.asked += texts
    return np.asarray([[self._by * len(text), sum(map(ord, text)), -1] for text in texts], np.float32)

  def score(self, pairs):
    self.asked += pairs
    return np.asarray([len(query) / len(passage) for query, passage in pairs], np.float32)


def teacher_of(query, passage=None, content="1"):
  return Teacher(Described("fake", content, {"query_prompt": ""}), query, passage or query)


@pytest.fixture
def name(tmp_path):
  """Of prepared data, with a validation split."""
  data_root.set_data_dir(str(tmp_path / "data"))
  prepare_rows(tmp_path, ROWS, validation_share=0.2)
  yield "p0"
  data_root.set_data_dir(None)


def read(tmp_path, name):
  """(file, example id, example) of all records, in their order."""
  folder, found = tmp_path / "data" / name, []
  for files in manifests.read(name)["splits"].values():
    for file in files:
      with (folder / file).open("rb") as f:
        found += [(file, records.id_in(r), records.example_in(r)) for r in records.read_records(f, file)]
  return found


def quietly(*args, **kwargs):
  said = []
  teach(*args, say=said.append, **kwargs)
  return said


def test_the_same_records_with_vectors_in_their_order(tmp_path, name):
  fake = Fake()
  quietly(name, "taught", teacher=teacher_of(fake))
  before, after = read(tmp_path, name), read(tmp_path, "taught")
  assert [(*of[:2], of[2]._replace(vectors=())) for of in after] == before
  for _, _, example in after:
    texts = example.query, example.passage, *example.negatives
    np.testing.assert_array_equal([unpacked(vector) for vector in example.vectors], Fake()(texts))
  source, taught = manifests.read(name), manifests.read("taught")
  assert {name: list(files) for name, files in taught["splits"].items()} == {
      name: list(files) for name, files in source["splits"].items()}
  assert taught["examples"] == source["examples"] and set(taught["examples"]) == {"train", "validation"}
  assert taught["filters"]["taught_from"] == name and taught["filters"]["teacher_dimensions"] == 3
  assert PreparedSource("taught", ("train",), (None,) * 7, None).num_input_examples("train") == 40 - sum(
      file.startswith("validation") for file, *_ in before)
  assert not (tmp_path / "data/taught.tmp").exists()


def test_a_text_is_asked_once_in_a_shard(tmp_path, name):
  query, passage = Fake(), Fake(by=2.0)
  quietly(name, "taught", teacher=teacher_of(query, passage))
  examples = [example for _, _, example in read(tmp_path, name)]
  assert sorted(query.asked[1:]) == sorted({example.query for example in examples})  # The first is "text".
  assert sorted(passage.asked[1:]) == sorted({text for of in examples for text in (of.passage, *of.negatives)})
  lengths = list(map(len, passage.asked[1:]))
  assert lengths == sorted(lengths, reverse=True)
  one = Fake()
  quietly(name, "other", teacher=teacher_of(one))
  assert sorted(one.asked[1:]) == sorted({*query.asked[1:], *passage.asked[1:]})


def test_scores_beside_vectors(tmp_path, name):
  fake = Fake()
  quietly(name, "taught", teacher=teacher_of(fake))
  quietly("taught", "both", scorer=Scorer(Described("cross", "1"), fake.score))
  with_vectors = {example_id: example for _, example_id, example in read(tmp_path, "taught")}
  for _, example_id, example in read(tmp_path, "both"):
    pairs = [(example.query, text) for text in (example.passage, *example.negatives)]
    np.testing.assert_array_equal(np.float32(example.scores), Fake().score(pairs))
    assert example._replace(scores=()) == with_vectors[example_id]
  assert {"teacher_content", "cross_encoder_content"} <= manifests.read("both")["filters"].keys()


@pytest.mark.parametrize("stop_at", [1, 20, 60])
def test_goes_on_where_it_stopped(tmp_path, name, monkeypatch, stop_at):
  monkeypatch.setattr(module, "_TOGETHER", 8)
  quietly(name, "whole", teacher=teacher_of(Fake()))
  first, second = Fake(stop_at=stop_at), Fake()
  with pytest.raises(KeyboardInterrupt):
    quietly(name, "taught", teacher=teacher_of(first))
  assert not (tmp_path / "data/taught").exists()
  done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data/taught.tmp/new").glob("*.tfrecord")}
  assert (stop_at > 1) is bool(done)
  assert quietly(name, "taught", teacher=teacher_of(second))[0].startswith("going on in")
  for path in sorted((tmp_path / "data/whole").glob("*.tfrecord")):
    assert (tmp_path / "data/taught" / path.name).read_bytes() == path.read_bytes()
  assert {file: (tmp_path / "data/taught" / file).stat().st_mtime_ns for file in done} == done
  third = Fake()
  said = quietly(name, "taught", teacher=teacher_of(third))
  assert said == [f"{tmp_path / 'data/taught'} is up to date"] and set(third.asked) == {"text"}


def test_other_teachers_are_refused(name, monkeypatch):
  monkeypatch.setattr(module, "_TOGETHER", 8)
  with pytest.raises(KeyboardInterrupt):
    quietly(name, "taught", teacher=teacher_of(Fake(stop_at=20)))
  with pytest.raises(InputError, match="interrupted, with other pairs, another teacher or other settings"):
    quietly(name, "taught", teacher=teacher_of(Fake(), content="2"))
  quietly(name, "taught", teacher=teacher_of(Fake()))
  with pytest.raises(InputError, match='teacher_content was "1", and is "2"; remove it, or give another --name'):
    quietly(name, "taught", teacher=teacher_of(Fake(), content="2"))
  with pytest.raises(InputError, match="give another --name"):
    quietly(name, name, teacher=teacher_of(Fake()))


@pytest.mark.parametrize(("answer", "message"), [
    (lambda texts: np.full((len(texts), 2), np.nan), "not finite"),
    (lambda texts: np.zeros(len(texts)), r"gave \[1\] numbers; \[1, dimensions\] is needed"),
    (lambda texts: np.zeros((1, 2)), "is needed"),
    (lambda texts: np.zeros((len(texts), 2 + (len(texts) > 1))), r"gave \[\d+, 3\] numbers; \[\d+, 2\] is needed"),
])
def test_what_is_no_vector(name, answer, message):
  with pytest.raises(InputError, match=message):
    quietly(name, "taught", teacher=teacher_of(answer))


def test_a_model_of_gtr_jax(tmp_path, name, capsys):
  path = write_model_dir(tmp_path / "run")
  assert main(["teach", "--pairs", name, "--teacher", str(path), "--name", "taught", "--passage_prompt", "lion "]) == 0
  assert "passage prompt 'lion ', query length 16, passage length 32" in capsys.readouterr().out
  model = load_model(path)
  for _, _, example in read(tmp_path, "taught")[:5]:
    query = embed(model, [example.query], "query", progress=False)
    passages = embed(model, [f"lion {text}" for text in (example.passage, *example.negatives)], "passage",
                     progress=False)
    np.testing.assert_allclose([unpacked(vector) for vector in example.vectors], [*query, *passages], atol=1e-5)
  assert manifests.read("taught")["filters"]["teacher_content"] == model.weights_hash


def test_a_teacher_needs_sentence_transformers(tmp_path, monkeypatch):
  folder = tmp_path / "bert"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)
  with pytest.raises(InputError, match=r"gtr_jax itself does not compute it .* pip install 'gtr_jax\[teachers\]'"):
    models.bi_encoder(str(folder))
  with pytest.raises(InputError, match=r"--cross_encoder .* pip install 'gtr_jax\[teachers\]'"):
    models.cross_encoder(str(folder))


@pytest.mark.parametrize(("flags", "message"), [
    ([], "give --teacher, a model that gives vectors, or --cross_encoder"),
    (["--cross_encoder", "m", "--max_length", "8"], "--max_length is for --teacher"),
    (["--teacher", "m", "--pairs", "nothing"], "no prepared data; make them of files first: gtr-jax prepare pairs"),
    (["--teacher", "./nothing"], "no such model"),
])
def test_flags_that_do_not_do(name, capsys, flags, message):
  assert main(["teach", "--pairs", name, "--name", "taught", *flags]) == 2
  assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("tokens", "texts", "sizes"), [
    (16, None, [1, 1, 2, 4, 1]), (1, None, [1] * 9), (64, 4, [4, 4, 1])])
def test_batches_have_so_many_tokens_with_padding(tokens, texts, sizes):
  lengths = np.asarray([32, 9, 8, 5, 4, 4, 3, 2, 1])
  parts = list(models.batches(lengths, tokens, texts))
  assert [len(lengths[part]) for part in parts] == sizes
  np.testing.assert_array_equal(np.concatenate([lengths[part] for part in parts]), lengths)
