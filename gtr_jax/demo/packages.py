"""Which of the installed packages the corpus is made of, and whether they are still as they were when it was made."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from etils import epath

import gtr_jax
from gtr_jax.demo import docstrings
from gtr_jax.errors import InputError

# Distribution -> its top-level package. All come with gtr_jax, whatever else is installed.
_FINETUNE = {"numpy": "numpy", "jax": "jax", "flax": "flax", "optax": "optax", "keras": "keras",
             "tensorflow": "tensorflow"}
_PRETRAIN = {
    "orbax-checkpoint": "orbax", "tensorflow-datasets": "tensorflow_datasets", "tensorboard": "tensorboard",
    "jaxlib": "jaxlib", "pyglove": "pyglove", "absl-py": "absl", "grpcio": "grpc", "seqio": "seqio",
    "tensorflow-text": "tensorflow_text", "treescope": "treescope", "optree": "optree", "etils": "etils", "clu": "clu",
    "ml-collections": "ml_collections", "opt-einsum": "opt_einsum", "protobuf": "google/protobuf",
    "gin-config": "gin", "safetensors": "safetensors", "tensorstore": "tensorstore", "ir-measures": "ir_measures",
    "bm25s": "bm25s", "einops": "einops", "astunparse": "astunparse", "gast": "gast", "wrapt": "wrapt",
}
_ZERO_SHOT = {
    "standard_library": None,
    "scipy": {"scipy": "scipy"},
    "matplotlib": {"matplotlib": "matplotlib"},
    "small_packages": {
        "fonttools": "fontTools", "pillow": "PIL", "werkzeug": "werkzeug", "rich": "rich", "pygments": "pygments",
        "requests": "requests", "urllib3": "urllib3", "fsspec": "fsspec", "pyparsing": "pyparsing", "h5py": "h5py",
        "pyarrow": "pyarrow", "simple-parsing": "simple_parsing", "psutil": "psutil", "Markdown": "markdown",
        "markdown-it-py": "markdown_it", "python-dateutil": "dateutil", "attrs": "attr", "humanize": "humanize",
        "tqdm": "tqdm", "prometheus_client": "prometheus_client", "docstring_parser": "docstring_parser",
    },
}

# What makes a corpus of packages: below gtr_jax.
_CODE = ("demo/corpus.py", "demo/docstrings.py", "demo/near_copies.py", "demo/packages.py", "demo/read.py",
         "text/near_text.py", "text/same_text.py", "data/vocabulary.py")


@dataclasses.dataclass(frozen=True)
class Packages:
  """Which packages serve what; each maps a package's name to its folder.

  Attributes:
    finetune: train in both stages; a part is held out as the in-domain collection.
    pretrain: train in the first stage only.
    zero_shot: for each collection, what it is made of; they never train.
    versions: recorded in the manifest.
  """

  finetune: Mapping[str, Path]
  pretrain: Mapping[str, Path]
  zero_shot: Mapping[str, Mapping[str, Path]]
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def installed_packages() -> Packages:
  """The packages that gtr_jax itself depends on, and the standard library."""
  versions = {"python": platform.python_version()}

  def folders(modules):
    found = {}
    for distribution, module in modules.items():
      try:
        versions[distribution] = importlib.metadata.version(distribution)
      except importlib.metadata.PackageNotFoundError as e:
        raise InputError(f"the package {distribution} is not installed; gtr_jax depends on it: pip install "
                         f"{distribution}") from e
      found[module.replace("/", ".")] = docstrings.package_folder(distribution, module)
    return found

  zero_shot = {name: folders(modules) if modules else {"": docstrings.standard_library_folder()}
               for name, modules in _ZERO_SHOT.items()}
  return Packages(folders(_FINETUNE), folders(_PRETRAIN), zero_shot, versions)


def fingerprint(packages: Packages, vocabulary: str | None) -> str:
  """A hash of all that decides the corpus: of each file of the packages its name, size and time, nothing of it is read;
  the versions, this code, and the vocabulary that is given.

  Raises:
    OSError: a file is gone while they are listed.
  """
  files = {}
  for of_use in (packages.finetune, packages.pretrain, *packages.zero_shot.values()):
    for name, folder in of_use.items():
      stats = ((os.fspath(path.relative_to(folder)), path.stat()) for path in docstrings.python_files(folder))
      files[name] = [os.fspath(folder), *((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)]
  uses = [list(packages.finetune), list(packages.pretrain), {n: list(of) for n, of in packages.zero_shot.items()}]
  own = Path(gtr_jax.__file__).parent
  code = [hashlib.sha256((own / name).read_bytes()).hexdigest() for name in _CODE]
  given = vocabulary and hashlib.sha256(epath.Path(vocabulary).read_bytes()).hexdigest()
  programs = [gtr_jax.__version__, platform.python_version(), importlib.metadata.version("sentencepiece")]
  return hashlib.sha256(json.dumps([files, uses, dict(packages.versions), code, given, programs]).encode()).hexdigest()
