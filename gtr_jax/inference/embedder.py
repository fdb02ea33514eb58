"""Embeddings from Python: `gtr_jax.load(model)`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gtr_jax.collections.corpus import full_text
from gtr_jax.errors import InputError
from gtr_jax.formats.tokenization import Tokenization, whole_number
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import Model, load_model

DTYPES = ("float32", "float16", "int8")


def load(model: Any, *, mesh: Mesh | None = None, vocabulary: Any = None, extra_ids: int | None = None,
         query_length: int | None = None, document_length: int | None = None) -> "Embedder":
  """Loads a model to encode with.

  Args:
    model: a training run's MODEL_DIR, a sentence-transformers or T5 folder, a T5X checkpoint, or a name on the Hugging
      Face hub ("sentence-transformers/gtr-t5-base").
    mesh: the devices, of `gtr_jax.parallel.partitioning.make_mesh`; default: data parallel over all of them.
    vocabulary: the SentencePiece model that it was trained with. This and what follows is for models of other programs:
      where they do not say it (T5X), or to have another than they say. A training run says all of it, and is refused
      with any of it; `max_length` of `Embedder.encode` reads less or more of a text with any model.
    extra_ids: sentinels after its pieces (T5, and the default where the model does not say: 100).
    query_length: most tokens of a query.
    document_length: most tokens of a document.

  Raises:
    InputError: there is no such model, or it is damaged, or does not say what is asked for here; or an argument is of
      another kind.
  """
  if not isinstance(model, str | os.PathLike):
    raise InputError(f"model is {model!r:.80}: give the path of a model, or its name on the Hugging Face hub")
  if not isinstance(mesh, Mesh | None):
    raise InputError(f"mesh is {mesh!r:.80}: give one of gtr_jax.parallel.partitioning.make_mesh, or None for all "
                     "devices")
  return Embedder(load_model(model, mesh, Tokenization(vocabulary, extra_ids, query_length, document_length)))


class Embedder:
  """Turns texts into vectors.

  Texts are tokenised, packed into rows by their length, and spread over the devices; results are in the order of the
  texts. Programs are compiled for a handful of shapes at the first calls.

  >>> model = gtr_jax.load("runs/mine")
  >>> queries = model.encode_queries(["how do bees find their way home?"])
  >>> documents = model.encode_documents([{"title": "Bees", "text": "They …"}, "A text without a title."])
  >>> model.similarity(queries, documents)     # [1, 2]

  Attributes:
    model: the loaded `gtr_jax.inference.load.Model`: parameters, tokenizer, lengths, prompts.
    dim: numbers in a vector.
  """

  def __init__(self, model: Model):
    self.model = model
    self.dim = model.encoder.dim

  def encode_queries(self, queries: str | Sequence[str], **options: Any) -> np.ndarray | jax.Array:
    """`encode` with the model's prompt and length for queries."""
    return self.encode(queries, "query", **options)

  def encode_documents(self, documents: str | Sequence[str | Mapping[str, str]],
                       **options: Any) -> np.ndarray | jax.Array:
    """`encode` with the model's prompt and length for documents.

    A document is a text, or a mapping with "text" and perhaps "title", joined as BEIR does: title, space, text.
    """
    if isinstance(documents, str):
      return self.encode(documents, "document", **options)
    if isinstance(documents, Mapping):
      raise InputError("documents is one mapping: give a list, [{'text': …}]")
    texts = []
    for i, document in enumerate(_several(documents, "documents")):
      if isinstance(document, Mapping):
        if not isinstance(document.get("text"), str) or not isinstance(document.get("title", ""), str):
          raise InputError(f"document {i}: give its text as a string under 'text', and its title under 'title' or not")
        document = full_text(document.get("title", ""), document["text"])
      texts.append(document)
    return self.encode(texts, "document", **options)

  def encode(self, texts: str | Sequence[str], side: str = "document", *, max_length: int | None = None,
             normalize: bool | None = None, dtype: str = "float32", as_numpy: bool = True,
             progress: bool = False) -> np.ndarray | jax.Array:
    """Vectors of texts, by default as documents (sentence-transformers' `encode` is of no side and applies no prompt).

    Args:
      texts: one, or several.
      side: "query" or "document": which prompt, length and, where there are two, tower.
      max_length: tokens of a text at most, EOS included; default: the model's own for the side.
      normalize: whether vectors have length 1; default: as the model was trained.
      dtype: "float32"; "float16"; or "int8", in which each vector is scaled so that its largest number is 127: half, or
        a quarter, of the memory. Compare int8 vectors by cosine, as `similarity` does.
      as_numpy: a numpy array; otherwise a jax array.
      progress: a progress bar on stderr.

    Returns:
      `[texts, dim]`, or `[dim]` for a single text.

    Raises:
      InputError: an argument that is none of these, or a text that is not valid Unicode.
    """
    single = isinstance(texts, str)
    texts = [texts] if isinstance(texts, str) else _several(texts, "texts")
    if side not in ("query", "document"):
      raise InputError(f"side is {side!r}: give 'query' or 'document'")
    if dtype not in DTYPES:
      raise InputError(f"dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    if normalize not in (None, True, False):
      raise InputError(f"normalize is {normalize!r}: give True, False, or None for the model's own way")
    if normalize is False and self.model.encoder.normalize:
      raise InputError("normalize is False, and the model's vectors have length 1: their length before is not kept")
    if max_length is not None:
      max_length = whole_number("max_length", max_length)
    for i, text in enumerate(texts):
      if not isinstance(text, str):
        raise InputError(f"text {i} is of type {type(text).__name__}: give strings")
    vectors = embed(self.model, texts, "passage" if side == "document" else side, max_length, progress)
    if normalize and not self.model.encoder.normalize:
      vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    if dtype == "int8":
      vectors = np.rint(127 * vectors / np.maximum(np.abs(vectors).max(-1, keepdims=True), np.finfo(np.float32).tiny))
    vectors = vectors.astype(dtype)
    vectors = vectors[0] if single else vectors
    return vectors if as_numpy else jnp.asarray(vectors)

  def similarity(self, queries: np.ndarray | jax.Array, documents: np.ndarray | jax.Array) -> np.ndarray:
    """Scores float32 `[queries, documents]`: dot products (cosines, for vectors of length 1); of int8 cosines.

    Raises:
      InputError: these are no vectors, or of different widths.
    """
    sides = []
    for name, vectors in (("queries", queries), ("documents", documents)):
      try:
        vectors = np.atleast_2d(np.asarray(vectors))
      except ValueError as e:
        raise InputError(f"{name} are no array ({e}): give vectors [texts, {self.dim}], as `encode` gives them") from e
      if vectors.ndim != 2 or not (vectors.dtype == jnp.bfloat16 or vectors.dtype.kind in "fiu"):
        raise InputError(f"{name} are {list(vectors.shape)} of {vectors.dtype}: give vectors [texts, {self.dim}], as "
                         "`encode` gives them")
      scaled = vectors.dtype == np.int8
      vectors = vectors.astype(np.float32)
      if scaled:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1)
      sides.append(vectors)
    if sides[0].shape[1] != sides[1].shape[1]:
      raise InputError(f"queries are {list(sides[0].shape)} and documents {list(sides[1].shape)}: give vectors of one "
                       "model, of the same width")
    return sides[0] @ sides[1].T


def _several(texts: Any, name: str) -> list[Any]:
  if isinstance(texts, Mapping | set | frozenset):  # A set has no order for the vectors to be in.
    raise InputError(f"{name} is of type {type(texts).__name__}: give a list of texts")
  try:
    return list(texts)
  except TypeError as e:
    raise InputError(f"{name} is of type {type(texts).__name__}: give a text, or a list of texts") from e
