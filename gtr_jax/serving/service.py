"""All that one server serves: models and stores by name, and what it may take."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request

from gtr_jax.serving.limits import Limits
from gtr_jax.serving.metrics import Metrics
from gtr_jax.serving.model import Encoded, ServedModel
from gtr_jax.serving.problems import Problem
from gtr_jax.serving.stores import ServedStore

TOKENIZING_THREADS = 2
_Thing = TypeVar("_Thing")


class Served:
  """What is served at one time; a reload makes another one.

  Args:
    models: by name, the first is the default.
    stores: likewise, perhaps none.
  """

  def __init__(self, models: dict[str, ServedModel], stores: dict[str, ServedStore]):
    self.models, self.stores = models, stores
    self._users, self._unused = 0, asyncio.Event()

  @contextlib.contextmanager
  def used(self) -> Iterator[None]:
    """While a request is answered by it."""
    self._users += 1
    try:
      yield
    finally:
      self._users -= 1
      if not self._users:
        self._unused.set()

  async def end(self) -> None:
    """When no request is answered by it any more: frees it. Nobody may begin to use it."""
    if self._users:
      self._unused.clear()
      await self._unused.wait()
    for end in (*(store.end for store in self.stores.values()), *(model.end for model in self.models.values())):
      await asyncio.get_running_loop().run_in_executor(None, end)

  def model(self, name: str | None) -> ServedModel:
    """Of this name, or the first. Raises Problem."""
    return _named(self.models, name, "model")

  def store(self, name: str | None) -> ServedStore:
    """Of this name, or the first. Raises Problem."""
    if not self.stores:
      raise Problem(404, "no store is served here; start the server with --embeddings", "store_not_found", "store")
    return _named(self.stores, name, "store")


class Service:
  """One server's state.

  Args:
    limits: of requests.
    keys: of the API, of which each request has to have one; none: nobody is asked.
    accept_token_ids: whether clients may send token ids.

  Attributes:
    metrics: what is measured.
    served: None until all is compiled.
    draining: whether it is about to end.
    active: requests that are being answered.
  """

  def __init__(self, limits: Limits, keys: Sequence[bytes] = (), accept_token_ids: bool = False):
    self.limits, self.keys, self.accept_token_ids = limits, tuple(keys), accept_token_ids
    self.metrics = Metrics()
    self.metrics.queue_size.set_function(lambda: sum(batcher.waiting_texts for batcher in self._batchers()))
    self.metrics.expected_wait.set_function(
        lambda: max((batcher.expected_wait() for batcher in self._batchers()), default=0.0))
    self.tokenizing = concurrent.futures.ThreadPoolExecutor(TOKENIZING_THREADS, "tokenize")
    self.served: Served | None = None
    self.draining, self.active = False, 0

  def _batchers(self):
    return [model.batcher for model in self.served.models.values()] if self.served else []

  def ready(self, request: Request | None = None) -> Served:
    """What is served; of a request, what was when it came. Raises Problem while there is nothing yet."""
    served = self.served if request is None else request.scope["state"]["served"]
    if served is None:
      raise Problem(503, "the server is starting: its programs are being compiled", "starting", retry_after=5)
    return served

  def check_texts(self, texts: Sequence[str], field: str) -> None:
    """Raises Problem where there are too many texts, or one is too long."""
    if len(texts) > self.limits.texts:
      raise Problem(413, f"{field}: {len(texts):,} texts, and a request may have {self.limits.texts:,}; send several",
                    "too_many_texts", field)
    for i, text in enumerate(texts):
      if len(text) > self.limits.text_characters:
        raise Problem(422, f"{field}: text {i} has {len(text):,} characters, and may have "
                      f"{self.limits.text_characters:,}", "too_many_characters", field)

  async def encode(self, model: ServedModel, texts: Sequence[str], side: str, field: str, **how: Any) -> Encoded:
    """`ServedModel.encode` of what a request may have."""
    self.check_texts(texts, field)
    return await model.encode(texts, side, **how)


def _named(things: Mapping[str, _Thing], name: str | None, what: str) -> _Thing:
  if name is None:
    return next(iter(things.values()))
  if name not in things:
    raise Problem(404, f"the {what} {name!r:.80} does not exist; give one of {', '.join(map(repr, things))}",
                  f"{what}_not_found", what)
  return things[name]
