r"""Sample pictures for image-to-3D: a ShapeWorld scene with transparency, and the truth about it in the same file.

    python -m sds_jax.shapeworld.sample_photos --caption="a red house" --azimuth_deg=30 --seed=5 --out=house.png
    python -m sds_jax.shapeworld.sample_photos --num=12 --seed=1 --out=pictures

Scenes, cameras and lights are drawn as for the training images of the view prior (`view_dataset`), but are never those
of one: where a data set has its seed, all keys have `ROOT_SEED`, and only below it the seed that is given. Every
other one of several pictures shows a colour and shape that no training image does. A picture depends on the seed, its
number and what was told of it, not on the others.
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
from pathlib import Path
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, PngImagePlugin

from sds_jax.priors.loading.files import parse_json, write_atomically
from sds_jax.shapeworld import captions, dataset, scenes, tracer, view_dataset
from sds_jax.types import Array, Camera
from sds_jax.views import cameras, poses

ROOT_SEED = 2**31
"""The root of all keys, where a data set has its seed; those of training sets are below."""
SIZES = (16, 1024)
"""Least and largest size of a picture, pixels a side."""
CHUNK = "shapeworld"
"""The key of the PNG text that holds the truth."""
_LONGEST_CHUNK = 4096


class Truth(NamedTuple):
  """What a picture shows, in the scene's own frame, where its front is at azimuth 0.

  Attributes:
    caption: of the grammar.
    azimuth_deg, elevation_deg: where the camera stood, at poses.DISTANCE with poses.FOV_Y, looking at the origin.
    light: position of the light, world units.
    ambient: intensity of the ambient light; the rest is the light's.
    size, shift: what `view_dataset.placed` did with the caption's scene.
  """
  caption: str
  azimuth_deg: float
  elevation_deg: float
  light: tuple[float, float, float]
  ambient: float
  size: float
  shift: tuple[float, float, float]


def draw_truth(seed: int, index: int = 0, caption: str | None = None, azimuth_deg: float | None = None,
               elevation_deg: float | None = None) -> Truth:
  """What picture number `index` of a seed (0..2^32 - 1) shows; what is None is drawn.

  Captions are drawn with a pair of colour and shape that training never shows at every odd number.

  Raises:
    CaptionError: the caption is not of the grammar.
    ValueError: the seed or an angle is out of range.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed} is not in 0..{2**32 - 1}")
  if caption is None:
    rng = np.random.default_rng([ROOT_SEED, seed, index])
    spec = captions.sample_spec(rng, dataset.TWO_PARTS, held_out=index % 2 == 1, weights=view_dataset.WEIGHTS)
  else:
    spec = captions.Spec(captions.parse(caption).parts)  # view words say nothing that the angles do not
  for name, value, limit in (("azimuth_deg", azimuth_deg, 360.0), ("elevation_deg", elevation_deg, 90.0)):
    if value is not None and not abs(value) <= limit:
      raise ValueError(f"{name}={value} is not in -{limit:g}..{limit:g} degrees")
  azimuth, elevation, light, ambient, size, shift = jax.device_get(_draw(np.uint32(seed), np.uint32(index)))
  plain = lambda values: tuple(float(value) for value in values)  # noqa: E731
  return Truth(
    caption=captions.caption(spec),
    azimuth_deg=math.degrees(azimuth) if azimuth_deg is None else float(azimuth_deg),
    elevation_deg=math.degrees(elevation) if elevation_deg is None else float(elevation_deg),
    light=plain(light), ambient=float(ambient), size=float(size), shift=plain(shift))


