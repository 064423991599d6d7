"""The renderer of the default settings in idiomatic PyTorch: eager, with arrays of varying sizes.

Candidates are placed, looked up in the occupancy grid and cut off at the same budget as in `rendering.render`. There
XLA needs an array of fixed size; here `nonzero` gives only the wanted samples, so nothing is padded. Imports torch (the
extra `sds_jax[parity]`) but not JAX.
"""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "softplus": F.softplus}
DENSITIES = {"softplus": F.softplus, "exp": lambda logit: torch.exp(torch.clamp(logit, max=12.0))}


@dataclasses.dataclass(frozen=True)
class RendererSettings:
  """The settings that the renderer reads, with the names and meanings of the settings tree."""
  height: int
  width: int
  candidates: int
  samples: int
  bound: float
  occupied_depth: float
  density: str
  blob: str
  blob_scale: float
  blob_radius: float
  density_bias: float
  octaves: int
  activation: str
  block: int  # points that the field gets at a time; 0: all


class TorchMLPField(torch.nn.Module):
  """The field: points [N, 3] -> density [N] and albedo [N, 3]."""

  def __init__(self, layers: list[tuple[Any, Any]], settings: RendererSettings):
    """Copies the weights [(kernel [out, in], bias [out]), ...], numpy arrays."""
    super().__init__()
    self.settings = settings
    self.layers = torch.nn.ModuleList()
    for kernel, bias in layers:
      layer = torch.nn.Linear(kernel.shape[1], kernel.shape[0])
      layer.weight = torch.nn.Parameter(torch.tensor(kernel))
      layer.bias = torch.nn.Parameter(torch.tensor(bias))
      self.layers.append(layer)

  def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns density [N] and albedo [N, 3] at points [N, 3]."""
    s = self.settings
    x = self._encode(points)
    for layer in self.layers[:-1]:
      x = ACTIVATIONS[s.activation](layer(x))
    out = self.layers[-1](x)
    squared = (points**2).sum(-1)
    # The derivative of sqrt is infinite at 0.
    radius = torch.sqrt(squared + 1e-12)
    blob = {"linear": lambda: s.blob_scale * (1 - radius / s.blob_radius),
            "gaussian": lambda: s.blob_scale * torch.exp(-squared / (2 * s.blob_radius**2)),
            "none": lambda: 0.0}[s.blob]()
    # The field fades out over the last twentieth of the ball, as in `fields.field`.
    rise = torch.clamp((1 - radius / s.bound) / 0.05, 0.0, 1.0)
    density = DENSITIES[s.density](out[:, 0] + s.density_bias + blob) * rise * rise * (3 - 2 * rise)
    return density, torch.sigmoid(out[:, 1:])

  def _encode(self, points: torch.Tensor) -> torch.Tensor:
    sin, cos = torch.sin(math.pi * points), torch.cos(math.pi * points)
    out = [points]
    for octave in range(self.settings.octaves):
      # Double angles give each octave from the one before, without another sine.
      if octave:
        sin, cos = 2 * sin * cos, 1 - 2 * sin * sin
      out += [sin, cos]
    return torch.cat(out, -1)

  def with_normals(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns density, albedo and outward unit normals [N, 3]; all are differentiable."""
    points = points.detach().requires_grad_()
    density, albedo = self(points)
    # create_graph: the loss depends on normals, so the gradient is differentiated again.
    gradient, = torch.autograd.grad(density.sum(), points, create_graph=True)
    return density, albedo, _unit(-gradient)

  def in_blocks(self, points: torch.Tensor, normals: bool) -> tuple[torch.Tensor, ...]:
    """Evaluates `with_normals`, or density and albedo alone, `settings.block` points at a time."""
    at = self.with_normals if normals else self
    if not self.settings.block or points.shape[0] <= self.settings.block:
      return at(points)
    return tuple(map(torch.cat, zip(*map(at, points.split(self.settings.block)))))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
  # The sum under the root keeps the derivative finite for a vector of 0.
  return vectors * torch.rsqrt((vectors**2).sum(-1, keepdim=True) + 1e-12)


