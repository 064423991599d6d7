"""Compares the gradient of the whole step with a plain second version: every sample, no packing."""
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.parameterizations import eps_from_v
from sds_jax.fields.background import plain_colour
from sds_jax.views import cameras, lights

RATE = 1e3
PLAIN_DESCENT = {"optimizer.name": "sgd", "optimizer.b1": 0.0, "optimizer.learning_rate": RATE,
                 "optimizer.warmup_steps": 0, "optimizer.final_fraction": 1.0, "render.num_samples": 8}


def cosine_schedule(steps):
  """Returns alpha and sigma of the cosine schedule (arXiv:2102.09672, eq. 17), betas at most 0.999, in float64."""
  f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
  kept = np.cumprod([1.0 - min(1.0 - after / before, 0.999) for before, after in zip(f, f[1:])])
  return np.sqrt(kept), np.sqrt(1.0 - kept)


def fold_indices():
  """Returns the index in a flat 16x16x3 image of each entry of x [4, 4, 48]."""
  index = np.zeros((4, 4, 48), np.int32)
  for row, column, channel, dy, dx in np.ndindex(4, 4, 3, 4, 4):
    index[row, column, channel * 16 + dy * 4 + dx] = ((4 * row + dy) * 16 + 4 * column + dx) * 3 + channel
  return index


def draws(generator, views, key):
  """Returns the random draws of step 0: of rays and views, of t, azimuths and elevations."""
  key_views, key_rest, key_shading, key_t, key_distil = jax.random.split(jax.random.fold_in(key, 0), 5)
  cams, azimuth, elevation = cameras.sample_cameras(
      key_views, jnp.arange(views), views, generator.viewpoints.distribution)
  eps_key = jax.random.split(key_distil)[1]
  keys = jax.vmap(lambda b: jax.random.split(jax.random.fold_in(key_rest, b), 3))(jnp.arange(views))
  lit = jax.vmap(lambda k, position: lights.sample_light(k, position, generator.lights))(keys[:, 0], cams.position)
  rays = jax.tree.map(lambda leaf: leaf.reshape(-1, 3), jax.vmap(lambda c: cameras.camera_rays(c, 16, 16))(cams))
  of_rays = dict(origins=rays.origins, directions=rays.directions, light=jnp.repeat(lit, 256, axis=0),
                 background=jnp.repeat(jax.vmap(plain_colour)(keys[:, 1]), 256, axis=0),
                 jitter=jax.vmap(lambda k: jax.random.uniform(k, (256,)))(keys[:, 2]).reshape(-1))
  eps = jax.vmap(lambda b: jax.random.normal(jax.random.fold_in(eps_key, b), (4, 4, 48)))(jnp.arange(views))
  return of_rays, eps, cameras.camera_features(cams), jax.random.uniform(key_t), azimuth, elevation


def pixels_by_hand(field, params, rays, options, shaded):
  """Returns colours [R, 3], opacity [R] and orientation penalty [R] of rays by NeRF's sums over samples."""
  bound, count = options.bound, options.candidates
  width = 2 * bound / count
  closest = -jnp.sum(rays["origins"] * rays["directions"], axis=-1)

  def add(sums, sample):
    through, rgb, opacity, penalty = sums
    distance = closest - bound + (sample + rays["jitter"]) * width
    points = rays["origins"] + distance[:, None] * rays["directions"]
    out = field(params, points)
    density = jnp.where(jnp.linalg.norm(points, axis=-1) < bound, out.density, 0.0)
    weight = through * (1.0 - jnp.exp(-density * width))
    colour = out.albedo
    if shaded:
      slope = jax.vmap(jax.grad(lambda p: field(params, p[None]).density[0]))(points)
      normals = -slope / jnp.sqrt(jnp.sum(slope**2, axis=-1, keepdims=True) + 1e-12)
      to_light = rays["light"] - points
      cosine = jnp.sum(normals * to_light, axis=-1) / jnp.linalg.norm(to_light, axis=-1)
      colour = colour * (0.5 + 0.5 * jnp.maximum(cosine, 0.0))[:, None]
      away = jnp.maximum(jnp.sum(normals * rays["directions"], axis=-1), 0.0)
      penalty = penalty + jax.lax.stop_gradient(weight) * away**2
    through = through * jnp.exp(-density * width)
    return (through, rgb + weight[:, None] * colour, opacity + weight, penalty), None

  nothing = jnp.zeros_like(closest)
  start = (nothing + 1.0, jnp.zeros_like(rays["origins"]), nothing, nothing)
  through, rgb, opacity, penalty = jax.lax.scan(add, start, jnp.arange(count, dtype=jnp.float32))[0]
  return rgb + through[:, None] * rays["background"], opacity, penalty


