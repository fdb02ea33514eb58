"""`--precision` and `--dimensions` of encode, search and evaluate; `--vectors` and `--ids` of encode and search."""

import json

import numpy as np
import pytest
from tiny_model_dir import corpus, write_collection, write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.collections.queries import read_queries
from gtr_jax.evaluation import dense
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.retrieval.runs import read_run
from gtr_jax.retrieval.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("small")
  write_model_dir(folder / "model")
  write_collection(folder / "few", corpus(40))
  return folder


def gtr_jax(folder, *words):
  return main([word.replace("@", f"{folder}/") for word in words])


def test_sizes_that_a_model_was_not_trained_for(folder, capsys):
  place = folder / "model" / "model.json"
  plain = place.read_text()
  encode = ["encode", "--model", "@model", "--collection", "@few", "--dimensions"]
  assert gtr_jax(folder, *encode, "6", "--output", "@untrained") == 0
  assert "does not say that it was trained for shorter vectors" in capsys.readouterr().err
  try:
    place.write_text(json.dumps({**json.loads(plain), "dimensions": {"4": 0.5, "8": 1.0, "6": 1.0}}))
    assert load_model(folder / "model").dimensions == (8, 6, 4)
    for size, said in (("6", ""), ("5", "was trained for vectors of 8, 6, 4 numbers, not for 5")):
      assert gtr_jax(folder, *encode, size, "--output", f"@of {size}") == 0
      error = capsys.readouterr().err
      assert said in error and ("trained" in error) == bool(said)
    assert gtr_jax(folder, "convert", "@model", "@exported") == 0
    assert "the first 6, 4 numbers of a vector serve as well" in (folder / "exported/README.md").read_text()
    place.write_text(json.dumps({**json.loads(plain), "dimensions": {"9": 1.0}}))
    assert gtr_jax(folder, *encode, "4", "--output", "@damaged") == 2
    assert "model.json: dimensions '9' are no lengths of vectors of 8 numbers" in capsys.readouterr().err
  finally:
    place.write_text(plain)


def test_a_model_s_store_is_searched_and_evaluated(folder, capsys):
  encode = ["encode", "--model", "@model", "--collection", "@few"]
  search = ["search", "--model", "@model", "--queries", "@few/queries.jsonl", "--top_k", "5"]
  for name, size, flags in (("whole", 32, ""), ("int8", 8, "--precision int8"), ("bits", 1, "--precision binary"),
                            ("cut", 24, "--dimensions 6"), ("both", 6, "--precision int8 --dimensions 6")):
    assert gtr_jax(folder, *encode, "--output", f"@{name}", *flags.split()) == 0
    assert Store(folder / name).quantizer.num_bytes == size
    assert (f"{size} bytes each)" in capsys.readouterr().out) == ("--precision" in flags)
    assert gtr_jax(folder, *search, "--embeddings", f"@{name}", "--output", f"@{name}.trec") == 0
  whole, int8 = (read_run(folder / f"{name}.trec") for name in ("whole", "int8"))
  assert np.mean([len({*whole[query].doc_ids} & {*int8[query].doc_ids}) for query in whole]) > 4
  assert gtr_jax(folder, *search, "--embeddings", "@bits", "--rescore", "8", "--output", "@all.trec") == 0

  evaluate = ["evaluate", "--model", "ours=@model", "--collection", "@few", "--output", "@results"]
  capsys.readouterr()
  assert gtr_jax(folder, *evaluate, "--precision", "float32", "--precision", "int8", "--precision", "binary",
                 "--rescore", "10") == 0
  shown = capsys.readouterr().out
  found = json.loads((folder / "results/results.json").read_text())["systems"]
  assert [of["bytes a document"] for of in found.values()] == [32, 8, 1]
  assert list(found) == ["ours", "ours (int8, rescore 10)", "ours (binary, rescore 10)"]
  assert len({tuple(of["ms a query"]) for of in found.values()}) == 1
  assert shown.splitlines()[-4].split() == ["ms", "a", "query", "few", "bytes", "a", "document"]
  assert gtr_jax(folder, *evaluate, "--dimensions", "4") == 0
  found = json.loads((folder / "results/results.json").read_text())["systems"]
  assert found["ours (4)"]["bytes a document"] == 16 and len(found) == 4
  assert sorted(path.name.split("-", 2)[-1] for path in (folder / "results/embeddings").iterdir())[-3:] == sorted([
      "binary", "d4", "int8"])
  assert gtr_jax(folder, *evaluate, "--precision", "int8", "--similarity", "dot") == 2
  assert "--similarity: vectors in fewer bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "message"), [
    (["--dimensions", "9"], "--dimensions 9: the vectors have 8; give 1 to 8"),
    (["--precision", "binary", "--dimensions", "4"], "--precision binary: vectors of 4 numbers fill no whole bytes"),
    (["--precision", "int4"], "--precision: there is no 'int4'; did you mean int8? (there are float32, int8, binary)"),
    (["--vectors", "@x.npy"], "--vectors and --ids go together"),
    (["--vectors", "@x.npy", "--ids", "@x.txt"], "give --model and --collection, or vectors that another program")])
