"""On average over the noise estimators are sums of gradients of divergences, which quadrature and autodiff know."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.guidance import guided
from sds_jax.testbed import denoisers, kl_divergence, laws

SAMPLES = 100_000
TIMES = (300, 700)
OMEGA, AT, SOURCE = 2.0, 0.5, -0.2
PROMPT, NEGATIVE, NULL, OWN = range(4)
"""Labels of the laws: of what is asked for, of what is not, of anything, and of the images made so far."""


def law(weights, means, stds):
  return laws.Mixture(jnp.array(weights), jnp.array(means)[:, None], jnp.array(stds))


@jax.jit
def params():
  given = laws.stack([law([0.5, 0.3, 0.2], [-1.0, 0.4, 1.5], [0.15, 0.3, 0.1]),
                      law([0.6, 0.4], [-0.3, 2.0], [0.4, 0.2])])
  return laws.stack([*(jax.tree.map(lambda leaf: leaf[y], denoisers.with_null_label(given, jnp.array([0.4, 0.6])))
                       for y in range(3)), laws.gaussian(jnp.array([0.9]), 0.3)])


PARAMS = params()


@pytest.fixture(scope="module")
def pull(schedule):
  """(label, x, t) -> sigma / alpha times the gradient in x of KL(N(alpha x, sigma^2) || p_t of that label's law)."""
  @jax.jit
  def of(label, x, t):
    one = jax.tree.map(lambda leaf: leaf[label], PARAMS)
    return kl_divergence.expected_residual(one, jnp.reshape(x, 1), schedule.alpha[t], schedule.sigma[t])[0]
  return lambda label, t, x=AT: float(of(jnp.int32(label), jnp.float32(x), jnp.int32(t)))


def with_guidance(pull, t, x=AT, prompt=PROMPT):
  return pull(prompt, t, x) + OMEGA * (pull(prompt, t, x) - pull(NULL, t, x))


def later(pull, t, shift):
  """The mean of `pull` over ASD's later times, floor(U span) after t."""
  span = shift * (t - 20)
  shares = np.clip(span - np.arange(np.ceil(span)), 0, 1) / span
  return sum(share * pull(PROMPT, t + k) for k, share in enumerate(shares))


def tau(schedule, t):
  return float(schedule.sigma[t] / (schedule.alpha[t] + schedule.sigma[t]))


EXPECTED = {
    "sds": lambda pull, t, schedule: with_guidance(pull, t),
    "score": lambda pull, t, schedule: with_guidance(pull, t),
    "sjc": lambda pull, t, schedule: with_guidance(pull, t),
    "rfds": lambda pull, t, schedule: with_guidance(pull, t) / (1 - tau(schedule, t)),
    "csd": lambda pull, t, schedule: (pull(PROMPT, t) - pull(NULL, t)) - 0.5 * (pull(NEGATIVE, t) - pull(NULL, t)),
    "nfsd": lambda pull, t, schedule: with_guidance(pull, t) - pull(NEGATIVE, t),
    "bridge": lambda pull, t, schedule: with_guidance(pull, t) - pull(NULL, t),
    "vsd": lambda pull, t, schedule: with_guidance(pull, t) - pull(OWN, t),
    "dds": lambda pull, t, schedule: with_guidance(pull, t) - with_guidance(pull, t, SOURCE, NEGATIVE),
    "asd": lambda pull, t, schedule: with_guidance(pull, t) - later(pull, t, 0.2),
}


def sides(prompt):
  whole = lambda label: jnp.full(SAMPLES, label)  # noqa: E731
  return dict(cond=whole(prompt), uncond=whole(NULL), negative=whole(NEGATIVE))


@pytest.mark.parametrize("name", EXPECTED)
def test_means_are_gradients_of_divergences(schedule, pull, name):
  """Of 100,000 draws of the noise, through the public function; within 4 standard errors."""
  denoise = denoisers.vp_denoiser(schedule)
  options = {"csd": dict(negative_weight=0.5), "asd": dict(shift=0.2),
             "dds": dict(source_x=jnp.full((SAMPLES, 1), SOURCE), source_cond=sides(NEGATIVE)),
             "vsd": dict(score_fn=denoise, score_params=PARAMS, score_cond=jnp.full(SAMPLES, OWN))}

  @jax.jit
  def gradients(x, t):
    return jax.grad(lambda x: score_distillation(
        guided(denoise, "dreamfusion", OMEGA), PARAMS, schedule, x, jax.random.key(1), sides(PROMPT),
        t=jnp.full(SAMPLES, t), weighting="uniform", estimator=name, options=options.get(name))[0])(x)

  for t in TIMES:
    found = SAMPLES * np.asarray(gradients(jnp.full((SAMPLES, 1), AT), jnp.int32(t)), np.float64)
    error, expected = found.std() / np.sqrt(SAMPLES), EXPECTED[name](pull, t, schedule)
    assert abs(found.mean() - expected) < 4 * error + 2e-5  # quadrature and its derivative in float32
    assert abs(expected) > 20 * error  # so that a wrong sign or factor cannot pass


def test_the_mean_of_ldiff_is_the_gradient_of_the_training_loss(schedule):
  """E over eps of 1/2 (eps* - eps)^2 at x, by quadrature, differentiated through the network."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(64)
  eps, denoise = jnp.asarray(nodes, jnp.float32)[:, None], denoisers.vp_denoiser(schedule)
  labels = jnp.full(64, PROMPT)

  @jax.jit
  @jax.grad
  def of_the_training_loss(x, t):
    z = schedule.alpha[t] * x + schedule.sigma[t] * eps
    return 0.5 * jnp.sum(jnp.asarray(weights / weights.sum(), jnp.float32)
                         * (denoise(PARAMS, z, jnp.full(64, t), labels) - eps)[:, 0] ** 2)

  @jax.jit
  def gradients(x, t):
    return jax.grad(lambda x: score_distillation(denoise, PARAMS, schedule, x, jax.random.key(1),
                                                 jnp.full(SAMPLES, PROMPT), t=jnp.full(SAMPLES, t),
                                                 weighting="uniform", estimator="ldiff")[0])(x)

  for t in TIMES:
    expected = float(of_the_training_loss(jnp.float32(AT), jnp.int32(t)))
    found = SAMPLES * np.asarray(gradients(jnp.full((SAMPLES, 1), AT), jnp.int32(t)), np.float64)
    error = found.std() / np.sqrt(SAMPLES)
    assert abs(found.mean() - expected) < 4 * error and abs(expected) > 20 * error
