"""Textures: charts that cover the mesh, texels with the colours of their own points, a slow rasteriser as reference."""
import numpy as np
import pytest
import trimesh

from sds_jax.io import asset, mesh, simplify, surface, texture

pytest.importorskip("xatlas", reason="needs sds_jax[texture]")


def colours(points):
  """Smooth and different everywhere."""
  return 0.5 + 0.5 * np.sin(points * [5.0, 7.0, 3.0] + [0.0, 1.0, 2.0])


@pytest.fixture(scope="module")
def solid():
  return trimesh.creation.icosphere(subdivisions=3, radius=0.5)


@pytest.fixture(scope="module")
def baked(solid):
  return texture.textured(solid, colours, 256)


def test_faces_and_positions_are_the_meshs(solid, baked):
  cleaned = surface.clean(solid)
  np.testing.assert_array_equal(baked.vertices[baked.faces], np.float32(cleaned.vertices)[cleaned.faces])
  np.testing.assert_allclose(baked.normals, baked.vertices / 0.5, atol=0.01)
  assert baked.uv.min() >= 0.0 and baked.uv.max() <= 1.0 and baked.texture.shape == (256, 256, 3)


def test_no_two_faces_share_a_texel(baked):
  """Areas of the faces in the texture sum up to the texels that are covered, as only disjoint faces' areas do."""
  charts = texture.Charts(np.arange(len(baked.uv)), baked.faces, baked.uv)
  covered, _ = texture.texel_points(charts, baked.vertices, 256)
  a, b, c = np.moveaxis(baked.uv.astype(np.float64)[baked.faces] * 256, 1, 0)
  area = np.abs(np.linalg.det(np.stack([b - a, c - a], axis=1))).sum() / 2
  assert covered.sum() == pytest.approx(area, rel=0.02) and covered.mean() > 0.3


def test_texels_have_the_colours_of_their_points(baked):
  assert texture.psnr(baked, colours) > 45.0  # 8 bits alone give 58.9 dB, bilinear interpolation the rest


def test_colours_are_read_below_the_surface(solid):
  shell = lambda points: np.repeat(np.linalg.norm(points, axis=1, keepdims=True) > 0.45, 3, axis=1) * 1.0  # noqa: E731
  assert texture.textured(solid, shell, 64).texture.min() == 255
  assert texture.textured(solid, shell, 64, inset=0.1).texture.max() == 0
  assert texture.psnr(texture.textured(solid, shell, 64, inset=0.1), shell, inset=0.1) == 100.0


def test_texel_points_equal_a_loop_over_texels_and_faces():
  """The slow reference tests every texel's centre against every triangle by signed areas."""
  rng = np.random.default_rng(0)
  corner = rng.random((4, 1, 2)) * 0.6
  uv = (corner + rng.random((4, 3, 2)) * 0.4).reshape(12, 2).astype(np.float32)
  values, size = rng.random((12, 3)), 23
  covered, points = texture.texel_points(texture.Charts(np.arange(12), np.arange(12).reshape(4, 3), uv), values, size)
  found = iter(points)
  for row in range(size):
    for column in range(size):
      p = (np.array([column, row]) + 0.5) / size
      candidates = []
      for face in range(4):
        system = np.vstack([uv[3 * face:3 * face + 3].T.astype(np.float64), np.ones(3)])
        weights = np.linalg.solve(system, [*p, 1.0])
        if (weights >= 0).all():
          candidates.append(weights @ values[3 * face:3 * face + 3])
      assert covered[row, column] == bool(candidates)
      if candidates:  # where faces overlap, any of them may give the value
        value = next(found)
        assert min(np.abs(value - c).max() for c in candidates) < 1e-9


