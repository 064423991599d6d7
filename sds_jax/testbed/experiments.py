"""Numerical experiments with one estimator and a perfect network: its field, its bias and noise, where particles end.

A particle is a run of its own: an image of D numbers, with its own t, noise and keys, so that nothing but VSD's second
network knows of the others. Everything is a pure function of a key.
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
"""Particles [N, D] -> the law that VSD's second network takes them to be of."""


def blurred(particles: Array) -> Mixture:
  """The particles [N, D] themselves, each blurred by 0.1.

  >>> law = blurred(jnp.array([[0.0], [2.0]]))
  >>> print(law.means[:, 0], law.stds)
  [0. 2.] [0.1 0.1]
  """
  return laws.dataset(particles, 0.1)


def fitted(particles: Array) -> Mixture:
  """The Gaussian of the mean of particles [N, D] and of their spread, one number for all coordinates.

  >>> law = fitted(jnp.array([[0.0], [2.0]]))
  >>> print(law.means[:, 0], law.stds)
  [1.] [1.]
  """
  mean = particles.mean(0)
  return laws.gaussian(mean, jnp.sqrt(jnp.mean((particles - mean[None]) ** 2)))


def gradient(name: str, world: Mixture, schedule: Schedule, omega: Array | float, x: Array, t: Array, eps: Array,
             key: Array, *, start: Array, crowd: Mixture, progress: Array | float, seed: Array | int = 0) -> Array:
  """w(t) residual [D] of one particle, as `score_distillation` would inject it.

  Args:
    name: a name in `estimator_settings.SETTINGS`.
    world: leaves [4, ...], of `toy_laws`.
    schedule: its noise.
    omega: guidance in DreamFusion's convention; 0 is none.
    x, t, eps: [D], [] integer, [D].
    key: consumed by estimators that draw more.
    start: [D], where the particle began, for DDS and PDS.
    crowd: the law of all particles, for VSD.
    progress: fraction of the run that is done, in [0, 1].
    seed: of the noise that CDS keeps for the whole run.

  Example: where SDS rests under omega = 2, at 1 + omega, noise of either sign cancels; CSD goes on outwards from there.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> x, key, crowd = jnp.array([3.0]), jax.random.key(0), laws.gaussian(jnp.ones(1), 0.3)
    >>> one = lambda name, eps: gradient(name, toy_laws.two_gaussians(), flow_schedule(1000), 2.0, x, jnp.int32(500),
    ...                                  eps, key, start=x, crowd=crowd, progress=0.5)
    >>> for name in ("sds", "csd"):
    ...   both = jax.jit(lambda eps: one(name, eps) + one(name, -eps))(jnp.ones(1))
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
                    score_fn=vp_denoiser(schedule), score_params=crowd, score_cond=None, source_x=start[None],
                    source_cond=dict(cond=label(NULL), uncond=label(NULL))))
  options = dataclasses.replace(record.options(), **setting.options)
  # The function's own defaults stand for the options, whose published values change over a run that has stages.
  named = {field.name for field in dataclasses.fields(options)}
  arguments = {key: value for key, value in record.keywords(options, moment).items() if key not in named}
  denoise = guided(vp_denoiser(schedule), "dreamfusion", omega)
  residual, _ = record.fn(denoise, world, schedule, x[None], t[None], eps[None], cond, key[None], **arguments)
  return WEIGHTINGS[SETTINGS[name].weighting](schedule, t) * residual[0]


def _drawn(name: str, world: Mixture, schedule: Schedule, omega: Array | float, key: Array, x: Array, start: Array,
           crowd: Mixture, progress: Array | float, seed: Array | int) -> Array:
  """`gradient` [D] with t, noise and the estimator's own draws from `key`."""
  t_key, eps_key, own_key = jax.random.split(key, 3)
  setting = SETTINGS[name]
  low, high = timesteps.annealed_range(setting.t_min, setting.t_max, progress, setting.warp)
  t = timesteps.to_index(low + (high - low) * jax.random.uniform(t_key), schedule.alpha.shape[0])
  eps = jax.random.normal(eps_key, x.shape, x.dtype)
  return gradient(name, world, schedule, omega, x, t, eps, own_key, start=start, crowd=crowd, progress=progress,
                  seed=seed)


def field(name: str, world: Mixture, schedule: Schedule, omega: Array | float, key: Array, points: Array,
          crowd: Mixture, draws: int = 256) -> Array:
  """Mean of `gradient` at each of `points` [P, D] over t, noise and the whole run; [P, D].

  Args:
    key: consumed; all points share their draws.
    points: taken for starts as well.
    crowd: the law of the particles, for VSD.
    draws: number of draws (static).

  Example: uphill on either side of what is wanted, N(1, 0.3^2); a step goes the other way.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> world, schedule = toy_laws.two_gaussians(), flow_schedule(1000)
    >>> points, crowd = jnp.array([[-1.0], [3.0]]), laws.gaussian(jnp.zeros(1), 1.0)
    >>> found = jax.jit(lambda key: field("sds", world, schedule, 0.0, key, points, crowd, draws=16))
    >>> print(jnp.sign(found(jax.random.key(0)))[:, 0])
    [-1.  1.]
  """
  def one(x: Array, key: Array, seed: Array) -> Array:
    key, when = jax.random.split(key)
    return _drawn(name, world, schedule, omega, key, x, x, crowd, jax.random.uniform(when), seed)

  each = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)), in_axes=(0, None, None))
  return each(points, jax.random.split(key, draws), jnp.arange(draws)).mean(1)


