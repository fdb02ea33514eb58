"""`gtr-jax teach`: a teacher's vectors and scores beside prepared pairs."""

import argparse

from gtr_jax.cli import shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import flags

HELP = "add a teacher's vectors and scores to prepared pairs, to train a smaller model on"
DESCRIPTION = """\
Writes prepared data again under another name: the same pairs in the same order, each with what a teacher says of it.
A bi-encoder gives `vectors`, of the query, the passage and each negative; a cross-encoder gives `scores`, of the query
with the passage and with each negative.

  gtr-jax prepare pairs my_pairs.jsonl.gz --name mine
  gtr-jax teach --pairs mine --teacher models/all-MiniLM-L6-v2 --name mine_taught
  gtr-jax teach --pairs mine --cross_encoder models/ms-marco-MiniLM-L6-v2 --name mine_scored

A teacher is a folder that sentence-transformers loads, or a name on the Hugging Face hub (pip install
'gtr_jax[teachers]'), or a model that gtr-jax encode reads: a training run's MODEL_DIR, a T5. Its own prompts and its
own longest text hold, unless you say otherwise; what holds is said, and recorded in the manifest with a hash of the
teacher.

Interrupted or killed, the same command goes on behind the shards that are done. What is complete is left alone; other
pairs or another teacher need another --name. docs/teachers.md has the rest: Python functions as teachers, what other
programs have computed, the figures."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--pairs", required=True, type=flags.path, metavar="NAME",
                 help="what gtr-jax prepare wrote: its name in the data folder, or its folder")
  p.add_argument("--name", required=True, help="of the folder in the data folder to write")
  p.add_argument("--teacher", type=flags.path, metavar="MODEL", help="a bi-encoder, for vectors")
  p.add_argument("--cross_encoder", type=flags.path, metavar="MODEL",
                 help="a cross-encoder of sentence-transformers, for scores")
  p.add_argument("--batch_size", type=flags.positive, metavar="N",
                 help="texts, or pairs, that a teacher computes at once (default: 32 pairs; the more texts the shorter "
                 "they are)")
  group = p.add_argument_group("what --teacher reads")
  group.add_argument("--query_prompt", metavar="TEXT", help="put before queries (default: the model's own)")
  group.add_argument("--passage_prompt", metavar="TEXT",
                     help="put before passages and negatives (default: the model's own)")
  group.add_argument("--max_length", type=flags.length, metavar="N",
                     help="most tokens of a text, the rest is cut off (default: the model's own)")
  group.add_argument("--dtype", choices=["float32", "bfloat16"],
                     help="compute the teacher in it (default: float32; on TPUs and GPUs a model of gtr_jax bfloat16)")
  shared_flags.add_data_dir(p)
  shared_flags.add_tokenization(p)


def run(args: argparse.Namespace) -> None:
  """Teaches, and says what came of it. Raises InputError."""
  shared_flags.set_data_dir(args)
  if not args.teacher and not args.cross_encoder:
    raise InputError("give --teacher, a model that gives vectors, or --cross_encoder, one that gives scores, or both")
  tokenization = shared_flags.tokenization(args)
  for name in ("query_prompt", "passage_prompt", "max_length", "dtype", *tokenization.given()):
    if getattr(args, name) is not None and not args.teacher:
      raise InputError(f"--{name} is for --teacher; leave it out")
  source = _pairs(args.pairs)
  from gtr_jax.teachers import models, teach
  teacher = scorer = None
  if args.teacher:
    teacher = models.bi_encoder(args.teacher, query_prompt=args.query_prompt, passage_prompt=args.passage_prompt,
                                batch_size=args.batch_size, max_length=args.max_length, tokenization=tokenization,
                                dtype=args.dtype)
    print(f"teacher: {args.teacher}; {models.described_in_words(teacher)}")
  if args.cross_encoder:
    scorer = models.cross_encoder(args.cross_encoder, batch_size=args.batch_size)
    print(f"scores: {args.cross_encoder}")
  teach.teach(source, args.name, teacher=teacher, scorer=scorer)


def _pairs(path: str) -> str:
  """The folder of --pairs, whole. Raises InputError where it is none."""
  from gtr_jax.mining.pairs import prepared_folder
  from gtr_jax.prepare import manifests
  folder = prepared_folder(path)
  if folder is None:
    raise InputError(f"--pairs {path}: no prepared data; make them of files first: gtr-jax prepare pairs FILE --name "
                     "NAME, and give that name")
  manifests.read(str(folder))
  return str(folder)
