"""What answers hold, for /openapi.json: they are made without these, which only describe them."""

from typing import Any, Literal

from pydantic import BaseModel

from gtr_jax.serving.problems import TEI

STATUSES = {
    400: "a field is wrong", 401: "no API key, or a wrong one", 404: "no such model or store",
    408: "the request has not come in time", 413: "too large", 422: "what was sent cannot be encoded",
    429: "overloaded: try again after Retry-After seconds", 500: "the server has failed",
    503: "starting, ending, or out of time"}


class _Fault(BaseModel):
  message: str
  type: str
  param: str | None
  code: str


class Failed(BaseModel):
  """As of OpenAI."""

  error: _Fault


class EmbedFailed(BaseModel):
  """As of text-embeddings-inference."""

  error: str
  error_type: str


class _Embedding(BaseModel):
  object: Literal["embedding"]
  index: int
  embedding: list[float] | str


class _Usage(BaseModel):
  prompt_tokens: int
  total_tokens: int


class Embeddings(BaseModel):
  """Of POST /v1/embeddings."""

  object: Literal["list"]
  model: str
  data: list[_Embedding]
  usage: _Usage


class ModelCard(BaseModel):
  """Of GET /v1/models/{name}."""

  id: str
  object: Literal["model"]
  created: int
  owned_by: str
  dimensions: int
  max_model_len: int


class Models(BaseModel):
  """Of GET /v1/models."""

  object: Literal["list"]
  data: list[ModelCard]


class Info(BaseModel):
  """Of GET /info."""

  model_id: str
  model_sha: str
  model_dtype: str
  model_type: dict[str, Any]
  max_concurrent_requests: int
  max_input_length: int
  max_batch_tokens: int
  max_batch_requests: int | None
  max_client_batch_size: int
  auto_truncate: bool
  tokenization_workers: int
  version: str
  sha: str | None
  docker_label: str | None


class _Store(BaseModel):
  name: str
  model: str
  documents: int
  dimensions: int
  precision: str
  hybrid: bool


class Stores(BaseModel):
  """Of GET /stores."""

  stores: list[_Store]


class _Result(BaseModel):
  rank: int
  score: float
  id: str
  store: str = ""
  title: str = ""
  text: str = ""


class _Answer(BaseModel):
  query: str
  results: list[_Result]


class Results(BaseModel):
  """Of POST /search; titles and texts only where they were asked for, the store of a result where there are several."""

  store: str | None
  model: str
  answers: list[_Answer]
  ms: float


class Similarities(BaseModel):
  """Of POST /similarity: a row a query."""

  model: str
  scores: list[list[float]]


class Health(BaseModel):
  """Of GET /health."""

  status: Literal["ok"]


class Reloaded(BaseModel):
  """Of POST /admin/reload: names."""

  models: list[str]
  stores: list[str]


def failures(form: str) -> dict[int | str, dict[str, Any]]:
  """Of all routes of a form."""
  model = EmbedFailed if form == TEI else Failed
  return {status: {"description": what, "model": model} for status, what in STATUSES.items()
          if not (form == TEI and status == 400)}


def success(what: Any) -> dict[int | str, dict[str, Any]]:
  """Of a route."""
  return {200: {"description": "the answer", "model": what}}


def success_text(media_type: str) -> dict[int | str, dict[str, Any]]:
  """Of a route whose answer is no JSON."""
  return {200: {"description": "the answer", "content": {media_type: {"schema": {"type": "string"}}}}}
