"""GLB files: frame, colours, material and layout of glTF 2.0, read back by a parser of the test and by trimesh."""
import json
import struct

import numpy as np
import pytest
import trimesh

from sds_jax.io import gltf, mesh, mesh_files
from sds_jax.io.surface import Surface, with_vertex_colours

SIZES = {5126: np.dtype("<f4"), 5123: np.dtype("<u2"), 5125: np.dtype("<u4")}
WIDTHS = {"VEC2": 2, "VEC3": 3, "VEC4": 4, "SCALAR": 1}


def parse(data):
  """Returns the JSON and the arrays of all accessors; checks lengths, magic numbers and alignment."""
  magic, version, length = struct.unpack_from("<4sII", data)
  assert (magic, version, length) == (b"glTF", 2, len(data))
  size, kind = struct.unpack_from("<I4s", data, 12)
  content = json.loads(data[20:20 + size])
  blob_size, blob_kind = struct.unpack_from("<I4s", data, 20 + size)
  assert kind == b"JSON" and blob_kind == b"BIN\0" and size % 4 == blob_size % 4 == 0
  blob, arrays = data[28 + size:], []
  assert len(blob) == blob_size and content["buffers"][0]["byteLength"] <= blob_size
  for accessor in content["accessors"]:
    view, kind = content["bufferViews"][accessor["bufferView"]], SIZES[accessor["componentType"]]
    assert view["byteOffset"] % 4 == 0
    flat = np.frombuffer(blob[view["byteOffset"]:view["byteOffset"] + view["byteLength"]], kind)
    array = flat.reshape(accessor["count"], WIDTHS[accessor["type"]])
    assert array.min(axis=0).tolist() == accessor["min"] and array.max(axis=0).tolist() == accessor["max"]
    arrays.append(array)
  return content, arrays


def write(solid, **options):
  content, arrays = parse(gltf.glb_bytes(with_vertex_colours(solid), **options))
  (primitive,) = content["meshes"][0]["primitives"]
  attributes = {name: arrays[number] for name, number in primitive["attributes"].items()}
  return content, primitive, attributes, arrays[primitive["indices"]].reshape(-1, 3)


@pytest.fixture
def box():
  """0.2 wide, 0.4 deep, 1.0 tall, with another colour on each side of x = 0."""
  solid = trimesh.creation.box(extents=(0.2, 0.4, 1.0))
  colours = np.where(solid.vertices[:, :1] > 0, [[188, 64, 10]], [[0, 255, 128]])
  solid.visual = trimesh.visual.ColorVisuals(
    solid, vertex_colors=np.concatenate([colours, np.full((8, 1), 255)], 1).astype(np.uint8))
  return solid


def test_it_stands_and_looks_along_z(box):
  """z up becomes y up, and the front, on +x, comes to +z; no mirror image."""
  _, _, attributes, faces = write(box)
  position = attributes["POSITION"]
  np.testing.assert_allclose(np.ptp(position, axis=0), [0.4, 1.0, 0.2], rtol=1e-6)
  red = attributes["COLOR_0"][:, 0] > attributes["COLOR_0"][:, 1]
  assert (position[red, 2] > 0).all() and (position[~red, 2] < 0).all()
  assert np.linalg.det(gltf.GLTF_FROM_WORLD) == pytest.approx(1.0)
  assert trimesh.Trimesh(position, faces, process=False).volume == pytest.approx(box.volume)
  np.testing.assert_allclose(np.linalg.norm(attributes["NORMAL"], axis=1), 1.0, atol=1e-6)
  assert (np.sum(attributes["NORMAL"] * position, axis=1) > 0).all()


def test_colours_are_linear_and_the_material_is_no_metal(box):
  content, primitive, attributes, _ = write(box)
  material = content["materials"][primitive["material"]]["pbrMetallicRoughness"]
  assert material["metallicFactor"] == 0.0
  stored = attributes["COLOR_0"] / 65535.0
  shown = np.where(stored <= 0.0031308, 12.92 * stored, 1.055 * stored ** (1 / 2.4) - 0.055)  # what a screen adds
  expected = {(188, 64, 10), (0, 255, 128)}
  assert {tuple(row) for row in np.rint(255 * shown[:, :3]).astype(int).tolist()} == expected
  assert (attributes["COLOR_0"][:, 3] == 65535).all()


def test_every_displayed_value_survives():
  levels = np.arange(256) / 255.0
  stored = np.rint(65535 * gltf.linear_from_srgb(levels)) / 65535
  shown = np.where(stored <= 0.0031308, 12.92 * stored, 1.055 * stored ** (1 / 2.4) - 0.055)
  np.testing.assert_array_equal(np.rint(shown * 255), np.arange(256))


def test_doubled_vertices_and_degenerate_faces_go(box):
  doubled = trimesh.Trimesh(np.concatenate([box.vertices, box.vertices]),
                            np.concatenate([box.faces[:6], box.faces[6:] + 8, [[0, 8, 1], [2, 2, 3]]]), process=False,
                            vertex_colors=np.concatenate([box.visual.vertex_colors] * 2))
  _, _, attributes, faces = write(doubled)
  assert len(attributes["POSITION"]) == 8 and len(faces) == 12
  assert trimesh.Trimesh(attributes["POSITION"], faces, process=False).is_watertight


def test_a_surface_of_a_field_comes_back_by_another_reader(tmp_path):
  """trimesh reads what we write: closed, in the frame of glTF."""
  def density(points):
    return 50.0 * (np.linalg.norm(points / [0.3, 0.4, 0.6], axis=1) < 1.0)
  solid = mesh.extract_mesh(density, lambda points: np.full_like(points, 0.5), resolution=32)
  path, = mesh_files.write_mesh(with_vertex_colours(solid), tmp_path, ["glb"])
  again = trimesh.load(path, force="mesh", process=False)
  assert again.is_watertight and again.volume == pytest.approx(solid.volume, rel=1e-4)
  np.testing.assert_allclose(again.extents, solid.extents[[1, 2, 0]], atol=1e-5)


def test_a_texture_is_in_the_file(box):
  """A quad with a texture: the PNG is the given one, and u and v are as given, because v points down in glTF."""
  quad = Surface(np.float32([[0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]]), np.float32([[1, 0, 0]] * 4),
                 np.array([[0, 1, 2], [0, 2, 3]]), uv=np.float32([[0, 1], [1, 1], [1, 0], [0, 0]]),
                 texture=np.zeros((2, 2, 3), np.uint8))
  png = mesh_files.png_bytes(quad.texture)
  png += b"\0" * (1 - len(png) % 2)  # of an odd length
  data = gltf.glb_bytes(quad, png, scale=0.5)
  content, arrays = parse(data)
  (primitive,), (image,) = content["meshes"][0]["primitives"], content["images"]
  np.testing.assert_array_equal(arrays[primitive["attributes"]["TEXCOORD_0"]], quad.uv)
  assert "COLOR_0" not in primitive["attributes"] and image["mimeType"] == "image/png"
  view = content["bufferViews"][image["bufferView"]]
  start = data.index(b"BIN\0") + 4 + view["byteOffset"]
  assert data[start:start + view["byteLength"]] == png
  material = content["materials"][primitive["material"]]["pbrMetallicRoughness"]
  assert material["baseColorTexture"] == {"index": 0} and content["textures"] == [{"source": 0, "sampler": 0}]
  np.testing.assert_allclose(np.ptp(arrays[primitive["attributes"]["POSITION"]], axis=0), [0.5, 0.5, 0.0])
