"""Texts of many requests, encoded together: a batch begins as soon as the devices are free, with what waits then.

Every request has a queue of its own, and batches are filled from all queues in turn, so that neither a request of a
thousand texts nor a long text keeps others waiting for more than a turn. The first text of whose turn it is decides how
long the rows of a batch are; what else fits, fills them. The same text in flight twice is encoded once.

Letters: G groups (data shards), R rows of a group, L length of a row, D embedding size.
"""

import collections
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gtr_jax.inference.embed import encode_packed
from gtr_jax.inference.load import Model
from gtr_jax.inference.row_queue import CPU_TOKENS_PER_BATCH, LONGEST_IN_SHORT_ROWS, TOKENS_OF_TEXT, TOKENS_PER_BATCH
from gtr_jax.parallel.partitioning import global_batch, num_groups
from gtr_jax.text.packing import Texts, best_fit

_TURNS = 8           # A batch has room for so many requests' turns; it may be several times that of one request.
_SHORTEST = 56       # Tokens that the shortest rows are made for, ..
_FEW_ROWS = 4        # .. of which a batch has no more than so many.
_RATE_SECONDS = 10.0  # The rate of encoding is that of about so many seconds.


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of a program: rows of a group, and their length."""

  rows: int
  length: int

  @property
  def texts(self) -> int:
    """That a group has room for."""
    return self.rows * self.texts_of_row

  @property
  def texts_of_row(self) -> int:
    return self.length // TOKENS_OF_TEXT + 1


def shapes(longest: int, batch_tokens: int | None, on_cpu: bool) -> dict[int, list[Shape]]:
  """All shapes, by the most tokens of a text that their rows are for, ascending; of each length by rows, ascending.

  As the row queue of `gtr-jax encode` has them: rows are an eighth longer than what they are for, twice as long from
  step to step. A batch of few texts has few rows, by powers of two, or shorter ones.

  Args:
    longest: most tokens of any text.
    batch_tokens: token slots of a group.
    on_cpu: whether the devices are CPUs.
  """
  multiple = 8 if on_cpu else 128
  tokens = batch_tokens or (CPU_TOKENS_PER_BATCH if on_cpu else TOKENS_PER_BATCH)
  made_for = [min(_SHORTEST, longest), min(LONGEST_IN_SHORT_ROWS, longest)]
  while made_for[-1] < longest:
    made_for.append(min(2 * made_for[-1], longest))
  found: dict[int, list[Shape]] = {}
  for most in made_for:
    length = -(-most * 9 // 8 // multiple) * multiple
    # Shorter rows than whole batches have are for the few texts of a quiet minute.
    rows = max(tokens // length, 1) if most > _SHORTEST or longest <= _SHORTEST else _FEW_ROWS
    found = {other: of_length for other, of_length in found.items() if of_length[0].length != length}
    found[most] = [Shape(number, length) for number in sorted({*_powers_of_two(rows), rows})]
  return found


def _powers_of_two(most):
  return itertools.takewhile(lambda rows: rows <= most, (1 << i for i in itertools.count()))


class _Text:
  """In flight: its tokens, and who waits for its embedding."""

  __slots__ = ("key", "tokens", "tower", "waiting")

  def __init__(self, key: tuple[str, bytes], tower: str, tokens: np.ndarray):
    self.key, self.tower, self.tokens = key, tower, tokens
    self.waiting: dict[Job, list[int]] = {}


class Job:
  """The texts of a request.

  Args:
    number: of texts.
    dim: D.
    done: called once, in another thread, with the embeddings `[texts, D]` or what has gone wrong.

  Attributes:
    waited_s: seconds until the first of them was in a batch; None: before that.
    device_s: of the batches that have its texts.
  """

  def __init__(self, number: int, dim: int, done: Callable[[np.ndarray | Exception], None]):
    self.embeddings = np.zeros((number, dim), np.float32)
    self.missing, self.done = number, done
    self.queue: collections.deque[_Text] = collections.deque()
    self.since, self.waited_s, self.device_s = time.monotonic(), None, 0.0


@dataclasses.dataclass
class Batch:
  """What was encoded at once, for metrics."""

  texts: int
  tokens: int
  slots: int
  seconds: float


class Batcher:
  """Encodes what comes, in a thread of its own.

  Args:
    model: from `load_model`.
    batch_tokens: token slots of a batch on each data shard.
    observe: called with each `Batch`, in the thread.
  """

  def __init__(self, model: Model, batch_tokens: int | None = None, observe: Callable[[Batch], None] = lambda _: None):
    self.model, self._observe = model, observe
    self._groups = num_groups(model.mesh)
    self._shapes = shapes(max(model.lengths.values()), batch_tokens, model.mesh.devices.flat[0].platform == "cpu")
    self._towers = ("passage",) if model.encoder.shared else ("query", "passage")
    self._changed = threading.Condition()
    self._turns: collections.deque[Job] = collections.deque()
    self._in_flight: dict[tuple[str, bytes], _Text] = {}
    self._waiting_tokens = self._waiting_texts = 0
    self._rate = 0.0  # tokens/s
    self._free = 0.0  # when the devices had nothing to do
    self._ending = False
    self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

  def start(self, compiled: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Compiles all programs, and encodes from then on.

    Args:
      compiled: told how many of how many programs are there.
    """
    programs = [(tower, shape) for tower in self._towers for of_length in self._shapes.values() for shape in of_length]
    for number, (tower, shape) in enumerate(programs):
      zeros = np.zeros((self._groups, shape.rows, shape.length), np.int32)
      for _ in range(2):  # The second time is as fast as it will be.
        began = time.monotonic()
        jax.block_until_ready(self._encode(Texts(zeros, zeros), shape, tower))
        seconds = time.monotonic() - began
      self._rate = max(self._rate, zeros.size / seconds)
      compiled(number + 1, len(programs))
    self._thread.start()

  @property
  def most_tokens(self) -> int:
    """Token slots of the largest batch."""
    return self._groups * max(shape.rows * shape.length for of_length in self._shapes.values() for shape in of_length)

  @property
  def waiting_texts(self) -> int:
    """Texts that are in no batch yet."""
    return self._waiting_texts

  def expected_wait(self) -> float:
    """Seconds that what waits will take, as fast as the last batches were."""
    return self._waiting_tokens / self._rate if self._rate else 0.0

  def submit(self, tokens: Sequence[np.ndarray], tower: str, done: Callable[[np.ndarray | Exception], None]) -> Job:
    """Takes the texts of a request, int32 `[<= max_length]` each.

    Args:
      tokens: of each text, at least one of them.
      tower: "query" or "passage".
      done: of `Job`.
    """
    tower = tower if tower in self._towers else self._towers[0]
    job = Job(len(tokens), self.model.encoder.dim, done)
    with self._changed:
      if self._ending:
        raise RuntimeError("the batcher has ended")
      for number, of_text in enumerate(tokens):
        key = (tower, of_text.tobytes())
        if (text := self._in_flight.get(key)) is None:
          text = self._in_flight[key] = _Text(key, tower, of_text)
          job.queue.append(text)
          self._count(text, 1)
        text.waiting.setdefault(job, []).append(number)
      if job.queue:
        self._turns.append(job)
      self._changed.notify()
    return job

  def forget(self, job: Job) -> None:
    """Whoever wanted it has gone: its texts that nobody else waits for are not encoded."""
    with self._changed:
      heirs: dict[Job, list[_Text]] = {}
      for text in job.queue:
        text.waiting.pop(job)
        if text.waiting:
          heirs.setdefault(next(iter(text.waiting)), []).append(text)
        else:
          del self._in_flight[text.key]
          self._count(text, -1)
      job.queue.clear()
      for text in [text for text in self._in_flight.values() if job in text.waiting]:
        del text.waiting[job]  # Running, or in another's queue.
      if job in self._turns:
        self._turns.remove(job)
      for heir, texts in heirs.items():
        heir.queue.extend(texts)
        if heir not in self._turns:
          self._turns.append(heir)

  def end(self) -> None:
    """Encodes what is there, and no more; returns when that is done."""
    with self._changed:
      self._ending = True
      self._changed.notify()
    if self._thread.is_alive():
      self._thread.join()

  def _count(self, text, by):
    self._waiting_texts += by
    self._waiting_tokens += by * len(text.tokens)

  def _run(self):
    running = None
    while True:
      with self._changed:
        while not self._turns and running is None and not self._ending:
          self._changed.wait()
        # While a batch runs, the next one is only begun if it is a full one: others may still come.
        chosen = self._choose() if running is None or self._waiting_tokens >= self.most_tokens else None
      if chosen is None and running is None:
        return
      began = None if chosen is None else self._begin(*chosen)
      if running is not None:
        self._finish(*running)
      running = began

  def _choose(self) -> tuple[list[list[tuple[int, _Text]]], Shape, str] | None:
    """Texts of the next batch, in rows: (begin, text) of each row."""
    if not self._turns:
      return None
    first = self._turns[0].queue[0]
    most_tokens = max(next(most for most in self._shapes if len(first.tokens) <= most), self._usual())
    whole = self._shapes[most_tokens][-1]
    room = self._groups * whole.rows * whole.length
    of_turn = max(room // _TURNS, 1)
    taken: list[tuple[Job, _Text]] = []
    passed: collections.deque[Job] = collections.deque()  # whose other texts have to wait; it is their turn next
    while self._turns and room > 0:
      job, left, turn = self._turns.popleft(), [], of_turn
      while job.queue and min(turn, room) > 0:
        text = job.queue.popleft()
        if text.tower == first.tower and len(text.tokens) <= most_tokens:
          taken.append((job, text))
          turn -= len(text.tokens)
          room -= len(text.tokens)
        else:
          left.append(text)
      job.queue.extendleft(reversed(left))
      if job.queue:
        (self._turns if turn <= 0 else passed).append(job)
    self._turns.extendleft(reversed(passed))
    rows, shape = self._packed([text for _, text in taken], most_tokens)
    # Rows for which there is no room go back, those that were taken last.
    order = {text.key: number for number, (_, text) in enumerate(taken)}
    rows.sort(key=lambda row: min(order[text.key] for _, text in row))
    surplus = {text.key for row in rows[self._groups * shape.rows:] for _, text in row}
    for job, text in reversed(taken):
      if text.key not in surplus:
        self._count(text, -1)
      else:
        job.queue.appendleft(text)
        if job not in self._turns:
          self._turns.appendleft(job)
    return rows[:self._groups * shape.rows], shape, first.tower

  def _usual(self) -> int:
    """What the shortest rows of a whole batch are for."""
    return next((most for most, of_length in self._shapes.items() if most > _SHORTEST), next(reversed(self._shapes)))

  def _packed(self, texts, most_tokens):
    """Rows of texts, and the least shape that has room for all, or else the largest of these rows."""
    lengths, ways = np.asarray([len(text.tokens) for text in texts], np.int64), []
    for most, of_length in self._shapes.items():
      if lengths.max() <= most <= most_tokens:
        row, start, number = best_fit(lengths, of_length[0].length, of_length[0].texts_of_row)
        needed = -(-number // self._groups)
        shape = next((shape for shape in of_length if shape.rows >= needed), of_length[-1])
        ways.append((shape.rows < needed, shape.rows * shape.length, shape, row, start, number))
    _, _, shape, row, start, number = min(ways, key=lambda way: way[:2])
    rows: list[list[tuple[int, _Text]]] = [[] for _ in range(number)]
    for text, of_text, begin in zip(texts, row.tolist(), start.tolist(), strict=True):
      rows[of_text].append((begin, text))
    return rows, shape

  def _begin(self, rows, shape, tower):
    """Gives a batch to the devices."""
    packed = np.zeros((2, self._groups * shape.rows, shape.length), np.int32)
    texts, places, now = [], [], time.monotonic()
    for r, row in enumerate(rows):
      for in_row, (begin, text) in enumerate(row):
        at = slice(begin, begin + len(text.tokens))
        packed[0, r, at] = text.tokens
        packed[1, r, at] = 1 + r % shape.rows * shape.texts_of_row + in_row
        texts.append(text)
        places.append(r * shape.texts_of_row + in_row)
    for text in texts:
      for job in list(text.waiting):
        if job.waited_s is None:
          job.waited_s = now - job.since
    try:
      result = self._encode(Texts(*packed.reshape(2, self._groups, shape.rows, shape.length)), shape, tower)
    except Exception as e:  # Of the devices, as out of memory: it is the requests' to know.
      result = e
    return texts, np.asarray(places), result, now, packed[0].size

  def _encode(self, texts, shape, tower):
    with jax.set_mesh(self.model.mesh):
      return encode_packed(self.model.encoder, self.model.params, global_batch(self.model.mesh, texts), shape.texts,
                           tower)

  def _finish(self, texts, places, result, began, slots):
    """Fetches the embeddings of a batch, and gives them to who waits."""
    try:
      embeddings = result if isinstance(result, Exception) else np.asarray(result).reshape(
          -1, self.model.encoder.dim)[places]
    except Exception as e:
      embeddings = e
    now, tokens = time.monotonic(), sum(len(text.tokens) for text in texts)
    seconds, self._free = now - max(began, self._free), now
    if tokens > slots // 2:  # What the devices can do is seen where they have something to do.
      share = 1 - math.exp(-seconds / _RATE_SECONDS)
      self._rate += (tokens / seconds - self._rate) * share
    finished: list[tuple[Job, Any]] = []
    with self._changed:
      for number, text in enumerate(texts):
        del self._in_flight[text.key]
        for job, numbers in text.waiting.items():
          job.device_s += seconds / len(texts)
          if isinstance(embeddings, Exception):
            if job.missing > 0:
              job.missing = -1
              finished.append((job, embeddings))
            continue
          job.embeddings[numbers] = embeddings[number]
          job.missing -= len(numbers)
          if not job.missing:
            finished.append((job, job.embeddings))
    for job, found in finished:
      job.done(found)
    self._observe(Batch(len(texts), tokens, slots, seconds))
