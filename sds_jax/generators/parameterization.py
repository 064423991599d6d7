"""What a generator of pictures is: two pure functions, and what else it can show of itself."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from sds_jax.types import Array, Camera, Params


@dataclasses.dataclass(frozen=True)
class Parameterization:
  """A differentiable image parameterisation: which pictures there are, and along which roads they are reached.

  The same pictures under another parameterisation are the same optimum behind another metric: gradient descent goes
  elsewhere (Mordvintsev et al., "Differentiable Image Parameterizations", Distill 2018).

  Attributes:
    init: (key) -> params, a pytree of float32 arrays; consumes the key.
    apply: (params, key) -> images [frames, H, H, 3] float32 in [0, 1]. The key, consumed, draws what is random in
      them: backgrounds, cameras. Most have nothing random and ignore it.
    frames: how many images one `apply` makes, each of which may have a prompt of its own.
    cameras: (key) -> Camera, leaves [frames, ...]: those through which `apply` looks when given the same key; for
      priors that know cameras. None where there is no camera.
    show: (params) -> [frames, H, H, 3], the pictures without anything random; None: `apply` with any key.
    at: (params, size) -> [frames, size, size, 3], where the picture has no resolution of its own; else None.
    extras: (params) -> {name: [H, W, 3 or 4] in [0, 1]}: what else a run leaves as name.png; None: nothing.
    penalty: (params) -> [] float32, an ordinary loss that belongs to it; None: nothing.
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
  """Centres of pixels [size, size, 2] as (x to the right, y upwards), the picture being the square [-1, 1]^2."""
  ticks = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2 / size) - 1
  y, x = jnp.meshgrid(-ticks, ticks, indexing="ij")
  return jnp.stack([x, y], axis=-1)
