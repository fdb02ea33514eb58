"""Embeddings from Python: `gtr_jax.load(model)`."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from gtr_jax.collections.corpus import full_text
from gtr_jax.errors import InputError
from gtr_jax.formats.convert import write_as
from gtr_jax.formats.model_on_disk import Array, ModelOnDisk
from gtr_jax.formats.tokenization import Tokenization, whole_number
from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import Model, load_model
from gtr_jax.inference.names_of_others import also_called, one_of
from gtr_jax.inference.weights_hash import weights_hash

DTYPES = ("float32", "float16", "int8")


@also_called(model_name_or_path="model")
def load(model: Any, *, mesh: Mesh | None = None, vocabulary: Any = None, extra_ids: int | None = None,
         query_length: int | None = None, document_length: int | None = None, dtype: str | None = None,
         attention: str = "auto") -> "Embedder":
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
    dtype: "float32" or "bfloat16", that the encoder computes in; default: bfloat16 on TPUs and GPUs, float32 on CPUs.
      What `Embedder.encode` calls so is that of the vectors.
    attention: "auto", "reference" or, on TPUs, "kernel", as docs/performance.md describes them.

  Raises:
    InputError: there is no such model, or it is damaged, or does not say what is asked for here; or an argument is of
      another kind.
  """
  if not isinstance(model, str | os.PathLike):
    raise InputError(f"model is {model!r:.80}: give the path of a model, or its name on the Hugging Face hub")
  if not isinstance(mesh, Mesh | None):
    raise InputError(f"mesh is {mesh!r:.80}: give one of gtr_jax.parallel.partitioning.make_mesh, or None for all "
                     "devices")
  return Embedder(load_model(model, mesh, Tokenization(vocabulary, extra_ids, query_length, document_length), dtype,
                             attention))


