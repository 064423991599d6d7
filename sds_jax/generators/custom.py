"""A user's own 3D representation or renderer as a generator, by the name "package.module:function".

The function takes the side of the training renders in pixels and returns an object with

  init(key) -> params                                  a pytree of floating-point arrays; consumes the key
  render(params, camera, size, key) -> dict            one image; differentiable in params; consumes the key
      rgb      [size, size, 3] in [0, 1], colours times opacity, as over black
      opacity  [size, size] in [0, 1]
      depth    [size, size], world units; optional
      normals  [size, size, 3], unit normals times opacity; optional
  export(params, folder) -> {what: path}               optional; writes the files that only this representation has

`camera` is a `sds_jax.Camera` (position [3], rotation [3, 3], focal []); the object lies in the unit ball, z up. The
library draws the cameras, composites over the background, and batches by `vmap`.
"""
from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sds_jax.fields.background import Background
from sds_jax.generators import particles as particles_lib
from sds_jax.generators.catalogue import GeneratorError
from sds_jax.generators.protocol import Draws, Exported, Views
from sds_jax.generators.viewpoints import Viewpoints
from sds_jax.io import run_files
from sds_jax.prng import as_threefry
from sds_jax.types import Array, Camera, Params, RenderOutput
from sds_jax.views import cameras


class Representation(Protocol):
  """The object that a user's function returns; the docstring of this module has the details."""

  def init(self, key: Array) -> Params:
    """Returns the parameters to begin with; consumes `key`."""

  def render(self, params: Params, camera: Camera, size: int, key: Array) -> dict[str, Array]:
    """Renders one image of side `size` through one camera; consumes `key`."""


