"""What a server takes at most, of a request and of all of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one server.

  Attributes:
    concurrent: requests that are being answered; the next ones are refused (429).
    queue_ms: milliseconds that texts may have to wait for those before them, as fast as these have been encoded lately;
      where it would be longer a request is refused (429).
    batch_tokens: token slots of a batch on each data shard; None: as `gtr-jax encode`.
    texts: in a request (413).
    text_characters: of one text (422).
    request_tokens: of all texts of a request after they are cut (422).
    body_bytes: of a request (413).
    top_k: documents of an answer (422).
    timeout_s: seconds until a request is answered or given up (503), and until a client has sent or taken all of it
      (408).
    drain_s: seconds that requests have to be answered in when the server is told to end.
  """

  concurrent: int = 512
  queue_ms: int = 10_000
  batch_tokens: int | None = None
  texts: int = 2048
  text_characters: int = 1_000_000
  request_tokens: int = 300_000
  body_bytes: int = 8 << 20
  top_k: int = 1000
  timeout_s: float = 60.0
  drain_s: float = 30.0
