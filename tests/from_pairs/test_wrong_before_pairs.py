"""What is wrong with a run from pairs is said before its pairs are prepared, which may take long."""

import pytest
from tiny_model_dir import write_model_dir

from gtr_jax.cli.main import main
from gtr_jax.from_pairs import data
from gtr_jax.io import data_root


@pytest.fixture(autouse=True)
def no_data_folder_is_left():
  yield
  data_root.set_data_dir(None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model") / "model"
  write_model_dir(folder)
  return folder


@pytest.mark.parametrize("flags, message", [
    (["--eval", "{place}/nothere"], "{place}/nothere: no such folder; give a folder in BEIR layout"),
    (["--eval", "{place}/empty"], "{place}/empty: no corpus.jsonl or collection.tsv, plain or compressed; there are"),
    (["--eval", "{place}/half"], "{place}/half/qrels/test.tsv: no such file; splits here: dev"),
    (["--eval", "{place}/file"], "{place}/file: a file, not a folder"),
    (["--output", "{place}/file/run"], "{place}/file/run: cannot be written to ({place}/file: Not a directory); give"),
    (["--output", "/proc/nothere/run"], "/proc/nothere/run: cannot be written to (/proc: "),
    (["--init", "{place}/nothere"], "{place}/nothere: no such model"),
    (["--init", "t5_tiny", "--vocabulary", "{place}/nothere"], "{place}/nothere: no such vocabulary"),
    (["--init", "t5_tiny", "--vocabulary", "{place}/file"], "{place}/file: a text file"),
    (["--init", "t5_tiny", "--extra_ids", "3"], "--extra_ids belongs to --vocabulary"),
    (["--gin_file", "{place}/nothere.gin"], "{place}/nothere.gin: no such gin file"),
    (["--gin.run.TrainingRun.nothere=3"], "--gin.run.TrainingRun.nothere=3: "),
    (["--gin.BATCH_SIZE=3)"], "--gin.BATCH_SIZE=3): "),
    (["--data_dir", "{place}/file/data"], "{place}/file/data: Not a directory"),
    (["--data_dir", "{place}/file/data", "--init", "t5_tiny"], "{place}/file/data/pairs-"),
])
def test_one_line_at_once(model, tmp_path, monkeypatch, capsys, flags, message):
  (tmp_path / "my.jsonl").write_text('["a", "b"]\n["c", "d"]\n')
  (tmp_path / "file").write_text("some text\n")
  (tmp_path / "empty").mkdir()
  for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
    (tmp_path / "half" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "half" / name).write_text("{}\n")
  before = sorted(tmp_path.rglob("*"))

  def read(*_):
    raise AssertionError("the pairs are read")

  monkeypatch.setattr("gtr_jax.prepare.engine._run_all", read)
  given = [flag.format(place=tmp_path) for flag in flags]
  assert main(["train", "--pairs", str(tmp_path / "my.jsonl"), "--init", str(model), "--output", str(tmp_path / "run"),
               "--data_dir", str(tmp_path / "data"), *given]) == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith(f"gtr-jax train: {message.format(place=tmp_path)}")
  assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "data" not in (path, *path.parents)] == before


def test_pairs_that_are_found_wrong_only_when_they_are_read(model, tmp_path, monkeypatch):
  """Or the test above would see nothing."""
  (tmp_path / "my.jsonl").write_text('["a", "b"]\n["c", "d"]\n')
  read = []
  monkeypatch.setattr(data.engine, "_run_all", lambda *_: read.append(1) or 1 / 0)
  with pytest.raises(ZeroDivisionError):
    main(["train", "--pairs", str(tmp_path / "my.jsonl"), "--init", str(model), "--output", str(tmp_path / "run"),
          "--data_dir", str(tmp_path / "data")])
  assert read
