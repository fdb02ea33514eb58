"""`gtr-jax train --pairs`: the flags of a run from pairs."""

import argparse
from typing import Any

from gtr_jax.cli import shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags

_NEEDED = ("pairs", "init", "output")
_OTHERS = ("query", "passage", "negatives", "ignore", "epochs", "steps", "batch_size", "learning_rate", "loss", "eval",
           "early_stopping", "validation_share", "vocabulary", "extra_ids", "query_length", "document_length")
# As sentence-transformers, transformers' Trainer and scripts around them call it.
_ELSEWHERE = {
    **dict.fromkeys(("lr", "peak_lr"), "--learning_rate"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "max_epochs"), "--epochs"),
    **dict.fromkeys(("max_steps", "num_steps"), "--steps"),
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size", "per_gpu_train_batch_size"), "--batch_size"),
    **dict.fromkeys(("model", "model_name", "model_name_or_path", "pretrained_model_name_or_path"), "--init"),
    **dict.fromkeys(("output_dir", "output_path", "model_dir", "save_dir"), "--output"),
    **dict.fromkeys(("data", "dataset", "dataset_name", "train_file", "train_data", "train_dataset"), "--pairs"),
    **dict.fromkeys(("eval_dataset", "eval_data"), "--eval"),
    **dict.fromkeys(("query_max_len", "q_max_len", "query_max_length"), "--query_length"),
    **dict.fromkeys(("passage_max_len", "p_max_len", "passage_max_length", "max_length", "max_seq_length",
                     "max_seq_len"), "--document_length"),
    **dict.fromkeys(("early_stopping_patience", "patience"), "--early_stopping"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "--gin.WARMUP_STEPS"),
    **dict.fromkeys(("mini_batch_size", "gradient_accumulation_steps"), "--gin.MICROBATCH_SIZE"),
    "eval_steps": "--gin.EVAL_PERIOD", "save_steps": "--gin.CHECKPOINT_PERIOD", "logging_steps": "--gin.LOG_PERIOD",
    "temperature": "--gin.TEMPERATURE", "seed": "--gin.RANDOM_SEED",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags."""
  if isinstance(parser, flags.Parser):
    parser.elsewhere = _ELSEWHERE
  group = parser.add_argument_group("on your pairs", "What is not given is chosen, and said: the run is in "
                                    "OUTPUT/config.gin as gin, and --gin_file and --gin. go on top.")
  group.add_argument("--pairs", nargs="+", action="extend", type=flags.path, metavar="FILE",
                     help=".jsonl of pairs, plain, .gz, .zst, .bz2 or .xz; or a table of them: .parquet, .arrow, .csv, "
                     ".tsv, a folder of these, or one that datasets' save_to_disk wrote; or one name of prepared data, "
                     "such as gtr-jax teach writes")
  group.add_argument("--init", type=flags.path, metavar="MODEL", help="the model to start from: " +
                     shared_flags.MODEL_HELP + "; or a size, such as t5_small, for RANDOM WEIGHTS")
  group.add_argument("--output", type=flags.path, metavar="DIR",
                     help="the folder of the run, for --model later; of a run of gin files, its MODEL_DIR")
  group.add_argument("--query", metavar="FIELD,...", help="fields of the query, where their names are not known; "
                     "several are joined with a space")
  group.add_argument("--passage", metavar="FIELD,...", help="fields of the passage; goes with --query")
  group.add_argument("--negatives", metavar="FIELD", help="field of the hard negatives, a text or a list")
  group.add_argument("--ignore", metavar="FIELD,...", help="fields that mean nothing here, whatever their names say, "
                     "such as a label of the topic")
  group.add_argument("--epochs", type=flags.above_0, metavar="N", help="passes over the pairs (default: 3)")
  group.add_argument("--steps", type=flags.positive, metavar="N", help="batches, instead of --epochs")
  group.add_argument("--batch_size", type=flags.positive, metavar="N",
                     help="pairs in a batch, all of them negatives of each other, whatever the memory (default: 128, "
                     "or all pairs)")
  group.add_argument("--learning_rate", type=flags.above_0, metavar="RATE",
                     help="the highest, of Adafactor, relative to the weights (default: 0.001; of RANDOM WEIGHTS 0.01)")
  group.add_argument("--loss", metavar="NAME",
                     help="in_batch (default), or ring: the same in memory linear in the batch")
  group.add_argument("--eval", action="append", type=flags.path, metavar="COLLECTION",
                     help="measure retrieval on a collection too (a folder in BEIR layout, or beir/NAME); repeatable: "
                     "the first decides which checkpoint is the best")
  group.add_argument("--early_stopping", type=flags.positive, metavar="N",
                     help="end after N evaluations without a better one; ten fit in a run")
  group.add_argument("--validation_share", type=flags.share_below_1, metavar="SHARE",
                     help="of the queries, to be held out (default: so many that 1,000 pairs are, at most a tenth)")
  shared_flags.add_tokenization(parser, " Random weights get a vocabulary of their own, trained on the pairs, unless "
                                "one is given.")


def given(args: argparse.Namespace) -> bool:
  """Whether the flags ask for a run from pairs. Beside a gin file, --output alone is MODEL_DIR."""
  if args.output is not None and args.gin_file and args.pairs is None and args.init is None:
    return False
  return any(getattr(args, name) is not None for name in _NEEDED)


def options(args: argparse.Namespace) -> Any:
  """The `from_pairs.options.Options` of the flags; None where it is no run from pairs. Raises InputError."""
  others = [name for name in _OTHERS if getattr(args, name) is not None]
  if not given(args):
    if others:
      raise InputError(f"--{others[0]} belongs to --pairs; a run of gin files is told by --gin.NAME=VALUE")
    if args.output is not None:
      args.gin_bindings.append(f"MODEL_DIR={args.output!r}")
    return None
  if missing := [name for name in _NEEDED if getattr(args, name) is None]:
    advice = {"pairs": "--pairs FILE, your pairs as lines of JSON or a table",
              "init": "--init MODEL, such as sentence-transformers/gtr-t5-base, or t5_small for random weights",
              "output": "--output DIR, the folder of the run"}
    raise InputError("a run from pairs needs " + "; and ".join(advice[name] for name in missing))
  from gtr_jax.from_pairs.options import Options
  from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl, field_names
  source = PairsJsonl(tuple(args.pairs), field_names(args.query or ""), field_names(args.passage or ""),
                      args.negatives or "", ignore=field_names(args.ignore or ""))
  same = ("init", "output", "epochs", "steps", "batch_size", "learning_rate", "early_stopping", "validation_share",
          "vocabulary", "extra_ids", "query_length", "document_length")
  return Options(pairs=source, loss=args.loss or "in_batch", collections=tuple(args.eval or ()),
                 **{name: getattr(args, name) for name in same})


def gin_text(options: Any, args: argparse.Namespace) -> str:
  """What `options` come to as the text of a gin file; nothing where there are none. Raises InputError."""
  if options is None:
    return ""
  from gtr_jax.from_pairs import plan
  return plan.gin_text(options, args.gin_file, args.gin_bindings, shared_flags.search_paths(args))
