"""A server whose encoder is a stand-in, with a client beside every test; for test modules with `pytest_plugins =
"raw_fixtures"`, whose tests use the fixture `others`.

The application is the real one, under uvicorn with the server's own protocol.
"""

import threading
import time
import types

import numpy as np
import pytest
from raw_requests import MOST_BYTES, NEVER, ask_right
from served_here import served_here
from tiny_model_dir import write_vocabulary

from gtr_jax.serving import model as serving_model
from gtr_jax.serving.limits import Limits
from gtr_jax.serving.model import ServedModel
from gtr_jax.serving.service import Served, Service


class FakeBatcher:
  """Encodes by counting; jobs of `NEVER` wait to be forgotten."""

  most_tokens, waiting_texts = 1024, 0

  def __init__(self, model, batch_tokens, observe):
    self._never = model.tokenizer.encode([NEVER], 32)[0].tobytes()
    self.waiting, self.forgotten = 0, threading.Event()

  def expected_wait(self, tokens):
    return 0.0

  def submit(self, tokens, tower, done):
    if tokens[0].tobytes() == self._never:
      self.waiting += 1
    else:
      done(np.asarray([[len(of_text), of_text.sum(), 1] for of_text in tokens], np.float32))
    return types.SimpleNamespace(waited_s=0.0, since=time.monotonic())

  def forget(self, job):
    self.waiting -= 1
    self.forgotten.set()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
  service = Service(Limits(body_bytes=MOST_BYTES, timeout_s=60.0))
  model = types.SimpleNamespace(
      tokenizer=write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "spiece.model"), dimensions=(),
      lengths={"query": 16, "document": 32}, prompts={"query": "", "document": ""},
      encoder=types.SimpleNamespace(dim=3, normalize=False, config=types.SimpleNamespace(dtype="float32")))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(serving_model, "Batcher", FakeBatcher)
    served = ServedModel("fake", model, service.limits, service.metrics, service.tokenizing)
  service.served = Served({"fake": served}, {})
  return service


@pytest.fixture(scope="module")
def address(service):
  """The server's host and port."""
  async def reload():
    raise RuntimeError("of the test")

  with served_here(service, reload, timeout_graceful_shutdown=5) as port:
    yield "127.0.0.1", port


@pytest.fixture
def others(address, service):
  """During each test a client asks what is right, and gets it; when it is over, nothing is left of the test."""
  answers, over = [], threading.Event()

  def ask():
    while True:
      answers.append(ask_right(address))
      if over.wait(.05):
        return

  asking = threading.Thread(target=ask, daemon=True)
  asking.start()
  yield
  over.set()
  asking.join(30)
  assert answers and set(answers) == {200}
  until = time.monotonic() + 10
  while service.active and time.monotonic() < until:
    time.sleep(.01)
  assert service.active == 0
  assert ask_right(address) == 200
