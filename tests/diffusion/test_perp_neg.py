"""Perp-Neg against its equation, computed slowly."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion import guidance
from sds_jax.diffusion.perp_neg import perpendicular, steer

RNG = np.random.default_rng(3)
EPS = [jnp.asarray(a, jnp.float32) for a in RNG.normal(size=(4, 3, 5, 4, 2))]  # positive, unconditional, two negatives
WEIGHTS = np.array([[-2.0, -0.5], [0.0, -1.0], [-0.3, 0.0]])


def slow(positive, unconditional, negatives, weights, scale):
  """Computes eps_u + s [d + sum_i w_i perp(d_i, d)] by loops in float64."""
  result = np.zeros(positive.shape)
  for b in range(positive.shape[0]):
    along = (np.asarray(positive[b], np.float64) - np.asarray(unconditional[b], np.float64)).ravel()
    total = along.copy()
    for i, negative in enumerate(negatives):
      direction = (np.asarray(negative[b], np.float64) - np.asarray(unconditional[b], np.float64)).ravel()
      dot = square = 0.0
      for p, q in zip(direction, along):
        dot, square = dot + p * q, square + q * q
      for j in range(along.size):
        total[j] += weights[b][i] * (direction[j] - dot / square * along[j])
    result[b] = np.asarray(unconditional[b], np.float64) + scale * total.reshape(positive.shape[1:])
  return result


def cosine(a, b):
  a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
  return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_perpendicular():
  x, y = EPS[2], EPS[3]
  actual = perpendicular(x, y)
  assert np.abs(cosine(actual, y)).max() < 1e-6
  share = np.asarray(x - actual, np.float64) / np.asarray(y, np.float64)  # the subtracted part is a multiple of y[b]
  assert np.ptp(share.reshape(3, -1), axis=1).max() < 1e-3 and np.abs(share).max() > 0.01
  np.testing.assert_allclose(perpendicular(2.5 * y, y), np.zeros(y.shape), atol=1e-5)
  np.testing.assert_array_equal(perpendicular(x, jnp.zeros_like(x)), x)
  assert perpendicular(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_added_part_is_perpendicular_to_the_positive_direction():
  added = steer(*EPS[:2], EPS[2:], jnp.asarray(WEIGHTS, jnp.float32)) - EPS[0]
  assert np.abs(np.asarray(added)).max() > 0.1 and np.abs(cosine(added, EPS[0] - EPS[1])).max() < 1e-6


def make_problem(texts, weights):
  """Returns a network returning its text, the cond of `guided` with these texts, and the shapes of the calls."""
  calls = []

  def denoise(params, z, t, cond):
    calls.append(z.shape)
    return cond["text"]

  sides = [dict(text=text) for text in texts]
  return denoise, dict(cond=sides[0], uncond=sides[1], negatives=tuple(sides[2:]), weights=weights), calls


@pytest.mark.parametrize("convention, scale", [("diffusers", 7.5), ("dreamfusion", 6.5)])
def test_guidance_with_negatives_is_one_call_and_the_equation(convention, scale):
  denoise, cond, calls = make_problem(EPS, jnp.asarray(WEIGHTS, jnp.float32))
  actual = guidance.guided(denoise, convention, scale)(None, EPS[0], jnp.zeros(3, jnp.int32), cond)
  assert calls == [(12, 5, 4, 2)]
  np.testing.assert_allclose(actual, slow(*EPS[:2], EPS[2:], WEIGHTS, 7.5), atol=2e-4)


@pytest.mark.parametrize("convention", guidance.CONVENTIONS)
@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_zero_weights_give_plain_guidance(convention, phi):
  denoise, cond, _ = make_problem(EPS, jnp.zeros((3, 2)))
  predict = guidance.guided(denoise, convention, jnp.float32(7.5), rescale_phi=phi)
  z, t = EPS[0], jnp.zeros(3, jnp.int32)
  plain = dict(cond=cond["cond"], uncond=cond["uncond"])
  np.testing.assert_array_equal(predict(None, z, t, cond), predict(None, z, t, plain))


def test_rescaling_uses_the_plain_conditional_prediction():
  denoise, cond, _ = make_problem(EPS, jnp.asarray(WEIGHTS, jnp.float32))
  actual = jax.jit(lambda phi: guidance.guided(denoise, "diffusers", 7.5, rescale_phi=phi)(
    None, EPS[0], jnp.zeros(3, jnp.int32), cond))(jnp.float32(0.6))
  wide = slow(*EPS[:2], EPS[2:], WEIGHTS, 7.5)
  for b in range(3):
    ratio = np.std(np.asarray(EPS[0][b], np.float64)) / np.std(wide[b])
    np.testing.assert_allclose(actual[b], 0.6 * wide[b] * ratio + 0.4 * wide[b], atol=2e-4)


def test_mistakes():
  denoise, cond, _ = make_problem(EPS, jnp.zeros((3, 3)))
  predict = lambda cond: guidance.guided(denoise, "diffusers", 1.0)(None, EPS[0], jnp.zeros(3), cond)  # noqa: E731
  with pytest.raises(ValueError, match=r"2 negatives, but weights of shape \(3, 3\)"):
    predict(cond)
  with pytest.raises(ValueError, match="found .'cond', 'negatives', 'uncond'.$"):
    predict({name: side for name, side in cond.items() if name != "weights"})
  with pytest.raises(ValueError, match="same structure and shapes"):
    predict(dict(cond, negatives=(cond["cond"], dict(text=EPS[0][:1]))))
