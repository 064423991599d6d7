"""Samples images from a prior by DDIM."""
from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion import guidance
from sds_jax.diffusion.parameterizations import EPS_FROM, X0_FROM, eps_from_x0
from sds_jax.priors.prior import Cond, Prior
from sds_jax.prng import as_threefry
from sds_jax.types import Array, Params


def ddim(prior: Prior, params: Params, cond: Cond, uncond: Cond | None, key: Array, steps: int = 50,
         guidance_scale: Array | float = 7.5, clip: bool = True, times: Sequence[int] | None = None) -> Array:
  """Samples by deterministic DDIM with classifier-free guidance.

  DDIM: arXiv:2010.02502, eq. 12 with sigma = 0.

  The steps are one `lax.scan`. The last step goes to the clean image.

  Args:
    prior, params: from `prior.build`.
    cond: conditions of B images, leaves [B, ...] (`base.Cond`).
    uncond: null conditions of cond's structure (empty or negative prompt); None for no guidance.
    key: consumed for the starting noise.
    steps: number of network evaluations (static), at integer times spaced evenly from T - 1 down.
    guidance_scale: in diffusers' convention, 1 is no guidance.
    clip: whether x0 predictions are clipped at each step to the prior's `x_bound`, and eps made to agree (as models of
      pixels need under guidance, arXiv:2205.11487 section 2.3). No effect where `x_bound` is None.
    times: falling integers in 0 .. T - 1 that replace `steps` (static).

  Returns:
    Images [B, image_size, image_size, 3] in [0, 1].

  Raises:
    ValueError: steps is not in 1 .. T; or the first time is pure noise (alpha = 0, zero terminal SNR), and the network
      predicts eps, which says nothing of x0 there.
  """
  alpha, sigma = prior.schedule.alpha, prior.schedule.sigma
  if not 1 <= steps <= alpha.shape[0]:
    raise ValueError(f"steps={steps} should be from 1 to {alpha.shape[0]}")
  batch = jax.tree.leaves(cond)[0].shape[0]
  # The last point, 0, is dropped: the last step goes from the time before it to the clean image.
  times = np.round(np.linspace(alpha.shape[0] - 1, 0, steps + 1)[:-1]) if times is None else np.asarray(times)
  times = times.astype(np.int32)
  # A schedule is a constant of its prior and so is known while the steps are traced.
  pure_noise = [] if isinstance(alpha, jax.core.Tracer) else [int(t) for t in times[jax.device_get(alpha)[times] == 0]]
  # `denoise` gives eps for a network of any prediction type.
  network, kind = prior.denoise, "epsilon"
  if pure_noise and prior.predict is not None:  # at alpha = 0 x0 follows from v, but not from eps
    network, kind = prior.predict, prior.prediction_type
  if pure_noise and kind == "epsilon":
    raise ValueError(
      f"the prior {prior.name!r} predicts noise (prediction_type='epsilon'), and its schedule is pure noise at t = "
      f"{pure_noise[0]} (rescale_betas_zero_snr=true), where noise says nothing of the image: sampling from there is "
      "not defined. Sampling needs prediction_type 'v_prediction' or 'sample', or `times` below "
      f"{min(pure_noise)}; distillation is defined at all t below {min(pure_noise)}")

  def predict(z: Array, t: Array) -> Array:
    if uncond is None:
      return network(params, z, t, cond)
    # Both sides of the guidance in one batch, hence one call of the network a step.
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, uncond)
    output = network(params, jnp.concatenate([z, z]), jnp.concatenate([t, t]), both)
    return guidance.cfg_diffusers(output[:batch], output[batch:], guidance_scale)

  def step(z: Array, now_and_next: tuple[Array, Array, Array]) -> tuple[Array, None]:
    t, alpha_next, sigma_next = now_and_next
    t = jnp.full((batch,), t)
    output = predict(z, t)
    x0, eps = (table[kind](prior.schedule, z, t, output) for table in (X0_FROM, EPS_FROM))
    if clip and prior.x_bound is not None:
      x0 = jnp.clip(x0, -prior.x_bound, prior.x_bound)
      eps = eps_from_x0(prior.schedule, z, t, x0)
    return alpha_next * x0 + sigma_next * eps, None

  # The clean image has alpha 1 and sigma 0, which lies below t = 0 of the schedule.
  alpha_next = jnp.concatenate([alpha[times[1:]], jnp.ones(1)])
  sigma_next = jnp.concatenate([sigma[times[1:]], jnp.zeros(1)])
  # Threefry: under `vmap` rbg would draw a batch from its first key alone.
  z = jax.random.normal(as_threefry(key), (batch, *prior.x_shape))
  z, _ = jax.lax.scan(step, z, (jnp.asarray(times), alpha_next, sigma_next))
  return prior.decode(params, z)
