"""Conditions on a photo and a pose, recomputed by hand: poses, null condition, guidance, projection, pixels."""
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from sds_jax.diffusion import guidance
from sds_jax.priors import photo as photo_lib, prior as prior_lib, spaces
from sds_jax.priors.families import zero123
from sds_jax.priors.loading import clip_pixels
from sds_jax.priors.networks.pose_layers import CCProjection
from sds_jax.priors.sources import Source
from sds_jax.views import cameras, poses

FOLDER = Path("nowhere")


def place(azimuth_deg, elevation_deg):
  """Where a camera stands: x to the front, y to its left, z up."""
  azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
  return 2.7 * np.array([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth),
                         math.sin(elevation)])


def polar_and_azimuth(at):
  """As Zero-1-to-3's training data takes them from the places of its cameras: from straight above, from x towards y."""
  return math.atan2(math.hypot(at[0], at[1]), at[2]), math.atan2(at[1], at[0])


@pytest.mark.parametrize("picture, view", [
  ((0, 0), (0, 0)), ((350, 10), (10, 10)), ((10, 10), (350, 10)), ((0, -20), (180, 80)), ((-170, 5), (170, 30)),
  ((90, 60), (30, -30)), ((0, 15), (720, 15))])
def test_relative_pose(picture, view):
  pose = np.asarray(poses.relative_pose(*map(jnp.radians, jnp.asarray([view[1], view[0], picture[1], picture[0]],
                                                                      jnp.float32))))
  (polar, azimuth), (from_polar, from_azimuth) = map(polar_and_azimuth, (place(*view), place(*picture)))
  turn = (azimuth - from_azimuth) % (2 * math.pi)
  np.testing.assert_allclose(pose, [polar - from_polar, math.sin(turn), math.cos(turn), from_polar], atol=2e-6)
  if view[1] > picture[1]:
    assert pose[0] < 0  # up is towards the pole
  position = cameras.orbit(*map(math.radians, view), 2.7, 0.8).position
  np.testing.assert_allclose(position, place(*view), atol=1e-5)


def test_pose_broadcasts():
  pose = poses.relative_pose(jnp.zeros(3), jnp.linspace(0.0, 1.0, 3), jnp.float32(0.2), jnp.float32(0.0))
  assert pose.shape == (3, 4) and np.allclose(pose[:, 0], 0.2) and np.allclose(pose[:, 3], math.pi / 2 - 0.2)


def test_pose_features():
  """Camera features of the view, with the photo's camera at azimuth 0; zeros for the null pose."""
  views = [(0, 0, 20), (75, 40, 20), (-130, -10, 5), (180, 89, -30)]
  pose = jnp.stack([poses.relative_pose(*map(jnp.radians, (jnp.float32(elevation), jnp.float32(azimuth),
                                                           jnp.float32(seen_from), jnp.float32(0.0))))
                    for azimuth, elevation, seen_from in views] + [jnp.zeros(4)])
  features = np.asarray(poses.pose_features(pose))
  assert features.shape == (5, 16) and not features[4].any()
  focal = 0.5 / math.tan(math.radians(46) / 2)
  for row, (azimuth, elevation, _) in zip(features, views):
    a, e = math.radians(azimuth), math.radians(elevation)
    waves = [math.cos(e) ** min(k, 2) * wave(k * a) for k in range(1, 5) for wave in (math.sin, math.cos)]
    expected = [*place(azimuth, elevation) / 2.7, *waves, math.sin(2 * e), math.cos(2 * e), 0.0, focal - 1.15, 1.0]
    np.testing.assert_allclose(row, expected, atol=1e-4)


class Probe(nn.Module):
  """Replaces a U-Net: latents + 10 photo + 100 mean of the cross-attention tokens."""
  @nn.compact
  def __call__(self, sample, t, context, labels):
    del t, labels
    return sample[..., :4] + 10.0 * sample[..., 4:] + 100.0 * jnp.mean(context, axis=(1, 2))[:, None, None, None]


