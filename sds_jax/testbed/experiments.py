"""Experiments with an estimator and a perfect network: gradient field, bias, variance, and end points of particles.

A particle is an independent run: an image of D numbers with its own t, noise and keys. Only the second network of VSD
depends on all particles. Every function is pure and takes a key.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sds_jax.diffusion import timesteps
from sds_jax.diffusion.estimators import ESTIMATORS, Moment
from sds_jax.diffusion.guidance import NO_GUIDANCE, guided
from sds_jax.diffusion.scalars import schedule_value
from sds_jax.diffusion.weightings import WEIGHTINGS
from sds_jax.testbed import kl_divergence, laws
from sds_jax.testbed.denoisers import vp_denoiser
from sds_jax.testbed.laws import Mixture
from sds_jax.testbed.estimator_settings import SETTINGS
from sds_jax.testbed.toy_laws import NULL, TARGET, WIDE, law_of
from sds_jax.types import Array, Schedule

ParticleLawFn = Callable[[Array], Mixture]
"""Particles [N, D] -> their law in the second network of VSD."""


def kernel_law(particles: Array) -> Mixture:
  """Returns the law of particles [N, D], each blurred by 0.1.

  >>> law = kernel_law(jnp.array([[0.0], [2.0]]))
  >>> print(law.means[:, 0], law.stds)
  [0. 2.] [0.1 0.1]
  """
  return laws.dataset(particles, 0.1)


def gaussian_law(particles: Array) -> Mixture:
  """Fits an isotropic Gaussian to particles [N, D].

  >>> law = gaussian_law(jnp.array([[0.0], [2.0]]))
  >>> print(law.means[:, 0], law.stds)
  [1.] [1.]
  """
  mean = particles.mean(0)
  return laws.gaussian(mean, jnp.sqrt(jnp.mean((particles - mean[None]) ** 2)))


def gradient(name: str, label_laws: Mixture, schedule: Schedule, omega: Array | float, x: Array, t: Array, eps: Array,
             key: Array, *, start: Array, particle_law: Mixture, progress: Array | float,
             seed: Array | int = 0) -> Array:
  """Computes w(t) residual [D], the gradient of `score_distillation`.

  Args:
    name: a name in `estimator_settings.SETTINGS`.
    label_laws: leaves [4, ...], of `toy_laws`.
    schedule: of the noise.
    omega: guidance in DreamFusion's convention; 0 means no guidance.
    x, t, eps: [D], [] integer, [D].
    key: consumed by estimators with further draws.
    start: [D], the first position of the particle, the source of DDS and PDS.
    particle_law: the law of all particles, the second network of VSD.
    progress: finished fraction of the run, in [0, 1].
    seed: of the fixed noise of CDS.

  Example: omega = 2. At 1 + omega, the point of rest of SDS, opposite noises cancel; CSD still moves outwards.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> x, key, law = jnp.array([3.0]), jax.random.key(0), laws.gaussian(jnp.ones(1), 0.3)
    >>> at_x = lambda name, eps: gradient(name, toy_laws.two_gaussians(), flow_schedule(1000), 2.0, x, jnp.int32(500),
    ...                                   eps, key, start=x, particle_law=law, progress=0.5)
    >>> for name in ("sds", "csd"):
    ...   both = jax.jit(lambda eps: at_x(name, eps) + at_x(name, -eps))(jnp.ones(1))
    ...   print(name, bool(jnp.abs(both[0]) < 1e-4), bool(both[0] < -0.1))
    sds True False
    csd False True
  """
  label = lambda y: jnp.full((1,), y)  # noqa: E731
  record, setting = ESTIMATORS[name], SETTINGS[name]
  cond = dict(cond=label(TARGET), uncond=label(WIDE if "pair" in record.needs else NULL))
  if "negative" in record.needs:
    cond["negative"] = label(WIDE)
  moment = Moment(progress, seed, t_low=schedule_value(setting.t_min, progress), guidance_scale=omega,
                  neutral_scale=NO_GUIDANCE["dreamfusion"], schedule=schedule, inputs=dict(
                    score_fn=vp_denoiser(schedule), score_params=particle_law, score_cond=None, source_x=start[None],
                    source_cond=dict(cond=label(NULL), uncond=label(NULL))))
  options = dataclasses.replace(record.options(), **setting.options)
  # Published values of options change over the stages of a run. A particle has no stages, so the defaults of the
  # function serve instead.
  named = {field.name for field in dataclasses.fields(options)}
  arguments = {key: value for key, value in record.keywords(options, moment).items() if key not in named}
  # Estimators take a batch; a particle is a batch of a single example.
  denoise = guided(vp_denoiser(schedule), "dreamfusion", omega)
  residual, _ = record.fn(denoise, label_laws, schedule, x[None], t[None], eps[None], cond, key[None], **arguments)
  return WEIGHTINGS[SETTINGS[name].weighting](schedule, t) * residual[0]


def _random_gradient(name: str, label_laws: Mixture, schedule: Schedule, omega: Array | float, key: Array, x: Array,
                     start: Array, particle_law: Mixture, progress: Array | float, seed: Array | int) -> Array:
  """Computes `gradient` [D] with t, noise and further draws from `key`."""
  t_key, eps_key, estimator_key = jax.random.split(key, 3)
  setting = SETTINGS[name]
  # t of a particle is a scalar with its own key, as for an example of a batch.
  low, high = timesteps.annealed_range(setting.t_min, setting.t_max, progress, setting.warp)
  t = timesteps.to_index(low + (high - low) * jax.random.uniform(t_key), schedule.alpha.shape[0])
  eps = jax.random.normal(eps_key, x.shape, x.dtype)
  return gradient(name, label_laws, schedule, omega, x, t, eps, estimator_key, start=start,
                  particle_law=particle_law, progress=progress, seed=seed)


def field(name: str, label_laws: Mixture, schedule: Schedule, omega: Array | float, key: Array, points: Array,
          particle_law: Mixture, draws: int = 256) -> Array:
  """Computes the mean gradient [P, D] at points [P, D].

  The mean is over t, noise and progress.

  Args:
    name, label_laws, schedule, omega: as for `gradient`.
    key: consumed; all points share the draws.
    points: [P, D], also the starts of the particles.
    particle_law: the law of the particles, for VSD.
    draws: number of draws (static).

  Example: the gradient points away from the target N(1, 0.3^2); a step takes the opposite direction.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> label_laws, schedule = toy_laws.two_gaussians(), flow_schedule(1000)
    >>> points, law = jnp.array([[-1.0], [3.0]]), laws.gaussian(jnp.zeros(1), 1.0)
    >>> mean = jax.jit(lambda key: field("sds", label_laws, schedule, 0.0, key, points, law, draws=16))
    >>> print(jnp.sign(mean(jax.random.key(0)))[:, 0])
    [-1.  1.]
  """
  def single(x: Array, key: Array, seed: Array) -> Array:
    key, progress_key = jax.random.split(key)
    progress = jax.random.uniform(progress_key)
    return _random_gradient(name, label_laws, schedule, omega, key, x, x, particle_law, progress, seed)

  # Common draws for all points: the noise of the mean varies smoothly over the field.
  each = jax.vmap(jax.vmap(single, in_axes=(None, 0, 0)), in_axes=(0, None, None))
  return each(points, jax.random.split(key, draws), jnp.arange(draws)).mean(1)


def descend(name: str, label_laws: Mixture, schedule: Schedule, omega: Array | float, key: Array, start: Array,
            steps: int = 800, rate: float = 0.05, law: ParticleLawFn = kernel_law) -> tuple[Array, Array]:
  """Moves particles along an estimator by Adam.

  The learning rate falls linearly to 0.

  Args:
    name, label_laws, schedule, omega: as for `gradient`.
    key: consumed; step i uses fold_in(key, i).
    start: [N, D].
    steps, rate: number of steps (static), and the first learning rate.
    law: the law of the particles for VSD (static).

  Returns:
    end points [N, D], and the residual motion []: the path of the median particle over the last fifth of the run, as a
    share of the longest straight path of Adam. Near 0 for particles at rest, near 1 for a steady drift.

  Example: with omega = 2, SDS comes to rest at 1 + omega, and CSD does not come to rest.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> label_laws, key, start = toy_laws.two_gaussians(), jax.random.key(0), jnp.array([[0.0], [2.0]])
    >>> for name in ("sds", "csd"):
    ...   run = jax.jit(lambda key: descend(name, label_laws, flow_schedule(1000), 2.0, key, start, 200, 0.1))
    ...   ends, moving = run(key)
    ...   print(name, bool(jnp.allclose(ends, 3.0, atol=0.2)), bool(moving < 0.3))
    sds True True
    csd False False
  """
  # b2 = 0.99 forgets early gradients within a few hundred steps.
  adam = optax.adam(optax.linear_schedule(rate, 0.0, steps), b2=0.99)
  # A seed per particle: CDS keeps a noise for the whole run.
  seeds = jnp.arange(start.shape[0])

  def step(carry: tuple, i: Array) -> tuple[tuple, None]:
    x, state, last_fifth_start = carry
    # Keys depend on (step, particle), so particles are independent runs.
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(key, i), n))(seeds)
    particle_law, progress = law(x), i.astype(jnp.float32) / steps
    gradients = jax.vmap(lambda k, x, x_start, n: _random_gradient(
      name, label_laws, schedule, omega, k, x, x_start, particle_law, progress, n))(keys, x, start, seeds)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes step counts and floats
      updates, state = adam.update(gradients, state)
    last_fifth_start = jnp.where(i == steps - steps // 5, x, last_fifth_start)
    return (optax.apply_updates(x, updates), state, last_fifth_start), None

  (x, _, last_fifth_start), _ = jax.lax.scan(step, (start, adam.init(start), start), jnp.arange(steps))
  # An Adam step moves a coordinate by at most the rate. The rate falls linearly, so the last fifth covers a triangle.
  longest = rate * steps * 0.5 * 0.2**2
  return x, jnp.median(jnp.abs(x - last_fifth_start).max(-1)) / longest


def gradient_over_time(name: str, label_laws: Mixture, schedule: Schedule, key: Array, points: Array,
                       particle_law: Mixture, times: int = 15, nodes: int = 48, draws: int = 24) -> dict[str, Array]:
  """Computes mean, variance and exact gradient over t, without guidance.

  The mean over the noise is a quadrature without sampling error; other draws are averaged over `draws`. The exact
  gradient is (sigma_t / alpha_t) w(t) d/dx KL, see `kl_divergence` (arXiv:2209.14988, eq. 4).

  Args:
    name, schedule: as for `gradient`.
    label_laws: leaves [4, ...], of numbers.
    key: consumed; every t has the same draws.
    points: [P, 1], also the starts of the particles.
    particle_law: the law of the particles, for VSD.
    times, nodes, draws: sizes (static).

  Returns:
    t [T], fractions of the schedule over the range of the estimator; mean, variance and exact [T, P], weighted by w(t).

  Example: the mean of SDS is the gradient of the divergence, the mean of CSD is not.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> schedule, law = flow_schedule(1000), laws.gaussian(jnp.zeros(1), 1.0)
    >>> points, key = jnp.array([[-0.5], [2.5]]), jax.random.key(0)
    >>> for name in ("sds", "csd"):
    ...   run = jax.jit(lambda key: gradient_over_time(name, toy_laws.line(), schedule, key, points, law, 3, 24, 1))
    ...   curves = run(key)
    ...   print(name, bool(jnp.allclose(curves["mean"], curves["exact"], rtol=0.02, atol=1e-4)))
    sds True
    csd False
  """
  # Probabilists' nodes and weights of sum 1: the weighted sum is the expectation over N(0, 1).
  abscissae, weights = np.polynomial.hermite_e.hermegauss(nodes)
  weights = jnp.asarray(weights / weights.sum(), jnp.float32)
  eps = jnp.asarray(abscissae[:, None], jnp.float32)
  keys = jax.random.split(key, (nodes, draws))
  seeds = jnp.arange(nodes * draws).reshape(nodes, draws)
  target = law_of(label_laws, TARGET)
  # Exact and estimated gradients get the same weight, so their ratio does not depend on w(t).
  weight = WEIGHTINGS[SETTINGS[name].weighting]

  def at(t: Array) -> tuple[Array, Array, Array]:
    def single(x: Array, eps: Array, key: Array, seed: Array) -> Array:
      return gradient(name, label_laws, schedule, 0.0, x, t, eps, key, start=x, particle_law=particle_law, progress=0.5,
                      seed=seed)[0]

    over_draws = jax.vmap(single, in_axes=(None, None, 0, 0))
    values = jax.vmap(jax.vmap(over_draws, in_axes=(None, 0, 0, 0)), in_axes=(0, None, None, None))(
      points, eps, keys, seeds)
    mean = values.mean(-1) @ weights  # values are [P, nodes, draws]
    variance = ((values - mean[:, None, None]) ** 2).mean(-1) @ weights
    exact = jax.vmap(lambda x: kl_divergence.expected_residual(target, x, schedule.alpha[t], schedule.sigma[t]))(points)
    return mean, variance, weight(schedule, t) * exact[:, 0]

  fractions = np.linspace(*time_span(name), times)
  indices = timesteps.to_index(jnp.asarray(fractions, jnp.float32), schedule.alpha.shape[0])
  # `lax.map` keeps the memory of a single t.
  mean, variance, exact = jax.lax.map(at, indices)
  return dict(t=jnp.asarray(fractions, jnp.float32), mean=mean, variance=variance, exact=exact)


def time_span(name: str) -> tuple[float, float]:
  """Returns the smallest and the largest t of an estimator.

  Fractions of the schedule, over the whole run.

  >>> print(time_span("sds"), time_span("cds"))
  (0.02, 0.98) (0.1, 0.7)
  """
  # Scheduled ends contribute the values of all knots.
  ends = [value for spec in (SETTINGS[name].t_min, SETTINGS[name].t_max)
          for value in ([spec] if isinstance(spec, float) else [v for _, v in spec])]
  return min(ends), max(ends)
