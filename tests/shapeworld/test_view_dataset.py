"""Training images of the view prior: content, cameras, lights, and dependence on (seed, index)."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.shapeworld import scenes, tracer, view_dataset
from sds_jax.views import cameras, poses


@pytest.fixture(autouse=True, scope="module")
def small_batches():
  """Renders 5 scenes a call, as many as test_shipped_view_prior, so that one program serves both."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(view_dataset, "BATCH", 5)
    yield


@pytest.fixture(scope="module")
def examples():
  return view_dataset.make_examples(7, range(6))


def test_an_example_depends_on_its_seed_and_number_alone(examples):
  again = view_dataset.make_examples(7, [4, 1])
  for name in ("images", "angles", "captions"):
    np.testing.assert_array_equal(again[name], examples[name][[4, 1]])
  assert not np.array_equal(view_dataset.make_examples(8, [1])["images"][0], examples["images"][1])


def test_views_are_of_one_scene_in_one_light(examples):
  """Compares each view with the tracer; placement, light and white background are recomputed by hand."""
  number = 2

  @jax.jit
  def placement(scene):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), number), 3)
    return view_dataset.place_at_random(keys[2], scene), *view_dataset.sample_light(keys[1])

  scene, light, ambient = placement(scenes.scene_from_caption(str(examples["captions"][number])))
  render = jax.jit(tracer.render)  # with arguments alone, it is the program of test_tracer
  for view, (azimuth, elevation) in zip(examples["images"][number] / 255.0, examples["angles"][number]):
    camera = cameras.orbit(azimuth, elevation, poses.DISTANCE, poses.FOV_Y)
    rgb, opacity = render(scene, camera, light, ambient, 1.0 - ambient, np.ones(3, np.float32))
    np.testing.assert_allclose(view[..., :3] + 1.0 - view[..., 3:], rgb, atol=2.1 / 255)
    np.testing.assert_allclose(view[..., 3], opacity, atol=0.6 / 255)


def test_elevations_of_photos_and_other_views(examples):
  draw = jax.jit(jax.vmap(lambda key: jnp.stack(view_dataset.sample_views(key), -1)))
  angles = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))
  low, high = np.degrees(view_dataset.PHOTO_ELEVATION)
  photos, others = (np.degrees(angles[:, part, 1]) for part in (slice(None, view_dataset.PHOTOS),
                                                                slice(view_dataset.PHOTOS, None)))
  assert low <= photos.min() < low + 3 and high - 3 < photos.max() <= high
  assert abs(photos.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * photos.size)  # 4 standard errors
  assert others.max() > 75 and others.min() > -10.1
  assert np.ptp(angles[..., 0]) > 6.2  # all the way round
  for views in examples["images"]:  # wholly inside the frame
    edges = np.concatenate([views[:, 0], views[:, -1], views[:, :, 0], views[:, :, -1]])
    assert edges[..., 3].max() == 0
