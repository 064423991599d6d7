"""DDS: the difference of the predictions of an image and of its source (arXiv:2304.07090)."""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp  # noqa: F401 (of the example)

from sds_jax.diffusion.checks import stop_gradient, widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, for_small_prior
from sds_jax.diffusion.pairs import predict_both
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def dds(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, source_x: Array, source_cond: Any) -> tuple[Array, dict[str, Array]]:
  """Returns eps_hat(z_t; y) - eps_hat(z_t^source; y_source): delta denoising score (arXiv:2304.07090, eq. 4).

  t and eps are the same for both. For editing: x begins as the source and moves by the difference of the prompts y and
  y_source. The noise and the network's own error are in both predictions and cancel.

  Args:
    denoise_fn ... keys: as `estimators` says.
    source_x: [B, ...], like x; no gradient.
    source_cond: of the structure and shapes of cond.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: nothing moves an image that is its own source.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> x, t = jnp.ones((1, 2)), jnp.array([1])
    >>> print(dds(lambda p, z, t, c: z + c, None, flow_schedule(4), x, t, x, x, source_x=x, source_cond=x)[0])
    [[0. 0.]]
  """
  source_x = stop_gradient(source_x)  # the caller may have rendered the source from differentiated parameters
  z, z_source = add_noise(schedule, x, eps, t), add_noise(schedule, source_x, eps, t)
  eps_hat, eps_source = predict_both(denoise_fn, params, z, z_source, t, cond, source_cond)
  residual = eps_hat.astype(widened(x)) - eps_source.astype(widened(x))
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


PUBLISHED = Draw("uniform", guidance_scale=7.5, t_min=0.05, t_max=0.95)

SPEC = Estimator(
    "dds", dds, paper="2304.07090", residual="e_g(z_t; y) - e_g(source's z_t; its y)", calls="4",
    needs=frozenset({"source"}), published=PUBLISHED, small=for_small_prior(PUBLISHED),
    source="The authors' code for images, 200 steps of SGD; there is nothing published for 3D.")
