"""`gtr-jax mine`: hard negatives for training pairs."""

import argparse
import collections
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gtr_jax.cli import process_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags
from gtr_jax.io.paths import check_output
from gtr_jax.parallel.processes import first_before_others, print_once

HELP = "find hard negatives for training pairs, with BM25 or a model"
DESCRIPTION = """\
Writes training pairs again, each with `negatives`: passages that rank high for its query and do not answer it.

The first negatives come from BM25, among the passages of all pairs:

  gtr-jax mine --pairs train.jsonl --output train_bm25.jsonl --last_rank 100 --num_negatives 8

Harder ones come from a model, once one is trained (its search runs on all devices). Among what it ranks high are many
passages that do answer: --max_score_ratio leaves out what it scores almost as high as the pair's own passage,
--answers_field what contains an answer string:

  gtr-jax mine --model runs/first --pairs train.jsonl --output train_hard.jsonl --last_rank 200 --num_negatives 8 \\
      --max_score_ratio 0.95 --answers_field answers

From a corpus instead of the passages of the pairs: a folder in BEIR layout, or MS MARCO's collection.tsv. Without
--pairs, the pairs are what it judges relevant (qrels/train.tsv, or queries.train.tsv and qrels.train.tsv):

  gtr-jax mine --model runs/first --collection data/msmarco --output msmarco_hard.jsonl --last_rank 200

The passages' embeddings are kept (--embeddings), so that a second call, or one after an interruption, encodes none
again. docs/mining.md says what a corpus of 8.8 million passages takes."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--pairs", type=flags.path, metavar="FILE",
                 help="JSONL(.gz) of training pairs, or a table of them (.parquet, .arrow, .csv, .tsv, a folder of "
                 "these); without --collection, their passages are what is searched")
  p.add_argument("--collection", type=flags.path, metavar="DIR",
                 help="search this corpus: a folder in BEIR layout, or with MS MARCO's collection.tsv; or beir/NAME")
  p.add_argument("--split", help="without --pairs: the judgements whose relevant documents are the pairs (default: "
                 "train)")
  p.add_argument("--min_grade", type=flags.positive, metavar="N",
                 help="without --pairs: the least grade of a judgement whose document is a pair's passage (default: 1)")
  p.add_argument("--output", required=True, type=flags.path, metavar="FILE",
                 help="the JSONL to write, gzipped if it ends in .gz")
  p.add_argument("--model", type=flags.path,
                 help="rank with this model instead of BM25; in any form that `gtr-jax encode` reads")
  p.add_argument("--embeddings", type=flags.path, metavar="DIR", help="with --model: where the passages' embeddings "
                 "are kept, one folder for each corpus and each model's weights (default: embeddings beside --output)")
  fields = p.add_argument_group("fields of a pair")
  fields.add_argument("--query_field", metavar="NAME", help="(default: query)")
  fields.add_argument("--passage_field", metavar="NAME", help="(default: positive)")
  fields.add_argument("--query_id_field", metavar="NAME", help="pairs with the same query id share their passages")
  fields.add_argument("--passage_id_field", metavar="NAME", help="passages with the same id are one, and with "
                      "--collection it is the id there; also writes `negative_ids`")
  fields.add_argument("--answers_field", metavar="NAME", help="a string or a list of them: a passage that contains one "
                      "(case, punctuation and articles aside) is no negative")
  choice = p.add_argument_group("which passages are negatives")
  choice.add_argument("--num_negatives", type=flags.positive, default=1, metavar="N",
                      help="so many for each pair, drawn at random, reproducibly (default: 1)")
  choice.add_argument("--first_rank", type=flags.positive, default=1, metavar="A", help="the best rank (default: 1)")
  choice.add_argument("--last_rank", type=flags.positive, default=100, metavar="B",
                      help="the worst rank (default: 100)")
  choice.add_argument("--margin", type=flags.number, metavar="X", help="only with scores of at most the score of the "
                      "pair's own passage less X")
  choice.add_argument("--max_score_ratio", type=flags.above_0, metavar="X",
                      help="only with scores of at most X times the score of the pair's own passage")
  choice.add_argument("--decontaminate", action="append", default=[], type=flags.path, metavar="COLLECTION",
                      help="leave out pairs that have what this collection tests, and draw no passage that has it, as "
                      "gtr-jax prepare does; repeatable")
  choice.add_argument("--seed", type=flags.seed, default=0, help="of the draw (default: 0)")
  p.add_argument("--allow_empty_documents", action="store_true",
                 help="keep documents of the collection with neither title nor text instead of refusing it")
  shared_flags.add_data_dir(p)
  shared_flags.add_tokenization(p)
  shared_flags.add_mesh(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Mines, and says what came of it. Raises InputError."""
  shared_flags.set_data_dir(args)
  choice = check(args)
  from gtr_jax.mining import mine as mining
  fields = mining.Fields(args.query_field or "query", args.passage_field or "positive", args.query_id_field,
                         args.passage_id_field, args.answers_field)
  if args.model:
    from gtr_jax.inference.load import check_model
    check_model(args.model, shared_flags.tokenization(args))

  def read_pairs():
    return mining.read_pairs(args.pairs, fields, own_passages=not args.collection)

  id_of: Callable[[str], str | None] | None = None
  unknown, protocol = 0, None
  if args.collection:
    if args.pairs:
      next(read_pairs())  # Raises before the corpus, which may take minutes to read.
    protocol, documents, judged = _read_collection(args)
    if args.passage_id_field:
      unknown = _unknown_ids(args, (pair.query.passage_id for pair in read_pairs()), documents.ids)
    id_of = str if args.passage_id_field or not args.pairs else None
  else:
    documents, ids = mining.passages_of(read_pairs(), args.passage_id_field)
    id_of = ids.get if args.passage_id_field else None
  if args.model:
    ranker = _model_ranker(args, documents, protocol)
    del documents  # The store has them, on disk.
  else:
    from gtr_jax.mining.rankers import Bm25Ranker
    ranker = Bm25Ranker(documents)
  if not args.pairs:
    query_ids, queries, qrels = judged
    pairs = mining.judged_pairs(ranker, query_ids, queries, qrels, args.min_grade or 1)
  mined = mining.mine(read_pairs if args.pairs else lambda: pairs, ranker, args.output, choice, id_of=id_of,
                      tested=_tested(args.decontaminate))
  said = [f"{args.output}: {mined.pairs:,} pairs, {mined.short:,} of which got fewer than {args.num_negatives} "
          "negatives"]
  if unknown:
    said.append(f"{unknown:,} have a passage id that {args.collection} does not have")
  if args.decontaminate:
    said.append(f"{mined.left_out:,} are left out, for they have what is tested")
  print_once("; ".join(said))


