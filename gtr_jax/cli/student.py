"""`gtr-jax student`: a small T5 that begins where a teacher's vectors of the vocabulary lead."""

import argparse

from gtr_jax.cli import shared_flags
from gtr_jax.io import flags

HELP = "make a small T5 that begins from a teacher's vectors of its vocabulary, to train on what the teacher says"
DESCRIPTION = """\
Writes a T5 of one to a few layers with the vocabulary of T5, as a sentence-transformers folder. Its token embeddings
begin as the teacher's vectors of the pieces, rarer ones weighted higher, and are fitted to what the teacher says of
the texts of --pairs; its layers add nothing yet: its embedding of a text is the sum of those of its pieces, in the
teacher's own space. That is a model already, and a far better start than random weights:

  gtr-jax teach --pairs mine --teacher models/all-MiniLM-L6-v2 --name mine_taught
  gtr-jax student --teacher models/all-MiniLM-L6-v2 --pairs mine_taught --vocabulary spiece.model --output student
  gtr-jax train --pairs mine_taught --init student --output runs/student \\
      --gin.LOSS="@embedding_distillation.EmbeddingDistillationLoss()"

Its vectors are as wide as the teacher's, so that no map is needed, and one may be searched with the other."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--teacher", required=True, type=flags.path, metavar="MODEL",
                 help="a bi-encoder, as for gtr-jax teach")
  p.add_argument("--vocabulary", required=True, type=flags.path, metavar="FILE",
                 help="the student's SentencePiece model, whose pieces are in order of frequency, such as T5's")
  p.add_argument("--pairs", nargs="+", metavar="NAME",
                 help="prepared data that gtr-jax teach --teacher wrote with this teacher; without them the embeddings "
                 "are the teacher's vectors of the pieces as they are")
  shared_flags.add_data_dir(p)
  p.add_argument("--extra_ids", type=flags.non_negative, default=100, metavar="N",
                 help="sentinels after its pieces (default: 100, as T5)")
  p.add_argument("--layers", type=flags.positive, default=2, metavar="N", help="of the student (default: 2)")
  p.add_argument("--dim", type=flags.positive, metavar="N",
                 help="its width, a multiple of 64 (default: that of the teacher's vectors)")
  p.add_argument("--query_length", type=flags.length, default=64, metavar="N",
                 help="most tokens of a query (default: 64)")
  p.add_argument("--document_length", type=flags.length, default=256, metavar="N",
                 help="most tokens of a document (default: 256)")
  p.add_argument("--seed", type=flags.seed, default=0, metavar="N", help="of what is drawn (default: 0)")
  p.add_argument("--output", required=True, type=flags.path, metavar="DST", help="the folder to write")


def run(args: argparse.Namespace) -> None:
  """Makes it. Raises InputError."""
  from gtr_jax.formats.convert import new_place
  from gtr_jax.teachers import models, static_vectors, student
  from gtr_jax.text.tokenizer import Tokenizer
  new_place(args.output, student.FORM, None)  # Before a teacher is asked for thousands of vectors.
  vocabulary = Tokenizer(args.vocabulary, args.extra_ids)
  sizes = student.Sizes(args.layers, args.dim)
  texts = None
  if args.pairs:
    shared_flags.set_data_dir(args)
    texts = [static_vectors.taught_texts(args.pairs, split, vocabulary, args.query_length, args.document_length)
             for split in ("train", "validation")]
  static = static_vectors.of_pieces(models.bi_encoder(args.teacher), vocabulary.pieces())
  if texts:
    train, validation = texts
    before, static = static, static_vectors.fitted(static, train, args.seed)
    for what, some in (("", train), (" held out", validation)):
      if some.tokens:
        print(f"{len(some.tokens):,} texts{what}: cosine with the teacher "
              f"{static_vectors.mean_cosine(static, some):.3f} ({static_vectors.mean_cosine(before, some):.3f} before)")
  made, parameters = student.write_student(static, vocabulary, args.output, sizes, query_length=args.query_length,
                                           document_length=args.document_length, seed=args.seed)
  print(f"{args.output}: {args.layers} layers, {made.config.emb_dim} wide, {parameters:,} parameters, vectors of "
        f"{made.dim}, in the space of those of {args.teacher}")
