"""The application: all routes, and what becomes of wrong requests."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from gtr_jax import __version__
from gtr_jax.serving import openai_routes, search_routes, state_routes, tei_routes
from gtr_jax.serving.answers import first_fault, refused
from gtr_jax.serving.guard import Guard
from gtr_jax.serving.problems import Problem, failed
from gtr_jax.serving.service import Service


def application(service: Service, reload: Callable[[], Awaitable[None]]) -> Guard:
  """The ASGI application of a service.

  Args:
    service: what it serves.
    reload: takes models and stores from disk anew. Raises Problem where they cannot be taken.
  """
  app = FastAPI(title="gtr-jax serve", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)

  @app.exception_handler(Problem)
  async def of_ours(request: Request, error: Problem) -> Response:
    return refused(request, error)

  @app.exception_handler(RequestValidationError)
  async def of_fields(request: Request, error: RequestValidationError) -> Response:
    field, message = first_fault(error.errors())
    return refused(request, Problem(400, message, "invalid_request", field))

  @app.exception_handler(HTTPException)
  async def of_routes(request: Request, error: HTTPException) -> Response:
    message = {400: "the body cannot be read: send JSON in UTF-8, not compressed, neither nested hundreds of times nor "
                    "with numbers of thousands of digits",
               404: f"there is no {request.method} of this path; GET /openapi.json has all",
               405: f"this path takes no {request.method}; GET /openapi.json has what it takes"}
    response = refused(request, Problem(error.status_code, message.get(error.status_code, str(error.detail))))
    response.headers.update(error.headers or {})
    return response

  @app.exception_handler(Exception)
  async def of_the_server(request: Request, error: Exception) -> Response:
    # Starlette raises it again, for the log.
    return refused(request, failed(request.scope["state"]["request_id"]))

  for routes in (openai_routes.router(service), tei_routes.router(service), search_routes.router(service),
                 state_routes.router(service, reload)):
    app.include_router(routes)
  return Guard(app, service, set(app.openapi()["paths"]) | {"/"})
