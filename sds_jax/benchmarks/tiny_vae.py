"""Compares the encoder of TAESD with that of a prior's autoencoder: work, and direction of the gradient in the image.

    python -m sds_jax.benchmarks.tiny_vae
    python -m sds_jax.benchmarks.tiny_vae --prior=sd15 --tiny=FOLDER --prompt="a photo of a mug" --dtype=bfloat16

The first command counts the work and has random weights, with which a direction means nothing: two random networks
have unrelated gradients. The second reads published weights; FOLDER holds TAESD (`hf download madebyollin/taesd
--include config.json diffusion_pytorch_model.safetensors`). Both encoders get the same cotangent, and the cosine
compares the two gradients in the image at full size and at the size of a render.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.diffusion import guidance
from sds_jax.diffusion.schedules import add_noise
from sds_jax.priors.base import Prior, network_shapes
from sds_jax.priors.families.stable_diffusion import SD_VAE
from sds_jax.priors.loading.checkpoint import read_component
from sds_jax.priors.loading.random_weights import random_params
from sds_jax.priors.networks.autoencoders import Autoencoder
from sds_jax.priors.prior import build
from sds_jax.priors.spaces import Space, latent_space
from sds_jax.types import Array, Params

TINY = {"_class_name": "AutoencoderTiny"}
"""Config of TAESD; its constants are the network's defaults."""
RENDER, RANDOM = 64, 128
"""Height and width of a render, and of the image for random weights, pixels."""


