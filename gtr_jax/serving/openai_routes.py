"""POST /v1/embeddings and GET /v1/models, as OpenAI defines them."""

import base64
import time
from collections.abc import Awaitable, Callable

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from gtr_jax.serving.answers import as_json, note
from gtr_jax.serving.described import Embeddings, ModelCard, Models, failures, success
from gtr_jax.serving.model import Encoded, ServedModel
from gtr_jax.serving.problems import OPENAI, Problem
from gtr_jax.serving.requests import SIDE_OF_PREFIX, EmbeddingsBody
from gtr_jax.serving.service import Service


def router(service: Service) -> APIRouter:
  """The routes; those that begin with /query or /document are of that side, whatever is sent."""
  routes, began = APIRouter(tags=[OPENAI], responses=failures(OPENAI)), int(time.time())

  def embeddings(side: str | None) -> Callable[[Request, EmbeddingsBody], Awaitable[Response]]:
    async def answer(request: Request, body: EmbeddingsBody) -> Response:
      model = service.ready(request).model(body.model)
      encoded = await _encoded(service, model, body, side or body.input_type or "document")
      note(request, texts=len(encoded.vectors), tokens=encoded.tokens, queue_ms=round(1000 * encoded.waited_s, 1))
      return await as_json(lambda: _answer(model, body, encoded), encoded.vectors.size)

    return answer

  def described(model: ServedModel) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": began, "owned_by": "gtr_jax", "dimensions": model.dim,
            "max_model_len": max(model.model.lengths.values())}

  async def models(request: Request) -> Response:
    served = service.ready(request)
    return await as_json(lambda: {"object": "list", "data": list(map(described, served.models.values()))}, 0)

  async def model(request: Request, name: str) -> Response:
    found = service.ready(request).model(name)
    return await as_json(lambda: described(found), 0)

  for prefix, side in SIDE_OF_PREFIX.items():
    of_side = f", as of a {side}" if side else ""
    routes.add_api_route(f"{prefix}/v1/embeddings", embeddings(side), methods=["POST"],
                         name=f"{side or ''} embeddings".strip(), responses=success(Embeddings),
                         summary=f"embeddings of texts{of_side}")
    routes.add_api_route(f"{prefix}/v1/models", models, methods=["GET"], name=f"{side or ''} models".strip(),
                         responses=success(Models), summary="the models")
    routes.add_api_route(f"{prefix}/v1/models/{{name}}", model, methods=["GET"], name=f"{side or ''} model".strip(),
                         responses=success(ModelCard), summary="a model")
  return routes


async def _encoded(service: Service, model: ServedModel, body: EmbeddingsBody, side: str) -> Encoded:
  truncate = body.truncate is not False
  if isinstance(body.input, str):
    return await service.encode(model, [body.input], side, "input", truncate=truncate, dimensions=body.dimensions)
  if isinstance(body.input[0], str):
    texts = [text for text in body.input if isinstance(text, str)]
    return await service.encode(model, texts, side, "input", truncate=truncate, dimensions=body.dimensions)
  of_texts = [ids for ids in body.input if isinstance(ids, list)] or [[i for i in body.input if isinstance(i, int)]]
  tokens = _token_ids(service, model, of_texts, model.model.lengths[side], truncate)
  return await model.encode_tokens(tokens, side, dimensions=body.dimensions)


def _token_ids(service: Service, model: ServedModel, of_texts: list[list[int]], longest: int,
               truncate: bool) -> list[np.ndarray]:
  """Ids that a client has sent, ended as the model's texts are. Raises Problem."""
  if not service.accept_token_ids:
    raise Problem(400, "input: token ids are not accepted, as they may be of another vocabulary: send texts "
                  "(langchain_openai.OpenAIEmbeddings: check_embedding_ctx_length=False); where they are of this "
                  "model's vocabulary, start the server with --accept_token_ids", "token_ids_not_accepted", "input")
  if len(of_texts) > service.limits.texts:
    raise Problem(413, f"input: {len(of_texts):,} texts, and a request may have {service.limits.texts:,}; send "
                  "several", "too_many_texts", "input")
  tokenizer, tokens = model.model.tokenizer, []
  for i, ids in enumerate(of_texts):
    if max(ids) >= tokenizer.size:
      raise Problem(422, f"input: text {i} has the token id {max(ids)}, and the model's vocabulary has "
                    f"{tokenizer.size:,}", "invalid_token_ids", "input")
    if ids[-1] == tokenizer.eos_id:
      ids = ids[:-1]
    if 0 in ids:
      raise Problem(422, f"input: text {i} has the token id 0, which is padding", "invalid_token_ids", "input")
    tokens.append(np.asarray([*(ids[:longest - 1] if truncate else ids), tokenizer.eos_id], np.int32))
  return tokens


def _answer(model: ServedModel, body: EmbeddingsBody, encoded: Encoded) -> dict[str, object]:
  base_64 = body.encoding_format == "base64"
  return {"object": "list", "model": model.name,
          "data": [{"object": "embedding", "index": i,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if base_64 else vector}
                   for i, vector in enumerate(encoded.vectors)],
          "usage": {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens}}
