"""`gtr-jax serve` through the clients that others wrote: what they return is what `gtr_jax.load` returns."""

import asyncio
import base64
import contextlib
import json
import re
import shutil
import socket
import subprocess

import httpx
import jax
import langchain_openai
import numpy as np
import openai
import pytest
import tiktoken
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from serving_process import serving
from tiny_model_dir import sentence, write_model_dir

import gtr_jax
from gtr_jax.parallel.partitioning import make_mesh

pytestmark = pytest.mark.peers

KEY = "a-key-of-these-tests"
MOST_BYTES = 100_000
# Shorter than queries may be, longer than those, longer than documents, and with characters that are normalised.
TEXTS = [sentence(1, 3), sentence(2, 24), sentence(3, 60), "Größe ﬁ ①", " two  spaces\n"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  """Of the models by name: "raw", whose vectors have any length, is the first; "small" is Matryoshka."""
  folder = tmp_path_factory.mktemp("clients")
  of_model = {"raw": {"normalize": False}, "small": {"seeds": (1,)}}
  paths = {name: write_model_dir(folder / name, **options) for name, options in of_model.items()}
  change(paths["raw"], prompts={"query": "lion ", "document": "sea "})
  change(paths["small"], dimensions={"8": 1.0, "4": 1.0})
  return paths


def change(model, **fields):
  file = model / "model.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture(scope="module")
def models(paths):
  return {name: gtr_jax.load(path, mesh=make_mesh(devices=jax.devices()[:1])) for name, path in paths.items()}


@pytest.fixture(scope="module")
def server(paths, tmp_path_factory):
  keys = tmp_path_factory.mktemp("keys") / "keys"
  keys.write_text(f"another\n{KEY}\n")
  flags = [part for name, path in paths.items() for part in ("--model", f"{name}={path}")]
  with serving(*flags, "--api_key_file", keys, "--max_body_bytes", MOST_BYTES) as running:
    yield running
  said = "".join(running.lines)
  assert KEY not in said and "Traceback" not in said and TEXTS[1] not in said


@pytest.fixture
def client(server):
  with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
    yield client


def assert_same(found, expected):
  """To a millionth of the length of each vector."""
  found, expected = np.atleast_2d(np.asarray(found, np.float32)), np.atleast_2d(expected)
  assert found.shape == expected.shape
  lengths = np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(found / lengths, expected / lengths, atol=1e-6, rtol=0)


def vectors(answer):
  assert [item.index for item in answer.data] == list(range(len(answer.data)))
  return [item.embedding for item in answer.data]


def test_models_differ_as_the_tests_need(models):
  """A test of what makes no difference here could not fail."""
  raw, small = models.values()
  assert np.abs(np.linalg.norm(raw.encode(TEXTS), axis=1) - 1).min() > .01
  for model in (raw, small):
    assert np.abs(model.encode(TEXTS[2]) - model.encode(TEXTS[2], "query")).max() > .01
  assert np.abs(raw.encode(TEXTS, normalize=True) - small.encode(TEXTS)).max() > .1


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
@pytest.mark.parametrize("name", ["raw", "small"])
@pytest.mark.parametrize("texts", [TEXTS[0], TEXTS[2:3], TEXTS], ids=["str", "one", "list"])
def test_openai(client, models, name, texts, options):
  answer = client.embeddings.create(model=name, input=texts, **options)
  found = vectors(answer)
  if options == {"encoding_format": "base64"}:  # Those who ask for it get it; by default the client decodes it.
    found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
  assert_same(found, models[name].encode(texts))
  assert (answer.object, answer.model, answer.data[0].object) == ("list", name, "embedding")


def test_openai_asks_for_base64_unless_told_otherwise(server, models):
  sent = []
  http = httpx.Client(event_hooks={"request": [lambda request: sent.append(json.loads(request.content))]})
  with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, http_client=http) as client:  # closes both
    assert_same(vectors(client.embeddings.create(model="small", input=TEXTS)), models["small"].encode(TEXTS))
  assert [body["encoding_format"] for body in sent] == ["base64"]


def test_openai_usage(client, models):
  model = models["raw"].model
  expected = sum(len(tokens) for tokens in model.tokenizer.encode([f"sea {text}" for text in TEXTS], 32))
  usage = client.embeddings.create(model="raw", input=TEXTS).usage
  assert usage.prompt_tokens == usage.total_tokens == expected


@pytest.mark.parametrize("way", ["field", "path"])
def test_openai_of_a_side(client, server, models, way):
  for name, model in models.items():
    if way == "field":
      answer = client.embeddings.create(model=name, input=TEXTS, extra_body={"input_type": "query"})
    else:
      with openai.OpenAI(base_url=f"{server.url}/query/v1", api_key=KEY) as of_side:
        answer = of_side.embeddings.create(model=name, input=TEXTS)
    assert_same(vectors(answer), model.encode(TEXTS, "query"))


