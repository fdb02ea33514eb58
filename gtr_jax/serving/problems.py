"""Why a request is refused, in words that a client may see, in the form that its route promises."""

import http
from typing import Any

OPENAI, TEI = "openai", "tei"
# text-embeddings-inference's names, by status.
_TEI_TYPES = {401: "Unauthorized", 413: "Validation", 422: "Validation", 424: "Backend",
              429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error",
                 500: "server_error", 503: "server_error"}


class Problem(Exception):
  """A request that is not answered.

  Args:
    status: of HTTP.
    message: what is wrong and what to do; no path of the machine, no text of the request.
    code: a word for programs, as of OpenAI's errors: "model_not_found".
    param: the field that is wrong.
    retry_after: seconds after which it may be sent again.
  """

  def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None,
               retry_after: int | None = None):
    super().__init__(message)
    self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

  @property
  def kind(self) -> str:
    """For metrics and logs: the code, or else the name of the status."""
    return self.code or http.HTTPStatus(self.status).phrase.lower().replace(" ", "_")

  def headers(self) -> dict[str, str]:
    """Of the answer."""
    of_status = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
    return of_status | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

  def status_in(self, form: str) -> int:
    """Of the answer: what is wrong in a request is 422 where text-embeddings-inference's form is promised."""
    return 422 if form == TEI and self.status == 400 else self.status

  def body(self, form: str) -> dict[str, Any]:
    """Of the answer, in OpenAI's form or that of text-embeddings-inference."""
    if form == TEI:
      return {"error": self.message, "error_type": _TEI_TYPES.get(self.status, "Validation")}
    return {"error": {"message": self.message, "type": _OPENAI_TYPES.get(self.status, "invalid_request_error"),
                      "param": self.param, "code": self.code or str(self.status)}}


def failed(request_id: str) -> Problem:
  """The server has, which is no fault of the request."""
  return Problem(500, f"the server has failed; its log knows why (request {request_id})", "internal")
