"""The protocol of a generator: parameters in, views out.

A step uses nothing else of its generator than this file defines. A field that is rendered through cameras
(`generators/field.py`), an image with parameters (`generators/images.py`), and a user's own 3D representation
(`generators/custom.py`) all follow it.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sds_jax.types import Array, Camera, Params, RenderOutput

if TYPE_CHECKING:
  import trimesh


class Draws(NamedTuple):
  """The random draws of a step, as `Generator.render` consumes them.

  Attributes:
    keys: the step's keys by stream. `views` (cameras), `rest` (background, light, jitter) and `shading` are consumed.
    index: [B] int32, numbers of the rendered views among all views of the step, so that a view does not depend on the
      number of devices.
    progress: [] float32, fraction of the run that is done.
  """
  keys: dict[str, Array]
  index: Array
  progress: Array


class Views(NamedTuple):
  """The images of a step and their viewpoints.

  Attributes:
    images: [B, H, W, 3] float32 in [0, 1], as the prior gets them.
    metrics: [] float32 each, for the log.
    cameras: leaves [B, ...]; None for images without a camera.
    azimuth, elevation: [B] radians, which choose the view's prompt; None where `frame` chooses.
    frame: [B] int32, the number of the frame, which chooses the prompt; None for objects.
    render: the whole output of a renderer, with opacity, depth and normals; None for plain images.
  """
  images: Array
  metrics: dict[str, Array]
  cameras: Camera | None = None
  azimuth: Array | None = None
  elevation: Array | None = None
  frame: Array | None = None
  render: RenderOutput | None = None


class Exported(NamedTuple):
  """The files that a generator has written.

  Attributes:
    files: {what the files show: their paths}, the most interesting first.
    mesh: the surface in the world frame, for the report; None without one.
    described: one line about the files, to be printed; may be empty.
  """
  files: dict[str, list[Path]]
  mesh: trimesh.Trimesh | None = None
  described: str = ""


class Generator(Protocol):
  """The generator of the views that a step optimises.

  All functions are pure. `buffers` are arrays that the generator keeps beside its parameters and does not learn, such
  as an occupancy grid; None without any. With `particles` P > 1 every leaf of parameters and buffers may have
  a leading axis [P]; the generator decides.

  Attributes:
    particles: number of independent objects or images.
    together: number of neighbouring views that one device must hold: those of different objects or frames, and those
      that a prior looks at together. A device gets whole groups.
  """
  particles: int
  together: int

  def init(self, key: Array) -> tuple[Params, Any]:
    """Returns (params, buffers) before the first update; consumes `key`."""

  def render(self, params: Params, buffers: Any, draws: Draws) -> Views:
    """Renders the views `draws.index` of a step; differentiable in `params`."""

  def update_buffers(self, params: Params, buffers: Any, step: Array, progress: Array, key: Array) -> Any:
    """Returns the buffers after step number `step` ([] int32); consumes `key`."""

  def export(self, params: Params, buffers: Any, folder: Path) -> Exported:
    """Writes the finished object into `folder`, each file whole or not at all.

    Raises:
      ValueError: there is nothing to write, such as a field without a surface.
    """