@pytest.mark.parametrize("encoding_format", ["float", openai.NOT_GIVEN])
def test_openai_dimensions(client, models, encoding_format):
  expected = models["small"].encode(TEXTS)
  for number in (4, 8):
    cut = expected[:, :number]
    found = client.embeddings.create(model="small", input=TEXTS, dimensions=number, encoding_format=encoding_format)
    assert_same(vectors(found), cut / np.linalg.norm(cut, axis=1, keepdims=True))
  for name, number in (("small", 3), ("raw", 4), ("small", 16)):
    with pytest.raises(openai.BadRequestError, match=f"dimensions: {number} is none") as error:
      client.embeddings.create(model=name, input=TEXTS, dimensions=number)
    assert (error.value.param, error.value.code) == ("dimensions", "invalid_dimensions")
  assert_same(vectors(client.embeddings.create(model="raw", input=TEXTS, dimensions=8)), models["raw"].encode(TEXTS))


def test_openai_models(client):
  assert [(model.id, model.object, model.owned_by) for model in client.models.list()] == [
      ("raw", "model", "gtr_jax"), ("small", "model", "gtr_jax")]


def test_openai_asynchronously(server, models):
  async def ask():
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
      return await asyncio.gather(*(client.embeddings.create(model="small", input=[text]) for text in TEXTS))

  assert_same([vectors(answer)[0] for answer in asyncio.run(ask())], models["small"].encode(TEXTS))


@pytest.mark.parametrize("options, kind, text", [
    ({"api_key": "wrong"}, openai.AuthenticationError, "give an API key of this server"),
    ({"model": "gpt"}, openai.NotFoundError, "the model 'gpt' does not exist; give one of 'raw', 'small'"),
    ({"input": []}, openai.BadRequestError, "input: .*at least 1"),
    ({"input": ""}, openai.BadRequestError, "input: .*at least 1"),
    ({"input": [""]}, openai.BadRequestError, "input: .*at least 1"),
    ({"input": [["a"]]}, openai.BadRequestError, "input: "),
    ({"encoding_format": "int8"}, openai.BadRequestError, "encoding_format: .*'float' or 'base64'"),
    ({"extra_body": {"inputtype": "query"}}, openai.BadRequestError, "inputtype: there is no such field"),
    ({"input": [5, 7]}, openai.BadRequestError, "token ids are not accepted"),
    ({"input": TEXTS[2], "extra_body": {"truncate": False}}, openai.UnprocessableEntityError, "text 0 has more than"),
    ({"input": "a" * MOST_BYTES}, openai.APIStatusError, "the body is larger than 100,000 bytes"),
])
def test_openai_errors(client, options, kind, text):
  options = {"model": "raw", "input": TEXTS, **options}
  with pytest.raises(kind, match=text) as error:
    client.with_options(api_key=options.pop("api_key", KEY)).embeddings.create(**options)
  assert type(error.value) is kind and error.value.body.keys() == {"message", "type", "param", "code"}


def test_openai_rate_limit(client, server):
  """Bodies that come slowly fill the memory that there is for bodies; whoever waits a little is answered."""
  with contextlib.ExitStack() as slow, httpx.Client() as http:
    head = (f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {MOST_BYTES}\r\n\r\n").encode()
    for _ in range(40):
      connection = slow.enter_context(socket.create_connection(server.address, timeout=60))
      with contextlib.suppress(OSError):  # Those that are one too many are closed.
        connection.sendall(head + b" " * (MOST_BYTES - 1))
    with pytest.raises(openai.RateLimitError, match="overloaded") as error:
      for _ in range(100):  # Until the server has read them all.
        client.embeddings.create(model="raw", input="a " * 2000)
    assert error.value.response.headers["retry-after"] == "1"
    answers = []

    def heard(response):
      answers.append(response.status_code)
      slow.close()

    http.event_hooks = {"response": [heard]}
    patient = client.with_options(max_retries=3, http_client=http)
    assert len(vectors(patient.embeddings.create(model="raw", input="a " * 2000))) == 1
    assert answers[0] == 429 and answers[-1] == 200


@pytest.fixture
def langchain(server):
  def embeddings(**options):
    return langchain_openai.OpenAIEmbeddings(**{
        "model": "small", "base_url": f"{server.url}/v1", "api_key": KEY, "max_retries": 0, **options})

  return embeddings


def test_langchain(langchain, models):
  embeddings = langchain(check_embedding_ctx_length=False)
  assert_same(embeddings.embed_documents(TEXTS), models["small"].encode(TEXTS))
  assert_same(embeddings.embed_query(TEXTS[2]), models["small"].encode(TEXTS[2]))
  # In one request a text, as they are split by it.
  assert_same(embeddings.embed_documents(TEXTS, chunk_size=1), models["small"].encode(TEXTS))
  cut = models["small"].encode(TEXTS)[:, :4]
  assert_same(langchain(check_embedding_ctx_length=False, dimensions=4).embed_documents(TEXTS),
              cut / np.linalg.norm(cut, axis=1, keepdims=True))


def test_langchain_of_a_side(langchain, server, models):
  embeddings = langchain(check_embedding_ctx_length=False, base_url=f"{server.url}/query/v1")
  assert_same(embeddings.embed_query(TEXTS[2]), models["small"].encode(TEXTS[2], "query"))


def test_langchain_sends_token_ids_by_default(langchain, monkeypatch):
  """Those of OpenAI's vocabulary, which would be fetched: here each byte is one."""
  monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", tiktoken.Encoding(
      "cl100k_base", pat_str="(?s).", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}))
  with pytest.raises(openai.BadRequestError, match="token ids .* check_embedding_ctx_length=False"):
    langchain().embed_query(TEXTS[0])


