"""The prior's part of a step with PyTorch and diffusers: encode, add noise, U-Net under guidance, back to the images.

Imports torch and diffusers (the extra `sds_jax[parity]`) and nothing of JAX: it is meant for a process of its own.
"""
from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel

from sds_jax.benchmarks import torch_process


class TorchPrior:
  """The networks.

  Args:
    payload: of `peer_prior.compare`: `unet` and `vae` (folders; no VAE where empty), `dtype`, `prediction` (a
      scheduler's prediction_type), `block` (that pixels are folded by, without a VAE), `clip_norm`.
  """

  def __init__(self, payload: dict[str, Any]):
    self.payload = payload
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.dtype = getattr(torch, payload["dtype"])
    self.unet = self._load(UNet2DConditionModel, payload["unet"])
    self.vae = self._load(AutoencoderKL, payload["vae"]) if payload["vae"] else None
    self.encoder = None if self.vae is None else self.vae.encoder
    self.eager, self.compiled = (self.unet, self.encoder), None

  def _load(self, network: Any, folder: str) -> Any:
    model = network.from_pretrained(folder, torch_dtype=self.dtype, low_cpu_mem_usage=False)
    return model.eval().requires_grad_(False).to(self.device)

  def use(self, compiled: bool) -> None:
    """Takes the networks as they are, or through `torch.compile`."""
    if compiled and self.compiled is None:
      self.compiled = tuple(None if network is None else torch.compile(network) for network in self.eager)
    self.unet, self.encoder = self.compiled if compiled else self.eager

  def encode(self, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Images [V, 3, H, H] in [0, 1] -> x, float32; differentiable."""
    if self.vae is None:
      size = self.unet_config["sample_size"] * self.payload["block"]
      return F.pixel_unshuffle(2 * resized(image, size) - 1, self.payload["block"])
    size = noise.shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
    hidden = self.encoder((2 * resized(image, size) - 1).to(self.dtype))
    hidden = self.vae.quant_conv(hidden) if self.vae.quant_conv is not None else hidden
    mean, logvar = hidden.float().chunk(2, dim=1)
    return (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise) * self.vae.config.scaling_factor

  @property
  def unet_config(self) -> Any:
    return self.eager[0].config

  def predict(self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """What the U-Net puts out, float32."""
    return self.unet(z.to(self.dtype), t, text.to(self.dtype)).sample.float()

  def step(self, given: dict[str, Any]) -> torch.Tensor:
    """The cotangents of `given["image"]`, like it."""
    image = given["image"].clone().requires_grad_()
    x = self.encode(image, given["noise"])
    with torch.no_grad():
      gradient = sds_gradient(self.predict, x, given, self.payload["prediction"], self.payload["clip_norm"])
    x.backward(gradient)
    return image.grad


def resized(image: torch.Tensor, size: int) -> torch.Tensor:
  """Images [V, 3, H, H] at [V, 3, size, size], as `priors.spaces.resized`."""
  if image.shape[-1] == size:
    return image
  return F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=image.shape[-1] > size)


def sds_gradient(predict: Any, x: torch.Tensor, given: dict[str, Any], prediction: str,
                 clip_norm: float) -> torch.Tensor:
  """The gradient of score distillation with respect to x [V, C, h, w].

  Args:
    predict: (z [2V, C, h, w], t [2V], text [2V, T, D]) -> what the network puts out; first the images with the
      text. A learned variance behind their channels is left out.
    given: `peer.distillation_inputs` as tensors.
    prediction: a scheduler's prediction_type.
    clip_norm: largest norm of one view's gradient, 0 for no limit.
  """
  alpha, sigma, weight = (given[name][:, None, None, None] for name in ("alpha", "sigma", "weight"))
  z = alpha * x + sigma * given["eps"]
  predicted = predict(torch.cat([z, z]), torch.cat([given["t"]] * 2), given["text"])[:, :x.shape[1]]
  with_text, without = (_eps(part, z, alpha, sigma, prediction) for part in predicted.chunk(2))
  eps_hat = without + given["guidance"] * (with_text - without)
  gradient = given["sds"] * weight * (eps_hat - given["eps"])
  if clip_norm:
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    gradient = gradient * (clip_norm / norm).clamp(max=1.0)[:, None, None, None]
  return gradient / x.shape[0]


def _eps(predicted: torch.Tensor, z: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor,
         kind: str) -> torch.Tensor:
  """The noise prediction in what the network puts out (`prediction_type` of its scheduler)."""
  if kind == "v_prediction":
    return alpha * predicted + sigma * z
  return predicted if kind == "epsilon" else (z - alpha * predicted) / sigma


def check(prior: TorchPrior, given: dict[str, Any]) -> np.ndarray:
  """The cotangents of the images [V, 3, H, H]."""
  prior.use(compiled=False)
  return prior.step(torch_process.as_tensors(given, prior.device)).cpu().numpy()


def try_compiled(prior: TorchPrior, given: dict[str, Any]) -> str:
  """"" when `torch.compile` does, else why it does not, in one line; compiles."""
  try:
    prior.use(compiled=True)
    prior.step(torch_process.as_tensors(given, prior.device))
  except Exception as error:  # whatever a compiler may raise: the eager times stand anyway
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
  return ""


def time_steps(prior: TorchPrior, asked: tuple[dict[str, Any], int], compiled: bool) -> list[float]:
  """Seconds of each of so many steps, after one that is not counted."""
  given, count = asked
  prior.use(compiled)
  tensors, seconds = torch_process.as_tensors(given, prior.device), []
  for _ in range(count + 1):
    started = time.perf_counter()
    prior.step(tensors)
    if prior.device.type == "cuda":
      torch.cuda.synchronize()
    seconds.append(time.perf_counter() - started)
  return seconds[1:]


def serve(connection: Any, payload: dict[str, Any], threads: int) -> None:
  """The life of the process: answers "check", "compile", "eager", "compiled", "device" until it is told "stop"."""
  torch_process.serve(connection, payload, threads, TorchPrior, dict(
    check=check, compile=try_compiled, device=lambda prior, _: describe(prior.device),
    eager=lambda prior, asked: time_steps(prior, asked, False),
    compiled=lambda prior, asked: time_steps(prior, asked, True)))


def describe(device: torch.device) -> str:
  """Its name."""
  return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
