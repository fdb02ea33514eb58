"""The arguments of the command line: what every command takes, and what `--help` says."""

import argparse

from gtr_jax import __version__
from gtr_jax.plan import command as dry_run

_EPILOG = """\
A first run (no data needed):
  gtr-jax demo --output demo

With your own data and configuration:
  gtr-jax train --gin_file=my_run.gin --gin.MODEL_DIR="'runs/mine'"
  gtr-jax encode --model runs/mine --collection my_collection --output embeddings
  gtr-jax search --model runs/mine --embeddings embeddings
  gtr-jax evaluate --model runs/mine --collection my_collection --bm25 --output results

`gtr-jax COMMAND --help` explains each. Every wrong input ends in one line and exit code 2.
"""

_MODEL_HELP = ("a training run's MODEL_DIR (its best checkpoint, else its last), or MODEL_DIR/checkpoints/STEP; a "
               "sentence-transformers or T5 folder; a T5X checkpoint; or a name on the Hugging Face hub")
_COLLECTION_HELP = "a folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv"


def parser() -> argparse.ArgumentParser:
  """Of all commands; the parsed `command` says which one."""
  whole = argparse.ArgumentParser("gtr-jax", description="T5 dual encoders for dense retrieval in JAX.",
                                   epilog=_EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  whole.add_argument("--version", action="version", version=f"gtr_jax {__version__}")
  commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

  def command(name, help, description=""):
    return commands.add_parser(name, help=help, description=description or help, allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)

  p = command("prepare", "make training data and collections from a source",
              "Writes a source's training pairs, vocabulary and collections below the data folder.")
  p.add_argument("source", choices=["pydoc"], help="pydoc: the documentation of the installed Python packages")
  _data_dir(p)
  p.add_argument("--vocabulary", help="a SentencePiece model to use instead of training one of 8,000 pieces")

  p = command("train", "train a dual encoder as gin files say", _TRAIN_DESCRIPTION)
  p.add_argument("--gin_file", action="append", default=[], metavar="FILE",
                 help="a gin file, your own or one that comes with gtr_jax (runs/pretrain.gin); repeatable, later wins")
  p.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", dest="gin_bindings",
                 help="one binding, written --gin.NAME=VALUE; strings keep their quotes: --gin.MODEL_DIR=\"'runs/a'\"")
  p.add_argument("--gin_search_paths", default="", metavar="DIR,DIR", help="more folders to look for gin files in")
  p.add_argument("--list", action="store_true", help="list the gin files that come with gtr_jax, and stop")
  dry_run.add_arguments(p)
  _data_dir(p)
  _processes(p)

  p = command("encode", "embed a collection's documents into an embedding store",
              "Embeds a corpus in chunks; started again, it goes on at the first chunk that is missing.")
  _model(p)
  p.add_argument("--collection", required=True, help=_COLLECTION_HELP)
  p.add_argument("--output", required=True, help="the embedding store's folder")
  _empty_documents(p)
  _mesh(p)
  _processes(p)

  p = command("search", "exact search in an embedding store",
              "With --queries and --output writes a TREC run; with --query answers that; else answers what you type.")
  _model(p)
  p.add_argument("--embeddings", required=True, help="an embedding store that `gtr-jax encode` wrote")
  p.add_argument("--query", action="append", metavar="TEXT", help="answer this query and stop; repeatable")
  p.add_argument("--queries", help="queries.jsonl: {\"_id\", \"text\"} a line")
  p.add_argument("--output", help="the TREC run to write")
  p.add_argument("--top_k", type=_positive, help="documents per query (default: 100 in a run, 5 when you type)")
  _mesh(p)
  _processes(p)

  p = command("evaluate", "nDCG@10, MRR@10, Recall@100 and MAP on collections",
              "Prints a table, and writes results.json and TREC runs below --output.")
  p.add_argument("--model", action="append", default=[], metavar="[NAME=]MODEL", help=_MODEL_HELP + "; repeatable")
  _missing(p)
  p.add_argument("--collection", action="append", required=True, help=_COLLECTION_HELP + "; repeatable")
  p.add_argument("--bm25", action="store_true", help="also BM25, in the same table (needs no model)")
  p.add_argument("--split", default="test", help="which qrels/SPLIT.tsv (default: test)")
  p.add_argument("--exclude_own_id", action="store_true",
                 help="never rank the document whose id is the query's own (ArguAna, Quora)")
  _empty_documents(p)
  p.add_argument("--output", required=True, help="folder for results.json, runs/ and embeddings/")
  _mesh(p)
  _processes(p)

  p = command("convert", "write a model as a sentence-transformers folder, a T5X checkpoint, or programs",
              _CONVERT_DESCRIPTION)
  p.add_argument("source", metavar="SRC", help=_MODEL_HELP)
  p.add_argument("output", metavar="DST", help="the folder to write; for T5X it ends in checkpoint_<step>")
  p.add_argument("--to", choices=["sentence-transformers", "t5x", "stablehlo", "saved-model"],
                 default="sentence-transformers", help="(default: sentence-transformers)")
  p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                 help="of the weights (default: float32)")
  p.add_argument("--results", metavar="DIR", help="an evaluation's --output, whose table goes into the model card")
  _missing(p)

  p = command("mine", "find hard negatives for training pairs with BM25",
              "Writes the pairs again, each with `negatives`: passages that BM25 ranks high and that do not answer it.")
  p.add_argument("--pairs", required=True, help="JSONL(.gz) of training pairs; their passages are what is searched")
  p.add_argument("--output", required=True, help="the JSONL to write")
  p.add_argument("--query_field", default="query", help="(default: query)")
  p.add_argument("--passage_field", default="positive", help="(default: positive)")
  p.add_argument("--query_id_field", help="pairs with the same query id share their passages")
  p.add_argument("--passage_id_field", help="passages with the same id are one; also writes `negative_ids`")
  p.add_argument("--num_negatives", type=_positive, default=1, help="per query (default: 1)")
  p.add_argument("--first_rank", type=_positive, default=1, help="the best rank a negative may have (default: 1)")
  p.add_argument("--last_rank", type=_positive, default=100, help="the worst rank a negative may have (default: 100)")
  p.add_argument("--seed", type=int, default=0, help="of the draw among those ranks (default: 0)")

  p = command("report", "a markdown report with tables and plots",
              "Loss curves, nDCG per collection and stage, and the lengths of what is retrieved.")
  p.add_argument("--results", action="append", default=[], metavar="DIR", help="an evaluation's --output; repeatable")
  p.add_argument("--model_dir", action="append", default=[], metavar="DIR", help="a training run; repeatable")
  p.add_argument("--output", required=True, help="folder for report.md and its plots")

  p = command("demo", "the whole path on this machine in a few minutes",
              "Pretrains, mines negatives, fine-tunes, evaluates and searches, on the documentation of the installed\n"
              "Python packages. Prints every command that it runs, so that each can be run by hand.")
  p.add_argument("--output", default="demo", help="folder for everything that it writes; emptied first (default: demo)")
  return whole


