"""The pairs of a run: prepared once, a part held out, their lengths measured."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import atomic, bars, data_root, lines, tables
from gtr_jax.io.json_file import read_json
from gtr_jax.mining.pairs import prepared_folder
from gtr_jax.prepare import engine, manifests, records
from gtr_jax.prepare.interface import Source
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.text.packing import best_fit
from gtr_jax.text.same_text import text_key
from gtr_jax.text.tokenizer import MOST_TOKENS, Tokenizer

HELD_OUT_PAIRS, MOST_HELD_OUT = 1000, 0.1  # of the pairs, where the user says no share
LEAST_HELD_OUT = 8  # Fewer measure nothing.
# Documents among which held-out queries look for their passages, filled up with passages to train on: among the few of
# a small held-out part alone, any model finds nearly all. A share of the pairs to train on, for the eleven evaluations
# of a run encode them all: at a half that is 5.5 passages for each pair, where a step, backward pass included, costs
# about three, nine in three epochs, and the queries and hard negatives beside. More than 1,000 tell models apart little
# better, and cost a large model on a CPU hours.
MOST_DOCUMENTS, MOST_OF_TRAINING = 1000, 0.5
IN_MEMORY = "pairs_in_memory"  # Folder below the data folder, of files that were given as pairs.
_SAMPLE = 2000
_PACKED = 128  # texts at once
_ATTENTION_AS_MUCH = 1024  # tokens of a row at which attention costs about as much as all else, in small models
_FIRST_BYTES = 1 << 20
_SIZES = "held_out.json"  # Of a test collection of held-out pairs.


class Pairs(NamedTuple):
  """Prepared pairs.

  Attributes:
    name: of the folder below the data folder.
    train: pairs to train on.
    validation: pairs held out.
    negatives: hard negatives of a pair, in the middle (median) of a sample.
    collection: folder of the held-out pairs as a test collection; None: too few.
    sizes: of that collection, the number of "queries" and "documents".
    manifest: of the folder.
    fields: what is taken for what, a text for every kind of line.
  """

  name: str
  train: int
  validation: int
  negatives: int
  collection: epath.Path | None
  sizes: Mapping[str, int]
  manifest: Mapping[str, Any]
  fields: list[str]


def prepare(source: PairsJsonl, validation_share: float | None) -> Pairs:
  """Reads the pairs, as `gtr-jax prepare pairs` does, into a folder of the data folder that is named by what is in it.

  Args:
    source: the files and fields; or in place of a file prepared data, which is taken as it is.
    validation_share: of the queries, by a hash; None: so many that about `HELD_OUT_PAIRS` pairs are held out, at most
      `MOST_HELD_OUT`.

  Raises:
    InputError: as `engine.prepare`; fields or a share are given of prepared data.
  """
  if (name := _prepared(source, validation_share)) is None:
    name = _prepare(source, validation_share)
    fields = source.fields()
  else:
    fields = [f"prepared as {name}"]
  manifest = manifests.read(name)
  examples = manifest["examples"]
  held_out = examples.get("validation", 0)
  negatives = sorted(len(texts["negatives"]) for texts in sample(name, "train"))
  collection, sizes = _collection(name, examples["train"]) if held_out >= LEAST_HELD_OUT else (None, {})
  pairs = Pairs(name, examples["train"], held_out, negatives[len(negatives) // 2], collection, sizes, manifest, fields)
  if manifest["broken_places"]:
    broken = manifest["counts"]["broken"]
    bars.say(f"{broken:,} broken {'line is' if broken == 1 else 'lines are'} left out, the first: "
             f"{manifest['broken_places'][0]}")
  return pairs


def _prepared(source: PairsJsonl, validation_share: float | None) -> str | None:
  """The name of prepared data that is given in the place of files; None where files are."""
  folders = [prepared_folder(path) for path in source.paths]
  if not any(folders):
    return None
  path = source.paths[0]
  if len(folders) > 1:
    raise InputError(f"--pairs {' '.join(source.paths):.200}: prepared data go alone; prepare all files together "
                     "(gtr-jax prepare pairs FILE FILE ...), or mix them as a task (docs/data.md)")
  if source.query or source.passage or source.negatives or source.ignore:
    raise InputError(f"--pairs {path}: is prepared, and its fields are known; leave out --query, --passage, "
                     "--negatives and --ignore")
  if validation_share is not None:
    raise InputError(f"--pairs {path}: is prepared, and what is held out was decided then (gtr-jax prepare ... "
                     "--validation_share); leave out --validation_share")
  folder = str(folders[0])
  root = os.fspath(data_root.data_dir())
  return os.path.relpath(folder, root) if folder.startswith(root + os.sep) else folder


def _prepare(source: PairsJsonl, validation_share: float | None) -> str:
  """The name of the folder."""
  if validation_share is None:
    count = _estimated_pairs(source.paths)
    share = min(MOST_HELD_OUT, HELD_OUT_PAIRS / count) if count >= LEAST_HELD_OUT / MOST_HELD_OUT else 0.0
    validation_share = float(f"{share:.2g}")
  settings = manifests.Settings("pairs", validation_share)
  of_pairs: Source = source  # type: ignore[assignment]  # It joins nothing.
  name = "pairs-" + manifests.describe(of_pairs, settings)["fingerprint"][:12]
  engine.prepare(of_pairs, manifests.Settings(name, validation_share), keep_parts=False, say=lambda line: None)
  return name


def sample(name: str, split: str, most: int = _SAMPLE) -> Iterator[dict[str, list[str]]]:
  """The first pairs of a split, which lie in the random order of their hashes: the texts of each, by field."""
  return itertools.islice(_pairs(name, split), most)


def _pairs(name: str, split: str) -> Iterator[dict[str, list[str]]]:
  return map(records.texts_of, manifests.records_of(name, split))


def texts(name: str) -> Iterator[str]:
  """All texts to train on."""
  for pair in _pairs(name, "train"):
    yield from (*pair["query"], *pair["passage"])


class Lengths(NamedTuple):
  """Tokens of the texts of one side, of a sample.

  Attributes:
    mean: on average, whole.
    read: on average, of what the run reads.
    longest: of the sample.
    cut: share of the texts that are longer than the limit.
    limit: at how many the run cuts a text.
    row: of rows that hold several.
  """

  mean: float
  read: float
  longest: int
  cut: float
  limit: int
  row: int


def measure(pairs: Pairs, tokenizer: Tokenizer, most: Mapping[str, int], prompts: Mapping[str, str]) -> dict[
    str, Lengths]:
  """The lengths of each side, "query" and "document" (hard negatives are documents).

  A text may be as long as the model says, or where the pairs' are all shorter, twice as long as all but the longest
  thousandth of a sample. Rows are as long as packs a batch of the sample into the least work.
  """
  of_side: dict[str, list[str]] = {"query": [], "document": []}
  for pair in sample(pairs.name, "train"):
    of_side["query"] += pair["query"]
    of_side["document"] += [*pair["passage"], *pair["negatives"]]
  found = {}
  for side, side_texts in of_side.items():
    tokens = np.asarray([len(ids) for ids in tokenizer.encode([prompts[side] + text for text in side_texts],
                                                              MOST_TOKENS)])
    long = math.ceil(2 * np.quantile(tokens, 0.999, method="higher"))
    limit = min(most[side], _up_to(8, max(long, int(tokens.max()))))
    read = np.minimum(tokens, limit)
    found[side] = Lengths(float(tokens.mean()), float(read.mean()), int(tokens.max()),
                          float(np.mean(tokens > limit)), limit, _row(read[:_PACKED], limit))
  return found


def _row(tokens: np.ndarray, limit: int) -> int:
  """The length of rows that makes the least work of texts: all that a token costs, and what grows with its row."""
  multiple = 128 if jax.default_backend() == "tpu" else 8
  possible = {_up_to(multiple, max(2, round(limit * times))) for times in (1, 1.125, 1.5, 2, 4, 8)}
  shortest = min(possible)
  return min(sorted(row for row in possible if row == shortest or row <= max(256, 1.5 * limit)),
             key=lambda row: best_fit(tokens, row)[2] * row * (1 + row / _ATTENTION_AS_MUCH))


def _up_to(multiple: int, number: int) -> int:
  return -(-number // multiple) * multiple


def _estimated_pairs(paths: tuple[str, ...]) -> float:
  """Rows of the files, of lines from the first bytes of each."""
  count = 0.0
  for path in itertools.chain(*map(tables.files, paths)):
    if (rows := tables.number_of_rows(path)) is not None:
      count += rows
      continue
    size_of_file = lines.size_of(path)  # Which says first whether there is one.
    with lines.open_file(path) as f:
      first = f.read(_FIRST_BYTES)
    size = size_of_file * (engine.COMPRESSION if lines.is_compressed(path) else 1)
    if len(first) < _FIRST_BYTES:
      size = len(first)
    count += max(1, first.count(b"\n")) * max(1.0, size / max(1, len(first)))
  return count


def _collection(name: str, train: int) -> tuple[epath.Path, dict[str, int]]:
  """The held-out pairs in BEIR layout, and how many queries and documents it has: each query's passages are relevant,
  also where they are others' and known to answer it, as under another wording of its id; all else, hard negatives and
  the first passages to train on, is not. Equal texts are one."""
  folder = data_root.resolve(f"{name}-held_out-{MOST_DOCUMENTS}")  # Without a number: before passages to train on.
  if (folder / _SIZES).exists():
    return folder, read_json(folder / _SIZES, dict[str, int], f"remove {folder}, and run it again")
  queries: dict[int, tuple[str, str]] = {}
  documents: dict[int, tuple[str, str]] = {}
  judged: dict[tuple[str, str], None] = {}
  known: dict[int, dict[str, None]] = {}  # Which queries a passage is known to answer in other pairs.
  for pair in _pairs(name, "validation"):
    (query,), (passage,) = pair["query"], pair["passage"]
    query_id, _ = queries.setdefault(text_key(query), (f"q{len(queries)}", query))
    doc_id, _ = documents.setdefault(text_key(passage), (f"d{len(documents)}", passage))
    judged[query_id, doc_id] = None
    for answer in pair["positives"]:
      known.setdefault(int(answer) % 2**64, {})[query_id] = None  # `records.key_of` writes them signed.
    for negative in pair["negatives"]:
      documents.setdefault(text_key(negative), (f"d{len(documents)}", negative))
  wanted = min(MOST_DOCUMENTS, int(MOST_OF_TRAINING * train)) - len(documents)
  for key, text in _others(name, {*queries, *documents, *known}, wanted):
    documents[key] = f"d{len(documents)}", text
  for key, (doc_id, _) in documents.items():
    judged |= dict.fromkeys((query_id, doc_id) for query_id in known.get(key, ()))
  (folder / "qrels").mkdir(parents=True, exist_ok=True)
  atomic.write_parts(folder / "corpus.jsonl", (
      _line({"_id": doc_id, "title": "", "text": text}) for doc_id, text in documents.values()))
  atomic.write_parts(folder / "queries.jsonl", (
      _line({"_id": query_id, "text": text}) for query_id, text in queries.values()))
  rows = "".join(f"{query_id}\t{doc_id}\t1\n" for query_id, doc_id in judged)
  atomic.write_text(folder / "qrels" / "test.tsv", f"query-id\tcorpus-id\tscore\n{rows}")
  sizes = {"queries": len(queries), "documents": len(documents)}
  atomic.write_json(folder / _SIZES, sizes)  # By which the next run knows that all is there.
  return folder, sizes


def _others(name: str, taken: set[int], number: int) -> Iterator[tuple[int, str]]:
  """Key and text of the first so many passages to train on that are not `taken`: held-out queries, as a text may be a
  passage here and a query there, which would find itself, what is there already, and what is known to answer one."""
  if number <= 0:
    return
  taken = {*taken}
  for pair in _pairs(name, "train"):
    (passage,) = pair["passage"]
    if (key := text_key(passage)) in taken:
      continue
    taken.add(key)
    yield key, passage
    number -= 1
    if not number:
      return


def _line(record: Mapping[str, str]) -> bytes:
  return json.dumps(record, ensure_ascii=False).encode() + b"\n"