@jax.jit
def _draw(seed: Array, index: Array) -> tuple[Array, ...]:
  """Azimuth, elevation [], light [3], ambient, size [], shift [3], drawn as `view_dataset` draws them."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(ROOT_SEED)), seed), index)
  key_views, key_light, key_place = jax.random.split(key, 3)
  azimuth, elevation = view_dataset.sample_views(key_views)
  return azimuth[0], elevation[0], *view_dataset.sample_light(key_light), *view_dataset.sample_place(key_place)


def truth_scene(truth: Truth) -> scenes.SolidScene:
  """The exact scene of a picture, in its own frame."""
  scene = scenes.scene_from_caption(truth.caption)
  return view_dataset.placed(scene, np.float32(truth.size), np.array(truth.shift, np.float32))


def photo_camera(truth: Truth) -> Camera:
  """The camera [] that took the picture, in the scene's own frame."""
  return cameras.orbit(math.radians(truth.azimuth_deg), math.radians(truth.elevation_deg), poses.DISTANCE, poses.FOV_Y)


class PhotoPose(NamedTuple):
  """Where the picture's camera stands in a run, looking at the origin, and how the picture was moved in its frame.

  Attributes:
    azimuth, elevation: radians.
    distance, fov_y: world units, radians.
    scale, shift: of `io.photos.Frame`.
  """
  azimuth: float
  elevation: float
  distance: float = poses.DISTANCE
  fov_y: float = poses.FOV_Y
  scale: float = 1.0
  shift: tuple[float, float] = (0.0, 0.0)


def cameras_to_scene_frame(shots: Camera, truth: Truth, pose: PhotoPose) -> Camera:
  """Cameras [...] of a run, in the frame of the scene: they see `truth_scene` as they see the right object in the run.

  The object is the scene turned about z. Where the picture was moved in its frame, or its camera is another one in the
  run than that which took it, the object is scaled, and moved in the plane through the origin that faces that camera:
  to first order in its depth over the camera's distance, since what is nearer or farther moves more or less, and shows
  other sides of itself.
  """
  angle, scale, move = _motion(truth, pose)
  moved = shots.replace(position=shots.position - jnp.broadcast_to(move, shots.position.shape))
  return cameras.camera_of_turned_object(moved, jnp.float32(angle), jnp.float32(scale))


def points_to_scene_frame(points: np.ndarray, truth: Truth, pose: PhotoPose) -> np.ndarray:
  """Points [N, 3] of the run in the frame of the scene."""
  angle, scale, move = _motion(truth, pose)
  return np.asarray(scenes.rotate_points_z(jnp.asarray(points - move, jnp.float32), -angle)) / np.float32(scale)


def _motion(truth: Truth, pose: PhotoPose) -> tuple[float, float, np.ndarray]:
  """By what the scene is turned about z, radians, scaled, and then moved [3], world units, to be the run's object."""
  camera = cameras.orbit(pose.azimuth, pose.elevation, pose.distance, pose.fov_y)
  right, up = np.asarray(camera.rotation)[:, 0], np.asarray(camera.rotation)[:, 1]
  frame = 2.0 * pose.distance * math.tan(pose.fov_y / 2)  # what the picture's frame measures at the origin
  scale = pose.scale * frame / (2.0 * poses.DISTANCE * math.tan(poses.FOV_Y / 2))
  move = frame * (pose.shift[0] * right - pose.shift[1] * up)
  return pose.azimuth - math.radians(truth.azimuth_deg), scale, move.astype(np.float32)


def render_photo(truth: Truth, size: int) -> np.ndarray:
  """The picture [size, size, 4] uint8: colours, and opacity."""
  rgb, opacity = jax.device_get(_render(truth_scene(truth), photo_camera(truth), jnp.array(truth.light),
                                        jnp.float32(truth.ambient), size))
  colours = np.where(opacity[..., None] > 0, rgb / np.maximum(opacity, 1e-3)[..., None], 0.0)  # of the object alone
  return np.rint(np.clip(np.dstack([colours, opacity]), 0.0, 1.0) * 255.0).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=4)
def _render(scene: scenes.SolidScene, camera: Camera, light: Array, ambient: Array, size: int) -> tuple[Array, Array]:
  return tracer.render(scene, camera, light, ambient, 1.0 - ambient, jnp.zeros(3), size)


