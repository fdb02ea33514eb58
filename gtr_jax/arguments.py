"""The arguments of the command line: what every command takes, and what `--help` says."""

import argparse

from gtr_jax import __version__
from gtr_jax.data.prepare import command as prepare
from gtr_jax.io import flags
from gtr_jax.mining import command as mining
from gtr_jax.plan import command as dry_run
from gtr_jax.sweep import command as sweep

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
  whole = flags.Parser("gtr-jax", description="T5 dual encoders for dense retrieval in JAX.",
                                   epilog=_EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  whole.add_argument("--version", action="version", version=f"gtr_jax {__version__}")
  commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

  def command(name, help, description=""):
    return commands.add_parser(name, help=help, description=description or help, allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)

  p = command("prepare", "make training data from raw downloads", prepare.DESCRIPTION)
  prepare.add_arguments(p)

  p = command("train", "train a dual encoder as gin files say", _TRAIN_DESCRIPTION)
  p.add_argument("--gin_file", action="append", default=[], type=flags.path, metavar="FILE",
                 help="a gin file, your own or one that comes with gtr_jax (runs/pretrain.gin); repeatable, later wins")
  p.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", dest="gin_bindings",
                 help="one binding, written --gin.NAME=VALUE; strings keep their quotes: --gin.MODEL_DIR=\"'runs/a'\"")
  p.add_argument("--gin_search_paths", default="", type=flags.paths, metavar="DIR,DIR",
                 help="more folders to look for gin files in")
  p.add_argument("--list", action="store_true", help="list the gin files that come with gtr_jax, and stop")
  dry_run.add_arguments(p)
  _data_dir(p)
  _processes(p)

  p = command("encode", "embed a collection's documents into an embedding store",
              "Embeds a corpus in chunks; started again, it goes on at the first chunk that is missing.")
  _model(p)
  p.add_argument("--collection", required=True, type=flags.path, help=_COLLECTION_HELP)
  p.add_argument("--output", required=True, type=flags.path, help="the embedding store's folder")
  _data_dir(p)
  _empty_documents(p)
  _mesh(p)
  _processes(p)

  p = command("search", "exact search in an embedding store",
              "With --queries and --output writes a TREC run; with --query answers that; else answers what you type.")
  _model(p)
  p.add_argument("--embeddings", required=True, type=flags.path, help="an embedding store that `gtr-jax encode` wrote")
  p.add_argument("--query", action="append", metavar="TEXT", help="answer this query and stop; repeatable")
  p.add_argument("--queries", type=flags.path, help="queries.jsonl: {\"_id\", \"text\"} a line")
  p.add_argument("--output", type=flags.path, help="the TREC run to write")
  p.add_argument("--top_k", type=flags.positive, help="documents per query (default: 100 in a run, 5 when you type)")
  _mesh(p)
  _processes(p)

  p = command("evaluate", "nDCG@10, MRR@10, Recall@100 and MAP on collections", _EVALUATE_DESCRIPTION)
  p.add_argument("--model", action="append", default=[], type=flags.named_path, metavar="[NAME=]MODEL",
                 help=_MODEL_HELP + "; repeatable")
  _missing(p, "\nOf several models, those that say their vocabulary keep it; the lengths are for all of them.")
  p.add_argument("--collection", action="append", default=[], type=flags.path,
                 help=_COLLECTION_HELP + "; or beir/NAME, nano-beir/NAME; repeatable")
  p.add_argument("--suite", choices=["beir", "beir-public", "nano-beir"],
                 help="MS MARCO and BEIR's 18 sets, MS MARCO and the 14 public ones, or NanoBEIR's 13")
  _data_dir(p)
  p.add_argument("--bm25", action="store_true", help="also BM25, in the same table (needs no model)")
  p.add_argument("--similarity", action="append", default=[], choices=["cosine", "dot"],
                 help="normalise the model's vectors, or do not (default: as it was trained); repeatable, to have both "
                 "beside each other: documents are encoded once")
  p.add_argument("--split", help="which qrels/SPLIT.tsv (default: test; beir/msmarco: dev)")
  p.add_argument("--exclude_own_id", action=argparse.BooleanOptionalAction,
                 help="never rank the document whose id is the query's own (default: on beir/arguana and beir/quora)")
  _empty_documents(p)
  p.add_argument("--output", required=True, type=flags.path, help="folder for results.json, runs/ and embeddings/")
  _mesh(p)
  _processes(p)

  p = command("convert", "write a model as a sentence-transformers folder, a T5X checkpoint, or programs",
              _CONVERT_DESCRIPTION)
  p.add_argument("source", type=flags.path, metavar="SRC", help=_MODEL_HELP)
  p.add_argument("output", type=flags.path, metavar="DST",
                 help="the folder to write; for T5X it ends in checkpoint_<step>")
  p.add_argument("--to", choices=["sentence-transformers", "t5x", "stablehlo", "saved-model"],
                 default="sentence-transformers", help="(default: sentence-transformers)")
  p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                 help="of the weights (default: float32)")
  p.add_argument("--results", type=flags.path, metavar="DIR", help="an evaluation's --output, whose table goes into "
                 "the model card of a sentence-transformers folder")
  _missing(p)

  p = command("mine", "find hard negatives for training pairs, with BM25 or a model", mining.DESCRIPTION)
  mining.add_arguments(p)
  _data_dir(p)
  _missing(p)
  _mesh(p)
  _processes(p)

  p = command("sweep", "train and evaluate every combination of settings", sweep.DESCRIPTION)
  sweep.add_arguments(p)

  p = command("report", "a markdown report with tables and plots", _REPORT_DESCRIPTION)
  for name, what in (("results", "an evaluation's --output"), ("model_dir", "a training run"),
                     ("sweep", "a sweep's folder")):
    p.add_argument(f"--{name}", action="append", default=[], type=flags.path, metavar="DIR", help=f"{what}; repeatable")
  p.add_argument("--output", required=True, type=flags.path, help="folder for report.md, its tables and plots")

  p = command("demo", "the whole path on this machine in a few minutes",
              "Pretrains, mines negatives, fine-tunes, evaluates and searches, on the documentation of the installed\n"
              "Python packages. Prints every command that it runs, so that each can be run by hand.")
  p.add_argument("--output", default="demo", type=flags.path,
                 help="folder for everything that it writes; what an earlier demo made moves aside (default: demo)")
  return whole