def test_null_and_guidance_with_both_conditions():
  """z_t precedes the photo's x; zeros replace both conditions; guidance in diffusers' form."""
  scheduler = dict(num_train_timesteps=10, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                   prediction_type="epsilon")
  photo = photo_lib.PhotoConditioning(CCProjection(5, 3), 0, "polar", None)
  prior = prior_lib.make_prior(Source("probe", None), spaces.Space(16, (2, 2, 4), None, None, None, None), Probe(),
                               scheduler, photo=photo)
  rng = np.random.default_rng(0)
  z, x = rng.normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
  text = rng.normal(size=(3, 1, 3)).astype(np.float32)
  cond = dict(text=jnp.asarray(text), x=jnp.asarray(x))
  null = photo_lib.null_condition(cond)
  assert jax.tree.map(jnp.shape, null) == jax.tree.map(jnp.shape, cond)
  assert not any(np.any(leaf) for leaf in null.values())
  both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, null)
  eps = prior.denoise(dict(unet={}), jnp.concatenate([z, z]), jnp.full(6, 5), both)
  guided = guidance.cfg_diffusers(eps[:3], eps[3:], 3.0)
  conditioned = z + 10 * x + 100 * text.mean((1, 2))[:, None, None, None]
  np.testing.assert_allclose(guided, z + 3 * (conditioned - z), rtol=1e-4, atol=1e-3)
  with pytest.raises(ValueError, match="the prior 'probe' is conditioned on a photo, not on a prompt: use conf"):
    prior.embed(["a red cube"])


@pytest.mark.parametrize("pose, camera_dim, tokens", [("polar", 16, 3), ("distance", 0, 1)])
def test_conditions(pose, camera_dim, tokens):
  rng = np.random.default_rng(1)
  kernel, bias = rng.normal(size=(9, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
  encoded = dict(tokens=rng.normal(size=(tokens, 5)).astype(np.float32),
                 x=rng.normal(size=(2, 2, 4)).astype(np.float32), elevation=np.float32(np.nan))
  views = poses.relative_pose(jnp.asarray([0.3, -0.1]), jnp.asarray([0.5, 3.0]), jnp.float32(0.2), jnp.float32(0.0))
  photo = photo_lib.PhotoConditioning(CCProjection(9, 6), camera_dim, pose, None)
  params = dict(cc_projection=dict(projection=dict(kernel=kernel, bias=bias)))
  cond = photo.conditions(params, jax.tree.map(jnp.asarray, encoded), views)
  polar = math.pi / 2 - 0.2
  for b, (elevation, azimuth) in enumerate(((0.3, 0.5), (-0.1, 3.0))):
    four = [0.2 - elevation, math.sin(azimuth), math.cos(azimuth), polar if pose == "polar" else 0.0]
    for t in range(tokens):
      expected = np.concatenate([encoded["tokens"][t], four]) @ kernel + bias
      np.testing.assert_allclose(cond["text"][b, t], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cond["x"][b], encoded["x"])
  assert cond["text"].dtype == jnp.float32 and set(cond) == {"text", "x", *(["camera"] if camera_dim else [])}
  if camera_dim:
    np.testing.assert_array_equal(cond["camera"], poses.pose_features(views))


def test_random_features_of_a_photo():
  """Without a file: other photos give other numbers, and photos of other sizes are resized."""
  photo = photo_lib.random_photo(CCProjection(9, 6), "distance", spaces.pixel_space(4))
  one, same, other = (photo.encode(jnp.full((size, size, 3), value)) for size, value in ((4, 0.0), (8, 0.0), (4, 0.5)))
  assert {name: leaf.shape for name, leaf in one.items()} == dict(tokens=(1, 5), x=(4, 4, 3), elevation=())
  for name in ("tokens", "x"):
    np.testing.assert_array_equal(one[name], same[name])
    assert np.abs(one[name] - other[name]).max() > 0.1 and one[name].dtype == jnp.float32
  assert photo.pose == "distance" and np.isnan(one["elevation"])
  with pytest.raises(ValueError, match=r"expected one square photo \[S, S, 3\]"):
    photo.encode(jnp.ones((1, 4, 4, 3)))
  with pytest.raises(ValueError, match="expected square images"):
    photo.encode(jnp.ones((4, 5, 3)))


def pictures():
  """An object with hard edges on white, and noise: 64x64, eight bits."""
  y, x = np.mgrid[:64, :64]
  disc = np.stack([np.where((x - 25) ** 2 + (y - 32) ** 2 < 400, c, 255) for c in (200, 30, 60)], -1)
  return np.stack([disc, np.random.default_rng(3).integers(0, 256, (64, 64, 3))]).astype(np.uint8)


@pytest.mark.parametrize("size", [56, 37, 80])
def test_antialiased_is_pillows(size):
  """To the rounding of 8 bits, twice."""
  theirs = np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pictures()])
  ours = np.asarray(clip_pixels.antialiased(jnp.asarray(pictures() / np.float32(255)), size))
  assert np.abs(255 * ours - theirs).max() < 1.3


