"""Builds the wheel, installs it in an environment of its own, and uses it away from the source tree (make wheel-check).

The new environment sees this one's dependencies but not this checkout.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

INSIDE = """
import importlib, pathlib, pkgutil, sys
import gtr_jax
source = sys.argv[1]
assert not pathlib.Path(gtr_jax.__file__).is_relative_to(source), gtr_jax.__file__
import gtr_jax.tasks
tasks = [m.name for m in pkgutil.iter_modules(gtr_jax.tasks.__path__)]
for name in tasks:
  importlib.import_module(f"gtr_jax.tasks.{name}")
from gtr_jax import config
files = sorted(p for p in config.configs_dir().rglob("*.gin") if p.parent.name != "t5x")  # T5X reads those.
assert not config.configs_dir().is_relative_to(source)
for path in files:
  config.parse([str(path)])
print(f"wheel: {len(tasks)} task modules imported, {len(files)} gin files parsed")
assert tasks and len(files) > 10
"""


def run(*command, **kwargs):
  subprocess.run([str(c) for c in command], check=True, **kwargs)


def main():
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, stdout=subprocess.DEVNULL)
    wheel, = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.startswith(("tests/", "tasks/", "gin/", "docs/"))], names
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # The dependencies come from the environment that runs this check, by path and after the new environment's own
    # packages; a .pth file in there that leads back to the checkout is not followed by PYTHONPATH.
    purelib = subprocess.run([sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                             check=True, capture_output=True, text=True).stdout.strip()
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          check=True, capture_output=True, text=True).stdout.strip()
    env = {**os.environ, "PYTHONPATH": f"{site}:{purelib}", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    away = folder / "away"
    away.mkdir()
    run(python, "-c", INSIDE, ROOT, cwd=away, env=env)
    run(folder / "venv/bin/gtr-jax", "--help", cwd=away, env=env, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
  main()