def _tested(collections: Sequence[str]) -> Any:
  """What they test; None where there are none."""
  if not collections:
    return None
  from gtr_jax.prepare import decontaminate
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "tested.npz")
    decontaminate.write_tested(collections, path)
    return decontaminate.Tested(path)


def _unknown_ids(args: argparse.Namespace, of_pairs: Iterable[str | None], document_ids: Sequence[str]) -> int:
  """How many pairs have a passage id that no document has. Raises InputError where more than half of them do."""
  counts = collections.Counter(passage_id for passage_id in of_pairs if passage_id is not None)
  whole = counts.total()
  if not whole:
    raise InputError(f"{args.pairs}: no pair has a {args.passage_id_field!r}; name the field of their ids in "
                     f"{args.collection} with --passage_id_field, or leave it out")
  for document_id in document_ids:
    counts.pop(document_id, None)
  if counts.total() > whole / 2:
    raise InputError(f"{args.pairs}: unknown {args.passage_id_field} {next(iter(counts))!r}; it is not in "
                     f"{args.collection}, as for {counts.total():,} of {whole:,} pairs; give the collection that the "
                     "ids are of, or leave --passage_id_field out")
  return counts.total()


def check(args: argparse.Namespace) -> Any:
  """The choice of negatives. Raises InputError where flags do not go together; nothing is read."""
  if not args.pairs and not args.collection:
    raise InputError("give --pairs, training pairs as JSONL or a table, or --collection, a corpus with judgements, or "
                     "both")
  if args.pairs and os.path.exists(os.path.join(args.pairs, "manifest.json")):
    raise InputError(f"--pairs {args.pairs}: what gtr-jax prepare wrote (TFRecord); mine reads pairs as JSONL: give "
                     "the file that they were prepared from")
  check_output(args.output, {"--pairs": args.pairs, "--collection": args.collection, "--model": args.model,
                             "--vocabulary": args.vocabulary})
  if os.path.isdir(args.output):
    raise InputError(f"--output {args.output}: is a folder; name the file to write, for instance "
                     f"{os.path.join(args.output, 'mined.jsonl')}")
  if args.pairs and args.min_grade:
    raise InputError("--min_grade is of the judgements of --collection; with --pairs, leave it out")
  if args.pairs and args.split:
    raise InputError("--split says which judgements of --collection are the pairs; with --pairs, leave it out")
  for name in ("query_field", "passage_field", "query_id_field", "passage_id_field", "answers_field"):
    if getattr(args, name) and not args.pairs:
      raise InputError(f"--{name} is a field of --pairs; the judgements of a collection have none, leave it out")
  from gtr_jax.mining.mine import Choice
  choice = Choice(args.num_negatives, args.first_rank, args.last_rank, args.margin, args.max_score_ratio, args.seed)
  if args.model:
    return choice
  if args.embeddings:
    raise InputError("--embeddings keeps those of --model; BM25 has none, leave it out")
  if args.margin is not None and args.margin < 0 or args.max_score_ratio is not None and args.max_score_ratio > 1:
    raise InputError("BM25 knows the score of the pair's own passage only where it ranks high: give a --margin of at "
                     "least 0 and a --max_score_ratio of at most 1")
  by_score = args.margin is not None or args.max_score_ratio is not None
  if by_score and args.collection and args.pairs and not args.passage_id_field:
    raise InputError("--margin and --max_score_ratio compare with the score of the pair's own passage: say with "
                     "--passage_id_field which of --collection that is")
  return choice


