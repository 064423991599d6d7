"""L_diff: the gradient of a diffusion model's training loss with respect to the image, through the network."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp  # noqa: F401 (of the example)

from sds_jax.diffusion.checks import widened
from sds_jax.diffusion.estimators.base import Estimator
from sds_jax.diffusion.guidance import predict
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise, at_times, per_example
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def ldiff(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
          keys: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """Returns alpha J^T (eps_hat - eps), the gradient of 1/2 ||eps_hat - eps||^2 (arXiv:2209.14988, eq. 2).

  J = d eps_hat / dz; score distillation leaves out alpha J^T. For comparison only: this gradient costs a backward pass
  through the network, vanishes at little noise, and does not make good images, as the paper says.

  Args:
    denoise_fn ... keys: as `estimators` says; denoise_fn is differentiated with respect to z.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: a network that predicts 2 z.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.zeros((1, 2)), jnp.array([499])          # alpha = sigma = 1/2, so eps_hat = eps
    >>> residual, _ = ldiff(lambda p, z, t, c: 2 * z, None, flow_schedule(1000), x + 1, t, 0.25 + x, None)
    >>> print(residual)                                     # alpha 2 (2 (1/2 + 1/8) - 1/4)
    [[1. 1.]]
  """
  z = add_noise(schedule, x, eps, t)
  # `vjp` and not `grad`: a single forward pass gives the prediction, which the aux needs, and its pullback.
  eps_hat, pull_back = jax.vjp(lambda z: predict(denoise_fn, params, z, t, cond).astype(x.dtype), z)
  pulled, = pull_back(eps_hat - eps)
  residual = per_example(at_times(schedule.alpha, t), x) * pulled
  return residual.astype(widened(x)), dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


SPEC = Estimator(
    "ldiff", ldiff, paper="2209.14988, eq. 2", residual="alpha J^T (e_g - e): the network is differentiated",
    calls="2, and back")