def view_words(azimuth, elevation):
  words = []
  for a, e in zip(np.degrees(azimuth) % 360.0, np.degrees(elevation)):
    around = "front" if a <= 45.0 or a >= 315.0 else "back" if 135.0 <= a <= 225.0 else "side"
    words.append("overhead" if e > 60.0 else around)
  return words


def noise_by_hand(prior_params, texts, x, eps, t, camera_features, combine):
  """Returns guided eps_hat [B, 4, 4, 48] and sigma in numpy float64; only the network is shared."""
  alpha, sigma = (values[t][:, None, None, None] for values in cosine_schedule(100))
  z = alpha * np.asarray(x, np.float64) + sigma * np.asarray(eps, np.float64)

  def predict(text):
    v = network(prior_params, jnp.asarray(z, jnp.float32), jnp.asarray(t), text, camera_features)
    return alpha * np.asarray(v, np.float64) + sigma * z  # eps from v (arXiv:2202.00512, appendix D)

  return combine(predict(texts[:len(t)]), predict(texts[len(t):])), sigma


def network(params, z, t, text, camera):
  """A v of every input, which compiles faster than the prior's U-Net."""
  shift = text.mean((1, 2)) + camera.mean(1) + 1e-2 * t.astype(z.dtype) + params["unet"]["conv_in"]["bias"].mean()
  return 0.6 * jnp.tanh(z + z[:, ::-1] + shift[:, None, None, None])


@pytest.fixture(scope="session")
def prior_and_params(prior_and_params):
  prior, params = prior_and_params

  def denoise(params, z, t, cond):
    return eps_from_v(prior.schedule, z, t, network(params, z, t, cond["text"], cond["camera"]))

  return dataclasses.replace(prior, denoise=denoise), params


@pytest.mark.parametrize("shaded, changes, combine", [
  (False, {"distillation.guidance_scale": (7.0,), "distillation.weighting": "sigma2", "shading.lambertian": 0.0,
           "loss.opacity": (0.3,), "loss.sds": (0.5,)}, lambda c, u: u + 7.0 * (c - u)),
  (True, {"distillation.guidance_scale": (3.0,), "distillation.guidance_convention": "dreamfusion",
          "distillation.weighting": "uniform", "shading.lambertian": 1.0, "shading.albedo_until": 0.0,
          "loss.orientation": (200.0,)}, lambda c, u: c + 3.0 * (c - u))])
def test_whole_step(ready, prior_and_params, shaded, changes, combine):
  task, step, args = ready({**PLAIN_DESCENT, **changes})
  generator = task.generator
  state, _, _, key = args
  after, metrics = jax.jit(step)(*args)
  assert float(metrics["overflow"]) == 0.0 and float(metrics["shaded"]) == float(shaded)
  actual = jax.tree.map(lambda old, new: (np.asarray(old, np.float64) - np.asarray(new, np.float64)) / RATE,
                       state.params["field"], after.params["field"])

  views, (prior, prior_params) = task.settings.training.views, prior_and_params
  draw = functools.partial(draws, generator, views)
  rays, eps, camera_features, shift, azimuth, elevation = jax.device_get(jax.jit(draw)(key))
  fraction = (np.arange(views) / views + shift) % 1.0
  t = np.floor((0.02 + fraction * (0.98 - 0.02)) * 100).astype(np.int32)
  index = fold_indices()

  def generate(params):
    rgb, opacity, penalty = pixels_by_hand(generator.field.apply, params, rays, generator.options, shaded)
    x = (2.0 * rgb - 1.0).reshape(views, -1)[:, index]
    return x, 200.0 * jnp.mean(penalty) if shaded else 0.3 * jnp.mean(jnp.sqrt(opacity**2 + 0.01))

  @jax.jit
  def pull_back(params, cotangent):
    (x, _), back = jax.vjp(generate, params)
    return x, back((cotangent, jnp.float32(1.0)))[0]

  params = state.params["field"]
  x, _ = pull_back(params, jnp.zeros((views, 4, 4, 48)))
  prompts = [f"a red cube, {word} view" for word in view_words(azimuth, elevation)]
  texts = prior.embed(prompts + [""] * views)["text"]
  eps_hat, sigma = noise_by_hand(prior_params, texts, x, eps, t, camera_features, combine)
  weight = 1.0 if shaded else 0.5 * sigma**2
  cotangent = jnp.asarray(weight * (eps_hat - eps) / views, jnp.float32)

  _, expected = pull_back(params, cotangent)
  for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
    other = actual[path[0].key][path[1].key]
    error = np.linalg.norm(np.asarray(leaf, np.float64) - other) / np.linalg.norm(leaf)
    assert error < 1e-3, (jax.tree_util.keystr(path), error)
  norm = np.sqrt(((np.asarray(cotangent) * views) ** 2).sum((1, 2, 3))).mean()
  assert float(metrics["sds_grad_norm"]) == pytest.approx(float(norm), rel=1e-3)
