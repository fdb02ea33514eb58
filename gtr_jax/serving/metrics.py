"""What a server measures, in Prometheus's form; named as text-embeddings-inference names it where it is the same."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from gtr_jax.serving.batching import Batch

_SECONDS = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TOKENS = tuple(16 << i for i in range(12))
_SHARES = tuple(i / 10 for i in range(1, 11))


class Metrics:
  """Of one server."""

  def __init__(self) -> None:
    disable_created_metrics()
    self.registry = registry = CollectorRegistry()

    def histogram(name, what, buckets, labels=()):
      return Histogram(name, what, labels, buckets=buckets, registry=registry)

    # Counters, but of names that do not end in _total, which Prometheus's own client adds to every one.
    self.requests = Gauge("te_request_count", "requests, by route", ["route"], registry=registry)
    self.succeeded = Gauge("te_request_success", "requests that were answered, by route", ["route"], registry=registry)
    self.failed = Gauge("te_request_failure", "requests that were not answered, by route and kind", ["route", "err"],
                        registry=registry)
    self.duration = histogram("te_request_duration", "seconds from a request to its answer", _SECONDS, ["route"])
    self.tokenization = histogram("te_request_tokenization_duration", "seconds of a request's tokenisation", _SECONDS)
    self.wait = histogram("te_request_queue_duration", "seconds until a text of a request was in a batch", _SECONDS)
    self.inference = histogram("te_request_inference_duration",
                               "seconds from the first batch of a request to its last embedding", _SECONDS)
    self.queue_size = Gauge("te_queue_size", "texts that wait for a batch", registry=registry)
    self.expected_wait = Gauge("gtr_queue_expected_wait", "seconds that what waits for batches will take",
                               registry=registry)
    self.batch_texts = histogram("te_batch_next_size", "texts of a batch", _COUNTS)
    self.batch_tokens = histogram("te_batch_next_tokens", "tokens of a batch", _TOKENS)
    self.batch_fill = histogram("gtr_batch_fill", "share of a batch that is tokens and no padding", _SHARES)
    self.device = histogram("gtr_batch_duration", "seconds of a batch on the devices", _SECONDS)
    self.texts = Counter("gtr_texts", "texts that were encoded", registry=registry)
    self.tokens = Counter("gtr_tokens", "tokens that were encoded", registry=registry)
    self.search = histogram("gtr_search_duration", "seconds of a search, by store", _SECONDS, ["store"])

  def observe(self, batch: Batch) -> None:
    """A batch that is done."""
    self.batch_texts.observe(batch.texts)
    self.batch_tokens.observe(batch.tokens)
    self.batch_fill.observe(batch.tokens / batch.slots)
    self.device.observe(batch.seconds)
    self.texts.inc(batch.texts)
    self.tokens.inc(batch.tokens)
