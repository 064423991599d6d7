"""The spaces in which priors diffuse: folded pixels, or latents of an autoencoder."""
from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from sds_jax.priors.half_precision import with_scaled_gradient
from sds_jax.priors.networks.tiny_vae import AutoencoderTiny
from sds_jax.priors.networks.vae import AutoencoderKL, sample_latents
from sds_jax.prng import as_threefry
from sds_jax.types import Array, EncodeFn, Params


@dataclasses.dataclass(frozen=True)
class Space:
  """The space of a prior's x; `encode` and `decode` are those of `prior.Prior`.

  Attributes:
    image_size: height and width of the images; `encode` resizes others.
    x_shape: shape of one x.
    bound: upper bound of |x| over all images; None: no bound.
    encode: (params, image [B, H, H, 3] in [0, 1], key) -> x [B, *x_shape] float32.
    decode: (params, x [B, *x_shape]) -> image [B, image_size, image_size, 3] float32 in [0, 1].
    condition: (params, image [B, H, H, 3] in [0, 1]) -> [B, *x_shape] float32, the x of a photo that is a condition.
      Unlike `encode` it returns the mean of the latents, unscaled, as Zero-1-to-3's weights expect.
  """
  image_size: int
  x_shape: tuple[int, ...]
  bound: float | None
  encode: EncodeFn
  decode: Callable[[Params, Array], Array]
  condition: Callable[[Params, Array], Array]


def pixel_space(image_size: int, block: int = 1) -> Space:
  """Returns the space of pixels in [-1, 1].

  Blocks of pixels are folded into channels. The space uses neither params nor key.

  Args:
    image_size: height and width; divisible by block.
    block: r of `space_to_depth`; 1: no folding.
  """
  def encode(params: Params, image: Array, key: Array) -> Array:
    del params, key
    return space_to_depth(2 * resized(image, image_size) - 1, block)

  def decode(params: Params, x: Array) -> Array:
    del params
    return jnp.clip((depth_to_space(x, block) + 1) / 2, 0, 1)

  return Space(image_size, (image_size // block, image_size // block, 3 * block**2), 1., encode, decode,
               lambda params, image: encode(params, image, None))


TINY_SCALE = 0.18215
"""Scale of TAESD's latents: the scaling factor of the autoencoder that TAESD was distilled from."""


def latent_space(vae: AutoencoderKL | AutoencoderTiny, latent_size: int) -> Space:
  """Returns the space of an autoencoder's latents.

  The latents (arXiv:2112.10752, section 3.3) are scaled to about unit variance.

  `encode` draws from the autoencoder's distribution of an image, consumes its key, and is differentiable in the image.
  AutoencoderTiny has no distribution, so that `encode` draws nothing. The parameters are `params["vae"]`.

  Args:
    vae: computes in its `dtype`; inputs and outputs of the space are float32. In float16 the gradient of `encode` is
      scaled (`half_precision.with_scaled_gradient`), and the parameters are constants.
    latent_size: height and width of x.
  """
  size, tiny = latent_size * vae.factor, isinstance(vae, AutoencoderTiny)

  def encoded(params: Params, image: Array) -> tuple[Array, ...]:
    # Mean and log variance, or latents alone, in float32 for the draw, whatever the dtype of the network.
    return tuple(leaf.astype(jnp.float32)
                 for leaf in jax.tree.leaves(vae.apply({"params": params}, image, method="encode")))

  # The cast to float32 lies inside, so that the gradient is scaled before it is cast to float16.
  scaled = with_scaled_gradient(encoded) if jnp.dtype(vae.dtype) == jnp.float16 else encoded

  def encode(params: Params, image: Array, key: Array) -> Array:
    mean, *logvar = scaled(params["vae"], 2 * resized(image, size) - 1)
    if tiny:
      return mean * vae.scaling_factor
    return sample_latents(mean, *logvar, jax.random.normal(as_threefry(key), mean.shape), vae.scaling_factor)

  def decode(params: Params, x: Array) -> Array:
    # The scale of `encode` is undone before the decoder.
    image = vae.apply({"params": params["vae"]}, x / vae.scaling_factor, method="decode")
    return jnp.clip((image.astype(jnp.float32) + 1) / 2, 0, 1)

  def condition(params: Params, image: Array) -> Array:
    # No draw and no scale, unlike `encode`: Zero-1-to-3 was trained on the mean as it is.
    mean = encoded(params["vae"], 2 * resized(image, size) - 1)[0]
    return mean / TINY_SCALE if tiny else mean

  return Space(size, (latent_size, latent_size, vae.latent_channels), None, encode, decode, condition)


def space_to_depth(image: Array, block: int) -> Array:
  """Folds block x block pixels into channels.

  [..., H, W, C] -> [..., H/block, W/block, C * block^2].

  Channel c * block^2 + dy * block + dx of the result is channel c of the pixel at row dy, column dx of the block, which
  is the order of torch's `pixel_unshuffle`.

  Raises:
    ValueError: height or width is not divisible by block.
  """
  *lead, height, width, channels = image.shape
  if height % block or width % block:
    raise ValueError(f"an image of {height}x{width} can't be cut into blocks of {block}x{block}")
  n = len(lead)
  x = image.reshape(*lead, height // block, block, width // block, block, channels)
  x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
  return x.reshape(*lead, height // block, width // block, channels * block**2)


def depth_to_space(x: Array, block: int) -> Array:
  """Unfolds channels into pixels.

  [..., h, w, C * block^2] -> [..., h * block, w * block, C].

  The inverse of `space_to_depth`.

  Raises:
    ValueError: the channels are not divisible by block^2.
  """
  *lead, height, width, channels = x.shape
  if channels % block**2:
    raise ValueError(f"{channels} channels are not divisible by {block}^2")
  n = len(lead)
  x = x.reshape(*lead, height, width, channels // block**2, block, block)
  x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
  return x.reshape(*lead, height * block, width * block, channels // block**2)


def resized(image: Array, size: int) -> Array:
  """Resizes square images bilinearly, antialiased when they shrink.

  [B, H, H, 3] -> [B, size, size, 3].

  Raises:
    ValueError: the images are not square, or don't have three channels.
  """
  batch, height, width, channels = image.shape
  if height != width or channels != 3:
    raise ValueError(f"image has shape {image.shape}, expected square images [B, H, H, 3]")
  return image if height == size else jax.image.resize(image, (batch, size, size, 3), "linear")
