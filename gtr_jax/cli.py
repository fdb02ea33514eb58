"""The command line. Every command imports what it needs when it runs, so that `--help` is quick."""

import argparse
import hashlib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Sequence

from gtr_jax import __version__, distributed
from gtr_jax.errors import InputError
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

_ADVICE = {"train": "; training goes on from its last whole checkpoint",
           "encode": "; encoding goes on at the first chunk that is missing"}
_MODEL_HELP = "a training run's MODEL_DIR (its best checkpoint, else its last), or MODEL_DIR/checkpoints/STEP"
_COLLECTION_HELP = "a folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code: 0 done, 2 wrong input, 130 interrupted."""
  argv = list(sys.argv[1:] if argv is None else argv)
  args = _parser().parse_args(_join_gin_flags(argv))
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    return _run(args)
  except Exception as e:
    distributed.fail_unexpectedly(e)
    raise


def _run(args) -> int:
  try:
    _join(args)
    code = args.run(args) or 0
    distributed.leave()
    return code
  except InputError as e:
    return _failed(args, _message(e), 2)
  except OSError as e:  # A folder where a file belongs, no permission, a full disk.
    if e.filename is None:
      raise
    return _failed(args, f"{e.filename}: {e.strerror}; give another path, or mend this one", 2)
  except KeyboardInterrupt:
    return _failed(args, "interrupted", 130)


def _failed(args, message: str, code: int) -> int:
  """Prints the line that says why, and returns the exit code; where there are several processes, all end here."""
  distributed.fail(message, code)
  print(f"gtr-jax {args.command}: {message}", file=sys.stderr)
  return code


def _message(error: Exception) -> str:
  """Without the lines that gin adds to an error that comes through what it has configured."""
  return str(error).partition("\n  In call to configurable")[0]


