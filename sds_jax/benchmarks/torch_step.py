"""The step of the default settings once more, with PyTorch and diffusers: render, U-Net, gradient, Adam, occupancy.

Imports torch and diffusers (the extra `sds_jax[parity]`) and nothing of JAX: it is meant for a process of its own.
"""
from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from sds_jax.benchmarks import torch_process, torch_render
from sds_jax.benchmarks.torch_prior import sds_gradient


class TorchStep:
  """State and step.

  Args:
    payload: of `peer.payload`, numpy arrays and plain values: `render` (of `torch_render.Settings`), `unet` (a folder),
      `prediction` (a scheduler's prediction_type), `unshuffle`, `adam` (b1, b2, eps), `clip_norm`, `occupancy` (every,
      decay, start_step, shares), and what `reset` reads.
  """

  def __init__(self, payload: dict[str, Any]):
    self.payload = payload
    self.settings = torch_render.Settings(**payload["render"])
    self.unet = UNet2DConditionModel.from_pretrained(payload["unet"], torch_dtype=torch.float32,
                                                     low_cpu_mem_usage=False).eval().requires_grad_(False)
    self.reset()

  def reset(self) -> None:
    """Back to the state in the payload: `layers`, Adam's moments `mu` and `nu` alike, `count` and `grid`."""
    p = self.payload
    self.field = torch_render.TorchMLPField(p["layers"], self.settings)
    b1, b2, eps = p["adam"]
    self.optimizer = torch.optim.Adam(self.field.parameters(), lr=0.0, betas=(b1, b2), eps=eps)
    moments = [[array for pair in p[name] for array in pair] for name in ("mu", "nu")]
    for parameter, mu, nu in zip(self.field.parameters(), *moments):
      self.optimizer.state[parameter] = dict(
        step=torch.tensor(float(p["count"])), exp_avg=torch.tensor(mu), exp_avg_sq=torch.tensor(nu))
    self.grid = None if p["grid"] is None else torch.tensor(p["grid"])

  def noise_residual(self, images: torch.Tensor, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the prior is shown, x [V, C, h, w], and the gradient of score distillation with respect to it."""
    x = F.pixel_unshuffle(2 * images.permute(0, 3, 1, 2) - 1, self.payload["unshuffle"])
    camera = inputs.get("camera")

    def predict(z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
      if camera is None:
        return self.unet(z, t, text).sample
      return self.unet(torch.cat([z, torch.cat([inputs["rays"]] * 2)], 1), t, text,
                       class_labels=torch.cat([camera, camera])).sample

    with torch.no_grad():
      return x, sds_gradient(predict, x, inputs, self.payload["prediction"], self.payload["clip_norm"])

  def step(self, inputs: dict[str, Any]) -> torch.Tensor:
    """One step; the images that it rendered. The gradient stays in the parameters."""
    images, opacity, penalty = torch_render.render(self.field, inputs, self.grid, self.settings)
    x, gradient = self.noise_residual(images, inputs)
    p = opacity.clamp(1e-5, 1 - 1e-5)
    loss = (x * gradient).sum() + inputs["orientation"] * penalty.mean()
    if inputs["opacity"]:
      loss = loss + inputs["opacity"] * torch.sqrt(opacity**2 + 0.01).mean()
    if inputs["entropy"]:
      loss = loss + inputs["entropy"] * (-p * torch.log(p) - (1 - p) * torch.log(1 - p)).mean()
    self.optimizer.zero_grad()
    loss.backward()
    for group in self.optimizer.param_groups:
      group["lr"] = inputs["learning_rate"]
    self.optimizer.step()
    self._look_again(inputs["step"])
    return images.detach()

  @torch.no_grad()
  def _look_again(self, step: int) -> None:
    """The occupancy update, when it is due; its points within the cells are torch's own random numbers."""
    o = self.payload["occupancy"]
    if self.grid is None or step % o["every"] or step < o["start_step"]:
      return
    size, flat = self.grid.shape[0], self.grid.reshape(-1)
    cells = torch.arange(step // o["every"] % o["shares"], flat.shape[0], o["shares"])
    corner = torch.stack([cells // size**2, cells // size % size, cells % size], -1)
    points = (corner + torch.rand(corner.shape)) * (2 * self.settings.bound / size) - self.settings.bound
    seen, old = self.field(points)[0], flat[cells]
    flat[cells] = torch.where(old.isinf(), seen, torch.maximum(o["decay"] * old, seen))


def check(step: TorchStep, inputs: dict[str, Any]) -> dict[str, Any]:
  """One step from the payload's state: dict(image, gradient, layers), the last two as [(kernel, bias), ...]."""
  step.reset()
  image = step.step(torch_process.as_tensors(inputs)).numpy()
  pairs = lambda get: [(get(layer.weight).numpy().copy(), get(layer.bias).numpy().copy())  # noqa: E731
                       for layer in step.field.layers]
  return dict(image=image, gradient=pairs(lambda p: p.grad), layers=pairs(lambda p: p.detach()))


def time_steps(step: TorchStep, inputs: list[dict[str, Any]]) -> list[float]:
  """Seconds of each of the steps `inputs`, from the payload's state."""
  step.reset()
  tensors, seconds = [torch_process.as_tensors(one) for one in inputs], []
  for one in tensors:
    started = time.perf_counter()
    step.step(one)
    seconds.append(time.perf_counter() - started)
  return seconds


def serve(connection: Any, payload: dict[str, Any], threads: int) -> None:
  """The life of the process: answers "check" and "time" until it is told "stop"."""
  torch_process.serve(connection, payload, threads, TorchStep, dict(check=check, time=time_steps))
