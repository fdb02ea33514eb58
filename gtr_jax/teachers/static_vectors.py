"""Static vectors of the pieces of a vocabulary, whose sum points where the teacher's vector of a text does.

Each piece is a text that the teacher has a vector of: that is the beginning, as Model2Vec makes static embeddings
(Tulkens and van Dongen 2024). They are then fitted to what the teacher says of whole texts, as its Tokenlearn does.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gtr_jax.errors import InputError
from gtr_jax.io.bars import Bar
from gtr_jax.prepare import manifests, records
from gtr_jax.prepare.interface import Example
from gtr_jax.prepare.vectors import unpacked
from gtr_jax.teachers.teacher import Teacher, checked
from gtr_jax.text.tokenizer import Tokenizer

_AT_ONCE = 1024       # Pieces that a teacher is asked for.
_MARK = "▁"           # Of SentencePiece: here begins a word.
_PASSES = 2           # Through the texts. Five find those held out as well, and learn the others by heart.
_RATE = 0.004         # Of Adam at the beginning, where vectors are 1 long on average; it falls to 0.
_TOKENS = 65536       # In a batch, with padding at its end.
_TEXTS = 2048         # In a batch at most.
_MOST = 2_000_000     # Texts that are read.


class TaughtTexts(NamedTuple):
  """Texts and what the teacher says of them.

  Attributes:
    tokens: int32 `[length]` of each text.
    vectors: float32 `[texts, T]`.
  """

  tokens: list[np.ndarray]
  vectors: np.ndarray


def of_pieces(teacher: Teacher, pieces: Sequence[str]) -> np.ndarray:
  """The teacher's vectors `[pieces, T]` less their mean, weighted by log(1 + rank), and 1 long on average; zeros of
  pieces that stand for no text.

  The pieces of a unigram vocabulary are in order of frequency: Zipf's law stands in for counts.
  """
  texts = [piece.replace(_MARK, " ").strip() for piece in pieces]
  said = [number for number, text in enumerate(texts) if text and not (text[0] == "<" and text[-1] == ">")]
  vectors = np.zeros((len(texts), teacher.dimensions()), np.float32)
  with Bar(len(said), "the teacher's vectors of the pieces", " pieces") as bar:
    for start in range(0, len(said), _AT_ONCE):
      numbers = said[start:start + _AT_ONCE]
      found = teacher.encode_passage([texts[number] for number in numbers])
      vectors[numbers] = checked(found, (len(numbers), vectors.shape[1]), teacher.described.name)
      bar.update(len(numbers))
  vectors[said] -= vectors[said].mean(0)
  vectors *= np.log1p(np.arange(1, len(vectors) + 1))[:, None]
  return vectors / max(np.linalg.norm(vectors[said], axis=1).mean(), 1e-12)


def taught_texts(names: Sequence[str], split: str, vocabulary: Tokenizer, query_length: int,
                 document_length: int) -> TaughtTexts:
  """Distinct queries, passages and negatives of prepared data that have vectors, two million of them at most.

  Raises InputError where there are no such data, where the training split of one has no vectors, and where those of two
  differ in width.
  """
  found: dict[tuple[str, int], np.ndarray] = {}
  widths: dict[int, str] = {}
  for name in names:
    taught = False
    for example in _examples(name, split):
      texts = (example.query, example.passage, *example.negatives)
      for number, (text, vector) in enumerate(zip(texts, example.vectors, strict=False)):  # Maybe no vectors.
        if vector:
          values, taught = unpacked(vector), True
          widths.setdefault(len(values), name)
          found.setdefault((text, document_length if number else query_length), values)
      if len(found) >= _MOST:
        break
    if not taught and split == "train":
      raise InputError(f"--pairs {name}: no vectors of a teacher; give data that gtr-jax teach --teacher wrote")
  if len(widths) > 1:
    what = ", ".join(f"{width} in {name}" for width, name in widths.items())
    raise InputError(f"--pairs: vectors of several widths, {what}; give what one teacher has taught")
  vectors = np.stack(list(found.values())) if found else np.zeros((0, 0), np.float32)
  return TaughtTexts([vocabulary.encode([text], length)[0] for text, length in found], vectors)


def _examples(name: str, split: str) -> Iterator[Example]:
  with Bar(manifests.read(name)["examples"].get(split, 0), f"reading {name}", " pairs") as bar:
    for record in manifests.records_of(name, split):
      yield records.example_in(record)
      bar.update(1)


def fitted(vectors: np.ndarray, texts: TaughtTexts, seed: int) -> np.ndarray:
  """Static vectors from which the cosine of the sum of a text's with the teacher's vector is larger.

  Adam on 1 - cosine, twice through the texts; pieces that are in no text stay as they are.

  Args:
    vectors: float32 `[pieces, T]`, about 1 long.
    texts: what is learned from.
    seed: of their order.

  Returns:
    As `vectors`.

  Raises:
    InputError: the teacher's vectors are of another width.
  """
  if texts.vectors.shape[1] != vectors.shape[1]:
    raise InputError(f"--pairs: their vectors have {texts.vectors.shape[1]} numbers, those of --teacher "
                     f"{vectors.shape[1]}; give what this teacher has taught")
  rng = np.random.default_rng(seed)
  passes = [list(_batches(texts, rng)) for _ in range(_PASSES)]
  steps = sum(map(len, passes))
  optimizer = optax.adam(optax.linear_schedule(_RATE, 0, steps))
  table = jnp.asarray(vectors)
  state = optimizer.init(table)
  update = _update(optimizer)
  with Bar(steps, "fitting the pieces to the texts", " steps") as bar:
    for batches in passes:
      for batch in batches:
        table, state, cosine = update(table, state, *_arrays(texts, batch))
        bar.update(1, f"cosine {float(cosine):.3f}")
  return np.asarray(table)


def mean_cosine(vectors: np.ndarray, texts: TaughtTexts) -> float:
  """Of sums of static vectors with those of the teacher."""
  table, total = jnp.asarray(vectors), 0.0
  for batch in _batches(texts, None):
    total += float(_mean_cosine(table, *_arrays(texts, batch))) * len(batch)
  return total / len(texts.tokens)


def _batches(texts: TaughtTexts, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
  """Numbers of texts that have `_TOKENS` tokens together at most, in a random order, or in their own."""
  order = np.arange(len(texts.tokens)) if rng is None else rng.permutation(len(texts.tokens))
  start, tokens = 0, 0
  for at, number in enumerate(order):
    length = len(texts.tokens[number])
    if at - start == _TEXTS or (tokens + length > _TOKENS and at > start):
      yield order[start:at]
      start, tokens = at, 0
    tokens += length
  if start < len(order):
    yield order[start:]


def _arrays(texts: TaughtTexts, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Pieces `[_TOKENS]`, the row of the batch that each is of, `_TEXTS` of none, and the vectors `[_TEXTS, T]`."""
  pieces, rows = np.zeros(_TOKENS, np.int32), np.full(_TOKENS, _TEXTS, np.int32)
  tokens = [texts.tokens[number] for number in batch]
  joined = np.concatenate(tokens)[:_TOKENS]
  pieces[:len(joined)] = joined
  rows[:len(joined)] = np.repeat(np.arange(len(batch), dtype=np.int32), list(map(len, tokens)))[:_TOKENS]
  vectors = np.zeros((_TEXTS, texts.vectors.shape[1]), np.float32)
  vectors[:len(batch)] = texts.vectors[batch]
  return pieces, rows, vectors


def _cosine(table: jax.Array, pieces: jax.Array, rows: jax.Array, vectors: jax.Array) -> jax.Array:
  sums = jax.ops.segment_sum(table[pieces], rows, len(vectors), indices_are_sorted=True)
  products = jnp.sum(sums * vectors, axis=1)
  lengths = jnp.linalg.norm(vectors, axis=1)
  return jnp.sum(products / jnp.sqrt(jnp.maximum(jnp.sum(sums**2, axis=1), 1e-12)) / jnp.maximum(lengths, 1e-12)
                 ) / jnp.maximum(jnp.sum(lengths > 0), 1)


_mean_cosine = jax.jit(_cosine)


def _update(optimizer: optax.GradientTransformation) -> Callable[..., tuple[jax.Array, optax.OptState, jax.Array]]:
  """The step: vectors of the pieces, the optimizer's state and a batch to the two and the cosine."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(table, state, pieces, rows, vectors):
    loss, gradient = jax.value_and_grad(lambda table: -_cosine(table, pieces, rows, vectors))(table)
    updates, state = optimizer.update(gradient, state, table)
    return optax.apply_updates(table, updates), state, -loss

  return update