class Embedder:
  """Turns texts into vectors.

  Texts are tokenised, packed into rows by their length, and spread over the devices; results are in the order of the
  texts. Programs are compiled for a handful of shapes at the first calls.

  >>> model = gtr_jax.load("runs/mine")
  >>> queries = model.encode_query(["how do bees find their way home?"])
  >>> documents = model.encode_document([{"title": "Bees", "text": "They …"}, "A text without a title."])
  >>> model.similarity(queries, documents)     # [1, 2]

  Where sentence-transformers has another name for an argument or a method, either will do: `encode_query` is
  `encode_queries`, `show_progress_bar` is `progress`.

  Attributes:
    model: the loaded `gtr_jax.inference.load.Model`: parameters, tokenizer, lengths, prompts.
    dim: numbers in a vector.
    max_seq_length: most tokens of a text; set it to read all texts so far.
  """

  def __init__(self, model: Model):
    self.model = model
    self.dim = model.encoder.dim

  def __repr__(self) -> str:
    model, config = self.model, self.model.encoder.config
    kind = "T5 1.0" if config.mlp_activations == ("relu",) else "T5 1.1"
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params))
    devices = Counter(device.device_kind for device in model.mesh.devices.flat)
    return (f"Embedder({model.path!r}: {kind}, {config.num_layers} layer{'s' * (config.num_layers > 1)}, "
            f"{config.emb_dim} wide, {parameters:,} parameters{'' if model.encoder.shared else ' in two towers'}; "
            f"vectors of {self.dim} numbers{', of length 1' * model.encoder.normalize}; "
            + "".join(f"{side}: {model.lengths[side]} tokens, prompt {model.prompts[side]!r}; "
                      for side in ("query", "document"))
            + "on " + ", ".join(f"{count} x {kind}" for kind, count in devices.items()) + ")")

  @property
  def max_seq_length(self) -> int:
    """Most tokens of a text, EOS included: of a query or a document, whichever may be longer.

    Setting it sets both, as in sentence-transformers, which has one for both: `model.max_seq_length = 256`. InputError
    where it is no whole number of at least 1.
    """
    return max(self.model.lengths.values())

  @max_seq_length.setter
  def max_seq_length(self, value: int) -> None:
    model, lengths = self.model, dict.fromkeys(self.model.lengths, whole_number("max_seq_length", value))
    self.model = dataclasses.replace(model, lengths=lengths, weights_hash=weights_hash(
        model.encoder, model.params, model.tokenizer, lengths, model.prompts))

  @also_called(inputs="queries", sentences="queries")
  def encode_queries(
      self, queries: str | Sequence[str], *, prompt: str | None = None, batch_size: int | None = None,
      max_length: int | None = None, normalize: bool | None = None, normalize_embeddings: bool | None = None,
      dtype: str = "float32", as_numpy: bool | None = None, convert_to_numpy: bool | None = None,
      convert_to_tensor: bool | None = None, progress: bool | None = None, show_progress_bar: bool | None = None,
  ) -> np.ndarray | jax.Array:
    """`encode` with the model's prompt and length for queries."""
    return self.encode(
        queries, "query", prompt=prompt, batch_size=batch_size, max_length=max_length, normalize=normalize,
        normalize_embeddings=normalize_embeddings, dtype=dtype, as_numpy=as_numpy, convert_to_numpy=convert_to_numpy,
        convert_to_tensor=convert_to_tensor, progress=progress, show_progress_bar=show_progress_bar)

  @also_called(inputs="documents", sentences="documents")
  def encode_documents(
      self, documents: str | Sequence[str | Mapping[str, str | None]], *, prompt: str | None = None,
      batch_size: int | None = None, max_length: int | None = None, normalize: bool | None = None,
      normalize_embeddings: bool | None = None, dtype: str = "float32", as_numpy: bool | None = None,
      convert_to_numpy: bool | None = None, convert_to_tensor: bool | None = None, progress: bool | None = None,
      show_progress_bar: bool | None = None) -> np.ndarray | jax.Array:
    """`encode` with the model's prompt and length for documents.

    A document is a text, or a mapping with "text" and perhaps "title", joined as BEIR does: title, space, text. A
    title of None is none.
    """
    if isinstance(documents, Mapping):
      documents = _text_of(documents, 0)
    texts = documents if isinstance(documents, str) else [
        _text_of(document, i) for i, document in enumerate(_several(documents, "documents"))]
    return self.encode(
        texts, "document", prompt=prompt, batch_size=batch_size, max_length=max_length, normalize=normalize,
        normalize_embeddings=normalize_embeddings, dtype=dtype, as_numpy=as_numpy, convert_to_numpy=convert_to_numpy,
        convert_to_tensor=convert_to_tensor, progress=progress, show_progress_bar=show_progress_bar)

  encode_query = encode_queries
  encode_document = encode_documents

  @also_called(inputs="texts", sentences="texts")
  def encode(
      self, texts: str | Sequence[str], side: str | None = None, *, prompt_name: str | None = None,
      prompt: str | None = None, batch_size: int | None = None, max_length: int | None = None,
      normalize: bool | None = None, normalize_embeddings: bool | None = None, dtype: str = "float32",
      as_numpy: bool | None = None, convert_to_numpy: bool | None = None, convert_to_tensor: bool | None = None,
      progress: bool | None = None, show_progress_bar: bool | None = None) -> np.ndarray | jax.Array:
    """Vectors of texts, by default as documents (sentence-transformers' `encode` is of no side and applies no prompt).

    Args:
      texts: one, or several; also called `sentences` and `inputs`.
      side: "query" or "document" (the default): which prompt, length and, where there are two, tower.
      prompt_name: the same as `side`.
      prompt: put before every text instead of the model's own prompt for the side; "" for none.
      batch_size: texts that are computed at once, at most. It is a bound for memory, and changes nothing else: as many
        texts as fit are packed into rows of some hundred tokens, and rows into batches of `TOKENS_PER_BATCH` tokens of
        `gtr_jax.inference.row_queue` (on a CPU `CPU_TOKENS_PER_BATCH`) for each device. Default: no other bound than
        that, which is the fastest.
      max_length: tokens of a text at most, EOS included; default: the model's own for the side.
      normalize: whether vectors have length 1; default: as the model was trained.
      normalize_embeddings: True: vectors have length 1; False: as the model was trained.
      dtype: "float32"; "float16"; or "int8", in which each vector is scaled so that its largest number is 127: half, or
        a quarter, of the memory. Compare int8 vectors by cosine, as `similarity` does.
      as_numpy: True, the default: a numpy array; False: a jax array.
      convert_to_numpy: the same as `as_numpy`.
      convert_to_tensor: True: a jax array, as `as_numpy=False`.
      progress: a progress bar on stderr; default: none.
      show_progress_bar: the same as `progress`.

    Returns:
      `[texts, dim]`, or `[dim]` for a single text.

    Raises:
      InputError: an argument that is none of these, two names of one that disagree, or a text that is not valid
        Unicode.
      TypeError: an argument of another name.
    """
    single = isinstance(texts, str)
    texts = [texts] if isinstance(texts, str) else _several(texts, "texts")
    name = "side" if side is not None or prompt_name is None else "prompt_name"
    side = one_of("document", side=side, prompt_name=prompt_name)
    progress = one_of(False, progress=progress, show_progress_bar=show_progress_bar)
    # In sentence-transformers convert_to_tensor goes before convert_to_numpy, whose default is True.
    as_numpy = one_of(True, as_numpy=as_numpy, convert_to_numpy=None if convert_to_tensor else convert_to_numpy,
                      convert_to_tensor=False if convert_to_tensor else None)
    if normalize is None:  # sentence-transformers' False leaves the vectors as the model makes them.
      normalize_embeddings = normalize_embeddings or None
    normalize = one_of(None, normalize=normalize, normalize_embeddings=normalize_embeddings)
    if side not in ("query", "document"):
      raise InputError(f"{name} is {side!r}: give 'query' or 'document'")
    if dtype not in DTYPES:
      raise InputError(f"dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    if normalize not in (None, True, False):
      raise InputError(f"normalize is {normalize!r}: give True, False, or None for the model's own way")
    if normalize is False and self.model.encoder.normalize:
      raise InputError("normalize is False, and the model's vectors have length 1: their length before is not kept")
    if not isinstance(prompt, str | None):
      raise InputError(f"prompt is {prompt!r:.80}: give a text, or leave it out")
    if max_length is not None:
      max_length = whole_number("max_length", max_length)
    if batch_size is not None:
      batch_size = whole_number("batch_size", batch_size)
    for i, text in enumerate(texts):
      if not isinstance(text, str):
        raise InputError(f"text {i} is of type {type(text).__name__}: give strings")
    vectors = embed(self.model, texts, "passage" if side == "document" else side, max_length, progress, prompt=prompt,
                    batch_size=batch_size)
    if normalize and not self.model.encoder.normalize:
      vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    if dtype == "int8":
      vectors = np.rint(127 * vectors / np.maximum(np.abs(vectors).max(-1, keepdims=True), np.finfo(np.float32).tiny))
    vectors = vectors.astype(dtype)
    vectors = vectors[0] if single else vectors
    return vectors if as_numpy else jnp.asarray(vectors)

  @also_called(embeddings1="queries", embeddings2="documents")
  def similarity(self, queries: np.ndarray | jax.Array, documents: np.ndarray | jax.Array) -> np.ndarray:
    """Scores float32 `[queries, documents]`: dot products (cosines, for vectors of length 1); of int8 cosines.

    Raises:
      InputError: these are no vectors, or of different widths.
    """
    of_queries, of_documents = self._comparable(queries, documents)
    return of_queries @ of_documents.T

  @also_called(embeddings1="queries", embeddings2="documents")
  def similarity_pairwise(self, queries: np.ndarray | jax.Array, documents: np.ndarray | jax.Array) -> np.ndarray:
    """The score of each query with the document of the same row, float32 `[queries]`: as `similarity`.

    Raises:
      InputError: these are no vectors, or of different numbers or widths.
    """
    of_queries, of_documents = self._comparable(queries, documents)
    if len(of_queries) != len(of_documents):
      raise InputError(f"queries are {list(of_queries.shape)} and documents {list(of_documents.shape)}: give as many "
                       "of one as of the other; `similarity` compares all with all")
    return np.einsum("nd,nd->n", of_queries, of_documents)

  def get_embedding_dimension(self) -> int:
    """Numbers in a vector: `dim`, as sentence-transformers asks for it."""
    return self.dim

  get_sentence_embedding_dimension = get_embedding_dimension

  def _comparable(self, queries: np.ndarray | jax.Array, documents: np.ndarray | jax.Array) -> list[np.ndarray]:
    """Both as float32 `[texts, dim]`. Raises InputError, as `similarity`."""
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
    return sides

  @also_called()
  def save_pretrained(self, path: epath.PathLike) -> None:
    """Writes a sentence-transformers folder, as `gtr-jax convert` does: `SentenceTransformer(path)` loads it.

    Weights are float32. It has one maximum length for queries and documents, `max_seq_length`.

    Args:
      path: of a folder that is not there yet.

    Raises:
      InputError: it is there, or cannot be written; the model has no such form (two towers, a vocabulary that
        transformers would read in another way); or this is one of several processes.
    """
    if jax.process_count() > 1:
      raise InputError("save_pretrained needs all of the weights in one process: run gtr-jax convert")
    model = self.model
    arrays = {name: Array(leaf.shape, np.dtype(leaf.dtype), lambda leaf=leaf: np.asarray(leaf))
              for name, leaf in traverse_util.flatten_dict(dict(model.params), sep="/").items()}
    write_as("sentence-transformers", path, ModelOnDisk(
        epath.Path(model.path), model.encoder, arrays, model.tokenizer.path, model.tokenizer.extra_ids, model.lengths,
        model.prompts), model.tokenizer)


def _text_of(document: Any, number: int) -> Any:
  """Title and text of a document joined, where it is a mapping."""
  if not isinstance(document, Mapping):
    return document
  title, text = document.get("title"), document.get("text")
  if not isinstance(text, str) or not isinstance(title, str | None):
    raise InputError(f"document {number}: give its text as a string under 'text', and its title under 'title' or not")
  return full_text(title, text)


def _several(texts: Any, name: str) -> list[Any]:
  if isinstance(texts, Mapping | set | frozenset):  # A set has no order for the vectors to be in.
    raise InputError(f"{name} is of type {type(texts).__name__}: give a list of texts")
  try:
    return list(texts)
  except TypeError as e:
    raise InputError(f"{name} is of type {type(texts).__name__}: give a text, or a list of texts") from e
