"""What benchmarks/serving.py works on: texts, models and a store on disk, and servers as processes."""

import contextlib
import dataclasses
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import measure
import numpy as np
import sentence_transformers_peer
from flax import linen as nn

from gtr_jax.collections.corpus import Documents
from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.inference.load import Model
from gtr_jax.retrieval.store import StoreWriter

HERE = Path(__file__).parent
MODEL = "model"  # By this name all servers have it.
LENGTH = 256  # tokens of a text at most
_STARTED = 300  # seconds that a server may take
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


class Texts(NamedTuple):
  """Titles, as queries, and bodies."""

  titles: list[str]
  bodies: list[str]


def read_texts(pairs: str | None, count: int) -> Texts:
  """Of the first `count` pairs of a file, as many as there are; or drawn, about as long as those of Reddit."""
  if pairs is None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(_SYLLABLES, n)) for n in rng.integers(1, 4, 2000)]

    def drawn(mean, spread):
      return [" ".join(rng.choice(words, n)) for n in np.clip(rng.normal(mean, spread, count), 2, None).astype(int)]

    return Texts(drawn(12, 6), drawn(70, 33))
  with (gzip.open if pairs.endswith(".gz") else open)(pairs, "rt", encoding="utf-8") as f:
    rows = [json.loads(line) for _, line in zip(range(count), f, strict=False)]
  return Texts([row["title"] for row in rows if row["title"].strip()],
               [row["body"] for row in rows if row["body"].strip()])


def write_models(folder: Path, texts: Texts, vocabulary: str | None, quick: bool) -> dict[str, Path]:
  """Folders for sentence-transformers with random weights: the benchmarks' encoder, and it with 768 numbers a vector,
  as GTR has."""
  if vocabulary is None:
    vocabulary = str(folder / "spiece.model")
    train_vocabulary(texts.bodies[:2000], vocabulary, 2000)
  small, made = measure.small_encoder(quick), {}
  for name, model in {MODEL: small, "wide": dataclasses.replace(small, projection_dim=768)}.items():
    made[name] = folder / name
    sentence_transformers_peer.write(model, nn.meta.unbox(model.init(jax.random.key(0))), vocabulary, made[name],
                                     LENGTH, 100)
  return made


def write_store(folder: Path, model: Model, texts: Texts, rows: int) -> Path:
  """A store of the model with random unit vectors, and bodies as documents."""
  empty = [""] * rows
  documents = Documents([f"d{i:07}" for i in range(rows)], empty, [texts.bodies[i % len(texts.bodies)]
                                                                   for i in range(rows)])
  writer = StoreWriter(folder / "store", documents, dim=model.encoder.dim, settings={
      "dtype": model.encoder.config.dtype, "weights_hash": model.weights_hash, "max_length": model.lengths["document"],
      "prompt": model.prompts["document"]})
  rng = np.random.default_rng(0)

  def made(which):
    vectors = rng.standard_normal((which.stop - which.start, model.encoder.dim), np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    return vectors / norms[:, None], norms

  writer.write_all(made, progress=False)
  return folder / "store"


def write_requests(path: Path, where: str, bodies: Sequence[dict]) -> Path:
  """A file for the client: a request for each body, which has its texts as `input` or `query`."""
  rows = []
  for body in bodies:
    texts = body.get("input", body.get("query"))
    rows.append({"path": where, "body": json.dumps(body), "texts": 1 if isinstance(texts, str) else len(texts)})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def free_port() -> int:
  """That nothing listens at."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


class Server:
  """A process that answers at a port, with a log.

  Args:
    name: for tables.
    words: the command; "PORT" among them is replaced.
    log: its file.
  """

  def __init__(self, name: str, words: Sequence[object], log: Path, **environment: str):
    self.name, self.port, self.log = name, free_port(), log
    words = [str(self.port) if word == "PORT" else str(word) for word in words]
    with log.open("wb") as out:
      # A group of its own, so that it is stopped with whatever processes it has.
      self._process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                                       env={**os.environ, **environment})

  def wait_until_ready(self) -> None:
    """Until it answers."""
    end = time.monotonic() + _STARTED
    while time.monotonic() < end:
      if self._process.poll() is not None:
        break
      with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
        return
      time.sleep(.2)
    said = self.log.read_text("utf-8", "replace")[-2000:]
    raise SystemExit(f"{self.name} has not started; its log ends with:\n{said}")

  def signal(self, number: int) -> None:
    """To all of its processes."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, number)

  @contextlib.contextmanager
  def running(self) -> Iterator[None]:
    """While it is measured; otherwise it stands still."""
    self.signal(signal.SIGCONT)
    try:
      yield
    finally:
      self.signal(signal.SIGSTOP)

  def resident(self) -> int:
    """Bytes."""
    lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

  @contextlib.contextmanager
  def watched(self, seconds: float = 1.0) -> Iterator[list[int]]:
    """Its resident memory over time."""
    found, over = [self.resident()], threading.Event()

    def watch():
      while not over.wait(seconds):
        found.append(self.resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
      yield found
    finally:
      over.set()
      thread.join()
      found.append(self.resident())

  def end(self) -> None:
    """Ends it, wherever it stands."""
    self.signal(signal.SIGCONT)
    self._process.terminate()
    try:
      self._process.wait(15)
    except subprocess.TimeoutExpired:
      self.signal(signal.SIGKILL)
      self._process.wait()


def ours(models: Sequence[Path], folder: Path, stores: Sequence[Path] = ()) -> Server:
  """`gtr-jax serve` with its defaults."""
  flags = [word for path in models for word in ("--model", path)]
  flags += [word for path in stores for word in ("--embeddings", path)]
  return Server("gtr-jax serve", [sys.executable, "-m", "gtr_jax", "serve", "--port", "PORT", *flags],
                folder / f"serve-{models[0].name}.log", PYTHONPATH=str(HERE.parent))


def sentence_transformers_server(model: Path, folder: Path, at_once: int, batch_size: int) -> Server:
  """Ours around sentence-transformers."""
  return Server("sentence-transformers", [sys.executable, HERE / "serving_peer.py", "--port", "PORT", "--model", model,
                                          "--at_once", at_once, "--batch_size", batch_size], folder / "peer.log")


def bare_server(size: int, folder: Path) -> Server:
  """One that only answers so many bytes."""
  return Server("bare", [sys.executable, HERE / "serving_peer.py", "--port", "PORT", "--bare", size],
                folder / "bare.log")


def infinity_server(python: str, model: Path, folder: Path, batch_size: int) -> Server:
  """infinity-emb, of another environment."""
  return Server("infinity", [
      python, "-m", "infinity_emb.cli", "v2", "--model-id", model, "--served-model-name", MODEL, "--engine", "torch",
      "--device", "cpu", "--dtype", "float32", "--batch-size", batch_size, "--no-bettertransformer", "--no-compile",
      "--url-prefix", "/v1", "--host", "127.0.0.1", "--port", "PORT", "--log-level", "warning"],
      folder / "infinity.log", HF_HUB_OFFLINE="1", INFINITY_ANONYMOUS_USAGE_STATS="0", DO_NOT_TRACK="1")


def load(**spec: object) -> dict:
  """What the client, a process of its own, says of what it was told to do."""
  process = subprocess.run([sys.executable, HERE / "serving_load.py"], input=json.dumps(spec, default=str), text=True,
                           stdout=subprocess.PIPE, check=True)
  return json.loads(process.stdout)
