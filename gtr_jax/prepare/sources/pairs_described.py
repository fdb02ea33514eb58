"""What is taken for what in lines of pairs, for the user."""

from collections.abc import Collection, Mapping

from gtr_jax.prepare.sources.pair_fields import Meaning

_SHOWN_KINDS, _SHOWN_FIELDS = 3, 8
_SHAPES = {"list": "lists: the first text is the query, the second the passage, any others hard negatives",
           "set": 'of each "set", a text is the query and the next its passage',
           "texts": 'of "texts", the first is the query, the second the passage'}


def described(kinds: Mapping[Meaning | str, Collection[str]], ids: Collection[str]) -> list[str]:
  """A text for every kind of line, the first ones.

  Args:
    kinds: "list", "set", "texts" or what the fields mean, and all fields that lines of the kind have.
    ids: fields of ids that the user names.
  """
  # What is alike but for the negatives, which some lines have not.
  alike: dict[Meaning | str, tuple[Meaning | str, dict[str, None]]] = {}
  for kind, there in kinds.items():
    key = kind if isinstance(kind, str) else kind._replace(negatives=(), negative_ids="")
    known, before = alike.get(key, (kind, {}))
    if isinstance(kind, Meaning) and isinstance(known, Meaning):
      known = kind._replace(negatives=tuple(dict.fromkeys(known.negatives + kind.negatives)))
    alike[key] = known, before | dict.fromkeys(there)
  found = [_SHAPES[kind] if isinstance(kind, str) else _of_fields(kind, [
      name for name in there if name not in kind.fields and name not in ids]) for kind, there in alike.values()]
  more = len(found) - _SHOWN_KINDS
  return found[:_SHOWN_KINDS] + [f"and {more} other kind{'s' * (more > 1)} of lines"] * (more > 0)


def _of_fields(kind, unread):
  """With the fields that are not read: those might have been meant."""
  more = f" and {len(unread) - _SHOWN_FIELDS} more" if len(unread) > _SHOWN_FIELDS else ""
  return f"{kind}{'; not read: ' * bool(unread)}{', '.join(unread[:_SHOWN_FIELDS])}{more}"