def test_aligned_in_a_loop():
  """Each new pixel from the four nearest on a side, corner on corner, by the cubic of sharpness -0.75."""
  def cubic(x):
    x = abs(x)
    return 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

  def row(values, size):
    new = np.zeros((size, *values.shape[1:]))
    for i in range(size):
      at = i * (len(values) - 1) / (size - 1)
      for j in range(math.floor(at) - 1, math.floor(at) + 3):
        new[i] += cubic(at - j) * values[min(max(j, 0), len(values) - 1)]
    return new

  for picture in pictures() / 255:
    expected = row(row(picture, 56).swapaxes(0, 1), 56).swapaxes(0, 1)
    got = clip_pixels.aligned(jnp.asarray(picture[None], jnp.float32), 56)[0]
    np.testing.assert_allclose(got, expected, atol=2e-6)
    np.testing.assert_allclose(got[0, 0], picture[0, 0], atol=1e-6)


def test_normaliser(tmp_path):
  image = jnp.full((1, 1, 1, 3), 0.5)
  np.testing.assert_allclose(clip_pixels.normaliser(tmp_path)(image)[0, 0, 0], [
    (0.5 - 0.48145466) / 0.26862954, (0.5 - 0.4578275) / 0.26130258, (0.5 - 0.40821073) / 0.27577711], rtol=1e-5)
  path = tmp_path / "preprocessor_config.json"
  path.write_text('{"image_mean": [0.5, 0.25, 0], "image_std": [0.5, 1, 0.25]}')
  np.testing.assert_allclose(clip_pixels.normaliser(tmp_path)(image)[0, 0, 0], [0.0, 0.25, 2.0])
  for text, words in (('{"image_std": [1, 0, 1]}', r"image_std=\[1, 0, 1\] should be three positive numbers; without"),
                      ('{"image_mean": 0.5}', "image_mean=0.5 should be three numbers; without the key CLIP's own")):
    path.write_text(text)
    with pytest.raises(prior_lib.CheckpointError, match=words):
      clip_pixels.normaliser(tmp_path)


@pytest.mark.parametrize("index, source, expected", [
  ({}, Source("stable-zero123", None), "polar"), ({}, Source("zero123-xl", None), "distance"),
  ({}, Source("kxic/stable-zero123@main", FOLDER / "abc", "kxic/stable-zero123"), "polar"),
  ({}, Source("a", FOLDER / "stable_zero123"), "polar"), ({}, Source("a", FOLDER / "StableZero123-c"), "polar"),
  ({}, Source("stable-diffusion/zero123-xl", FOLDER / "stable-diffusion" / "zero123-xl"), "distance"),
  (dict(pose="distance"), Source("stable-zero123", FOLDER), "distance"),
  (dict(pose="polar"), Source("zero123", FOLDER), "polar")])
def test_the_fourth_number_of_a_pose(index, source, expected):
  assert zero123.pose(index, source) == expected


def test_a_second_photo_compiles_nothing(tiny_view_prior):
  prior, _ = prior_lib.build(tiny_view_prior)
  pictures = np.random.default_rng(0).random((2, 20, 20, 3)).astype(np.float32)
  first, events = prior.photo.encode(jnp.asarray(pictures[0])), []
  listen = lambda event, seconds, **_: events.append(event)  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    second = prior.photo.encode(jnp.asarray(pictures[1]))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not [event for event in events if "compile" in event], events
  assert np.abs(first["tokens"] - second["tokens"]).max() > 1e-3
