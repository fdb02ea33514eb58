"""BM25 over title + text: the baseline beside every model, and the source of the first hard negatives.

bm25s at its defaults (Lucene's BM25, k1 = 1.5, b = 0.75), English stop words, Snowball's English stemmer.
"""

import concurrent.futures
import logging
import os
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from gtr_jax.retrieval.documents import Documents
from gtr_jax.retrieval.runs import Run, best_k

_QUERIES_PER_TASK = 64


class BM25Index:
  """A BM25 index of texts; ties rank the text with the highest `tie_key` first (by default the first text)."""

  def __init__(self, texts: list[str], tie_keys: list[str] | None = None, progress: bool = True):
    # Imported here because bm25s starts the JAX backend when imported, which has to wait for jax.distributed.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # It sets DEBUG itself.
    import Stemmer
    self._tokenize, self._stemmer, self._progress = bm25s.tokenize, Stemmer.Stemmer("english"), progress
    # Row r of the index is text self.order[r]: rows in the order in which ties rank, so that a stable sort breaks them.
    self.order = (np.arange(len(texts)) if tie_keys is None else
                  np.asarray(sorted(range(len(texts)), key=tie_keys.__getitem__, reverse=True)))
    self._index = bm25s.BM25()
    corpus = self._tokens([texts[i] for i in self.order], "BM25: reading the corpus")
    if not any(corpus):  # Stop words alone; bm25s cannot index nothing.
      corpus[0] = [""]
    self._index.index(corpus, show_progress=False)

  def _tokens(self, texts: list[str], description: str) -> list[list[str]]:
    tokens = []
    with tqdm(total=len(texts), desc=description, unit=" texts", disable=not self._progress, leave=False) as bar:
      for start in range(0, len(texts), 10_000):
        part = texts[start:start + 10_000]
        tokens += self._tokenize(part, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False,
                                 allow_empty=False)
        bar.update(len(part))
    return tokens

  def search(self, queries: list[str], k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each query (positions in `texts`, float32 scores), the best k in order.

    Texts that share no word with the query (score 0) are left out, so there may be fewer than k.
    """
    tokens = self._tokens(queries, "BM25: reading the queries")

    def best(start):
      return [self._best(words, k) for words in tokens[start:start + _QUERIES_PER_TASK]]

    with (concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
          tqdm(total=len(queries), desc="BM25: searching", unit=" queries", disable=not self._progress,
               leave=False) as bar):
      for results in pool.map(best, range(0, len(queries), _QUERIES_PER_TASK)):
        bar.update(len(results))
        yield from results

  def _best(self, words: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    known = self._index.get_tokens_ids([word for word in words if word])  # bm25s knows "" and cannot look it up.
    scores = self._index.get_scores_from_ids(known) if known else np.zeros(0, np.float32)
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
      threshold = np.partition(scores[rows], -k)[-k]
      rows = rows[scores[rows] >= threshold]  # All that tie at the cut stay in.
    rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return self.order[rows], scores[rows]


def bm25_run(documents: Documents, query_ids: list[str], queries: list[str], k: int, *, exclude_own_id: bool = False,
             progress: bool = True) -> Run:
  """Ranks the best k documents for each query, ties in trec_eval's order.

  Args:
    documents: the corpus; indexed as title + space + text.
    query_ids, queries: ids and texts.
    k: documents per query at most; documents that share no word with the query are not ranked.
    exclude_own_id: leave out the document whose id is the query's own.
    progress: show progress bars on stderr.
  """
  index = BM25Index(documents.full_texts(), tie_keys=documents.ids, progress=progress)
  run: Run = {}
  for query_id, (found, scores) in zip(query_ids, index.search(queries, k + exclude_own_id), strict=True):
    doc_ids = [documents.ids[i] for i in found]
    run[query_id] = best_k(query_id, doc_ids, scores, k, exclude_own_id)
  return run
