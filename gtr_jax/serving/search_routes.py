"""POST /search, GET /stores and POST /similarity."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gtr_jax.serving.answers import as_json, note
from gtr_jax.serving.described import Results, Similarities, Stores, failures, success
from gtr_jax.serving.problems import OPENAI, Problem
from gtr_jax.serving.requests import SearchBody, SimilarityBody
from gtr_jax.serving.service import Service
from gtr_jax.serving.stores import Found, ServedStore


def router(service: Service) -> APIRouter:
  """The routes."""
  routes = APIRouter(tags=["search"], responses=failures(OPENAI))

  @routes.get("/stores", responses=success(Stores),
              summary="the stores, the first of which is searched where none is named")
  async def stores(request: Request) -> Response:
    served = service.ready(request)
    return await as_json(lambda: {"stores": [
        {"name": store.name, "model": store.model.name, "documents": store.store.shape[0],
         "dimensions": store.store.shape[1], "precision": store.store.quantizer.precision,
         "hybrid": store.has_bm25} for store in served.stores.values()]}, 0)

  @routes.post("/search", responses=success(Results), summary="the documents of a store that answer queries best")
  async def search(request: Request, body: SearchBody) -> Response:
    began, limits = time.monotonic(), service.limits
    served = service.ready(request)
    names: list[str | None] = [body.store] if body.stores is None else [*dict.fromkeys(body.stores)]
    stores = [served.store(name) for name in names]
    first = stores[0]
    if any((store.model, store.store.shape[1]) != (first.model, first.store.shape[1]) for store in stores):
      raise Problem(422, "stores: their scores cannot be compared, as they are of different models, or of "
                    "vectors of different lengths; search each for itself", "different_stores", "stores")
    queries = [body.query] if isinstance(body.query, str) else body.query
    service.check_texts(queries, "query")
    if body.top_k > limits.top_k:
      raise Problem(422, f"top_k: {body.top_k:,}, and an answer may have {limits.top_k:,} documents", "too_many",
                    "top_k")
    if len(queries) * body.top_k > limits.texts * 10:
      raise Problem(413, f"{len(queries):,} queries of {body.top_k:,} documents each are more than "
                    f"{limits.texts * 10:,} documents; send fewer at once", "too_many", "query")

    async def best(query):
      """(store, document) of the best of all stores; of equal ones those of the store that was named first."""
      of_stores = await asyncio.gather(*(
          store.search(query, body.top_k, body.id_prefix, body.hybrid) for store in stores))
      together = [(store, document) for store, found in zip(stores, of_stores, strict=True) for document in found]
      return sorted(together, key=lambda one: -one[1].score)[:body.top_k] if len(stores) > 1 else together

    found = await asyncio.gather(*map(best, queries))
    note(request, store="+".join(store.name for store in stores), texts=len(queries))

    def answer():
      return {"store": first.name if body.stores is None else None, "model": first.model.name,
              "answers": [{"query": query, "results": [
                  _result(store, rank, document, body.texts, body.stores is not None)
                  for rank, (store, document) in enumerate(of_query, 1)]}
                          for query, of_query in zip(queries, found, strict=True)],
              "ms": round(1000 * (time.monotonic() - began), 1)}

    # Of documents it has to read many.
    return await as_json(answer, sum(map(len, found)) * (20_000 if body.texts else 100))

  @routes.post("/similarity", responses=success(Similarities | list[float]),
               summary="how near queries and documents are to each other")
  async def similarity(request: Request, body: SimilarityBody) -> Response:
    model = service.ready(request).model(body.model)
    if body.inputs is not None:
      queries, documents = [body.inputs.source_sentence], body.inputs.sentences
    else:
      queries, documents = ([texts] if isinstance(texts, str) else texts or []
                            for texts in (body.queries, body.documents))
    of_queries = await service.encode(model, queries, "query", "queries")
    of_documents = await service.encode(model, documents, "document", "documents")
    note(request, texts=len(queries) + len(documents), tokens=of_queries.tokens + of_documents.tokens)
    scores = of_queries.vectors @ of_documents.vectors.T
    return await as_json(lambda: scores[0] if body.inputs is not None else {
        "model": model.name, "scores": scores}, scores.size)

  return routes


def _result(store: ServedStore, rank: int, found: Found, texts: bool, says_store: bool) -> dict[str, Any]:
  result = {"rank": rank, "score": found.score, "id": store.store.ids[found.row]}
  if says_store:
    result["store"] = store.name
  if texts:
    _, result["title"], result["text"] = store.document(found.row)
  return result
