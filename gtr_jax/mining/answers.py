"""Whether a passage contains an answer string, as the readers of open questions decide it.

In either of two senses: DPR's (arXiv 2004.04906), the answer's tokens in a row among the passage's, and SQuAD's (arXiv
1606.05250), where punctuation and articles are dropped first. A passage that holds an answer in either is no negative.
"""

import re
import string
import unicodedata
from collections.abc import Iterable

_TOKEN = re.compile(r"[^\W_]+|\S")  # A run of letters and digits, or one other character.
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_forms(answers: Iterable[str]) -> list[tuple[str, str]]:
  """The two forms of each answer, to give to `contains_answer`; empty ones are found nowhere."""
  return [(_dpr(answer), _squad(answer)) for answer in answers]


def contains_answer(passage: str, forms: Iterable[tuple[str, str]]) -> bool:
  """Whether one of the answers is in the passage, at the boundaries of words."""
  forms = list(forms)
  if not forms:
    return False
  passage_forms = _dpr(passage), _squad(passage)
  return any(answer.strip() and answer in text for form in forms
             for answer, text in zip(form, passage_forms, strict=True))


def _dpr(text: str) -> str:
  """Lower case, canonically decomposed, a space before and after every token."""
  return f" {' '.join(_TOKEN.findall(unicodedata.normalize('NFD', text).lower()))} "


def _squad(text: str) -> str:
  """Lower case, no punctuation, no articles, single spaces; one before and one after."""
  text = _ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION))
  return f" {' '.join(text.split())} "
