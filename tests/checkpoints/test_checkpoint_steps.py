"""What lies in a folder of checkpoints: nothing is deleted that may be one, or is not ours, or passed by in silence."""

import errno
import json
import os
import shutil

import orbax.checkpoint as ocp
import pytest
from test_checkpoint import abstract, make_state, saved

from gtr_jax.checkpoints import steps
from gtr_jax.checkpoints.checkpointer import Checkpointer, find_checkpoint, list_steps, restore_params
from gtr_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "checkpoints"


def copy_of(folder, step, name, without=()):
  """A copy of a saved step under another name, without some of its files and folders."""
  shutil.copytree(folder / str(step), folder / name, symlinks=True)
  for part in [without] if isinstance(without, str) else without:
    path = folder / name / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  return folder / name


def killed_while_removing(folder, monkeypatch, part):
  """Steps 2 and 3, and what is left of step 1: of whose removal only `part` has come to pass."""
  checkpointer = saved(folder, [1, 2])
  monkeypatch.setattr(checkpointer._manager._checkpoint_deleter, "delete_steps", lambda steps: shutil.rmtree(
      folder / "1" / part))
  checkpointer.save(3, make_state(3), {"n": 3})
  checkpointer.wait()
  assert names(folder) == ["1", "2", "3", "removing.json"]


def test_what_was_begun_in_a_bucket_is_removed(folder, monkeypatch, capsys):
  """There a step has its name from the beginning on, and says itself when it was done; what says nothing is kept."""
  saved(folder, [1, 2]).close()
  begun, other = (copy_of(folder, 2, name, without=("state", "commit_success.txt")) for name in ("3", "4"))
  metadata = json.loads((begun / "_CHECKPOINT_METADATA").read_text())
  (begun / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata | {"commit_timestamp_nsecs": None}))
  shutil.copytree(begun, folder / "5")
  shutil.rmtree(folder / "5" / "progress")
  (folder / "6").mkdir()
  monkeypatch.setattr(steps, "is_remote", lambda path: True)
  assert Checkpointer(folder).steps() == [1, 2]
  assert names(folder) == ["1", "2", "4.set-aside-1"]
  assert capsys.readouterr().err.startswith(f"{other}: it is no whole checkpoint")


@pytest.mark.parametrize("part", ["state", "progress"])
def test_the_rest_of_a_step_that_was_being_removed_is_removed(folder, part, monkeypatch, capsys):
  killed_while_removing(folder, monkeypatch, part)
  checkpointer = Checkpointer(folder)
  assert names(folder) == ["2", "3"] and checkpointer.steps() == [2, 3]
  checkpointer.save(4, make_state(4), {})
  checkpointer.close()
  assert names(folder) == ["3", "4"] and not capsys.readouterr().err


def test_what_else_lies_in_a_step_that_was_being_removed_is_kept(folder, monkeypatch):
  killed_while_removing(folder, monkeypatch, "progress")
  (folder / "1" / "notes.txt").write_text("of mine")
  Checkpointer(folder).close()
  assert names(folder) == ["1.set-aside-1", "2", "3"] and (folder / "1.set-aside-1" / "notes.txt").exists()


def test_a_step_whose_removal_has_not_begun_stays(folder, monkeypatch):
  killed_while_removing(folder, monkeypatch, "progress")
  shutil.copytree(folder / "2" / "progress", folder / "1" / "progress")
  assert Checkpointer(folder).steps() == [1, 2, 3] and names(folder) == ["1", "2", "3"]


PARTS = ["state/_METADATA", "state", "progress", "progress/metadata"]


@pytest.mark.parametrize("part", PARTS)
def test_a_step_that_is_not_whole_is_set_aside_and_kept(folder, part, capsys):
  """However it came to be so, a copy that ended early for instance: never read, never removed, and said."""
  saved(folder, [1, 2]).close()
  left = copy_of(folder, 1, "5", part)
  before = contents(left)
  assert list_steps(folder) == [1, 2] and find_checkpoint(folder.parent).name == "2"
  with pytest.raises(InputError, match="checkpoints/5: is no whole checkpoint"):
    find_checkpoint(left)
  assert contents(left) == before and not capsys.readouterr().err  # Readers move nothing, and say nothing.
  checkpointer = Checkpointer(folder)
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and f"{left}: it is no whole checkpoint (" in said and "now 5.set-aside-1" in said
  assert checkpointer.latest_step() == 2
  assert checkpointer.restore(abstract(make_state())).progress == {"n": 2}
  for step in (5, 6, 7):  # It can be saved again, and later steps do not remove what was set aside.
    checkpointer.save(step, make_state(step), {})
  checkpointer.close()
  assert names(folder) == ["5.set-aside-1", "6", "7"] and contents(folder / "5.set-aside-1") == before
  copy_of(folder, 6, "5", "state")
  Checkpointer(folder)
  assert names(folder) == ["5.set-aside-1", "5.set-aside-2", "6", "7"]
  assert contents(folder / "5.set-aside-1") == before


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def contents(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", ["_CHECKPOINT_METADATA", "commit_success.txt", "state/_sharding",
                                  "state/array_metadatas"])
