"""`gtr-jax prepare SOURCE`: training data from raw downloads. A source's module is imported when it is asked for."""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from gtr_jax.cli import shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags

HELP = "make training data from raw downloads"
DESCRIPTION = """\
Turns a source's raw files into shuffled TFRecord shards in DATA_DIR/NAME, with a manifest: counts, settings, hashes of
the inputs. Interrupted or killed, the same command goes on where it stopped, and the bytes are the same.

  gtr-jax prepare reddit RS_2019-*.zst RC_2019-*.zst --decontaminate beir/scifact
  gtr-jax prepare stack_exchange dumps/*.7z --without reddit
  gtr-jax prepare pairs my_pairs.jsonl.gz --name my_pairs --validation_share 0.01
  gtr-jax prepare pairs my_pairs.jsonl.gz --name my_pairs --dry_run

`gtr-jax prepare SOURCE --help` explains each. A task reads the result: add_pair_task("my_pairs", prepared("my_pairs"),
...). Memory does not grow with the input: some 200 MB for each worker."""

# Source -> module with `add_arguments(parser)` and `source(args) -> Source`, and what it is.
SOURCES = {
    "reddit": ("reddit", "posts and comments of Reddit, from dumps (RS_*.zst, RC_*.zst)"),
    "stack_exchange": ("stack_exchange", "questions and answers of Stack Exchange sites, from dumps (Posts.xml, .7z)"),
    "pairs": ("pairs_jsonl", "pairs as sentence-transformers and others publish them: JSONL, Parquet, Arrow, CSV"),
    "msmarco": ("msmarco", "MS MARCO passages: queries, judgements, hard negatives in every published form"),
    "rocketqa": ("rocketqa", "MS MARCO and Natural Questions with RocketQA's denoised negatives"),
    "dpr": ("dpr", "Natural Questions, TriviaQA and SQuAD as DPR publishes them"),
    "natural_questions": ("natural_questions", "Natural Questions as Google publishes it, with its long answers"),
    "nq_open": ("nq_open", "NQ-open: questions, answers, a run, and a table of passages"),
    "beir": ("beir_pairs", "training judgements of a collection in BEIR layout"),
    "ir_datasets": ("ir_datasets_pairs", "training judgements of a data set of the package ir_datasets"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """A parser for each source."""
  sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE", parser_class=_SourceParser)
  pydoc = sources.add_parser("pydoc", help="the documentation of the installed Python packages, with collections",
                             module=None, allow_abbrev=False)
  pydoc.add_argument("--vocabulary", type=flags.path,
                     help="a SentencePiece model to use instead of training one of 8,000 pieces")
  shared_flags.add_data_dir(pydoc)
  shared_flags.add_quiet(pydoc, argparse.SUPPRESS)
  for name, (module, what) in SOURCES.items():
    source = sources.add_parser(name, help=what, description=f"Prepares {name}: {what}.", module=module,
                                allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = source.add_argument_group("every source")
    default = {"beir": "beir_ and the folder's name", "ir_datasets": "ir_datasets_ and the name there"}.get(name, name)
    group.add_argument("--name", help=f"of the folder in the data folder (default: {default})")
    shared_flags.add_data_dir(group)
    shared_flags.add_quiet(group, argparse.SUPPRESS)  # `gtr-jax prepare --quiet SOURCE` sets it too.
    group.add_argument("--validation_share", type=flags.share_below_1, default=0.0, metavar="SHARE",
                       help="make this share of the queries, drawn by a hash, the validation split; of reddit and "
                       "stack_exchange, whole threads and questions (default: 0)")
    group.add_argument("--without", action="append", default=[], type=flags.path, metavar="NAME",
                       help="drop pairs that this prepared data has; repeatable")
    group.add_argument("--decontaminate", action="append", default=[], type=flags.path, metavar="COLLECTION",
                       help="train on nothing that asks a test or dev query of this collection, in the same or nearly "
                       "the same words, has one of 6 words or more within it, or 13 words in a row of one or of a "
                       "document judged relevant; a folder in BEIR layout, also below the data folder (beir/scifact); "
                       "repeatable")
    group.add_argument("--language", default="en" if name == "reddit" else "any", metavar="CODE",
                       help="drop pairs whose query or passage is in another language, as py3langid guesses it: en, "
                       "de, ...; any: none (default: %(default)s)")
    group.add_argument("--near_duplicates", action="store_true",
                       help="drop pairs whose query and passage are nearly those of another pair: each shares 0.8 of "
                       "its runs of 8 words (of a shorter text all words). One of them stays, a held-out one first")
    group.add_argument("--keep_parts", action="store_true",
                       help="keep what was read of the files in DATA_DIR/NAME.tmp/read, about as large as the result: "
                       "with other files, the next preparation of this name (and with this flag) reads only the new "
                       "ones")
    group.add_argument("--dry_run", action="store_true",
                       help="look at the first thousand lines of each file: what is taken for what, what is dropped "
                       "and why, three examples, about how much will come of all; write nothing")
    group.add_argument("--max_broken", type=flags.share, default=0.001, metavar="SHARE",
                       help="stop where more of the lines are broken; fewer than 10 never stop it (default: 0.001)")
    group.add_argument("--workers", type=flags.positive, metavar="N",
                       help="processes (default: one for each core)")
    group.add_argument("--runner", metavar="RUNNER",
                       help="run as an Apache Beam pipeline instead: direct, dataflow, ... (needs gtr_jax[beam])")
    group.add_argument("--beam", action="append", default=[], metavar="OPTION",
                       help="an option of that runner, as --beam=--region=europe-west4; repeatable")


class _SourceParser(flags.Parser):
  """Asks the source's module for its flags once its name has been given."""

  def __init__(self, *args: Any, module: str | None, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._module = module

  def parse_known_args(self, args=None, namespace=None):
    if self._module:
      _module(self._module).add_arguments(self)
      self._module = None
    return super().parse_known_args(args, namespace)


def _module(name: str) -> Any:
  return importlib.import_module(f"gtr_jax.prepare.sources.{name}")


def run(args: argparse.Namespace, say: Callable[[str], None] = print) -> None:
  """Prepares, and says what came of it. Raises InputError."""
  shared_flags.set_data_dir(args)
  if args.source == "pydoc":
    from gtr_jax.demo import corpus
    corpus.prepare(args.vocabulary)
    return
  if args.beam and not args.runner:
    raise InputError("--beam belongs to --runner; add that, or leave it out")
  from gtr_jax.prepare import manifests, preview
  settings = manifests.Settings(args.name, args.validation_share, tuple(args.without), tuple(args.decontaminate),
                                args.near_duplicates, args.language)
  if args.dry_run:
    with preview.nothing_written():
      preview.show(_source(args, say), settings, args.workers, say)
    return
  source = _source(args, say)
  if args.runner:
    if args.keep_parts:
      raise InputError("--keep_parts: a pipeline of --runner keeps nothing; leave one of the two out")
    from gtr_jax.prepare import beam
    folder = beam.prepare(source, settings, args.runner, args.beam, max_broken=args.max_broken, say=say)
  else:
    from gtr_jax.prepare import engine
    folder = engine.prepare(source, settings, processes=args.workers, max_broken=args.max_broken,
                            keep_parts=args.keep_parts or None, say=say)
  _tell(manifests.read(folder), say)


def _source(args: argparse.Namespace, say: Callable[[str], None]) -> Any:
  """The source that the flags describe; what is taken for what is said."""
  source = _module(SOURCES[args.source][0]).source(args)
  if args.source == "pairs":
    source.parts()  # Which says what is wrong.
    for line in source.fields():
      say(f"fields: {line}")
  return source


def _tell(manifest: dict[str, Any], say: Callable[[str], None]) -> None:
  """What was read and written, what was dropped, and where lines are broken."""
  listed = lambda counts: ", ".join(f"{what} {n:,}" for what, n in counts.items())  # noqa: E731
  counts = dict(manifest["counts"])
  read, written, broken = (counts.pop(what) for what in ("read", "written", "broken"))
  say(f"read {read:,}, written {written:,} ({listed(manifest['examples'])})")
  if counts:
    say(f"dropped or counted: {listed(counts)}")
  if broken:
    say(f"broken lines: {broken:,}, the first:")
    for place in manifest["broken_places"][:3]:
      say(f"  {place}")
  asked = any(manifest["filters"].get(name) for name in ("validation_share", "validation", "validation_qrels"))
  if asked and "validation" not in manifest["examples"]:
    say("the validation split is empty: nothing that was to be in it is left")
