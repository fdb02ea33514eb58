"""What a user says of a run from pairs."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.values.check import check, hints
from gtr_jax.values.ranges import Length, NonNegative, Positive, Range

BATCH_SIZE, EPOCHS = 128, 3
# GTR's (arXiv 2112.07899), and for random weights that which T5 began its pretraining with (arXiv 1910.10683).
LEARNING_RATE, RANDOM_LEARNING_RATE = 1e-3, 1e-2
LOSSES = {"in_batch": "@in_batch.InBatchLoss()", "ring": "@ring.RingLoss()"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What a user says of a run from pairs; None: what fits.

  Attributes:
    pairs: where the pairs are, and their fields.
    init: the model to start from, as for `gtr_jax.load`; or a size of `start.sizes()`, with random weights.
    output: MODEL_DIR.
    epochs: passes over the pairs; or
    steps: batches.
    batch_size: pairs in a batch.
    learning_rate: the highest, after a tenth of the steps, of Adafactor: relative to the weights.
    loss: of `LOSSES`.
    collections: test collections to measure retrieval on; the first decides which checkpoint is the best.
    early_stopping: stop after so many evaluations without a better one.
    validation_share: of the queries, to be held out.
    vocabulary: the SentencePiece model, where the model carries none, or for random weights.
    extra_ids: sentinels after its pieces.
    query_length: most tokens of a query.
    document_length: most tokens of a document.

  Raises:
    InputError: a value is not of its type or range, or two do not go together.
  """

  pairs: PairsJsonl
  init: str
  output: epath.PathLike
  epochs: Annotated[float, Range(above=0)] | None = None
  steps: Positive | None = None
  batch_size: Positive | None = None
  learning_rate: Annotated[float, Range(above=0)] | None = None
  loss: str = "in_batch"
  collections: Sequence[str] = ()
  early_stopping: Positive | None = None
  validation_share: Annotated[float, Range(0, below=1)] | None = None
  vocabulary: str | None = None
  extra_ids: NonNegative | None = None
  query_length: Length | None = None
  document_length: Length | None = None

  def __post_init__(self):
    for name, hint in hints(type(self)).items():  # type: ignore[arg-type]  # To mypy no class is hashable.
      check(getattr(self, name), hint, "eval" if name == "collections" else name)
    if self.epochs is not None and self.steps is not None:
      raise InputError("--epochs and --steps are two ways to say how long to train; give one of them")
    if self.loss not in LOSSES:
      raise InputError(f"--loss {self.loss}: give one of {', '.join(LOSSES)}")
