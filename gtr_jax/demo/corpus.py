"""The built-in corpus: the documentation of the installed Python packages, for training and as test collections.

Some packages train. A part of what they document is held out, as the in-domain collection; packages that never train
are the zero-shot collections. In every collection a query is a first sentence and its answer is all that follows it.
Sentences are told apart by `text.same_text`, what repeats a tested text in part by `text.near_text` (`near_copies`).
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from gtr_jax.data.vocabulary import train_vocabulary
from gtr_jax.demo import docstrings
from gtr_jax.demo.docstrings import Documentation
from gtr_jax.demo.near_copies import NearCopies
from gtr_jax.demo.packages import Packages, fingerprint, installed_packages
from gtr_jax.demo.read import read_packages
from gtr_jax.errors import InputError
from gtr_jax.io import atomic, data_root
from gtr_jax.io.json_file import read_json
from gtr_jax.text.near_text import contains
from gtr_jax.text.same_text import distinct, folded

IN_DOMAIN = "numpy_jax_tensorflow"

_TEST, _VALIDATION = 0.06, 0.04  # Shares of the documents of the fine-tuning packages.
_PRETRAIN_VALIDATION = 0.02
_MAX_QUERIES = 400
_MAX_IN_DOMAIN_DOCUMENTS = 3000
_MIN_CHARACTERS, _MIN_WORDS = 100, 15  # Of a document.


def prepare(vocabulary: str | None = None, packages: Packages | None = None, *, output: epath.PathLike | None = None,
            say: Callable[[str], None] = print) -> epath.Path:
  """Writes the corpus: training pairs, collections and vocabulary.

  The folder gets pretrain/ and finetune/ with train.jsonl and validation.jsonl (`query`, `positive` and their ids),
  collections/<name>/ in BEIR layout, spiece.model, and manifest.json with counts, versions, hashes, and a fingerprint
  of what it was made from. Deterministic for given packages. A corpus that is there already, whole, and is the same is
  left as it is, with what was mined from it; where the fingerprint is the same too, no package is read.

  Args:
    vocabulary: a SentencePiece model to copy; None trains one of 8,000 pieces on the training pairs.
    packages: what to read; default: `installed_packages()`.
    output: the folder; default: pydoc in the data root.
    say: where counts go, line by line.

  Returns:
    The folder.

  Raises:
    InputError: `vocabulary` or a package is not there, or the folder holds something else.
  """
  output = data_root.data_dir() / "pydoc" if output is None else epath.Path(output)
  if vocabulary is not None and not epath.Path(vocabulary).exists():
    raise InputError(f"{vocabulary}: no such vocabulary; give the path of a SentencePiece model")
  _check_ours(output)
  packages = packages or installed_packages()
  made_from = fingerprint(packages, vocabulary)  # First: what changes while it is read is read again the next time.
  if _is_whole(output) and _manifest(output).get("made_from") == made_from:
    say(f"{output} is up to date")
    return output
  corpus = Corpus(packages, say)
  new = output.parent / f"{output.name}.{uuid.uuid4().hex}.tmp"
  try:
    files = corpus.files()
    for name, rows in files.items():
      path = new / name
      path.parent.mkdir(parents=True, exist_ok=True)
      atomic.write_text(path, "".join(rows))
    if vocabulary is None:
      say("training a vocabulary")
      train_vocabulary(corpus.vocabulary_texts(), new / "spiece.model")
    else:
      epath.Path(vocabulary).copy(new / "spiece.model")
    hashes = {name: hashlib.sha256((new / name).read_bytes()).hexdigest() for name in sorted([*files, "spiece.model"])}
    manifest = {"counts": {name: len(rows) for name, rows in files.items()}, "sha256": hashes,
                "versions": dict(packages.versions), "made_from": made_from}
    if _is_whole(output) and _hashes(output) == hashes:
      atomic.write_json(output / "manifest.json", manifest)
      say(f"{output} is up to date")
    else:
      atomic.write_json(new / "manifest.json", manifest)
      _replace(output, new, say)
      say(f"wrote {output}")
  finally:
    if new.exists():
      new.rmtree()
  return output


def _check_ours(output: epath.Path) -> None:
  """Raises InputError where something else than a corpus lies: it would be replaced."""
  if output.exists() and not (output.is_dir() and (_hashes(output) is not None or not any(output.iterdir()))):
    raise InputError(f"{output}: is there, and is no corpus that gtr-jax prepare pydoc has made; move it, or give "
                     "another --data_dir")


def _hashes(folder: epath.Path) -> dict[str, str] | None:
  """Of the files that the corpus in a folder was made of; None if there is none."""
  try:
    return dict(_manifest(folder)["sha256"])
  except (FileNotFoundError, KeyError, TypeError, ValueError):
    return None


def _manifest(folder: epath.Path) -> dict[str, Any]:
  return read_json(folder / "manifest.json", dict, "remove the folder, and prepare it again")


def _is_whole(folder: epath.Path) -> bool:
  """Whether a corpus is there, and each of its files is as it was written."""
  hashes = _hashes(folder) or {}
  return bool(hashes) and all(
      (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == of_file
      for name, of_file in hashes.items())


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir() and not os.path.islink(path):
      yield from _files(path)
    else:
      yield path


def _replace(output: epath.Path, new: epath.Path, say: Callable[[str], None]) -> None:
  """Puts the new corpus where another one is; files that are not the other's, such as mined ones, are kept below it."""
  old = output.parent / f"{output.name}.{uuid.uuid4().hex}.tmp"
  if output.exists():
    output.rename(old)
  new.rename(output)
  if not old.exists():
    return
  hashes = _hashes(old) or {}
  aside = next(a for i in itertools.count(1) if not (old / (a := f"set-aside-{i}")).exists())
  for path in sorted(_files(old)):
    name = os.fspath(path.relative_to(old))
    if name == "manifest.json" or path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == hashes.get(name):
      path.unlink()
    else:
      kept = output / name if name.startswith("set-aside-") else output / aside / name
      kept.parent.mkdir(parents=True, exist_ok=True)
      path.rename(kept)
      say(f"{output / name}: not of this corpus, and kept as {kept}")
  old.rmtree()  # Folders are left.


