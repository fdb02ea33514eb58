"""gtr-jax serve in a thread, with stores that are made up: nothing is compiled, and all that HTTP shows is real."""

import asyncio
import threading
import types

from ports import free_port
from served_here import served_here

from gtr_jax.serving.limits import Limits
from gtr_jax.serving.problems import Problem
from gtr_jax.serving.service import Served, Service
from gtr_jax.serving.stores import Found

EVIL = "<img src=x onerror=\"window.hurt=1\"><script>window.hurt=1</script>"
LONG = " ".join(["A river begins in the mountains,", *(f"word{i}" for i in range(9_992)), "sea", "end."])
DOCUMENTS = [
    ("geo-1", "Rivers of Europe", "The Danube is the second longest river in Europe; rivers like it carry rivulets."),
    ("geo-2", "", "A river without a title."),
    ("geo-3", EVIL, f"Text that a river brought: {EVIL}"),
    (f"<b>{EVIL}</b>", "", "Its id is evil, river."),
    ("geo-5", "A long one", LONG),
    ("law-6", "Caf\u00e9 law", "The caf\u00e9 by the river."),
    ("law-7", "w" * 300, "u" * 500),
    ("law-8", "Seas", "Nothing of it here."),
]


class FakeStore:
  """What the routes ask of a ServedStore: it finds its documents in their order, whatever is asked.

  Args:
    name: by which clients know it.
    documents: (id, title, text).
    bm25: whether it has an index, by which it finds them in the other order.

  Attributes:
    seen: (query, top_k, id_prefix, hybrid) of each search.
    given_up: queries that nobody waited for any more.
    held: a search for "slow" waits until this is set.
  """

  def __init__(self, name, documents, bm25=False):
    self.name, self.documents, self.has_bm25 = name, documents, bm25
    self.model = types.SimpleNamespace(name=f"{name}-model")
    self.store = types.SimpleNamespace(
        shape=(len(documents), 64), quantizer=types.SimpleNamespace(precision="int8"),
        ids=[doc_id for doc_id, _, _ in documents])
    self.seen, self.given_up, self.held = [], [], threading.Event()

  async def search(self, query, top_k, id_prefix="", hybrid=False):
    self.seen.append((query, top_k, id_prefix, hybrid))
    if query == "broken":
      raise Problem(422, "this <b>query</b> is broken; mend it", "broken")
    try:
      while query == "slow" and not self.held.is_set():
        await asyncio.sleep(.01)
    except asyncio.CancelledError:
      self.given_up.append(query)
      raise
    if query == "nothing":
      return []
    rows = [i for i, doc_id in enumerate(self.store.ids) if doc_id.startswith(id_prefix)]
    return [Found(row, 1 / (2 + i)) for i, row in enumerate(rows[::-1] if hybrid else rows)][:top_k]

  def document(self, row):
    return self.documents[row]


class Running:
  """The application with stores, at a port of its own.

  Args:
    stores: of it.
    keys: of its API.
    ready: whether its stores are there from the beginning.
  """

  def __init__(self, stores, keys=(), ready=True):
    self.stores, self.port = stores, free_port()
    self.url = f"http://127.0.0.1:{self.port}"
    self.served = Served({}, {store.name: store for store in stores})
    self.service = Service(Limits(top_k=50), keys)
    self.service.served = self.served if ready else None
    self.start()

  def start(self):
    self._block = served_here(self.service, self._reload, self.port, timeout_graceful_shutdown=1)
    self._block.__enter__()

  def stop(self):
    self._block.__exit__(None, None, None)

  async def _reload(self):
    raise AssertionError("nobody asks for it")