def test_texels_outside_of_charts_take_the_nearest_colour():
  covered = np.zeros((5, 5), bool)
  covered[0, 0] = covered[4, 4] = True
  image = texture.paint(covered, np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
  assert image[1, 1].tolist() == [255, 0, 0] and image[4, 2].tolist() == [0, 0, 255]
  assert texture.paint(np.ones((1, 1), bool), np.array([[np.nan, 0.5, -1.0]]))[0, 0].tolist() == [0, 128, 0]


def test_sampling_is_bilinear_between_centres():
  image = np.zeros((2, 2, 3), np.uint8)
  image[0, 1] = 255
  uv = np.array([[0.75, 0.25], [0.5, 0.25], [0.5, 0.5], [1.0, 0.0], [0.25, 0.25]])
  np.testing.assert_allclose(texture.sample(image, uv)[:, 0], [1.0, 0.5, 0.25, 1.0, 0.0])


def test_relaxing_removes_slivers_and_keeps_the_shape():
  """Of an ellipsoid's mesh by marching cubes; distances are to the exact surface, in voxels."""
  radii = np.array([0.3, 0.4, 0.6])
  density = lambda p: 1000.0 / (1.0 + np.exp(np.clip(200 * (np.linalg.norm(p / radii, axis=1) - 1), -60, 60)))  # noqa: E731
  raw = mesh.extract_mesh(density, np.ones_like, resolution=48, threshold=500.0)
  even = simplify.relax(raw)
  slivers = lambda solid: (np.degrees(solid.face_angles).min(axis=1) < 5).mean()  # noqa: E731
  distance = lambda solid: np.abs(np.linalg.norm(solid.vertices / radii, axis=1) - 1) * 0.3 / (1.6 / 47)  # noqa: E731
  assert slivers(raw) > 5e-3 and slivers(even) == 0.0 and simplify.is_closed(even)
  np.testing.assert_array_equal(even.faces, raw.faces)
  assert even.volume == pytest.approx(raw.volume, rel=2e-3)
  assert distance(even).mean() < distance(raw).mean() + 0.02 and distance(even).max() < 0.5


def test_a_simplified_mesh_stays_closed_and_near(solid):
  smaller = simplify.simplify(solid, 300)
  assert 250 <= len(smaller.faces) <= 300 and simplify.is_closed(smaller)
  assert smaller.volume == pytest.approx(solid.volume, rel=0.03)
  assert simplify.simplify(solid, len(solid.faces)) is solid


@pytest.mark.parametrize("faces", [1, 4])
def test_too_few_faces_do_not_open_a_closed_mesh(faces):
  """A torus cannot be closed with four faces; more are kept."""
  torus = trimesh.creation.torus(0.4, 0.1)
  smaller = simplify.simplify(torus, faces)
  assert simplify.is_closed(smaller) and len(smaller.faces) < len(torus.faces)


def test_no_part_is_lost(solid):
  """A small part would go first, since its errors are small."""
  small = trimesh.creation.icosphere(subdivisions=2, radius=0.02)
  both = trimesh.util.concatenate([solid, trimesh.Trimesh(small.vertices + 1.0, small.faces)])
  assert simplify.simplify(both, 40).body_count == 2


@pytest.mark.parametrize("radius", [1e-3, 1e3])
def test_charts_of_any_size(radius):
  """xatlas drops faces below an area of its own."""
  charts = texture.cut(*_arrays(trimesh.creation.icosphere(subdivisions=3, radius=radius)), 64)
  assert len(charts.faces) == 1280 and np.isfinite(charts.uv).all() and np.ptp(charts.uv, axis=0).min() > 0.5


def _arrays(solid):
  return np.asarray(solid.vertices, np.float32), solid.faces, surface.unit_normals(solid)


def test_a_mesh_that_ends_xatlas_keeps_its_colours(solid, tmp_path, monkeypatch):
  """The program is replaced by one that dies of a signal, as xatlas does on some meshes."""
  (tmp_path / "child.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
  monkeypatch.setattr(texture.charts_child, "__file__", str(tmp_path / "child.py"))
  paths, described = asset.write_asset(solid, colours, tmp_path, texture_size=64)
  assert described.endswith("colours at the vertices: xatlas failed on 1,280 faces (CalledProcessError)")
  assert [path.name for path in paths] == ["mesh.glb", "mesh.obj", "mesh.mtl"]


def test_texels_in_groups_are_those_at_once(baked, monkeypatch):
  charts = texture.Charts(np.arange(len(baked.uv)), baked.faces, baked.uv)
  whole = texture.texel_points(charts, baked.vertices, 64)
  monkeypatch.setattr(texture, "TEXELS_AT_ONCE", 100)
  for a, b in zip(whole, texture.texel_points(charts, baked.vertices, 64)):
    np.testing.assert_array_equal(a, b)


def test_nan_colours_are_black_in_texture_and_score(solid):
  nan = lambda points: np.full_like(points, np.nan)  # noqa: E731
  baked = texture.textured(solid, nan, 64)
  assert baked.texture.max() == 0 and texture.psnr(baked, nan) == 100.0


@pytest.mark.parametrize("solid, closed", [
    (trimesh.creation.box(), True), (trimesh.Trimesh(), False),
    (trimesh.Trimesh(trimesh.creation.box().vertices, trimesh.creation.box().faces[:-1], process=False), False),
    (trimesh.Trimesh(trimesh.creation.box().vertices, trimesh.creation.box().faces[:, ::-1], process=False), False)])
def test_closed(solid, closed):
  assert simplify.is_closed(solid) == closed


def test_an_asset_is_described(solid, tmp_path):
  paths, described = asset.write_asset(solid, colours, tmp_path, faces=500, texture_size=64, formats=["obj"])
  assert [path.name for path in paths] == ["mesh.obj", "mesh.mtl", "mesh.png"]
  assert described.startswith("mesh: 500 faces, closed; texture of 64 px, ")
  paths, described = asset.write_asset(solid, colours, tmp_path, faces=0, texture_size=0)
  assert [path.name for path in paths] == ["mesh.glb", "mesh.obj", "mesh.mtl"]
  assert described == f"mesh: {len(solid.faces):,} faces, closed; colours at the vertices"


def test_without_xatlas_the_line_says_what_to_install(solid, tmp_path, monkeypatch):
  monkeypatch.setattr(texture, "is_installed", lambda: False)
  _, described = asset.write_asset(solid, colours, tmp_path, texture_size=64)
  assert described.endswith("colours at the vertices: xatlas is not installed: pip install 'sds_jax[texture]'")


def test_colours_at_vertices_are_the_fields(solid):
  plain = asset.coloured(solid, colours, inset=0.1)
  np.testing.assert_allclose(plain.colours / 255.0, colours(plain.vertices - 0.1 * plain.normals), atol=3e-3)
