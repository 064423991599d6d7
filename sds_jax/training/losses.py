"""What is added to the distillation gradient: regularisers of one batch of renders. Each returns a float32 scalar."""
from __future__ import annotations

import jax.numpy as jnp

from sds_jax.types import Array, RenderOutput


def opacity(render: RenderOutput) -> Array:
  """Mean of sqrt(opacity^2 + 0.01): pulls towards empty space (DreamFusion, arXiv:2209.14988, section 3.2)."""
  return jnp.mean(jnp.sqrt(render.opacity**2 + 0.01))


def entropy(render: RenderOutput) -> Array:
  """Mean binary entropy of the opacity, in nats: 0 where each pixel is surely empty or surely full."""
  p = jnp.clip(render.opacity, 1e-5, 1.0 - 1e-5)
  return jnp.mean(-p * jnp.log(p) - (1.0 - p) * jnp.log(1.0 - p))


def orientation(render: RenderOutput) -> Array:
  """Mean over pixels of sum_i w_i max(0, n_i . v)^2: visible normals face the camera (arXiv:2112.03907, eq. 8)."""
  return jnp.mean(render.orientation)


LOSSES = {"opacity": opacity, "entropy": entropy, "orientation": orientation}
