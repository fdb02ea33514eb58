"""When two texts are the same: what tells false negatives from hard ones."""

import hashlib
import re
import unicodedata

_CLOSING = re.compile(r"[\s.?!…。？！;:,]+$")


def folded(text: str) -> str:
  """What two equal texts have in common: neither case, white space, forms of Unicode nor closing punctuation count.

  What bears meaning stays: "C" is not "C++". A text of nothing but punctuation is itself.
  """
  text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
  return _CLOSING.sub("", text) or text


def text_key(text: str) -> int:
  """64 bits of a hash that equal texts share."""
  return hash_key("text " + folded(text))


def hash_key(text: str) -> int:
  """64 bits of a hash."""
  return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
