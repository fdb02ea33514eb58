"""What `gtr-jax mine` wrote into the folder `mined` below the data root: mined/NAME.jsonl(.gz) is the task mined_NAME.

For pairs with the fields "query" and "positive"; ids count where the first pair has "query_id", "passage_id" (or
"positive_id") or "negative_ids". A sweep puts what its stages mine there (docs/sweeps.md). Vocabulary: T5's, unless the
run gives another one. In the name of a task, _ stands for what it may not hold.
"""

import re
from typing import Any

from etils import epath

from gtr_jax.data.examples import add_pair_task, jsonl
from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.io.jsonl import read_objects

_files: dict[str, epath.Path] = {}
for _path in sorted(data_root.resolve("mined").glob("*")):
  if _match := re.fullmatch(r"(\w.*)\.jsonl(\.gz)?", _path.name):
    _name = "mined_" + re.sub(r"\W", "_", _match[1])
    if _files.setdefault(_name, _path) is not _path:
      raise InputError(f"{_files[_name]} and {_path}: both would be the task {_name}; rename one")
    _first = next((row for _, row, _ in read_objects(_path)), {})
    _ids: dict[str, Any] = {name: field for name, field in (
        ("query_id", "query_id"), ("passage_id", "positive_id"), ("passage_id", "passage_id"),
        ("negative_ids", "negative_ids")) if field in _first}
    add_pair_task(
        _name, jsonl(train=f"mined/{_path.name}"), query="query", passage="positive", negatives="negatives",
        sample_negatives=True, vocabulary="t5_vocab/spiece.model", extra_ids=100,
        **_ids)
