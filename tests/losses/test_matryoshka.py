"""A loss over cut embeddings, against the formula of each length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_in_batch import DIM, formula, make, make_float32

from gtr_jax.errors import InputError
from gtr_jax.losses.in_batch import InBatchLoss
from gtr_jax.losses.matryoshka import MatryoshkaLoss
from gtr_jax.losses.ring import RingLoss


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("inner", [InBatchLoss, RingLoss])
def test_equals_the_formula(inner, normalize):
  inner = inner(temperature=0.05, margin=0.1, label_smoothing=0.1)
  loss = MatryoshkaLoss(inner, (2, DIM, 3), (0.5, 2.0, 0.25), normalize)
  queries, passages, batch = make(valid=False)

  def cut(x, length):
    x = x[..., :length]
    return x / np.linalg.norm(x, axis=-1, keepdims=True) if normalize or length == DIM else x

  of_length = {length: formula(inner, cut(queries, length), cut(passages, length), batch) for length in (2, 3, DIM)}
  with jax.enable_x64(True):
    value, metrics = loss(queries, passages, batch)
  assert value.dtype == jnp.float64 and value == metrics["loss"]
  np.testing.assert_allclose(value, 0.5 * of_length[2][0] + 2 * of_length[DIM][0] + 0.25 * of_length[3][0], rtol=1e-12)
  np.testing.assert_allclose([metrics[name] for name in ("accuracy", "mrr", "mrr_2", "mrr_3")],
                             [*of_length[DIM][1:], of_length[2][2], of_length[3][2]], rtol=1e-12)


def test_texts_that_only_fill_up_have_no_gradient():
  """Their embeddings are zero, cut as well."""
  queries, passages, batch = make_float32(valid=False)
  queries = np.where(np.concatenate([batch.valid, batch.negative_query_valid], 1)[..., None], queries, 0)
  gradient = jax.grad(lambda q: MatryoshkaLoss(InBatchLoss(), (DIM, 2))(q, passages, batch)[0])(jnp.asarray(queries))
  assert np.isfinite(gradient).all() and np.any(gradient)


def test_it_is_the_loss_for_those_who_ask():
  inner = RingLoss(temperature=0.02, learned_temperature=True, mask_false_negatives=False, own_negatives_only=True,
                   bidirectional=False)
  loss = MatryoshkaLoss(inner, (8, 2))
  assert (loss.temperature, loss.mask_false_negatives, loss.own_negatives_only) == (0.02, False, True)
  assert loss.init_params(8) == inner.init_params(8)
  assert loss.weight_of == {8: 1.0, 2: 1.0}


@pytest.mark.parametrize("options, message", [
    ({"dimensions": ()}, "dimensions is .*give each length of embeddings once"),
    ({"dimensions": (4, 4)}, "give each length of embeddings once"),
    ({"dimensions": (4, 0)}, "MatryoshkaLoss.dimensions"),
    ({"dimensions": (4, 2), "weights": (1.0,)}, "weights has 1 numbers for 2 dimensions")])
def test_wrong_options(options, message):
  with pytest.raises(InputError, match=message):
    MatryoshkaLoss(InBatchLoss(), **options)


@pytest.mark.parametrize("dimensions", [(DIM - 1,), (DIM + 1, DIM)])
def test_the_longest_is_the_width(dimensions):
  with pytest.raises(InputError, match=f"embeddings are {DIM} wide: the longest has to be that"):
    MatryoshkaLoss(InBatchLoss(), dimensions)(*make())