def _join_gin_flags(argv: list[str]) -> list[str]:
  """`--gin.NAME=VALUE` -> `--gin NAME=VALUE`, which argparse can collect."""
  out = []
  for arg in argv:
    out += ["--gin", arg.removeprefix("--gin.")] if arg.startswith("--gin.") else [arg]
  return out


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser("gtr-jax", description="T5 dual encoders for dense retrieval in JAX.",
                                   epilog=_EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("--version", action="version", version=f"gtr_jax {__version__}")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

  def command(name, run, help, description=""):
    p = commands.add_parser(name, help=help, description=description or help, allow_abbrev=False,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    p.set_defaults(run=run)
    return p

  p = command("prepare", _prepare, "make training data and collections from a source",
              "Writes a source's training pairs, vocabulary and collections below the data folder.")
  p.add_argument("source", choices=["pydoc"], help="pydoc: the documentation of the installed Python packages")
  _data_dir(p)
  p.add_argument("--vocabulary", help="a SentencePiece model to use instead of training one of 8,000 pieces")

  p = command("train", _train, "train a dual encoder as gin files say", _TRAIN_DESCRIPTION)
  p.add_argument("--gin_file", action="append", default=[], metavar="FILE",
                 help="a gin file, your own or one that comes with gtr_jax (runs/pretrain.gin); repeatable, later wins")
  p.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", dest="gin_bindings",
                 help="one binding, written --gin.NAME=VALUE; strings keep their quotes: --gin.MODEL_DIR=\"'runs/a'\"")
  p.add_argument("--gin_search_paths", default="", metavar="DIR,DIR", help="more folders to look for gin files in")
  p.add_argument("--list", action="store_true", help="list the gin files that come with gtr_jax, and stop")
  dry_run.add_arguments(p)
  _data_dir(p)
  _processes(p)

  p = command("encode", _encode, "embed a collection's documents into an embedding store",
              "Embeds a corpus in chunks; started again, it goes on at the first chunk that is missing.")
  _model(p)
  p.add_argument("--collection", required=True, help=_COLLECTION_HELP)
  p.add_argument("--output", required=True, help="the embedding store's folder")
  _empty_documents(p)
  _mesh(p)
  _processes(p)

  p = command("search", _search, "exact search in an embedding store",
              "With --queries and --output writes a TREC run; with --query answers that; else answers what you type.")
  _model(p)
  p.add_argument("--embeddings", required=True, help="an embedding store that `gtr-jax encode` wrote")
  p.add_argument("--query", action="append", metavar="TEXT", help="answer this query and stop; repeatable")
  p.add_argument("--queries", help="queries.jsonl: {\"_id\", \"text\"} a line")
  p.add_argument("--output", help="the TREC run to write")
  p.add_argument("--top_k", type=_positive, help="documents per query (default: 100 in a run, 5 when you type)")
  _mesh(p)
  _processes(p)

  p = command("evaluate", _evaluate, "nDCG@10, MRR@10, Recall@100 and MAP on collections",
              "Prints a table, and writes results.json and TREC runs below --output.")
  p.add_argument("--model", action="append", default=[], metavar="[NAME=]MODEL", help=_MODEL_HELP + "; repeatable")
  p.add_argument("--collection", action="append", required=True, help=_COLLECTION_HELP + "; repeatable")
  p.add_argument("--bm25", action="store_true", help="also BM25, in the same table (needs no model)")
  p.add_argument("--split", default="test", help="which qrels/SPLIT.tsv (default: test)")
  p.add_argument("--exclude_own_id", action="store_true",
                 help="never rank the document whose id is the query's own (ArguAna, Quora)")
  _empty_documents(p)
  p.add_argument("--output", required=True, help="folder for results.json, runs/ and embeddings/")
  _mesh(p)
  _processes(p)

  p = command("mine", _mine, "find hard negatives for training pairs with BM25",
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

  p = command("report", _report, "a markdown report with tables and plots",
              "Loss curves, nDCG per collection and stage, and the lengths of what is retrieved.")
  p.add_argument("--results", action="append", default=[], metavar="DIR", help="an evaluation's --output; repeatable")
  p.add_argument("--model_dir", action="append", default=[], metavar="DIR", help="a training run; repeatable")
  p.add_argument("--output", required=True, help="folder for report.md and its plots")

  p = command("demo", _demo, "the whole path on this machine in a few minutes",
              "Pretrains, mines negatives, fine-tunes, evaluates and searches, on the documentation of the installed\n"
              "Python packages. Prints every command that it runs, so that each can be run by hand.")
  p.add_argument("--output", default="demo", help="folder for everything that it writes; emptied first (default: demo)")
  return parser


_TRAIN_DESCRIPTION = """\
Trains as the gin files say, and goes on where a run of the same MODEL_DIR stopped.

  gtr-jax train --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin \\
      --gin.MIXTURE_OR_TASK_NAME="'my_task'" --gin.MIXTURE_OR_TASK_MODULE="'my_tasks'" \\
      --gin.MODEL_DIR="'runs/a'" --gin.BATCH_SIZE=512

ctrl-C or SIGTERM saves a checkpoint and stops; the same command continues from it."""


def _data_dir(p):
  p.add_argument("--data_dir", help="the data folder (default: $GTR_DATA_DIR, else ~/.cache/gtr_jax)")


def _model(p):
  p.add_argument("--model", required=True, help=_MODEL_HELP)


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


def _set_data_dir(args):
  if args.data_dir:
    from gtr_jax.data import root
    root.set_data_dir(args.data_dir)


def _join(args):
  """Joins the other processes, if there are any."""
  by_hand = [getattr(args, name, None) for name in ("coordinator_address", "num_processes", "process_id")]
  given = [value is not None for value in by_hand]
  if not any(given) and not getattr(args, "distributed", False):
    return
  if getattr(args, "dry_run", False):
    raise InputError("--dry_run runs in one process, whatever the run: leave --distributed, --coordinator_address, "
                     "--num_processes and --process_id out, and describe all devices with --described_devices")
  if args.distributed and any(given):
    raise InputError("give --distributed, or --coordinator_address, --num_processes and --process_id, not both")
  if args.distributed:
    cluster = distributed.find_cluster()
  else:
    if not all(given):
      raise InputError("--coordinator_address, --num_processes and --process_id go together: give all three, or "
                       "--distributed where the cluster says them")
    address, count, index = by_hand
    if not re.fullmatch(r".+:\d+", address) or int(address.rpartition(":")[2]) not in range(1, 65536):
      raise InputError(f"--coordinator_address {address}: give HOST:PORT, such as 10.0.0.1:9876")
    if not 0 <= index < count:
      raise InputError(f"--process_id {index}: of --num_processes {count} the first is 0, the last {count - 1}")
    cluster = distributed.Cluster(address, count, index)
  advice = "start all processes again" + _ADVICE.get(args.command, "")
  distributed.join(f"gtr-jax {args.command}", cluster, advice)
  if args.command != "train":  # It compares what its flags and gin files come to.
    own = ("run", "process_id", "coordinator_address")
    distributed.check_same({f"--{name}": value for name, value in vars(args).items() if name not in own})


def _prepare(args):
  _set_data_dir(args)
  from gtr_jax.data.prepare import pydoc
  pydoc.prepare(args.vocabulary)


def _train(args):
  # Until the loop listens, nothing needs saving, and an exception may be dropped where JAX calls back into Python.
  def leave(*_):
    os.write(2, b"\ngtr-jax train: interrupted before the first step\n")
    os._exit(130)

  before = signal.signal(signal.SIGINT, leave)
  try:
    return _train_interruptible(args)
  finally:
    signal.signal(signal.SIGINT, before)


def _train_interruptible(args):
  from gtr_jax import config
  if args.list:
    for path in sorted(config.configs_dir().rglob("*.gin")):
      print(path.relative_to(config.configs_dir()))
    return 0
  if not args.gin_file:
    raise InputError("give --gin_file, for instance --gin_file=models/t5_small.gin --gin_file=runs/pretrain.gin; "
                     "--list names those that come with gtr_jax")
  if dry_run.asked(args):
    return dry_run.run(args)
  _set_data_dir(args)
  sys.path.append(os.getcwd())  # Where MIXTURE_OR_TASK_MODULE may lie; `python -m gtr_jax` has it already.
  from gtr_jax import train
  from gtr_jax.training.loop import TrainingError
  config.parse(args.gin_file, args.gin_bindings, [p for p in args.gin_search_paths.split(",") if p])
  config_text = config.resolved(train.train)
  try:
    stopped_by = config.bound(train.train)(config_text=config_text)
  except TrainingError as e:
    return _failed(args, _message(e), 1)
  return 128 + stopped_by if stopped_by else 0


def _loaded(args, path):
  from gtr_jax.load import load_model
  from gtr_jax.partitioning import make_mesh
  return load_model(path, make_mesh(model=args.model_parallel))


def _encode(args):
  from gtr_jax.evaluation.collections import read_corpus
  from gtr_jax.load import check_model
  from gtr_jax.retrieval.encode import encode_corpus
  check_model(args.model)
  documents = read_corpus(args.collection, allow_empty_documents=args.allow_empty_documents)
  store = encode_corpus(_loaded(args, args.model), documents, args.output)
  _print(f"{store.shape[0]:,} documents, {store.shape[1]} numbers each, in {args.output}")


def _search(args):
  if bool(args.queries) != bool(args.output):
    raise InputError("--queries and --output go together: the queries of a file into a TREC run")
  if args.queries and args.query:
    raise InputError("give --query to see answers, or --queries to write a run, not both")
  if not all(query.strip() for query in args.query or ()):
    raise InputError("--query is empty")
  from gtr_jax.retrieval.encode import embed
  from gtr_jax.retrieval.search import Searcher, search_run
  from gtr_jax.retrieval.store import Store
  store = Store(args.embeddings)
  model = _loaded(args, args.model)
  store.check_model(model.weights_hash)
  searcher = Searcher(store, model.mesh)
  if args.queries:
    from gtr_jax.evaluation.collections import read_queries
    from gtr_jax.retrieval.runs import write_run
    ids, texts = read_queries(args.queries)
    distributed.check_same({"the hash of the queries": hashlib.sha256(repr((ids, texts)).encode()).hexdigest()})
    run = search_run(searcher, store.ids, ids, embed(model, texts, "query"), args.top_k or 100)
    if distributed.is_first():
      write_run(args.output, run, "gtr_jax")
    _print(f"{len(ids):,} queries, {min(args.top_k or 100, store.shape[0])} documents each, in {args.output}")
    return

  def answer(query):
    scores, rows = searcher.search(embed(model, [query], "query", progress=False), args.top_k or 5)
    for rank, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), 1):
      doc_id, title, text = store.document(int(row))
      shown = textwrap.shorten(f"{title} {text}".strip(), 240, placeholder=" ...")
      _print(f"{rank:3}  {score:.4f}  {doc_id}")
      _print(textwrap.fill(shown, 110, initial_indent="     ", subsequent_indent="     "))

  for query in args.query or ():
    _print(f"query: {query}")
    answer(query)
  if args.query:
    return
  _print(f"{store.shape[0]:,} documents; type a query, an empty line ends.")
  while query := distributed.from_first(lambda: _typed("query> ")):
    answer(query)


