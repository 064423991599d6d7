"""The size of a latent prior's images, where configurations leave a choice or contradict each other."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from sds_jax.diffusion.schedules import prediction_type_from_config
from sds_jax.priors.base import Config
from sds_jax.priors.loading.files import CheckpointError
from sds_jax.priors.networks.config_check import MAX_SIDE, shown
from sds_jax.priors.networks.tiny_vae import AutoencoderTiny
from sds_jax.priors.networks.unet import UNet2DConditionModel
from sds_jax.priors.networks.vae import AutoencoderKL

_UNUSED_SIZE = 32
"""The `sample_size` that early conversions copied from a key which the training code of latent diffusion never read.
The VAE of such a folder has 256 pixels for the same reason."""


def chosen_size(folder: Path | None, unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny,
                image_size: int = 0, native: int | None = None) -> tuple[int, tuple[str, ...]]:
  """Returns the height and width of a prior's latents, and lines for the log.

  Args:
    folder: the prior's folder, for messages; None: no folder.
    unet, vae: the networks.
    image_size: the caller's choice of the images' size, in pixels; 0: the size of the configurations.
    native: the latents' size of the family's published models, for configurations without a size; None: the size of
      the VAE's configuration.

  Raises:
    CheckpointError: the size does not suit the networks, or no configuration has one.
  """
  factor = vae.factor
  # The U-Net halves its input between its blocks.
  block = factor * 2 ** (len(unet.block_out_channels) - 1)
  stored = square_side(_config(folder, "unet"), "sample_size", unet.sample_size)
  if image_size:
    if image_size % block or image_size > MAX_SIDE:
      raise CheckpointError(f"config.prior.image_size={image_size} does not suit the prior's networks: it must be a "
                            f"multiple of {block}, at most {MAX_SIDE}, or 0 for the size of its configurations")
    note = f"images of {image_size}x{image_size} pixels, as config.prior.image_size says"
    return image_size // factor, (f"{note}; the prior's own are {stored * factor}",) if stored else (note,)
  if stored:
    return stored, ()
  pixels = square_side(_config(folder, "vae"), "sample_size", vae.sample_size)
  latents = native or (pixels or 0) // factor
  if not latents:
    raise CheckpointError(f"{folder}: neither unet/config.json nor vae/config.json has a sample_size; set "
                          f"config.prior.image_size to a multiple of {block}")
  return latents, (f"images of {latents * factor}x{latents * factor} pixels, since unet/config.json has no "
                   "sample_size; config.prior.image_size sets another size",)


def stable_diffusion_size(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny,
                          scheduler: Config, image_size: int = 0) -> tuple[int, tuple[str, ...]]:
  """Returns `chosen_size` of a Stable Diffusion 1.x or 2.x, whose conversions may have the size 32 by mistake.

  Early conversions wrote 32 for every model. Such a folder has the size of the VAE where that is larger than 256
  pixels, else the size of the published model of its kind: 768 pixels for 2.x with v-prediction, 512 for all others.
  """
  factor = vae.factor
  # Linear projections are those of 2.x, of which v-prediction exists at 768 pixels alone.
  version_2_v = unet.use_linear_projection and prediction_type_from_config(scheduler) == "v_prediction"
  native = (768 if version_2_v else 512) // factor
  mistaken = factor == 8 and unet.sample_size in (_UNUSED_SIZE, (_UNUSED_SIZE, _UNUSED_SIZE))
  if not mistaken or image_size:
    return chosen_size(folder, unet, vae, image_size, native if factor == 8 else None)
  pixels = square_side(_config(folder, "vae"), "sample_size", vae.sample_size) or 0
  latents = pixels // factor if pixels > _UNUSED_SIZE * factor else native
  return latents, (f"images of {latents * factor}x{latents * factor} pixels, though unet/config.json has "
                   f"sample_size={_UNUSED_SIZE} ({_UNUSED_SIZE * factor} pixels), as old conversions wrote for every "
                   "Stable Diffusion; config.prior.image_size sets another size",)


def _config(folder: Path | None, network: str) -> Path:
  return (folder or Path()) / network / "config.json"


def square_side(path: Path, key: str, value: Any) -> int | None:
  """Returns the side of a square size, given as a number or as a pair of equal numbers; None for None.

  Raises:
    CheckpointError: the value is something else, such as two different numbers.
  """
  side = value[0] if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1] else value
  if side is not None and (type(side) is not int or not 1 <= side <= MAX_SIDE):
    raise CheckpointError(f"{path}: {key}={shown(value)} should be a positive integer, at most {MAX_SIDE}, or that "
                          "integer twice")
  return side