_TRAIN_DESCRIPTION = """\
Trains as the gin files say, and goes on where a run of the same MODEL_DIR stopped.

  gtr-jax train --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin \\
      --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \\
      --gin.MODEL_DIR="'runs/a'" --gin.BATCH_SIZE=512

ctrl-C or SIGTERM saves a checkpoint and stops; the same command continues from it."""


_EVALUATE_DESCRIPTION = """\
Prints a table, and writes results.json and TREC runs below --output. Started again, it encodes nothing twice.

  gtr-jax evaluate --model runs/mine --bm25 --collection my_collection --output results
  gtr-jax evaluate --model GTR=runs/gtr --collection beir/scifact --collection beir/nfcorpus --output results
  gtr-jax evaluate --model base=runs/base --model large=runs/large --suite beir-public --output results

A set of BEIR is looked for here, then in the data folder, and is downloaded to it. It is evaluated as in the papers on
GTR and BEIR: its own split, lengths and exclusion of the query itself, CQADupStack as the mean of its forums."""


_REPORT_DESCRIPTION = """\
Tables (markdown and CSV) and plots (PNG and SVG): nDCG and recall of each system on each collection beside published
figures, the lengths of what is retrieved, loss curves, and what each axis of a sweep does.

  gtr-jax report --results results --model_dir runs/a --model_dir runs/b --output report
  gtr-jax report --sweep sweeps/sizes --output report"""


_CONVERT_DESCRIPTION = """\
Every command reads all of these forms itself; convert is for other programs.

  gtr-jax convert runs/mine my_model                      # SentenceTransformer("my_model") loads it
  gtr-jax convert runs/mine t5x/checkpoint_0 --to t5x     # t5x.train starts from it
  gtr-jax convert gs://…/checkpoint_1000 my_model --vocabulary spiece.model --query_length 64 --document_length 512"""


def _data_dir(p):
  p.add_argument("--data_dir", type=flags.path,
                 help="the data folder (default: $GTR_DATA_DIR, else ~/.cache/gtr_jax)")


def _model(p):
  p.add_argument("--model", required=True, type=flags.path, help=_MODEL_HELP)
  _missing(p)


def _missing(p, of_several=""):
  group = p.add_argument_group("what the model may not say", "T5X checkpoints carry no vocabulary and no lengths; a "
                               f"training run says all of it.{of_several}")
  group.add_argument("--vocabulary", type=flags.path, metavar="FILE",
                     help="the SentencePiece model that it was trained with")
  group.add_argument("--extra_ids", type=flags.non_negative, metavar="N",
                     help="sentinels after its pieces (T5: 100, mT5: 0)")
  group.add_argument("--query_length", type=flags.length, metavar="N", help="most tokens of a query")
  group.add_argument("--document_length", type=flags.length, metavar="N", help="most tokens of a document")


def _empty_documents(p):
  p.add_argument("--allow_empty_documents", action="store_true",
                 help="keep documents with neither title nor text instead of refusing the collection")


def _mesh(p):
  p.add_argument("--model_parallel", type=flags.positive, default=1, metavar="N",
                 help="split the weights over N devices; the rest are data parallel (default: 1)")


def _processes(p):
  group = p.add_argument_group("several processes", "Start the same command in each: with --distributed where Slurm, "
                               "Open MPI, Cloud TPU or GKE says who is who, else with the other three.")
  group.add_argument("--distributed", action="store_true", help="one of several processes of a cluster")
  group.add_argument("--coordinator_address", metavar="HOST:PORT", help="process 0's host, and a free port there")
  group.add_argument("--num_processes", type=flags.positive, metavar="N", help="how many there are")
  group.add_argument("--process_id", type=flags.non_negative, metavar="I", help="which one this is, from 0")
