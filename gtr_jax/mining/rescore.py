"""A second model's scores of what was found: of (query, passage), to compare, and to write as a teacher's."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import Model
from gtr_jax.text.same_text import hash_key

_KEPT_BYTES = 1 << 30  # of passages' embeddings


class Rescorer(Protocol):
  """Scores of pairs of texts.

  Attributes:
    pairs_at_once: training pairs whose candidates are scored together.
    takes_all_processes: whether all processes of a run compute a score together, and so have to ask for the same.
  """

  pairs_at_once: int
  takes_all_processes: bool

  def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """float32 `[pairs]`, of (query, passage)."""


class BiEncoderRescorer:
  """A dual encoder: the inner product of the embeddings of query and passage. Each text is encoded once, of passages
  as long as their embeddings stay in memory, up to 1 GiB."""

  pairs_at_once = 8192
  takes_all_processes = True

  def __init__(self, model: Model):
    self._model = model
    self._passages: dict[int, np.ndarray] = {}  # By a hash of the text.
    self._most = _KEPT_BYTES // (4 * model.encoder.dim)

  def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    queries = list(dict.fromkeys(query for query, _ in pairs))
    of_query = dict(zip(queries, self._embed(queries, "query"), strict=True))
    passages = {hash_key(passage): passage for _, passage in pairs}
    if len(self._passages) + len(passages.keys() - self._passages.keys()) > self._most:
      self._passages = {}
    texts = {key: text for key, text in passages.items() if key not in self._passages}
    self._passages |= zip(texts, self._embed(list(texts.values()), "passage"), strict=True)
    return np.asarray([of_query[query] @ self._passages[hash_key(passage)] for query, passage in pairs], np.float32)

  def _embed(self, texts: list[str], tower: str) -> Any:
    return embed(self._model, texts, tower, progress=False) if texts else []


class CrossEncoderRescorer:
  """A cross-encoder of sentence-transformers: what its `predict` gives, with the activation that it was saved with.

  Args:
    path: its folder, or its name on the hub.
    flag: that it was given with, for errors.
    other_flag: that a bi-encoder is for.
    batch_size: pairs that it takes at once.

  Raises:
    InputError: sentence-transformers is not installed, or reads no cross-encoder of one score at the path.
  """

  pairs_at_once = 1024
  takes_all_processes = False

  def __init__(self, path: epath.PathLike, flag: str = "--rescore_cross_encoder",
               other_flag: str = "--rescore", batch_size: int = 32):
    try:
      from sentence_transformers import CrossEncoder
    except ImportError as e:
      raise InputError(f"{flag}: sentence-transformers is not installed; install it: pip install "
                       "sentence-transformers") from e
    self._path, self._flag, self._batch_size = path, flag, batch_size
    try:
      self._model = CrossEncoder(str(path))
    except (OSError, ValueError, KeyError) as e:
      raise InputError(f"{flag} {path}: no cross-encoder that sentence-transformers reads "
                       f"({first_line(e)})") from e
    loaded, saved = type(self._model.model).__name__, self._model.config.architectures or []
    if loaded.endswith("ForSequenceClassification") and loaded not in saved:  # It would get a random one.
      raise InputError(f"{flag} {path}: saved as {', '.join(saved) or 'no model'}, without the head "
                       f"that scores a pair; a bi-encoder is for {other_flag}")
    if self._model.num_labels != 1:
      raise InputError(f"{flag} {path}: gives {self._model.num_labels} numbers for a pair; one that "
                       "gives a single score is needed")

  def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    different = list(dict.fromkeys(pairs))
    scores = np.zeros(0, np.float32)
    if different:
      scores = np.asarray(self._model.predict(different, batch_size=self._batch_size, show_progress_bar=False),
                          np.float32)
    if not np.isfinite(scores).all():
      raise InputError(f"{self._flag} {self._path}: a score is not finite; the weights are damaged")
    of_pair = dict(zip(different, scores, strict=True))
    return np.asarray([of_pair[pair] for pair in pairs], np.float32)
