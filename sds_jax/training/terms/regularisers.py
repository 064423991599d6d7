"""Losses of the renders themselves, added to the distillation gradient."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sds_jax.diffusion.scalars import ScalarSpec, schedule_value
from sds_jax.generators.protocol import Views
from sds_jax.training.step import Context
from sds_jax.types import Array, Params, RenderOutput


def opacity(render: RenderOutput) -> Array:
  """Returns the mean of sqrt(opacity^2 + 0.01), which favours empty space (DreamFusion, arXiv:2209.14988, 3.2)."""
  return jnp.mean(jnp.sqrt(render.opacity**2 + 0.01))


def entropy(render: RenderOutput) -> Array:
  """Returns the mean binary entropy of the opacity in nats.

  The entropy is 0 where every pixel is empty or full.
  """
  # At 0 and at 1 a logarithm is infinite, and 0 times infinity would be NaN.
  p = jnp.clip(render.opacity, 1e-5, 1.0 - 1e-5)
  return jnp.mean(-p * jnp.log(p) - (1.0 - p) * jnp.log(1.0 - p))


def orientation(render: RenderOutput) -> Array:
  """Returns the mean over pixels of sum_i w_i max(0, n_i . v)^2.

  The loss turns normals towards the camera.

  Source: Ref-NeRF, arXiv:2112.03907, eq. 8.
  """
  return jnp.mean(render.orientation)


REGULARISERS: dict[str, Callable[[RenderOutput], Array]] = {
    "opacity": opacity, "entropy": entropy, "orientation": orientation}
"""Name of the weight in `loss` -> (renders [B, H, W]) -> float32 scalar."""


@dataclasses.dataclass(frozen=True)
class Regulariser:
  """One of REGULARISERS with its weight."""
  name: str
  weight: ScalarSpec

  def __call__(self, views: Views, context: Context) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted loss.

    The metric is the loss without its weight.
    """
    value = REGULARISERS[self.name](views.render)
    return schedule_value(self.weight, context.draws.progress) * value, {self.name: value}


@dataclasses.dataclass(frozen=True)
class Penalty:
  """The loss that a parameterised image brings along.

  Attributes:
    penalty: (params of one particle) -> [] float32.
    weight: of the loss: that of the distillation.
  """
  penalty: Callable[[Params], Array]
  weight: ScalarSpec

  def __call__(self, views: Views, context: Context) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted mean over the particles.

    The metric is the mean without its weight.
    """
    del views
    value = jnp.mean(jax.vmap(self.penalty)(context.params))
    return schedule_value(self.weight, context.draws.progress) * value, dict(penalty=value)
