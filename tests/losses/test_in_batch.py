"""The dense loss against its formula, written out in float64 with loops over pairs and candidates."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gtr_jax.errors import InputError
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.models.pooling import l2_normalize
from gtr_jax.text.batch import Taught, split_hash

GROUPS, PAIRS, NEGATIVES, NEGATIVE_QUERIES, DIM = 2, 4, 8, 3, 5


def make(seed=0, negatives=NEGATIVES, negative_queries=NEGATIVE_QUERIES, valid=True):
  """Embeddings and a batch of 2 groups of 4 pairs; two hard negatives a query, with duplicates among everything."""
  rng = np.random.default_rng(seed)
  queries = rng.normal(size=(GROUPS, PAIRS + negative_queries, DIM))
  passages = rng.normal(size=(GROUPS, PAIRS + negatives, DIM))
  query_ids = np.arange(GROUPS * (PAIRS + negative_queries)).reshape(GROUPS, -1)
  passage_ids = 100 + np.arange(GROUPS * (PAIRS + negatives)).reshape(GROUPS, -1)
  text_ids = 200 + passage_ids
  passage_ids[1, 2] = passage_ids[0, 1]  # two pairs with one positive, in different groups
  query_ids[1, 3] = query_ids[0, 0]  # two pairs with one query
  text_ids[0, 3] = text_ids[1, 0]  # two positives with one text and two ids
  if negatives:
    passage_ids[1, PAIRS] = passage_ids[0, 2]  # somebody's positive is another's hard negative
    text_ids[0, PAIRS + 2] = text_ids[1, 1]
    passage_ids[0, PAIRS + 4] = passage_ids[0, 0]
  if negative_queries:
    query_ids[0, PAIRS] = query_ids[1, 1]
  known_ids = np.zeros((GROUPS, PAIRS, 3), np.int64)
  known_ids[..., 0] = 900 + np.arange(GROUPS * PAIRS).reshape(GROUPS, PAIRS)  # the queries' own texts
  known_ids[0, 2, 1], known_ids[1, 0, 2] = text_ids[1, 1], text_ids[0, 2]  # another pair's positive answers it too
  text_ids[0, 0] = known_ids[1, 2, 0]  # a positive is another pair's query
  if negatives:
    known_ids[0, 3, 1] = text_ids[0, PAIRS + 6]  # its own hard negative answers it
    known_ids[1, 3, 1] = text_ids[0, PAIRS + 1]  # .. and that of another
  # Ids that differ in one half of their 64 bits only.
  hashes = {name: split_hash((ids // 2 << 32) + ids % 2) for name, ids in (
      ("query_hash", query_ids), ("passage_hash", passage_ids), ("text_hash", text_ids), ("known_hash", known_ids))}
  batch = SimpleNamespace(
      valid=np.array([[True, True, True, valid], [valid, True, True, True]]),
      negative_valid=np.ones((GROUPS, negatives), bool),
      negative_query_valid=np.ones((GROUPS, negative_queries), bool),
      negative_owner=np.tile(np.repeat(np.arange(PAIRS, dtype=np.int32), negatives // PAIRS), (GROUPS, 1)), **hashes)
  vectors = [rng.normal(size=(*x.shape[:2], 3)) for x in (queries, passages)]  # A teacher's, of some texts none.
  vectors[0][0, 1] = vectors[1][1, 0] = vectors[1][0, -1] = 0
  batch.teacher = Taught(*vectors)
  if not valid:
    batch.negative_valid[:, 1::3] = False
    batch.negative_query_valid[1] = False
  return queries / np.linalg.norm(queries, axis=-1, keepdims=True), \
      passages / np.linalg.norm(passages, axis=-1, keepdims=True), batch


def make_float32(**kwargs):
  queries, passages, batch = make(**kwargs)
  return queries.astype(np.float32), passages.astype(np.float32), batch


def formula(loss, queries, passages, batch, temperature=None, train=True):
  """Loss, accuracy and MRR, straight from the definition."""
  scale = 1 / (loss.temperature if temperature is None else temperature)
  pairs = [(g, i) for g in range(GROUPS) for i in range(PAIRS)]
  hashes = {name: getattr(batch, name).tolist() for name in (
      "query_hash", "passage_hash", "text_hash", "known_hash")}

  def same(name, a, b):
    return hashes[name][a[0]][a[1]] == hashes[name][b[0]][b[1]]

  def knows(query, passage):
    return hashes["text_hash"][passage[0]][passage[1]] in hashes["known_hash"][query[0]][query[1]]

  def related(a, b):
    return same("query_hash", a, b) or same("passage_hash", a, b) or same("text_hash", a, b)

  def guide(a, b):
    """The teacher's cosine of two of its vectors, None where one is missing."""
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    return float(a @ b / lengths[0] / lengths[1]) if all(lengths) else None

  def cross_entropy(similarities, own, guided):
    """`similarities` of the unmasked candidates, and what the teacher says of them, the own one at index `own`."""
    if train and loss.guided:
      kept = [c for c, g in enumerate(guided) if c == own or g is None or guided[own] is None
              or g <= max(guided[own] + loss.false_negative_margin, 0)]
      similarities, own = [similarities[c] for c in kept], kept.index(own)
    elif train and loss.false_negative_margin is not None:
      similarities = [s for c, s in enumerate(similarities)
                      if c == own or s <= similarities[own] + loss.false_negative_margin]
    logits = [scale * (s - (loss.margin if train and c == own else 0)) for c, s in enumerate(similarities)]
    log_sum = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
    share = loss.label_smoothing / len(logits)
    targets = [share + (1 - loss.label_smoothing) * (c == own) for c in range(len(logits))]
    return sum(t * (log_sum - x) for t, x in zip(targets, logits, strict=True))

  forward, backward, ranks = [], [], []
  for a in pairs:
    if not batch.valid[a]:
      continue
    candidates = [a]
    for b in pairs:
      false = loss.mask_false_negatives and (related(a, b) or knows(a, b))
      if b != a and batch.valid[b] and not false and not loss.own_negatives_only:
        candidates.append(b)
    for g in range(GROUPS):
      for n in range(passages.shape[1] - PAIRS):
        c = (g, PAIRS + n)
        own = (g, int(batch.negative_owner[g, n])) == a
        false = loss.mask_false_negatives and (
            same("passage_hash", a, c) or same("text_hash", a, c) or knows(a, c))
        if batch.negative_valid[g, n] and not false and (own or not loss.own_negatives_only):
          candidates.append(c)
    similarities = [float(queries[a] @ passages[c]) for c in candidates]
    by_teacher = [guide(batch.teacher.queries[a], batch.teacher.passages[c]) for c in candidates]
    forward.append(cross_entropy(similarities, 0, by_teacher))
    ranks.append(1 + sum(s >= similarities[0] for s in similarities[1:]))

    candidates = [a] + [b for b in pairs if b != a and batch.valid[b]
                        and not (loss.mask_false_negatives and (related(a, b) or knows(b, a)))]
    for g in range(GROUPS):
      for m in range(queries.shape[1] - PAIRS):
        c = (g, PAIRS + m)
        if batch.negative_query_valid[g, m] and not (loss.mask_false_negatives and same("query_hash", a, c)):
          candidates.append(c)
    by_teacher = [guide(batch.teacher.passages[a], batch.teacher.queries[c]) for c in candidates]
    backward.append(cross_entropy([float(passages[a] @ queries[c]) for c in candidates], 0, by_teacher))
  total = np.mean(forward) + (np.mean(backward) if loss.bidirectional else 0)
  return total, np.mean([r == 1 for r in ranks]), np.mean([1 / r for r in ranks])


