"""The losses of what a teacher says against their formulas, written out in float64 with loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_in_batch import DIM, GROUPS, NEGATIVES, PAIRS, make
from test_ring import MESHES, large

from gtr_jax.errors import InputError
from gtr_jax.losses import sweeps
from gtr_jax.losses.embedding_distillation import EmbeddingDistillationLoss
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.kl_distillation import KLDistillationLoss
from gtr_jax.losses.margin_mse import MarginMSELoss
from gtr_jax.losses.matryoshka import MatryoshkaLoss
from gtr_jax.losses.similarity_distillation import SimilarityDistillationLoss
from gtr_jax.losses.teacher import NOTHING, OfTeacher, of_teacher
from gtr_jax.losses.weighted_sum import WeightedSumLoss
from gtr_jax.parallel import partitioning
from gtr_jax.text.batch import Batch, Taught

TEACHER_DIM = 7


def taught(teacher_dim=DIM, **kwargs):
  """`make` with a teacher, who has nothing to say of some texts."""
  queries, passages, batch = make(**kwargs)
  rng = np.random.default_rng(1)
  vectors = [rng.normal(size=(*x.shape[:2], teacher_dim)) for x in (queries, passages)]
  scores = rng.normal(size=passages.shape[:2]) * 3
  vectors[0][1, 0] = vectors[1][0, 2] = vectors[1][1, -1] = 0
  scores[0, 1] = scores[1, -2:] = np.nan
  batch.teacher = Taught(*vectors, scores)
  return queries, passages, batch


def value_and_gradient(loss, queries, passages, batch, params=None):
  with jax.enable_x64(True):
    def of(queries, passages, params):
      return loss(queries, passages, batch, params=params)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(of, (0, 1, 2), has_aux=True))(
        jnp.asarray(queries), jnp.asarray(passages), params or {})
    return float(value), jax.device_get(metrics), jax.device_get(gradient)


def check_gradient(loss, queries, passages, batch, params=None):
  """Against finite differences, in a random direction."""
  gradient = value_and_gradient(loss, queries, passages, batch, params)[2]
  rng, step = np.random.default_rng(2), 1e-6
  for place, x in enumerate((queries, passages)):
    direction = rng.normal(size=x.shape)
    ends = [value_and_gradient(loss, *(y + sign * step * direction if at == place else y for at, y in enumerate(
        (queries, passages))), batch, params)[0] for sign in (1, -1)]
    np.testing.assert_allclose(np.sum(gradient[place] * direction), (ends[0] - ends[1]) / (2 * step), rtol=1e-5,
                               atol=1e-9)


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("data", [{}, {"valid": False}, {"negatives": 0, "negative_queries": 0}], ids=str)
@pytest.mark.parametrize("teacher_dim", [DIM, TEACHER_DIM])
def test_embeddings(data, teacher_dim):
  queries, passages, batch = taught(teacher_dim, **data)
  loss = EmbeddingDistillationLoss(teacher_dim)
  params = {name: np.asarray(x, np.float64) for name, x in loss.init_params(DIM).items()}
  mapping = params.get("teacher_map", np.eye(DIM))
  assert ("teacher_map" in params) == (teacher_dim != DIM)
  cosines = []
  for x, vectors, of_negatives in ((queries, batch.teacher.queries, batch.negative_query_valid),
                                   (passages, batch.teacher.passages, batch.negative_valid)):
    there = np.concatenate([batch.valid, of_negatives], axis=1)
    cosines.append([cosine(x[at] @ mapping, vectors[at]) for at in np.ndindex(there.shape)
                    if there[at] and vectors[at].any()])
  value, metrics, _ = value_and_gradient(loss, queries, passages, batch, params)
  assert value == pytest.approx(1 - np.mean(sum(cosines, [])), rel=1e-12)
  assert metrics["query_cosine"] == pytest.approx(np.mean(cosines[0])) and metrics["loss"] == value
  assert metrics["passage_cosine"] == pytest.approx(np.mean(cosines[1]))
  check_gradient(loss, queries, passages, batch, params)


def lists_of(queries, passages, batch):
  """Of each query with a score of its positive: (dot products, scores) of its list, the positive first."""
  scores = batch.teacher.scores
  for g, i in np.ndindex(GROUPS, PAIRS):
    if not batch.valid[g, i] or np.isnan(scores[g, i]):
      continue
    own = [PAIRS + n for n in range(batch.negative_owner.shape[1])
           if batch.negative_owner[g, n] == i and batch.negative_valid[g, n] and not np.isnan(scores[g, PAIRS + n])]
    yield [queries[g, i] @ passages[g, c] for c in (i, *own)], [scores[g, c] for c in (i, *own)]


@pytest.mark.parametrize("data", [{}, {"valid": False}], ids=str)
def test_margins(data):
  queries, passages, batch = taught(**data)
  squares, first = [], []
  for dots, scores in lists_of(queries, passages, batch):
    squares += [((dots[0] - dot) / 0.2 - (scores[0] - score)) ** 2
                for dot, score in zip(dots[1:], scores[1:], strict=True)]
    if dots[1:]:
      first.append(dots[0] > max(dots[1:]))
  value, metrics, _ = value_and_gradient(MarginMSELoss(temperature=0.2), queries, passages, batch)
  assert value == pytest.approx(np.mean(squares), rel=1e-12) and len(squares) > 4
  assert metrics["accuracy"] == pytest.approx(np.mean(first))
  check_gradient(MarginMSELoss(temperature=0.2), queries, passages, batch)


@pytest.mark.parametrize("data", [{}, {"valid": False}], ids=str)
def test_kl(data):
  queries, passages, batch = taught(**data)

  def log_softmax(x, temperature):
    return [y / temperature - math.log(sum(math.exp(z / temperature) for z in x)) for y in x]

  divergences = []
  for dots, scores in lists_of(queries, passages, batch):
    if dots[1:]:
      of_teacher, of_student = log_softmax(scores, 0.7), log_softmax(dots, 0.2)
      divergences.append(sum(math.exp(p) * (p - s) for p, s in zip(of_teacher, of_student, strict=True)))
  loss = KLDistillationLoss(0.2, 0.7)
  value, _, _ = value_and_gradient(loss, queries, passages, batch)
  assert value == pytest.approx(np.mean(divergences), rel=1e-12) and len(divergences) > 3
  check_gradient(loss, queries, passages, batch)


@pytest.mark.parametrize("data", [{}, {"valid": False}, {"negatives": 0, "negative_queries": 0}], ids=str)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_similarities(data, bidirectional, monkeypatch):
  monkeypatch.setattr(sweeps, "BLOCK_ON_CPU", 3)
  queries, passages, batch = taught(TEACHER_DIM, **data)

  def softmax(x):
    weights = np.exp(np.array(x) - max(x))
    return weights / weights.sum()

  def there(vectors, of_rest):
    valid = np.concatenate([batch.valid, of_rest], axis=1)
    return [at for at in np.ndindex(valid.shape) if valid[at] and vectors[at].any()]

  vectors = batch.teacher.queries, batch.teacher.passages
  sides = [(queries, vectors[0], there(vectors[0], batch.negative_query_valid)),
           (passages, vectors[1], there(vectors[1], batch.negative_valid))]
  expected, agree = 0.0, []
  for (x, u, rows), (y, v, columns) in [sides, sides[::-1]][:1 + bidirectional]:
    divergences = []
    for a in [row for row in rows if row[1] < PAIRS]:
      of_teacher = softmax([cosine(u[a], v[c]) / 0.3 for c in columns])
      of_student = softmax([x[a] @ y[c] / 0.2 for c in columns])
      divergences.append(np.sum(of_teacher * (np.log(of_teacher) - np.log(of_student))))
      agree.append(of_teacher.argmax() == of_student.argmax())
    if x is queries:
      agreement = np.mean(agree)
    expected += np.mean(divergences)
  loss = SimilarityDistillationLoss(TEACHER_DIM, 0.2, 0.3, bidirectional)
  value, metrics, _ = value_and_gradient(loss, queries, passages, batch)
  assert value == pytest.approx(expected, rel=1e-12)
  assert metrics["agreement"] == pytest.approx(agreement)
  check_gradient(loss, queries, passages, batch)


def test_who_says_what_the_teacher_says_is_done():
  """Whatever the width: embeddings that are the teacher's, turned."""
  queries, passages, batch = taught()
  turn = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
  vectors = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) @ turn for x in batch.teacher[:2]]
  value, metrics, gradient = value_and_gradient(SimilarityDistillationLoss(), *vectors, batch)
  assert abs(value) < 1e-12 and metrics["agreement"] == 1 and max(np.abs(x).max() for x in gradient[:2]) < 1e-12


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_same_similarities(mesh):
  queries, passages, batch = large()
  rng = np.random.default_rng(4)
  teacher = Taught(*(rng.normal(size=(*x.shape[:2], TEACHER_DIM)) for x in (queries, passages)))
  with jax.enable_x64(True):
    batch = Batch(*jax.tree.map(jnp.asarray, tuple(batch)))._replace(teacher=teacher)
    step = jax.jit(jax.value_and_grad(SimilarityDistillationLoss(TEACHER_DIM), (0, 1), has_aux=True))
    expected = jax.device_get(step(queries, passages, batch))
    mesh = partitioning.make_mesh(*MESHES[mesh])
    with jax.set_mesh(mesh):
      found = jax.device_get(step(*jax.device_put((queries, passages, batch), partitioning.batch_sharding(mesh))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


@pytest.mark.parametrize("loss", [MarginMSELoss(), KLDistillationLoss()], ids=["margins", "KL"])
def test_without_negatives_nothing_is_learned(loss):
  value, metrics, gradient = value_and_gradient(loss, *taught(negatives=0))
  assert value == metrics["accuracy"] == 0 and not any(x.any() for x in gradient[:2])


def test_scores_that_are_not_there_make_no_gradient_that_is_none():
  queries, passages, batch = taught()
  batch.teacher = batch.teacher._replace(scores=np.full_like(batch.teacher.scores, np.nan))
  for loss in (MarginMSELoss(), KLDistillationLoss()):
    value, _, gradient = value_and_gradient(loss, queries, passages, batch)
    assert value == 0 and not any(x.any() for x in gradient[:2])


def test_sum():
  queries, passages, batch = taught(TEACHER_DIM)
  parts = (EmbeddingDistillationLoss(TEACHER_DIM), InBatchLoss(0.1, learned_temperature=True), MarginMSELoss())
  loss = WeightedSumLoss(parts, (1.0, 0.5, 0.01))
  params = {name: np.asarray(x, np.float64) for name, x in loss.init_params(DIM).items()}
  assert set(params) == {"teacher_map", "logit_scale"}
  own = [{"teacher_map": params["teacher_map"]}, {"logit_scale": params["logit_scale"]}, {}]
  values = [value_and_gradient(part, queries, passages, batch, of)[0] for part, of in zip(parts, own, strict=True)]
  value, metrics, _ = value_and_gradient(loss, queries, passages, batch, params)
  assert value == pytest.approx(values[0] + 0.5 * values[1] + 0.01 * values[2], rel=1e-12) == metrics["loss"]
  assert metrics["InBatchLoss"] == pytest.approx(values[1]) and {"mrr", "query_cosine"} <= metrics.keys()
  assert of_teacher(loss, DIM) == OfTeacher(TEACHER_DIM, True) and not loss.needs_candidates
  assert loss.temperature == 0.1 and not loss.own_negatives_only


def test_over_shorter_vectors():
  """A loss of vectors of one width is none of others; one of scores is."""
  queries, passages, batch = taught()
  loss = MatryoshkaLoss(MarginMSELoss(), (DIM, 2))
  assert of_teacher(loss, DIM) == OfTeacher(scores=True)
  _, metrics, _ = value_and_gradient(loss, queries, passages, batch)
  assert metrics["loss_2"] > 0


def test_what_is_asked_for():
  assert of_teacher(InBatchLoss(), DIM) == NOTHING == OfTeacher(0, False)
  assert of_teacher(EmbeddingDistillationLoss(), DIM) == OfTeacher(DIM)
  assert of_teacher(EmbeddingDistillationLoss(TEACHER_DIM), DIM) == OfTeacher(TEACHER_DIM)


@pytest.mark.parametrize("loss", [MatryoshkaLoss(EmbeddingDistillationLoss(), (DIM, 2)), EmbeddingDistillationLoss()])
def test_vectors_of_another_width(loss):
  with pytest.raises(InputError, match=r"embeddings are \d wide and the teacher's vectors \d.* teacher_dim"):
    loss(*taught(DIM if isinstance(loss, MatryoshkaLoss) else TEACHER_DIM))


def test_a_map_is_of_whole_vectors():
  queries, passages, batch = taught(TEACHER_DIM)
  loss = MatryoshkaLoss(EmbeddingDistillationLoss(TEACHER_DIM), (DIM, 2))
  with pytest.raises(InputError, match=f"are 2 wide, and the map .* is of vectors of {DIM}: it is not for a Mat"):
    loss(queries, passages, batch, params=loss.init_params(DIM))


@pytest.mark.parametrize("loss", [EmbeddingDistillationLoss(), MarginMSELoss()], ids=["vectors", "scores"])
def test_a_batch_without(loss, request):
  queries, passages, batch = make(negatives=NEGATIVES)
  batch.teacher = Taught()
  what = request.node.callspec.id
  with pytest.raises(InputError, match=f"needs a teacher's {what}, and the batch has none"):
    loss(queries, passages, batch)


@pytest.mark.parametrize("make_loss, message", [
    (lambda: WeightedSumLoss((MarginMSELoss(),)), "1 losses and 0 weights"),
    (lambda: WeightedSumLoss((MarginMSELoss(), InBatchLoss()), (1.0,)), "2 losses and 1 weights"),
    (lambda: WeightedSumLoss((EmbeddingDistillationLoss(3), EmbeddingDistillationLoss(4))).of_teacher(3), "3 and 4"),
    (lambda: WeightedSumLoss((EmbeddingDistillationLoss(3),) * 2).init_params(4), "teacher_map"),
    (lambda: EmbeddingDistillationLoss(0), "teacher_dim"),
    (lambda: KLDistillationLoss(0.0), "temperature")])
def test_wrong_options(make_loss, message):
  with pytest.raises(InputError, match=message):
    make_loss()
