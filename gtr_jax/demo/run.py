"""`gtr-jax demo`: the paper's path on a laptop, by the commands that a user would type.

Pretrain on noisy pairs, mine hard negatives, fine-tune with and without pretraining, evaluate beside BM25 and an
untrained model, report, search. Everything lands in one folder.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gtr_jax.errors import InputError
from gtr_jax.evaluation import averages
from gtr_jax.evaluation.fused import BM25
from gtr_jax.io.paths import location

_MARKER = "made_by_gtr_jax_demo"
# Moved aside before the demo runs again; what `prepare` finds up to date stays, and all that others have put beside.
_MADE = ("data/pydoc/finetune_hard_negatives.jsonl", "gtr_pt", "gtr", "gtr_ft", "untrained", "results", "report",
         "embeddings", "peer")
_QUERIES = (
    "Return the indices that would sort an array",
    "Compute the mean of values while ignoring NaNs",
    "Stop training when a monitored metric has stopped improving",
)
_IN_DOMAIN = "numpy_jax_tensorflow"

_BM25_WINS = """\
BM25 wins: query and answer come from the same docstring and share their words, and a model of one layer that has seen a
few minutes of text starts from nothing. What changes that is what GTR has and this has not: the initial weights of T5,
a hundred times the parameters, and real pairs by the million.
"""
_NEXT = """\
Next:
  look at the report               {output}/report/report.md
  ask it something                 gtr-jax search --model {output}/gtr --embeddings {output}/embeddings
  serve it, with a search page     gtr-jax serve --model {output}/gtr --embeddings {output}/embeddings --hybrid
  watch the training curves        tensorboard --logdir {output}
  train longer                     gtr-jax train --gin_file=runs/demo_pretrain.gin --gin.TRAIN_STEPS=2000 \\
                                       --gin.MODEL_DIR="'{output}/longer'" --data_dir {output}/data \\
                                       --gin.VALIDATION_COLLECTION="'{output}/data/pydoc/collections/{in_domain}'"
  train on your own pairs          gtr-jax train --pairs my.jsonl --init sentence-transformers/gtr-t5-base \\
                                       --output runs/mine
