"""Draw images from a prior, to see what it knows before it is distilled.

    python -m sds_jax.priors.sample --prior=shapeworld --prompt="a red cube"
    python -m sds_jax.priors.sample --prior=sd15 --dtype=bfloat16 --guidance_scale=7.5 --prompt="a photo of a hamburger"
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sds_jax import compilation
from sds_jax.priors.ddim import ddim
from sds_jax.priors.files import write_atomically
from sds_jax.priors.prior import Prior, build
from sds_jax.types import Array, Params


def sample(prior: Prior, params: Params, prompts: Sequence[str], key: Array, negative_prompt: str = "", steps: int = 50,
           guidance_scale: float = 7.5) -> Array:
  """Images [n, image_size, image_size, 3] in [0, 1] for n prompts, cameras unknown. `key`: see `ddim`."""
  cond, null = prior.embed(list(prompts)), prior.embed([negative_prompt])
  cond, uncond = dict(text=cond), dict(text=jnp.broadcast_to(null, cond.shape))
  draw = jax.jit(lambda p, c, u, k: ddim(prior, p, c, u, k, steps, guidance_scale),
                 compiler_options=compilation.unet_options())
  return draw(params, cond, uncond, key)


def write_row(path: str | os.PathLike, images: Array) -> None:
  """Writes images [n, H, W, 3] in [0, 1] side by side as one PNG."""
  row = np.concatenate(np.asarray(images), axis=1)
  picture = Image.fromarray(np.round(255 * row).astype(np.uint8))
  write_atomically(Path(path), lambda temporary: picture.save(temporary, format="PNG"))


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.priors.sample", description="Draw images from a prior.")
  parser.add_argument("--prior", default="shapeworld", help="a name, a hub id or a folder (default: %(default)s)")
  parser.add_argument("--prompt", required=True)
  parser.add_argument("--negative_prompt", default="")
  parser.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG to write (default: %(default)s)")
  parser.add_argument("--num", type=int, default=4, help="images, side by side (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=50, help="network evaluations (default: %(default)s)")
  parser.add_argument("--guidance_scale", type=float, default=5., help="1 is no guidance (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the networks")
  args = parser.parse_args(argv)
  if args.num < 1:
    parser.error(f"--num={args.num} must be at least 1")
  if not 0 <= args.seed < 2**32:
    parser.error(f"--seed={args.seed} must be from 0 to 2^32 - 1")
  if not args.out.absolute().parent.is_dir() or args.out.is_dir():
    parser.error(f"--out={args.out}: it must be a file in a folder that exists")
  compilation.prepare()
  try:
    prior, params = build(args.prior, dtype=args.dtype)
    print(f"prior: {prior.source}; drawing {args.num} images in {args.steps} steps ...", flush=True)
    images = sample(prior, params, [args.prompt] * args.num, jax.random.key(args.seed), args.negative_prompt,
                    args.steps, args.guidance_scale)
    write_row(args.out, images)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  print(f"the images lie in {args.out}")


if __name__ == "__main__":
  main()
