"""An image of Gaussians, composited front to back: 3D Gaussian splatting (arXiv:2308.04079) in the plane."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from sds_jax.generators.parameterization import Parameterization, coordinates
from sds_jax.types import Array, Params

MAX_OPACITY = 0.99
"""As in the paper's code: no Gaussian is opaque, so all Gaussians behind keep a gradient."""


def make_gaussians(size: int, count: int = 128, radius: float = 0.15) -> Parameterization:
  """Returns a generator of anisotropic Gaussians over a learnt plain background.

  The `count` Gaussians have a fixed order of depth.

  alpha_i(p) = 0.99 sigmoid(o_i) exp(-|S_i^-1 R(-phi_i) (p - m_i)|^2 / 2), with S_i = diag(exp(s_i)) and rotation R;
  C(p) = sum_i c_i alpha_i prod_{j<i} (1 - alpha_j) + b prod_j (1 - alpha_j), equation 3 of the paper.

  Args:
    size: side of the images of `apply`.
    count: number of Gaussians; time and memory are of order count size^2.
    radius: first standard deviation of all Gaussians; the image is 2 wide.
  """
  def init(key: Array) -> Params:
    k_mean, k_angle, k_colour = jax.random.split(key, 3)
    return dict(
        mean=jax.random.uniform(k_mean, (count, 2), minval=-1.0, maxval=1.0),
        # A logarithm, so that no step makes a width negative.
        log_scale=jnp.full((count, 2), jnp.log(radius), jnp.float32),
        # An ellipse equals itself after half a turn.
        angle=jax.random.uniform(k_angle, (count,), maxval=jnp.pi),
        # Faint at first, sigmoid(-2) = 0.12, so that Gaussians in front leave a gradient to those behind.
        colour=0.5 * jax.random.normal(k_colour, (count, 3)), opacity=jnp.full((count,), -2.0, jnp.float32),
        background=jnp.zeros(3))

  def at(params: Params, large: int) -> Array:
    offset = coordinates(large).reshape(1, -1, 2) - params["mean"][:, None]  # [N, pixels, 2]
    cos, sin = jnp.cos(params["angle"])[:, None], jnp.sin(params["angle"])[:, None]
    width = jnp.exp(params["log_scale"])[:, None]
    u = (cos * offset[..., 0] + sin * offset[..., 1]) / width[..., 0]
    v = (cos * offset[..., 1] - sin * offset[..., 0]) / width[..., 1]
    alpha = MAX_OPACITY * jax.nn.sigmoid(params["opacity"])[:, None] * jnp.exp(-0.5 * (u * u + v * v))
    # A sum of logarithms, each finite because alpha is at most MAX_OPACITY.
    passed = jnp.cumsum(jnp.log1p(-alpha), axis=0)  # log of the transmittance of Gaussians 0 to i
    weight = alpha * jnp.exp(passed - jnp.log1p(-alpha))
    # HIGHEST: an accelerator's default would round colours to 8 or 11 significant bits.
    colour = jnp.einsum("np,nc->pc", weight, jax.nn.sigmoid(params["colour"]), precision=jax.lax.Precision.HIGHEST)
    behind = jnp.exp(passed[-1])[:, None] * jax.nn.sigmoid(params["background"])[None]
    return (colour + behind).reshape(1, large, large, 3)

  return Parameterization(init, lambda params, key: at(params, size), at=at)
