"""Bodies and fields that are wrong or hostile: each gets the right status, and others are answered as ever."""

import gzip
import json
import re

import pytest
from raw_requests import JSON, ROUTES, assert_form, head, limits, of_field, post, talk

pytest_plugins = "raw_fixtures"
pytestmark = pytest.mark.usefixtures("others")


NOT_JSON = {
    "empty": b"", "half": b'{"input": "a', "words": b"a river", "two": b'{"input": "a"} {"input": "b"}',
    "form": b"input=a&inputs=a", "nul": b'{"input": "a"}\0', "nothing-but-nul": b"\0" * 100,
    "latin-1": '{"input": "Größe", "inputs": "Größe"}'.encode("latin-1"),
    "cut-utf-8": b'{"input": "a\xf0\x9f\x98", "inputs": "a\xf0\x9f\x98"}',
    "gzip": gzip.compress(b'{"input": "a"}', mtime=0),
    "deep": b"[" * 100_000, "deep-and-closed": b"[" * 100_000 + b"]" * 100_000,
    "deep-objects": b'{"input":' * 100_000 + b"1" + b"}" * 100_000,
    "control": b'{"input": "a\nb"}', "digits": b'{"dimensions": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", NOT_JSON)
def test_no_json(address, name, path):
  answer = post(address, path, NOT_JSON[name])
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, "body.*(JSON|required)")


@pytest.mark.parametrize("path", ROUTES)
def test_compressed(address, path):
  answer = post(address, path, NOT_JSON["gzip"], JSON, "Content-Encoding: gzip")
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, "not compressed")


WRONG = {  # bodies of each route, and of what the answer speaks
    "null": (lambda _: b"null", "the body"), "list": (lambda _: b"[]", "the body"),
    "number": (lambda _: b"17", "the body"), "text": (lambda _: b'"a river"', "the body"),
    "no-field": (lambda _: b"{}", "inputs?: "), "null-field": (of_field(b"null"), "inputs?: "),
    "number-field": (of_field(b"1.5"), "inputs?: "), "true": (of_field(b"true"), "inputs?: "),
    "object": (of_field(b'{"a": "b"}'), "inputs?: "), "mixed": (of_field(b'["a", 1]'), "inputs?: "),
    "null-in-list": (of_field(b'["a", null]'), "inputs?: "), "nested": (of_field(b'[["a"]]'), "inputs?: "),
    "nan": (of_field(b"NaN"), "inputs?: "), "empty-text": (of_field(b'""'), "inputs?: "),
    "empty-list": (of_field(b"[]"), "inputs?: "), "empty-text-in-list": (of_field(b'["a", ""]'), "inputs?: "),
    "surrogate": (of_field(b'"a \\ud800 river"'), "inputs?: "),
    "surrogate-in-list": (of_field(b'["a", "\\udfff"]'), "inputs?: "),
    "surrogate-as-utf-8": (of_field(b'"a \xed\xa0\x80 river"'), "inputs?: |JSON"),
    "surrogate-in-name": (of_field(b'"a"', b', "\\ud800": 1'), "the body: .*unicode"),
    "surrogate-in-side": (of_field(b'"a"', b', "input_type": "\\ud800"'), "input_type: "),
    "long-name": (of_field(b'"a"', b', "' + b"n" * 100_000 + b'": 1'), "no such field"),
    "nul-in-name": (of_field(b'"a"', b', "a\\u0000b": 1'), "no such field"),
    "huge-dimensions": (of_field(b'"a"', b', "dimensions": ' + b"9" * 4000), "dimensions: "),
    "infinite-dimensions": (of_field(b'"a"', b', "dimensions": 1e999'), "dimensions: "),
    "other-dimensions": (of_field(b'"a"', b', "dimensions": 7'), "dimensions: 7 is none"),
    "no-dimensions": (of_field(b'"a"', b', "dimensions": 0'), "dimensions: "),
    "negative-dimensions": (of_field(b'"a"', b', "dimensions": -1'), "dimensions: "),
    "fraction": (of_field(b'"a"', b', "dimensions": 3.5'), "dimensions: "),
    "text-of-number": (of_field(b'"a"', b', "dimensions": "3"'), "dimensions: "),
    "text-of-truth": (of_field(b'"a"', b', "truncate": "false"'), "truncate: "),
    "of-truth": (of_field(b'"a"', b', "truncate": 0'), "truncate: "),
    "side": (of_field(b'"a"', b', "input_type": "passage"'), "input_type: "),
    "deep-enough-for-json": (of_field(b"[" * 500 + b"]" * 500), "inputs?: "),
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_fields(address, name, path):
  body, text = WRONG[name]
  answer = post(address, path, body(ROUTES[path]))
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, text)


