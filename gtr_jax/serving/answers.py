"""How answers are made, of all routes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from gtr_jax.serving.problems import OPENAI, TEI, Problem

_LARGE = 100_000  # numbers or characters, of which JSON is made in another thread


async def as_json(make: Callable[[], Any], size: int) -> Response:
  """What `make` returns, as JSON, arrays of NumPy among it; `size` is about how many numbers or characters it has."""

  def dumped():
    return orjson.dumps(make(), option=orjson.OPT_SERIALIZE_NUMPY)

  body = dumped() if size < _LARGE else await asyncio.get_running_loop().run_in_executor(None, dumped)
  return Response(body, media_type="application/json")


def refused(request: Request, problem: Problem) -> Response:
  """A problem in the form that the route promises."""
  note(request, error=problem.kind)
  form = TEI if is_tei(request) else OPENAI
  return Response(orjson.dumps(problem.body(form)), problem.status_in(form), problem.headers(), "application/json")


def is_tei(request: Request) -> bool:
  """Whether the route is one of text-embeddings-inference's."""
  return TEI in getattr(request.scope.get("route"), "tags", ())


def note(request: Request, **what: Any) -> None:
  """For the line of the log."""
  request.scope["state"]["noted"].update(what)


def first_fault(errors: Sequence[Any]) -> tuple[str | None, str]:
  """Of what pydantic says: the field, and what is wrong with it, without what it holds."""
  error = errors[0]
  if error["type"] == "json_invalid":
    return None, f"the body is no JSON: {error.get('ctx', {}).get('error', 'it cannot be read')}"
  # The first part is the field; of a union the names of the kinds that were tried follow.
  places = [[str(part) for part in e["loc"] if part != "body"] for e in errors]
  if not places[0]:
    said = str(error["msg"]).removeprefix("Value error, ")
    return None, f"the body: {said}; send an object as JSON, with Content-Type: application/json"
  # A name of the client's own may be anything: half of a surrogate pair is no JSON of ours, and it may be long.
  field = places[0][0].encode("ascii", "backslashreplace").decode()[:80]
  if error["type"] == "extra_forbidden":
    return field, f"{field}: there is no such field; leave it out"
  of_field = [e for e, place in zip(errors, places, strict=True) if place[:1] == places[0][:1]]
  # What is wrong with one of several is nearer than that they are not one; of the kinds that it might be the first.
  numbered = [(next((str(part) for part in e["loc"] if isinstance(part, int)), ""), e) for e in of_field]
  number = next((number for number, _ in numbered if number), "")
  words = [str(e["msg"]).removeprefix("Value error, ") for of_number, e in numbered if of_number == number]
  return field, f"{field}: {number}: {words[0]}" if number else f"{field}: {' or: '.join(dict.fromkeys(words[:4]))}"
