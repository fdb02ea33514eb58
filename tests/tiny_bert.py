"""Models of transformers and sentence-transformers with random weights, built here."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tiny_model_dir import WORDS
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

MOST_TOKENS = 64


def write_bert(folder, of_class=BertForSequenceClassification, labels=1):
  """A BERT of one layer: a cross-encoder, or what `of_class` says."""
  folder.mkdir()
  (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
  torch.manual_seed(0)
  config = BertConfig(vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=32, max_position_embeddings=MOST_TOKENS, num_labels=labels,
                      initializer_range=1.0)
  of_class(config).save_pretrained(folder)
  BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
  return folder


def write_bi_encoder(folder, prompts=None):
  """A folder of sentence-transformers: that BERT, the mean over its tokens, L2."""
  bert = SentenceTransformer(str(write_bert(folder.with_name(f"{folder.name}_bert"), BertModel)))[0]
  modules = [bert, Pooling(16, pooling_mode="mean"), Normalize()]
  SentenceTransformer(modules=modules, prompts=prompts).save(str(folder))
  return folder
