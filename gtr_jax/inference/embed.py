"""From texts to embeddings: packed into rows of a few lengths, every shape compiled once, spread over the mesh.

Letters: G groups (data shards of the mesh), R rows of a group, L length, D embedding size.
"""

import functools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gtr_jax.errors import InputError
from gtr_jax.inference.load import Model
from gtr_jax.io.bars import Bar
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.parallel.partitioning import batch_sharding, num_groups, place
from gtr_jax.parallel.progress import ENCODING, doing
from gtr_jax.text.packing import Texts, best_fit

LONGEST_IN_SHORT_ROWS = 256  # tokens; a longer text opens a row that is made for twice as many, ..
TOKENS_OF_TEXT = 12        # there is room for so many texts in a row as if each had so many tokens
TOKENS_PER_BATCH = 16_384  # token slots of one batch on each data shard
CPU_TOKENS_PER_BATCH = 2048  # the same on a CPU, whose cache has to hold the activations
_AHEAD = 2                 # batches given to the devices before the result of the first is fetched
_SIDE_OF_TOWER = {"query": "query", "passage": "document"}


def embed(model: Model, texts: Sequence[str], tower: str, max_length: int | None = None, progress: bool = True, *,
          prompt: str | None = None, batch_size: int | None = None) -> np.ndarray:
  """Embeddings of texts, float32 `[texts, D]` in the order of the texts.

  Args:
    model: from `load_model`.
    texts: without the prompt, which is put before them.
    tower: "query" or "passage".
    max_length: tokens of a text at most; default: the model's own for queries or documents.
    progress: show a progress bar on stderr.
    prompt: put before every text; default: the model's own for queries or documents.
    batch_size: texts that are computed at once, at most; default: as many as fit into the rows of a batch.
  """
  side = _SIDE_OF_TOWER[tower]
  max_length = max_length or model.lengths[side]
  tokens = tokenize(model, texts, side, max_length, prompt)
  with Progress(len(texts), "encoding queries" if tower == "query" else "encoding documents", progress) as bar:
    embeddings = embed_tokens(model.encoder, model.params, tokens, tower, max_length, model.mesh, bar, batch_size)
  check_finite(embeddings, texts, model)
  return embeddings


def embed_tokens(encoder: DualEncoder, params: Any, tokens: Sequence[np.ndarray], tower: str, max_length: int,
                 mesh: Mesh, bar: "Progress | None" = None, batch_size: int | None = None) -> np.ndarray:
  """Embeddings of tokenised texts, float32 `[texts, D]`. Same shapes, same program, whatever the parameters.

  Args:
    encoder: the computation.
    params: sharded over `mesh`.
    tokens: int32 `[<= max_length]` for each text, with EOS.
    tower: "query" or "passage".
    max_length: tokens of a text at most.
    mesh: the devices.
    bar: to report progress to.
    batch_size: texts that are computed at once, at most.
  """
  groups = num_groups(mesh)
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  out = np.zeros((len(tokens), encoder.dim), np.float32)
  running: deque[tuple[np.ndarray, np.ndarray, jax.Array]] = deque()

  def fetch():
    texts, places, result_GxTxD = running.popleft()
    out[texts] = np.asarray(result_GxTxD).reshape(-1, encoder.dim)[places]
    if bar is not None:
      bar.add(len(texts), sum(len(tokens[i]) for i in texts))

  with jax.set_mesh(mesh), doing(ENCODING):
    for batch in _batches(tokens, max_length, groups, on_cpu, batch_size):
      doing(ENCODING)
      texts = jax.tree.map(functools.partial(place, sharding=batch_sharding(mesh)), batch.texts)
      running.append((batch.numbers, batch.places, _encode(encoder, params, texts, batch.num_texts, tower, mesh)))
      if len(running) > _AHEAD:
        fetch()
    while running:
      fetch()
  return out


@functools.partial(jax.jit, static_argnames=("encoder", "num_texts", "tower", "mesh"))
def _encode(encoder, params, texts, num_texts, tower, mesh):
  """Embeddings `[G, R, D]`, the whole of them on every device, so that every process can read them."""
  embeddings = encoder.encode(params, texts, num_texts, tower=tower)
  return jax.lax.with_sharding_constraint(embeddings, NamedSharding(mesh, PartitionSpec()))


class _Batch(NamedTuple):
  """Packed texts `[groups, rows, length]` with room for `num_texts` in each group, and which embedding is whose."""

  texts: Texts
  num_texts: int
  numbers: np.ndarray  # of the texts in this batch
  places: np.ndarray   # where their embeddings are in the flat [groups * num_texts]


