"""`gtr-jax serve`: a model, and stores, over HTTP."""

import argparse
import re

from gtr_jax.cli import process_flags, shared_flags
from gtr_jax.errors import InputError
from gtr_jax.io import bars, flags

HELP = "serve a model and embedding stores over HTTP"
DESCRIPTION = """\
Answers as OpenAI's API (POST /v1/embeddings, GET /v1/models) and text-embeddings-inference (POST /embed, GET /info,
/health, /metrics) do, and searches stores (POST /search, and a page at /):

  gtr-jax serve --model runs/mine --embeddings embeddings
  curl 127.0.0.1:8080/v1/embeddings -H 'Content-Type: application/json' -d '{"input": "a text"}'

It listens on this machine alone unless --host says otherwise (0.0.0.0: all addresses), and asks for no key unless there
is --api_key_file. SIGTERM ends it when its requests are answered; SIGHUP, or POST /admin/reload, takes models and
stores from disk anew. docs/serving.md tells more. Needs pip install 'gtr_jax[serve]'."""


def add_arguments(p: argparse.ArgumentParser) -> None:
  """The flags."""
  p.add_argument("--model", action="append", required=True, type=flags.named_path, metavar="[NAME=]MODEL",
                 help=f"{shared_flags.MODEL_HELP}; repeatable: clients choose by NAME (default: the last part of the "
                 "path), or have the first one")
  p.add_argument("--embeddings", action="append", default=[], type=flags.named_path, metavar="[NAME=]STORE",
                 help="an embedding store of one of the models, to be searched; repeatable")
  p.add_argument("--hybrid", action="store_true",
                 help="make a BM25 index of each store that has none (else those that have one are searched by it too, "
                 "when a client asks)")
  shared_flags.add_rescore(p)
  p.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
  p.add_argument("--port", type=flags.of(int), default=8080, metavar="N",
                 help="the port; 0: any that is free, which is said (default: 8080)")
  p.add_argument("--api_key_file", type=flags.path, metavar="FILE",
                 help="a key a line; each request needs one of them (Authorization: Bearer KEY)")
  p.add_argument("--accept_token_ids", action="store_true",
                 help="take token ids instead of texts, which have to be of the model's vocabulary")
  p.add_argument("--cors_origin", action="append", default=[], metavar="ORIGIN",
                 help="pages of this origin (https://example.org) may ask; repeatable (default: none but its own)")
  p.add_argument("--opentelemetry", action="store_true",
                 help="send a span of each request to where OpenTelemetry's variables say: OTEL_EXPORTER_OTLP_ENDPOINT")
  limits = p.add_argument_group("limits")
  for name, kind, default, what in (
      ("max_concurrent", flags.positive, 512, "requests at once; the next are refused (429)"),
      ("max_queue_ms", flags.positive, 10_000, "a request is refused (429) if its texts would wait for longer"),
      ("max_batch_tokens", flags.positive, None, "tokens that are encoded at once, padding included, on each device "
       "(default: 2,048 on CPUs, 16,384 elsewhere)"),
      ("max_texts", flags.positive, 2048, "texts of a request"),
      ("max_characters", flags.positive, 1_000_000, "characters of a text"),
      ("max_request_tokens", flags.positive, 300_000, "tokens of a request"),
      ("max_body_bytes", flags.positive, 8 << 20, "bytes of a request"),
      ("max_top_k", flags.positive, 1000, "documents of an answer"),
      ("timeout", flags.positive, 60, "seconds until a request is answered or given up"),
      ("drain", flags.positive, 30, "seconds that requests have to be answered in after SIGTERM")):
    limits.add_argument(f"--{name}", type=kind, default=default, metavar="N",
                        help=what if default is None else f"{what} (default: {default:,})")
  shared_flags.add_tokenization(p)
  shared_flags.add_computing(p)
  process_flags.add_arguments(p)


def run(args: argparse.Namespace) -> None:
  """Serves until a signal ends it. Raises InputError."""
  try:
    from gtr_jax.serving.limits import Limits
    from gtr_jax.serving.loading import load_all
    from gtr_jax.serving.log import log_to
    from gtr_jax.serving.server import Server, listen
    from gtr_jax.serving.service import Service
  except ModuleNotFoundError as e:
    raise InputError(f"gtr-jax serve needs {e.name}: pip install 'gtr_jax[serve]'") from e
  for origin in args.cors_origin:  # As browsers send it.
    if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
      raise InputError(f"--cors_origin {origin}: is no origin; give scheme and host, such as https://example.org, or *")
  keys = _keys(args.api_key_file) if args.api_key_file else ()
  models = shared_flags.by_name("model", args.model)
  stores = shared_flags.by_name("embeddings", args.embeddings)
  limits = Limits(args.max_concurrent, args.max_queue_ms, args.max_batch_tokens, args.max_texts, args.max_characters,
                  args.max_request_tokens, args.max_body_bytes, args.max_top_k, args.timeout, args.drain)
  service = Service(limits, keys, args.accept_token_ids)

  def load():
    from gtr_jax.parallel.partitioning import make_mesh
    return load_all(models, stores, make_mesh=lambda: make_mesh(model=args.model_parallel),
                    tokenization=shared_flags.tokenization(args), dtype=args.dtype, attention=args.attention,
                    hybrid=args.hybrid, rescore=args.rescore, limits=limits, metrics=service.metrics,
                    tokenizing=service.tokenizing)

  listening = listen(args.host, args.port)
  host, port = listening.getsockname()[:2]
  url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
  page = f"; to search by hand: {url}/" if stores else ""
  bars.note(f"{url}: loading and compiling; /health says when it is done{page}")
  with log_to():
    Server(service, load).run(listening, args.cors_origin, args.opentelemetry)


def _keys(path: str) -> list[bytes]:
  """Of the file."""
  from gtr_jax.io.paths import location
  file = location(path)
  if not file.is_file():
    raise InputError(f"--api_key_file {path}: no such file; write a key on each line of one")
  keys = [line.strip() for line in file.read_bytes().splitlines() if line.strip()]
  if not keys:
    raise InputError(f"--api_key_file {path}: no key in it; write one on each line")
  return keys
