"""`gtr-jax serve` does what its /openapi.json says: schemathesis makes right and wrong requests from that."""

import re

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from serving_process import serving
from tiny_model_dir import corpus, write_model_dir

import gtr_jax
from gtr_jax.inference.load import load_model
from gtr_jax.parallel.partitioning import make_mesh
from gtr_jax.retrieval.encode import encode_corpus

pytestmark = pytest.mark.peers

EXAMPLES = 60  # of each operation and mode
MOST_RESULTS = 20
SIDES = ("", "/query", "/document")
OPERATIONS = [f"{method} {side}{path}" for method, path in (
    ("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("POST", "/embed")) for side in SIDES] + [
    "POST /", "POST /query", "POST /document", "GET /info", "GET /stores", "POST /search", "POST /similarity",
    "GET /health", "GET /metrics", "GET /"]
# Why what the schema allows may be refused: it does not know the models, the stores and the limits.
WRONG = (r"token ids are not accepted|dimensions: \d+ is none that|give queries and documents, or inputs|"
         "disagree; give one|give store, the name of one|hybrid scores of several stores")
REFUSALS = {400: WRONG, 404: "does not exist; give one of", 422: rf"{WRONG}|top_k: [\d,]+, and an answer may have"}
# Of the machine, and of Python.
TOLD_TO_NOBODY = re.compile(r"Traceback|File \"|site-packages|\.py\b|/tmp|/home|/usr|gtr_jax[./]\w+|0x[0-9a-f]{8}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  folder = tmp_path_factory.mktemp("schema")
  model = write_model_dir(folder / "model")
  encode_corpus(load_model(model, make_mesh()), corpus(40), folder / "store")
  with serving("--model", model, "--embeddings", folder / "store", "--hybrid", "--max_top_k", MOST_RESULTS,
               "--max_body_bytes", 100_000) as running:
    yield running
  assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="module")
def described(server):
  schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
  schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", *map(str, REFUSALS)]
  return schema


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_are_as_they_are_described(described, operation, mode):
  """Also where a request is wrong."""
  method, path = operation.split()
  operation = described[path][method]

  @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck))
  @given(operation.as_strategy(generation_mode=mode))
  def check(case):
    answer = case.call_and_validate(timeout=60)
    statuses.add(answer.status_code)
    assert not TOLD_TO_NOBODY.search(answer.text) and answer.headers["x-request-id"]
    if mode.is_positive and answer.status_code in REFUSALS:
      error = answer.json()["error"]
      assert re.search(REFUSALS[answer.status_code], error if isinstance(error, str) else error["message"])

  statuses = set()
  try:
    check()
  except Unsatisfiable:  # A route that takes nothing takes nothing that is wrong.
    assert mode.is_negative and method == "GET"
    return
  assert mode.is_negative or 200 in statuses


def test_the_description_is_whole(server):
  """Of every route: what it takes, what it answers, and in which form it refuses."""
  said = httpx.get(f"{server.url}/openapi.json").json()
  assert said["info"]["version"] == gtr_jax.__version__
  routes = {(path, method): route for path, methods in said["paths"].items() for method, route in methods.items()}
  # It takes seconds to reload, and nothing but the method; names that are drawn are no model's.
  others = {"POST /admin/reload", *(f"GET {side}/v1/models/{{name}}" for side in SIDES)}
  assert {f"{method.upper()} {path}" for path, method in routes} == {*OPERATIONS, *others}
  for (path, method), route in routes.items():
    (kind, content), = route["responses"]["200"]["content"].items()
    assert kind == {"get /metrics": "text/plain", "get /": "text/html"}.get(f"{method} {path}", "application/json")
    assert content["schema"] and route["summary"]
    form = "EmbedFailed" if route["tags"] == ["tei"] else "Failed"
    for status, answer in route["responses"].items():
      if status != "200":
        assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{form}"}
    assert {"401", "413", "422", "429", "500", "503"} <= route["responses"].keys()
