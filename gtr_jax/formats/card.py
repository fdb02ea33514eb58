"""The model card of an exported model: what it is, what it was trained on, how good it is, how to use it."""

import ast
import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from gtr_jax.checkpoints.steps import find_checkpoint
from gtr_jax.errors import InputError
from gtr_jax.formats.foreign_json import read_json
from gtr_jax.formats.locate import cached_name, is_hub_name, locate
from gtr_jax.formats.model_dir import find_model_dir
from gtr_jax.formats.model_on_disk import ModelOnDisk
from gtr_jax.io import jsonl
from gtr_jax.io.config_gin import bindings_of, short_name
from gtr_jax.io.paths import location

_SETTINGS = {  # of a resolved configuration
    "TrainingBatches.mixture_or_task_name": "training data (seqio task or mixture)",
    "TrainingRun.initial_checkpoint_path": "started from",
    "TrainingRun.train_steps": "steps",
    "TrainingBatches.batch_size": "pairs in a batch, all of them negatives of each other",
    "TrainingBatches.negatives_per_example": "hard negatives for each pair",
    "InBatchLoss.temperature": "temperature",
    "RingLoss.temperature": "temperature",
    "linear_decay.peak": "highest learning rate",
}


_HELD_OUT = "held_out/nDCG@10"  # As metrics.jsonl calls it.


def model_card(model: ModelOnDisk, name: str, results: epath.PathLike | None = None,
               averaged: Sequence[tuple[ModelOnDisk, float]] = ()) -> str:
  """README.md of a sentence-transformers folder, with the front matter that the Hugging Face hub reads.

  Args:
    model: what is exported; of a training run, config.gin tells what it was trained on.
    name: of the folder, for the example.
    results: an evaluation's folder.
    averaged: the models whose average it is, each with its share; what each was trained on is not said.

  Raises:
    InputError: `results` holds no results.
  """
  config, encoder = model.encoder.config, model.encoder
  kind = "T5 1.0 (ReLU)" if config.mlp_activations == ("relu",) else "T5 1.1 (gated GELU)"
  parameters = sum(math.prod(array.shape) for array in model.arrays.values())
  pooling = "mean of the tokens" if encoder.pooling == "mean" else "first token"
  unit = ", of length 1" if encoder.normalize else ""
  projected = (f", the first {encoder.dim} of {model.whole_dim} numbers" if model.whole_dim else
               f", projection to {encoder.dim}" if encoder.projection_dim is not None else "")
  prompts = "".join(f"\n- put before every {side}: `{text}`" for side, text in model.prompts.items() if text)
  if averaged:
    base, training, trained = None, "", ""
    made_from = "the average of " + ", ".join(f"{_named(part)} ({share:.4g})" for part, share in averaged)
  else:
    (base, training), trained = _training(model), _trained(model)
    made_from = cached_name(model.path) or os.path.basename(os.path.normpath(os.fspath(model.path)))
  base_model = f"\nbase_model: {base}" if base else ""
  parts = [f"""---
library_name: sentence-transformers{base_model}
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- dense-retrieval
- gtr
---

# {name}

A T5 dual encoder for dense retrieval, as GTR (Ni et al. 2021, [arXiv 2112.07899](https://arxiv.org/abs/2112.07899)):
queries and documents become vectors of {encoder.dim} numbers{unit}, to be compared by dot product.

## Model

- encoder: {kind}, {config.num_layers} layers, {config.emb_dim} wide, {config.num_heads} heads of {config.head_dim},
  {config.mlp_dim} in the MLP; {parameters:,} parameters
- {pooling}{projected}{", L2 normalisation" if encoder.normalize else ""}{_shorter(model)}
- reads {model.lengths["query"]} tokens of a query and {model.lengths["document"]} of a document{trained}{prompts}
- made from: {made_from}
""", training, _evaluation(results), f"""## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
scores = model.similarity(model.encode_query(["a question"]), model.encode_document(["a passage", "another"]))
```

```python
import gtr_jax

model = gtr_jax.load("{name}")
scores = model.similarity(model.encode_query(["a question"]), model.encode_document(["a passage", "another"]))
```

`encode` of gtr_jax reads texts as documents, with their prompt; `SentenceTransformer.encode` applies no prompt.
"""]
  return "\n".join(part for part in parts if part)


def _shorter(model: ModelOnDisk) -> str:
  """What its vectors may be cut to."""
  shorter = [number for number in model.dimensions if number < model.encoder.dim]
  if not shorter:
    return ""
  return (f"\n- trained so that the first {', '.join(map(str, shorter))} numbers of a vector serve as well: "
          f"`SentenceTransformer(…, truncate_dim={shorter[0]})`, and `--dimensions {shorter[0]}` of gtr_jax")


def _named(model: ModelOnDisk) -> str:
  """Without folders of this machine: the name on the hub, a run and its step, or the folder."""
  if (run := find_model_dir(model.path)) is not None:
    return f"{os.path.basename(os.path.realpath(run))} at step {_step(model):,}"
  return cached_name(model.path) or os.path.basename(os.path.normpath(os.fspath(model.path)))


def _trained(model: ModelOnDisk) -> str:
  """What training read, where the run says it and it is less."""
  for folder in (model.path, model.path.parent, model.path.parent.parent):
    if (folder / "model.json").exists():
      lengths = read_json(folder / "model.json", missing="copy the run again").get("trained_lengths")
      if isinstance(lengths, dict) and lengths != dict(model.lengths):
        return f"; in training, {lengths.get('query')} and {lengths.get('document')} at most"
      return ""
  return ""


