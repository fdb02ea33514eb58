"""What benchmarks/serving.py measures `gtr-jax serve` beside: sentence-transformers behind FastAPI, as a careful
engineer would put it there; or, with --bare, an application that only answers so many bytes.

A request is checked by pydantic, waits in a queue, and is encoded with all others that wait, as many as --at_once texts
(a single larger request whole), by sentence-transformers' encode, which sorts them by length and makes batches of
--batch_size. One thread encodes, with torch's threads on all cores; what is encoded is turned into JSON by orjson.
"""

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import os

import uvicorn


def peer(args):
  """The application around sentence-transformers."""
  import orjson
  import torch
  from fastapi import FastAPI, HTTPException
  from fastapi.responses import Response
  from pydantic import BaseModel
  from sentence_transformers import SentenceTransformer

  torch.set_num_threads(args.threads)
  model = SentenceTransformer(args.model, device="cpu", config_kwargs={"dropout_rate": 0.0})
  model.encode(["to warm it up"] * args.batch_size)
  thread = concurrent.futures.ThreadPoolExecutor(1)
  queue: asyncio.Queue = asyncio.Queue()

  class Body(BaseModel):
    input: str | list[str]
    model: str = ""
    encoding_format: str = "float"

  async def batches():
    waiting = None
    while True:
      taken = [waiting or await queue.get()]
      number, waiting = len(taken[0][0]), None
      while not queue.empty():
        waiting = queue.get_nowait()
        if number + len(waiting[0]) > args.at_once:
          break
        number += len(waiting[0])
        taken.append(waiting)
        waiting = None
      taken = [(texts, future) for texts, future in taken if not future.done()]  # Whoever has gone does not wait.
      every = [text for texts, _ in taken for text in texts]
      try:
        vectors = every and await asyncio.get_running_loop().run_in_executor(
            thread, lambda every=every: model.encode(every, batch_size=args.batch_size, show_progress_bar=False))
      except Exception as e:
        for _, future in taken:
          future.done() or future.set_exception(HTTPException(500, type(e).__name__))
        continue
      begin = 0
      for texts, future in taken:
        future.done() or future.set_result(vectors[begin:begin + len(texts)])
        begin += len(texts)

  @contextlib.asynccontextmanager
  async def lifespan(app):
    task = asyncio.create_task(batches())
    yield
    task.cancel()

  app = FastAPI(lifespan=lifespan)

  @app.get("/health")
  async def health():
    return {"status": "ok"}

  @app.post("/v1/embeddings")
  async def embeddings(body: Body):
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 0 < len(texts) <= 2048:
      raise HTTPException(400, "1 to 2048 texts")
    future = asyncio.get_running_loop().create_future()
    queue.put_nowait((texts, future))
    vectors = await future
    as_base64 = body.encoding_format == "base64"
    tokens = sum(map(len, texts)) // 4  # About: to count them would tokenise once more.
    return Response(orjson.dumps({
        "object": "list", "model": body.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "data": [{"object": "embedding", "index": i, "embedding":
                  base64.b64encode(vector.tobytes()).decode() if as_base64 else vector}
                 for i, vector in enumerate(vectors)]}, option=orjson.OPT_SERIALIZE_NUMPY),
        media_type="application/json")

  return app


def bare(size):
  """An application that answers so many bytes to whatever it is asked."""
  body = b"a" * size
  headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]

  async def app(scope, receive, send):
    while scope["method"] == "POST" and (await receive()).get("more_body"):
      pass
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

  return app


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument("--port", type=int, required=True, help="to listen at, on this machine alone")
  parser.add_argument("--model", help="a sentence-transformers folder")
  parser.add_argument("--bare", type=int, metavar="BYTES", help="of each answer, instead of a model")
  parser.add_argument("--at_once", type=int, default=64, help="texts of a call of encode")
  parser.add_argument("--batch_size", type=int, default=32, help="of encode")
  parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")
  args = parser.parse_args()
  app = peer(args) if args.bare is None else bare(args.bare)
  uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", access_log=False, backlog=2048,
              timeout_keep_alive=75, lifespan="off" if args.bare is not None else "on")


if __name__ == "__main__":
  main()