def test_what_orbax_can_do_without_may_be_missing(folder, part):
  """Another version may write other files."""
  saved(folder, [1, 2]).close()
  copy_of(folder, 2, "3", part)
  checkpointer = Checkpointer(folder)
  assert checkpointer.latest_step() == 3 and find_checkpoint(folder).name == "3"
  assert checkpointer.restore(abstract(make_state())).progress == {"n": 2}


def test_what_is_no_step_of_ours_stays(folder, capsys):
  saved(folder, [1, 2], keep=2).close()
  (folder / "2024").mkdir()
  (folder / "2024" / "notes.txt").write_text("mine")
  (folder / "7").mkdir()
  (folder / "8").write_text("a file")
  for name in ("005", "5.backup", "5_backup", "step_5", "5.orbax-checkpoint-tmp.backup", "old.orbax-checkpoint-tmp",
               "\u0663"):
    copy_of(folder, 1, name)
  elsewhere = copy_of(folder, 1, "../elsewhere")
  (folder / "9").symlink_to(elsewhere)
  (folder / "10").symlink_to("nowhere")
  before, there = names(folder), contents(folder)
  assert list_steps(folder) == [1, 2, 9] and find_checkpoint(folder).name == "9"  # A link to a step is one.
  checkpointer = Checkpointer(folder, keep=1)
  assert checkpointer.steps() == [1, 2, 9] and names(folder) == before and contents(folder) == there
  assert not capsys.readouterr().err
  for step in (11, 12):
    checkpointer.save(step, make_state(step), {})
  checkpointer.close()
  assert set(before) - set(names(folder)) == {"1", "2"}
  assert contents(elsewhere).keys() == contents(folder / "5.backup").keys()
  assert (folder / "2024/notes.txt").read_text() == "mine"


def test_what_lies_where_a_step_is_saved_is_set_aside(folder, capsys):
  checkpointer = saved(folder, [1])
  (folder / "2").mkdir()
  (folder / "2" / "notes.txt").write_text("mine")
  (folder / "3").write_text("mine")
  (folder / "4").symlink_to("nowhere")
  for step in (2, 3, 4):
    checkpointer.save(step, make_state(step), {})
  checkpointer.close()
  assert names(folder) == ["2.set-aside-1", "3", "3.set-aside-1", "4", "4.set-aside-1"]
  assert (folder / "2.set-aside-1/notes.txt").read_text() == (folder / "3.set-aside-1").read_text() == "mine"
  assert capsys.readouterr().err.count("; it is now ") == 3


def test_nothing_begins_anew_where_checkpoints_are_but_none_is_whole(folder, capsys):
  saved(folder, [1, 2]).close()
  for step in (1, 2):
    shutil.rmtree(folder / str(step) / "progress")
  before = contents(folder)
  for start in (Checkpointer, find_checkpoint, lambda path: restore_params(path.parent, abstract(make_state()).params)):
    with pytest.raises(InputError, match=r"holds 1, 2, but no whole checkpoint \(1: it lacks progress\); bring back"):
      start(folder)
    assert contents(folder) == before and list_steps(folder) == []
  for step in (1, 2):
    (folder / str(step)).rename(folder / f"{step}.set-aside-1")
  with pytest.raises(InputError, match="holds 1.set-aside-1, 2.set-aside-1, but no whole checkpoint"):
    Checkpointer(folder)
  assert not capsys.readouterr().err
  (folder / "2024").mkdir()
  for step in (1, 2):
    shutil.rmtree(folder / f"{step}.set-aside-1")
  assert Checkpointer(folder).latest_step() is None


def test_a_killed_save_is_removed(folder):
  saved(folder, [1]).close()
  (folder / "12.orbax-checkpoint-tmp").mkdir()
  (folder / "12.orbax-checkpoint-tmp/notes.txt").write_text("mine")
  for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-0", "4.orbax-checkpoint-tmp-1700000000000000"):
    (folder / name / "state.orbax-checkpoint-tmp").mkdir(parents=True)
  Checkpointer(folder)
  assert names(folder) == ["1", "12.orbax-checkpoint-tmp.set-aside-1"]
  assert (folder / "12.orbax-checkpoint-tmp.set-aside-1/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_disk_that_fails_is_no_damage(folder, monkeypatch, number):
  """Nothing is set aside, nor advice given to move a step, because it cannot be looked at now."""
  saved(folder, [1, 2]).close()
  before = contents(folder)

  def fail(self, path, *args, **kwargs):
    raise OSError(number, os.strerror(number), str(path))

  for handler, name in ((ocp.JsonCheckpointHandler, "restore"), (ocp.PyTreeCheckpointHandler, "metadata")):
    with monkeypatch.context() as patch:
      patch.setattr(handler, name, fail)
      for start in (Checkpointer, list_steps, find_checkpoint):
        with pytest.raises(InputError, match=f"checkpoints/[12]\\S*: {os.strerror(number)}; "):
          start(folder)
    assert contents(folder) == before
