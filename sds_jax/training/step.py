"""One step of text-to-3D as one pure function: views -> render -> distil -> update. Joins rendering and priors.

  step, key -> cameras, light, shading, t, noise        fold_in(key, step), then the global index of each view
  params    -> render -> encode -> z_t -> eps_hat       the frozen network is called forward only
  w(t) (eps_hat - eps) is the cotangent of the render; optax moves the parameters.
"""
from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.fields.background import Background
from sds_jax.fields.field import Field
from sds_jax.priors.prior import Prior
from sds_jax.rendering import occupancy
from sds_jax.rendering.render import RenderOptions, render_views
from sds_jax.training import conditions, estimator_state, losses, particles, parts, update
from sds_jax.training.conditions import Text
from sds_jax.training.config import scalar_spec
from sds_jax.training.distil import distil
from sds_jax.training.parallel import Share
from sds_jax.training.state import TrainState, init_state, make_optimizer
from sds_jax.training.update import StepFn, progress_of
from sds_jax.types import Array, Camera, Params, RenderOutput
from sds_jax.views import cameras, lights
from sds_jax.views.lights import ALBEDO, Shading


CPU_BLOCK, ACCELERATOR_BLOCK = 4096, 2**18
"""Points that the field sees at a time: as many as stay in a CPU's cache, or as leave room on a GPU."""


@dataclasses.dataclass(frozen=True)
class Scene:
  """The functions that a config stands for; no arrays.

  Attributes:
    config: the validated settings.
    field, background: what is optimised.
    options: of the training renders, without normals.
    cameras: where views are drawn from.
    lights: how lights and shading modes are drawn.
    optimizer: of all parameters.
    as_latent: whether normals and opacity are the latent that the prior sees, and colours are left out.
    facing: whether unshaded renders have normals too, for `loss.orientation`.
  """
  config: ml_collections.FrozenConfigDict
  field: Field
  background: Background
  options: RenderOptions
  cameras: cameras.CameraDistribution
  lights: lights.LightDistribution
  optimizer: optax.GradientTransformation
  as_latent: bool = False
  facing: bool = False


def make_scene(config: ml_collections.FrozenConfigDict, as_latent: bool = False) -> Scene:
  """Build the functions of a validated config, for all of a run or one stage of it; allocates nothing."""
  radians = lambda pair: tuple(math.radians(v) for v in pair)  # noqa: E731
  c, s, r = config.camera, config.shading, config.render
  shaded = s.lambertian + s.textureless
  on_cpu = jax.default_backend() == "cpu"
  block = {-1: CPU_BLOCK if on_cpu else ACCELERATOR_BLOCK, 0: None}.get(r.block_points, r.block_points)
  few = 3 * r.num_samples // 8 if on_cpu and r.block_points == -1 and r.num_samples > 2 else None
  return Scene(
      config=config,
      field=parts.make_field(config),
      background=parts.make_background(config),
      options=RenderOptions(bound=config.field.bound, candidates=r.candidates, samples=r.num_samples,
                            few=few, block_points=block),
      cameras=cameras.CameraDistribution(
          elevation=radians(c.elevation_deg), distance=tuple(c.distance), fov_y=radians(c.fov_deg),
          focal=tuple(c.focal) if any(c.focal) else None, position_jitter=c.position_jitter, look_at_std=c.target_std,
          up_std=c.up_std),
      lights=lights.LightDistribution(
          distance=tuple(s.distance), shaded=shaded, textureless=s.textureless / shaded if shaded else 0.0,
          albedo_only=s.albedo_until, ambient=s.ambient, diffuse=1.0 - s.ambient,
          ambient_spread=s.ambient_spread),
      optimizer=make_optimizer(config),
      as_latent=as_latent,
      facing=config.job == "image3d" and config.loss.orientation != (0.0,))


def new_state(scene: Scene, key: Array) -> TrainState:
  """A state before its first update, without what the estimator keeps; consumes `key`."""
  def new(key: Array) -> tuple[Params, Any]:
    k_field, k_background = jax.random.split(key)
    params = dict(field=scene.field.init(k_field), background=scene.background.init(k_background))
    grid = occupancy.full_grid(scene.config.occupancy.resolution) if scene.config.occupancy.every else None
    return params, grid

  params, grid = particles.init(scene.config, new, key)
  return init_state(params, scene.optimizer, grid, scene.config.optimizer.ema_decay > 0)