def test_wrong_flags(folder, capsys, flags, message):
  try:
    code = gtr_jax(folder, "encode", "--model", "@model", "--collection", "@few", "--output", "@wrong", *flags)
  except SystemExit as e:
    code = e.code
  err = capsys.readouterr().err
  assert code == 2 and message in err and len(err.splitlines()) == 1, err
  assert not (folder / "wrong").exists()


def given(folder, vectors, ids):
  np.save(folder / "given.npy", vectors)
  (folder / "given.txt").write_text("".join(f"{name}\n" for name in ids))
  return ["encode", "--vectors", "@given.npy", "--ids", "@given.txt"]


@pytest.mark.parametrize(("dtype", "unit"), [(np.float32, True), (np.float64, False), (np.float16, True)])
def test_vectors_of_another_program(tmp_path, capsys, dtype, unit):
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((50, 16))
  vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors).astype(dtype)
  ids = [f"d{row}" for row in rng.permutation(50)]
  encode = given(tmp_path, vectors, ids)
  order = sorted(range(50), key=ids.__getitem__, reverse=True)
  assert gtr_jax(tmp_path, *encode, "--output", "@whole") == 0
  np.testing.assert_array_equal(Store(tmp_path / "whole")[0:50], vectors[order].astype(np.float32))
  assert Store(tmp_path / "whole").ids == [ids[row] for row in order]
  assert gtr_jax(tmp_path, *encode, "--output", "@cut", "--dimensions", "8", "--precision", "int8") == 0
  cut = vectors[order].astype(np.float64)[:, :8]
  cut = cut / np.linalg.norm(cut, axis=1, keepdims=True) if unit else cut
  there = Store(tmp_path / "cut")
  np.testing.assert_allclose(there[0:50], cut, atol=there.quantizer.fitted.max() * 0.51)
  np.testing.assert_allclose(there.norms(slice(0, 50)), np.linalg.norm(cut, axis=1), rtol=1e-5)
  # As the queries, the documents themselves.
  for name in ("whole", "cut"):
    assert gtr_jax(tmp_path, "search", "--vectors", "@given.npy", "--ids", "@given.txt", "--embeddings", f"@{name}",
                   "--output", f"@{name}.trec", "--top_k", "3") == 0
    run = read_run(tmp_path / f"{name}.trec")
    assert len(run) == 50 and all(len(ranking.doc_ids) == 3 for ranking in run.values())
    assert not unit or all(ranking.doc_ids[0] == query for query, ranking in run.items())
  capsys.readouterr()
  np.save(tmp_path / "given.npy", vectors * 2)
  assert gtr_jax(tmp_path, *encode, "--output", "@whole") == 2
  assert "holds other vectors" in capsys.readouterr().err
  np.save(tmp_path / "short.npy", vectors[:, :4])
  assert gtr_jax(tmp_path, "search", "--vectors", "@short.npy", "--ids", "@given.txt", "--embeddings", "@cut",
                 "--output", "@short.trec") == 2
  assert "vectors of 4 numbers, and 8 in" in capsys.readouterr().err
  write_model_dir(tmp_path / "model")
  assert gtr_jax(tmp_path, "search", "--model", "@model", "--embeddings", "@whole", "--query", "x") == 2
  assert "holds vectors that were given to gtr-jax encode --vectors" in capsys.readouterr().err


