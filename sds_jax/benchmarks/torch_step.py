"""The step of the default settings in PyTorch and diffusers: render, U-Net, gradient, Adam, occupancy grid.

Imports torch and diffusers (the extra `sds_jax[parity]`) but not JAX, for a process of its own.
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
  """The state of a run, and its step."""

  def __init__(self, payload: dict[str, Any]):
    """Loads the U-Net and makes the first state.

    Args:
      payload: of `peer.payload`, numpy arrays and plain values: `render` (of `torch_render.RendererSettings`), `unet`
        (a folder), `prediction` (a scheduler's prediction_type), `unshuffle`, `adam` (b1, b2, eps), `clip_norm`,
        `occupancy` (every, decay, start_step, shares), and the entries that `reset` reads.
    """
    self.payload = payload
    self.settings = torch_render.RendererSettings(**payload["render"])
    # Without gradients, because score distillation does not differentiate the network.
    self.unet = UNet2DConditionModel.from_pretrained(payload["unet"], torch_dtype=torch.float32,
                                                     low_cpu_mem_usage=False).eval().requires_grad_(False)
    self.reset()

  def reset(self) -> None:
    """Restores the payload's state.

    Entries `layers`, Adam's moments `mu` and `nu` (like layers), `count` and `grid`.
    """
    p = self.payload
    self.field = torch_render.TorchMLPField(p["layers"], self.settings)
    b1, b2, eps = p["adam"]
    # Each step sets its own rate from the schedule.
    self.optimizer = torch.optim.Adam(self.field.parameters(), lr=0.0, betas=(b1, b2), eps=eps)
    moments = [[array for pair in p[name] for array in pair] for name in ("mu", "nu")]
    for parameter, mu, nu in zip(self.field.parameters(), *moments):
      # Adam goes on from our moments and count, so that the first update can be compared.
      self.optimizer.state[parameter] = dict(
        step=torch.tensor(float(p["count"])), exp_avg=torch.tensor(mu), exp_avg_sq=torch.tensor(nu))
    self.grid = None if p["grid"] is None else torch.tensor(p["grid"])

  def noise_residual(self, images: torch.Tensor, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the encoded images x and the gradient of score distillation.

    x is [V, C, h, w]; the gradient is with respect to x.
    """
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
    """Takes one step and returns its images.

    The gradient stays in the parameters' `grad`.
    """
    images, opacity, penalty = torch_render.render(self.field, inputs, self.grid, self.settings)
    x, gradient = self.noise_residual(images, inputs)
    # The logarithms below are infinite at 0 and 1.
    p = opacity.clamp(1e-5, 1 - 1e-5)
    # A loss whose gradient with respect to x is `gradient`, which has none of its own.
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
    self._update_grid(inputs["step"])
    return images.detach()

  @torch.no_grad()
  def _update_grid(self, step: int) -> None:
    """Updates the occupancy grid if an update is due.

    The points within the cells are torch's own random numbers.
    """
    o = self.payload["occupancy"]
    if self.grid is None or step % o["every"] or step < o["start_step"]:
      return
    size, flat = self.grid.shape[0], self.grid.reshape(-1)
    # Each update renews one of `shares` shares of the cells, in turn.
    cells = torch.arange(step // o["every"] % o["shares"], flat.shape[0], o["shares"])
    corner = torch.stack([cells // size**2, cells // size % size, cells % size], -1)
    points = (corner + torch.rand(corner.shape)) * (2 * self.settings.bound / size) - self.settings.bound
    new, old = self.field(points)[0], flat[cells]
    flat[cells] = torch.where(old.isinf(), new, torch.maximum(o["decay"] * old, new))  # infinity: never evaluated


def check(step: TorchStep, inputs: dict[str, Any]) -> dict[str, Any]:
  """Takes one step from the payload's state.

  Returns:
    dict(image, gradient, layers), the last two as [(kernel, bias), ...].
  """
  step.reset()
  image = step.step(torch_process.as_tensors(inputs)).numpy()
  pairs = lambda get: [(get(layer.weight).numpy().copy(), get(layer.bias).numpy().copy())  # noqa: E731
                       for layer in step.field.layers]
  return dict(image=image, gradient=pairs(lambda p: p.grad), layers=pairs(lambda p: p.detach()))


def time_steps(step: TorchStep, inputs: list[dict[str, Any]]) -> list[float]:
  """Returns the seconds of each of the steps `inputs`, from the payload's state on."""
  step.reset()
  tensors, seconds = [torch_process.as_tensors(one) for one in inputs], []
  for one in tensors:
    started = time.perf_counter()
    step.step(one)
    seconds.append(time.perf_counter() - started)
  return seconds


def serve(connection: Any, payload: dict[str, Any], threads: int) -> None:
  """Answers the requests "check" and "time" until "stop"."""
  torch_process.serve(connection, payload, threads, TorchStep, dict(check=check, time=time_steps))