_TRAIN_DESCRIPTION = """\
Trains as the gin files say, and goes on where a run of the same MODEL_DIR stopped.

  gtr-jax train --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin \\
      --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \\
      --gin.MODEL_DIR="'runs/a'" --gin.BATCH_SIZE=512

ctrl-C or SIGTERM saves a checkpoint and stops; the same command continues from it."""


_CONVERT_DESCRIPTION = """\
Every command reads all of these forms itself; convert is for other programs.

  gtr-jax convert runs/mine my_model                      # SentenceTransformer("my_model") loads it
  gtr-jax convert runs/mine t5x/checkpoint_0 --to t5x     # t5x.train starts from it
  gtr-jax convert gs://…/checkpoint_1000 my_model --vocabulary spiece.model --query_length 64 --document_length 512"""


def _data_dir(p):
  p.add_argument("--data_dir", help="the data folder (default: $GTR_DATA_DIR, else ~/.cache/gtr_jax)")


def _model(p):
  p.add_argument("--model", required=True, help=_MODEL_HELP)
  _missing(p)


def _missing(p):
  group = p.add_argument_group("what the model may not say", "T5X checkpoints carry no vocabulary and no lengths.")
  group.add_argument("--vocabulary", metavar="FILE", help="the SentencePiece model that it was trained with")
  group.add_argument("--extra_ids", type=int, metavar="N", help="sentinels after its pieces (T5: 100, mT5: 0)")
  group.add_argument("--query_length", type=_positive, metavar="N", help="most tokens of a query")
  group.add_argument("--document_length", type=_positive, metavar="N", help="most tokens of a document")


def _empty_documents(p):
  p.add_argument("--allow_empty_documents", action="store_true",
                 help="keep documents with neither title nor text instead of refusing the collection")


def _mesh(p):
  p.add_argument("--model_parallel", type=_positive, default=1, metavar="N",
                 help="split the weights over N devices; the rest are data parallel (default: 1)")


def _processes(p):
  group = p.add_argument_group("several processes", "Start the same command in each: with --distributed where Slurm, "
                               "Open MPI, Cloud TPU or GKE says who is who, else with the other three.")
  group.add_argument("--distributed", action="store_true", help="one of several processes of a cluster")
  group.add_argument("--coordinator_address", metavar="HOST:PORT", help="process 0's host, and a free port there")
  group.add_argument("--num_processes", type=_positive, metavar="N", help="how many there are")
  group.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{text} is not a positive number")
  return value