def encoder_flops(config: Mapping[str, Any], size: int) -> dict[str, float]:
  """Returns FLOPs of an encoder's forward pass and of its gradient in one image, by XLA's cost analysis.

  Args:
    config: content of the autoencoder's config.json.
    size: height and width of the image, pixels.
  """
  vae = Autoencoder.from_config(config)
  space = latent_space(vae, size // vae.factor)
  params = {"vae": network_shapes(vae, jnp.float32)}
  image, key = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.random.key(0)
  cotangent = jax.ShapeDtypeStruct((1, *space.x_shape), jnp.float32)

  def gradient(params: Params, image: Array, cotangent: Array) -> Array:
    return jax.vjp(lambda image: space.encode(params, image, key), image)[1](cotangent)[0]

  def encode(params: Params, image: Array, cotangent: Array) -> Array:
    del cotangent
    return space.encode(params, image, key)

  # Before compilation: the analysis of the traced program needs no optimised code.
  return {what: jax.jit(function).lower(params, image, cotangent).cost_analysis()["flops"]
          for what, function in (("forward", encode), ("gradient", gradient))}


def images(size: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns images [size, size, 3] in [0, 1] by name: white noise, and a shaded ball over a floor."""
  noise = np.random.default_rng(seed).uniform(size=(size, size, 3))
  y, x = np.mgrid[0:size, 0:size] / size
  height = np.sqrt(np.maximum(0.09 - (x - 0.5)**2 - (y - 0.45)**2, 0.0)) / 0.3
  floor = np.stack([0.55 + 0.3 * y, 0.6 + 0.2 * y, 0.75 - 0.2 * y], axis=-1)
  ball = np.stack([0.9 * height, 0.25 * height, 0.2 * height], axis=-1) + 0.05
  structured = np.where((height > 0)[..., None], ball, floor)
  return dict(random=noise.astype(np.float32), structured=structured.astype(np.float32))


def cosine(a: Array, b: Array) -> float:
  """Returns the cosine of the angle between two arrays.

  >>> cosine(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]))
  0.7071067811865475
  """
  a, b = (np.asarray(one, np.float64).ravel() for one in (a, b))
  return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def cosines(spaces: Sequence[Space | Prior], params: Sequence[Params], image: Array,
            cotangent: Array) -> dict[str, float]:
  """Returns the cosines between two encoders' gradients in an image, by the size of the image.

  Args:
    spaces, params: of the autoencoder, and of the tiny one.
    image: [S, S, 3] in [0, 1], S the size of the prior's images.
    cotangent: [1, *x_shape], of the latents.
  """
  def both(space: Space | Prior) -> Any:
    def gradient(tree: Params, image: Array) -> Array:
      return jax.vjp(lambda image: space.encode(tree, image, jax.random.key(0)), image)[1](cotangent)[0]

    # A render is enlarged to the prior's size, so the gradient of a pixel sums up those of a block.
    return jax.jit(lambda tree, image: (
      gradient(tree, image), gradient(tree, jax.image.resize(image, (1, RENDER, RENDER, 3), "linear"))))

  gradients = [both(space)(tree, image[None]) for space, tree in zip(spaces, params)]
  return {what: cosine(a, b) for what, a, b in zip((f"{image.shape[0]} px", f"{RENDER} px"), *gradients)}


def residual(prior: Prior, params: Params, image: Array, prompt: str, scale: float) -> Array:
  """Returns the cotangent of SDS [1, *x_shape]: guided eps_hat - eps at half of the schedule.

  Args:
    prior, params: with the autoencoder.
    image: [S, S, 3] in [0, 1].
    prompt: of the image.
    scale: of guidance, diffusers' convention.
  """
  k_encode, k_noise = jax.random.split(jax.random.key(1))
  cond, null = prior.embed([prompt]), prior.embed([""])
  denoise = guidance.guided(prior.denoise, "diffusers", scale)

  @jax.jit
  def run(params: Params, image: Array) -> Array:
    x = prior.encode(params, image[None], k_encode)
    t, eps = jnp.array([prior.schedule.alpha.shape[0] // 2]), jax.random.normal(k_noise, x.shape)
    return denoise(params, add_noise(prior.schedule, x, eps, t), t, dict(cond=cond, uncond=null)) - eps

  return run(params, image)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(prog="python -m sds_jax.benchmarks.tiny_vae", description=__doc__.splitlines()[0])
  parser.add_argument("--prior", default="", help="a prior of latents with its weights (default: random weights)")
  parser.add_argument("--tiny", type=Path, help="folder of TAESD, for --prior")
  parser.add_argument("--prompt", default="a photo of a red ball on a floor")
  parser.add_argument("--guidance_scale", type=float, default=7.5, help="(default: %(default)s)")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the networks")
  parser.add_argument("--size", type=int, default=512, help="of the image whose work is counted (default: %(default)s)")
  args = parser.parse_args(argv)
  if bool(args.prior) != (args.tiny is not None):
    parser.error("give --prior=NAME and --tiny=FOLDER together, or neither")
  try:
    _report(args)
  except (ValueError, OSError) as error:
    parser.error(str(error))


def _report(args: argparse.Namespace) -> None:
  work = {name: encoder_flops(config, args.size) for name, config in (("AutoencoderKL", SD_VAE), ("TAESD", TINY))}
  for what in ("forward", "gradient"):
    kl, tiny = (work[name][what] for name in work)
    print(f"{what}: AutoencoderKL {kl / 1e9:.1f} GFLOP, TAESD {tiny / 1e9:.1f} GFLOP, {kl / tiny:.1f} times less",
          flush=True)
  prior, size = None, min(args.size, RANDOM)
  if args.prior:
    prior, params = build(args.prior, dtype=args.dtype)
    vae, tree = read_component(args.tiny, "vae", jnp.dtype(args.dtype))
    size, both = prior.image_size, (params, {"vae": tree})
    spaces = (prior, latent_space(vae, prior.x_shape[0]))
  else:
    networks = [Autoencoder.from_config(config, dtype=jnp.dtype(args.dtype)) for config in (SD_VAE, TINY)]
    both = tuple({"vae": random_params(network_shapes(vae, args.dtype))} for vae in networks)
    spaces = tuple(latent_space(vae, size // vae.factor) for vae in networks)
  white = jax.random.normal(jax.random.key(2), (1, *spaces[0].x_shape))
  for name, image in images(size).items():
    image = jnp.asarray(image)
    cotangents = {"white noise": white}
    if prior:
      cotangents["SDS"] = residual(prior, both[0], image, args.prompt, args.guidance_scale)
    for what, cotangent in cotangents.items():
      found = cosines(spaces, both, image, cotangent)
      print(f"{name} image, cotangent {what}: cosine " + ", ".join(f"{v:.3f} at {k}" for k, v in found.items()))


if __name__ == "__main__":
  main()
