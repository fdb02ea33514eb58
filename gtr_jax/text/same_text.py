"""When two texts are the same, for all that asks it: prepared pairs, mined negatives, the demo's corpus, the loss.

`folded` says it; tests/text/test_same_text.py holds it to ICU, character by character.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

# Unicode's Terminal_Punctuation (PropList.txt, 14.0) beyond ASCII: what ends sentences and their parts in all scripts,
# but for what folds into others of these; Greek's ano teleia into b7.
_TERMINAL = (
    "b7 589 5c3 60c 61b 61d-61f 6d4 700-70a 70c 7f8-7f9 830-83e 85e 964-965 e5a-e5b f08 f0d-f12 104a-104b 1361-1368 "
    "166e 16eb-16ed 1735-1736 17d4-17d6 17da 1802-1805 1808-1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5d-1b5f 1b7d-1b7e "
    "1c3b-1c3f 1c7e-1c7f 203d 2e2e 2e3c 2e41 2e4c 2e4e-2e4f 2e53-2e54 3001-3002 a4fe-a4ff a60d-a60f a6f3-a6f7 "
    "a876-a877 a8ce-a8cf a92f a9c7-a9c9 aa5d-aa5f aadf aaf0-aaf1 abeb 1039f 103d0 10857 1091f 10a56-10a57 "
    "10af0-10af5 10b3a-10b3f 10b99-10b9c 10f55-10f59 10f86-10f89 11047-1104d 110be-110c1 11141-11143 111c5-111c6 "
    "111cd 111de-111df 11238-1123c 112a9 1144b-1144d 1145a-1145b 115c2-115c5 115c9-115d7 11641-11642 1173c-1173e "
    "11944 11946 11a42-11a43 11a9b-11a9c 11aa1-11aa2 11c41-11c43 11c71 11ef7-11ef8 12470-12474 16a6e-16a6f 16af5 "
    "16b37-16b39 16b44 16e97-16e98 1bc9f 1da87-1da8a")
_CLOSING = " .?!;:,"
CLOSING = _CLOSING + "".join(chr(code) for first, _, last in (span.partition("-") for span in _TERMINAL.split())
                             for code in range(int(first, 16), int(last or first, 16) + 1))
"""Not folded where it stands last; of "…", "？" and their like are made these."""
QUOTES = {"\"": "", "'": "", "”": "“„”", "“": "„", "’": "‘‚", "‘": "‚", "»": "«", "«": "»", "›": "‹", "‹": "›",
          "」": "「", "』": "『", "》": "《", "〉": "〈", "〞": "〝", "〟": "〝"}
"""What closes a quotation, and what opens the same; "" where that may be of code."""
_ANY_QUOTES = "".join(QUOTES) + "".join(QUOTES.values())
_LAST = frozenset((*CLOSING, *QUOTES))
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

  What bears meaning stays: "C" is not "C++", nor 10² 102. A text of nothing but punctuation is itself. "yes." in
  quotation marks is "yes" in them, and 「yes」 is yes; in ASCII's, which code has around texts, it is not.
  """
  text = text.lower() if text.isascii() else _case_folded(text)
  # What is printable has no white space but blanks; texts are mostly so, and splitting them costs more than the rest.
  text = text.strip(" ") if text.isprintable() and "  " not in text else " ".join(text.split())
  return _closed(text) if text[-1:] in _LAST else text


def _closed(text: str) -> str:
  """Without closing punctuation at the end, also where quotation marks follow it, and without typographic ones around
  the whole."""
  closing = _CLOSING if text.isascii() else CLOSING
  text = text.rstrip(closing) or text
  if text[-1] not in QUOTES:
    return text
  within = text.rstrip("".join(QUOTES))
  closed = within.rstrip(closing)
  if closed and closed[-1] not in _ANY_QUOTES:  # Or else it is punctuation that is quoted.
    text = closed + text[len(within):]
  inner = text[1:-1]
  if text[0] in QUOTES[text[-1]] and text[0] not in inner and text[-1] not in inner and inner.strip(
      CLOSING + _ANY_QUOTES):
    inner = inner.strip(" ")
    return _closed(inner) if inner[-1] in _LAST else inner
  return text


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
