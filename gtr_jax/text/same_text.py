"""When two texts are the same, for all that asks it: prepared pairs, mined negatives, the demo's corpus, the loss.

`folded` says it; tests/text/test_same_text.py holds it to ICU, character by character.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

CLOSING = " .?!;:,。"  # Folded; of "…", "？" and their like are made these.
# Unicode's default ignorable code points, none of which can be seen: soft hyphens, joiners, selectors of glyphs.
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
                     "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8]")
# Unicode's compatibility decompositions of <super>, <sub> and <fraction>: 102 of 10², x1 of x₁, 21⁄2 of 2½.
_APART = re.compile(
    "([\u00aa\u00b2\u00b3\u00b9\u00ba\u00bc-\u00be\u02b0-\u02b8\u02e0-\u02e4\u10fc\u1d2c-\u1d2e\u1d30-\u1d3a"
    "\u1d3c-\u1d4d\u1d4f-\u1d6a\u1d78\u1d9b-\u1dbf\u2070\u2071\u2074-\u208e\u2090-\u209c\u2120\u2122\u2150-\u215f"
    "\u2189\u2c7c\u2c7d\u2d6f\u3192-\u319f\ua69c\ua69d\ua770\ua7f2-\ua7f4\ua7f8\ua7f9\uab5c-\uab5f\uab69"
    "\U00010781-\U00010785\U00010787-\U000107b0\U000107b2-\U000107ba\U0001e030-\U0001e06d\U0001f16a-\U0001f16c])")
# And of what holds one of them: ㎡ is m².
_UNITS = {"㎟": "mm²", "㎠": "cm²", "㎡": "m²", "㎢": "km²", "㎣": "mm³", "㎤": "cm³", "㎥": "m³", "㎦": "km³",
          "㎨": "m∕s²", "㎯": "rad∕s²", "㍸": "dm²", "㍹": "dm³"}
_OF_UNITS = str.maketrans(_UNITS)
_UNSEEN_ABOVE = re.compile("[\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]")


def folded(text: str) -> str:
  """What two equal texts have in common: neither case, white space, forms of Unicode, characters that cannot be seen
  nor closing punctuation count.

  What bears meaning stays: "C" is not "C++", nor 10² 102. A text of nothing but punctuation is itself.
  """
  text = text.lower() if text.isascii() else _case_folded(text)
  # What is printable has no white space but blanks; texts are mostly so, and splitting them costs more than the rest.
  text = text.strip(" ") if text.isprintable() and "  " not in text else " ".join(text.split())
  return text.rstrip(CLOSING) or text


def _case_folded(text: str) -> str:
  """Unicode's toNFKC_Casefold (The Unicode Standard, section 3.13, R5), but for what is above or below a line and for
  fractions, which stay as they are."""
  text = _UNSEEN.sub("", text)
  if len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text):  # Seldom; one set of all is slow.
    text = _UNSEEN_ABOVE.sub("", text)
  text = text.replace("\u037a", " ι").casefold()  # NFKC would make a mark of that iota, and move it.
  if not _UNITS.keys().isdisjoint(text):
    text = text.translate(_OF_UNITS)
  parts = _APART.split(text)
  return "".join(part if i % 2 else _normal(part) for i, part in enumerate(parts))


def _normal(text: str) -> str:
  """Of a text in which case is folded."""
  normal = unicodedata.normalize("NFKC", text)
  return normal if normal == text else unicodedata.normalize("NFC", normal.casefold())


def distinct(items: Iterable[T], text_of: Callable[[T], str]) -> dict[str, T]:
  """The first of those whose texts are equal, by what these have in common; in their order."""
  found: dict[str, T] = {}
  for item in items:
    found.setdefault(folded(text_of(item)), item)
  return found


def text_key(text: str) -> int:
  """64 bits of a hash that equal texts share."""
  return folded_key(folded(text))


def folded_key(folded_text: str) -> int:
  """The `text_key` of a text that has been folded."""
  return hash_key("text " + folded_text)


def hash_key(text: str) -> int:
  """64 bits of a hash."""
  return bytes_key(text.encode(errors="surrogatepass"))


def bytes_key(data: bytes) -> int:
  """64 bits of a hash."""
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
