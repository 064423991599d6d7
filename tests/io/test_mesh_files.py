"""Files of a mesh, read back by trimesh and line by line: frame, scale, colours, texture."""
import io

import numpy as np
from PIL import Image
import pytest
import trimesh

from sds_jax.io import mesh, mesh_files
from sds_jax.io.surface import Surface, with_vertex_colours
from sds_jax.settings.export import MESH_FILES


@pytest.fixture(scope="module")
def solid():
  """Taller than wide, off centre, red in front and dark blue behind: every axis can be told from the others."""
  def density(points):
    distance = np.minimum(*(np.linalg.norm(points - np.float32([0.1, 0, z]), axis=1) for z in (0.3, -0.1))) - 0.3
    return 1000.0 / (1.0 + np.exp(np.clip(distance / 0.005, -60, 60)))

  return mesh.extract_mesh(density, lambda p: np.where(p[:, :1] > 0.1, [0.9, 0.1, 0.1], [0.05, 0.1, 0.4]),
                           resolution=40, threshold=500.0)


@pytest.fixture(scope="module")
def coloured(solid):
  return with_vertex_colours(solid)


@pytest.fixture
def quad():
  """A square of two triangles over a texture of four colours, with another copy of one corner, as on a seam."""
  texture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
  corners = np.float32([[0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1]])
  uv = np.float32([[0.25, 0.75], [0.75, 0.75], [0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.25, 0.25]])
  return Surface(corners, np.float32([[1, 0, 0]] * 6), np.array([[0, 1, 2], [3, 4, 5]]), uv=uv, texture=texture)


def lines_of(path, first):
  return [line.split()[1:] for line in path.read_text().splitlines() if line.split()[:1] == [first]]


def test_every_format_has_a_writer_and_its_names_are_known(quad, coloured, tmp_path):
  assert tuple(mesh_files.FORMATS) == tuple(MESH_FILES)
  for kind in MESH_FILES:
    (tmp_path / kind).mkdir()
    paths = mesh_files.write_mesh(quad, tmp_path / kind, [kind])
    assert tuple(path.name for path in paths) == MESH_FILES[kind]
    assert sorted(p.name for p in (tmp_path / kind).iterdir()) == sorted(MESH_FILES[kind])


def test_obj_with_colours_comes_back_in_the_world_frame(tmp_path, solid, coloured):
  paths = mesh_files.write_mesh(coloured, tmp_path)
  assert [p.name for p in paths] == ["mesh.glb", "mesh.obj", "mesh.mtl"]
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
  again = trimesh.load(tmp_path / "mesh.obj", force="mesh", process=True)
  assert again.is_watertight and again.is_winding_consistent and len(again.faces) == len(coloured.faces)
  assert again.volume == pytest.approx(solid.volume, rel=1e-4)
  vertices = np.array(lines_of(tmp_path / "mesh.obj", "v"), float)
  np.testing.assert_allclose(vertices[:, :3], coloured.vertices, atol=1e-6)
  assert vertices[vertices[:, 0] > 0.2, 3:].mean(0) == pytest.approx([0.9, 0.1, 0.1], abs=0.01)


@pytest.mark.parametrize("kind", ["ply", "stl", "obj", "glb"])
def test_a_unit_has_the_length_of_the_scale(kind, tmp_path, solid, coloured):
  path = mesh_files.write_mesh(coloured, tmp_path, [kind], scale=50.0)[0]
  again = trimesh.load(path, force="mesh", process=True)
  extents = solid.extents[[1, 2, 0]] if kind == "glb" else solid.extents
  np.testing.assert_allclose(again.extents, 50.0 * extents, rtol=1e-5)
  assert again.volume == pytest.approx(50.0 ** 3 * solid.volume, rel=1e-4)


def test_ply_has_displayed_colours(tmp_path, coloured):
  again = trimesh.load(mesh_files.write_mesh(coloured, tmp_path, ["ply"])[0], force="mesh", process=False)
  order = np.lexsort(coloured.vertices.T)
  np.testing.assert_array_equal(again.visual.vertex_colors[np.lexsort(again.vertices.T)][:, :3],
                                coloured.colours[order])


def test_a_texture_is_the_same_picture_in_every_file(tmp_path, quad):
  """The corner at (y, z) = (0, 1) is red in the texture's upper left; OBJ counts v upwards, glTF downwards."""
  mesh_files.write_mesh(quad, tmp_path, MESH_FILES)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mesh.png")), quad.texture)
  assert "map_Kd mesh.png" in (tmp_path / "mesh.mtl").read_text().splitlines()
  # Four positions for six vertices: the seam does not cut the surface open.
  assert len(lines_of(tmp_path / "mesh.obj", "v")) == 4
  corners = [[corner.split("/")[0] for corner in face] for face in lines_of(tmp_path / "mesh.obj", "f")]
  assert len(set(corners[0]) & set(corners[1])) == 2
  assert lines_of(tmp_path / "mesh.obj", "mtllib") == [["mesh.mtl"]]
  assert lines_of(tmp_path / "mesh.obj", "usemtl") == [["albedo"]]
  np.testing.assert_allclose(np.array(lines_of(tmp_path / "mesh.obj", "vt"), float), quad.uv * [1, -1] + [0, 1])
  expected = {(0, 0): (0, 0, 255), (1, 0): (255, 255, 0), (1, 1): (0, 255, 0), (0, 1): (255, 0, 0)}
  ply = trimesh.load(tmp_path / "mesh.ply", force="mesh", process=False)
  assert {tuple(map(int, v[1:])): tuple(c[:3].tolist()) for v, c in zip(ply.vertices, ply.visual.vertex_colors)
          } == expected
  glb = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
  assert (np.asarray(glb.visual.material.baseColorTexture.convert("RGB")) == quad.texture).all()
  np.testing.assert_allclose(np.unique(glb.visual.uv, axis=0), np.unique(quad.uv * [1, -1] + [0, 1], axis=0))
  obj = trimesh.load(tmp_path / "mesh.obj", force="mesh", process=False)
  np.testing.assert_allclose(np.unique(obj.visual.uv, axis=0), np.unique(quad.uv * [1, -1] + [0, 1], axis=0))


def test_png_is_lossless():
  image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mesh_files.png_bytes(image)))), image)


@pytest.mark.parametrize("writer", ["glb", "obj"])
def test_a_failing_export_leaves_nothing(tmp_path, coloured, monkeypatch, writer):
  monkeypatch.setitem(mesh_files.FORMATS, writer, lambda *a: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    mesh_files.write_mesh(coloured, tmp_path)
  assert not list(tmp_path.iterdir())