@pytest.mark.parametrize("options", [{}, {"embed_batch_size": 2}, {"dimensions": 4}])
def test_llama_index(server, models, options):
  embedding = OpenAILikeEmbedding("small", api_base=f"{server.url}/v1", api_key=KEY, max_retries=0, **options)
  expected = models["small"].encode([text.replace("\n", " ") for text in TEXTS])[:, :options.get("dimensions")]
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  assert_same(embedding.get_text_embedding_batch(TEXTS), expected)
  assert_same(embedding.get_text_embedding(TEXTS[1]), expected[1])
  assert_same(embedding.get_query_embedding(TEXTS[2]), expected[2])


@pytest.mark.parametrize("way", ["model", "base_url"])
@pytest.mark.parametrize("path", ["", "/embed"])
def test_hugging_face(server, models, way, path):
  """`normalize` is true unless it is said otherwise, as in text-embeddings-inference."""
  client, model = InferenceClient(**{way: server.url + path}, token=KEY), models["raw"]
  assert_same(client.feature_extraction(TEXTS[0]), model.encode(TEXTS[0], normalize=True))
  assert_same(client.feature_extraction(TEXTS, normalize=True), model.encode(TEXTS, normalize=True))
  assert_same(client.feature_extraction(TEXTS, normalize=False), model.encode(TEXTS))
  assert_same(client.feature_extraction(TEXTS, prompt_name="query", truncate=True),
              model.encode(TEXTS, "query", normalize=True))
  assert_same(client.feature_extraction(TEXTS[:2], truncate=False), model.encode(TEXTS[:2], normalize=True))


@pytest.mark.parametrize("options, status, text", [
    ({"text": TEXTS[2], "truncate": False}, 422, "text 0 has more than 32 tokens"),
    ({"text": TEXTS[0], "prompt_name": "passage"}, 422, "prompt_name: .*'query' or 'document'"),
    ({"text": TEXTS[0], "truncation_direction": "left"}, 422, "truncation_direction: "),
    ({"text": ""}, 422, "inputs: "), ({"text": []}, 422, "inputs: "),
])
def test_hugging_face_errors(server, options, status, text):
  with pytest.raises(HfHubHTTPError) as error:
    InferenceClient(model=server.url, token=KEY).feature_extraction(**options)
  answer = error.value.response
  assert answer.status_code == status and re.search(text, answer.json()["error"])
  assert answer.json()["error_type"] == "Validation"


def test_hugging_face_without_a_key(server):
  with pytest.raises(HfHubHTTPError) as error:
    InferenceClient(model=server.url, token="another key").feature_extraction("a")
  assert error.value.response.status_code == 401


def test_sentence_similarity(server, models):
  found = InferenceClient(model=f"{server.url}/similarity", token=KEY).sentence_similarity(TEXTS[0], TEXTS[1:])
  model = models["raw"]
  expected = model.encode(TEXTS[0], "query") @ model.encode(TEXTS[1:]).T
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def curl(server, path, *flags, key=KEY):
  ran = subprocess.run(["curl", "--silent", "--show-error", "--max-time", "60", "-w", "\n%{http_code}",
                        f"{server.url.removeprefix('http://')}{path}", "-H", f"Authorization: Bearer {key}", *flags],
                       capture_output=True, text=True, check=True)
  body, _, status = ran.stdout.rpartition("\n")
  return int(status), body


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(server, models):
  """As `gtr-jax serve --help` has it."""
  json_type = ("-H", "Content-Type: application/json", "-d")
  status, body = curl(server, "/v1/embeddings", *json_type, '{"input": "a text"}')
  assert status == 200
  assert_same(json.loads(body)["data"][0]["embedding"], models["raw"].encode("a text"))
  # What curl does with large bodies: it waits until it is told to go on.
  status, body = curl(server, "/embed", "-H", "Expect: 100-continue", *json_type, json.dumps({"inputs": TEXTS * 20}))
  assert status == 200
  assert_same(json.loads(body), models["raw"].encode(TEXTS * 20, normalize=True))
  # A form is what curl sends without the type.
  status, body = curl(server, "/v1/embeddings", "-d", '{"input": "a text"}')
  assert status == 400 and "Content-Type: application/json" in json.loads(body)["error"]["message"]
  assert curl(server, "/health", key="none") == (200, '{"status":"ok"}')
  assert curl(server, "/metrics", key="none")[0] == 401
  status, body = curl(server, "/metrics")
  assert status == 200 and re.search(r'te_request_success\{route="/embed"\} [1-9]', body)
