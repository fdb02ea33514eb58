"""A MODEL_DIR with a model of one layer, a vocabulary of 150 pieces and random weights; a small corpus."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from flax import linen as nn

from gtr_jax.checkpoints.checkpointer import Checkpointer
from gtr_jax.collections.corpus import Documents
from gtr_jax.formats.model_dir import write_model_json
from gtr_jax.models.dual_encoder import DualEncoder
from gtr_jax.models.t5 import T5Config
from gtr_jax.text.tokenizer import Tokenizer

WORDS = ["lion", "tiger", "zebra", "giraffe", "river", "mountain", "forest", "desert", "ocean", "island", "castle",
         "bridge", "harbour", "engine", "wheel", "anchor", "lantern", "window", "garden", "kitchen", "market",
         "teacher", "sailor", "painter", "doctor", "farmer", "silver", "copper", "marble", "cotton"]


def sentence(number: int, words: int) -> str:
  """Words chosen by the number, the same every time."""
  return " ".join(WORDS[(number * 7 + i * (3 + number % 5)) % len(WORDS)] for i in range(words))


def corpus(documents: int) -> Documents:
  """Documents of 1 to 40 words, not in the order of their ids."""
  ids = [f"d{(i * 37) % documents}" for i in range(documents)]
  return Documents(ids, [sentence(i, i % 3) for i in range(documents)],
                   [sentence(i + 1, 1 + i * 11 % 40) for i in range(documents)])


def write_vocabulary(path, vocab_size=150, **options) -> Tokenizer:
  """Trains a SentencePiece model with T5's special ids; `options` are those of its trainer."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(sentence(i, 8) for i in range(200)), model_writer=model, vocab_size=vocab_size,
      model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2, **options)
  path.write_bytes(model.getvalue())
  return Tokenizer(path)


def tiny_encoder(tokenizer: Tokenizer, **options) -> DualEncoder:
  sizes = {"num_heads": 2, "head_dim": 8}
  sizes |= {name: options.pop(name) for name in sizes.keys() & options.keys()}
  config = T5Config(vocab_size=tokenizer.size + tokenizer.size % 2, emb_dim=16, mlp_dim=32, num_layers=1, **sizes)
  return DualEncoder(config, **{"projection_dim": 8, **options})


def tiny_params(encoder: DualEncoder, seed: int):
  """Random parameters, made without compiling anything."""
  rng = np.random.default_rng(seed)
  shapes = nn.meta.unbox(jax.eval_shape(encoder.init, jax.random.key(0)))
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.4), leaf.dtype), shapes)


def write_model_dir(folder, seeds=(0,), scores=None, **options):
  """Writes a run with one checkpoint for each seed, steps 1, 2, ...; `scores` may say how good each one is."""
  folder.mkdir(parents=True)
  tokenizer = write_vocabulary(folder.parent / "vocabulary.model")
  encoder = tiny_encoder(tokenizer, **options)
  write_model_json(folder, encoder, tokenizer, query_length=16, document_length=32)
  checkpointer = Checkpointer(folder / "checkpoints", keep=len(seeds))
  for step, seed in enumerate(seeds, start=1):
    checkpointer.save(step, {"params": tiny_params(encoder, seed)}, {}, (scores or {}).get(step))
  checkpointer.close()
  return folder


def write_collection(folder, documents: Documents, queries: int = 12):
  """Query i is the beginning of document i, which is judged 2; document i + 1 is judged 1."""
  (folder / "qrels").mkdir(parents=True)
  (folder / "corpus.jsonl").write_text("".join(
      json.dumps({"_id": i, "title": title, "text": text}) + "\n" for i, title, text in zip(*documents, strict=True)))
  (folder / "queries.jsonl").write_text("".join(
      json.dumps({"_id": f"q{i}", "text": " ".join(documents.texts[i].split()[:4])}) + "\n" for i in range(queries)))
  (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(
      f"q{i}\t{documents.ids[i + j]}\t{2 - j}\n" for i in range(queries) for j in range(2)))
  return folder
