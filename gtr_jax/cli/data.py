"""`gtr-jax data`: looks at what can be trained on."""

import argparse
import contextlib
import itertools
import json
import sys
from typing import Any

from gtr_jax.cli import shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags

HELP = "look at training data: its examples, and its figures"
DESCRIPTION = """\
Shows what a run would be trained on, before it is:

  gtr-jax data show my.jsonl                                  # files, as `gtr-jax train --pairs` reads them
  gtr-jax data stats 'data/train-*.parquet' more.jsonl        # of several sources together
  gtr-jax data show msmarco --examples 3                      # what `gtr-jax prepare` wrote, by its name
  gtr-jax data show msmarco --dropped                         # and what it left out, by reason
  gtr-jax data show community_qa --module gtr_jax.tasks.community_qa     # a task or mixture of seqio
  gtr-jax data show my.jsonl --vocabulary spiece.model --query_length 32 --document_length 128   # pieces, and the cut
  gtr-jax data stats my.jsonl --vocabulary spiece.model --document_length 256 --plot lengths"""

_SHOWN = 5
_FIELDS = ("query", "passage", "negatives", "ignore")


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  commands = p.add_subparsers(dest="what", required=True, metavar="WHAT")
  show = commands.add_parser("show", help="examples, as text or as a model's pieces", allow_abbrev=False)
  stats = commands.add_parser("stats", help="counts, lengths, what is cut, what is there twice, how full rows will be",
                              allow_abbrev=False)
  for command in (show, stats):
    command.add_argument("sources", nargs="+", type=flags.path, metavar="SOURCE", help="files of pairs, as gtr-jax "
                         "prepare pairs reads them; the name or folder of prepared data; a task or mixture; or several")
    command.add_argument("--module", help="that registers the task or mixture, such as gtr_jax.tasks.msmarco")
    command.add_argument("--split", default="train", help="of prepared data and tasks (default: train)")
    command.add_argument("--vocabulary", type=flags.path, metavar="FILE", help="a SentencePiece model, to count and "
                         "show its tokens")
    command.add_argument("--query_length", type=flags.length, metavar="N", help="tokens at which queries are cut")
    command.add_argument("--document_length", type=flags.length, metavar="N", help="and passages")
    command.add_argument("--json", action="store_true", help="for machines")
    of_file = command.add_argument_group("fields of a file, where their names are not known")
    for name in _FIELDS:
      of_file.add_argument(f"--{name}", default="", metavar="FIELD,...")
    shared_flags.add_data_dir(command)
    shared_flags.add_quiet(command, argparse.SUPPRESS)
  show.add_argument("--examples", type=flags.positive, default=_SHOWN, metavar="N", help="so many (default: 5)")
  show.add_argument("--skip", type=flags.non_negative, default=0, metavar="N", help="begin behind so many")
  show.add_argument("--whole", action="store_true", help="all of long texts")
  show.add_argument("--dropped", action="store_true", help="of prepared data, examples of what was left out, by reason")
  stats.add_argument("--plot", type=flags.path, metavar="PATH", help="write PATH.png and PATH.svg: the lengths")


def run(args: argparse.Namespace) -> None:
  """Shows it. Raises InputError."""
  shared_flags.set_data_dir(args)
  if (args.query_length or args.document_length) and not args.vocabulary:
    raise InputError("--query_length and --document_length are in tokens: give --vocabulary, the SentencePiece model "
                     "that makes them, or leave them out")
  if args.what == "show" and args.dropped:
    _show_dropped(args)
    return
  from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl, field_names
  from gtr_jax.survey import examples
  pairs = PairsJsonl(tuple(args.sources), field_names(args.query), field_names(args.passage), args.negatives,
                     ignore=field_names(args.ignore))
  found = examples.find(args.sources, args.module, args.split, pairs)
  if named := next((name for name in _FIELDS if getattr(args, name) and not found.has_files), ""):
    raise InputError(f"--{named} is of fields of files; {', '.join(args.sources)} has none, leave it out")
  tokenizer = None
  if args.vocabulary:
    from gtr_jax.text.tokenizer import Tokenizer
    tokenizer = Tokenizer(args.vocabulary)
  if not args.json:
    print("\n".join([found.name, *(f"  {note}" for note in found.notes)]))
  (_show if args.what == "show" else _stats)(args, found, tokenizer)


def _show(args: argparse.Namespace, found: Any, tokenizer: Any) -> None:
  from gtr_jax.survey import show
  from gtr_jax.text.tokenizer import MOST_TOKENS
  lengths = {"query": args.query_length or MOST_TOKENS, "document": args.document_length or MOST_TOKENS}
  number = 0
  with contextlib.closing(found.read()) as read:
    for place, example in itertools.islice(read, args.skip, args.skip + args.examples):
      number += 1
      print(show.as_json(place, example) if args.json else "\n".join(
          show.as_text(place, example, tokenizer, lengths, args.whole)))
  said = show.left_out(found.counts)
  if not number:
    said.insert(0, f"no pair{f' behind the first {args.skip:,}' * bool(args.skip)}")
  for line in said:  # Beside the examples, of which there is one a line for machines.
    print(line, file=sys.stderr if args.json else sys.stdout)


def _show_dropped(args: argparse.Namespace) -> None:
  from gtr_jax.io import data_root, jsonl, tables
  from gtr_jax.prepare import manifests
  from gtr_jax.survey import show
  for source in args.sources:
    folder = data_root.resolve(source)
    if not folder.is_dir() and (folder.exists() or tables.looks_like_a_file(source)):
      raise InputError(f"{source}: --dropped is of prepared data; give the name of what gtr-jax prepare made of it, or "
                       "look at the file without --dropped, which says what is left out and why")
    counts, path = manifests.read(source)["counts"], folder / "dropped.jsonl"
    nothing = path.exists() and not path.stat().length
    rows = [] if nothing else [row for _, row, _ in jsonl.read_objects(path)]
    if len(args.sources) > 1 and not args.json:
      print(source)
    if nothing and not args.json:
      print("nothing was left out: " + ", ".join(f"{what} {counts[what]:,}" for what in ("read", "written")
                                                 if what in counts))
    for line in (map(json.dumps, rows) if args.json else show.dropped(rows, counts)):
      print(line)


def _stats(args: argparse.Namespace, found: Any, tokenizer: Any) -> None:
  from gtr_jax.io.bars import Bar
  from gtr_jax.survey import show, stats
  with contextlib.closing(found.read()) as read, Bar(None, "reading", " pairs", leave=False, delay=1) as bar:

    def examples():
      for _, example in read:
        yield example
        bar.update()

    limits = {"query": args.query_length, "document": args.document_length} if tokenizer else dict.fromkeys(
        ("query", "document"))
    measured = stats.measure(examples(), tokenizer, limits)
  if args.json:
    of_all = {"left_out": dict(found.counts.reasons), "broken_places": found.counts.places}
    print(json.dumps(stats.as_json(measured) | of_all, indent=2))
  else:
    print("\n".join(stats.as_lines(measured) + show.left_out(found.counts)))
  if args.plot:
    from gtr_jax.survey import plot
    plot.lengths(args.plot, measured)
