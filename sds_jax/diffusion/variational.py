"""The loss by which the second network of variational score distillation learns."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sds_jax.diffusion import checks, timesteps
from sds_jax.diffusion.guidance import predict
from sds_jax.diffusion.schedules import add_noise, draw_noise
from sds_jax.prng import as_threefry
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def score_loss(score_fn: DenoiseFn, score_params: Params, schedule: Schedule, x: Array, key: Array, cond: Any, *,
               t: ArrayLike | Sequence[int] | None = None, t_range: timesteps.TRange = (0.0, 1.0),
               index: ArrayLike | Sequence[int] | None = None, group: int = 1) -> Array:
  """Returns the mean of (eps_phi(z_t) - eps)^2, the loss of the second network (arXiv:2305.16213, eq. 9, second line).

  Args:
    score_fn: eps_phi, without guidance.
    score_params: phi, a pytree, perhaps with functions among its leaves (Equinox); the loss is differentiable in phi.
    schedule: of the prior.
    x: [B, ...], the images made; no gradient.
    key: consumed; split into a key for t and a key for the noise. Example b uses fold_in(key, index[b]) of each.
    cond: condition of score_fn, leaves [B, ...]; no gradient.
    t: [B] integer times; uniform in t_range (fractions of the schedule) where None.
    index: [B] integer, indices in the whole batch, as in `score_distillation`; 0 .. B-1 where None.
    group: number of neighbouring examples that eps_phi looks at together, and which share t.

  Returns:
    [] float32; float64 for a float64 x.

  Raises:
    ValueError: as `score_distillation`.

  Example: a network that predicts phi; the best phi is the mean of the noise, 0.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> loss = lambda phi: score_loss(lambda phi, z, t, cond: phi + 0 * z, phi, flow_schedule(4), jnp.ones((9999, 2)),
    ...                               jax.random.key(0), None)
    >>> print(f"{jax.grad(loss)(1.0):.1f}")
    2.0
  """
  schedule = checks.check_schedule(schedule)
  x = checks.check_images(x, t, index, cond)
  batch, steps = x.shape[0], schedule.alpha.shape[0]
  index = jnp.arange(batch) if index is None else checks.check_integers("index", index, batch)
  t_key, eps_key = jax.random.split(as_threefry(key))
  t = (timesteps.uniform(t_key, index // group, t_range, steps) if t is None
       else checks.check_integers("t", t, batch, steps))
  # Only phi learns: otherwise the images, too, would move to lower the loss of eps_phi.
  x, cond = checks.stop_gradient((x, cond))
  eps, wide = draw_noise(eps_key, index, x), checks.widened(x)
  error = predict(score_fn, score_params, add_noise(schedule, x, eps, t), t, cond).astype(wide) - eps.astype(wide)
  return jnp.mean(error**2)