def _print(text: str) -> None:
  """Once, where there are several processes."""
  if distributed.is_first():
    print(text)


def _typed(prompt: str) -> str:
  try:
    return input(prompt).strip()
  except EOFError:
    return ""


def _evaluate(args):
  from gtr_jax.evaluation.evaluate import evaluate, tables
  from gtr_jax.partitioning import make_mesh
  models = {}
  for value in args.model:
    name, _, path = ("", "", value) if os.path.exists(value) else value.rpartition("=")
    name = name or os.path.basename(os.path.normpath(path))
    if name in models:
      raise InputError(f"two models are called {name}; name them: --model A={models[name]} --model B={path}")
    models[name] = path
  results = evaluate(models, args.collection, args.output, bm25=args.bm25, split=args.split,
                     mesh=make_mesh(model=args.model_parallel) if models else None,
                     exclude_own_id=args.exclude_own_id, allow_empty_documents=args.allow_empty_documents)
  _print(tables(results))


def _mine(args):
  from gtr_jax.retrieval.mine import mine_bm25
  if os.path.realpath(args.pairs) == os.path.realpath(args.output):
    raise InputError("--output would overwrite --pairs; give another file")
  if args.num_negatives > args.last_rank - args.first_rank + 1:
    raise InputError(f"--num_negatives {args.num_negatives}: ranks {args.first_rank} to {args.last_rank} have fewer")
  short = mine_bm25(args.pairs, args.output, query_field=args.query_field, passage_field=args.passage_field,
                    query_id_field=args.query_id_field, passage_id_field=args.passage_id_field,
                    num_negatives=args.num_negatives, first_rank=args.first_rank, last_rank=args.last_rank,
                    seed=args.seed)
  print(f"{args.output}; {short:,} pairs got fewer than {args.num_negatives} negatives")


def _report(args):
  from gtr_jax.evaluation.report import write_report
  print(write_report(args.output, results=args.results, model_dirs=args.model_dir))


def _demo(args):
  from gtr_jax import demo
  demo.run(args.output)
