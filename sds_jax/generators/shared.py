"""Several frames with a common coarse part: images of different prompts, aligned with each other."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.generators.parameterization import Parameterization
from sds_jax.generators.fourier import amplitudes, decorrelated_to_rgb, frequencies, init_spectrum, padded, synthesize
from sds_jax.types import Array, Params


def make_shared(size: int, frames: int = 3, cutoff: float = 4.0, own: float = 0.5, decay: float = 1.5,
                init_std: float = 0.01) -> Parameterization:
  """Returns frames that share their low frequencies s.

  The frames are x_i = sigmoid(M irfft2((s + own c_i) / f^decay)).

  Each frame i also has its own spectrum c_i. All frames move s, so the frames agree on position and outline, and a
  blend of two frames shows no double image (Distill 2018, "Aligned Feature Visualization Interpolation").

  Args:
    size: side of the images.
    frames: number of frames.
    cutoff: highest frequency of the common part, cycles an image.
    own: factor of a frame's own spectrum, which sets how fast it moves beside the common part.
    decay, init_std: as in `fourier.make_fourier`.
  """
  scale = amplitudes(size, size, decay)
  # f = 0 is among them: the frames have their mean colour in common.
  low = (frequencies(size, size) * size <= cutoff).astype(np.float32)

  def spectra(params: Params) -> Array:
    return (params["shared"] * low[None, :, :, None])[None] + own * params["own"]

  def init(key: Array) -> Params:
    k_shared, k_own = jax.random.split(key)
    own_parts = jax.vmap(lambda k: init_spectrum(k, size, size, 3, init_std))(jax.random.split(k_own, frames))
    return dict(shared=init_spectrum(k_shared, size, size, 3, init_std), own=own_parts)

  def apply(params: Params, key: Array) -> Array:
    del key
    return jax.nn.sigmoid(decorrelated_to_rgb(jax.vmap(lambda s: synthesize(s, scale, size))(spectra(params))))

  def at(params: Params, large: int) -> Array:
    drawn = jnp.stack([padded(spectrum, scale, size, large) for spectrum in spectra(params)])
    return jax.nn.sigmoid(decorrelated_to_rgb(drawn))

  return Parameterization(init, apply, frames=frames, at=at)
