"""Which language a text is in, as py3langid guesses it (Lui and Baldwin 2012, retrained; 139 languages)."""

import functools
from typing import Any

from gtr_jax.errors import InputError

ANY = "any"
# A text is in another language where the asked one has less. Of 8,000 English questions and titles of 3 to 10 words
# that leaves out 0.6 %, a fourth of which are in other languages, and of 5,344 texts of 3 to 10 words in 95 other
# languages it keeps 1 %; 0.003 leaves out 0.1 % and keeps 8 %.
_LEAST = 0.03
_LEAST_OF_QUERY = 0.003  # Whose passage is in the language, and vouches for it: names and numbers are no sentence.
_READ = 250  # Characters of a text, which are enough; the time grows with them.


def check(code: str) -> None:
  """Raises InputError where a code is of no language that is known."""
  if code != ANY and code not in (known := _identifier().labels):
    raise InputError(f"--language {code}: no language of this code is known; give one of {', '.join(known)}, or {ANY}")


def is_in(code: str, text: str, least: float = _LEAST) -> bool:
  """Whether a text may be in a language; `ANY` has all texts.

  Few words say little, so that the guess of a short text is spread over languages, and it is kept unless the asked one
  has next to no share.
  """
  if code == ANY:
    return True
  text = text[:_READ].encode(errors="ignore").decode()  # Without half characters.
  return dict(_identifier().rank(text))[code] >= least


def pair_is_in(code: str, query: str, passage: str) -> bool:
  """Whether both may be in a language."""
  return is_in(code, passage) and is_in(code, query, _LEAST_OF_QUERY)


def most_likely(text: str) -> str:
  """The code of the language that a text is in most likely."""
  return _identifier().classify(text[:_READ].encode(errors="ignore").decode())[0]


def identity(code: str) -> str:
  """All that decides whether texts are in a language: other versions guess otherwise."""
  if code == ANY:
    return code
  import py3langid
  return f"{code} py3langid {py3langid.__version__}"


@functools.cache
def _identifier() -> Any:
  try:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
  except ModuleNotFoundError as e:
    raise InputError("--language needs py3langid: pip install py3langid, or give --language any") from e
  return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
