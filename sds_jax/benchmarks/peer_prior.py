"""The prior's part of a step in PyTorch: first a check that both compute the same, then the seconds of both, in turns.

The part goes from the rendered images to their cotangents: resize, encode (latent priors), add noise, the U-Net on
twice the images, guidance, and back through the encoder. Rendering is left out on both sides, because the step in
PyTorch (torch_step.py) has neither hash grid nor encoder. Our side is the training step's own `encode_views` and
`distil`. PyTorch's side is diffusers' `UNet2DConditionModel` and `AutoencoderKL` with scaled dot-product attention,
eagerly and through `torch.compile`, in the same dtype. Images, text, t, noise and weights are equal; the weights go
through a folder in diffusers' format.
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
from sds_jax.benchmarks.step_draws import StepDraws
from sds_jax.benchmarks.workload import Workload
from sds_jax.priors import published
from sds_jax.priors.loading import checkpoint
from sds_jax.training.distil import distil
from sds_jax.training.keys import progress_at, step_keys
from sds_jax.training.terms.distillation import encode_views
from sds_jax.types import Array, Params

WHAT = "PyTorch against the prior's part of the step; rendering left out on both sides"

TOLERANCES = dict(float32=1e-3, bfloat16=0.5, float16=0.5)
"""Largest relative error (of norms) of PyTorch's cotangents, by dtype.

Guidance multiplies the difference of two predictions, and in 16 bits that difference is mostly rounding, so only a
gross mistake exceeds 0.5. `--config.prior.dtype=float32` checks the rest.
"""


def is_only_comparison(work: Workload) -> bool:
  """Returns whether only the prior's part can be compared.

  Only the prior's part is comparable for latent priors and for priors without a folder.
  """
  return "vae" in work.prior_params or work.prior.source.folder is None


def make_prior_part(work: Workload) -> Callable[[Params, dict[str, Any], Array, Array, Array], Array]:
  """Returns the prior's part of the training step, jitted.

  The part goes from the rendered images to their cotangents.

  Returns:
    (prior_params, cond of `StepDraws`, images [V, H, H, 3], number of the step [] int32, key of the run) -> cotangents
    of the images, like them.
  """
  settings, prior, views = work.settings, work.prior, work.settings.training.views

  def part(prior_params: Params, cond: dict[str, Any], images: Array, step: Array, key: Array) -> Array:
    keys, progress = step_keys(key, step), progress_at(step, settings.training.steps)

    def loss(images: Array) -> Array:
      x = encode_views(prior, prior_params, images, keys["encode"], jnp.arange(views))
      return distil(settings.distillation, settings.loss.sds, prior, prior_params, x, cond, keys, progress,
                    views=views, seed=settings.seed)[0]

    return jax.grad(loss)(images)

  return jax.jit(part, compiler_options=compilation.unet_options())


def random_images(work: Workload, step: Array) -> Array:
  """Returns noise images of the step's size.

  The images are [V, H, H, 3] in [0, 1]; their content does not change the seconds.
  """
  size = work.generator.size
  return jax.random.uniform(jax.random.fold_in(work.key, step), (work.settings.training.views, size, size, 3))


def torch_inputs(work: Workload, step: Array, draws: StepDraws, images: Array) -> dict[str, Any]:
  """Returns the inputs of PyTorch's part: numpy arrays (channels first) and plain values."""
  keys = step_keys(work.key, step)
  of_views = jax.vmap(lambda i: jax.random.fold_in(keys["encode"], i))(jnp.arange(draws.eps.shape[0]))
  noise = jax.vmap(lambda k: jax.random.normal(k, draws.eps.shape[1:]))(of_views)  # as in `spaces.latent_space`
  arrays = {"image": images, "noise": noise}
  return dict({name: np.array(value.transpose(0, 3, 1, 2)) for name, value in arrays.items()},
              **peer.torch_distillation_inputs(work, draws))


@contextlib.contextmanager
def folders(work: Workload) -> Iterator[dict[str, str]]:
  """Yields {"unet": folder, "vae": folder or ""} for diffusers.

  The folders are the prior's own, or a temporary copy of our weights.
  """
  with tempfile.TemporaryDirectory() as temporary:
    root = work.prior.source.folder or Path(temporary)
    # Random weights exist in memory only, and diffusers reads folders.
    if work.prior.source.folder is None:
      for name, params in work.prior_params.items():
        checkpoint.write_component(root / name, name, published.PRIORS[work.prior.name][name], params, jnp.float32)
    yield {name: str(root / name) if name in work.prior_params else "" for name in ("unet", "vae")}


def compare(work: Workload, draws: StepDraws, step: Array, *, steps: int, rounds: int) -> dict[str, Any]:
  """Checks, then times both sides in turns.

  Args:
    work: the workload.
    draws: of the step.
    step: number of the step [] int32.
    steps: number of timed calls of each side in a turn, after one that is not counted.
    rounds: number of turns of each side.

  Returns:
    dict(what, error, dtype, threads, device, jax, torch, ratios, skipped, torch_peak_memory_bytes): `jax` is a
    `timing.summary`; `torch` has one for "eager" and one for "compiled"; `ratios` of their medians, torch / JAX;
    `skipped` {what could not be timed: why}.

  Raises:
    PeerError: PyTorch's side lacks a setting, or does not compute the same, or its process ended.
  """
  peer.check_distillation(work.settings.distillation)
  images, part = random_images(work, step), make_prior_part(work)
  args = (work.prior_params, draws.cond, images, step, work.key)
  inputs, threads, dtype = torch_inputs(work, step, draws, images), timing.cpu_count(), work.settings.prior.dtype
  expected = np.asarray(part(*args))
  with folders(work) as places, peer.Process("torch_prior", dict(
      places, dtype=dtype, prediction=work.prior.prediction_type, clip_norm=work.settings.distillation.clip_norm,
      block=work.prior.image_size // work.prior.x_shape[0]), threads) as process:
    # Back to channels last.
    cotangents = process.ask("check", inputs).transpose(0, 2, 3, 1)
    error = float(np.linalg.norm(cotangents - expected) / np.linalg.norm(expected))
    # Written so that NaN fails, too.
    if not error <= TOLERANCES[dtype]:
      raise peer.PeerError(f"PyTorch does not compute the same: relative error of the images' gradient {error:.1e}, "
                           f"allowed in {dtype} {TOLERANCES[dtype]:.0e}; no times are compared")
    problem = process.ask("compile", inputs)
    # `torch.compile` may fail on this machine; the eager times count without it.
    ways = ("eager",) if problem else ("eager", "compiled")
    seconds: dict[str, list[float]] = {name: [] for name in ("jax", *ways)}
    for _ in range(rounds):
      seconds["jax"] += timing.repeat(part, *args, repeats=steps)
      for way in ways:
        seconds[way] += process.ask(way, (inputs, steps))
    device, memory = process.ask("device", None), process.ask("stop", None)
  times = {name: timing.summary(values) for name, values in seconds.items()}
  jax_times = times.pop("jax")
  return dict(what=WHAT, error=error, dtype=dtype, threads=threads, device=device, jax=jax_times, torch=times,
              ratios={way: summary["median_s"] / jax_times["median_s"] for way, summary in times.items()},
              skipped={"compiled": problem} if problem else {}, torch_peak_memory_bytes=memory)