"""


def run(output: str, run_command: Callable[[Sequence[str]], int], beside_peer: bool = False) -> None:
  """Runs the demo into `output`. What an earlier demo made there moves aside first.

  Args:
    output: the folder.
    run_command: runs a command of the command line, and returns its exit code.
    beside_peer: then train with sentence-transformers for as long, and compare.

  Raises:
    InputError: no demo made the folder, or it is none; or sentence-transformers is to be compared with, and cannot be.
  """
  start = time.monotonic()
  kept: Sequence[str] = ()
  if beside_peer:
    from gtr_jax.demo import peer
    peer.check()
    kept = peer.FLAGS

  def command(*given):
    words = [str(word) for word in given]
    print("$ gtr-jax " + " ".join(f'"{word}"' if set(word) & set("' ") else word for word in words), flush=True)
    if code := run_command(words):
      raise SystemExit(code)

  folder = Path(location(output))
  _begin(folder)
  data = folder / "data"
  pydoc = data / "pydoc"

  _step("1. Data: the documentation of the installed Python packages")
  command("prepare", "pydoc", "--data_dir", data)

  def train(name, run, *flags):
    command("train", f"--gin_file=runs/{run}.gin", f"--gin.MODEL_DIR={str(folder / name)!r}", *flags,
            f"--gin.VALIDATION_COLLECTION={str(pydoc / 'collections' / _IN_DOMAIN)!r}", "--data_dir", data)

  _step("2. Pretrain on noisy pairs (GTR-PT)")
  train("gtr_pt", "demo_pretrain", *kept)
  _step("3. Mine hard negatives with BM25")
  command("mine", "--pairs", pydoc / "finetune/train.jsonl", "--output", pydoc / "finetune_hard_negatives.jsonl")
  _step("4. Fine-tune the pretrained model (GTR)")
  train("gtr", "demo_finetune", f"--gin.INITIAL_CHECKPOINT_PATH={str(folder / 'gtr_pt')!r}", *kept)
  _step("5. Fine-tune without pretraining (GTR-FT), and keep an untrained model to compare with")
  train("gtr_ft", "demo_finetune")
  train("untrained", "demo_finetune", "--gin.TRAIN_STEPS=0")

  _step("6. Evaluate in-domain and zero-shot, BM25 beside it")
  systems = {"untrained": "untrained", "GTR-PT": "gtr_pt", "GTR-FT": "gtr_ft", "GTR": "gtr"}
  collections = sorted(p.name for p in (pydoc / "collections").iterdir())
  collections.remove(_IN_DOMAIN)
  command("evaluate", "--bm25", *(f"--model={name}={folder / path}" for name, path in systems.items()),
          *(f"--collection={pydoc / 'collections' / name}" for name in [_IN_DOMAIN, *collections]),
          "--output", folder / "results")
  print("\nAnd GTR once more: its vectors in a quarter of the bytes, and its rankings fused with BM25's.", flush=True)
  command("evaluate", "--bm25", f"--model=GTR={folder / 'gtr'}", "--precision=float32", "--precision=int8",
          "--fuse=convex", *(f"--collection={pydoc / 'collections' / name}" for name in [_IN_DOMAIN, *collections]),
          "--output", folder / "results")
  _step("7. Report")
  command("report", "--results", folder / "results", *(f"--model_dir={folder / name}" for name in systems.values()
                                                       if name != "untrained"), "--output", folder / "report")
  _step("8. Search")
  command("encode", "--model", folder / "gtr", "--collection", pydoc / "collections" / _IN_DOMAIN, "--output",
          folder / "embeddings")
  command("search", "--model", folder / "gtr", "--embeddings", folder / "embeddings", "--top_k", 3,
          *(f"--query={query}" for query in _QUERIES))
  if beside_peer:
    _step("9. The same minutes for sentence-transformers")
    beside = peer.compare(folder, command, [pydoc / "collections" / name for name in [_IN_DOMAIN, *collections]])
    print("\n" + beside, end="")
  print("\n" + what_it_shows(json.loads((folder / "results" / "results.json").read_text())))
  print(_NEXT.format(output=output, in_domain=_IN_DOMAIN))
  print(f"Done in {(time.monotonic() - start) / 60:.1f} minutes.")


def _begin(folder: Path) -> None:
  """Makes the folder; what an earlier demo has made in it, and whatever else lies there by now, moves aside."""
  if os.path.lexists(folder):
    if not folder.is_dir():
      raise InputError(f"{folder}: is no folder; give another --output")
    if any(folder.iterdir()) and not (folder / _MARKER).is_file():
      raise InputError(f"{folder}: not empty, and no demo made it; give another --output")
    if links := [name for name in _MADE if (folder / name).is_symlink()]:
      raise InputError(f"{folder / links[0]}: a link, where the demo makes a folder; remove it, or give another "
                       "--output")
    if made := [name for name in _MADE if (folder / name).exists()]:
      earlier = next(path for i in itertools.count(1) if not (path := folder / f"earlier-{i}").exists())
      for name in made:
        (earlier / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(earlier / name)
      print(f"What an earlier demo has made is now in {earlier}; remove it when you need it no more.")
  folder.mkdir(parents=True, exist_ok=True)
  (folder / _MARKER).touch()


def what_it_shows(results: dict) -> str:
  """The averages of nDCG@10 in words, whatever they are."""
  average = averages.of_systems(results["systems"], "nDCG@10")
  shown = ", ".join(f"{system} {value:.3f}" for system, value in sorted(average.items(), key=lambda item: -item[1]))
  text = f"What this shows. Average nDCG@10, best first: {shown}.\n"
  if average["GTR"] > average["GTR-FT"] > average["untrained"]:
    text += ("The paper's order: both stages (GTR) above fine-tuning alone (GTR-FT) above untrained, on documents and "
             "packages that\nno training pair has seen.\n")
  else:
    text += ("The paper's order, both stages (GTR) above fine-tuning alone (GTR-FT) above untrained, did not come "
             "out in this run.\n")
  if average["GTR-PT"] > average["GTR-FT"]:
    text += "Pretraining alone (GTR-PT) beats fine-tuning alone: here it sees more, and more different, text.\n"
  if average[BM25] > average["GTR"]:
    text += _BM25_WINS
  if (fused := f"GTR + {BM25} (convex)") in average:
    text += (f"Fused, GTR and BM25 are {average[fused] - average[BM25]:+.3f} beside BM25 alone; the weight follows "
             "from how far they agree.\n")
  if "GTR (int8)" in average:
    text += f"In int8, a quarter of the bytes, GTR loses {average['GTR'] - average['GTR (int8)']:.3f}.\n"
  return text


def _step(title: str) -> None:
  print(f"\n=== {title}", flush=True)