def test_vectors_are_evaluated(tmp_path, capsys):
  """Beside each other, by the same vectors of queries, and as a model whose vectors they are."""
  write_model_dir(tmp_path / "model")
  write_collection(tmp_path / "few", corpus(40))
  whole = ["evaluate", "--collection", "@few", "--output"]
  assert gtr_jax(tmp_path, *whole, "@of_model", "--model", "ours=@model", "--precision", "int8", "--precision",
                 "binary") == 0
  model = load_model(tmp_path / "model")
  documents = corpus(40)
  queries, ids = (read_queries(tmp_path / "few/queries.jsonl")[i] for i in (1, 0))
  encode = given(tmp_path, embed(model, documents.full_texts()[:], "passage", progress=False), documents.ids)
  for precision in ("int8", "binary"):
    assert gtr_jax(tmp_path, *encode, "--output", f"@{precision}", "--precision", precision) == 0
  given(tmp_path, embed(model, queries, "query", progress=False)[::-1], ids[::-1])
  of_queries = ["--vectors", "@given.npy", "--ids", "@given.txt"]
  capsys.readouterr()
  assert gtr_jax(tmp_path, *whole, "@results", "--bm25", "--embeddings", "@int8", "--embeddings", "bits=@binary",
                 *of_queries) == 0
  assert capsys.readouterr().out.splitlines()[-1].split()[::2] == ["bits", "1"]
  ours, expected = (json.loads((tmp_path / name / "results.json").read_text())["systems"]
                    for name in ("results", "of_model"))
  for name, other in (("int8", "ours (int8)"), ("bits", "ours (binary)")):
    assert ours[name]["results"]["few"] == pytest.approx(expected[other]["results"]["few"], abs=1e-6)
    assert ours[name]["bytes a document"] == expected[other]["bytes a document"]
  assert gtr_jax(tmp_path, *whole, "@wrong", "--embeddings", "@int8") == 2
  assert "--embeddings, --vectors and --ids go together" in capsys.readouterr().err
  # Those of another collection are other vectors, and the same system where they are kept alike.
  write_collection(tmp_path / "again", corpus(40))
  assert gtr_jax(tmp_path, "evaluate", "--collection", "@again", "--output", "@results", "--embeddings", "int8=@int8",
                 *of_queries) == 0
  both = json.loads((tmp_path / "results" / "results.json").read_text())["systems"]["int8"]["results"]
  assert set(both) == {"few", "again"} and both["few"] == ours["int8"]["results"]["few"]
  write_collection(tmp_path / "more", corpus(41))
  assert gtr_jax(tmp_path, "evaluate", "--collection", "@more", "--output", "@wrong", "--embeddings", "@int8",
                 *of_queries) == 2
  assert "int8: not the documents of more (1 are in one of them only, such as 'd40')" in capsys.readouterr().err
  given(tmp_path, np.ones((2, 8), np.float32), ["q1", "x"])
  assert gtr_jax(tmp_path, *whole, "@wrong", "--embeddings", "@int8", *of_queries) == 2
  assert "--ids: of 11 queries of few there is no vector (such as 'q0')" in capsys.readouterr().err


ONES = np.ones((3, 8), np.float32)