OPTIONS = (
    {},
    {"bidirectional": False},
    {"mask_false_negatives": False},
    {"margin": 0.2},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.3, "margin": 0.1, "mask_false_negatives": False},
    {"temperature": 0.5, "learned_temperature": True},
    {"own_negatives_only": True, "bidirectional": False},
    {"own_negatives_only": True, "bidirectional": False, "label_smoothing": 0.1, "mask_false_negatives": False},
    {"false_negative_margin": 0.1},
    {"false_negative_margin": -0.2, "label_smoothing": 0.1, "learned_temperature": True},
    {"own_negatives_only": True, "bidirectional": False, "label_smoothing": 0.1, "false_negative_margin": 0.1},
    {"false_negative_margin": 0.1, "guided": True, "teacher_dim": 3},
    {"own_negatives_only": True, "bidirectional": False, "false_negative_margin": -0.5, "guided": True,
     "teacher_dim": 3},
)


@pytest.mark.parametrize("options, data", [
    *((options, data) for options in OPTIONS for data in ({}, {"valid": False})),
    *(({"label_smoothing": 0.1}, data) for data in ({"negatives": 0}, {"negative_queries": 0})),
    ({"own_negatives_only": True, "bidirectional": False}, {"negatives": 0}),
], ids=str)
def test_equals_the_formula(options, data):
  loss = InBatchLoss(**{"temperature": 0.05, **options})
  queries, passages, batch = make(**data)
  with jax.enable_x64(True):
    extra = {"logit_scale": jnp.float64(math.log(1 / 0.07))} if loss.learned_temperature else {}
    for train in (True, False) if loss.margin or loss.false_negative_margin else (True,):
      value, metrics = loss(queries, passages, batch, train=train, params=extra)
      assert value.dtype == jnp.float64
      expected = formula(loss, queries, passages, batch, 0.07 if extra else None, train)
      got = [metrics["loss"], metrics["accuracy"], metrics["mrr"]]
      np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
      assert value == metrics["loss"]


