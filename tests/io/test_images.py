"""PNG files, contact sheets, and colour maps of depth and normals."""
import numpy as np
import pytest
from PIL import Image

from sds_jax.io import images


def test_png_holds_the_rounded_values(tmp_path):
  image = np.linspace(-0.2, 1.2, 5 * 7 * 3).reshape(5, 7, 3)
  image[0, 0, 0] = np.nan
  read = np.asarray(Image.open(images.write_png(image, tmp_path / "x.png")))
  exact = np.array([255.0 * min(1.0, v) if v > 0.0 else 0.0 for v in image.ravel()]).reshape(5, 7, 3)
  assert read.dtype == np.uint8 and np.abs(read - exact).max() < 0.5001  # nearest, not truncated


def test_png_refuses_a_batch(tmp_path):
  with pytest.raises(ValueError, match="index or tile a batch"):
    images.write_png(np.zeros((2, 4, 4, 3)), tmp_path / "x.png")
  assert not list(tmp_path.iterdir())


def test_tile_arranges_images_row_by_row():
  batch = np.random.default_rng(0).random((5, 4, 6, 3)).astype(np.float32)
  sheet = images.tile(batch, columns=3, gap=1, background=0.25)
  assert sheet.shape == (9, 20, 3)
  for i in range(5):
    row, column = divmod(i, 3)
    assert np.array_equal(sheet[row * 5:row * 5 + 4, column * 7:column * 7 + 6], batch[i])
  assert (sheet[4] == 0.25).all() and (sheet[5:, 14:] == 0.25).all()


def test_labels_are_beside_their_rows():
  first, second = np.zeros((3, 20, 20, 3)), np.full((3, 20, 20, 3), 0.5)
  plain = images.tile_rows([first, second])
  labelled = images.tile_rows([first, second], labels=["colour", "depth"])
  extra = labelled.shape[1] - plain.shape[1]
  assert extra > 20 and np.array_equal(labelled[:, extra:], plain)
  assert labelled[:20, :extra].min() < 0.5 and labelled[22:, :extra].min() < 0.5  # ink beside each row
  with pytest.raises(ValueError, match="1 labels for 2 rows"):
    images.tile_rows([first, second], labels=["colour"])


def test_titles_are_over_their_images():
  rows, labels = np.zeros((2, 3, 40, 50, 3), np.float32), ["t = 1", "t = 2"]
  below = images.tile_rows(rows, labels=labels)
  titled = images.tile_rows(rows, labels=labels, titles=("", "one", "", "three"))
  extra = titled.shape[0] - below.shape[0]
  assert extra > 12 and np.array_equal(titled[extra:], below)
  left = below.shape[1] - (3 * 50 + 2 * 2)
  ink = [titled[:extra, left + i * 52:left + i * 52 + 50].min() < 0.5 for i in range(3)]
  assert ink == [True, False, True] and titled[:extra, :left].min() == 1.0
  wide = images.tile_rows(rows, labels=labels, titles=("a title wider than labels", "", "", ""))
  assert wide.shape[1] > titled.shape[1] and wide[:extra, :5].min() == 1.0  # the long title is not cut off


def test_depth_is_lighter_when_nearer_and_white_where_empty():
  depth = np.linspace(1.0, 3.0, 32, dtype=np.float32)[None].repeat(4, 0)
  opacity = np.ones_like(depth)
  opacity[0] = 0.0
  colours = images.depth_image(depth, opacity)
  assert np.all(colours[0] == 1.0)
  assert np.all(np.diff(colours[1] @ np.array([0.2126, 0.7152, 0.0722]))[1:-1] < 0.0)
  assert np.isfinite(images.depth_image(np.zeros((2, 2)), np.zeros((2, 2)))).all()
  assert np.isfinite(images.depth_image(np.ones((2, 2)), np.ones((2, 2)))).all()


def test_normals_map_axes_to_colours():
  normals = np.array([[[1.0, 0, 0], [0, 0.5, 0], [0, 0, -2.0], [0, 0, 0]]])
  colours = images.normal_image(normals, np.array([[1.0, 1.0, 1.0, 0.0]]))
  np.testing.assert_allclose(colours[0], [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 0], [1, 1, 1]], atol=1e-6)
