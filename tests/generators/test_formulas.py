"""Compares each generator with its formula, recomputed pixel by pixel in numpy."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.generators import catalogue
from sds_jax.generators.cppn import make_cppn
from sds_jax.generators.fourier import COLOUR_MIX, amplitudes, make_fourier
from sds_jax.generators.gaussians import make_gaussians
from sds_jax.generators.pixels import make_pixels
from sds_jax.generators.shared import make_shared
from sds_jax.generators.siren import make_siren
from sds_jax.generators.symmetric import make_symmetric
from sds_jax.generators.translucent import make_translucent, random_background

KEY = jax.random.key(3)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def moved(params, std):
  """Returns parameters plus normal noise."""
  rng = np.random.default_rng(3)
  return jax.tree.map(lambda leaf: np.asarray(leaf + std * rng.normal(size=leaf.shape), np.float32),
                      jax.device_get(params))


def params_and_image(generator, key=KEY, scale=1.0):
  """Returns random parameters of a generator, `scale` times the first ones, and the images."""
  params = jax.tree.map(lambda leaf: np.float32(scale) * leaf, jax.device_get(jax.jit(generator.init)(key)))
  return params, np.asarray(jax.jit(generator.apply)(params, jax.random.key(5)))


@pytest.mark.parametrize("name", catalogue.GENERATORS)
def test_images_are_deterministic_and_every_parameter_counts(name):
  """Checks that images lie in [0, 1], that equal keys give equal images, and that every parameter has a gradient."""
  generator = catalogue.make_generator(name, 16, {})
  init, apply = jax.jit(generator.init), jax.jit(generator.apply)
  first, second = (init(jax.random.key(i)) for i in (0, 1))
  image = np.asarray(apply(first, KEY))
  assert image.shape == (generator.frames, 16, 16, 3) and image.dtype == np.float32
  assert 0.0 <= image.min() and image.max() <= 1.0
  np.testing.assert_array_equal(image, apply(first, KEY))
  if name != "cppn":  # its first image is plain grey
    assert not np.allclose(image, apply(second, KEY))
  weights = jnp.asarray(np.random.default_rng(0).normal(size=image.shape), jnp.float32)
  grads = jax.jit(jax.grad(lambda params: jnp.sum(weights * generator.apply(params, KEY))))(moved(first, 0.3))
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.device_get(grads)))


def test_pixels_are_a_sigmoid_of_the_logits():
  params, image = params_and_image(make_pixels(8, init_std=1.0))
  np.testing.assert_allclose(image[0], sigmoid(params["logits"]), atol=1e-6)


def colours(params, spectrum, decay):
  """Returns sigmoid(M irfft2(c / f^decay)) of a spectrum [2, n, n / 2 + 1, 3] as a sum of waves."""
  n = spectrum.shape[1]
  c = np.asarray(spectrum[0], np.float64) + 1j * np.asarray(spectrum[1], np.float64)
  values = np.zeros((n, n, 3))
  y, x = np.mgrid[:n, :n]
  for i in range(n):
    for j in range(n // 2 + 1):
      row = i if i < n / 2 else i - n
      if abs(row) == n / 2 or j == n / 2:
        continue
      f = max(math.hypot(row, j), 1.0)
      wave = np.exp(2j * np.pi * (row * y + j * x) / n)[..., None]
      twice = 1.0 if j == 0 else 2.0  # a real image has the mirrored coefficient, too
      values += twice * np.real(c[i, j] * wave) * 0.25 * n * n / f**decay / n**2
  return sigmoid(values @ COLOUR_MIX.T.astype(np.float64))


def test_fourier_is_a_sum_of_waves_of_one_over_f():
  generator = make_fourier(8, decay=1.5, init_std=0.5)
  params, image = params_and_image(generator)
  np.testing.assert_allclose(image[0], colours(params, params["spectrum"], 1.5), atol=2e-5)
  large = np.asarray(jax.jit(lambda params: generator.at(params, 32))(params))[0]
  np.testing.assert_allclose(large[::4, ::4], image[0], atol=2e-5)  # equal waves at equal positions


def test_the_amplitudes_fall_with_the_frequency():
  scale = amplitudes(16, 16, 1.0)
  assert scale[0, 0] == scale[0, 1] and scale[0, 4] == pytest.approx(scale[0, 1] / 4)
  assert not scale[8].any() and not scale[:, 8].any()


def test_cppn_matches_its_layers():
  generator = make_cppn(6, hidden=5, depth=2)
  params = moved(jax.jit(generator.init)(KEY), 0.1)
  image = np.asarray(jax.jit(generator.apply)(params, KEY))[0]
  for row, column in ((0, 0), (2, 5), (5, 1)):
    h = math.sqrt(3) * np.array([(column + 0.5) / 3 - 1, 1 - (row + 0.5) / 3])
    for layer in params["layers"]:
      a = np.arctan(h @ np.asarray(layer["w"]) + np.asarray(layer["b"]))
      h = np.concatenate([a / 0.67, (a**2 - 0.45) / 0.396])
    expected = sigmoid(h @ np.asarray(params["last"]["w"]) + np.asarray(params["last"]["b"]))
    np.testing.assert_allclose(image[row, column], expected, atol=1e-5)


def test_siren_matches_its_layers():
  generator = make_siren(6, hidden=7, depth=2, w0=4.0)
  params, images = params_and_image(generator)
  for row, column in ((0, 0), (2, 5)):
    h = np.array([(column + 0.5) / 3 - 1, 1 - (row + 0.5) / 3])
    for layer in params[:-1]:
      h = np.sin(4.0 * (h @ np.asarray(layer["w"], np.float64) + np.asarray(layer["b"])))
    np.testing.assert_allclose(images[0, row, column], sigmoid(h @ np.asarray(params[-1]["w"])), atol=1e-5)
  wide = jax.device_get(jax.jit(make_siren(8, hidden=400, depth=1, w0=30.0).init)(KEY))
  assert np.abs(wide[0]["w"]).max() <= 0.5  # U(-1/n, 1/n) with n = 2
  assert np.abs(wide[1]["w"]).max() <= math.sqrt(6 / 400) / 30


def test_gaussians_are_composited_front_to_back():
  params, images = params_and_image(make_gaussians(6, count=5, radius=0.5))
  p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
  for row, column in ((0, 0), (2, 3), (5, 4)):
    place, colour, through = np.array([(column + 0.5) / 3 - 1, 1 - (row + 0.5) / 3]), np.zeros(3), 1.0
    for i in range(5):
      turn = np.array([[math.cos(p["angle"][i]), -math.sin(p["angle"][i])],
                       [math.sin(p["angle"][i]), math.cos(p["angle"][i])]])
      covariance = turn @ np.diag(np.exp(2 * p["log_scale"][i])) @ turn.T
      d = place - p["mean"][i]
      alpha = 0.99 * sigmoid(p["opacity"][i]) * math.exp(-0.5 * d @ np.linalg.inv(covariance) @ d)
      colour += through * alpha * sigmoid(p["colour"][i])
      through *= 1 - alpha
    np.testing.assert_allclose(images[0, row, column], colour + through * sigmoid(p["background"]), atol=1e-5)


def test_frames_share_low_frequencies_only():
  generator = make_shared(8, frames=2, cutoff=1.0, own=0.5, decay=1.0, init_std=0.5)
  params, images = params_and_image(generator)
  low = np.hypot(np.fft.fftfreq(8, 1 / 8)[:, None], np.arange(5)[None]) <= 1.0
  for i in range(2):
    spectrum = low[None, :, :, None] * np.asarray(params["shared"]) + 0.5 * np.asarray(params["own"][i])
    np.testing.assert_allclose(images[i], colours(params, spectrum, 1.0), atol=2e-5)


@pytest.mark.parametrize("of", sorted(catalogue.WRAPPABLE))
def test_symmetric_images_are_exactly_symmetric(of):
  inner = catalogue.WRAPPABLE[of](8)
  generator = make_symmetric(inner)
  params = moved(jax.jit(inner.init)(KEY), 1.0)
  image = np.asarray(generator.apply(params, KEY))[0]
  np.testing.assert_array_equal(image, image[:, ::-1])
  np.testing.assert_array_equal(image[:, :4], np.asarray(inner.apply(params, KEY))[0, :, :4])


def test_translucent_is_composited_over_its_background():
  generator = make_translucent(8, noise=0.5, price=7.0, init_std=0.5)
  params, images = params_and_image(generator, KEY)
  extras, shown, penalty, behind = jax.device_get(jax.jit(lambda params, key: (
      generator.extras(params), generator.show(params), generator.penalty(params), random_background(key, 8, 0.5)))(
          params, jax.random.key(5)))
  rgba = extras["rgba"]
  expected = rgba[..., 3:] * rgba[..., :3] + (1 - rgba[..., 3:]) * behind
  np.testing.assert_allclose(images[0], expected, atol=1e-6)
  np.testing.assert_allclose(shown[0], rgba[..., 3:] * rgba[..., :3] + 1 - rgba[..., 3:], atol=1e-6)
  np.testing.assert_allclose(penalty, 7.0 * rgba[..., 3].mean(), rtol=1e-5)


def test_share_of_noisy_backgrounds():
  keys = jax.random.split(KEY, 300)
  spread = jax.jit(jax.vmap(lambda k: jnp.std(random_background(k, 8, 0.25), axis=(0, 1)).max()))(keys)
  share = float((np.asarray(spread) > 1e-3).mean())
  assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 300)
