"""A parameterised image: two pure functions, `init` and `apply`, and optional extra outputs."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from sds_jax.types import Array, Camera, Params


@dataclasses.dataclass(frozen=True)
class Parameterization:
  """A differentiable image parameterization.

  Another parameterization of an equal set of images changes the path of the optimisation, because gradient descent
  follows another metric (Mordvintsev et al., "Differentiable Image Parameterizations", Distill 2018).

  Attributes:
    init: (key) -> params, a pytree of float32 arrays; consumes the key.
    apply: (params, key) -> images [frames, H, H, 3] float32 in [0, 1]. The key is consumed; it draws
      backgrounds and cameras. Most parameterizations have no random part and ignore the key.
    frames: number of images of one `apply`; each image may have its own prompt.
    cameras: (key) -> Camera, leaves [frames, ...]: the cameras of `apply` with an equal key, for priors that know
      cameras. None without cameras.
    show: (params) -> [frames, H, H, 3], the images without any random part; None: `apply` with any key.
    at: (params, size) -> [frames, size, size, 3], for images that can be drawn at any resolution; else None.
    extras: (params) -> {name: [H, W, 3 or 4] in [0, 1]}: further images, which a run writes as name.png; None: none.
    penalty: (params) -> [] float32, a loss of the parameters, added to the distillation; None: none.
  """
  init: Callable[[Array], Params]
  apply: Callable[[Params, Array], Array]
  frames: int = 1
  cameras: Callable[[Array], Camera] | None = None
  show: Callable[[Params], Array] | None = None
  at: Callable[[Params, int], Array] | None = None
  extras: Callable[[Params], dict[str, Array]] | None = None
  penalty: Callable[[Params], Array] | None = None


def coordinates(size: int) -> Array:
  """Returns the centres of pixels [size, size, 2] in the square [-1, 1]^2.

  A centre is (x to the right, y upwards).
  """
  # Centres, so that images of all sizes cover the same square.
  ticks = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2 / size) - 1
  y, x = jnp.meshgrid(-ticks, ticks, indexing="ij")
  return jnp.stack([x, y], axis=-1)
