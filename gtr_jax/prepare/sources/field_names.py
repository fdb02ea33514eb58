"""Names of fields: when two are one, and which of those that nobody reads may change what a pair means."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable
from typing import Any

_HUMP = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # Within camelCase.
# Wherever in a name this word is. A prefix may stick to it: isduplicate, irrelevant, hardnegs.
_JUDGING = re.compile(r"(is|has|non|not|un|in|ir|dis|hard)?(neg(ative)?(s?(passage|ctx|document|doc|text))?|"
                      r"label|score|grade|relevan(t|ce|cy)|judge?ment|"
                      r"similarit(y|ie)|dup(e|licated?)?|distractor|correct(ness)?|wrong|paraphrase|"
                      r"answerab(le|ility)|impossible|contradict(s|ion|ory)|entail(ed|ment)?|equivalen(t|ce)|"
                      r"reject(ed)?|downvoted|qrel|margin|logit)s?")
# Where it is the whole name, but for what says how or whether: target_language and product_class are nothing to a pair.
_JUDGING_ALONE = re.compile(r"(.+ly_)?((is|are|was|has)_?)?((non|not|un|in|ir|dis|mis)_?)?"
                            r"(match(ed|e|ing)?|selected|similar|same|valid|true|gold|rel|related|accept(ed|able)|good|"
                            r"bad|useful|helpful|judged|support(s|ed|ing)|pertinent|clicked|chosen|preferred|evidence|"
                            r"truth|reward|prob(abilit(y|ie))?|cosine|relatedness|helpfulness|usefulness|"
                            r"same_meaning)s?|"
                            r"(is|has|contains)_?(.+_)?answers?|class(es)?|targets?|stars|weights?")
# Where it ends a name: avg_rating, cos_sim.
_JUDGING_LAST = re.compile(r"(.+_)?(rating|sim|distance|confidence|verdict|quality|preference|polarity|annotation|"
                           r"nli)s?")
# Another text that may be right or wrong: known_positives, positive_passages_2, is_positive, other_answers, passages.
_ANSWERING = re.compile(r"(.+_)?positives?(_(passage|ctx|document|doc|text|answer)s?)?|"
                        r"(other|more|alternat(iv)?e|alt|additional|extra|known|further|second|gold|golden|valid|"
                        r"accept(able|ed)|best|good|bad|related|unrelated)_(pos|passage|ctx|document|doc|answer)s?|"
                        r"(passage|document|doc|ctx)s")
_NUMBERED = re.compile(r"(passage|answer|document|doc|ctx)_?\d+")  # passage_2, where `passage` itself is asked about.
_VERDICTS = {"true", "false", "yes", "no", "entailment", "neutral", "contradiction", "relevant", "irrelevant"}
_COUNTING = frozenset({"n", "num", "number", "count"})  # num_negatives


@functools.lru_cache(maxsize=4096)
def folded_name(name: str) -> str:
  """As names are compared: `hardNegatives`, `Hard-Negatives` and `hard negatives` are `hard_negatives`."""
  return re.sub(r"[\s-]+", "_", _HUMP.sub("_", name.strip())).lower()


@functools.lru_cache(maxsize=4096)
def may_change_the_meaning(name: str) -> bool:
  """Whether a field of the name may judge a pair, or hold one more text that is right or wrong."""
  words = [word for word in re.split(r"[\W_\d]+", folded_name(name)) if word]
  whole = "_".join(words)
  return _COUNTING.isdisjoint(words) and bool(
      any(map(_JUDGING.fullmatch, words)) or _NUMBERED.fullmatch(folded_name(name))
      or any(known.fullmatch(whole) for known in (_JUDGING_ALONE, _JUDGING_LAST, _ANSWERING)))


def is_verdict(text: Any) -> bool:
  """Whether it is a word that annotators say of a pair."""
  return isinstance(text, str) and text.strip().lower() in _VERDICTS


def without_number(name: str) -> str:
  """Of one of several: `answer` of answer_2."""
  return re.sub(r"_?\d+$", "", name)


def check_meaning(unread: Iterable[str], ignored: Collection[str], is_named: bool = False) -> None:
  """Raises ValueError where one of the fields that are not read may change what is meant.

  Args:
    unread: names of fields.
    ignored: those that mean nothing.
    is_named: whether the user names the fields of the pair, who has seen what is called `positive` then.
  """
  for name in unread:
    if name not in ignored and may_change_the_meaning(name) and not (is_named and folded_name(name) == "positive"):
      holds_negatives = re.search("neg|bad", name.lower()) is not None
      raise ValueError(not_known(name, "name it (--negatives), or " * (is_named and holds_negatives)))


def not_known(name: str, how: str = "") -> str:
  """What is wrong with a field that may change what is meant, and what to do."""
  return f"a field {name!r}, which may change what the pair means, and is not known; {how}{leave_out(name)}"


def leave_out(name: str) -> str:
  """What to do with a field that means nothing."""
  return f"if {name!r} means nothing here, say so (--ignore {name})"


def nowhere(names: set[str], ignored: Collection[str], rows: Iterable[tuple[str, Any]]) -> set[str]:
  """Those of the names that no row has; it reads rows, (place, value), until all are found. What is ignored may be
  spelled in any way, and be within a passage."""
  for _, row in rows if names else ():
    there = names_in(row)
    folded = set(map(folded_name, there))
    names = {name for name in names - there if not (name in ignored and folded_name(name) in folded)}
    if not names:
      break
  return names


def names_in(row: Any) -> set[str]:
  """Of the fields of a line, and of those of the objects in them, or in a list."""
  fields = row if isinstance(row, dict) else {"": row}
  values = itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in fields.values())
  within = itertools.chain.from_iterable(value for value in values if isinstance(value, dict))
  return {*within, *(fields if fields is row else ())}