def _batches(tokens: Sequence[np.ndarray], max_length: int, groups: int, on_cpu: bool,
             batch_size: int | None = None) -> Iterator[_Batch]:
  """Packs texts into batches of few shapes, the longest texts first.

  A row is an eighth longer than the longest text it is made for, which leaves room for a good fit. Texts that exceed
  `LONGEST_IN_SHORT_ROWS` get longer rows, whose gaps shorter texts fill: attention costs a token the length of its row.
  Each length of rows has one shape, and a second one of a single row for the little that a query needs. A
  `batch_size` leaves rows out of a batch; only where it is less than the rows of one, these are fewer, a power of two.
  """
  lengths = np.asarray([len(t) for t in tokens], np.int64)
  multiple = 8 if on_cpu else 128
  made_for = [min(LONGEST_IN_SHORT_ROWS, max_length)]
  while made_for[-1] < max_length:
    made_for.append(min(2 * made_for[-1], max_length))
  row_lengths = np.asarray([-(-longest * 9 // 8 // multiple) * multiple for longest in made_for])
  opens = row_lengths[np.searchsorted(made_for, lengths)]
  room = int(row_lengths[0]) // TOKENS_OF_TEXT + 1
  at_once = max(batch_size // groups, 1) if batch_size else None  # texts of each group
  row, start, num_rows = best_fit(lengths, opens, min(room, at_once) if at_once else room)
  length_of_row = np.zeros(num_rows, np.int64)
  np.maximum.at(length_of_row, row, opens)  # The text that opens a row is its longest.
  by_row = np.argsort(row, kind="stable")
  row = row[by_row]
  texts_of_row = np.bincount(row, minlength=num_rows)
  for length in row_lengths[::-1].tolist():
    rows_of_length = np.flatnonzero(length_of_row == length)
    most = max((CPU_TOKENS_PER_BATCH if on_cpu else TOKENS_PER_BATCH) // length, 1)
    if at_once:
      most = min(most, 1 << at_once.bit_length() - 1)
    for chosen in _in_batches(rows_of_length, texts_of_row, most * groups, groups, batch_size):
      rows = most if len(chosen) > groups else 1
      packed = np.zeros((2, groups * rows, length), np.int32)
      numbers, places = [], []
      for r, begin, end in zip(range(len(chosen)), np.searchsorted(row, chosen), np.searchsorted(row, chosen, "right"),
                               strict=True):
        for in_row, number in enumerate(by_row[begin:end].tolist()):
          at = slice(start[number], start[number] + lengths[number])
          packed[0, r, at] = tokens[number]
          packed[1, r, at] = 1 + r % rows * room + in_row
          numbers.append(number)
          places.append(r * room + in_row)
      yield _Batch(Texts(*packed.reshape(2, groups, rows, length)), rows * room, np.asarray(numbers),
                   np.asarray(places))


def _in_batches(rows: np.ndarray, texts_of_row: np.ndarray, most: int, few: int,
                batch_size: int | None) -> Iterator[np.ndarray]:
  """The rows in parts of at most `most`, and of at most `batch_size` texts: full ones, or of `few` rows."""
  first = 0
  while first < len(rows):
    chosen = rows[first:first + most]
    if batch_size:
      chosen = chosen[:max(np.searchsorted(np.cumsum(texts_of_row[chosen]), batch_size, "right"), 1)]
      if len(chosen) < min(most // 2, len(rows) - first):  # Most of a full batch would be empty.
        chosen = chosen[:few]
    first += len(chosen)
    yield chosen


def tokenize(model: Model, texts: Sequence[str], side: str, max_length: int,
             prompt: str | None = None) -> list[np.ndarray]:
  """Token ids of texts, of at most `max_length`, with `prompt`, or else that of the side, before each."""
  prompt = model.prompts[side] if prompt is None else prompt
  return model.tokenizer.encode([prompt + text for text in texts], max_length)


def check_finite(embeddings: np.ndarray, names: Sequence[str], model: Model) -> None:
  """Raises InputError where an embedding is not finite."""
  bad = np.flatnonzero(~np.isfinite(embeddings).all(-1))
  if len(bad):
    raise InputError(f"{model.path}: its embedding of {names[bad[0]]!r:.60} is not finite; the weights are damaged, or "
                     "training diverged: take an earlier checkpoint")


class Progress:
  """A bar with texts per second and tokens per second, on stderr."""

  def __init__(self, total: int, description: str, shown: bool):
    self._bar = Bar(total, description, " texts", shown=shown and jax.process_index() == 0)
    self._tokens, self._start = 0, time.perf_counter()

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._bar.close()

  def skip(self, texts: int) -> None:
    """Texts that were done before."""
    self._bar.skip(texts)

  def add(self, texts: int, tokens: int) -> None:
    """Texts and their tokens that are done now."""
    self._tokens += tokens
    self._bar.update(texts, f"{self._tokens / (time.perf_counter() - self._start):,.0f} tokens/s")