@pytest.mark.parametrize(("vectors", "ids", "message"), [
    (ONES, "ab", "given.npy: 3 vectors, and 2 ids in "),
    (ONES, ["a", "b", "a"], "given.txt:3: 'a' is there twice, first at "),
    (ONES, ["a", "b c", "d"], "given.txt:2: 'b c' is no id; give one a line, without white space"),
    (ONES[0], "abc", "given.npy: holds float32 [8]; give one array of floats, [vectors, numbers of each]"),
    (ONES.astype(np.int64), "abc", "given.npy: holds int64 [3, 8]; give one array of floats"),
    (ONES[:0], "", "given.npy: holds float32 [0, 8]; give one array of floats"),
    (ONES / np.float32([[1], [np.nan], [1]]), "abc", "given.npy: row 1 (of 'b') is not finite in float32"),
    (ONES * np.float64([[1], [1], [1e300]]), "abc", "given.npy: row 2 (of 'c') is not finite in float32"),
    (np.asarray([[None]]), "a", "given.npy: not a whole .npy file (")])
def test_wrong_vectors(tmp_path, capsys, vectors, ids, message):
  assert gtr_jax(tmp_path, *given(tmp_path, vectors, ids), "--output", "@wrong") == 2
  err = capsys.readouterr().err
  assert message in err and len(err.splitlines()) == 1, err
  assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("data", [b"", b"no array", b"\x93NUMPY\x01\x00\x10"])
def test_what_is_no_array(tmp_path, capsys, data):
  encode = given(tmp_path, ONES, "abc")
  (tmp_path / "given.npy").write_bytes(data)
  assert gtr_jax(tmp_path, *encode, "--output", "@wrong") == 2
  err = capsys.readouterr().err
  assert "given.npy: not a whole .npy file (" in err and len(err.splitlines()) == 1, err


def test_a_store_is_made_of_a_larger_one(folder, capsys, monkeypatch):
  """As if the documents were embedded again, which they are not."""
  encode = ["encode", "--model", "@model", "--collection", "@few"]
  assert gtr_jax(folder, *encode, "--output", "@larger") == 0
  for name, flags in (("8", "--precision int8"), ("1", "--precision binary"), ("6", "--dimensions 6"),
                      ("86", "--precision int8 --dimensions 6")):
    assert gtr_jax(folder, *encode, *flags.split(), "--output", f"@embedded{name}") == 0
    assert gtr_jax(folder, "encode", "--embeddings", "@larger", *flags.split(), "--output", f"@made{name}") == 0
    embedded, made = Store(folder / f"embedded{name}"), Store(folder / f"made{name}")
    rows = slice(0, 40)
    assert np.mean(embedded.codes(rows) != made.codes(rows)) < 0.01 or name == "6"
    np.testing.assert_allclose(made[rows], embedded[rows], atol=0.02 if "8" in name else 1e-5)
    np.testing.assert_allclose(made.norms(rows), embedded.norms(rows), rtol=1e-4)
    assert (made.settings, made.documents_hash) == (embedded.settings, embedded.documents_hash)
    assert made.document(3) == embedded.document(3)
  for flags, message in (("--embeddings @larger", "holds float32 vectors of 8 numbers already"),
                         ("--embeddings @made8 --precision binary", "holds int8 vectors, of which no others"),
                         ("--embeddings @larger --dimensions 9", "--dimensions 9: the vectors have 8"),
                         ("--embeddings @larger --model @model", "leave --model out")):
    assert gtr_jax(folder, "encode", *flags.split(), "--output", "@none") == 2
    assert message in capsys.readouterr().err

  embedded, encode_corpus = [], dense.encode_corpus
  monkeypatch.setattr(dense, "encode_corpus", lambda *args, **how: embedded.append(how) or encode_corpus(*args, **how))
  assert gtr_jax(folder, "evaluate", "--model", "@model", "--collection", "@few", "--output", "@again", "--precision",
                 "float32", "--precision", "int8", "--precision", "binary") == 0
  assert [how["precision"] for how in embedded] == ["float32"]
