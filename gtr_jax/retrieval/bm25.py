"""BM25 over title + text: the baseline beside every model, and the source of the first hard negatives.

The words are those of bm25s (English stop words, Snowball's English stemmer), the scores Lucene's BM25 with bm25s's
defaults (k1 = 1.5, b = 0.75). The index is built here, of arrays: bm25s builds it of a Python list of the words of each
text, which takes many times the memory, more than there is for the corpora of FEVER and MS MARCO.
"""

import concurrent.futures
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from gtr_jax.collections.corpus import Documents
from gtr_jax.io.bars import Bar
from gtr_jax.retrieval.runs import Run, best_k

K1, B = 1.5, 0.75
_TEXTS_AT_ONCE = 10_000
_QUERIES_PER_TASK = 64


class BM25Index:
  """A BM25 index of texts; ties rank the text with the highest `tie_key` first (by default the first text).

  Takes 8 bytes for each different word of each text; twice that while it is built.
  """

  def __init__(self, texts: Sequence[str], tie_keys: Sequence[str] | None = None, progress: bool = True):
    self._begin(progress)
    # Row r of the index is text self.order[r]: rows in the order in which ties rank, so that a stable sort breaks them.
    self.order = (np.arange(len(texts)) if tie_keys is None else
                  np.asarray(sorted(range(len(texts)), key=tie_keys.__getitem__, reverse=True), np.int64))
    self._number_of: dict[str, int] = {}  # word -> its number
    lengths = np.zeros(len(texts), np.int32)
    self._build(list(self._count(texts, lengths)), lengths)

  def _begin(self, progress: bool) -> None:
    # Imported here because bm25s starts the JAX backend when imported, which has to wait for jax.distributed.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # It sets DEBUG itself.
    import Stemmer
    self._tokenize, self._stemmer, self._progress = bm25s.tokenize, Stemmer.Stemmer("english"), progress

  def arrays(self) -> dict[str, np.ndarray]:
    """All that it consists of, from which `of_arrays` makes it again."""
    return {"words": np.frombuffer("\n".join(self._number_of).encode(), np.uint8), "order": self.order,
            "starts": self._starts, "rows": self._rows, "scores": self._scores}

  @classmethod
  def of_arrays(cls, arrays: Mapping[str, np.ndarray], progress: bool = True) -> "BM25Index":
    """The index whose `arrays` these are."""
    index = cls.__new__(cls)
    index._begin(progress)
    words = arrays["words"].tobytes().decode()
    index._number_of = {word: number for number, word in enumerate(words.split("\n") if words else ())}
    index.order, index._starts = arrays["order"], arrays["starts"]
    index._rows, index._scores = arrays["rows"], arrays["scores"]
    return index

  def _count(self, texts: Sequence[str],
             all_lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields for some texts at a time (rows, words, how often), one entry for each word of each text, by row.

    Sets `all_lengths`, the number of words in each row.
    """
    ordered, first = (texts[i] for i in self.order.tolist()), 0
    for tokens in self._tokens(ordered, len(texts), "BM25: reading the corpus"):
      lengths = np.asarray([len(words) for words in tokens], np.int64)
      all_lengths[first:first + len(tokens)] = lengths
      words = np.fromiter((self._number_of.setdefault(word, len(self._number_of))
                           for word in itertools.chain.from_iterable(tokens)), np.int64, lengths.sum())
      rows = np.repeat(np.arange(first, first + len(tokens)), lengths)
      pairs, times = np.unique(rows << 32 | words, return_counts=True)
      yield (pairs >> 32).astype(np.int32), pairs.astype(np.int32), times.astype(np.int32)  # The lower 32 bits.
      first += len(tokens)

  def _build(self, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], lengths: np.ndarray) -> None:
    """From the counts, which are used up: for each word the rows that have it, and the word's score in each."""
    containing = np.zeros(len(self._number_of), np.int64)
    for _, words, _ in parts:
      containing += np.bincount(words, minlength=len(containing))
    idf = np.log1p((len(self.order) - containing + 0.5) / (containing + 0.5))
    self._starts = np.concatenate([[0], np.cumsum(containing)])
    self._rows = np.zeros(self._starts[-1], np.int32)
    self._scores = np.zeros(self._starts[-1], np.float32)
    length_norm = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9))
    free = self._starts[:-1].copy()  # Where the next row of each word goes.
    parts.reverse()
    while parts:
      rows, words, times = parts.pop()
      by_word = np.argsort(words, kind="stable")
      rows, words, times = rows[by_word], words[by_word], times[by_word]
      different, begin, number = np.unique(words, return_index=True, return_counts=True)
      places = np.repeat(free[different] - begin, number) + np.arange(len(words))
      free[different] += number
      self._rows[places] = rows
      self._scores[places] = idf[words] * times / (times + length_norm[rows])

  def _tokens(self, texts: Iterable[str], total: int, description: str) -> Iterator[list[list[str]]]:
    """The words of each text, of some texts at a time."""
    texts = iter(texts)
    with Bar(total, description, " texts", shown=self._progress, leave=False) as bar:
      while part := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        yield self._tokenize(part, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False,
                             allow_empty=False)
        bar.update(len(part))

  def search(self, queries: Sequence[str], k: int,
             rows: range | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each query (positions in `texts`, float32 scores), the best k in order.

    Texts that share no word with the query (score 0) are left out, so there may be fewer than k.

    Args:
      queries: texts.
      k: results for each.
      rows: only of these rows of the index, which are the texts in the order in which ties rank; default: all.
    """
    tokens = [words for part in self._tokens(queries, len(queries), "BM25: reading the queries") for words in part]

    def best(start):
      return [self._best(words, k, rows) for words in tokens[start:start + _QUERIES_PER_TASK]]

    with (concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
          Bar(len(queries), "BM25: searching", " queries", shown=self._progress, leave=False) as bar):
      for results in pool.map(best, range(0, len(queries), _QUERIES_PER_TASK)):
        bar.update(len(results))
        yield from results

  def _best(self, words: list[str], k: int, among: range | None) -> tuple[np.ndarray, np.ndarray]:
    scores = np.zeros(len(self.order), np.float32)
    for word in words:  # One that a query repeats counts as often.
      if (number := self._number_of.get(word)) is not None:
        of_word = slice(self._starts[number], self._starts[number + 1])
        scores[self._rows[of_word]] += self._scores[of_word]
    if among is not None:
      scores[:among.start] = scores[among.stop:] = 0
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
