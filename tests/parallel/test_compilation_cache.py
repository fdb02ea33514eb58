"""Where compiled programs are kept, by whom, and what becomes of an entry that is not whole."""

import os
import subprocess
import sys

import jax
import pytest

from gtr_jax.cli.main import main
from gtr_jax.parallel import compilation_cache
from gtr_jax.parallel.compilation_cache import FOLDER, OFF, keep_programs, root

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes", "jax_enable_compilation_cache")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A user who has decided nothing; what is set is set back."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  for name in SETTINGS:
    monkeypatch.setenv(name.upper(), "")  # So that it is set back also where there is none now.
    monkeypatch.delenv(name.upper())
  monkeypatch.setattr("warnings.showwarning", compilation_cache.warnings.showwarning)
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)


def folders():
  return sorted(root().iterdir()) if root().exists() else []


def test_a_folder_for_these_versions_and_this_cpu(home, monkeypatch):
  keep_programs()
  [folder] = folders()
  assert folder.parent == home / "cache/gtr_jax/compiled" and jax.__version__ in folder.name
  assert jax.config.jax_compilation_cache_dir == os.environ[FOLDER] == str(folder)
  assert folder.stat().st_mode & 0o077 == 0
  monkeypatch.setattr(compilation_cache, "_cpu", lambda: "another")
  monkeypatch.delenv(FOLDER)
  keep_programs()
  assert len(folders()) == 2


@pytest.mark.parametrize("given", ["", "not/absolute"])
def test_without_a_cache_home_below_the_home(home, monkeypatch, given):
  monkeypatch.setenv("XDG_CACHE_HOME", given)
  monkeypatch.setenv("HOME", str(home))
  assert root() == home / ".cache/gtr_jax/compiled"


def test_who_decides_otherwise_by_jax(home, monkeypatch):
  monkeypatch.setenv(FOLDER, str(home / "mine"))
  keep_programs()
  assert not folders() and os.environ[FOLDER] == str(home / "mine")
  monkeypatch.delenv(FOLDER)
  monkeypatch.setenv(OFF, "False")
  keep_programs()
  assert not folders() and FOLDER not in os.environ


def test_off_for_this_process_and_its_children(home):
  compilation_cache.turn_off()
  keep_programs()
  assert not folders() and not jax.config.jax_enable_compilation_cache and os.environ[OFF] == "False"


def test_several_processes_keep_nothing(home):
  keep_programs()  # of the one that starts them
  keep_programs(several_processes=True)
  assert FOLDER not in os.environ and jax.config.jax_compilation_cache_dir is None


def test_where_nothing_can_be_written(home):
  (home / "cache").write_text("a file")
  keep_programs()
  assert FOLDER not in os.environ


def test_the_longest_unused_go_first(home, monkeypatch):
  keep_programs()
  [folder] = folders()
  other = root() / "not ours"
  other.mkdir()
  for number, path in enumerate([other / "x", folder / "a-cache", folder / "b-cache", folder / "c-cache"]):
    path.write_bytes(bytes(100))
    os.utime(path, (1000 + number, 1000 + number))
  os.utime(folder / "a-cache", (5000, 1001))  # It was read last.
  monkeypatch.setattr(compilation_cache, "MOST_BYTES", 250)
  keep_programs()
  assert sorted(path.name for path in folder.glob("*-cache")) == ["a-cache", "c-cache"]
  assert (other / "x").exists() and [path for path in folder.iterdir() if "cache" not in path.name]


COMPILES = """\
import jax.numpy as jnp, jax, warnings
from gtr_jax.parallel import compilation_cache
compilation_cache.keep_programs()
print(jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((4, 4)))[0, 0])
warnings.warn("something else")
"""


def test_a_broken_entry_is_made_anew_without_a_word(home):
  def run():
    environment = {name: value for name, value in os.environ.items() if name != OFF}
    done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "warn" in line.lower()] == [
        "<string>:5: UserWarning: something else"]
    [folder] = folders()
    return done.stdout, {path: path.read_bytes() for path in folder.glob("*-cache")}

  first, entries = run()
  assert entries
  for path, whole in entries.items():
    path.write_bytes(whole[:len(whole) // 2])
  second, healed = run()
  assert second == first and healed.keys() == entries.keys()
  assert all(len(healed[path]) > len(whole) // 2 for path, whole in entries.items())


@pytest.mark.parametrize("arguments, calls", [
    (["train", "--list"], ["keep False"]), (["train", "--list", "--no_compilation_cache"], ["off", "keep False"]),
    (["train", "--list", "--dry_run"], [])])
def test_commands_ask_for_it(monkeypatch, capsys, arguments, calls):
  asked = []
  monkeypatch.setattr(compilation_cache, "keep_programs", lambda several: asked.append(f"keep {several}"))
  monkeypatch.setattr(compilation_cache, "turn_off", lambda: asked.append("off"))
  assert main(arguments) == 0 and "runs/pretrain.gin" in capsys.readouterr().out
  assert asked == calls
