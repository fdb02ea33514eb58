"""The command line. Every command imports what it needs when it runs, so that `--help` is quick."""

import hashlib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Sequence

from gtr_jax import arguments, distributed
from gtr_jax.data.prepare import command as prepare
from gtr_jax.errors import InputError
from gtr_jax.io import failures
from gtr_jax.io.paths import check_output
from gtr_jax.plan import command as dry_run

_ADVICE = {"train": "; training goes on from its last whole checkpoint",
           "encode": "; encoding goes on at the first chunk that is missing",
           "evaluate": "; what is measured is kept, and encoding goes on at the first chunk that is missing"}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code: 0 done, 2 wrong input, 130 interrupted."""
  argv = list(sys.argv[1:] if argv is None else argv)
  args = arguments.parser().parse_args(_join_gin_flags(argv))
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    return _run(args)
  except Exception as e:
    distributed.fail_unexpectedly(e)
    raise


def _run(args) -> int:
  try:
    _join(args)
    code = _COMMANDS[args.command](args) or 0
    distributed.leave()
    return code
  except InputError as e:
    return _failed(args, _message(e), 2)
  except KeyboardInterrupt:
    return _failed(args, "interrupted", 130)
  except Exception as e:  # A full disk, no permission, a folder where a file belongs: also in the types of libraries.
    if (line := failures.reason(e)) is None:
      raise
    return _failed(args, line, 2)


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


def _set_data_dir(args):
  if args.data_dir:
    from gtr_jax.io import data_root
    data_root.set_data_dir(args.data_dir)


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
    own = ("process_id", "coordinator_address")
    distributed.check_same({f"--{name}": value for name, value in vars(args).items() if name not in own})


def _prepare(args):
  _set_data_dir(args)
  prepare.run(args)


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
      if path.parent.name != "t5x":  # T5X reads those.
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


def _missing_of(args):
  from gtr_jax.model import Missing
  return Missing(args.vocabulary, args.extra_ids, args.query_length, args.document_length)


def _loaded(args, path):
  from gtr_jax.model import load_model
  from gtr_jax.partitioning import make_mesh
  return load_model(path, make_mesh(model=args.model_parallel), _missing_of(args))


def _convert(args):
  from gtr_jax.conversion import convert
  convert(args.source, args.output, args.to, missing=_missing_of(args), dtype=args.dtype, results=args.results)
  print(args.output)


def _encode(args):
  from gtr_jax.collections.collection import read_documents
  from gtr_jax.collections.protocol import Protocol, find_one
  from gtr_jax.model import check_model
  from gtr_jax.retrieval.encode import encode_corpus
  check_model(args.model, _missing_of(args))
  _set_data_dir(args)
  found = distributed.first_before_others(lambda: find_one(args.collection))
  protocol = Protocol(allow_empty_documents=args.allow_empty_documents).of(found)
  documents = read_documents(found.folder, allow_empty_documents=protocol.allow_empty_documents)
  store = encode_corpus(_loaded(args, args.model), documents, args.output)
  _print(f"{store.shape[0]:,} documents, {store.shape[1]} numbers each, in {args.output}")


def _search(args):
  if bool(args.queries) != bool(args.output):
    raise InputError("--queries and --output go together: the queries of a file into a TREC run")
  if args.queries and args.query:
    raise InputError("give --query to see answers, or --queries to write a run, not both")
  if args.output:
    check_output(args.output, {"--queries": args.queries, "--embeddings": args.embeddings, "--model": args.model,
                               "--vocabulary": args.vocabulary})
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
    from gtr_jax.collections.queries import read_queries
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
  if not args.collection and not args.suite:
    raise InputError("nothing to evaluate on: give --collection, a folder or beir/NAME, or --suite")
  import dataclasses

  from gtr_jax.collections.protocol import Protocol
  from gtr_jax.evaluation.evaluate import evaluate
  from gtr_jax.evaluation.results_file import tables
  from gtr_jax.io.data_root import data_dir
  from gtr_jax.model import Missing, for_several
  from gtr_jax.partitioning import make_mesh
  _set_data_dir(args)
  models = {}
  for name, path in args.model:
    name = name or os.path.basename(os.path.normpath(path))
    if name in models:
      raise InputError(f"two models are called {name}; name them: --model A={models[name]} --model B={path}")
    models[name] = path
  missing = Missing(args.vocabulary, args.extra_ids)
  if len(models) > 1 or not missing.given():
    missing = for_several(missing, models.values())
  # Lengths hold for every model here; a model that has none is also loaded with them.
  lengths = {"query_length": args.query_length, "document_length": args.document_length}
  protocol = Protocol(args.split, args.exclude_own_id, similarities=tuple(args.similarity),
                      allow_empty_documents=args.allow_empty_documents, **lengths)
  results = evaluate(models, args.collection, args.output, bm25=args.bm25, suite=args.suite, data_root=data_dir(),
                     protocol=protocol, mesh=make_mesh(model=args.model_parallel) if models else None,
                     missing=dataclasses.replace(missing, **lengths))
  _print(tables(results))


def _mine(args):
  from gtr_jax.mining import command
  _set_data_dir(args)
  _print(command.run(args, _missing_of(args)))


def _sweep(args):
  from gtr_jax.sweep import command
  return command.run(args)


def _report(args):
  from gtr_jax.evaluation.report import write_report
  print(write_report(args.output, results=args.results, model_dirs=args.model_dir, sweeps=args.sweep))


def _demo(args):
  from gtr_jax import demo
  demo.run(args.output)


_COMMANDS = {"prepare": _prepare, "train": _train, "encode": _encode, "search": _search, "evaluate": _evaluate,
             "convert": _convert, "mine": _mine, "sweep": _sweep, "report": _report, "demo": _demo}