@pytest.mark.parametrize("body, text", [
    (b'{"input": [1, 2]}', "token ids are not accepted"), (b'{"input": [[1], [2]]}', "token ids are not accepted"),
    (b'{"input": [' + b"9" * 4000 + b"]}", "input: "), (b'{"input": [-1]}', "input: "),
    (b'{"input": [[]]}', "input: "), (b'{"input": [1, "a"]}', "input: "),
    (b'{"input": "a", "encoding_format": "int8"}', "encoding_format: "),
    (b'{"input": "a", "model": ["fake"]}', "model: "),
    (b'{"input": "a", "user": 7}', "user: ")])
def test_wrong_fields_of_openai(address, body, text):
  answer = post(address, "/v1/embeddings", body)
  assert answer.status == 400
  assert_form(answer, "/v1/embeddings", text)


@pytest.mark.parametrize("model", ["other", "x" * 100_000, "../../etc/passwd", "a\nb", "\0", "\ud800"],
                         ids=["other", "long", "path", "lines", "nul", "surrogate"])
def test_names_that_nobody_knows_are_not_said_whole(address, model):
  answer = post(address, "/v1/embeddings", json.dumps({"input": "a", "model": model}).encode())
  assert answer.status == 404
  assert_form(answer, "/v1", "does not exist; give one of 'fake'")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", [
    of_field(b'"a \\u0000 river"'), of_field(b'"\\u0000"'), of_field(b'["\\ud83d\\ude00", " ", "\\ufffe"]'),
    of_field(b'"a"', b', "truncate": null, "dimensions": null'), of_field(b'"a river"', b', "dimensions": 3')],
    ids=["nul", "only-nul", "pair", "nulls", "dimensions"])
def test_what_is_odd_and_right(address, body, path):
  answer = post(address, path, body(ROUTES[path]))
  assert answer.status == 200, answer.body


@pytest.mark.parametrize("path", ROUTES)
def test_of_duplicate_keys_the_last_is_taken(address, path):
  """As most readers of JSON do."""
  field = ROUTES[path]
  twice = post(address, path, b'{"' + field + b'": 7, "' + field + b'": "a river"}').json()
  once = post(address, path, b'{"' + field + b'": "a river"}').json()
  other = post(address, path, b'{"' + field + b'": "a castle"}').json()
  assert twice == once != other


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("headers, text", [
    (("Content-Type: application/x-www-form-urlencoded",), "Content-Type: application/json"),
    (("Content-Type: text/plain",), "Content-Type: application/json"),
    (("Content-Type: multipart/form-data; boundary=x",), "Content-Type: application/json"),
    (("Content-Type: \xff\xfe",), "Content-Type: application/json"),
    (("X-None: 1",), "Content-Type: application/json")])
def test_wrong_types_of_bodies(address, path, headers, text):
  answer = post(address, path, b'{"' + ROUTES[path] + b'": "a"}', *headers)
  assert answer.status == (400 if path.startswith("/v1") else 422)
  assert_form(answer, path, text)


@pytest.mark.parametrize("headers", [
    (JSON, "Content-Encoding: identity"), ("content-type: APPLICATION/JSON; charset=utf-8",)])
def test_right_types_of_bodies(address, headers):
  assert post(address, "/embed", b'{"inputs": "a"}', *headers).status == 200


@pytest.mark.parametrize("path", ROUTES)
def test_many_texts_and_long_ones(address, service, path):
  field = ROUTES[path].decode()
  for value, status, text in ((["a"] * 2049, 413, "2,049 texts"), ("a" * 1_000_001, 422, "1,000,001 characters")):
    answer = post(address, path, json.dumps({field: value}).encode())
    assert answer.status == status
    assert_form(answer, path, text)
  with limits(service, request_tokens=20):
    served = service.served.models["fake"]
    before, served._limits = served._limits, service.limits
    answer = post(address, path, json.dumps({field: ["a river"] * 20}).encode())
    served._limits = before
  assert answer.status == 422
  assert_form(answer, path, "a request may have 20")


@pytest.mark.parametrize("given", ["a b", "a" * 129, "Größe", "a\tb", "", "<script>"])
def test_request_ids_that_are_none(address, given):
  answer = talk(address, head("/v1/models", f"X-Request-Id: {given}", method="GET"))
  assert answer.status == 200 and re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("path", ROUTES)
def test_a_fault_of_the_server(address, service, monkeypatch, path):
  """The client learns that it is one, and where to look; the log has the rest."""
  served = service.served.models["fake"]
  right = served.encode_tokens

  def encode_tokens(tokens, side, **how):
    if len(tokens) == 3:  # Not those of the others.
      raise RuntimeError("/secret/place")
    return right(tokens, side, **how)

  monkeypatch.setattr(served, "encode_tokens", encode_tokens)
  answer = post(address, path, json.dumps({ROUTES[path].decode(): ["a", "b", "c"]}).encode())
  assert answer.status == 500 and b"secret" not in answer.body
  assert_form(answer, path, f"its log knows why .request {answer.headers['x-request-id']}", "Backend")
