"""Names of fields: when two are one, and which of those that nobody reads may change what a pair means."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable
from typing import Any

_HUMP = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # Within camelCase.
# Wherever in a name this word is. A prefix may stick to it: isduplicate, irrelevant.
_JUDGING = re.compile(r"(is|has|non|not|un|in|ir|dis)?(neg(ative)?|label|score|grade|relevan(t|ce|cy)|judge?ment|"
                      r"similarit(y|ie)|dup(e|licate)?|distractor|correct(ness)?|wrong|paraphrase|answerable|impossible|"
                      r"contradict(s|ion|ory)|entail(ed|ment)?|reject(ed)?|downvoted|qrel|margin|logit)s?")
# Where it is the whole name: target_language and product_class are nothing to a pair.
_JUDGING_ALONE = re.compile(r"(is_?)?(match(ed|e)?|selected|similar|same|equivalent|valid|true|gold)s?|"
                            r"class(es)?|targets?|(star_)?ratings?|stars|weights?")
# Another text that may be right: known_positives, positive_passages_2, is_positive, other_answers.
_ANSWERING = re.compile(r"(.+_)?positives?(_(passage|ctx|document|doc|text|answer)s?)?|"
                        r"(other|more|alternat(iv)?e|alt|additional|extra|known|further|second)_"
                        r"(pos|passage|ctx|document|doc|answer)s?")
_COUNTING = frozenset({"n", "num", "number", "count"})  # num_negatives


@functools.lru_cache(maxsize=4096)
def folded_name(name: str) -> str:
  """As names are compared: `hardNegatives`, `Hard-Negatives` and `hard negatives` are `hard_negatives`."""
  return re.sub(r"[\s-]+", "_", _HUMP.sub("_", name.strip())).lower()


@functools.lru_cache(maxsize=4096)
def may_change_the_meaning(name: str) -> bool:
  """Whether a field of the name may judge a pair, or hold one more text that is right or wrong."""
  if folded_name(name) == "positive":  # Read unless the user names others, who has seen it.
    return False
  words = [word for word in re.split(r"[\W_\d]+", folded_name(name)) if word]
  whole = "_".join(words)
  return _COUNTING.isdisjoint(words) and bool(any(map(_JUDGING.fullmatch, words)) or _JUDGING_ALONE.fullmatch(whole)
                                              or _ANSWERING.fullmatch(whole))


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
  """Of the fields of a line, and of those of the objects in them; none of a list."""
  if not isinstance(row, dict):
    return set()
  values = itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in row.values())
  return {*row, *itertools.chain.from_iterable(value for value in values if isinstance(value, dict))}