def _read_collection(args: argparse.Namespace) -> tuple[Any, Any, Any]:
  """The protocol, the documents, and without --pairs (query ids, queries, judgements)."""
  from gtr_jax.collections.collection import read_documents
  from gtr_jax.collections.protocol import Protocol, find_one, read_task
  protocol = Protocol(args.split or "train", allow_empty_documents=args.allow_empty_documents)
  found = first_before_others(lambda: find_one(args.collection))
  if args.pairs:
    protocol = protocol.of(found)
    return protocol, read_documents(found.folder, allow_empty_documents=protocol.allow_empty_documents), None
  task = read_task(found, protocol)
  whole = task.collection
  return task.protocol, whole.documents, (whole.query_ids, whole.queries, whole.qrels)


def _model_ranker(args: argparse.Namespace, documents: Any, protocol: Any) -> Any:
  from gtr_jax.mining.rankers import ModelRanker
  from gtr_jax.retrieval.encode import encode_corpus
  model = shared_flags.load_model(args)
  path = os.path.realpath(args.collection or args.pairs)
  name = os.path.basename(path).removesuffix(".gz").removesuffix(".jsonl")
  of_path = hashlib.sha256(path.encode()).hexdigest()[:6]  # There may be several of the name.
  folder = args.embeddings or os.path.join(os.path.dirname(args.output) or ".", "embeddings")
  lengths = (protocol.query_length, protocol.document_length) if protocol else (None, None)
  length = "" if lengths[1] in (None, model.lengths["document"]) else f"-{lengths[1]}"
  store = encode_corpus(model, documents, os.path.join(folder, f"{name}-{of_path}-{model.weights_hash[:12]}{length}"),
                        lengths[1])
  return ModelRanker(model, store, *lengths)
