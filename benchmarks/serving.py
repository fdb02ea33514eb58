"""`gtr-jax serve` over HTTP; with --peer and --infinity, beside sentence-transformers behind FastAPI and infinity.

All serve the same model, in turns: whoever is not measured stands still (SIGSTOP), so that each has all cores but what
the client takes, which is said. The floor is `encode` of the same texts in this process, tokenisation included.
"""

import contextlib
import json
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import measure
import numpy as np
import serving_setup as setup

from gtr_jax.inference.embed import embed
from gtr_jax.inference.load import load_model
from gtr_jax.retrieval.search import Searcher
from gtr_jax.retrieval.store import Store

CLIENTS, MOST_TEXTS = 64, 32
PARTS = ("throughput", "query", "search")
FLOOR = "encode, in process"


def main():
  parser = measure.arguments(__doc__)
  parser.add_argument("--pairs", metavar="FILE", help="JSONL(.gz) of pairs with title and body; without it texts are "
                      "drawn, about as long as those of Reddit")
  parser.add_argument("--vocabulary", metavar="FILE", help="SentencePiece model (T5's spiece.model); without it one is "
                      "trained on the texts")
  parser.add_argument("--peer", action="store_true", help="sentence-transformers too")
  parser.add_argument("--infinity", metavar="PYTHON", help="infinity too, of this Python's environment")
  parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure")
  parser.add_argument("--seconds", type=float, default=20, help="of throughput, in each round, after a warm-up")
  parser.add_argument("--queries", type=int, default=500, help="one after the other, in each round")
  parser.add_argument("--rows", type=int, default=200_000, help="documents of the store, of 768 numbers")
  parser.add_argument("--peer_at_once", type=int, default=64, help="texts of a call of sentence-transformers' encode")
  parser.add_argument("--peer_batch", type=int, default=32, help="batch size of the peers")
  parser.add_argument("--overload", type=float, nargs="?", const=300, metavar="SECONDS", help="then twice as much as "
                      "it can do, for so long (300)")
  parser.add_argument("--abuse", action="store_true", help="then 10,000 clients that hang up, 1,000 slow ones and "
                      "1,000 wrong requests")
  args = parser.parse_args()
  if args.quick:
    args.seconds, args.queries, args.rows = min(args.seconds, 4), min(args.queries, 50), min(args.rows, 20_000)
  if args.overload and "throughput" not in args.parts:
    raise SystemExit("--overload needs to know how much the server can do: give --parts throughput too")
  # So that no server is left behind, and those that stand still least of all.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
    results = Benchmark(args, Path(folder), servers).run()
  measure.write_json(args.json, {"flags": {k: v for k, v in vars(args).items() if k != "json"}, **results})


