"""Flags that several commands have, and what becomes of them."""

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

from gtr_jax.errors import InputError
from gtr_jax.io import flags

MODEL_HELP = ("a training run's MODEL_DIR (its best checkpoint, else its last), or MODEL_DIR/checkpoints/STEP; a "
              "sentence-transformers or T5 folder; a T5X checkpoint; or a name on the Hugging Face hub")
COLLECTION_HELP = "a folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv"


def add_quiet(p: argparse._ActionsContainer, default: Any = False) -> None:
  """`--quiet`."""
  p.add_argument("--quiet", action="store_true", default=default,
                 help="show no progress: results, warnings and errors only")


def add_data_dir(p: argparse._ActionsContainer) -> None:
  """`--data_dir`."""
  p.add_argument("--data_dir", type=flags.path,
                 help="the data folder (default: $GTR_DATA_DIR, else gtr_jax in $XDG_CACHE_HOME or ~/.cache)")


def set_data_dir(args: argparse.Namespace) -> None:
  """Makes it the data folder of this process."""
  if args.data_dir:
    from gtr_jax.io import data_root
    data_root.set_data_dir(args.data_dir)


def add_model(p: argparse.ArgumentParser, required: bool = True) -> None:
  """`--model`, and what it may not say."""
  p.add_argument("--model", required=required, type=flags.path, help=MODEL_HELP)
  add_tokenization(p)


def add_tokenization(p: argparse.ArgumentParser, of_several: str = "") -> None:
  """Vocabulary and lengths."""
  group = p.add_argument_group("what the model may not say", "T5X checkpoints carry no vocabulary and no lengths; a "
                               f"training run says all of it.{of_several}")
  group.add_argument("--vocabulary", type=flags.path, metavar="FILE",
                     help="the SentencePiece model that it was trained with")
  group.add_argument("--extra_ids", type=flags.non_negative, metavar="N",
                     help="sentinels after its pieces (T5: 100, mT5: 0)")
  group.add_argument("--query_length", type=flags.length, metavar="N", help="most tokens of a query")
  group.add_argument("--document_length", type=flags.length, metavar="N", help="most tokens of a document")


def tokenization(args: argparse.Namespace) -> Any:
  """What the flags say of it, for `inference.load.load_model`."""
  from gtr_jax.formats.tokenization import Tokenization
  return Tokenization(args.vocabulary, args.extra_ids, args.query_length, args.document_length)


def add_vectors(p: argparse.ArgumentParser, what: str, instead: str) -> None:
  """`--vectors` and `--ids`: another program's, of `what`, instead of what these flags name."""
  p.add_argument("--vectors", type=flags.path, metavar="FILE.npy",
                 help=f"floats [{what}, numbers of each] that another program has computed, instead of {instead}")
  p.add_argument("--ids", type=flags.path, metavar="FILE", help="of --vectors: an id a line, in their order")


def check_vectors(args: argparse.Namespace, instead: tuple[str, ...]) -> None:
  """Raises InputError unless there are vectors and ids, or all that they stand instead of, and not both."""
  of_model, names = [getattr(args, name) is not None for name in instead], " and ".join(f"--{n}" for n in instead)
  if (args.vectors is None) != (args.ids is None):
    raise InputError("--vectors and --ids go together: a .npy file, and a file with an id a line")
  if args.vectors and any(of_model) or not args.vectors and not all(of_model):
    raise InputError(f"give {names}, or vectors that another program has computed: --vectors and --ids")


def add_precision(p: argparse.ArgumentParser, several: bool = False) -> None:
  """`--precision`, one of them or a list, and `--dimensions`."""
  p.add_argument("--precision", choices=["float32", "int8", "binary"], default=[] if several else "float32",
                 action="append" if several else "store",
                 help="how vectors are kept: int8 in a quarter of the bytes, binary, the signs of rotated ones, in a "
                 "32nd (default: float32)" + "; repeatable, to have them beside each other" * several)
  p.add_argument("--dimensions", type=flags.positive, metavar="N",
                 help="keep the first N numbers of each vector, normalised again, of a model that was trained for it "
                 "(Matryoshka)")


def add_rescore(p: argparse.ArgumentParser, more: str = "") -> None:
  """`--rescore`, and what else it says."""
  p.add_argument("--rescore", type=flags.positive, default=4, metavar="FACTOR",
                 help="of int8 and binary vectors, find so many times the documents that are asked for, and rank them "
                 f"again by the query in float32{more} (default: 4)")


def add_empty_documents(p: argparse.ArgumentParser) -> None:
  """`--allow_empty_documents`."""
  p.add_argument("--allow_empty_documents", action="store_true",
                 help="keep documents with neither title nor text instead of refusing the collection")


def add_computing(p: argparse.ArgumentParser) -> None:
  """`--model_parallel`, `--dtype` and `--attention`."""
  p.add_argument("--model_parallel", type=flags.positive, default=1, metavar="N",
                 help="split the weights over N devices; the rest are data parallel (default: 1)")
  p.add_argument("--dtype", choices=["float32", "bfloat16"],
                 help="compute the encoder in it (default: bfloat16 on TPUs and GPUs, float32 on CPUs; queries as the "
                 "documents of their store)")
  p.add_argument("--attention", choices=["auto", "reference", "kernel"], default="auto",
                 help="kernel: on TPUs, compute attention by the kernel, whose first batch is held against the "
                 "reference (default: auto, text by text on CPUs and the reference elsewhere)")


def load_model(args: argparse.Namespace, path: str, tokenization: Any, dtype: str | None = None) -> Any:
  """A model on the mesh, computed in `dtype` where `--dtype` does not say otherwise."""
  from gtr_jax.inference.load import load_model
  from gtr_jax.parallel.partitioning import make_mesh
  return load_model(path, make_mesh(model=args.model_parallel), tokenization, args.dtype or dtype, args.attention)


def by_name(flag: str, given: Iterable[tuple[str, str]]) -> dict[str, str]:
  """What `flags.named_path` gives, of a flag that is given several times: by name, which is else the last of the path.

  Raises:
    InputError: two of one name.
  """
  found: dict[str, str] = {}
  for name, path in given:
    name = name or os.path.basename(os.path.normpath(path))
    if name in found:
      raise InputError(f"two of --{flag} are called {name}; name them: --{flag} A={found[name]} --{flag} B={path}")
    found[name] = path
  return found


def add_gin_files(p: argparse.ArgumentParser, file_help: str, binding_help: str,
                  names: Callable[[], Iterable[str]]) -> None:
  """`--gin_file`, `--gin.NAME=VALUE` and `--gin_search_paths`; `names` are what people will want to bind."""
  if isinstance(p, flags.Parser):
    p.others = lambda: [f"--gin.{name}" for name in names()]
  p.add_argument("--gin_file", action="append", default=[], type=flags.path, metavar="FILE", help=file_help)
  p.add_argument("--gin", action="append", default=[], type=flags.gin_binding, metavar="NAME=VALUE",
                 dest="gin_bindings", help=binding_help)
  p.add_argument("--gin_search_paths", default="", type=flags.paths, metavar="DIR,DIR",
                 help="more folders to look for gin files in")


def search_paths(args: argparse.Namespace) -> list[str]:
  """The folders of `--gin_search_paths`."""
  return [path for path in args.gin_search_paths.split(",") if path]
