"""What the compilers of TPUs and GPUs make of training, encoding and search, on chips that need not be here.

Of each program: it fits, gradients are summed once and in float32, parameters are gathered a layer at a time, nothing
else is gathered, and nothing goes to the host.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import programs
import pytest

from gtr_jax.dry_run import described
from gtr_jax.parallel import chips

TO_SPARE = 0.1
# What of T5's sizes the largest kernel of a layer has, in parameters.
WIDTH = {"small": 512, "base": 768, "large": 1024, "xl": 1024, "xxl": 1024}
VOCABULARY = 32128
KERNEL = {"small": 512 * 2048, "base": 768 * 3072, "large": 1024 * 4096, "xl": 1024 * 16384, "xxl": 1024 * 65536}


def compiled(name):
  """What `programs.py` says, of a process of its own: each has other devices."""
  if not described.has_compiler(chips.CHIPS[programs.PROGRAMS[name].chip]):
    pytest.skip("the compilers of TPUs and GPUs: make test-compile installs them")
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_FLAGS", "JAX_"))}
  process = subprocess.run([sys.executable, str(Path(__file__).with_name("programs.py")), name], capture_output=True,
                           text=True, env={**environment, "JAX_PLATFORMS": "cpu"})
  assert process.returncode == 0, process.stderr[-4000:]
  return json.loads(process.stdout.splitlines()[-1])


def names(kind):
  """Of the programs of a kind; those of `IN_CI` alone where that is asked for."""
  return [name for name, case in programs.PROGRAMS.items()
          if isinstance(case, kind) and (name in programs.IN_CI or not os.environ.get("COMPILE_FEW"))]


def collectives(found, *kinds):
  return [c for c in found["collectives"] if c["kind"] in kinds]


def sent(found, *kinds):
  return sum(c["bytes"] for c in collectives(found, *kinds))


def check_halves(found):
  """In bfloat16 nothing is summed but the embedded tokens along `model`, of which all parts but one are 0."""
  model = found["mesh"]["model"]
  halves = [c for c in collectives(found, "all-reduce", "reduce-scatter") if "bf16" in c["dtype"]]
  assert all(c["devices"] == model > 1 and c["span"] <= model for c in halves)
  assert not halves or sum(c["bytes"] for c in halves) < 0.1 * sent(found, "all-reduce")


def test_all_files_that_say_how_to_train_are_compiled():
  """Recipes, meshes and launch files, those that others include as well."""
  gin = programs.LAUNCH.parents[1] / "gin"
  files = {str(path.relative_to(gin)) for folder in ("recipes", "meshes") for path in (gin / folder).glob("*.gin")}
  found = {file for name in programs.PROGRAMS if isinstance(case := programs.PROGRAMS[name], programs.Training)
           for file in case.files}
  for file in list(found):
    found |= set(re.findall(r"^include '(.*)'", (gin / file).read_text(), re.MULTILINE))
  assert files <= found
  launch = {path.name: programs.of_launch_file(path.name) for path in programs.LAUNCH.iterdir()}
  assert launch.keys() == {"cloud_tpu.sh", "gke_jobset.yaml", "slurm.sh"}
  assert launch["cloud_tpu.sh"] == launch["gke_jobset.yaml"]  # Of 16 chips each.


@pytest.mark.parametrize("name", names(programs.Training))
def test_training(name):
  case, found = programs.PROGRAMS[name], compiled(name)
  memory = chips.CHIPS[case.chip].memory
  if case.fits_not:
    assert found["out_of_memory"] and found["total_bytes"] > memory
    return
  assert not found["out_of_memory"] and found["total_bytes"] <= (1 - TO_SPARE) * memory
  assert not found["to_host"] and not found["unknown_loops"]
  size = case.files[0].removeprefix("models/t5_").removesuffix(".gin")
  sizes, whole = found["mesh"], 4 * found["parameters"]
  data, fsdp = sizes["data"], sizes["fsdp"]
  summed = collectives(found, "all-reduce", "reduce-scatter")
  check_halves(found)
  if fsdp == sizes["model"] == 1:  # One sum of all parameters, and not in a loop.
    assert sent(found, "all-reduce") == pytest.approx(2 * (data - 1) / data * whole, rel=0.02)
    assert not [c for c in summed if c["in_loop"] and c["bytes"] > 0.01 * whole]
  if fsdp > 1:  # A part of the sum for each, of every microbatch; what is whole on all devices is little.
    scattered = sum(c["bytes"] for c in collectives(found, "reduce-scatter") if c["in_loop"])
    layers = whole - 4 * VOCABULARY * WIDTH[size]  # Tokens, and not their table, travel along `fsdp`.
    microbatches = round(scattered / ((fsdp - 1) / fsdp * layers), 1)
    assert microbatches == pytest.approx(round(microbatches), abs=0.1) and microbatches >= 1
    assert sent(found, "all-reduce") < 0.02 * sent(found, "reduce-scatter")
  of_embeddings = 2 * 2048 * 768  # Of both sides, for the dense loss.
  for elements, dtype, dims in found["gathered"]:
    assert elements <= max(KERNEL[size], of_embeddings), (dtype, dims)
    assert len(dims) <= 3 or elements < 1e6, (dtype, dims)  # Of activations, `[G, R, L, E]`, never.
  assert bool(found["kernels"]) == (programs.KERNEL[0] in case.bindings)
  if programs.RING in case.bindings:
    shards, permutes = data * fsdp, collectives(found, "collective-permute")
    # Forward the passages, backward they and their gradient; between slices once a round.
    assert sum(c["count"] for c in permutes) <= 3 * (shards + 2 * case.slices)
    assert max(elements for elements, *_ in found["gathered"]) < 2048 * 768


@pytest.mark.parametrize("name", names(programs.Encoding))
def test_encoding(name):
  case, found = programs.PROGRAMS[name], compiled(name)
  assert found["total_bytes"] <= (1 - TO_SPARE) * chips.CHIPS[case.chip].memory
  assert not found["to_host"] and not collectives(found, "all-gather", "all-to-all", "reduce-scatter")
  if case.model_parallel == 1:
    assert not found["collectives"]
  check_halves(found)  # Two sums of activations a layer.
  assert found["float32_flops"] < 0.01 * found["flops"]


@pytest.mark.parametrize("name", names(programs.Search))
def test_search(name):
  case, found = programs.PROGRAMS[name], compiled(name)
  assert found["total_bytes"] <= (1 - TO_SPARE) * chips.CHIPS[case.chip].memory
  assert not found["to_host"] and not collectives(found, "all-gather", "all-reduce", "all-to-all")
  exchanges = math.log2(case.devices)
  arrays = 2 + (case.precision != "float32")  # Scores and rows, and the scores of candidates by the query.
  assert sum(c["count"] for c in collectives(found, "collective-permute")) == arrays * exchanges
  assert sent(found, "collective-permute") <= exchanges * 512 * case.k * 4 * arrays


@pytest.mark.parametrize("name", names(programs.Attention))
def test_attention(name):
  """Nothing of length by length: what is largest are the vectors, or of short rows the bias."""
  case, found = programs.PROGRAMS[name], compiled(name)
  vectors = case.rows * case.length * case.heads * case.head_dim
  assert found["kernels"] == 2  # Forward and backward.
  assert found["largest"] <= max(vectors, case.heads * 5 * 128 * 256)
  assert found["temporaries"] < 12 * 4 * vectors


@pytest.mark.parametrize("name", names(programs.Layers))
def test_layers(name):
  """What the kernel saves of a layer's time and traffic; padded, most of what is left is not attention's."""
  found = compiled(name)
  of_reference, of_kernel = found["reference"], found["kernel"]
  assert of_kernel["hbm_bytes"] < (0.25 if programs.PROGRAMS[name].packed else 0.55) * of_reference["hbm_bytes"]
  assert of_kernel["expected"] < (0.4 if programs.PROGRAMS[name].packed else 0.65) * of_reference["expected"]


@pytest.mark.parametrize("name", names(programs.Product))
def test_what_the_compiler_expects_of_a_product(name):
  """About what its FLOPs take at the peak: cycles are counted at the right clock."""
  found = compiled(name)
  assert found["least"] < found["seconds"] < 1.16 * found["least"]


# XLA's analysis counts as read twice what a fusion uses twice: logits, for their maximum and for their exponentials.
# Of an embedding it counts the table, not the rows; of its gradient not the sorted copy of what is added up.
_OTHERWISE = {"softmax": (0.55, 0.75), "attention, 12 heads of 64": (0.55, 0.75),
              "attention, 6 heads of 128": (0.55, 0.75), "embedding": (0.1, 0.5),
              "gradient of an embedding": (0.85, 1.25)}


@pytest.mark.parametrize("name", names(programs.Operations))
def test_the_least_time_of_operations(name):
  """As XLA's own analysis has it, which counts nine tenths of the published bandwidth, and below the compiler's."""
  for operation, seconds in compiled(name).items():
    lowest, highest = _OTHERWISE.get(operation, (0.85, 1.15))
    assert lowest < seconds["least"] / seconds["of_analysis"] < highest, (operation, seconds)
    assert seconds["least"] < 1.02 * seconds["expected"], (operation, seconds)
