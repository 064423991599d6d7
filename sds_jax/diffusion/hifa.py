"""HiFA's second term: the same step in the space of pictures, for priors that diffuse latents (arXiv:2305.18766)."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.diffusion.schedules import per_example
from sds_jax.types import Array, Schedule


def image_residual(schedule: Schedule, t: Array, image: Array, image_hat: Array) -> Array:
  """alpha / sigma (image - image_hat), for `distillation.inject` at the rendered image (arXiv:2305.18766, eq. 10).

  In the latent space alpha / sigma (x - x0_hat) is SDS's residual; this is what it would be if the prior diffused the
  pictures themselves. The decoder is not differentiated.

  Args:
    schedule: of the prior.
    t: [B] integer times.
    image: [B, H, W, 3], rendered.
    image_hat: [B, H, W, 3], the decoded x0_hat that a step of `score_distillation` has seen (its aux).

  Returns:
    [B, H, W, 3] float32; no gradient. Its weight is the caller's: w(t) and the share of this term.

  Example:
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> print(image_residual(flow_schedule(4), jnp.array([0]), jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1))))
    [[[[3.]]]]
  """
  ratio = schedule.alpha[t] / schedule.sigma[t]
  difference = (image - image_hat).astype(jnp.float32)
  return jax.lax.stop_gradient(per_example(ratio, difference) * difference)