# Compared and hashed by identity, because a user's object may have no hash.
@dataclasses.dataclass(frozen=True, eq=False)
class CustomGenerator:
  """A user's representation seen through random cameras, over the settings' background.

  Attributes:
    representation: the user's object.
    background: of the settings; learnt backgrounds are learnt along.
    viewpoints: the cameras of the views.
    size: height and width of the training renders.
    particles: number of independent objects.
  """
  representation: Representation
  background: Background
  viewpoints: Viewpoints
  size: int
  particles: int = 1

  @property
  def together(self) -> int:
    """Number of neighbouring views that one device must hold: a group of views of each object."""
    return self.particles * self.viewpoints.group

  def init(self, key: Array) -> tuple[Params, None]:
    """Returns {"field": the representation's, "background"} and no buffers; consumes `key`."""
    def new(key: Array) -> Params:
      k_object, k_background = jax.random.split(key)
      return dict(field=self.representation.init(k_object), background=self.background.init(k_background))

    return particles_lib.init(self.particles, new, key), None

  def render(self, params: Params, buffers: Any, draws: Draws) -> Views:
    """Renders the views of a step, each particle through its share of the cameras."""
    del buffers
    cams, azimuth, elevation = self.viewpoints.draw(draws)
    key, group = as_threefry(draws.keys["rest"]), self.viewpoints.group
    split = lambda i: jax.random.split(jax.random.fold_in(key, i))  # noqa: E731
    # The views of a group have one background.
    one = lambda params, cams, index: jax.vmap(  # noqa: E731
        lambda camera, i: self._view(params, camera, split(i // group)[0], split(i)[1]))(cams, index)
    out = particles_lib.each(
        self.particles, one, params, *particles_lib.deal(self.particles, (cams, draws.index), group))
    out = particles_lib.gather(self.particles, out, group)
    return Views(out.rgb, dict(mean_opacity=jnp.mean(out.opacity)), cams, azimuth, elevation, None, out)

  def _view(self, params: Params, camera: Camera, k_background: Array, k_render: Array) -> RenderOutput:
    """Renders one view [S, S] over its background; consumes both keys."""
    directions = cameras.camera_rays(camera, self.size, self.size).directions
    behind = self.background.apply(params["background"], k_background, directions.reshape(-1, 3))
    return composite(self.representation.render(params["field"], camera, self.size, k_render),
                     behind.reshape(directions.shape))

  def render_reference(self, params: Params, grid: Any, camera: Camera, background: Array, key: Array, progress: Array,
                       normals: bool) -> tuple[RenderOutput, Array]:
    """Renders one view [1, size, size] over `background` [1, size, size, 3]; no samples overflow; consumes `key`."""
    del grid, progress, normals
    rendered = self.representation.render(params["field"], jax.tree.map(lambda leaf: leaf[0], camera), self.size, key)
    out = composite(rendered, background[0])
    return jax.tree.map(lambda leaf: leaf[None], out), jnp.zeros(())

  def update_buffers(self, params: Params, buffers: Any, step: Array, progress: Array, key: Array) -> Any:
    """Returns `buffers`: a user's representation has none."""
    del params, step, progress, key
    return buffers

  def render_camera(self, params: Params, grid: Any, camera: Camera, size: int, num_samples: int,
                    ambient: Array) -> RenderOutput:
    """Renders one object through one camera on white; the other arguments are for fields."""
    del grid, num_samples, ambient
    # A fixed key, so that equal states give equal files.
    out = self.representation.render(params["field"], camera, size, jax.random.key(0))
    return composite(out, jnp.ones((size, size, 3)))

  def render_albedo(self, params: Params, grid: Any, camera: Camera, size: int) -> tuple[Array, Array]:
    """Returns colour [size, size, 3] over black and opacity [size, size] of one object through one camera."""
    del grid
    out = self.representation.render(params["field"], camera, size, jax.random.key(0))
    return out["rgb"], out["opacity"]

  density = None
  """A user's representation need not have a density, so volumes are not scored."""

  def export(self, params: Params, buffers: Any, folder: Path) -> Exported:
    """Calls the representation's own `export`, if it has one.

    Raises:
      GeneratorError: that function fails or returns no paths. An OSError, such as of a full disk, passes.
    """
    del buffers
    export = getattr(self.representation, "export", None)
    try:
      returned = dict(export(params["field"], folder) or {}) if export else {}
      written = {what: Path(path) for what, path in returned.items()}
    except OSError:
      raise
    except Exception as error:  # whatever a user's code raises; the other outputs are still written
      raise GeneratorError(f"export of your representation does not work ({type(error).__name__}: {error}); it must "
                           "return {what: path} of the files that it has written") from error
    for path in written.values():
      run_files.note(path)
    return Exported({what: [path] for what, path in written.items()})


def composite(out: dict[str, Array], background: Array) -> RenderOutput:
  """Returns one image [S, S] of `Representation.render` over `background` [S, S, 3]."""
  opacity = out["opacity"]
  zeros = jnp.zeros_like(opacity)
  return RenderOutput(rgb=out["rgb"] + (1.0 - opacity)[..., None] * background, opacity=opacity,
                      depth=out.get("depth", zeros), normals=out.get("normals", jnp.zeros_like(out["rgb"])),
                      orientation=zeros)


_EXPECTED = ("it must be an importable module and its function (size) -> an object with init(key) -> params and "
             "render(params, camera, size, key) -> dict(rgb=[size, size, 3], opacity=[size, size])")


def load_representation(name: str, size: int, read: Mapping[str, str] = MappingProxyType({})) -> Representation:
  """Imports and calls the user's function, and checks shapes without computing anything.

  Args:
    name: "package.module:function".
    size: side of the training renders, pixels.
    read: {"depth" or "normals": setting with its value that reads the image}.

  Raises:
    GeneratorError: the module cannot be imported, the function fails, or shapes or types are wrong.
  """
  module, _, function = name.partition(":")
  camera = jax.eval_shape(lambda: cameras.orbit(0.0, 0.0, 2.7, 0.8))
  try:
    representation = getattr(importlib.import_module(module), function)(size)
    params = jax.eval_shape(representation.init, jax.random.key(0))
    out = jax.eval_shape(lambda p, c, k: representation.render(p, c, size, k), params, camera, jax.random.key(0))
    shapes = {field: (leaf.shape, leaf.dtype) for field, leaf in out.items()}
  except Exception as error:  # whatever a user's code raises
    raise GeneratorError(f"{name!r} does not work ({type(error).__name__}: {error}); {_EXPECTED}") from error
  wanted = dict(rgb=(size, size, 3), opacity=(size, size), depth=(size, size), normals=(size, size, 3))
  # rgb and opacity are listed first, so that a missing one is reported, too.
  for field in ("rgb", "opacity", *shapes):
    if field not in wanted:
      raise GeneratorError(f"{name!r}: render returns {field!r}; legal: {', '.join(wanted)}")
    if shapes.get(field) != (wanted[field], jnp.float32):
      shape, dtype = shapes.get(field, ("nothing", ""))
      raise GeneratorError(f"{name!r}: render returns {field} {shape} {dtype}; it must be {wanted[field]} float32")
  for field in read.keys() - shapes.keys():
    raise GeneratorError(f"{name!r}: render returns no {field}, which {read[field]} reads: return {field}, or leave "
                         "that setting at its default")
  if wrong := [leaf for leaf in jax.tree.leaves(params) if not jnp.issubdtype(leaf.dtype, jnp.floating)]:
    raise GeneratorError(f"{name!r}: init returns a parameter {wrong[0]}: only floating-point arrays can be learnt; "
                         "keep other arrays in the object")
  return representation