class Corpus:
  """What the packages document, divided into training pairs and collections."""

  def __init__(self, packages: Packages, say: Callable[[str], None] = print):
    self._say = say
    read = self._read(packages)
    zero_shot = {name: [d for package in folders for d in read[package]]
                 for name, folders in packages.zero_shot.items()}
    finetune = [d for package in packages.finetune for d in read[package]]
    pretrain = [d for package in packages.pretrain for d in read[package]]

    self.collections: dict[str, Collection] = {}
    for name, documents in zero_shot.items():
      answers = list(_distinct(filter(_is_answer, documents)))
      asked = sorted(filter(_is_public, answers), key=lambda d: _draw(d, "query"))[:_MAX_QUERIES]
      self.collections[name] = Collection(answers, {"test": _in_order(asked, answers)})

    tested = NearCopies(_text(d) for c in self.collections.values() for d in c.documents)
    summaries = {folded(d.summary) for c in self.collections.values() for d in c.documents}
    answers = list(_distinct(d for d in finetune if _is_answer(d) and _text(d) not in tested))
    held_out: dict[str, list[Documentation]] = {"test": [], "validation": []}
    for d in filter(_is_public, answers):
      draw = _draw(d, "held out")
      if draw < _TEST + _VALIDATION and folded(d.summary) not in summaries:
        held_out["test" if draw < _TEST else "validation"].append(d)
    for d in held_out["test"] + held_out["validation"]:
      tested.add(_text(d))
      summaries.add(folded(d.summary))

    def trains(d):
      return folded(d.summary) not in summaries and _text(d) not in tested

    finetune = self._filtered("fine-tuning", finetune, trains)
    pretrain = finetune + self._filtered("pretraining", pretrain, trains)
    training = set(finetune)
    answers = [d for d in answers if d in training]
    room = max(0, _MAX_IN_DOMAIN_DOCUMENTS - len(held_out["test"]) - len(held_out["validation"]))
    others = sorted(answers, key=lambda d: _draw(d, "distractor"))[:room]
    documents = sorted(held_out["test"] + held_out["validation"] + others)
    self.collections = {IN_DOMAIN: Collection(documents, held_out)} | self.collections

    self.finetune = {"train": list(_unique_summaries(filter(_is_answer, finetune))),
                     "validation": held_out["validation"]}
    own = {package + "." for package in packages.finetune}
    self.pretrain: dict[str, list[tuple[str, str, str, str]]] = {"train": [], "validation": []}
    for d in pretrain:
      also_summary = not any(d.name.startswith(p) for p in own)
      split = "validation" if _draw(d, "pretraining") < _PRETRAIN_VALIDATION else "train"
      self.pretrain[split] += [pair for pair in _noisy_pairs(d, also_summary) if folded(pair[1]) not in summaries]

  def _read(self, packages):
    """Documentation by package, without exact repetitions; the first package to say something keeps it."""
    everything = {**packages.finetune, **packages.pretrain}
    for folders in packages.zero_shot.values():
      everything |= folders
    read: dict[str, list[Documentation]] = {}
    seen, names = set(), collections.Counter[str]()
    for package, documented in read_packages(everything).items():
      read[package] = []
      for d in documented:
        text = folded(_text(d))
        if text not in seen:
          seen.add(text)
          names[d.name] += 1
          read[package].append(d if names[d.name] == 1 else d._replace(name=f"{d.name}#{names[d.name]}"))
    self._say(f"{sum(map(len, read.values())):,} documentation strings in {len(read)} packages")
    return read

  def _filtered(self, stage, documents, trains):
    kept = [d for d in documents if trains(d)]
    self._say(f"{stage}: {len(documents) - len(kept):,} of {len(documents):,} left out: held out, or near copies of "
              "what is")
    return kept

  def files(self) -> dict[str, list[str]]:
    """Path -> lines of every text file of the corpus."""
    files = {}
    for split, documents in self.finetune.items():
      files[f"finetune/{split}.jsonl"] = [_pair(d.name, d.summary, d.name, d.rest) for d in documents]
    for split, pairs in self.pretrain.items():
      files[f"pretrain/{split}.jsonl"] = [_pair(*pair) for pair in pairs]
    for name, collection in self.collections.items():
      for file, rows in collection.files().items():
        files[f"collections/{name}/{file}"] = rows
    for name in sorted(files):
      self._say(f"{len(files[name]):8,} {name}")
    return files

  def vocabulary_texts(self) -> Iterator[str]:
    """A quarter of the training part, for time's sake."""
    for _, query, _, passage in self.pretrain["train"][::4]:
      yield query
      yield passage


