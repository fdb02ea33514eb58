"""Whether a passage contains an answer string, as the readers of open questions decide it.

There are two senses: DPR's (arXiv 2004.04906), the answer's tokens in a row among the passage's, and SQuAD's (arXiv
1606.05250), where punctuation and articles are dropped first.
"""

import re
import string
import unicodedata
from collections.abc import Iterable

_TOKEN = re.compile(r"[^\W_]+|\S")  # A run of letters and digits, or one other character.
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def contains_answer_as_dpr(passage: str, answers: Iterable[str]) -> bool:
  """Whether one of the answers is in the passage, in DPR's sense."""
  passage_form = _dpr(passage)
  return any(_within(_dpr(answer), passage_form) for answer in answers)


def answer_forms(answers: Iterable[str]) -> list[tuple[str, str]]:
  """Each answer in the form of either sense, to give to `contains_answer`; empty ones are found nowhere."""
  return [(_dpr(answer), _squad(answer)) for answer in answers]


def contains_answer(passage: str, forms: Iterable[tuple[str, str]]) -> bool:
  """Whether one of the answers is in the passage, in either sense: then it is no negative."""
  forms = list(forms)
  if not forms:
    return False
  passage_forms = _dpr(passage), _squad(passage)
  return any(_within(answer, text) for form in forms for answer, text in zip(form, passage_forms, strict=True))


def _within(answer: str, passage: str) -> bool:
  """Of two in the same form, at the boundaries of words."""
  return bool(answer.strip()) and answer in passage


def _dpr(text: str) -> str:
  """Lower case, canonically decomposed, a space before and after every token."""
  return f" {' '.join(_TOKEN.findall(unicodedata.normalize('NFD', text).lower()))} "


def _squad(text: str) -> str:
  """Lower case, no punctuation, no articles, single spaces; one before and one after."""
  text = _ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION))
  return f" {' '.join(text.split())} "