def rays(position: torch.Tensor, rotation: torch.Tensor, focal: torch.Tensor,
         s: RendererSettings) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns origins and unit directions [R, 3] of cameras [V].

  The rays are ordered by view, and within a view by row.
  """
  x = (torch.arange(s.width) + 0.5 - s.width / 2) / s.height
  # Image rows go down, the camera's y goes up.
  y = (s.height / 2 - torch.arange(s.height) - 0.5) / s.height
  y, x = torch.meshgrid(y, x, indexing="ij")
  focal = focal[:, None, None]
  local = torch.stack([x / focal, y / focal, -torch.ones_like(x).expand(focal.shape[0], -1, -1)], -1)
  directions = F.normalize(torch.einsum("vij,vhwj->vhwi", rotation, local), dim=-1)
  return position[:, None, None].expand_as(directions).reshape(-1, 3), directions.reshape(-1, 3)


def occupied_cells(grid: torch.Tensor, s: RendererSettings) -> torch.Tensor:
  """Returns bool [G, G, G]: cells that are dense enough, and their neighbours."""
  # An optical depth over one spacing, as a density; never above the mean, or a faint field would be all empty.
  threshold = s.occupied_depth / (2 * s.bound / s.candidates)
  cells = (grid > torch.clamp(grid.mean(), max=threshold)).float()
  return F.max_pool3d(cells[None, None], 3, stride=1, padding=1)[0, 0] > 0


def choose_samples(origins: torch.Tensor, directions: torch.Tensor, jitter: torch.Tensor, grid: torch.Tensor | None,
                   s: RendererSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
  """Returns the samples, nearest first, and the spacing.

  A sample is (index into the [S, R] table, distance, point).
  """
  spacing = 2 * s.bound / s.candidates
  start = -(origins * directions).sum(-1) - s.bound
  t = start + (torch.arange(s.candidates)[:, None] + jitter) * spacing
  x, y, z = (origins[:, axis] + t * directions[:, axis] for axis in range(3))
  # t > 0: a camera near the ball has candidates behind itself.
  wanted = (t > 0) & (x * x + y * y + z * z < s.bound**2)
  if grid is not None:
    size, cells = grid.shape[0], occupied_cells(grid, s)
    i, j, k = (((p + s.bound) * (size / (2 * s.bound))).clamp(0, size - 1).long() for p in (x, y, z))
    wanted &= cells.reshape(-1)[(i * size + j) * size + k]
  pixels = s.height * s.width  # each view has its own budget
  of_views = wanted.reshape(s.candidates, -1, pixels).transpose(0, 1).flatten(1)
  # cumsum counts wanted samples, nearest first; beyond the budget the farthest are dropped.
  kept = of_views & (of_views.cumsum(1) <= s.samples * pixels)
  index = kept.reshape(-1, s.candidates, pixels).transpose(0, 1).reshape(-1).nonzero()[:, 0]
  ray, t = index % origins.shape[0], t.reshape(-1)[index]
  return index, t, origins[ray] + t[:, None] * directions[ray], spacing


def render(field: TorchMLPField, inputs: dict[str, Any], grid: torch.Tensor | None,
           s: RendererSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
  """Renders images, opacity and the orientation penalty of `peer.torch_inputs`.

  The shapes are [V, H, W, 3], [R] and [R].
  """
  origins, directions = rays(inputs["position"], inputs["rotation"], inputs["focal"], s)
  count = origins.shape[0]
  index, t, points, spacing = choose_samples(origins, directions, inputs["jitter"], grid, s)
  ray, shaded = index % count, inputs["shaded"]
  density, albedo, *normals = field.in_blocks(points, normals=shaded)

  depths = torch.zeros(s.candidates * count).index_put((index,), density * spacing).reshape(s.candidates, count)
  # cumsum includes a sample itself, so its own depth is added back; expm1 keeps small depths exact.
  weights = (torch.exp(depths - depths.cumsum(0)) * -torch.expm1(-depths)).reshape(-1)[index]
  colour, penalty = albedo, torch.zeros(count)
  if shaded:
    light = inputs["light"].repeat_interleave(s.height * s.width, 0)[ray]
    cosine = (normals[0] * _unit(light - points)).sum(-1).clamp(min=0)
    reflectance = torch.ones_like(albedo) if inputs["textureless"] else albedo
    colour = reflectance * (inputs["ambient"] + inputs["diffuse"] * cosine)[:, None]
    away = (normals[0] * directions[ray]).sum(-1).clamp(min=0)
    # Detached: the penalty turns normals, and does not thin out the object.
    penalty = penalty.index_add(0, ray, weights.detach() * away**2)
  opacity = torch.zeros(count).index_add(0, ray, weights)
  rgb = torch.zeros(count, 3).index_add(0, ray, weights[:, None] * colour)
  rgb = rgb + (1 - opacity)[:, None] * inputs["background"].reshape(-1, 3)
  return rgb.reshape(-1, s.height, s.width, 3), opacity, penalty
