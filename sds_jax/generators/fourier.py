"""An image as its spectrum with decorrelated colours.

A step of a given length counts alike in every frequency.

Natural images have amplitudes of about 1/f. Gradient descent on c with coefficients c / f and colours mixed as in
natural images is preconditioned by their covariance (Distill 2018, "Differentiable Image Parameterizations").
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.generators.parameterization import Parameterization
from sds_jax.prng import as_threefry
from sds_jax.types import Array, Params

COLOUR_SQRT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)
"""A square root of the covariance of RGB in ImageNet, as published with lucid (tensorflow/lucid, color.py)."""

COLOUR_MIX = COLOUR_SQRT / np.max(np.linalg.norm(COLOUR_SQRT, axis=0))
"""COLOUR_SQRT scaled so that its longest column has length 1: [rgb, decorrelated]."""


def decorrelated_to_rgb(values: Array) -> Array:
  """Returns decorrelated colours [..., 3] as logits of red, green and blue.

  The logits are COLOUR_MIX times `values`.
  """
  # HIGHEST: by default an accelerator multiplies in TF32 or bfloat16, with 11 or 8 significant bits.
  return jnp.einsum("...d,cd->...c", values, jnp.asarray(COLOUR_MIX), precision=jax.lax.Precision.HIGHEST)


def frequencies(height: int, width: int) -> np.ndarray:
  """Returns |f| of the coefficients of a real FFT, in cycles a pixel.

  The array is [height, width // 2 + 1].
  """
  return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])


def amplitudes(height: int, width: int, decay: float) -> np.ndarray:
  """Returns the factors [height, width // 2 + 1] of the coefficients.

  The factors are sqrt(H W) / (4 max(|f|, 1 / max(H, W))^decay).

  The unit of f is the coarsest wave, 1 / max(H, W). The factor is zero at the Nyquist frequency of an even side, where
  a real image has no free phase; so a spectrum can be padded exactly.
  """
  # At least 1: 1 / f^decay would be infinite at the mean.
  f = np.maximum(frequencies(height, width) * max(height, width), 1.0)
  scale = 0.25 * max(height, width) * np.sqrt(height * width) / f**decay
  if height % 2 == 0:
    scale[height // 2] = 0.0
  if width % 2 == 0:
    scale[:, -1] = 0.0
  return scale.astype(np.float32)


def synthesize(spectrum: Array, scale: np.ndarray, width: int) -> Array:
  """Returns irfft2 of the scaled spectrum.

  Args:
    spectrum: [2, height, width // 2 + 1, C], real and imaginary parts.
    scale: [height, width // 2 + 1], of `amplitudes`.
    width: of the image.

  Returns:
    [height, width, C].
  """
  # The parameters stay real: for complex ones JAX's gradient is the conjugate of the direction of ascent.
  scaled = spectrum * scale[None, :, :, None]
  return jnp.fft.irfft2(jax.lax.complex(scaled[0], scaled[1]), s=(scale.shape[0], width), axes=(0, 1))


def padded(spectrum: Array, scale: np.ndarray, size: int, large: int) -> Array:
  """Returns the square image of `synthesize`, drawn larger from equal waves.

  `size` is the side of that image, `large` > `size` the side of the result.
  """
  # irfft2 divides by the number of pixels, hence the factor. Rows from `half` on are negative frequencies, which stay
  # at the end of the larger spectrum.
  half, columns = size // 2, size // 2 + 1
  scaled = spectrum * scale[None, :, :, None] * (large / size) ** 2
  wide = jnp.zeros((2, large, large // 2 + 1, spectrum.shape[-1]), spectrum.dtype)
  wide = wide.at[:, :half, :columns].set(scaled[:, :half])
  wide = wide.at[:, large - (size - half):, :columns].set(scaled[:, half:])
  return synthesize(wide, np.ones((large, large // 2 + 1), np.float32), large)


def init_spectrum(key: Array, height: int, width: int, channels: int, std: float) -> Array:
  """Returns a spectrum [2, height, width // 2 + 1, channels] drawn from N(0, std^2).

  Consumes the key.
  """
  return std * jax.random.normal(as_threefry(key), (2, height, width // 2 + 1, channels))


def make_fourier(size: int, decay: float = 1.5, init_std: float = 0.01) -> Parameterization:
  """Returns the generator x = sigmoid(M irfft2(c / f^decay)).

  The parameters are c [2, size, size // 2 + 1, 3], at first drawn from N(0, init_std^2).
  """
  scale = amplitudes(size, size, decay)

  def init(key: Array) -> Params:
    return dict(spectrum=init_spectrum(key, size, size, 3, init_std))

  def apply(params: Params, key: Array) -> Array:
    del key
    return jax.nn.sigmoid(decorrelated_to_rgb(synthesize(params["spectrum"], scale, size)))[None]

  def at(params: Params, large: int) -> Array:
    return jax.nn.sigmoid(decorrelated_to_rgb(padded(params["spectrum"], scale, size, large)))[None]

  return Parameterization(init, apply, at=at)
