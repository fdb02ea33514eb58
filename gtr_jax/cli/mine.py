"""`gtr-jax mine`: hard negatives for training pairs."""

import argparse
import collections
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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

A second model looks at what was found: --margin and --max_score_ratio then compare its scores, and they are written as
a teacher's (`scores`), for the pair's passage and each negative:

  gtr-jax mine --model runs/first --pairs train.jsonl --output train_hard.jsonl \\
      --rescore sentence-transformers/gtr-t5-large

The passages' embeddings and the rankings are kept (--embeddings): a second call with other filters encodes and searches
nothing again, one with worse ranks searches, and one after an interruption goes on. docs/mining.md says what a corpus
of 8.8 million passages takes."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--pairs", type=flags.path, metavar="FILE",
                 help="training pairs: JSONL(.gz) or a table (.parquet, .arrow, .csv, .tsv, a folder of these), in any "
                 "form that gtr-jax prepare pairs reads; or the name or folder of what gtr-jax prepare wrote. Without "
                 "--collection, their passages are what is searched")
  p.add_argument("--collection", type=flags.path, metavar="DIR",
                 help="search this corpus: a folder in BEIR layout, or with MS MARCO's collection.tsv; or beir/NAME")
  p.add_argument("--split", help="without --pairs: the judgements whose relevant documents are the pairs (default: "
                 "train)")
  p.add_argument("--min_grade", type=flags.positive, metavar="N",
                 help="without --pairs: the least grade of a judgement that makes a document a pair's passage "
                 "(default: 1); one judged lower, but above 0, is no negative either")
  p.add_argument("--output", required=True, type=flags.path, metavar="FILE",
                 help="the JSONL to write, gzipped if it ends in .gz")
  p.add_argument("--model", type=flags.path,
                 help="rank with this model instead of BM25; in any form that `gtr-jax encode` reads")
  p.add_argument("--embeddings", type=flags.path, metavar="DIR", help="with --model: where the passages' embeddings "
                 "and the rankings are kept, one folder for each corpus and each model's weights (default: embeddings "
                 "beside --output)")
  fields = p.add_argument_group("fields of a pair", "They are found by their names, as gtr-jax prepare pairs does; "
                                "ids are those of query_id, and of passage_id or positive_id.")
  fields.add_argument("--query_field", metavar="NAME,...", help="several are joined with a space (default with "
                      "--passage_field: query)")
  fields.add_argument("--passage_field", metavar="NAME,...", help="(default with --query_field: positive)")
  fields.add_argument("--query_id_field", metavar="NAME", help="pairs with the same query id share their passages")
  fields.add_argument("--passage_id_field", metavar="NAME", help="passages with the same id are one, and with "
                      "--collection it is the id there")
  fields.add_argument("--answers_field", metavar="NAME", help="a string or a list of them: a passage that contains one "
                      "(case, punctuation and articles aside) is no negative")
  fields.add_argument("--ignore", default="", metavar="NAME,...", help="fields that mean nothing here, whatever their "
                      "names say")
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
  choice.add_argument("--rescore", type=flags.path, metavar="MODEL", help="score what is drawn with this model, in any "
                      "form that `gtr-jax encode` reads: these scores are compared, and written as a teacher's")
  choice.add_argument("--rescore_cross_encoder", type=flags.path, metavar="MODEL", help="likewise, with a "
                      "cross-encoder of sentence-transformers (pip install sentence-transformers)")
  choice.add_argument("--decontaminate", action="append", default=[], type=flags.path, metavar="COLLECTION",
                      help="leave out pairs that have what this collection tests, and draw no passage that has it, as "
                      "gtr-jax prepare does; repeatable")
  choice.add_argument("--seed", type=flags.seed, default=0, help="of the draw (default: 0)")
  p.add_argument("--allow_empty_documents", action="store_true",
                 help="keep documents of the collection with neither title nor text instead of refusing it")
  shared_flags.add_data_dir(p)
  shared_flags.add_tokenization(p)
  shared_flags.add_computing(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Mines, and says what came of it. Raises InputError."""
  shared_flags.set_data_dir(args)
  choice, prepared = check(args)
  args.pairs = os.fspath(prepared) if prepared else args.pairs
  from gtr_jax.io import atomic
  from gtr_jax.mining import mine, on_disk
  models = [path for path in (args.model, args.rescore) if path]
  tokenization = shared_flags.tokenization(args)
  if models:
    from gtr_jax.inference.load import check_model, for_several
    if len(models) > 1:
      tokenization = for_several(tokenization, models)
    for path in models:
      check_model(path, tokenization)
  read = _reader(args, prepared is not None)
  if args.pairs:
    _check_first(args, choice, next(iter(read()), None))  # Before the corpus, which may take minutes to read.
  rescorer = _rescorer(args, tokenization)
  with atomic.scratch_folder(args.output) as folder:
    unknown = 0
    if args.collection:
      protocol, documents, judged = _read_collection(args)
      unknown = _unknown_ids(args, read, on_disk.IdRows(documents.ids)) if args.pairs else 0
      ranker = _ranker(args, documents, protocol, tokenization)
      del documents  # A store has them, on disk.
      pairs = _with_documents(read(), ranker) if args.pairs else _judged(judged, ranker, args.min_grade or 1)
      gathered = on_disk.gather(pairs, folder, own_passages=False)
    else:
      gathered = on_disk.gather(read(), folder, own_passages=True)
      assert gathered.passages is not None
      ranker = _ranker(args, gathered.passages.documents, None, tokenization)
    if not gathered.num_pairs:
      raise InputError(f"{args.pairs or args.collection}: no pair in it whose passage answers its query")
    mined = mine.mine(gathered, ranker, args.output, choice, tested=_tested(args.decontaminate), rescorer=rescorer)
  said = [f"{args.output}: {mined.pairs:,} pairs, {mined.short:,} of which got fewer than {args.num_negatives} "
          "negatives"]
  if unknown:
    said.append(f"{unknown:,} have a passage id that {args.collection} does not have")
  if args.decontaminate:
    said.append(f"{mined.left_out:,} are left out, for they have what is tested")
  if args.model:
    said.append(ranker.kept.description())
  print_once("; ".join(said))


def _reader(args: argparse.Namespace, are_prepared: bool) -> Callable[[], Iterator[Any]]:
  """Gives the pairs of --pairs, anew with each call."""
  from gtr_jax.mining import pairs
  from gtr_jax.prepare.sources.pairs_jsonl import field_names
  if are_prepared:
    return lambda: pairs.prepared_pairs(args.pairs)
  query, passage = field_names(args.query_field or ""), field_names(args.passage_field or "")
  if query or passage:
    query, passage = query or ("query",), passage or ("positive",)
  fields = pairs.Fields(query, passage, args.query_id_field or "", args.passage_id_field or "",
                        args.answers_field or "", field_names(args.ignore))
  return lambda: pairs.read_pairs(args.pairs, fields)


def _check_first(args: argparse.Namespace, choice: Any, pair: Any) -> None:
  if (args.collection and not args.model and choice.compares_scores and not _rescores(args)
      and not args.passage_id_field and not (pair and pair.document_id)):
    raise InputError("--margin and --max_score_ratio compare with the score of the pair's own passage: say with "
                     "--passage_id_field which of --collection that is")


def _judged(judged: tuple[Any, Any, Any], ranker: Any, min_grade: int) -> Iterator[Any]:
  from gtr_jax.mining import pairs
  query_ids, queries, qrels = judged
  return pairs.judged_pairs(query_ids, queries, qrels, functools.partial(_document, ranker), min_grade)


def _with_documents(found: Iterator[Any], ranker: Any) -> Iterator[Any]:
  from gtr_jax.mining import pairs
  return pairs.with_documents(found, functools.partial(_document, ranker))


def _document(ranker: Any, doc_id: str) -> tuple[str, str] | None:
  row = ranker.row_of(doc_id)
  return None if row is None else ranker.passage(row)[1:]


def _tested(collections: Sequence[str]) -> Any:
  """What they test; None where there are none."""
  if not collections:
    return None
  from gtr_jax.prepare import decontaminate
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "tested.npz")
    decontaminate.write_tested(collections, path)
    return decontaminate.Tested(path)


def _unknown_ids(args: argparse.Namespace, read: Callable[[], Iterator[Any]], rows: Any) -> int:
  """How many pairs have a passage id that no document has. Raises InputError where more than half of them do."""
  name, count, unknown, first = args.passage_id_field or "passage id", 0, 0, ""
  for pair in read():
    if pair.document_id:
      count += 1
      if rows.get(pair.document_id) is None:
        unknown, first = unknown + 1, first or pair.document_id
  leave_out = "leave --passage_id_field out" if args.passage_id_field else (
      "say that they mean nothing here: --ignore passage_id,positive_id")
  if args.passage_id_field and not count:
    raise InputError(f"{args.pairs}: no pair has a {name!r}; name the field of their ids in {args.collection} with "
                     "--passage_id_field, or leave it out")
  if unknown > count / 2:
    raise InputError(f"{args.pairs}: unknown {name} {first!r}; it is not in {args.collection}, as for {unknown:,} of "
                     f"{count:,} pairs; give the collection that the ids are of, or {leave_out}")
  return unknown


def _rescores(args: argparse.Namespace) -> bool:
  return bool(args.rescore or args.rescore_cross_encoder)


def check(args: argparse.Namespace) -> tuple[Any, Any]:
  """The choice of negatives, and the folder of --pairs that are prepared data, else None. Raises InputError where flags
  do not go together; no pair is read."""
  from gtr_jax.mining.mine import Choice
  from gtr_jax.mining.pairs import prepared_folder
  if not args.pairs and not args.collection:
    raise InputError("give --pairs, training pairs as JSONL or a table, or --collection, a corpus with judgements, or "
                     "both")
  check_output(args.output, {"--pairs": args.pairs, "--collection": args.collection, "--model": args.model,
                             "--rescore": args.rescore, "--vocabulary": args.vocabulary})
  if os.path.isdir(args.output):
    raise InputError(f"--output {args.output}: is a folder; name the file to write, for instance "
                     f"{os.path.join(args.output, 'mined.jsonl')}")
  if args.pairs and args.min_grade:
    raise InputError("--min_grade is of the judgements of --collection; with --pairs, leave it out")
  if args.pairs and args.split:
    raise InputError("--split says which judgements of --collection are the pairs; with --pairs, leave it out")
  prepared = prepared_folder(args.pairs) if args.pairs else None
  for name in ("query_field", "passage_field", "query_id_field", "passage_id_field", "answers_field", "ignore"):
    if getattr(args, name) and (prepared or not args.pairs):
      without = "what gtr-jax prepare wrote has" if prepared else "the judgements of a collection have"
      raise InputError(f"--{name} is a field of --pairs; {without} none, leave it out")
  choice = Choice(args.num_negatives, args.first_rank, args.last_rank, args.margin, args.max_score_ratio, args.seed)
  if args.rescore and args.rescore_cross_encoder:
    raise InputError("--rescore and --rescore_cross_encoder each score what is drawn; leave one out")
  if args.model:
    return choice, prepared
  if args.embeddings:
    raise InputError("--embeddings keeps those of --model; BM25 has none, leave it out")
  if not _rescores(args) and (args.margin is not None and args.margin < 0
                              or args.max_score_ratio is not None and args.max_score_ratio > 1):
    raise InputError("BM25 knows the score of the pair's own passage only where it ranks high: give a --margin of at "
                     "least 0 and a --max_score_ratio of at most 1")
  return choice, prepared


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
  _check_grade(args, whole.qrels)
  return task.protocol, whole.documents, (whole.query_ids, whole.queries, whole.qrels)


def _check_grade(args: argparse.Namespace, qrels: Mapping[str, Mapping[str, int]]) -> None:
  """Raises InputError where no judgement is as high as asked for."""
  counts = collections.Counter(grade for grades in qrels.values() for grade in grades.values())
  if args.min_grade and args.min_grade > max(counts, default=0):
    there = ", ".join(f"{grade} ({count:,})" for grade, count in sorted(counts.items()))
    raise InputError(f"--min_grade {args.min_grade}: no judgement of {args.collection} is so high; the grades there "
                     f"are {there}; give one of them that is above 0")


def _rescorer(args: argparse.Namespace, tokenization: Any) -> Any:
  """Of the flags; None where nothing is rescored."""
  from gtr_jax.mining import rescore
  if args.rescore_cross_encoder:
    return rescore.CrossEncoderRescorer(args.rescore_cross_encoder)
  return (rescore.BiEncoderRescorer(shared_flags.load_model(args, args.rescore, tokenization)) if args.rescore
          else None)


def _ranker(args: argparse.Namespace, documents: Any, protocol: Any, tokenization: Any) -> Any:
  from gtr_jax.mining.rankers import Bm25Ranker, ModelRanker
  if not args.model:
    return Bm25Ranker(documents)
  from gtr_jax.retrieval.encode import encode_corpus
  model = shared_flags.load_model(args, args.model, tokenization)
  path = os.path.realpath(args.collection or args.pairs)
  name = os.path.basename(path).removesuffix(".gz").removesuffix(".jsonl")
  of_path = hashlib.sha256(path.encode()).hexdigest()[:6]  # There may be several of the name.
  folder = args.embeddings or os.path.join(os.path.dirname(args.output) or ".", "embeddings")
  lengths = (protocol.query_length, protocol.document_length) if protocol else (None, None)
  length = "" if lengths[1] in (None, model.lengths["document"]) else f"-{lengths[1]}"
  store = encode_corpus(model, documents, os.path.join(folder, f"{name}-{of_path}-{model.weights_hash[:12]}{length}"),
                        lengths[1])
  return ModelRanker(model, store, *lengths)
