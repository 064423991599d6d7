"""Draws images from a prior, to inspect the prior before distillation.

    python -m sds_jax.priors.sample --prior=shapeworld --prompt="a red cube"
    python -m sds_jax.priors.sample --prior=sd15 --dtype=bfloat16 --guidance_scale=7.5 --prompt="a photo of a hamburger"
    python -m sds_jax.priors.sample --prior=sd15 --lora=style.safetensors:0.8 --prompt="a hamburger in that style"
    python -m sds_jax.priors.sample --prior=mvdream --dtype=bfloat16 --guidance_scale=7.5 --prompt="an owl" --num=8
    python -m sds_jax.priors.sample --prior=zero123-xl --guidance_scale=3 --photo=mug.png --azimuth_deg 45 90 180
    python -m sds_jax.priors.sample --prior=sd15 --controlnet=depth --control=depth.png --prompt="a photo of a mug"
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from sds_jax import compilation, terminal
from sds_jax.priors.controlnets import ControlNetChoice
from sds_jax.priors.ddim import ddim
from sds_jax.priors.flags import add_file_options, file_options
from sds_jax.priors.loading.files import write_atomically
from sds_jax.priors.prior import Prior, build
from sds_jax.priors.sample_views import elevation_of, read_picture, sample_views
from sds_jax.priors.sources import views_of
from sds_jax.prng import seeded_key
from sds_jax.types import Array, Camera, Params
from sds_jax.views import cameras, poses


ELEVATION_DEG = 15.0
"""Elevation of the views of an object by a prior that looks at several together, as MVDream's authors sample them."""


def sample(prior: Prior, params: Params, prompts: Sequence[str], key: Array, negative_prompt: str = "", steps: int = 50,
           guidance_scale: float = 7.5, control: Array | None = None,
           elevation: float = math.radians(ELEVATION_DEG)) -> Array:
  """Samples an image for each of n prompts, cameras unknown; or the views of n / prior.views objects.

  Returns [n, image_size, image_size, 3] in [0, 1]. `key`: see `ddim`.

  Args:
    prior, params: from `prior.build`.
    prompts: with a prior that looks at several views together, neighbours are the prompts of one object's views, which
      begin at its front and go around it.
    key, steps, guidance_scale: see `ddim`.
    negative_prompt: prompt of the unconditional side.
    control: the image that a prior with a ControlNet reads, [image_size, image_size, 3] in [0, 1].
    elevation: of such views, radians.

  Raises:
    ValueError: n is no multiple of `prior.views`.
  """
  if len(prompts) % prior.views:
    raise ValueError(f"the prior {prior.name!r} looks at {prior.views} views of an object together, so the number of "
                     f"images must be a multiple of {prior.views}, not {len(prompts)}")
  cond, null = prior.embed(list(prompts)), prior.embed([negative_prompt])
  # The negative prompt is embedded once and repeated for every prompt.
  uncond = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), null, cond)
  if control is not None:
    # On both sides of the guidance, as in diffusers.
    images = jnp.broadcast_to(control[None], (len(prompts), *control.shape))
    cond, uncond = ({**side, "control": images} for side in (cond, uncond))
  if prior.views > 1:
    # The unconditional side keeps the cameras: guidance sharpens the text alone.
    camera = prior.camera_features(_around(len(prompts), prior.views, elevation))
    cond, uncond = ({**side, "camera": camera} for side in (cond, uncond))
  draw = jax.jit(lambda p, c, u, k: ddim(prior, p, c, u, k, steps, guidance_scale),
                 compiler_options=compilation.unet_options())
  return draw(params, cond, uncond, key)


def read_control(path: str | os.PathLike, size: int) -> Array:
  """Returns a depth map, or another image for a ControlNet, as [size, size, 3] float32 in [0, 1].

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is no image.
  """
  try:
    with Image.open(path) as image:
      pixels = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
  except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
    raise ValueError(f"--control={path} is no image that can be read: {error}") from error
  return jnp.asarray(np.asarray(pixels, np.float32) / 255)


def _around(count: int, views: int, elevation: float) -> Camera:
  """Returns cameras, leaves [count, ...], `views` of them evenly around each object, the first in front of it."""
  azimuth = 2 * math.pi / views * (jnp.arange(count) % views).astype(jnp.float32)
  return jax.vmap(lambda a: cameras.orbit(a, elevation, poses.DISTANCE, poses.FOV_Y))(azimuth)


