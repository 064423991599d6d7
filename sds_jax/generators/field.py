"""A radiance field seen through random cameras, as a generator: DreamFusion's volume (arXiv:2209.14988, section 3.1).

  key    -> cameras, light, shading mode, background        one key a view, by its number in the whole step
  params -> samples along rays -> composited images

The field is an MLP or a hash grid; an occupancy grid in `buffers` keeps empty space free of samples.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sds_jax.fields.background import Background
from sds_jax.fields.field import Field
from sds_jax.generators import particles as particles_lib
from sds_jax.generators.coarse_to_fine import FieldSchedule
from sds_jax.generators.protocol import Draws, Exported, Views
from sds_jax.generators.viewpoints import Viewpoints
from sds_jax.prng import as_threefry
from sds_jax.rendering import occupancy
from sds_jax.rendering.render import RenderOptions, render_image, render_views
from sds_jax.settings.export import ExportSettings
from sds_jax.settings.render import OccupancySettings
from sds_jax.types import Array, Camera, Params, RenderOutput
from sds_jax.views import cameras, lights
from sds_jax.views.lights import ALBEDO, LAMBERTIAN, Shading

if TYPE_CHECKING:
  import trimesh


@dataclasses.dataclass(frozen=True)
class FieldGenerator:
  """A field, its background, and the distributions of cameras and lights; no arrays.

  Attributes:
    field, background: the optimised functions; the parameters are {"field": ..., "background": ...}.
    options: of the training renders; the field's normals are chosen by `normals`.
    viewpoints: the cameras of the views.
    lights: how lights and shading modes are drawn.
    size: height and width of the training renders.
    occupancy: resolution of the occupancy grid, and when it is updated.
    schedule: changes of the field over the run.
    particles: number of independent objects.
    normals: "analytic" or "difference", for shaded renders.
    always_normals: whether unshaded renders have normals too, for losses that read normals.
    as_latent: whether normals and opacity stand in for the latent; colours are then not learnt, and nothing is shaded.
    mesh: resolution, threshold and files of the mesh.
  """
  field: Field
  background: Background
  options: RenderOptions
  viewpoints: Viewpoints
  lights: lights.LightDistribution
  size: int
  occupancy: OccupancySettings
  schedule: FieldSchedule = FieldSchedule()
  particles: int = 1
  normals: str = "analytic"
  always_normals: bool = False
  as_latent: bool = False
  mesh: ExportSettings = ExportSettings()

  @property
  def together(self) -> int:
    """Number of neighbouring views that one device must hold: a group of views of each object."""
    return self.particles * self.viewpoints.group

  def init(self, key: Array) -> tuple[Params, Any]:
    """Returns {"field", "background"} and a full occupancy grid (None without one); consumes `key`."""
    def new(key: Array) -> tuple[Params, Any]:
      k_field, k_background = jax.random.split(key)
      params = dict(field=self.field.init(k_field), background=self.background.init(k_background))
      return params, occupancy.full_grid(self.occupancy.resolution) if self.occupancy.every else None

    return particles_lib.init(self.particles, new, key)

  def render(self, params: Params, buffers: Any, draws: Draws) -> Views:
    """Renders the views of a step through random cameras, each particle through its share of the cameras."""
    cams, azimuth, elevation = self.viewpoints.draw(draws)
    shading = lights.sample_shading(draws.keys["shading"], draws.progress, self.lights)
    one = lambda params, grid, cams, index: self.render_step(  # noqa: E731
        params, grid, cams, shading, draws._replace(index=index))
    out, overflow = particles_lib.each(
        self.particles, one, params, buffers,
        *particles_lib.deal(self.particles, (cams, draws.index), self.viewpoints.group))
    out = particles_lib.gather(self.particles, out, self.viewpoints.group)
    shaded = jnp.zeros(()) if self.as_latent else (shading.mode != ALBEDO).astype(jnp.float32)
    metrics = dict(mean_opacity=jnp.mean(out.opacity), overflow=jnp.mean(overflow), shaded=shaded)
    return Views(out.rgb, metrics, cams, azimuth, elevation, None, out)

  def render_step(self, params: Params, grid: Any, cams: Camera, shading: Shading,
                  draws: Draws) -> tuple[RenderOutput, Array]:
    """Renders one object through cameras [B]; returns images [B, H, W] and the overflow of the sample budget []."""
    key, height, width = as_threefry(draws.keys["rest"]), self.size, self.size
    # By the number of the view in the whole step, so that no draw depends on the number of devices.
    split = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))
    keys, group = split(draws.index), self.viewpoints.group
    # The views of a group have one background, and a light on the same side of each camera.
    shared = keys if group == 1 else split(draws.index // group)
    light = jax.vmap(lambda k, p: lights.sample_light(k, p, self.lights))(shared[:, 0], cams.position)
    rays = jax.vmap(lambda camera: cameras.camera_rays(camera, height, width))(cams)
    behind = jax.vmap(lambda k, d: self.background.apply(params["background"], k, d.reshape(-1, 3)))(
        shared[:, 1], rays.directions).reshape(rays.directions.shape)
    field, field_params = self.schedule.at(self.field, params["field"], draws.progress)

    def shaded(field_params: Params) -> tuple[RenderOutput, Array]:
      return render_views(field, field_params, cams, height, width, behind, keys[:, 2], grid=grid, light=light,
                          shade=shading, options=dataclasses.replace(self.options, normals=self.normals))

    def bare(field_params: Params) -> tuple[RenderOutput, Array]:
      normals = self.normals if self.as_latent or self.always_normals else "none"
      return render_views(field, field_params, cams, height, width, behind, keys[:, 2], grid=grid,
                          options=dataclasses.replace(self.options, normals=normals))

    if self.lights.shaded == 0.0 or self.as_latent:
      return bare(field_params)
    # Normals cost more than all else, so an unshaded step takes a branch without them. The mode is one scalar for the
    # whole step: a mode per view would turn `cond` into `select` under vmap, which computes both branches.
    return jax.lax.cond(shading.mode == ALBEDO, bare, shaded, field_params)

  def render_reference(self, params: Params, grid: Any, camera: Camera, background: Array, key: Array, progress: Array,
                       normals: bool) -> tuple[RenderOutput, Array]:
    """Renders one unshaded view of one object over a given background.

    Args:
      params, grid: of the object.
      camera: leaves [1, ...].
      background: [1, size, size, 3].
      key: consumed by the places of samples.
      progress: [] fraction of the run.
      normals: whether the view has normals, which cost time.

    Returns:
      The view [1, size, size] and the overflow of the sample budget [].
    """
    field, field_params = self.schedule.at(self.field, params["field"], progress)
    options = dataclasses.replace(self.options, normals=self.normals if normals else "none")
    return render_views(field, field_params, camera, self.size, self.size, background, key[None], options=options,
                        grid=grid)

  def update_buffers(self, params: Params, buffers: Any, step: Array, progress: Array, key: Array) -> Any:
    """Updates a share of the occupancy grid every `occupancy.every` steps, from `occupancy.start_step` on."""
    o = self.occupancy
    if not o.every:
      return buffers

    def update(grid: Any, field_params: Params) -> Any:
      field, field_params = self.schedule.at(self.field, field_params, progress)
      return occupancy.update(grid, field, field_params, key, step // o.every, bound=self.options.bound, decay=o.decay)

    # A branch, not a `where`: the update evaluates the field at many points, and most steps skip it.
    due = (step % o.every == 0) & (step >= o.start_step)
    return jax.lax.cond(due, lambda grid: particles_lib.each(self.particles, update, grid, params["field"]),
                        lambda grid: grid, buffers)

  def render_camera(self, params: Params, grid: Any, camera: Camera, size: int, num_samples: int,
                    ambient: Array) -> RenderOutput:
    """Renders one object through one camera on white, lit from above the camera's right shoulder.

    Args:
      params, grid: of one particle.
      size: height and width of the image.
      num_samples: samples along a ray.
      ambient: [] in [0, 1], the share of ambient light; 1 is bare albedo.
    """
    options = dataclasses.replace(self.options, candidates=num_samples, samples=num_samples, normals="analytic")
    right, up = camera.rotation[:, 0], camera.rotation[:, 1]
    light = camera.position + 0.8 * right + 1.6 * up
    shading = Shading(mode=jnp.int32(LAMBERTIAN), ambient=ambient, diffuse=1.0 - ambient)
    return render_image(self.field.apply, params["field"], camera, size, size, jnp.ones((size, size, 3)),
                        options=options, grid=grid, light=light, shade=shading)

  def render_albedo(self, params: Params, grid: Any, camera: Camera, size: int) -> tuple[Array, Array]:
    """Returns albedo [size, size, 3] over black and opacity [size, size] of one object through one camera."""
    out = render_image(self.field.apply, params["field"], camera, size, size, jnp.zeros((size, size, 3)),
                       options=self.options, grid=grid)
    return out.rgb, out.opacity

  def density(self, params: Params, points: Array) -> Array:
    """Returns the density [N] of one object at points [N, 3]."""
    return self.field.apply(params["field"], points).density

  def make_mesh(self, params: Params) -> trimesh.Trimesh:
    """Returns the coloured surface of one object in the world frame.

    Raises:
      ValueError: there is no surface, because the field is empty or full.
    """
    from sds_jax.io import mesh as mesh_lib  # trimesh takes a second to import, which few commands need
    # 5 % beyond the ball, where the density is 0, so that the surface is closed.
    return mesh_lib.extract_mesh(*self._point_functions(params), resolution=self.mesh.mesh_resolution,
                                 bound=self.options.bound * 1.05, threshold=self.mesh.mesh_threshold or "auto")

  def _point_functions(self, params: Params) -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    """Returns the density [N] and the colour [N, 3] of one object as functions of NumPy points [N, 3]."""
    apply, field_params = _compiled(self.field), params["field"]
    at = lambda points: apply(field_params, jnp.asarray(points, jnp.float32))  # noqa: E731
    return lambda points: np.asarray(at(points).density), lambda points: np.asarray(at(points).albedo)

  def export(self, params: Params, buffers: Any, folder: Path) -> Exported:
    """Writes the mesh of one object; see `make_mesh` for errors, and `io.asset.write_asset` for the files."""
    del buffers
    from sds_jax.io import asset
    mesh = self.make_mesh(params)
    # Half a voxel: at the surface itself the colour of a thin density is that of the air.
    inset = self.options.bound * 1.05 / (self.mesh.mesh_resolution - 1)
    paths, described = asset.write_asset(
        mesh, self._point_functions(params)[1], folder, faces=self.mesh.faces, texture_size=self.mesh.texture_size,
        formats=self.mesh.formats, scale=self.mesh.scale, inset=inset)
    return Exported(dict(mesh=paths), mesh, described)


# Cached by field: what is compiled for one object serves all objects of a set of runs.
@functools.lru_cache(maxsize=4)
def _compiled(field: Field) -> Callable[..., Any]:
  return jax.jit(field.apply)
