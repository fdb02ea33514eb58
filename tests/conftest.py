"""Eight CPU devices, strict shapes: what holds here holds on a mesh."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # Nothing of a test into the user's cache, or out of it.
# Most of the time goes into compiling, most of that into XLA's newer emitters of fusions. Of two flags the last wins.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = ("--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 " +
                           os.environ.get("XLA_FLAGS", ""))

import jax
import pytest
from collected import APART, COLLECTED

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Whole files go to a worker (make test), the longest first, so that none is left alone with one at the end.
LONGEST = ("equality", "sharding_hlo", "two_processes", "resume", "standing_still", "sweep_command", "pipeline",
           "ring", "recipes", "cli", "pair_task", "plan", "t5", "prepare_engine", "partitioning", "step",
           "dual_encoder", "convert")


@pytest.hookimpl(tryfirst=True)  # before -k and -m
def pytest_collection_modifyitems(config, items):
  places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: places.get(item.path.name, len(places)))
  config.stash[COLLECTED] = [item.nodeid for item in items if not item.nodeid.startswith(APART)]
