"""Figures that others have published on BEIR, to be set beside one's own; `published.json` holds them."""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple


class Published(NamedTuple):
  """One row of a published table.

  Attributes:
    name: of the system.
    measure: of the values; recall is capped on TREC-COVID.
    source: who published it.
    values: of a set of `SETS` or an average of `averages.AVERAGES`; None where no source could be read.
  """

  name: str
  measure: str
  source: str
  values: Mapping[str, float | None]


@functools.cache
def published() -> tuple[Published, ...]:
  """All of them."""
  text = (resources.files(__package__) / "published.json").read_text("utf-8")
  return tuple(Published(**row) for row in json.loads(text))