def begin(scene: Scene, prior: Prior, prior_params: Params, text: Text, key: Array,
          source: TrainState | None = None) -> TrainState:
  """The state of a run before its first update, with what its estimator keeps; consumes `key`.

  Args:
    text: of `conditions.embed_prompts`.
    source: of the object that is edited, of the same field; it is also where the run begins. None: a new object.
  """
  state = new_state(scene, key)
  return estimator_state.start(scene.config, prior, prior_params, text, state, estimator_state.own_key(key), source)


def make_step(scene: Scene, prior: Prior, share: Share = Share()) -> StepFn:
  """The step (state, prior_params, text, key) -> (state, metrics) of `update.make_step`.

  `text` is of `embed_prompts`.
  """
  config = scene.config

  def loss_fn(learnt: tuple[Params, Params], state: TrainState, prior_params: Params, text: Text,
              keys: dict[str, Array], index: Array):
    params, score = learnt
    progress = progress_of(config, state.step)
    views = observe(scene, prior, params, state, prior_params, text, keys, index)
    loss, aux = distil(config, prior, prior_params, views.x, views.cond, keys, progress, dict(views.own, score=score),
                       index)
    terms = {name: fn(views.out) for name, fn in losses.LOSSES.items()}
    for name, value in terms.items():
      loss += schedule_value(scalar_spec(config.loss[name]), progress) * value
    metrics = dict(terms, sds_grad_norm=jnp.mean(aux.grad_norm), mean_opacity=jnp.mean(views.out.opacity),
                   **views.metrics)
    return loss, metrics

  return update.make_step(config, scene.optimizer, loss_fn, functools.partial(look_again, scene), share)


class Views(NamedTuple):
  """What a step works on.

  Attributes:
    out: the renders.
    x: [B, *x_shape], what the prior makes of them.
    cond: what it is told of them, as `guidance.guided` wants it.
    own: what some estimators want besides; of `distil`.
    metrics: [] float32 each.
    places: cameras, azimuths and elevations of the views, leaves [B, ...].
  """
  out: RenderOutput
  x: Array
  cond: dict[str, Any]
  own: dict[str, Any]
  metrics: dict[str, Array]
  places: tuple[Camera, Array, Array]


def observe(scene: Scene, prior: Prior, params: Params, state: TrainState, prior_params: Params, text: Text,
            keys: dict[str, Array], index: Array | None = None) -> Views:
  """A step's renders, and what the prior makes of them and is told of them.

  Args:
    params: what is rendered; `state` gives the number of the step, the occupancy grid, and what the estimator keeps.
    keys: of `step_keys`; views, rest, shading and encode are consumed.
    index: [B] int32, which of the step's views these are; None: all.
  """
  index = jnp.arange(scene.config.training.views) if index is None else index
  progress = progress_of(scene.config, state.step)
  cams, azimuth, elevation = _draw_cameras(scene, keys["views"], index)
  shading = lights.sample_shading(keys["shading"], progress, scene.lights)

  def see(params: Params, grid: Any) -> tuple[RenderOutput, Array, Array]:
    out, overflow = _render_each(scene, params, grid, cams, shading, keys["rest"], index, progress)
    if scene.as_latent:
      return out, geometry_as_latent(out, prior.x_shape), overflow
    return out, encode_each(prior, prior_params, out.rgb, keys["encode"], index), overflow

  out, x, overflow = see(params, state.occupancy)
  told = lambda text: conditions.of_views(  # noqa: E731
      prior, prior_params, scene.config, text, cams, azimuth, elevation, progress)
  own = {}
  match scene.config.distillation.estimator:
    case "dds" | "pds":
      _, source_x, _ = see(state.estimator["params"], state.estimator["occupancy"])
      own = dict(source_x=source_x, source_cond=told(dict(text, views=text["source"])))
    case "vsd":
      own = dict(camera=cameras.camera_features(cams))
    case "hifa":
      size = (out.rgb.shape[0], prior.image_size, prior.image_size, 3)
      own = dict(image=out.rgb if out.rgb.shape == size else jax.image.resize(out.rgb, size, "linear"))
  shaded = jnp.zeros(()) if scene.as_latent else (shading.mode != ALBEDO).astype(jnp.float32)
  return Views(out, x, told(text), own, dict(overflow=overflow, shaded=shaded), (cams, azimuth, elevation))


