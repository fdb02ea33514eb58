"""The model card of an exported model: what it is, what it was trained on, how good it is, how to use it."""

import math
import os

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.formats.foreign_json import read_json
from gtr_jax.formats.locate import cached_name
from gtr_jax.formats.model_on_disk import ModelOnDisk
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


def model_card(model: ModelOnDisk, name: str, results: epath.PathLike | None = None) -> str:
  """README.md of a sentence-transformers folder, with the front matter that the Hugging Face hub reads.

  Args:
    model: what is exported; of a training run, config.gin tells what it was trained on.
    name: of the folder, for the example.
    results: an evaluation's folder.

  Raises:
    InputError: `results` holds no results.
  """
  config, encoder = model.encoder.config, model.encoder
  kind = "T5 1.0 (ReLU)" if config.mlp_activations == ("relu",) else "T5 1.1 (gated GELU)"
  parameters = sum(math.prod(array.shape) for array in model.arrays.values())
  pooling = "mean of the tokens" if encoder.pooling == "mean" else "first token"
  unit = ", of length 1" if encoder.normalize else ""
  projected = f", projection to {encoder.dim}" if encoder.projection_dim is not None else ""
  prompts = "".join(f"\n- put before every {side}: `{text}`" for side, text in model.prompts.items() if text)
  trained = _trained(model)
  parts = [f"""---
library_name: sentence-transformers
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
- {pooling}{projected}{", L2 normalisation" if encoder.normalize else ""}
- reads {model.lengths["query"]} tokens of a query and {model.lengths["document"]} of a document{trained}{prompts}
- made from: {cached_name(model.path) or os.path.basename(os.path.normpath(os.fspath(model.path)))}
""", _training(model), _evaluation(results), f"""## Use

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


def _trained(model: ModelOnDisk) -> str:
  """What training read, where the run says it and it is less."""
  for folder in (model.path, model.path.parent, model.path.parent.parent):
    if (folder / "model.json").exists():
      lengths = read_json(folder / "model.json", missing="copy the run again").get("trained_lengths")
      if isinstance(lengths, dict) and lengths != dict(model.lengths):
        return f"; in training, {lengths.get('query')} and {lengths.get('document')} at most"
      return ""
  return ""


def _training(model: ModelOnDisk) -> str:
  """A section, where config.gin lies beside the model."""
  places = [folder / "config.gin" for folder in (model.path, model.path.parent, model.path.parent.parent)]
  place = next((place for place in places if place.exists()), None)
  if place is None:
    return ""
  text = place.read_bytes().decode(errors="replace")
  settings = {short_name(name): value for name, value in bindings_of(text).items()}
  lines = [f"- {text}: {settings[key]}" for key, text in _SETTINGS.items()
           if settings.get(key) not in (None, "None", "0")]
  return "\n".join(["## Training", "", *lines, ""]) if lines else ""


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