def test_every_option_changes_the_formula_on_this_data():
  values = [formula(InBatchLoss(**{"temperature": 0.05, **options}), *make())[0] for options in OPTIONS]
  assert len({round(value, 4) for value in values}) == len(OPTIONS)


def test_gradient_against_finite_differences():
  loss = InBatchLoss(temperature=0.2, margin=0.1, label_smoothing=0.1, learned_temperature=True)
  queries, passages, batch = make(valid=False)
  with jax.enable_x64(True):
    point = (jnp.asarray(queries), jnp.asarray(passages), jnp.float64(1.3))

    @jax.jit
    def f(q, p, s):
      return loss(q, p, batch, params={"logit_scale": s})[0]

    gradient = jax.grad(f, (0, 1, 2))(*point)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype), point)
    step = 1e-6
    ahead, behind = (f(*jax.tree.map(lambda x, d, h=h: x + h * d, point, direction)) for h in (step, -step))
    slope = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-7)


def test_fill_pairs_and_fill_negatives_change_nothing():
  queries, passages, batch = make_float32(valid=False)
  loss = InBatchLoss(temperature=0.1, label_smoothing=0.1)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def f(q, p):
    return loss(q, p, batch)[0]

  value, (dq, dp) = f(queries, passages)
  fill_q = np.concatenate([~batch.valid, ~batch.negative_query_valid], axis=1)
  fill_p = np.concatenate([~batch.valid, ~batch.negative_valid], axis=1)
  assert fill_q.any() and fill_p.any()
  assert not np.any(np.asarray(dq)[fill_q]) and not np.any(np.asarray(dp)[fill_p])
  assert np.all(np.any(np.asarray(dq)[~fill_q], axis=-1))
  other, _ = f(np.where(fill_q[..., None], np.float32(0.7), queries),
               np.where(fill_p[..., None], np.float32(-0.3), passages))
  np.testing.assert_allclose(value, other, rtol=1e-6)


def test_a_batch_of_fill_only_is_zero():
  queries, passages, batch = make_float32()
  batch.valid[:] = False
  value, gradient = jax.value_and_grad(lambda q: InBatchLoss()(q, passages, batch)[0])(queries)
  assert value == 0 and not np.any(gradient)


def test_no_overflow_at_temperature_one_hundredth_and_below():
  queries, passages, batch = make_float32()
  for temperature in (0.01, 1e-4):
    value, gradient = jax.value_and_grad(
        lambda q, t=temperature: InBatchLoss(temperature=t)(q, passages, batch)[0])(queries)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_equal_embeddings_are_not_a_success():
  _, _, batch = make_float32(negatives=0, negative_queries=0)
  same = l2_normalize(jnp.ones((GROUPS, PAIRS, DIM)))
  _, metrics = InBatchLoss()(same, same, batch)
  assert metrics["accuracy"] == 0 and metrics["mrr"] < 0.3


def test_init_params():
  assert InBatchLoss().init_params(8) == {}
  params = InBatchLoss(temperature=0.02, learned_temperature=True).init_params(8)
  assert params["logit_scale"].dtype == jnp.float32 and params["logit_scale"].shape == ()
  np.testing.assert_allclose(jnp.exp(params["logit_scale"]), 50, rtol=1e-6)
  queries, passages, batch = make_float32()
  learned, _ = InBatchLoss(temperature=0.02, learned_temperature=True)(queries, passages, batch, params=params)
  np.testing.assert_allclose(learned, InBatchLoss(temperature=0.02)(queries, passages, batch)[0], rtol=1e-5)


@pytest.mark.parametrize("field, value", [("temperature", 0.0), ("label_smoothing", 1.0), ("own_negatives_only", True)])
def test_option_errors(field, value):
  with pytest.raises(InputError, match=field):
    InBatchLoss(**{field: value})


def test_logit_scale_is_given_if_and_only_if_it_is_learned():
  queries, passages, batch = make_float32()
  with pytest.raises(InputError, match="logit_scale is missing: the parameters belong to another loss"):
    InBatchLoss(learned_temperature=True)(queries, passages, batch)
  with pytest.raises(InputError, match="no parameters of its own, but logit_scale is given"):
    InBatchLoss()(queries, passages, batch, params={"logit_scale": jnp.float32(1)})