def _training(model: ModelOnDisk) -> tuple[str | None, str]:
  """The name on the hub of what it was trained from, where that is known, and a section, where config.gin lies beside
  the model."""
  places = [folder / "config.gin" for folder in (model.path, model.path.parent, model.path.parent.parent)]
  place = next((place for place in places if place.exists()), None)
  if place is None:
    return None, ""
  text = place.read_bytes().decode(errors="replace")
  settings = {short_name(name): value for name, value in bindings_of(text).items()}
  said = {key: value for key in _SETTINGS if (value := settings.get(key)) not in (None, "None", "0")}
  base, held_out = None, []
  if (pairs := _pairs(settings)) is not None:
    start, base = _start(_value(settings, "TrainingRun.initial_checkpoint_path"))
    step = _step(model)
    said |= {"TrainingBatches.mixture_or_task_name": _data(pairs), "TrainingRun.initial_checkpoint_path": start,
             "TrainingRun.train_steps": _steps(settings, pairs["pairs"], step)}
    held_out = _held_out(place.parent / "metrics.jsonl", pairs["held_out"], step)
  names = _SETTINGS if pairs is None else _SETTINGS | {"TrainingBatches.mixture_or_task_name": "training data"}
  lines = [f"- {text}: {said[key]}" for key, text in names.items() if key in said]
  return base, "\n".join(["## Training", "", *lines, *held_out, ""]) if lines else ""


def _value(settings: Mapping[str, str], key: str) -> Any:
  """Of a binding that is a literal; None where there is none."""
  with contextlib.suppress(ValueError, SyntaxError):
    return ast.literal_eval(settings.get(key, "None"))
  return None


def _pairs(settings: Mapping[str, str]) -> dict[str, Any] | None:
  """What `from_pairs` says of the training data; None where the run is another, or has been given other data."""
  pairs = _value(settings, "TrainingRun.trained_on")
  task = _value(settings, "TrainingBatches.mixture_or_task_name")
  whole = isinstance(pairs, dict) and pairs.keys() >= {"task", "files", "pairs", "fields", "held_out"}
  return pairs if whole and pairs["task"] == task else None


def _data(pairs: Mapping[str, Any]) -> str:
  return f"{', '.join(pairs['files'])} ({'; '.join([format(pairs['pairs'], ',') + ' pairs', *pairs['fields']])})"


def _start(path: str | None) -> tuple[str, str | None]:
  """What training started from, without folders of this machine; and its name on the hub, where that is known."""
  if path is None:
    return "random weights", None
  hub = path if is_hub_name(path) and not os.path.exists(path) else None
  with contextlib.suppress(InputError):  # It may be gone, or half gone.
    hub = hub or cached_name(epath.Path(locate(path)))
  folder = epath.Path(path)
  if folder.parent.name == "checkpoints":
    folder = folder.parent.parent
  return hub or folder.name, hub


def _step(model: ModelOnDisk) -> int | None:
  """Of the checkpoint of a training run that is exported."""
  if find_model_dir(model.path) is None:
    return None
  return int(find_checkpoint(model.path).name)


def _steps(settings: Mapping[str, str], pairs: int, step: int | None) -> str:
  """How many, also in epochs; and which of them it is, where it is not the last."""
  whole = _value(settings, "TrainingRun.train_steps")
  epochs = whole * _value(settings, "TrainingBatches.batch_size") / pairs
  this = f"; this is step {step:,}" if step not in (None, whole) else ""
  return f"{whole:,}, {epochs:.3g} times the pairs{this}"


def _held_out(metrics: epath.Path, sizes: Mapping[str, int], step: int | None) -> list[str]:
  """A line of what was measured on the held-out pairs, where that is at hand."""
  if step is None or not sizes or not metrics.exists():
    return []
  measured: dict[int, float] = {}
  with contextlib.suppress(InputError):  # The last line, of a run that was killed.
    measured.update((row["step"], row[_HELD_OUT]) for _, row, _ in jsonl.read_objects(metrics) if _HELD_OUT in row)
  if step not in measured:
    return []
  before = f" ({measured[0]:.4f} before training)" if 0 in measured and step else ""
  return [f"- nDCG@10 on held-out pairs: {measured[step]:.4f}{before}, of {sizes['queries']:,} queries among "
          f"{sizes['documents']:,} documents"]


def _evaluation(results: epath.PathLike | None) -> str:
  """A section with nDCG@10 of every system in the results, by collection."""
  if results is None:
    return ""
  place = location(results) / "results.json"
  try:
    found = read_json(place, missing="give the --output of `gtr-jax evaluate`")
    collections, systems = list(found["collections"]), found["systems"]
    rows = [[name, *(f"{system['results'][of]['nDCG@10']:.4f}" if of in system["results"] else "–"
                     for of in collections)] for name, system in systems.items()]
  except InputError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise InputError(f"{place}: damaged; run `gtr-jax evaluate` again") from e
  lines = [f"| nDCG@10 | {' | '.join(collections)} |", "|---" * (len(collections) + 1) + "|",
           *(f"| {' | '.join(row)} |" for row in rows)]
  return "\n".join(["## Evaluation", "", *lines, ""])
