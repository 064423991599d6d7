"""An exact diffusion model of small pictures of digits: what is distilled from grey is of the class that was asked."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sds_jax.diffusion.distillation import score_distillation
from sds_jax.diffusion.guidance import guided
from sds_jax.diffusion.timesteps import to_index
from sds_jax.testbed import laws
from sds_jax.testbed.denoisers import vp_denoiser, with_null_label

GLYPHS = """
111 010 111 111 101 111 111 111 111 111
101 110 001 001 101 100 100 001 101 101
101 010 111 011 111 111 111 010 111 111
101 010 100 001 001 001 101 010 101 001
111 111 111 111 001 111 111 010 111 111
"""
CLASSES, STD, STEPS = 10, 0.05, 200


def pictures():
  """[10, 6, 8, 8]: each digit at six places, dark -1 and bright 1."""
  rows = [[np.array(list(word), float) for word in line.split()] for line in GLYPHS.split("\n") if line]
  found = -np.ones((CLASSES, 6, 8, 8))
  for y in range(CLASSES):
    glyph = 2 * np.stack([row[y] for row in rows]) - 1
    for place, (top, left) in enumerate((i, j) for i in (1, 2) for j in (1, 2, 3)):
      found[y, place, top:top + 5, left:left + 3] = glyph
  return found


@pytest.fixture(scope="module")
def world():
  """The data, and laws of the ten labels and of none."""
  data = pictures()
  given = laws.stack([laws.dataset(jnp.asarray(images), STD) for images in data.astype(np.float32)])
  return data, with_null_label(given, jnp.full(CLASSES, 0.1))


@pytest.fixture(scope="module")
def distilled(schedule, world):
  """(estimator, guidance scale, bounded) -> a picture [10, 8, 8] for each label, from grey; t falls over the run."""
  _, params = world
  labels = jnp.arange(CLASSES)
  cond = dict(cond=labels, uncond=jnp.full(CLASSES, CLASSES))
  times = jnp.linspace(0.9, 0.05, STEPS)
  adam = optax.adam(0.05)

  def run(name, scale, bounded=False):
    denoise = guided(vp_denoiser(schedule), "diffusers", scale)
    picture = jnp.tanh if bounded else lambda theta: theta

    def step(carry, inputs):
      theta, state = carry
      key, time = inputs
      t = jnp.broadcast_to(to_index(time, schedule.alpha.shape[0]), (CLASSES,))
      loss = lambda theta: score_distillation(denoise, params, schedule, picture(theta), key, cond, t=t,  # noqa: E731
                                              weighting="uniform", estimator=name)[0]
      with jax.numpy_dtype_promotion("standard"):  # optax mixes step counts and floats
        updates, state = adam.update(jax.grad(loss)(theta), state)
      return (optax.apply_updates(theta, updates), state), None

    grey = jnp.zeros((CLASSES, 8, 8))
    (theta, _), _ = jax.lax.scan(step, (grey, adam.init(grey)), (jax.random.split(jax.random.key(0), STEPS), times))
    return picture(theta)

  return lambda *args: np.asarray(jax.jit(lambda: run(*args))(), np.float64)


def nearest(images, data):
  """(label, distance per pixel) of the picture in the data that is nearest to each image; float64."""
  flat = data.reshape(-1, 64)
  distance = np.sqrt(((images.reshape(-1, 1, 64) - flat) ** 2).mean(2))
  return distance.argmin(1) // data.shape[1], distance.min(1)


def most_likely(images, data, width=0.5):
  """argmax_y p(y | image) under the data blurred by `width`, in float64."""
  square = ((images.reshape(-1, 1, 1, 64) - data.reshape(1, CLASSES, -1, 64)) ** 2).sum(3)
  return np.logaddexp.reduce(-0.5 * square / width**2, axis=2).argmax(1)


def test_the_digits_differ(world):
  data, _ = world
  labels, distance = nearest(data.reshape(-1, 8, 8), data)
  np.testing.assert_array_equal(labels, np.repeat(np.arange(CLASSES), 6))
  flat = data.reshape(-1, 64)
  apart = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(2))[~np.eye(60, dtype=bool)]
  assert apart.min() > 0.2 and distance.max() == 0


@pytest.mark.parametrize("name, scale", [("sds", 1.0), ("sds", 7.5), ("sjc", 4.0), ("rfds", 4.0), ("score", 4.0)])
def test_every_class_is_retrieved(world, distilled, name, scale):
  data, _ = world
  images = distilled(name, scale)
  np.testing.assert_array_equal(nearest(images, data)[0], np.arange(CLASSES))
  np.testing.assert_array_equal(most_likely(images, data), np.arange(CLASSES))


def test_without_guidance_the_pictures_are_of_the_data(world, distilled):
  """At the end of the run one picture of the data is left, to its blur."""
  data, _ = world
  assert nearest(distilled("sds", 1.0), data)[1].max() < 0.1


def test_csd_needs_a_bounded_picture(world, distilled):
  """It knows only what tells the classes apart; within bounds that is enough to be told apart."""
  data, _ = world
  np.testing.assert_array_equal(nearest(distilled("csd", 1.0, True), data)[0], np.arange(CLASSES))


def test_without_a_label_the_class_is_not_the_one_asked(schedule, world):
  """The prompt is what does it: predictions under no label say the same to all ten."""
  _, params = world
  z, t = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8)), jnp.float32), jnp.full(CLASSES, 500)
  same = jnp.broadcast_to(z, (CLASSES, 8, 8))
  asked = vp_denoiser(schedule)(params, same, t, jnp.arange(CLASSES))
  unasked = vp_denoiser(schedule)(params, same, t, jnp.full(CLASSES, CLASSES))
  assert np.ptp(np.asarray(unasked), axis=0).max() == 0 and np.ptp(np.asarray(asked), axis=0).max() > 0.1
