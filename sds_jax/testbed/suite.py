"""All experiments of an estimator, and their summary for the table and the records."""
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion.schedules import schedule_from_config
from sds_jax.prng import seeded_key
from sds_jax.testbed import experiments, laws, toy_laws
from sds_jax.testbed.laws import Mixture

OMEGAS = (0.0, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Guidance scales of the end points, in DreamFusion's convention."""
STRONG = 7.5
"""Guidance scale of the table."""
STILL_MOVING = 0.3
"""Smallest residual motion (see `experiments.descend`) of particles not at rest."""

Measurements = dict[str, np.ndarray]
"""Arrays of `run`, by name."""


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the experiments.

  Attributes:
    particles: number of particles in the plane.
    steps: steps of each descent.
    draws: draws of a mean without a quadrature.
    grid: points of the field along each coordinate.
    times: noise levels of the bias and the variance.

  >>> quick = Sizes(particles=12, steps=20)
  >>> print(quick.steps < Sizes().steps, quick.grid == Sizes().grid)
  True True
  """
  particles: int = 200
  steps: int = 1200
  draws: int = 256
  grid: int = 15
  times: int = 15


def run(name: str, sizes: Sizes, seed: int = 0) -> Measurements:
  """Runs all experiments with an estimator.

  The noise schedule is the schedule of Stable Diffusion.

  Args:
    name: a name in `estimator_settings.SETTINGS`.
    sizes: static; each value costs a compilation.
    seed: of all keys.

  Returns:
    start [N, 2] of the cloud; ends and guided_ends [N, 2], without guidance and at omega = STRONG; points and field
    [P, 2] without guidance; t, mean, variance, exact as in `experiments.gradient_over_time`; rest [O], the median end
    point of 32 numbers for each scale in OMEGAS; moving [O] and cloud_moving [2], the residual motions.

  Example: SDS without guidance moves numbers to the mode of N(1, 0.3^2), and its mean is exact at every t.
    >>> measured = run("sds", Sizes(particles=4, steps=200, draws=4, grid=2, times=2))
    >>> print(f"{measured['rest'][0]:.1f}", np.allclose(measured["mean"], measured["exact"], rtol=0.01, atol=1e-5))
    1.0 True
  """
  key = seeded_key(seed)
  # Starts cover both laws of the plane.
  start = 1.2 * jax.random.normal(jax.random.fold_in(key, 1), (sizes.particles, 2))
  # The grid covers the modes of `toy_laws.plane` with a margin.
  along = np.linspace(-3.0, 3.6, sizes.grid, dtype=np.float32)
  points = jnp.asarray(np.stack(np.meshgrid(along, along - 0.3), -1).reshape(-1, 2))
  measured = jax.jit(_run_all, static_argnums=(0, 1))(name, sizes, jax.random.fold_in(key, 2), start, points)
  return dict(jax.tree.map(np.asarray, measured), start=np.asarray(start), points=np.asarray(points))


def _run_all(name: str, sizes: Sizes, key: jax.Array, start: jax.Array, points: jax.Array) -> dict[str, Any]:
  # The betas of Stable Diffusion.
  schedule = schedule_from_config(dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
  cloud_key, field_key, t_key, rest_key, numbers_key = jax.random.split(key, 5)
  # A vmap over guidance compiles a single descent for all scales.
  plane, steps = toy_laws.plane(), sizes.steps
  ends, moving = jax.vmap(lambda omega: experiments.descend(name, plane, schedule, omega, cloud_key, start, steps))(
    jnp.array([0.0, STRONG]))
  field = experiments.field(name, plane, schedule, 0.0, field_key, points, experiments.kernel_law(start), sizes.draws)
  line = jnp.linspace(-1.5, 3.0, 10)[:, None]
  curves = experiments.gradient_over_time(name, toy_laws.line(), schedule, t_key, line,
                                          laws.gaussian(jnp.zeros(1), 1.2), sizes.times)
  # Data, null label and start are Gaussian here, so a fitted Gaussian serves as the second network of VSD.
  numbers = 0.3 * jax.random.normal(numbers_key, (32, 1))
  rest, rest_moving = jax.vmap(lambda omega: experiments.descend(
    name, toy_laws.two_gaussians(), schedule, omega, rest_key, numbers, steps, law=experiments.gaussian_law))(
    jnp.array(OMEGAS))
  return dict(curves, ends=ends[0], guided_ends=ends[1], cloud_moving=moving, field=field,
              rest=jnp.median(rest[..., 0], axis=1), moving=rest_moving)


def curves_over_time(measured: Measurements) -> dict[str, np.ndarray]:
  """Computes bias and noise over t.

  Args:
    measured: mean, exact and variance [T, P] of `run`.

  Returns:
    [T] each. error: ||mean - exact|| / ||exact|| over the points. turned: 1 - cosine between mean and exact,
    independent of w(t) (0: the exact direction, 1: orthogonal, 2: opposite). noise: standard deviation over mean, both
    as root mean squares over the points.

  Example: twice the exact gradient has a wrong length and the right direction.
    >>> exact = np.array([[1.0, -2.0]])
    >>> curves = curves_over_time(dict(mean=2 * exact, exact=exact, variance=np.zeros((1, 2))))
    >>> print(curves["error"].round(3), abs(curves["turned"]).round(3), curves["noise"])
    [1.] [0.] [0.]
  """
  mean, exact = measured["mean"], measured["exact"]
  # Norms over the points at each t.
  size, exact_size = np.linalg.norm(mean, axis=1), np.linalg.norm(exact, axis=1)
  # The floor keeps a mean of 0 from a division by 0.
  cosine = (mean * exact).sum(1) / np.maximum(size * exact_size, 1e-20)
  return dict(error=np.linalg.norm(mean - exact, axis=1) / np.maximum(exact_size, 1e-20),
              turned=np.clip(1.0 - cosine, 0.0, 2.0),
              noise=np.sqrt(measured["variance"].sum(1)) / np.maximum(size, 1e-20))


def compare_with_law(points: np.ndarray, law: Mixture) -> dict[str, float]:
  """Compares a cloud of points [N, 2] with a law.

  Returns:
    near: share of points within three standard deviations of a mode. spread: standard deviation of all points over the
    standard deviation of the law. width: the same ratio around the mean of each group of points with a common nearest
    mode. modes: number of modes with at least a third of their expected points nearby.

  Example: a cloud collapsed to a single mode of three.
    >>> law = toy_laws.law_of(toy_laws.plane(), toy_laws.TARGET)
    >>> print(compare_with_law(np.tile([2.0, 0.0], (50, 1)), law))
    {'near': 1.0, 'spread': 0.0, 'width': 0.0, 'modes': 1}
  """
  weights, means, stds = (np.asarray(leaf, np.float64) for leaf in (law.weights, law.means, law.stds))
  # Components of weight 0 are padding of `laws.stack`.
  weights, means, stds = weights[weights > 0], means[weights > 0], stds[weights > 0]
  gaps = np.linalg.norm(points[:, None] - means[None], axis=-1)
  # Each point belongs to the mode with the nearest mean.
  group, dimensions = gaps.argmin(1), points.shape[1]
  near = gaps.min(1) <= 3.0 * stds[group]
  groups = [points[group == k] for k in range(len(means))]
  within = sum(((members - members.mean(0)) ** 2).sum() for members in groups if len(members)) / points.size
  # Law of total variance: variance inside the modes plus variance of the modes.
  inside = weights @ stds**2
  centre = weights @ means
  whole = inside + weights @ ((means - centre) ** 2).sum(1) / dimensions
  covered = [near[group == k].sum() >= share * len(points) / 3.0 for k, share in enumerate(weights)]
  return dict(near=float(near.mean()), spread=float(np.sqrt(points.var(0).mean() / whole)),
              width=float(np.sqrt(within / inside)), modes=int(sum(covered)))


def summary(measured: Measurements) -> dict[str, Any]:
  """Summarises an estimator as JSON values for the records.

  Numbers have up to four digits.

  `bias` is the mean over t of `turned`, weighted by w(t) ||mean||. `relative_variance` is the variance over the squared
  mean, both summed over t with w(t)^2.

  Args:
    measured: result of `run`.

  Example: SDS has no bias; a short run ends before the point of rest at 1 + STRONG.
    >>> numbers = summary(run("sds", Sizes(particles=4, steps=200, draws=4, grid=2, times=2)))
    >>> print(numbers["bias"] < 0.01, numbers["at_rest"], numbers["guidance"]["omega"])
    True False [0.0, 1.0, 2.5, 5.0, 7.5, 10.0]
  """
  curves = curves_over_time(measured)
  size = np.linalg.norm(measured["mean"], axis=1)
  target = toy_laws.law_of(toy_laws.plane(), toy_laws.TARGET)
  # Short numbers keep the records small and stable across machines.
  strong = OMEGAS.index(STRONG)
  short = lambda values: [float(f"{v:.4g}") for v in values]  # noqa: E731
  return dict(
    bias=float(f"{(curves['turned'] * size).sum() / size.sum():.3g}"),
    relative_variance=float(f"{measured['variance'].sum() / (measured['mean'] ** 2).sum():.3g}"),
    rest_at_strong=float(f"{measured['rest'][strong]:.4g}"), at_rest=bool(measured["moving"][strong] < STILL_MOVING),
    **{name: float(f"{v:.3g}") for name, v in compare_with_law(measured["ends"], target).items()},
    cloud_at_rest=bool(measured["cloud_moving"][0] < STILL_MOVING),
    curves=dict(t=short(measured["t"]), **{name: short(values) for name, values in curves.items()}),
    guidance=dict(omega=list(OMEGAS), rest=short(measured["rest"]), moving=short(measured["moving"])))


def table(summaries: dict[str, dict[str, Any]]) -> str:
  """Formats summaries, by name, as a Markdown table.

  The word "moving" marks particles that are not at rest.

  >>> numbers = dict(bias=0.2, relative_variance=0.11, rest_at_strong=24.5, at_rest=False, near=0.0, modes=0,
  ...                width=10.3, spread=4.57, cloud_at_rest=True)
  >>> print(table(dict(csd=numbers)).splitlines()[-1])
  | `csd` | 0.20 | 0.11 | 24.50, moving | 0% | 0 | 10.30 | 4.57 |
  """
  rows = [f"| estimator | bias | relative variance | end at omega = {STRONG} | near a mode | modes of 3 | width "
          "| spread |", "|---" * 8 + "|"]
  for name, s in summaries.items():
    # Particles still in motion have no point of rest.
    end = f"{s['rest_at_strong']:.2f}" + ("" if s["at_rest"] else ", moving")
    spread = f"{s['spread']:.2f}" + ("" if s["cloud_at_rest"] else ", moving")
    rows.append(f"| `{name}` | {s['bias']:.2f} | {s['relative_variance']:.2f} | {end} | {s['near']:.0%} "
                f"| {s['modes']:.0f} | {s['width']:.2f} | {spread} |")
  return "\n".join(rows)