def descend(name: str, world: Mixture, schedule: Schedule, omega: Array | float, key: Array, start: Array,
            steps: int = 800, rate: float = 0.05, law: ParticleLawFn = blurred) -> tuple[Array, Array]:
  """Particles that follow the estimator, by Adam with a learning rate that falls linearly to 0.

  Args:
    key: consumed; step i uses fold_in(key, i).
    start: [N, D].
    steps, rate: number of steps (static), and the first learning rate.
    law: for VSD; static.

  Returns:
    (end points [N, D], how much they still move []): the median particle's way in the last fifth of the run, as a share
    of the longest that Adam can go in a straight line there. Near 0 at rest, near 1 where it drifts for ever.

  Example: with omega = 2, SDS comes to rest at 1 + omega, and CSD nowhere.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> world, key, start = toy_laws.two_gaussians(), jax.random.key(0), jnp.array([[0.0], [2.0]])
    >>> for name in ("sds", "csd"):
    ...   ends, moving = descend(name, world, flow_schedule(1000), 2.0, key, start, 200, 0.1)
    ...   print(name, bool(jnp.allclose(ends, 3.0, atol=0.2)), bool(moving < 0.3))
    sds True True
    csd False False
  """
  adam = optax.adam(optax.linear_schedule(rate, 0.0, steps), b2=0.99)
  seeds = jnp.arange(start.shape[0])

  def step(carry: tuple, i: Array) -> tuple[tuple, None]:
    x, state, before = carry
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(key, i), n))(seeds)
    crowd, progress = law(x), i.astype(jnp.float32) / steps
    pushed = jax.vmap(lambda k, x, begun, n: _drawn(name, world, schedule, omega, k, x, begun, crowd, progress, n))(
      keys, x, start, seeds)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes step counts and floats
      updates, state = adam.update(pushed, state)
    before = jnp.where(i == steps - steps // 5, x, before)
    return (optax.apply_updates(x, updates), state, before), None

  (x, _, before), _ = jax.lax.scan(step, (start, adam.init(start), start), jnp.arange(steps))
  longest = rate * steps * 0.5 * 0.2**2
  return x, jnp.median(jnp.abs(x - before).max(-1)) / longest


def against_t(name: str, world: Mixture, schedule: Schedule, key: Array, points: Array, crowd: Mixture,
              times: int = 15, nodes: int = 48, draws: int = 24) -> dict[str, Array]:
  """Mean and variance of `gradient` without guidance against t, beside the exact gradient of the divergence.

  The mean over the noise is a quadrature, so it has no error of sampling; what else is drawn is averaged over `draws`.
  Exact is (sigma_t / alpha_t) w(t) d/dx KL, as `kl_divergence` has it (arXiv:2209.14988, eq. 4).

  Args:
    world: of one dimension.
    key: consumed; every t has the same draws.
    points: [P, 1], taken for starts as well.
    times, nodes, draws: sizes (static).

  Returns:
    t [T], fractions of the schedule over the estimator's range; mean, variance and exact [T, P], all with w(t).

  Example: SDS's mean is the gradient of the divergence; that of CSD is another.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> from sds_jax.testbed import toy_laws
    >>> schedule, crowd = flow_schedule(1000), laws.gaussian(jnp.zeros(1), 1.0)
    >>> points, key = jnp.array([[-0.5], [2.5]]), jax.random.key(0)
    >>> for name in ("sds", "csd"):
    ...   found = jax.jit(lambda key: against_t(name, toy_laws.line(), schedule, key, points, crowd, 3, 24, 1))(key)
    ...   print(name, bool(jnp.allclose(found["mean"], found["exact"], rtol=0.02, atol=1e-4)))
    sds True
    csd False
  """
  nodes_at, weights = np.polynomial.hermite_e.hermegauss(nodes)
  weights = jnp.asarray(weights / weights.sum(), jnp.float32)
  eps = jnp.asarray(nodes_at[:, None], jnp.float32)
  keys = jax.random.split(key, (nodes, draws))
  seeds = jnp.arange(nodes * draws).reshape(nodes, draws)
  wanted = law_of(world, TARGET)
  weight = WEIGHTINGS[SETTINGS[name].weighting]

  def at(t: Array) -> tuple[Array, Array, Array]:
    def one(x: Array, eps: Array, key: Array, seed: Array) -> Array:
      return gradient(name, world, schedule, 0.0, x, t, eps, key, start=x, crowd=crowd, progress=0.5, seed=seed)[0]

    over_draws = jax.vmap(one, in_axes=(None, None, 0, 0))
    found = jax.vmap(jax.vmap(over_draws, in_axes=(None, 0, 0, 0)), in_axes=(0, None, None, None))(
      points, eps, keys, seeds)
    mean = found.mean(-1) @ weights
    variance = ((found - mean[:, None, None]) ** 2).mean(-1) @ weights
    exact = jax.vmap(lambda x: kl_divergence.expected_residual(wanted, x, schedule.alpha[t], schedule.sigma[t]))(points)
    return mean, variance, weight(schedule, t) * exact[:, 0]

  fractions = np.linspace(*span(name), times)
  indices = timesteps.to_index(jnp.asarray(fractions, jnp.float32), schedule.alpha.shape[0])
  mean, variance, exact = jax.lax.map(at, indices)
  return dict(t=jnp.asarray(fractions, jnp.float32), mean=mean, variance=variance, exact=exact)


def span(name: str) -> tuple[float, float]:
  """The smallest and the largest t of an estimator over its run, fractions of the schedule.

  >>> print(span("sds"), span("cds"))
  (0.02, 0.98) (0.1, 0.7)
  """
  ends = [value for spec in (SETTINGS[name].t_min, SETTINGS[name].t_max)
          for value in ([spec] if isinstance(spec, float) else [v for _, v in spec])]
  return min(ends), max(ends)
