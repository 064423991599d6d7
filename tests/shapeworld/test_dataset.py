"""The data set: an example depends on (seed, index) only, and its caption and camera match its image."""
import math

import jax
import numpy as np
import pytest

from sds_jax.shapeworld import captions, dataset, scenes, solids
from sds_jax.views import cameras


@pytest.fixture(autouse=True, scope="module")
def small_batches():
  """Renders 8 images a call: three examples are padded to 8 and not to 32."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dataset, "BATCH", 8)
    yield


@pytest.fixture(scope="module")
def examples():
  return dataset.make_examples(5, range(64))


@pytest.fixture(scope="module")
def setups():
  """Draws the setups of the first 4,096 examples of data set 5."""
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(np.arange(4096, dtype=np.uint32))
  return jax.device_get(jax.jit(jax.vmap(dataset.sample_image_setup))(keys))


def test_shapes_and_types(examples):
  assert examples["images"].shape == (64, 64, 64, 3) and examples["images"].dtype == np.uint8
  assert examples["cameras"].shape == (64, cameras.CAMERA_DIM) and examples["cameras"].dtype == np.float32
  assert examples["captions"].shape == (64,) and examples["captions"].dtype.kind == "U"


def test_an_example_depends_on_seed_and_index_only(examples):
  some = dataset.make_examples(5, [40, 3, 17])
  for name, values in some.items():
    np.testing.assert_array_equal(values, examples[name][[40, 3, 17]])
  other = dataset.make_examples(6, [40, 3, 17])
  assert not np.any(np.all(other["cameras"] == some["cameras"], axis=1))
  assert list(other["captions"]) != list(some["captions"])


def test_images_show_the_setup_and_the_colour_of_the_caption(examples, setups):
  np.testing.assert_allclose(examples["images"][:, 0, 0] / 255, setups.background[:64], atol=0.003)
  features = cameras.camera_features(jax.tree.map(lambda leaf: leaf[:64], setups.camera))
  np.testing.assert_allclose(examples["cameras"], features, atol=1e-5)
  shown = 0
  for i in range(64):
    spec = captions.parse(str(examples["captions"][i]))
    if len(spec.parts) == 1 and spec.parts[0][1] in ("sphere", "cube", "cylinder", "capsule"):
      centre = examples["images"][i, 32, 32] / 255
      colour = np.array(solids.COLOURS[spec.parts[0][0]])
      np.testing.assert_allclose(centre / centre.max(), colour / colour.max(), atol=0.04)
      shown += 1
  assert shown >= 5


def test_view_words_match_the_camera(examples):
  with_view_words = 0
  for caption, features in zip(examples["captions"], examples["cameras"]):
    view = captions.parse(str(caption)).view
    if view is None:
      continue
    with_view_words += 1
    x, y, z = features[:3]
    elevation, azimuth = math.degrees(math.asin(z)), abs(math.degrees(math.atan2(y, x)))
    slack = 4.0 / max(math.cos(math.asin(z)), 0.1)  # the jitter of the camera comes after the choice of the view words
    assert (view == "overhead view") == (elevation > 60) or abs(elevation - 60) < 4
    if view != "overhead view":
      low, high = {"front view": (0, 45), "side view": (45, 135), "back view": (135, 180)}[view]
      assert low - slack <= azimuth <= high + slack
  assert 25 <= with_view_words <= 52


def test_captions_never_name_a_held_out_pair_and_keep_their_shares():
  texts = [dataset._sample_text(0, index) for index in range(5000)]
  assert not any(captions.is_held_out(spec) for spec, _ in texts)
  assert abs(np.mean([has_view_words for _, has_view_words in texts]) - dataset.VIEW_WORDS_SHARE) < 0.03
  assert abs(np.mean([len(spec.parts) == 2 for spec, _ in texts]) - dataset.STACKED_SHARE) < 0.03


def test_lights_and_backgrounds_have_their_ranges(setups):
  np.testing.assert_allclose(setups.ambient + setups.diffuse, 1.0, atol=1e-6)
  bare = setups.ambient == 1.0
  assert abs(bare.mean() - dataset.ALBEDO_ONLY_SHARE) < 0.03
  assert 0.3 <= setups.ambient[~bare].min() < 0.32 and 0.68 < setups.ambient[~bare].max() <= 0.7
  radius = np.linalg.norm(setups.light_position, axis=1)
  assert 0.8 <= radius.min() + 1e-5 and radius.max() <= 1.5 + 1e-5
  assert 0.27 <= setups.background.min() < 0.33 and 0.99 < setups.background.max() <= 1.0
  assert np.ptp(setups.background, axis=1).max() <= 2 * dataset.TINT + 1e-6


def test_file_does_not_depend_on_chunks_and_a_killed_run_continues(examples, tmp_path):
  rendered = []
  render = dataset.make_examples

  def counted(seed, indices):
    rendered.extend(indices)
    if len(rendered) > 7 and not (tmp_path / "stop").exists():
      (tmp_path / "stop").touch()
      raise KeyboardInterrupt
    return render(seed, indices)

  with pytest.raises(KeyboardInterrupt):
    dataset.make_dataset(10, 5, tmp_path / "images.npz", chunk=4, make=counted)
  assert not (tmp_path / "images.npz").exists()
  rendered.clear()
  dataset.make_dataset(10, 5, tmp_path / "images.npz", chunk=4, make=counted)
  assert rendered == [4, 5, 6, 7, 8, 9]  # the first chunk was kept
  with np.load(tmp_path / "images.npz") as stored:
    assert sorted(stored.files) == ["cameras", "captions", "images"]
    for name in stored.files:
      np.testing.assert_array_equal(stored[name], examples[name][:10])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npz", "stop"]


def test_every_scene_of_the_data_set_can_be_rebuilt_from_its_caption(examples):
  for caption in examples["captions"]:
    spec = captions.parse(str(caption))
    rebuilt, expected = scenes.scene_from_caption(str(caption)), scenes.scene_from_spec(captions.Spec(spec.parts))
    jax.tree.map(np.testing.assert_array_equal, rebuilt, expected)
