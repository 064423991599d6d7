"""One step of pictures as one pure function: params -> images -> distil -> update; and any generator of your own.

A batch has B = R P F images: P particles (pictures that have nothing in common, parameters with a leading axis), F
frames of each, R times with other backgrounds or cameras, and other noise. Their order is repeat, particle, frame.

Your own generator needs no class and no name:

    prior, prior_params = sds_jax.build_prior("shapeworld")
    draw = lambda theta, key: jax.nn.sigmoid(theta)[None]               # [F, H, W, 3]
    theta = image2d.optimise(draw, jnp.zeros((64, 64, 3)), prior, prior_params, "a red cube")
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from sds_jax.diffusion.scalars import schedule_value
from sds_jax.generators.base import Parameterization
from sds_jax.generators.catalogue import GeneratorError, check_images, make_generator
from sds_jax.priors.prior import Prior
from sds_jax.training import conditions, estimator_state, image2d_config, step as step_lib, update, validation
from sds_jax.training.checks import ConfigError
from sds_jax.training.conditions import Text
from sds_jax.training.config import scalar_spec
from sds_jax.training.distil import distil
from sds_jax.training.image2d_validation import prompts_of
from sds_jax.training.parallel import Share
from sds_jax.training.state import TrainState, init_state, make_optimizer
from sds_jax.training.update import StepFn
from sds_jax.types import Array, Params
from sds_jax.views import cameras


@dataclasses.dataclass(frozen=True)
class Studio:
  """The functions that a config of pictures stands for; no arrays.

  Attributes:
    config: the validated settings.
    generator: of one particle.
    optimizer: of all parameters.
  """
  config: ml_collections.FrozenConfigDict
  generator: Parameterization
  optimizer: optax.GradientTransformation


def make_studio(config: ml_collections.FrozenConfigDict, generator: Parameterization | None = None) -> Studio:
  """Build the functions of a validated config; `generator` goes before the one that the config names.

  Raises:
    ConfigError: a user's own generator does not work, or its frames do not go with views or prompt.
  """
  g = config.generator
  if generator is None:
    try:
      generator = make_generator(g.name, g.size, _settings(g))
    except GeneratorError as error:
      raise ConfigError(f"config.generator.name={error}") from error
  if config.training.views % (g.particles * generator.frames) or len(prompts_of(config.prompt)) > generator.frames:
    raise ConfigError(f"config.training.views={config.training.views} must be a multiple of config.generator.particles="
                      f"{g.particles} times the {generator.frames} frames of this generator, and config.prompt="
                      f"{config.prompt!r} have no more parts than frames")
  return Studio(config, generator, make_optimizer(config))


def _settings(g: ml_collections.FrozenConfigDict) -> dict[str, Any]:
  """The keywords of the generator that the group `generator` names."""
  own = dict(g[g.name]) if g.name in g else {}
  return own | dict(settings=dict(g[own["of"]])) if g.name == "symmetric" else own


def new_state(studio: Studio, key: Array) -> TrainState:
  """The state before the first update, leaves of the parameters [P, ...]; consumes `key`."""
  params = jax.vmap(studio.generator.init)(jax.random.split(key, studio.config.generator.particles))
  return init_state(params, studio.optimizer, None, studio.config.optimizer.ema_decay > 0)


def begin(studio: Studio, prior: Prior, prior_params: Params, text: Text, key: Array,
          source: TrainState | None = None) -> TrainState:
  """`new_state` with what the estimator keeps; `source` is what is edited, or None. Consumes `key`."""
  state = new_state(studio, key)
  return estimator_state.start(studio.config, prior, prior_params, text, state, estimator_state.own_key(key), source)


def embed_prompts(prior: Prior, config: ml_collections.FrozenConfigDict, frames: int) -> Text:
  """The texts of a run, once: {"views": [F, T, D], one for each frame, "null": [T, D], ...} as `conditions.texts` says.

  K prompts are spread evenly over the frames, and linear in between: with K = F frame i has prompt i.
  """
  def over_frames(embedded: Array) -> Array:
    count = embedded.shape[0]
    place = np.linspace(0.0, count - 1.0, frames) if frames > 1 else np.zeros(1)
    weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(count)[None])).astype(np.float32)
    return jnp.einsum("fk,ktd->ftd", jnp.asarray(weights), embedded, precision=jax.lax.Precision.HIGHEST)

  text = conditions.embed(prior, conditions.texts(prior, config, config.prompt, prompts_of))
  return {name: over_frames(embedded) if name in conditions.SPREAD else embedded for name, embedded in text.items()}


def observe(studio: Studio, prior: Prior, params: Params, state: TrainState, prior_params: Params, text: Text,
            keys: dict[str, Array],
            index: Array | None = None) -> tuple[Array, Array, dict[str, Any], dict[str, Any]]:
  """What a step works on: its images, what the prior makes of them and is told of them.

  Args:
    params: leaves [P, ...]; `state` gives the number of the step, and what the estimator keeps.
    text: of `embed_prompts`.
    keys: of `update.step_keys`; views and encode are consumed. Particle p in repeat r has
      fold_in(keys["views"], r P + p).
    index: [B] int32, which of the step's `training.views` images these are, all of some repeats; None: all.

  Returns:
    (images [B, H, H, 3], x [B, *x_shape], cond of `guidance.guided`, own of `distil.distil`).
  """
  index = jnp.arange(studio.config.training.views) if index is None else index
  generator, views = studio.generator, index.shape[0]
  particles = studio.config.generator.particles
  repeats = views // (particles * generator.frames)
  each = jax.vmap(lambda i: jax.random.fold_in(keys["views"], i))(index[::generator.frames] // generator.frames)
  each = each.reshape(repeats, particles)

  def see(params: Params) -> tuple[Array, Array]:
    images = jax.vmap(lambda some: jax.vmap(generator.apply)(params, some))(each)  # [R, P, F, H, H, 3]
    images = images.reshape(views, *images.shape[3:])
    return images, step_lib.encode_each(prior, prior_params, images, keys["encode"], index)

  def told(text: Text) -> dict[str, Any]:
    return conditions.sides(studio.config, text, lambda texts: jnp.tile(texts, (repeats * particles, 1, 1)),
                            camera if prior.camera_dim else {}, update.progress_of(studio.config, state.step))

  camera = _cameras(studio, prior, each)
  images, x = see(params)
  own = dict(camera)
  match studio.config.distillation.estimator:
    case "dds" | "pds":
      own |= dict(source_x=see(state.estimator["params"])[1], source_cond=told(dict(text, views=text["source"])))
    case "hifa":
      own |= dict(image=jax.image.resize(images, (views, prior.image_size, prior.image_size, 3), "linear"))
  return images, x, told(text), own


def _cameras(studio: Studio, prior: Prior, keys: Array) -> dict[str, Array]:
  """The `camera` [B, CAMERA_DIM] of a batch: where the generator looks from, else the settings' viewpoint, if any.

  Args:
    prior: the viewpoint is for one that knows cameras.
    keys: [R, P], those of the images.
  """
  generator, viewpoint = studio.generator, studio.config.generator.viewpoint
  views = keys.size * generator.frames
  if generator.cameras is not None:
    seen = jax.vmap(jax.vmap(generator.cameras))(keys)
    seen = jax.tree.map(lambda leaf: leaf.reshape(views, *leaf.shape[3:]), seen)
    return dict(camera=jax.vmap(cameras.camera_features)(seen))
  if viewpoint and prior.camera_dim:
    azimuth, elevation = (math.radians(angle) for angle in viewpoint)
    told = cameras.camera_features(cameras.orbit(azimuth, elevation, 2.7, math.radians(46.0)))
    return dict(camera=jnp.broadcast_to(told, (views, *told.shape)))
  return {}


def make_step(studio: Studio, prior: Prior, share: Share = Share()) -> StepFn:
  """The step (state, prior_params, text, key) -> (state, metrics) of `update.make_step`.

  `text` is of `embed_prompts`.
  """
  config, generator = studio.config, studio.generator

  def loss_fn(learnt: tuple[Params, Params], state: TrainState, prior_params: Params, text: Text,
              keys: dict[str, Array], index: Array):
    params, score = learnt
    images, x, cond, own = observe(studio, prior, params, state, prior_params, text, keys, index)
    progress = update.progress_of(config, state.step)
    loss, aux = distil(config, prior, prior_params, x, cond, keys, progress, dict(own, score=score), index)
    metrics = dict(sds_grad_norm=jnp.mean(aux.grad_norm), image_mean=jnp.mean(images),
                   image_std=jnp.mean(jnp.std(images, axis=(1, 2, 3))))
    if generator.penalty is not None:
      metrics["penalty"] = jnp.mean(jax.vmap(generator.penalty)(params))
      loss += schedule_value(scalar_spec(config.loss.sds), progress) * metrics["penalty"]
    return loss, metrics

  return update.make_step(config, studio.optimizer, loss_fn, share=share)


def optimise(apply: Callable[[Params, Array], Array], params: Params, prior: Prior, prior_params: Params, prompt: str,
             *, config: ml_collections.ConfigDict | None = None) -> Params:
  """Distil a prompt into any generator, without files: the parameters after `training.steps` steps.

  Args:
    apply: (params, key) -> images [F, H, H, 3] float32 in [0, 1], differentiable in params; consumes the key.
    params: what to begin with.
    prior, prior_params: of `build_prior`.
    prompt: one, or up to F with "|" between them.
    config: of `image2d_config.default`, whose generator (but for the viewpoint) and prior do not count; the defaults
      where None.

  Raises:
    ConfigError: a setting is not legal, apply gives something else, F does not divide `training.views`, or there are
      more prompts than frames.
  """
  settings = image2d_config.default() if config is None else config.copy_and_resolve_references()
  settings.update_from_flattened_dict({
      "prompt": prompt, "generator.name": "python:apply", "generator.particles": 1, "prior.name": prior.name,
      "prior.path": "", "prior.random_weights": False})
  image = jax.eval_shape(apply, params, jax.random.key(0))
  frames = image.shape[0] if getattr(image, "ndim", 0) == 4 else 1
  try:
    check_images("apply", image, frames)
  except GeneratorError as error:
    raise ConfigError(str(error)) from error
  studio = make_studio(validation.validate(settings), Parameterization(lambda key: params, apply, frames=frames))
  text = embed_prompts(prior, studio.config, frames)
  fixed = (prior_params, text, jax.random.key(settings.seed))
  state = begin(studio, prior, prior_params, text, jax.random.key(0))
  step = jax.jit(make_step(studio, prior), donate_argnums=0)
  for _ in range(settings.training.steps):
    state, _ = step(state, *fixed)
  return jax.tree.map(lambda leaf: leaf[0], state.shown)
