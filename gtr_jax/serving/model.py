"""A model that is served: from texts to embeddings, whoever asks."""

import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gtr_jax.errors import InputError
from gtr_jax.inference.embed import tokenize
from gtr_jax.inference.load import Model
from gtr_jax.retrieval.quantization import normalized, shortened
from gtr_jax.serving.batching import Batcher
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.metrics import Metrics
from gtr_jax.serving.problems import Problem

_TOGETHER_TEXTS, _TOGETHER_CHARACTERS = 64, 100_000  # tokenised at once, before it is another request's turn
_TOWERS = {"query": "query", "document": "passage"}


@dataclasses.dataclass
class Encoded:
  """Of a request.

  Attributes:
    vectors: float32 `[texts, D]`.
    tokens: of all texts, with prompts and EOS.
    waited_s: seconds until the first text was in a batch.
  """

  vectors: np.ndarray
  tokens: int
  waited_s: float


class ServedModel:
  """A model behind a name.

  Args:
    name: by which clients know it.
    model: from `load_model`.
    limits: of requests.
    metrics: what is measured goes there.
    tokenizing: the threads that tokenise, which all models share.
  """

  def __init__(self, name: str, model: Model, limits: Limits, metrics: Metrics,
               tokenizing: concurrent.futures.Executor):
    self.name, self.model, self._limits, self._metrics = name, model, limits, metrics
    self._tokenizing = tokenizing
    self.batcher = Batcher(model, limits.batch_tokens, metrics.observe)

  def start(self, compiled: Callable[[int, int], None]) -> None:
    """Compiles all that it will run; told how much of it is done."""
    self.batcher.start(compiled)

  def end(self) -> None:
    """Encodes what is there, and no more."""
    self.batcher.end()

  @property
  def dim(self) -> int:
    """Numbers of a vector."""
    return self.model.encoder.dim

  def check_dimensions(self, dimensions: int | None) -> None:
    """Raises Problem unless the model was trained for vectors of so many numbers."""
    trained = (*self.model.dimensions, self.dim)
    if dimensions is not None and dimensions not in trained:
      raise Problem(400, f"dimensions: {dimensions} is none that the model was trained for; give one of "
                    f"{', '.join(map(str, sorted(set(trained))))}, or leave it out", "invalid_dimensions", "dimensions")

  async def encode(self, texts: Sequence[str], side: str, *, truncate: bool = True, dimensions: int | None = None,
                   normalize: bool | None = None) -> Encoded:
    """Embeddings of texts.

    Args:
      texts: without the model's prompt.
      side: "query" or "document".
      truncate: cut texts that are too long; False: refuse them.
      dimensions: of the vectors, the first so many; None: all.
      normalize: to length 1, or not; None: as the model does.

    Raises:
      Problem: a text is too long, all of them are, or there is too much to do.
    """
    self.check_dimensions(dimensions)
    began = time.monotonic()
    tokens: list[np.ndarray] = []
    most = self.model.lengths[side] + (not truncate)
    for part in _parts(texts):
      tokens += await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._tokenize, part, side, most)
    self._metrics.tokenization.observe(time.monotonic() - began)
    return await self.encode_tokens(tokens, side, dimensions=dimensions, normalize=normalize)

  def _tokenize(self, texts, side, most):
    try:
      return tokenize(self.model, texts, side, most)
    except InputError as e:
      raise Problem(422, str(e), "invalid_text") from e

  async def encode_tokens(self, tokens: Sequence[np.ndarray], side: str, *, dimensions: int | None = None,
                          normalize: bool | None = None) -> Encoded:
    """As `encode`, of int32 ids with EOS for each text."""
    self.check_dimensions(dimensions)
    longest, number = self.model.lengths[side], sum(map(len, tokens))
    for i, of_text in enumerate(tokens):
      if len(of_text) > longest:
        raise Problem(422, f"text {i} has more than {longest} tokens, which is what the model reads of a {side}; "
                      "shorten it, or ask for it to be truncated", "too_long")
    if number > self._limits.request_tokens:
      raise Problem(422, f"the texts have {number:,} tokens, and a request may have {self._limits.request_tokens:,}; "
                    "send fewer texts at once", "too_many_tokens")
    if (wait := self.batcher.expected_wait(number)) > self._limits.queue_ms / 1000:
      raise Problem(429, "the server is overloaded: what waits already would take too long; try again later",
                    "overloaded", retry_after=max(1, round(wait)))
    loop = asyncio.get_running_loop()
    future: asyncio.Future[np.ndarray] = loop.create_future()

    def done(found):
      loop.call_soon_threadsafe(settle, future, found)

    job = self.batcher.submit(tokens, _TOWERS[side], done)
    try:
      vectors = await future
    except asyncio.CancelledError:
      self.batcher.forget(job)
      raise
    waited = job.waited_s or 0.0
    self._metrics.wait.observe(waited)
    self._metrics.inference.observe(time.monotonic() - job.since - waited)
    if not np.isfinite(vectors).all():
      raise Problem(500, "an embedding is not finite: the model's weights are damaged", "not_finite")
    if dimensions is not None:
      vectors = shortened(vectors, dimensions, normalize=False)
    if self.model.encoder.normalize if normalize is None else normalize:
      vectors = normalized(vectors, np.linalg.norm(vectors, axis=1))
    return Encoded(vectors, number, waited)


def settle(future: asyncio.Future[Any], found: Any) -> None:
  """Gives what another thread has found, or what has gone wrong there, to who waits for it, if anybody does."""
  if future.done():
    return
  if isinstance(found, BaseException):
    future.set_exception(found)
  else:
    future.set_result(found)


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
  """Texts, some at a time."""
  part: list[str] = []
  characters = 0
  for text in texts:
    part.append(text)
    characters += len(text)
    if len(part) == _TOGETHER_TEXTS or characters > _TOGETHER_CHARACTERS:
      yield part
      part, characters = [], 0
  if part:
    yield part
