"""Texts of many requests, encoded together: a batch begins as soon as the devices are free, with what waits then.

The request that waits the longest and, in every other batch, the new one that does is in the next batch; its first
text decides how long the rows are, and what else fits, fills them. Half of a batch is for requests of which nothing was
encoded yet, a few texts of each, so that neither one of a thousand texts nor many of thirty keep one of a single text
waiting. The rest is for requests in the order in which they came: to do a little of each would end all of them late.
The same text in flight twice is encoded once.

Letters: G groups (data shards), R rows of a group, L length of a row, D embedding size.
"""

import bisect
import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gtr_jax.inference.embed import encode_packed
from gtr_jax.inference.load import Model
from gtr_jax.parallel.partitioning import global_batch, num_groups
from gtr_jax.serving.shapes import Shape, shapes
from gtr_jax.text.packing import Texts, best_fit

_TURNS = 8           # The first turn of a new request is such a part of a batch, or a text.
_RATE_SECONDS = 10.0  # The rate of encoding is that of about so many seconds.


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
    tokens: of those that nobody else had asked for.
    begun: whether one of them was in a batch.
    waited_s: seconds until then; None: before that.
  """

  def __init__(self, number: int, dim: int, done: Callable[[np.ndarray | Exception], None]):
    self.embeddings = np.zeros((number, dim), np.float32)
    self.missing, self.done = number, done
    self.queue: collections.deque[_Text] = collections.deque()
    self.begun, self.tokens = False, 0
    self.since, self.waited_s = time.monotonic(), None


@dataclasses.dataclass
class Batch:
  """What was encoded at once, for metrics."""

  texts: int
  tokens: int
  slots: int
  seconds: float


class Batcher:
  """Encodes what comes, in a thread of its own, into vectors that are not normalised.

  Args:
    model: from `load_model`.
    batch_tokens: token slots of a batch on each data shard.
    observe: called with each `Batch`, in the thread.

  Attributes:
    most_tokens: token slots of the largest batch.
  """

  def __init__(self, model: Model, batch_tokens: int | None = None, observe: Callable[[Batch], None] = lambda _: None):
    # A client may ask for vectors as they were before they are normalised.
    self.model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, normalize=False))
    self._observe = observe
    self._groups = num_groups(model.mesh)
    self._on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    self._shapes = shapes(max(model.lengths.values()), batch_tokens, self._on_cpu)
    slots = {most: self._groups * of_length[-1].rows * of_length[-1].length
             for most, of_length in self._shapes.items()}
    self.most_tokens = max(slots.values())
    # What the shortest rows of a whole batch are for; shorter ones are for few texts.
    self._usual = next(most for most, of_length in slots.items() if 2 * of_length > self.most_tokens)
    self._towers = ("passage",) if model.encoder.shared else ("query", "passage")
    self._changed = threading.Condition()
    self._turns: collections.deque[Job] = collections.deque()
    self._in_flight: dict[tuple[str, bytes], _Text] = {}
    self._waiting_tokens = self._waiting_texts = 0
    self._rate = 0.0  # tokens/s
    self._free = 0.0  # when the devices had nothing to do
    self._ending = self._new_first = False
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
  def waiting_texts(self) -> int:
    """Texts that are in no batch yet."""
    return self._waiting_texts

  def expected_wait(self, tokens: int | None = None) -> float:
    """Seconds that what waits will take, as fast as the last batches were.

    Args:
      tokens: of a request that might come; only what is encoded before it is done counts. None: all.
    """
    ahead, turn = self._waiting_tokens, self.most_tokens // _TURNS
    if tokens is not None and tokens <= turn:  # It is done in its first turn, for which there is half of each batch.
      with self._changed:
        ahead = 2 * sum(min(job.tokens, turn) for job in self._turns if not job.begun)
    return ahead / self._rate if self._rate else 0.0

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
          job.tokens += len(of_text)
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
        # While a batch runs, the next one is only begun if it is a full one: others may still come. CPUs compute what
        # they are given at once, or one after the other.
        ahead = not self._on_cpu and self._waiting_tokens >= self.most_tokens
        chosen = self._choose() if running is None or ahead else None
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
    by_age = sorted(self._turns, key=lambda job: job.since)
    # In turn with the oldest a new one, which may be of the other tower, or of longer texts.
    self._new_first = not self._new_first
    first = next((job for job in by_age if self._new_first and not job.begun), by_age[0])
    tower = first.queue[0].tower
    most_tokens = max(next(most for most in self._shapes if len(first.queue[0].tokens) <= most), self._usual)
    whole = self._shapes[most_tokens][-1]
    room = self._groups * whole.rows * whole.length

    def fits(text):
      return text.tower == tower and len(text.tokens) <= most_tokens

    order = _in_order(first, by_age, fits, room // 2, max(room // _TURNS, 1))
    taken = list(_until(order, room))
    rows, shape = self._packed([text for _, text in taken], most_tokens)
    # Rows for which there is no room go back, those whose turn came last; and gaps are filled with what comes next.
    turn = {text: i for i, (_, text) in enumerate(taken)}
    rows.sort(key=lambda row: min(turn[text] for _, text in row))
    most = self._groups * shape.rows
    surplus = [text for row in rows[most:] for _, text in row]
    more = list(_until(order, room))
    rows = _filled(rows[:most], shape, [*surplus, *(text for _, text in more)])
    chosen = {text for row in rows for _, text in row}
    for text in chosen:
      self._count(text, -1)
    for job in {job for job, text in (*taken, *more) if text in chosen}:
      job.begun = True
      job.queue = collections.deque(text for text in job.queue if text not in chosen)
    self._turns = collections.deque(job for job in self._turns if job.queue)
    return rows, shape, tower

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


def _in_order(first: Job, by_age: Sequence[Job], fits: Callable[[_Text], bool], for_new: int,
              of_turn: int) -> Iterator[tuple[Job, _Text]]:
  """What waits and fits, in the order in which it is to be encoded, with the job that has it in its queue.

  Args:
    first: whose first text comes before all.
    by_age: jobs, the one that has waited the longest first.
    fits: whether a text may be in the batch.
    for_new: tokens that are first given to jobs of which nothing was encoded, ..
    of_turn: .. about so many to each.
  """
  listed = {first.queue[0]}
  yield first, first.queue[0]
  for job in by_age:
    turn = 0 if job.begun else of_turn
    for text in job.queue:
      if turn <= 0 or for_new <= 0:
        break
      if fits(text) and text not in listed:
        listed.add(text)
        turn -= len(text.tokens)
        for_new -= len(text.tokens)
        yield job, text
  for job in by_age:
    for text in job.queue:
      if fits(text) and text not in listed:
        yield job, text


def _until(texts: Iterator[tuple[Job, _Text]], tokens: int) -> Iterator[tuple[Job, _Text]]:
  """The next texts, until they have so many tokens."""
  while tokens > 0 and (one := next(texts, None)) is not None:
    tokens -= len(one[1].tokens)
    yield one


def _filled(rows: list[list[tuple[int, _Text]]], shape: Shape, texts: list[_Text]) -> list[list[tuple[int, _Text]]]:
  """Rows with as many more texts as fit into their gaps: the longest first, each where the least is left."""
  gaps = sorted((shape.length - sum(len(text.tokens) for _, text in row), r) for r, row in enumerate(rows)
                if len(row) < shape.texts_of_row)
  for text in sorted(texts, key=lambda text: -len(text.tokens)):
    at = bisect.bisect_left(gaps, (len(text.tokens), 0))
    if at == len(gaps):
      continue
    gap, r = gaps.pop(at)
    rows[r].append((shape.length - gap, text))
    if len(rows[r]) < shape.texts_of_row:
      bisect.insort(gaps, (gap - len(text.tokens), r))
  return rows
