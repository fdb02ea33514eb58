"""`gtr-jax encode`: a collection's documents, or vectors that are there already, into an embedding store."""

import argparse

from gtr_jax.cli import process_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.parallel.processes import first_before_others, print_once

HELP = "embed a collection's documents into an embedding store"
DESCRIPTION = """\
Embeds a corpus in chunks; started again, it goes on at the first chunk that is missing.

  gtr-jax encode --model runs/mine --collection my_collection --output embeddings
  gtr-jax encode --model runs/mine --collection my_collection --precision int8 --dimensions 256 --output small
  gtr-jax encode --embeddings embeddings --precision int8 --output small       # of a store; nothing is embedded again
  gtr-jax encode --vectors documents.npy --ids documents.txt --precision binary --output bits"""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  shared_flags.add_model(p, required=False)
  p.add_argument("--collection", type=flags.path, help=shared_flags.COLLECTION_HELP)
  p.add_argument("--embeddings", type=flags.path, metavar="STORE",
                 help="a store of float32 vectors that is to be kept otherwise, instead of --model and --collection")
  shared_flags.add_vectors(p, "documents", "--model and --collection")
  p.add_argument("--output", required=True, type=flags.path, help="the embedding store's folder")
  shared_flags.add_precision(p)
  shared_flags.add_data_dir(p)
  shared_flags.add_empty_documents(p)
  shared_flags.add_computing(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Encodes. Raises InputError."""
  if args.embeddings is None:
    shared_flags.check_vectors(args, ("model", "collection"))
  elif given := [name for name in ("model", "collection", "vectors", "ids") if getattr(args, name) is not None]:
    raise InputError(f"--embeddings is the store that the vectors are of; leave --{given[0]} out")
  store = (_of_store if args.embeddings else _of_vectors if args.vectors else _of_collection)(args)
  print_once(f"{store.shape[0]:,} documents, {store.shape[1]} numbers each, in {args.output}"
             + f" ({args.precision}, {store.quantizer.num_bytes:,} bytes each)" * (args.precision != "float32"))


def _of_store(args):
  from gtr_jax.retrieval.smaller_store import smaller_store
  from gtr_jax.retrieval.store import Store
  return smaller_store(Store(args.embeddings), args.output, args.precision, args.dimensions)


def _of_vectors(args):
  from gtr_jax.retrieval.given_vectors import read_given, store_vectors
  return store_vectors(read_given(args.vectors, args.ids), args.output, args.precision, args.dimensions)


def _of_collection(args):
  from gtr_jax.collections.collection import read_documents
  from gtr_jax.collections.protocol import Protocol, find_one
  from gtr_jax.inference.load import check_model
  from gtr_jax.retrieval.encode import encode_corpus
  tokenization = shared_flags.tokenization(args)
  check_model(args.model, tokenization)
  shared_flags.set_data_dir(args)
  found = first_before_others(lambda: find_one(args.collection))
  protocol = Protocol(allow_empty_documents=args.allow_empty_documents).of(found)
  documents = read_documents(found.folder, allow_empty_documents=protocol.allow_empty_documents)
  return encode_corpus(shared_flags.load_model(args, args.model, tokenization), documents, args.output,
                       precision=args.precision, dimensions=args.dimensions)
