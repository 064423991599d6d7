"""The texture of a fixed solid, learnt through cameras that change at every step (Distill 2018, "3D objects")."""
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sds_jax.fields.background import plain_colour
from sds_jax.generators import surfaces
from sds_jax.generators.parameterization import Parameterization
from sds_jax.generators.fourier import amplitudes, decorrelated_to_rgb, init_spectrum, synthesize
from sds_jax.types import Array, Camera, Params
from sds_jax.views import cameras

NUM_VIEWS = 8
"""Number of cameras around the solid whose renders `views.png` shows."""


def make_texture(size: int, shape: str = "cube", extent: float = 0.4, resolution: int = 32, decay: float = 1.0,
                 init_std: float = 0.01) -> Parameterization:
  """Returns a generator of unlit renders of a textured solid.

  Camera and near-grey background are random.

  Args:
    size: side of the images.
    shape: a name in `surfaces.SURFACES`; the shape is fixed, and only its colours are learnt.
    extent: radius of the sphere or half-width of the cube, world units.
    resolution: height of the texture, or of each of the cube's six faces, in texels.
    decay, init_std: as in `fourier.make_fourier`; the texture is a spectrum, too.
  """
  surface, charts, aspect, closed = surfaces.SURFACES[shape]
  # The chart of a sphere is twice as wide as high: 360 degrees by 180.
  scale = amplitudes(resolution, aspect * resolution, decay)

  def init(key: Array) -> Params:
    draw = lambda k: init_spectrum(k, resolution, aspect * resolution, 3, init_std)  # noqa: E731
    return dict(spectrum=jax.vmap(draw)(jax.random.split(key, charts)))

  def texture(params: Params) -> Array:
    return jax.nn.sigmoid(decorrelated_to_rgb(jax.vmap(lambda s: synthesize(s, scale, aspect * resolution))(
        params["spectrum"])))

  def camera(key: Array) -> Camera:
    drawn, _, _ = cameras.sample_camera(jax.random.split(key)[0])
    return jax.tree.map(lambda leaf: leaf[None], drawn)

  def render(colours: Array, view: Camera, background: Array) -> Array:
    hit, chart, uv = surface(cameras.camera_rays(view, size, size), extent)
    # Rays that miss look up any texel, which `where` drops.
    return jnp.where(hit[..., None], surfaces.lookup(colours, chart, uv, closed), background[None, None])

  def apply(params: Params, key: Array) -> Array:
    # Half 0 of the key draws the camera, in `camera` too, so that `cameras` reports this render's camera.
    background = plain_colour(jax.random.split(key)[1])
    return render(texture(params), jax.tree.map(lambda leaf: leaf[0], camera(key)), background)[None]

  def render_ring(params: Params) -> Array:
    # An eighth of pi off the axes, so that each view of a cube shows two of its upright sides.
    angles = 2 * math.pi * jnp.arange(NUM_VIEWS, dtype=jnp.float32) / NUM_VIEWS + math.pi / 8
    # In turn from above and from a little below, radians.
    lift = jnp.where(jnp.arange(NUM_VIEWS) % 2 == 0, 0.5, -0.1)
    views = jax.vmap(lambda a, e: cameras.orbit(a, e, 2.7, math.radians(46.0)))(angles, lift)
    return jax.vmap(lambda view: render(texture(params), view, jnp.ones(3)))(views)

  def extras(params: Params) -> dict[str, Array]:
    strip = lambda images: jnp.concatenate(list(images), axis=1)  # noqa: E731
    return dict(texture=strip(texture(params)), views=strip(render_ring(params)))

  return Parameterization(init, apply, cameras=camera, show=lambda params: render_ring(params)[:1], extras=extras)