def write_photo(truth: Truth, size: int, path: str | os.PathLike) -> Path:
  """Renders a picture into a PNG file that holds its truth, whole or not at all; makes the folder. Returns the path."""
  path, pixels = Path(path), render_photo(truth, size)
  info = PngImagePlugin.PngInfo()
  info.add_text(CHUNK, json.dumps(dict(truth._asdict(), pixels=_digest(pixels))))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info))
  return path


def read_truth(path: str | os.PathLike) -> Truth | None:
  """The truth about a picture that `write_photo` has written; None of any other file.

  None too where the text is damaged, says what `draw_truth` does not, or belongs to other pixels, as after the picture
  was cropped or painted over by a program that keeps texts.
  """
  try:
    with Image.open(path, formats=["PNG"]) as image:
      if image.mode != "RGBA" or image.width != image.height or image.width > SIZES[1]:
        return None
      image.load()
      text = image.text.get(CHUNK, "")
      if not 0 < len(text) <= _LONGEST_CHUNK:
        return None
      values = parse_json(text)
      if values.pop("pixels") != _digest(np.asarray(image)):
        return None
      return _checked(values)
  except Exception:  # of decoders and of a hostile text: whatever it is, this is no such picture
    return None


def _digest(pixels: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _checked(values: dict[str, Any]) -> Truth:
  """The truth that a chunk's object tells; KeyError, TypeError or ValueError where `draw_truth` would not tell it."""
  def number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
      raise ValueError(f"{value!r} is no number in {low}..{high}")
    return float(value)

  def triple(value: Any, limit: float) -> tuple[float, float, float]:
    x, y, z = value
    return number(x, -limit, limit), number(y, -limit, limit), number(z, -limit, limit)

  told = captions.caption(captions.Spec(captions.parse(values["caption"]).parts))
  if set(values) != set(Truth._fields) or values["caption"] != told:
    raise ValueError("it is no truth of this program")
  slack = 1e-6  # of what is drawn in float32
  return Truth(
    caption=values["caption"],
    azimuth_deg=number(values["azimuth_deg"], -360.0, 360.0),
    elevation_deg=number(values["elevation_deg"], -90.0, 90.0),
    light=triple(values["light"], 10.0), ambient=number(values["ambient"], 0.0, 1.0),
    size=number(values["size"], view_dataset.SIZE[0] - slack, view_dataset.SIZE[1] + slack),
    shift=triple(values["shift"], view_dataset.SHIFT + slack))


def main() -> None:
  """Command line: renders one picture into a file, or several into a folder."""
  parser = argparse.ArgumentParser(description="Render sample pictures of ShapeWorld, with the truth about them.")
  parser.add_argument("--caption", help="such as \"a red house\"; drawn where not given")
  parser.add_argument("--azimuth_deg", type=float, help="of the camera, 0 in front; drawn where not given")
  parser.add_argument("--elevation_deg", type=float, help="of the camera; drawn where not given")
  parser.add_argument("--seed", type=int, default=0, help="of what is drawn, the light and the place too")
  parser.add_argument("--size", type=int, default=256, help="pixels a side")
  parser.add_argument("--num", type=int, help="render so many, into a folder")
  parser.add_argument("--out", type=Path, help="file, or folder with --num; picture.png or pictures where not given")
  args = parser.parse_args()
  if not SIZES[0] <= args.size <= SIZES[1]:
    parser.error(f"--size={args.size} is not in {SIZES[0]}..{SIZES[1]}")
  if args.num is not None and args.num < 1:
    parser.error(f"--num={args.num} must be at least 1")
  out = args.out or Path("picture.png" if args.num is None else "pictures")
  if args.num is None and out.suffix.lower() != ".png":
    parser.error(f"--out={out} must end in .png; a folder is for --num")
  try:
    for index in range(args.num or 1):
      truth = draw_truth(args.seed, index, args.caption, args.azimuth_deg, args.elevation_deg)
      path = write_photo(truth, args.size, out if args.num is None else out / f"{index:03d}.png")
      print(f"{path}: {truth.caption}, azimuth {truth.azimuth_deg:.1f}, elevation {truth.elevation_deg:.1f} degrees")
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
