"""GET /health and /metrics, POST /admin/reload, and the page at /."""

import importlib.resources
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gtr_jax.serving.answers import as_json
from gtr_jax.serving.described import Failed, Health, Reloaded, failures, success, success_text
from gtr_jax.serving.problems import OPENAI, Problem
from gtr_jax.serving.service import Service

_OF_RELOADS: dict[int | str, dict[str, Any]] = {
    403: {"description": "only this machine may ask for it", "model": Failed},
    409: {"description": "a reload is going on already", "model": Failed}}
_LOOPBACK = {"127.0.0.1", "::1"}
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def router(service: Service, reload: Callable[[], Awaitable[None]]) -> APIRouter:
  """The routes; `reload` as of `application`."""
  routes = APIRouter(tags=["state"], responses=failures(OPENAI))
  page = importlib.resources.files("gtr_jax.serving").joinpath("page.html").read_bytes()

  @routes.get("/health", responses=success(Health),
              summary="200 where requests are answered, 503 while the server starts or ends")
  async def health() -> Response:
    if service.draining:
      raise Problem(503, "the server is ending", "draining")
    service.ready()
    return await as_json(lambda: {"status": "ok"}, 0)

  @routes.get("/metrics", response_class=Response, responses=success_text("text/plain"),
              summary="what is measured, in Prometheus's form")
  async def metrics() -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

  @routes.post("/admin/reload", responses={**success(Reloaded), **_OF_RELOADS},
               summary="take models and stores from disk anew; what runs is answered by the old ones")
  async def admin_reload(request: Request) -> Response:
    if not service.keys and (request.client is None or request.client.host not in _LOOPBACK):
      raise Problem(403, "without API keys only this machine may ask for it; start the server with --api_key_file, or "
                    "send it SIGHUP", "forbidden")
    await reload()
    served = service.ready()
    return await as_json(lambda: {"models": list(served.models), "stores": list(served.stores)}, 0)

  @routes.get("/", response_class=Response, responses=success_text("text/html"), summary="a page to search by hand")
  async def search_page() -> Response:
    return Response(page, media_type="text/html; charset=utf-8", headers=_HEADERS)

  return routes
