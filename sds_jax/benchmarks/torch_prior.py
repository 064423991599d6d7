"""The prior's part of a step in PyTorch and diffusers: encode, add noise, guided U-Net, back to the images.

Imports torch and diffusers (the extra `sds_jax[parity]`) but not JAX, for a process of its own.
"""
from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel

from sds_jax.benchmarks import torch_process


class TorchPrior:
  """U-Net and perhaps VAE of a prior, on one device."""

  def __init__(self, payload: dict[str, Any]):
    """Loads the networks.

    Args:
      payload: of `peer_prior.compare`: `unet` and `vae` (folders; "": no VAE), `dtype`, `prediction` (a scheduler's
        prediction_type), `block` (by which pixels are folded, without a VAE), `clip_norm`.
    """
    self.payload = payload
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.dtype = getattr(torch, payload["dtype"])
    self.unet = self._load(UNet2DConditionModel, payload["unet"])
    self.vae = self._load(AutoencoderKL, payload["vae"]) if payload["vae"] else None
    self.encoder = None if self.vae is None else self.vae.encoder
    # Kept side by side, because both ways are timed in turns.
    self.eager, self.compiled = (self.unet, self.encoder), None

  def _load(self, network: Any, folder: str) -> Any:
    # The default needs the package accelerate, and warns without it.
    model = network.from_pretrained(folder, torch_dtype=self.dtype, low_cpu_mem_usage=False)
    # Only the weights are frozen: the gradient of the images runs through the encoder.
    return model.eval().requires_grad_(False).to(self.device)

  def use(self, compiled: bool) -> None:
    """Selects the eager networks, or those of `torch.compile`."""
    if compiled and self.compiled is None:
      self.compiled = tuple(None if network is None else torch.compile(network) for network in self.eager)
    self.unet, self.encoder = self.compiled if compiled else self.eager

  def encode(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Encodes images [V, 3, H, H] in [0, 1] as x, float32; differentiable."""
    if self.vae is None:
      size = self.unet_config["sample_size"] * self.payload["block"]
      return F.pixel_unshuffle(2 * resize(images, size) - 1, self.payload["block"])
    size = noise.shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
    hidden = self.encoder((2 * resize(images, size) - 1).to(self.dtype))
    hidden = self.vae.quant_conv(hidden) if self.vae.quant_conv is not None else hidden
    # float32 for the draw, as in `priors.spaces`, whatever the dtype of the encoder.
    mean, logvar = hidden.float().chunk(2, dim=1)
    # diffusers clamps the log variance to the same range.
    return (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise) * self.vae.config.scaling_factor

  @property
  def unet_config(self) -> Any:
    """Returns the U-Net's configuration."""
    return self.eager[0].config

  def predict(self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor,
              added: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Returns the U-Net's output, float32; `added` are the conditions that SDXL's U-Net takes beside the text."""
    added = added and {name: value.to(self.dtype) for name, value in added.items()}
    return self.unet(z.to(self.dtype), t, text.to(self.dtype), added_cond_kwargs=added).sample.float()

  def step(self, inputs: dict[str, Any]) -> torch.Tensor:
    """Returns the cotangents [V, 3, H, H] of the images `inputs["image"]`."""
    images = inputs["image"].clone().requires_grad_()
    x = self.encode(images, inputs["noise"])
    added = dict(text_embeds=inputs["pooled"], time_ids=inputs["time_ids"]) if "pooled" in inputs else None
    with torch.no_grad():
      gradient = sds_gradient(functools.partial(self.predict, added=added), x, inputs, self.payload["prediction"],
                              self.payload["clip_norm"])
    x.backward(gradient)
    return images.grad


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
  """Resizes images [V, 3, H, H] as `priors.spaces` does.

  The images become [V, 3, size, size].
  """
  if images.shape[-1] == size:
    return images
  # antialias only when shrinking, as `jax.image.resize` does.
  return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=images.shape[-1] > size)


def sds_gradient(predict: Any, x: torch.Tensor, inputs: dict[str, Any], prediction: str,
                 clip_norm: float) -> torch.Tensor:
  """Returns the gradient of score distillation with respect to x.

  x is [V, C, h, w].

  Args:
    predict: (z [2V, C, h, w], t [2V], text [2V, T, D]) -> the network's output; the images with the text come first.
      The channels of a learned variance are left out.
    x: the encoded images.
    inputs: `peer.torch_distillation_inputs` as tensors.
    prediction: a scheduler's prediction_type.
    clip_norm: largest norm of one view's gradient; 0: no limit.
  """
  alpha, sigma, weight = (inputs[name][:, None, None, None] for name in ("alpha", "sigma", "weight"))
  # x without a gradient here: score distillation leaves out the Jacobian of the network (arXiv:2209.14988, eq. 3).
  z = alpha * x + sigma * inputs["eps"]
  predicted = predict(torch.cat([z, z]), torch.cat([inputs["t"]] * 2), inputs["text"])[:, :x.shape[1]]
  with_text, without = (_eps(part, z, alpha, sigma, prediction) for part in predicted.chunk(2))
  eps_hat = without + inputs["guidance"] * (with_text - without)
  gradient = inputs["sds"] * weight * (eps_hat - inputs["eps"])
  if clip_norm:
    # The floor is for a gradient of 0.
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    gradient = gradient * (clip_norm / norm).clamp(max=1.0)[:, None, None, None]
  # The loss is a mean over the views.
  return gradient / x.shape[0]


def _eps(predicted: torch.Tensor, z: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor,
         kind: str) -> torch.Tensor:
  """Returns the noise prediction of a network's output.

  `kind` is the prediction_type of its scheduler.
  """
  if kind == "v_prediction":
    return alpha * predicted + sigma * z
  return predicted if kind == "epsilon" else (z - alpha * predicted) / sigma


def check(prior: TorchPrior, inputs: dict[str, Any]) -> np.ndarray:
  """Returns the cotangents of the images [V, 3, H, H]."""
  prior.use(compiled=False)
  return prior.step(torch_process.as_tensors(inputs, prior.device)).cpu().numpy()


def try_compiled(prior: TorchPrior, inputs: dict[str, Any]) -> str:
  """Compiles the networks with `torch.compile`.

  Returns "", or one line that says why the compilation fails.
  """
  try:
    prior.use(compiled=True)
    prior.step(torch_process.as_tensors(inputs, prior.device))
  except Exception as error:  # a compiler may raise anything; the eager times are valid without it
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
  return ""


def time_steps(prior: TorchPrior, inputs: dict[str, Any], count: int, compiled: bool) -> list[float]:
  """Returns the seconds of each of `count` steps.

  A first step is not counted.
  """
  prior.use(compiled)
  tensors, seconds = torch_process.as_tensors(inputs, prior.device), []
  for _ in range(count + 1):
    started = time.perf_counter()
    prior.step(tensors)
    # CUDA works asynchronously; without the wait only the launches would be timed.
    if prior.device.type == "cuda":
      torch.cuda.synchronize()
    seconds.append(time.perf_counter() - started)
  return seconds[1:]


def serve(connection: Any, payload: dict[str, Any], threads: int) -> None:
  """Answers the requests "check", "compile", "eager", "compiled" and "device" until "stop"."""
  torch_process.serve(connection, payload, threads, TorchPrior, dict(
    check=check, compile=try_compiled, device=lambda prior, _: describe(prior.device),
    eager=lambda prior, argument: time_steps(prior, *argument, compiled=False),
    compiled=lambda prior, argument: time_steps(prior, *argument, compiled=True)))


def describe(device: torch.device) -> str:
  """Returns the name of a device."""
  return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