@dataclasses.dataclass(frozen=True)
class Collection:
  """Documents, and per split those whose first sentence is a query."""

  documents: list[Documentation]
  asked: dict[str, list[Documentation]]

  def files(self) -> dict[str, list[str]]:
    """BEIR layout. A document has no title: it would give the answer away."""
    files = {"corpus.jsonl": [_json({"_id": d.name, "title": "", "text": d.rest}) for d in self.documents],
             "queries.jsonl": [_json({"_id": "query:" + d.name, "text": d.summary})
                               for documents in self.asked.values() for d in documents]}
    for split, documents in self.asked.items():
      files[f"qrels/{split}.tsv"] = ["query-id\tcorpus-id\tscore\n",
                                     *(f"query:{d.name}\t{d.name}\t1\n" for d in documents)]
    return files


def _text(d: Documentation) -> str:
  return f"{d.summary} {d.rest}".strip()


def _is_answer(d: Documentation) -> bool:
  """Whether what follows the summary is enough to be found by it, and does not just repeat it."""
  return (len(d.rest) >= _MIN_CHARACTERS and len(d.rest.split()) >= _MIN_WORDS
          and not contains(d.rest, d.summary))


def _is_public(d: Documentation) -> bool:
  return not d.name.rpartition(".")[2].startswith("_")


def _distinct(documents: Iterable[Documentation]) -> Iterator[Documentation]:
  """Without second askers of the same question and near copies: each query has one answer."""
  seen = NearCopies()
  for d in _unique_summaries(documents):
    if d.rest not in seen:
      seen.add(d.rest)
      yield d


def _unique_summaries(documents: Iterable[Documentation]) -> Iterable[Documentation]:
  return distinct(documents, lambda d: d.summary).values()


def _in_order(chosen, documents):
  names = {d.name for d in chosen}
  return [d for d in documents if d.name in names]


def _draw(d: Documentation, purpose: str) -> float:
  """A number in [0, 1) for a document: the same wherever and with whatever else it is installed."""
  return int.from_bytes(hashlib.sha256(f"{purpose} {d.name}".encode()).digest()[:7]) / 2**56


_HEADING = re.compile(r"(?:Args|Arguments|Parameters|Returns?|Yields|Raises|Attributes|Examples?|See Also)\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def _noisy_pairs(d: Documentation, also_summary: bool) -> Iterator[tuple[str, str, str, str]]:
  """(query id, query, passage id, passage) for pretraining.

  The name in words asks for all of the text; in packages that do not fine-tune the summary asks for the rest; and a
  sentence from the middle asks for the text without it.
  """
  name = docstrings.name_in_words(d.name)
  if len(_text(d).split()) >= 8:
    yield d.name, name, d.name, _text(d)
  if also_summary and _is_answer(d):
    yield d.name + ":summary", d.summary, d.name, d.rest
  sentences = [s for s in _SENTENCE.split(d.rest) if s]
  if len(sentences) >= 4:
    middle = [i for i, s in enumerate(sentences) if 6 <= len(s.split()) <= 40 and not _HEADING.match(s)]
    if middle:
      i = middle[int(_draw(d, "sentence") * len(middle))]
      passage = " ".join([d.summary, *sentences[:i], *sentences[i + 1:]])
      yield d.name + ":sentence", sentences[i], d.name, passage


def _pair(query_id: str, query: str, positive_id: str, positive: str) -> str:
  return _json({"query_id": query_id, "query": query, "positive_id": positive_id, "positive": positive})


def _json(row: dict) -> str:
  return json.dumps(row, ensure_ascii=False) + "\n"
