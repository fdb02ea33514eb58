"""POST /embed and POST /, GET /info: as text-embeddings-inference has them."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gtr_jax import __version__
from gtr_jax.serving.answers import as_json, note
from gtr_jax.serving.described import Info, failures, success
from gtr_jax.serving.problems import TEI
from gtr_jax.serving.requests import SIDE_OF_PREFIX, EmbedBody
from gtr_jax.serving.service import TOKENIZING_THREADS, Service


def router(service: Service) -> APIRouter:
  """The routes, of the first model; those that begin with /query or /document are of that side, whatever is sent."""
  routes = APIRouter(tags=[TEI], responses=failures(TEI))

  def embed(side: str | None) -> Callable[[Request, EmbedBody], Awaitable[Response]]:
    async def answer(request: Request, body: EmbedBody) -> Response:
      texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
      encoded = await service.encode(
          service.ready(request).model(None), texts, side or body.input_type or body.prompt_name or "document",
          "inputs", truncate=body.truncate is not False, dimensions=body.dimensions,
          normalize=body.normalize is not False)
      note(request, texts=len(texts), tokens=encoded.tokens, queue_ms=round(1000 * encoded.waited_s, 1))
      return await as_json(lambda: encoded.vectors, encoded.vectors.size)

    return answer

  for prefix, side in SIDE_OF_PREFIX.items():
    of_side = f", as of a {side}" if side else ""
    for path in (f"{prefix}/embed", prefix or "/"):
      routes.add_api_route(path, embed(side), methods=["POST"], name=f"embed {path}",
                           responses=success(list[list[float]]), summary=f"embeddings of texts{of_side}")

  @routes.get("/info", responses=success(Info), summary="the first model, and what a request may have")
  async def info(request: Request) -> Response:
    model, limits = service.ready(request).model(None), service.limits
    return await as_json(lambda: {
        "model_id": model.name, "model_sha": model.model.weights_hash,
        "model_dtype": model.model.encoder.config.dtype, "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": limits.concurrent, "max_input_length": max(model.model.lengths.values()),
        "max_batch_tokens": model.batcher.most_tokens, "max_batch_requests": None,
        "max_client_batch_size": limits.texts, "auto_truncate": True, "tokenization_workers": TOKENIZING_THREADS,
        "version": __version__, "sha": None, "docker_label": None}, 0)

  return routes