def encode_each(prior: Prior, prior_params: Params, images: Array, key: Array, index: Array) -> Array:
  """What the prior makes of images [B, H, W, 3], image b with the key fold_in(key, index[b]): x [B, *x_shape]."""
  def one(image: Array, i: Array) -> Array:
    return prior.encode(prior_params, image[None], jax.random.fold_in(key, i))[0]

  return jax.vmap(one)(images, index)


def geometry_as_latent(out: RenderOutput, x_shape: tuple[int, ...]) -> Array:
  """Normals and opacity [B, H, W] as a latent [B, *x_shape] of four channels, each in [-1, 1].

  To begin with, Stable Diffusion's latents are near enough to pictures for this to give an object its shape, without
  the autoencoder and its gradient (Fantasia3D, arXiv:2303.13873, section 3.1; stable-dreamfusion's warm-up).
  """
  n, alpha = out.normals, out.opacity[..., None]
  x = jnp.concatenate([n + alpha - 1.0, 2.0 * alpha - 1.0], axis=-1)  # 2 sum_i w_i (n_i + 1) / 2 - 1, and the mask
  return jax.image.resize(x, (x.shape[0], *x_shape), "linear")


def _draw_cameras(scene: Scene, key: Array, index: Array) -> tuple[Camera, Array, Array]:
  """Cameras, azimuths and elevations of the views `index`; stratified in azimuth over the whole batch if so set."""
  if scene.config.camera.stratified:
    return cameras.sample_cameras(key, index, scene.config.training.views, scene.cameras)
  draw = lambda i: cameras.sample_camera(jax.random.fold_in(key, i), scene.cameras)  # noqa: E731
  return jax.vmap(draw)(index)


def _render_each(scene: Scene, params: Params, grid: Any, cams: Camera, shading: Shading, key: Array, index: Array,
                 progress: Array) -> tuple[RenderOutput, Array]:
  """`_render` of every particle, each through its own share of the cameras."""
  render = lambda params, grid, cams, index: _render(  # noqa: E731
      scene, params, grid, cams, shading, key, index, progress)
  out, overflow = particles.each(scene.config, render, params, grid, *particles.deal(scene.config, (cams, index)))
  return particles.gather(scene.config, out), jnp.mean(overflow)


def _render(scene: Scene, params: Params, grid: Any, cams: Camera, shading: Shading, key: Array, index: Array,
            progress: Array) -> tuple[RenderOutput, Array]:
  """The step's images. Normals cost more than all else, so an unshaded step takes a branch without them (unless
  `scene.facing`)."""
  height, width = scene.config.render.height, scene.config.render.width
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(index)
  light = jax.vmap(lambda k, p: lights.sample_light(k, p, scene.lights))(keys[:, 0], cams.position)
  rays = jax.vmap(lambda camera: cameras.camera_rays(camera, height, width))(cams)
  behind = jax.vmap(lambda k, d: scene.background.apply(params["background"], k, d.reshape(-1, 3)))(
      keys[:, 1], rays.directions).reshape(rays.directions.shape)

  field, field_params = parts.field_now(scene.field, scene.config, params["field"], progress)

  def shaded(field_params):
    options = dataclasses.replace(scene.options, normals=scene.config.render.normals)
    return render_views(field, field_params, cams, height, width, behind, keys[:, 2], options=options,
                        grid=grid, light=light, shade=shading)

  def bare(field_params):
    normals = scene.config.render.normals if scene.as_latent or scene.facing else "none"
    return render_views(field, field_params, cams, height, width, behind, keys[:, 2],
                        options=dataclasses.replace(scene.options, normals=normals), grid=grid)

  if scene.lights.shaded == 0.0 or scene.as_latent:
    return bare(field_params)
  return jax.lax.cond(shading.mode == ALBEDO, bare, shaded, field_params)


def look_again(scene: Scene, state: TrainState, params: Params, key: Array) -> Any:
  """The occupancy grid after this step: a share of it is looked at every so often, from `start_step` on."""
  o = scene.config.occupancy
  if not o.every:
    return state.occupancy

  def look_at(grid: Any, params: Params) -> Any:
    now = parts.field_now(scene.field, scene.config, params, progress_of(scene.config, state.step))
    return occupancy.update(grid, *now, key, state.step // o.every,
                            bound=scene.config.field.bound, decay=o.decay)

  def look(grid: Any) -> Any:
    return particles.each(scene.config, look_at, grid, params["field"])

  due = (state.step % o.every == 0) & (state.step >= o.start_step)
  return jax.lax.cond(due, look, lambda grid: grid, state.occupancy)
