"""VSD: the predicted noise of the images made so far replaces eps (ProlificDreamer, arXiv:2305.16213).

SDS moves a single image as if the distribution of images were a point. VSD moves samples of a distribution, and needs
the score of that distribution at z_t. A second network eps_phi learns this score in the same steps, from the images
being made (`variational.score_loss`):

  loss = score_distillation(denoise, params, ..., x, ..., estimator="vsd",
                            options=dict(score_fn=score_fn, score_params=phi))[0]
  loss += score_loss(score_fn, phi, schedule, x, key, cond)

The first line moves x only, the second phi only. score_fn may be a small network of its own, or the prior with adapters
(`lora.merge`). Several images ("particles") in one batch share the network.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp  # noqa: F401 (of the example)

from sds_jax.diffusion.checks import stop_gradient, widened
from sds_jax.diffusion.estimators.base import Draw, Estimator, SecondNetwork, for_small_prior
from sds_jax.diffusion.guidance import predict
from sds_jax.diffusion.parameterizations import x0_from_eps
from sds_jax.diffusion.schedules import add_noise
from sds_jax.types import Array, DenoiseFn, Params, Schedule


def vsd(denoise_fn: DenoiseFn, params: Params, schedule: Schedule, x: Array, t: Array, eps: Array, cond: Any,
        keys: Array | None = None, *, score_fn: DenoiseFn, score_params: Params,
        score_cond: Any = None) -> tuple[Array, dict[str, Array]]:
  """Returns eps_guided(z_t; y) - eps_phi(z_t; y, c): variational score distillation (arXiv:2305.16213, eq. 9).

  Where the distribution of images is a point, its exact score gives eps_phi = eps, and the residual equals that of SDS,
  sample by sample.

  Args:
    denoise_fn ... keys: as `estimators` says.
    score_fn: eps_phi, without guidance.
    score_params: phi, perhaps with functions among its leaves (Equinox); no gradient here.
    score_cond: condition of score_fn, leaves [B, ...], with the camera c where there is one.

  Returns:
    (residual [B, ...] float32, dict(eps_hat=[B, ...], x0_hat=[B, ...])).

  Example: the score of a single point at 0, and a network that predicts 1.
    >>> from sds_jax.diffusion.schedules import flow_schedule
    >>> schedule, x, t = flow_schedule(4), jnp.zeros((1, 2)), jnp.array([1])
    >>> residual, _ = vsd(lambda *a: jnp.ones((1, 2)), None, schedule, x, t, x + 0.25, None,
    ...                   score_fn=lambda phi, z, t, cond: z / schedule.sigma[t][:, None], score_params=None)
    >>> print(residual)
    [[0.75 0.75]]
  """
  z = add_noise(schedule, x, eps, t)
  eps_hat = predict(denoise_fn, params, z, t, cond).astype(x.dtype)
  # phi learns by `score_loss` alone; this residual must not move it.
  eps_phi = predict(score_fn, stop_gradient(score_params), z, t, score_cond)
  residual = eps_hat.astype(widened(x)) - eps_phi.astype(widened(x))
  return residual, dict(eps_hat=eps_hat, x0_hat=x0_from_eps(schedule, z, t, eps_hat))


PUBLISHED = Draw(guidance_scale=7.5, t_max=((0.0, 0.98), (0.2, 0.98), (0.201, 0.5)))

SPEC = Estimator(
    "vsd", vsd, paper="2305.16213", residual="e_g - e_phi", calls="3, and 1 back", options=SecondNetwork,
    needs=frozenset({"score", "camera"}), published=PUBLISHED, small=for_small_prior(PUBLISHED),
    source="threestudio's code: t up to 0.5 after a fifth of the run; the second network is LoRA on the prior.")