class Benchmark:
  """All parts.

  Attributes:
    rows: of the table.
    goals: (what, figure, wanted, whether it is met).
    results: for machines.
  """

  def __init__(self, args, folder, servers):
    self._args, self._folder, self._to_end = args, folder, servers
    self.rows, self.goals, self.results = [], [], {}
    texts = setup.read_texts(args.pairs, 5_000 if args.quick else 60_000)
    self._texts, rng = texts, np.random.default_rng(0)
    self._models = setup.write_models(folder, texts, args.vocabulary, args.quick)
    numbers = rng.integers(1, MOST_TEXTS + 1, 20 * len(texts.bodies) // MOST_TEXTS)
    order = iter(np.concatenate([rng.permutation(len(texts.bodies)) for _ in range(12)]).tolist())
    self._sequence = [[texts.bodies[next(order)] for _ in range(number)] for number in numbers.tolist()]
    self._titles = [texts.titles[i] for i in rng.permutation(len(texts.titles))[:args.queries].tolist()]
    self._files = {
        "bodies": setup.write_requests(folder / "bodies.jsonl", "/v1/embeddings", [
            {"model": setup.MODEL, "input": of_request} for of_request in self._sequence]),
        "titles": setup.write_requests(folder / "titles.jsonl", "/v1/embeddings", [
            {"model": setup.MODEL, "input": title} for title in self._titles]),
        "searches": setup.write_requests(folder / "searches.jsonl", "/search", [
            {"query": title, "top_k": 10} for title in self._titles])}

  def run(self):
    """Measures, and prints a table."""
    args, folder = self._args, self._folder
    servers = [self._started(setup.ours([self._models[setup.MODEL]], folder))]
    if args.peer:
      servers.append(self._started(setup.sentence_transformers_server(
          self._models[setup.MODEL], folder, args.peer_at_once, args.peer_batch)))
    if args.infinity:
      servers.append(self._started(setup.infinity_server(args.infinity, self._models[setup.MODEL], folder,
                                                         args.peer_batch)))
    self._model = load_model(self._models[setup.MODEL])
    self._compare(servers)
    if "throughput" in args.parts:
      self._throughput(servers)
    if "query" in args.parts:
      self._query(servers)
    if args.overload:
      self._overload(servers[0])
    if args.abuse:
      self._abuse(servers[0])
    for server in servers:
      server.end()
    if "search" in args.parts:
      self._search()
    print(measure.table(["", "of", "texts/s", "requests/s", "p50 ms", "p99 ms", "client's core"], self.rows))
    if self.goals:
      print(measure.table(["goal", "is", "wanted", ""], [
          [what, f"{figure:.2f}", wanted, "met" if met else "NOT MET"] for what, figure, wanted, met in self.goals]))
    self.results["goals"] = [{"goal": what, "is": figure, "wanted": wanted, "met": bool(met)}
                             for what, figure, wanted, met in self.goals]
    return self.results

  def _started(self, server):
    """A server that stands still, and will end with the benchmark."""
    self._to_end.callback(server.end)
    began = time.perf_counter()
    with server.running():
      server.wait_until_ready()
    print(f"{server.name}: ready after {time.perf_counter() - began:.1f} s", flush=True)
    return server

  def _row(self, part, name, latencies, texts=None, rate=None, cpu=None):
    self.rows.append([part, name, "" if texts is None else f"{texts:.0f}", "" if rate is None else f"{rate:.1f}",
                      *(f"{1000 * np.percentile(latencies, q):.2f}" if len(latencies) else "" for q in (50, 99)),
                      "" if cpu is None else f"{100 * cpu:.0f} %"])

  def _compare(self, servers):
    """Whether all servers give the vectors of the model."""
    texts = self._titles[:8] + self._sequence[0]
    wanted, differences = embed(self._model, texts, "passage", progress=False), {}
    for server in servers:
      with server.running():
        found = np.asarray([row["embedding"] for row in _asked(server, texts)["data"]])
      # The median of texts, as tokenisers may differ in an odd one.
      differences[server.name] = float(np.median(np.abs(found - wanted).max(1)))
      print(f"{server.name}: a vector's numbers differ by {differences[server.name]:.1e}", flush=True)
      if not differences[server.name] < 1e-3:
        raise SystemExit(f"{server.name} serves something else")
    self.results["differences"] = differences

  def _in_turn(self, servers, in_process, **spec):
    """What the client says, by server and round; `spec` of `serving_load`. After each round `in_process` is called with
    that."""
    found = {server.name: [] for server in servers}
    for number in range(self._args.repeats):
      for server in servers:
        with server.running():
          said = setup.load(mode="closed", port=server.port, **spec)
        if any(status != "200" for status in said["statuses"]):
          raise SystemExit(f"{server.name} has answered with {said['statuses']}")
        found[server.name].append(said)
        print(f"{server.name}: {len(said['latencies'])} requests, {said['seconds']:.2f} s in round {number + 1} of "
              f"{self._args.repeats}", flush=True)
      began = time.perf_counter()
      in_process(found)
      print(f"{FLOOR}: {time.perf_counter() - began:.2f} s in round {number + 1} of {self._args.repeats}", flush=True)
    return found

  def _throughput(self, servers):
    args = self._args
    bare = self._bare({"model": setup.MODEL, "input": self._sequence[0]}, servers[0])
    floor, every = [], [text for of_request in self._sequence for text in of_request]
    embed(self._model, every[:500], "passage", progress=False)

    def encode(found):
      texts = every[:found[servers[0].name][-1]["texts"]]  # As many as were served.
      began = time.perf_counter()
      embed(self._model, texts, "passage", progress=False)
      floor.append(len(texts) / (time.perf_counter() - began))

    found = self._in_turn(servers, encode, requests=self._files["bodies"], clients=CLIENTS, seconds=args.seconds,
                          warmup=args.seconds / 4)
    with bare.running():
      of_client = setup.load(mode="closed", port=bare.port, requests=self._files["bodies"], clients=CLIENTS,
                             seconds=min(args.seconds, 3), warmup=.2, check=False)
    bare.end()
    of_all, rates = {}, {}
    for name, rounds in found.items():
      rates[name] = [said["texts"] / said["seconds"] for said in rounds]
      latencies = [latency for said in rounds for latency in said["latencies"]]
      seconds = sum(said["seconds"] for said in rounds)
      of_all[name] = {"texts_per_second": rates[name], "p50": np.percentile(latencies, 50),
                      "p99": np.percentile(latencies, 99),
                      "client_share_of_a_core": sum(said["cpu_seconds"] for said in rounds) / seconds}
      self._row("throughput", name, latencies, np.median(rates[name]), len(latencies) / seconds,
                of_all[name]["client_share_of_a_core"])
    self._row("throughput", FLOOR, [], np.median(floor))
    self._row("throughput", "a bare server: what the client can", of_client["latencies"], None,
              len(of_client["latencies"]) / of_client["seconds"], of_client["cpu_seconds"] / of_client["seconds"])
    ours = servers[0].name
    self._capacity = np.median(rates[ours])
    if len(servers) > 1:
      best = max((name for name in rates if name != ours), key=lambda name: np.median(rates[name]))
      times = np.median(np.divide(rates[ours], rates[best]))
      self._goal(f"texts/s, times those of {best}", times, ">= 2.0", times >= 2)
      slower = of_all[ours]["p99"] / of_all[best]["p99"]
      self._goal(f"p99 with it, times that of {best}", slower, "<= 1", slower <= 1)
    overhead = np.median(np.divide(floor, rates[ours])) - 1
    self._goal("overhead over encode in process", overhead, "<= .15", overhead <= .15)
    self.results["throughput"] = {"servers": of_all, "encode": floor, "client_requests_per_second":
                                  len(of_client["latencies"]) / of_client["seconds"]}

  def _one_client(self, part, servers, requests, body, in_process):
    """Latencies of one client, of a bare server and of this process, by name, in turns; seconds."""
    bare = self._bare(body, servers[0])
    floor = []
    for title in self._titles[:20]:
      in_process(title)

    def one_by_one(found):
      for title in self._titles:
        began = time.perf_counter()
        in_process(title)
        floor.append(time.perf_counter() - began)

    found = self._in_turn([*servers, bare], one_by_one, requests=requests, clients=1, seconds=600,
                          count=self._args.queries, warmup=.2, check=False)
    bare.end()
    latencies = {name: [latency for said in rounds for latency in said["latencies"]]
                 for name, rounds in found.items()} | {FLOOR: floor}
    for name, of_one in latencies.items():
      self._row(part, name, of_one)
    self.results[part] = {name: {"p50": np.percentile(of_one, 50), "p99": np.percentile(of_one, 99)}
                          for name, of_one in latencies.items()}
    return latencies

  def _query(self, servers):
    found = self._one_client("query", servers, self._files["titles"], {"model": setup.MODEL, "input": self._titles[0]},
                             lambda title: embed(self._model, [title], "query", progress=False))
    for q in (50, 99):
      floor = np.percentile(found[FLOOR], q) + np.percentile(found["bare"], q)
      more = 1000 * (np.percentile(found[servers[0].name], q) - floor)
      self._goal(f"a query's p{q}, ms more than encode and a bare server", more, "<= 2", more <= 2)

  def _search(self):
    model = load_model(self._models["wide"])
    store = Store(setup.write_store(self._folder, model, self._texts, self._args.rows))
    server = self._started(setup.ours([self._models["wide"]], self._folder, [store.path]))
    searcher = Searcher(store, model.mesh)
    found = self._one_client(
        "search", [server], self._files["searches"], {"query": self._titles[0], "top_k": 10},
        lambda title: searcher.search(embed(model, [title], "query", progress=False), 10))
    times = np.median(found[server.name]) / np.median(found[FLOOR])
    self._goal("a search's p50, times encode and Searcher.search", times, "< 1.2", times < 1.2)
    server.end()

  def _bare(self, body, server):
    """A server of answers as large as that of another one."""
    with server.running():
      size = len(json.dumps(_asked(server, body.get("input", body.get("query")), body), separators=(",", ":")))
    return self._started(setup.bare_server(size, self._folder))

  def _goal(self, *goal):
    self.goals.append(goal)

  def _queries_now(self, server):
    return setup.load(mode="closed", port=server.port, requests=self._files["titles"], clients=1, seconds=600,
                      count=self._args.queries, warmup=.5, check=False)["latencies"]

  def _overload(self, server):
    """Twice as many texts as it can do."""
    seconds = self._args.overload
    with server.running():
      before = self._queries_now(server)
      with server.watched(max(seconds / 300, .1)) as resident:
        said = setup.load(mode="opened", port=server.port, requests=self._files["bodies"], seconds=seconds,
                          rate=2 * self._capacity / ((1 + MOST_TEXTS) / 2), clients=2000, timeout=65)
      after = self._queries_now(server)
    counts = {status: len(latencies) for status, latencies in said["latencies"].items()}
    self._row("query, before overload", server.name, before)
    for status, latencies in said["latencies"].items():
      self._row(f"overload: {status}", server.name, latencies, said["texts"] / seconds if status == "200" else None,
                len(latencies) / seconds)
    self._row("query, after overload", server.name, after)
    bad = sum(n for status, n in counts.items() if status not in ("200", "429")) + said["not_sent"]
    self._goal("requests neither answered nor refused in time", bad, "0", not bad)
    self._memory("overload", resident)
    for q in (50, 99):
      slower = np.percentile(after, q) / np.percentile(before, q)
      self._goal(f"a query's p{q} after overload, times that before", slower, "about 1", slower < 1.25)
    self.results["overload"] = {"counts": counts, "not_sent": said["not_sent"], "texts": said["texts"],
                                "resident": resident, "before": before, "after": after}

  def _memory(self, part, resident):
    """Of a server, over time."""
    early = resident[len(resident) // 10]
    print(f"{part}: resident {resident[0] / 2**20:.0f} MiB before, {early / 2**20:.0f} after a tenth of the time, at "
          f"most {max(resident) / 2**20:.0f}, {resident[-1] / 2**20:.0f} afterwards", flush=True)
    grown = resident[-1] / resident[0]
    self._goal(f"resident memory after {part}, times that before", grown, "<= 1.05", grown <= 1.05)

  def _abuse(self, server):
    scale = 20 if self._args.quick else 1
    log = server.log.stat().st_size
    with server.running():
      before = self._queries_now(server)
      with server.watched() as resident:
        said = setup.load(mode="abuse", port=server.port, requests=self._files["bodies"], good=self._files["titles"],
                          hang_ups=10_000 // scale, slow=1000 // scale, wrong=1000 // scale, at_once=64,
                          slow_seconds=90 // scale, body_bytes=9 << 20, timeout=65)
      after = self._queries_now(server)
    with server.log.open("rb") as f:
      f.seek(log)
      failures = f.read().lower().count(b"traceback")
    for when, latencies in (("before", before), ("during", said["latencies"]), ("after", after)):
      self._row(f"query, {when} abuse", server.name, latencies)
    for kind, statuses in said["statuses"].items():
      print(f"abuse, {kind}: " + ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items())), flush=True)
    for kind, status, body in said["bad"]:
      print(f"abuse, {kind}: answered {status}: {body!r}", flush=True)
    self._goal("the well-behaved client's errors under abuse", sum(said["errors"].values()), "0", not said["errors"])
    self._goal("answers of 500 and more, or with a traceback", said["bad_count"], "0", not said["bad_count"])
    self._goal("tracebacks in the log", failures, "0", not failures)
    self._memory("abuse", resident)
    self.results["abuse"] = {key: said[key] for key in ("statuses", "errors", "bad", "bad_count")} | {
        "tracebacks": failures, "resident": resident, "before": before, "during": said["latencies"], "after": after}


def _asked(server, texts, body=None):
  """The answer to a request for the embeddings of texts, or another one."""
  where = "/search" if body and "query" in body else "/v1/embeddings"
  request = urllib.request.Request(f"http://127.0.0.1:{server.port}{where}", method="POST", data=json.dumps(
      body or {"model": setup.MODEL, "input": texts}).encode(), headers={"Content-Type": "application/json"})
  with urllib.request.urlopen(request, timeout=60) as answer:
    return json.loads(answer.read())


if __name__ == "__main__":
  main()