def write_row(path: str | os.PathLike, images: Array) -> None:
  """Writes images side by side as one PNG.

  The images are [n, H, W, 3] in [0, 1].
  """
  # Iterates over the images, whose axis 1 is then the width.
  row = np.concatenate(np.asarray(images), axis=1)
  image = Image.fromarray(np.round(255 * row).astype(np.uint8))
  write_atomically(Path(path), lambda temporary: image.save(temporary, format="PNG"))


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  terminal.show_any_text()
  parser = argparse.ArgumentParser(prog="python -m sds_jax.priors.sample", description="Draw images from a prior.")
  parser.add_argument("--prior", default="shapeworld",
                      help="a name, a hub id, a folder or a single file (default: %(default)s)")
  parser.add_argument("--prompt", help="content of the images, for a prior that is conditioned on a prompt")
  parser.add_argument("--negative_prompt", default="")
  parser.add_argument("--out", type=terminal.user_path, default=Path("samples.png"),
                      help="PNG to write (default: %(default)s)")
  parser.add_argument("--num", type=int, default=4, help="images, side by side; of a prior that looks at several "
                      "views of an object together, a multiple of their number (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=50, help="network evaluations (default: %(default)s)")
  parser.add_argument("--guidance_scale", type=float, default=5., help="1 is no guidance (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the networks")
  parser.add_argument("--variant", default="", help="of the weight files, such as fp16_ema (default: none first)")
  parser.add_argument("--image_size", type=int, default=0, help="pixels, for a prior of latents (default: its own)")
  add_file_options(parser)
  parser.add_argument("--embeddings", default="", help="textual inversions FILE or TOKEN=FILE, separated by commas")
  control = parser.add_argument_group("an image to follow, for a prior of Stable Diffusion 1.x")
  control.add_argument("--controlnet", help="a ControlNet: depth, normal, a hub id, a folder or a file")
  control.add_argument("--control", type=terminal.user_path, help="the image that the ControlNet reads")
  control.add_argument("--controlnet_scale", type=float, default=1.,
                       help="factor of what the ControlNet adds to the U-Net (default: %(default)s)")
  views = parser.add_argument_group("views of a photo, for a prior that is conditioned on a photo")
  # --picture and --picture_elevation_deg are the names of version 0.1.0.
  views.add_argument("--photo", "--picture", dest="picture", type=terminal.user_path,
                     help="a square photo of the object, on white or transparent")
  views.add_argument("--azimuth_deg", type=float, nargs="+",
                     help="of each view, from the photo's (default: --num of them all around)")
  views.add_argument("--elevation_deg", type=float, help="of all views (default: the photo's; "
                     f"{ELEVATION_DEG:g} for a prior that makes several views of an object from a prompt)")
  views.add_argument("--photo_elevation_deg", "--picture_elevation_deg", dest="picture_elevation_deg", type=float,
                     help="of the photo's camera (default: the prior's estimate, or else 0)")
  args = parser.parse_args(argv)
  if (args.prompt is None) == (args.picture is None):
    parser.error("give either --prompt=TEXT or, for a prior that is conditioned on a photo, --photo=FILE")
  if (args.controlnet is None) != (args.control is None) or args.picture and args.control:
    parser.error("give --controlnet=NAME and --control=FILE together, and with them --prompt=TEXT")
  if args.num < 1:
    parser.error(f"--num={args.num} must be at least 1")
  if args.image_size < 0:
    parser.error(f"--image_size={args.image_size} must be at least 0")
  if not 0 <= args.seed < 2**32:
    parser.error(f"--seed={args.seed} must be from 0 to 2^32 - 1")
  if not args.out.absolute().parent.is_dir() or args.out.is_dir():
    parser.error(f"--out={args.out}: it must be a file in a folder that exists")
  # Before the first program is compiled, after which JAX would ignore the cache.
  compilation.prepare()
  try:
    # Before the weights, which may be gigabytes.
    if args.prompt is not None:
      _check_number(args.num, args.prior)
    picture = read_picture(args.picture) if args.picture else None
    choices = file_options(args)
    if args.controlnet:
      choices["controlnet"] = ControlNetChoice(args.controlnet, scale=args.controlnet_scale)
    prior, params = build(args.prior, dtype=args.dtype, variant=args.variant, image_size=args.image_size,
                          embeddings=args.embeddings, **choices)
    control = read_control(args.control, prior.image_size) if args.control else None
    images = len(args.azimuth_deg) if args.picture and args.azimuth_deg else args.num
    print(*prior.notes, f"prior: {prior.source}; drawing {images} images in {args.steps} steps ...", sep="\n",
          flush=True)
    if args.picture:
      drawn = _views(prior, params, picture, args)
    else:
      drawn = sample(prior, params, [args.prompt] * args.num, seeded_key(args.seed), args.negative_prompt,
                     args.steps, args.guidance_scale, control,
                     math.radians(ELEVATION_DEG if args.elevation_deg is None else args.elevation_deg))
    write_row(args.out, drawn)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  print(f"the images lie in {args.out}")


def _check_number(num: int, prior: str) -> None:
  """Raises ValueError if a prior makes several views of an object, and `num` images are not whole objects."""
  if num % (views := views_of(prior)):
    raise ValueError(f"--num={num} must be a multiple of {views}, since the prior {prior!r} looks at {views} views of "
                     "an object together")


def _views(prior: Prior, params: Params, picture: Array, args: argparse.Namespace) -> Array:
  """Samples the views of the photo that the flags ask for."""
  if prior.photo is None:
    raise ValueError(f"the prior {args.prior!r} is conditioned on a prompt, not on a photo: give --prompt=TEXT, or "
                     "--prior=zero123-xl or another prior that is conditioned on a photo")
  features = prior.photo.encode(picture)
  given = args.picture_elevation_deg
  camera_elevation = elevation_of(features) if given is None else np.radians(given)
  elevation = camera_elevation if args.elevation_deg is None else np.radians(args.elevation_deg)
  azimuth = np.radians(args.azimuth_deg or np.arange(args.num) * 360 / args.num)
  print(f"the photo counts as taken from {np.degrees(camera_elevation):.0f} degrees above the horizon", flush=True)
  return sample_views(prior, params, features, jnp.asarray(azimuth, jnp.float32),
                      jnp.full(len(azimuth), elevation, jnp.float32), camera_elevation, seeded_key(args.seed),
                      args.steps, args.guidance_scale)


if __name__ == "__main__":
  main()
