"""The part of a step that is the prior's, in PyTorch: first that it computes the same, then how long it takes.

From the rendered images to their cotangents: resize, encode (latent priors), add noise, the U-Net on twice the images,
guidance, and back through the encoder. Rendering is left out on both sides, since the step in PyTorch (torch_step.py)
has neither hash grid nor encoder. Ours is the trainer's own `encode` and `distil`; PyTorch's are diffusers'
`UNet2DConditionModel` and `AutoencoderKL` with its scaled dot-product attention, eagerly and through `torch.compile`,
in the same dtype. Images, text, t and noise are the same; so are the weights, by way of a folder in diffusers' format.
"""
from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax import compilation
from sds_jax.benchmarks import peer, timing
from sds_jax.benchmarks.workload import Draws, Workload
from sds_jax.priors import published
from sds_jax.priors.loading import checkpoint
from sds_jax.training import step as step_lib, update
from sds_jax.training.distil import distil
from sds_jax.types import Array, Params

WHAT = "PyTorch against the prior's part of the step; rendering left out on both sides"

TOLERANCES = dict(float32=1e-3, bfloat16=0.5)
"""Largest relative error (of norms) of PyTorch's cotangents. In bfloat16 guidance multiplies what rounding makes of the
difference of two predictions, so only a gross mistake shows; run with
--config.prior.dtype=float32 for the rest."""


def wanted(work: Workload) -> bool:
  """Whether only the prior's part can be compared: a latent prior, or one that isn't read from a folder."""
  return "vae" in work.prior_params or work.prior.source.folder is None


def own_part(work: Workload) -> Callable[[Params, dict[str, Any], Array, Array, Array], Array]:
  """(prior_params, cond of `Draws`, image [V, H, H, 3], step [] int32, key) -> cotangents of the images, like them.

  It is what the trainer's step does with the images that it has rendered; `key` is the run's, as there.
  """
  def part(prior_params: Params, cond: dict[str, Any], image: Array, step: Array, key: Array) -> Array:
    keys = update.step_keys(key, step)

    def loss(rgb: Array) -> Array:
      x = step_lib.encode_each(work.prior, prior_params, rgb, keys["encode"], jnp.arange(rgb.shape[0]))
      progress = update.progress_of(work.config, step)
      return distil(work.config, work.prior, prior_params, x, cond, keys, progress)[0]

    return jax.grad(loss)(image)

  return jax.jit(part, compiler_options=compilation.unet_options())


def images(work: Workload, step: Array) -> Array:
  """Images [V, H, H, 3] in [0, 1] of the size that the step renders: noise, which is as good as any for timing."""
  size = work.config.render.height
  return jax.random.uniform(jax.random.fold_in(work.key, step), (work.config.training.views, size, size, 3))


def inputs(work: Workload, step: Array, draws: Draws, image: Array) -> dict[str, Any]:
  """What PyTorch is called with: numpy arrays (channels first) and plain values."""
  keys = update.step_keys(work.key, step)
  each = jax.vmap(lambda i: jax.random.fold_in(keys["encode"], i))(jnp.arange(draws.eps.shape[0]))
  noise = jax.vmap(lambda k: jax.random.normal(k, draws.eps.shape[1:]))(each)  # as `spaces.latent_space` draws it
  first = {"image": image, "noise": noise}
  return dict({name: np.array(value.transpose(0, 3, 1, 2)) for name, value in first.items()},
              **peer.distillation_inputs(work, draws))


@contextlib.contextmanager
def folders(work: Workload) -> Iterator[dict[str, str]]:
  """{"unet": folder, "vae": folder or ""} that diffusers opens: the prior's own, or a temporary copy of our weights."""
  with tempfile.TemporaryDirectory() as place:
    own = work.prior.source.folder or Path(place)
    if work.prior.source.folder is None:
      for name, params in work.prior_params.items():
        checkpoint.write_component(own / name, name, published.PRIORS[work.prior.name][name], params, jnp.float32)
    yield {name: str(own / name) if name in work.prior_params else "" for name in ("unet", "vae")}


def compare(work: Workload, draws: Draws, step: Array, *, steps: int, rounds: int) -> dict[str, Any]:
  """Checks, then times both sides in turns.

  Args:
    work: the workload.
    draws: of the step.
    step: its number [] int32.
    steps: how often each side computes in a turn, after once that is not counted.
    rounds: turns of each side.

  Returns:
    dict(what, error, dtype, threads, device, jax, torch, ratios, skipped, torch_peak_memory_bytes): `jax` is a
    `timing.summary`, `torch` one for "eager" and one for "compiled", `ratios` of their medians, torch / JAX; `skipped`
    {what could not be timed: why}.

  Raises:
    PeerError: PyTorch's side has not what the settings ask for, does not compute the same, or its process ended.
  """
  peer.check_distillation(work.config)
  image, part = images(work, step), own_part(work)
  args = (work.prior_params, draws.cond, image, step, work.key)
  given, threads, dtype = inputs(work, step, draws, image), timing.cpu_count(), work.config.prior.dtype
  own = np.asarray(part(*args))
  with folders(work) as places, peer.Process("torch_prior", dict(
      places, dtype=dtype, prediction=work.prior.prediction_type, clip_norm=work.config.distillation.clip_norm[0],
      block=work.prior.image_size // work.prior.x_shape[0]), threads) as process:
    theirs = process.ask("check", given).transpose(0, 2, 3, 1)
    error = float(np.linalg.norm(theirs - own) / np.linalg.norm(own))
    if not error <= TOLERANCES[dtype]:
      raise peer.PeerError(f"PyTorch does not compute the same: relative error of the images' gradient {error:.1e}, "
                           f"allowed in {dtype} {TOLERANCES[dtype]:.0e}; no times are compared")
    problem = process.ask("compile", given)
    ways = ("eager",) if problem else ("eager", "compiled")
    found: dict[str, list[float]] = {name: [] for name in ("jax", *ways)}
    for _ in range(rounds):
      found["jax"] += timing.repeat(part, *args, repeats=steps)
      for way in ways:
        found[way] += process.ask(way, (given, steps))
    device, memory = process.ask("device", None), process.ask("stop", None)
  times = {name: timing.summary(seconds) for name, seconds in found.items()}
  ours = times.pop("jax")
  return dict(what=WHAT, error=error, dtype=dtype, threads=threads, device=device, jax=ours, torch=times,
              ratios={way: summary["median_s"] / ours["median_s"] for way, summary in times.items()},
              skipped={"compiled": problem} if problem else {}, torch_peak_memory_bytes=memory)
